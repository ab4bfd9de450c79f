"""Colours of a picture as a viewer shows them: sRGB, 8 bits per channel, transparency over white. Imports no torch."""

from functools import lru_cache
from io import BytesIO

from PIL import Image, ImageChops, ImageCms

_GREY = ("1", "L", "LA", "I", "I;16", "I;16L", "I;16B", "I;16N")
_EXIF_INTEROP, _ADOBE_RGB = 0xA005, "R03"  # some cameras write this tag in place of a profile
_USUAL_GAMMA = 1 / 2.2
_SAME = 2  # levels of 255, by which profiles of sRGB differ from each other


def as_seen(image: Image.Image) -> Image.Image:
    """Convert a picture to 8-bit RGB in sRGB, with transparent parts over white.

    Applies its colour profile if that fits the picture's mode; otherwise ignores it, as viewers do. Raises ValueError
    if the file does not define which value is white.
    """
    found, cmyk = _eight_bits(image), image if image.mode == "CMYK" else None
    alpha = None
    if found.mode in ("RGBA", "LA", "PA") or "transparency" in found.info:
        found = found.convert("RGBA")
        alpha = found.getchannel("A")
    found = found.convert("RGB")
    if transform := _profile(image)[0]:
        source = {"CMYK": cmyk, "L": found.convert("L"), "RGB": found}[transform.input_mode]
        found = _applied(source, transform)
    return Image.composite(found, Image.new("RGB", found.size, "white"), alpha) if alpha else found


def _applied(image: Image.Image | None, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    assert image is not None, "the profile fits the picture's mode"
    found = ImageCms.applyTransform(image, transform)
    assert found is not None, "applyTransform returns a new image"
    return found


def seen_anew(image: Image.Image) -> bool:
    """Return True if versions before colour profiles and 16-bit transparency read other colours from this picture than
    `as_seen`, so that results of such versions are out of date."""
    deep = image.mode.startswith("I") and "transparency" in image.info
    return _profile(image)[0] is not None or deep or _deep_transparency(image) is not None


def colour_note(image: Image.Image) -> str | None:
    """Return a warning if a viewer may show other colours, because the file describes them in a way not read here."""
    if problem := _profile(image)[1]:
        return f"its colour profile is not used ({problem}); if its colours look wrong, save it again in sRGB"
    if image.info.get("icc_profile") or "srgb" in image.info:
        return None
    if image.getexif().get_ifd(_EXIF_INTEROP).get(1) == _ADOBE_RGB:
        return "its camera says Adobe RGB, but it has no colour profile and is read as sRGB; save it again in sRGB"
    gamma = image.info.get("gamma")
    if gamma and abs(gamma / _USUAL_GAMMA - 1) > 0.05:
        return f"its gamma of {gamma:.3f} (gAMA) is not used; if it looks too dark or too light, save it again in sRGB"
    return None


def _eight_bits(image: Image.Image) -> Image.Image:
    """Convert an image to 8 bits per channel: Pillow would clip 16-bit grey to white. Raises ValueError."""
    if image.mode == "F":
        raise ValueError("its values are floats, and the file does not say which of them is white")
    if key := _deep_transparency(image):
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in key)
    if not image.mode.startswith("I"):
        return image
    import numpy as np

    array = np.asarray(image).astype(np.int64)
    if array.min() < 0 or array.max() > 65535:
        raise ValueError("its values have more than 16 bits, and the file does not say which of them is white")
    grey = Image.fromarray((array / 257).round().astype(np.uint8))
    if (key := image.info.get("transparency")) is not None:
        grey = Image.merge("LA", (grey, Image.fromarray((array != key).astype(np.uint8) * 255)))
    return grey


def _deep_transparency(image: Image.Image) -> tuple[int, ...] | None:
    """Return the transparent colour of 16-bit RGB, of which Pillow keeps 8 bits; None for other images."""
    key = image.info.get("transparency")
    return key if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255 else None


def _profile(image: Image.Image) -> tuple[ImageCms.ImageCmsTransform | None, str | None]:
    """Return the transform of a picture to sRGB or None, and the reason if its profile cannot be used."""
    if not (content := image.info.get("icc_profile")) or image.mode == "LAB":  # Pillow itself converts LAB to sRGB
        return None, None
    try:
        transform, mode = _to_srgb(content)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        return None, str(error)
    fits = {"CMYK": image.mode == "CMYK", "L": image.mode in _GREY, "RGB": image.mode != "CMYK"}[mode]
    return (transform, None) if fits else (None, f"it is for {'grey' if mode == 'L' else mode}, the picture is not")


@lru_cache(maxsize=16)
def _to_srgb(content: bytes) -> tuple[ImageCms.ImageCmsTransform | None, str]:
    """Return the transform from an ICC profile to sRGB, None if the profile is sRGB, and the mode of its pictures.

    Raises ImageCms.PyCMSError or ValueError if it is not a profile for pictures.
    """
    profile = ImageCms.ImageCmsProfile(BytesIO(content))
    space = profile.profile.xcolor_space.strip()
    if space not in ("RGB", "GRAY", "CMYK"):
        raise ValueError(f"its colour space is {space!r}")
    mode = {"GRAY": "L"}.get(space, space)
    transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB")
    if mode == "CMYK":
        return transform, mode
    samples = _samples() if mode == "RGB" else Image.linear_gradient("L")
    difference = ImageChops.difference(_applied(samples, transform), samples.convert("RGB"))
    same = difference.point(lambda level: 255 * (level > _SAME)).getbbox() is None
    return (None if same else transform), mode


def _samples() -> Image.Image:
    """Return an image with all colours of a coarse grid."""
    import numpy as np

    grid = np.stack(np.meshgrid(*[np.linspace(0, 255, 18).astype(np.uint8)] * 3), -1)
    return Image.fromarray(grid.reshape(-1, 18, 3))
