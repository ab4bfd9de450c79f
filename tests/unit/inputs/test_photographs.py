"""Photographs and captions as people keep them."""

import json
import struct
import unicodedata
import zlib

import icc
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from nullbooth.errors import InputError
from nullbooth.inputs.photographs import captions, check_image, content_digest, list_images, list_unused, open_image
from nullbooth.models.pixels import load_image, to_pil
from nullbooth.storage.digests import digest, file_digest

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def in_unit(color: tuple[int, int, int]) -> torch.Tensor:
    return torch.tensor(color) / 127.5 - 1


def stripes(*colors, height: int = 8, width: int = 8) -> Image.Image:
    """Vertical stripes of equal width."""
    image = Image.new("RGB", (width * len(colors), height))
    for i, color in enumerate(colors):
        image.paste(color, (i * width, 0, (i + 1) * width, height))
    return image


def save(image: Image.Image, path, **options):
    image.save(path, **options)
    return path


def test_values_and_layout(tmp_path):
    x = load_image(save(stripes(RED, BLUE), tmp_path / "a.png"), (8, 16))
    assert x.shape == (3, 8, 16)
    assert x.dtype == torch.float32
    assert x[:, 3, 2].equal(in_unit(RED))
    assert x[:, 3, 12].equal(in_unit(BLUE))


def test_black_and_white_are_minus_and_plus_one(tmp_path):
    x = load_image(save(stripes((0, 0, 0), (255, 255, 255)), tmp_path / "a.png"), (8, 16))
    assert (x.min(), x.max()) == (-1, 1)


def test_wide_and_tall_pictures_are_cropped_at_the_centre(tmp_path):
    wide = stripes(RED, GREEN, BLUE, height=64, width=64)
    for image in (wide, wide.transpose(Image.Transpose.ROTATE_90)):
        for size in (32, 64, 100):
            x = load_image(save(image, tmp_path / "a.png"), size)
            assert x.shape == (3, size, size)
            inner = x[:, 6:-6, 6:-6]  # the resizing filter reads beyond the edge
            torch.testing.assert_close(inner, in_unit(GREEN).view(3, 1, 1).expand_as(inner), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("orientation", "corner"), [(1, (0, 0)), (2, (0, -1)), (3, (-1, -1)), (6, (0, -1)), (8, (-1, 0))]
)
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_pictures_are_turned_as_exif_says(tmp_path, orientation, corner, suffix):
    image = Image.new("RGB", (32, 32), "white")
    image.paste(RED, (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    x = load_image(save(image, tmp_path / f"a.{suffix}", exif=exif), 32)
    corners = {(i, j): x[:, 4 if i == 0 else -4, 4 if j == 0 else -4] for i in (0, -1) for j in (0, -1)}
    for place, color in corners.items():
        expected = in_unit(RED) if place == corner else torch.ones(3)
        torch.testing.assert_close(color, expected, atol=0.1, rtol=0)


@pytest.mark.parametrize("mode", ["CMYK", "L", "RGBA", "P", "1", "LA"])
def test_other_colour_modes_become_rgb(tmp_path, mode):
    suffix = "jpg" if mode == "CMYK" else "png"
    path = save(Image.new("RGB", (8, 8), (255, 255, 255)).convert(mode), tmp_path / f"a.{suffix}")
    with Image.open(path) as image:
        assert image.mode == mode
    x = load_image(path, 8)
    torch.testing.assert_close(x, torch.ones(3, 8, 8), atol=0.02, rtol=0)


def test_cmyk_colours(tmp_path):
    x = load_image(save(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), tmp_path / "a.jpg", quality=95), 8)
    torch.testing.assert_close(x, in_unit(RED).view(3, 1, 1).expand(3, 8, 8), atol=0.1, rtol=0)


def test_files_that_are_no_pictures(tmp_path):
    text, cut = tmp_path / "text.png", tmp_path / "cut.jpg"
    text.write_text("not a picture")
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    content = save(Image.fromarray(noise), tmp_path / "whole.jpg").read_bytes()
    cut.write_bytes(content[: len(content) // 2])
    for path in (text, cut):
        with pytest.raises(ValueError, match=f"{path.name}: not a readable image"):
            load_image(path, 8)
    assert load_image(tmp_path / "whole.jpg", 8).shape == (3, 8, 8)


def test_to_pil_inverts_load_image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    x = load_image(save(Image.fromarray(pixels), tmp_path / "a.png"), 8)
    np.testing.assert_array_equal(np.asarray(to_pil(x)), pixels)
    assert np.asarray(to_pil(torch.full((3, 2, 2), 1.5))).max() == 255


READ = ["a.png", "b.JPG", "c.webp", "d.jpeg", "e.bmp", "f.jfif", "g.jpe", "h.tif", "i.TIFF", "j.jp2", "k.ppm", "l.tga"]
READ += ["m.avif", "n.pgm", "o.dib", "p.gif"]
FORMATS = {"JPG": "JPEG", "jfif": "JPEG", "jpe": "JPEG", "jp2": "JPEG2000", "TIFF": "TIFF", "pgm": "PPM", "dib": "DIB"}


def test_list_images(tmp_path):
    for name in (*READ, "notes.txt", "metadata.jsonl"):
        (tmp_path / name).touch()
    assert [p.name for p in list_images(str(tmp_path))] == READ


@pytest.mark.parametrize("name", READ)
def test_every_ending_that_is_listed_can_be_opened(tmp_path, name):
    path = save(stripes(RED, BLUE, height=32, width=32), tmp_path / name, format=FORMATS.get(name.split(".")[1]))
    assert check_image(path) is None
    expected = np.array([RED, BLUE])
    np.testing.assert_allclose(np.asarray(open_image(path))[[16, 16], [8, 56]], expected, atol=6)


def test_a_format_is_known_by_its_content_where_browsers_show_it_and_by_its_ending_where_they_do_not(tmp_path):
    image = stripes(RED, BLUE, height=32, width=32)
    assert open_image(save(image, tmp_path / "a.png", format="WEBP")).mode == "RGB"
    for kind, brand in (("TIFF", "cannot identify"), ("AVIF", "its content is avif")):
        with pytest.raises(InputError, match=rf"b\.jpg: not a readable image \({brand}"):
            open_image(save(image, tmp_path / "b.jpg", format=kind))
    with pytest.raises(InputError, match=r"c\.tif: a TIFF of several pictures"):
        open_image(save(image, tmp_path / "c.tif", save_all=True, append_images=[image]))


LEFT_BEHIND = [
    ".DS_Store",
    "Thumbs.db",
    "desktop.ini",
    "._a.png",
    ".nfs000012",
    "Icon\r",
    "~$notes.docx",
    "ehthumbs.db",
]
FOLDERS_LEFT_BEHIND = ["@eaDir", ".ipynb_checkpoints", "__MACOSX", "#recycle", "System Volume Information"]


def with_photographs(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for i, color in enumerate((RED, GREEN)):
        save(stripes(color, height=32, width=32), folder / f"{i}.png")
    (folder / "0.txt").write_text("a {subject}")
    return folder


def test_the_digest_of_a_folder_is_that_of_its_photographs_and_captions(tmp_path):
    folder = with_photographs(tmp_path / "a")
    (folder / "metadata.jsonl").write_text('{"file_name": "1.png", "text": "a {subject} on grass"}\n')
    before = content_digest(folder)
    assert before == digest({p.name: file_digest(p) for p in folder.iterdir()}), "as in earlier versions"
    for name in (*LEFT_BEHIND, "notes.md", "clip.mov", "latents.npz"):
        (folder / name).write_text("x")
    for name in (*FOLDERS_LEFT_BEHIND, "more"):
        with_photographs(folder / name)
    assert content_digest(folder) == before
    (folder / "0.txt").write_text("another {subject}")
    assert content_digest(folder) != before


def test_what_was_passed_over_before_is_no_part_of_a_result_from_then(tmp_path):
    """Other files must not change the digest, because no result depends on them."""
    image = stripes(RED, height=32, width=32)
    kinds = {
        "ending": lambda folder: save(image, folder / "2.jfif", format="JPEG"),
        "colours": lambda folder: save(image, folder / "2.png", icc_profile=icc.rgb("Adobe RGB")),
        "caption": lambda folder: (folder / "1.caption").write_text("a {subject}"),
        "list": lambda folder: (folder / "metadata.csv").write_text("file_name,text\n1.png,a {subject}\n"),
    }
    for kind, add in kinds.items():
        folder = with_photographs(tmp_path / kind)
        add(folder)
        assert content_digest(folder) != digest({p.name: file_digest(p) for p in folder.iterdir()}), kind
    folder = with_photographs(tmp_path / "sRGB")
    save(image, folder / "2.png", icc_profile=icc.rgb("Display P3"))
    save(image, folder / "2.png", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    assert content_digest(folder) == digest({p.name: file_digest(p) for p in folder.iterdir()})


def test_what_is_not_used_is_named_and_what_systems_leave_is_not(tmp_path):
    folder = with_photographs(tmp_path / "a")
    for name in LEFT_BEHIND:
        (folder / name).write_text("x")
    for name in FOLDERS_LEFT_BEHIND:
        with_photographs(folder / name)
    assert list_unused(folder) == []
    for name in ("clip.mov", "all.zip", "notes.md", "0.npz", "0.CR2", "metadata.parquet", "x"):
        (folder / name).write_text("x")
    with_photographs(folder / "more" / "inner")
    with_photographs(folder / "holdout")
    named = ["0.CR2", "0.npz", "all.zip", "clip.mov", "metadata.parquet", "more/ (2 pictures)", "notes.md", "x"]
    assert list_unused(folder, {folder / "holdout"}) == named
    for i in range(40):
        (folder / f"{i:02d}.json").write_text("x")
    assert list_unused(folder)[20:] == ["29 more"]


def test_a_picture_that_is_not_read_is_refused_unless_it_lies_beside_as_another(tmp_path):
    folder = with_photographs(tmp_path / "a")
    (folder / "0.NEF").write_text("x")
    assert len(list_images(folder)) == 2
    for name in ("b.heic", "b.raf", "b.jxl"):
        (folder / name).write_text("x")
        with pytest.raises(InputError, match=f"{name}: this format is not read; save the picture as PNG or JPEG"):
            list_images(folder)
        (folder / name).unlink()


def test_a_folder_that_has_pictures_in_subfolders_alone_names_them(tmp_path):
    with_photographs(tmp_path / "img/10_vbk star")
    with_photographs(tmp_path / "img/@eaDir")
    with pytest.raises(
        InputError, match=r"images: .*img: no image in it; of its subfolders, '10_vbk star' has 2: name"
    ):
        list_images(tmp_path / "img", "images")


# --- colours -------------------------------------------------------------------------------------------


def pixel(path):
    return np.asarray(open_image(path))[4, 4]


@pytest.mark.parametrize("kind", ["png", "jpg", "tif", "webp", "avif"])
@pytest.mark.parametrize("space", ["Adobe RGB", "Display P3"])
def test_colours_are_those_that_the_profile_means(tmp_path, kind, space):
    path = save(Image.new("RGB", (32, 32), (90, 180, 60)), tmp_path / f"a.{kind}", icc_profile=icc.rgb(space))
    np.testing.assert_allclose(pixel(path), icc.in_srgb((90, 180, 60), space), atol=3 if kind in ("png", "tif") else 10)
    assert check_image(path) is None


def test_a_profile_in_jpeg_2000(tmp_path):
    content = save(Image.new("RGB", (32, 32), (90, 180, 60)), tmp_path / "a.jp2").read_bytes()
    start, header = content.index(b"colr") - 4, content.index(b"jp2h") - 4
    profile = icc.rgb("Adobe RGB")
    box = struct.pack(">I", 11 + len(profile)) + b"colr\2\0\0" + profile
    longer = struct.unpack(">I", content[header : header + 4])[0] + len(box) - 15
    content = content[:start] + box + content[start + 15 :]
    (tmp_path / "a.jp2").write_bytes(content[:header] + struct.pack(">I", longer) + content[header + 4 :])
    np.testing.assert_allclose(pixel(tmp_path / "a.jp2"), icc.in_srgb((90, 180, 60), "Adobe RGB"), atol=3)


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_a_profile_counts_for_palettes_and_beside_transparency(tmp_path, mode):
    image = Image.new("RGBA", (32, 32), (90, 180, 60, 255))
    image.paste((0, 0, 0, 0), (16, 0, 32, 32))
    image = image if mode == "RGBA" else image.quantize(4)
    path = save(image, tmp_path / "a.png", icc_profile=icc.rgb("Adobe RGB"))
    np.testing.assert_allclose(pixel(path), icc.in_srgb((90, 180, 60), "Adobe RGB"), atol=3)
    assert np.asarray(open_image(path))[4, 20].tolist() == [255, 255, 255]


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_profiles_of_grey(tmp_path, mode):
    image = Image.new("L", (32, 32), 100)
    image = Image.fromarray(np.full((32, 32), 100 * 257, np.uint16)) if mode == "I;16" else image.convert(mode)
    path = save(image, tmp_path / "a.png", icc_profile=icc.grey(1.0))
    np.testing.assert_allclose(pixel(path), icc.encoded(np.full(3, 100 / 255)), atol=2)


@pytest.mark.parametrize("kind", ["jpg", "tif"])
def test_profiles_of_inks(tmp_path, kind):
    profile = icc.cmyk({(0, 1, 1, 0): (128, 178, 168)})  # magenta and yellow: L 50, a 50, b 40
    path = save(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), tmp_path / f"a.{kind}", icc_profile=profile)
    np.testing.assert_allclose(pixel(path), (202, 75, 52), atol=4)


def test_pictures_in_srgb_stay_as_they_are_to_the_bit(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = save(Image.fromarray(pixels), tmp_path / "a.png", icc_profile=profile)
    np.testing.assert_array_equal(np.asarray(open_image(path)), pixels)


@pytest.mark.parametrize(
    ("profile", "problem"),
    [
        (b"nonsense", "cannot open profile"),
        (icc.rgb("Adobe RGB")[:300], "cannot build transform"),
        (icc.cmyk({}), "it is for CMYK, the picture is not"),
        (icc.grey(1.0), "it is for grey, the picture is not"),
    ],
)
def test_a_profile_that_no_viewer_could_use_is_named_and_passed_over(tmp_path, profile, problem):
    path = save(Image.new("RGB", (32, 32), RED), tmp_path / "a.png", icc_profile=profile)
    assert check_image(path).startswith(f"{path}: its colour profile is not used ({problem}")
    assert pixel(path).tolist() == list(RED)


def test_what_says_colours_without_a_profile_is_named(tmp_path):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
    camera = save(Image.new("RGB", (32, 32), RED), tmp_path / "a.jpg", exif=exif)
    assert "its camera says Adobe RGB" in check_image(camera)
    assert check_image(deep(tmp_path / "b.png", 2, [(0, 0, 0)], (b"gAMA", struct.pack(">I", 45455)))) is None
    assert "gamma of 1.000" in check_image(
        deep(tmp_path / "c.png", 2, [(0, 0, 0)], (b"gAMA", struct.pack(">I", 100_000)))
    )


def deep(path, kind: int, colors: list[tuple[int, ...]], *chunks: tuple[bytes, bytes]):
    """Write a PNG with 16 bits per channel and stripes of 32 pixels. kind: 0 grey, 2 RGB, 4 grey and alpha, 6 RGBA."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    row = b"\0" + np.repeat(np.array(colors, ">u2"), 32, 0).tobytes()
    head = struct.pack(">IIBBBBB", 32 * len(colors), 32, 16, kind, 0, 0, 0)
    parts = [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(row * 32)), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))
    return path


@pytest.mark.parametrize(
    ("kind", "colors", "chunks", "expected"),
    [
        (0, [(0,), (40_000,)], [], [(0, 0, 0), (156, 156, 156)]),
        (0, [(1000,), (40_000,)], [(b"tRNS", struct.pack(">H", 1000))], [(255, 255, 255), (156, 156, 156)]),
        (2, [(1000, 2000, 3000), (40_000, 0, 0)], [], [(4, 8, 12), (156, 0, 0)]),
        (
            2,
            [(1000, 2000, 3000), (40_000, 0, 0)],
            [(b"tRNS", struct.pack(">HHH", 1000, 2000, 3000))],
            [(255, 255, 255), (156, 0, 0)],
        ),
        (4, [(1000, 0), (40_000, 65_535)], [], [(255, 255, 255), (156, 156, 156)]),
        (6, [(0, 0, 0, 0), (65_535, 0, 0, 32_768)], [], [(255, 255, 255), (255, 127, 127)]),
    ],
)
def test_sixteen_bits_and_transparency(tmp_path, kind, colors, chunks, expected):
    pixels = np.asarray(open_image(deep(tmp_path / "a.png", kind, colors, *chunks)))
    np.testing.assert_allclose(pixels[4, [8, 40]], expected, atol=1.5)


def test_alpha_that_a_program_left_at_zero_hides_nothing(tmp_path):
    image = Image.new("RGBA", (32, 32), (*RED, 0))
    assert pixel(save(image, tmp_path / "a.tga")).tolist() == list(RED)
    assert pixel(save(image, tmp_path / "a.png")).tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    ("array", "options"),
    [
        (np.full((32, 32), 0.5, np.float32), {}),
        (np.full((32, 32), 5, np.int32), {}),
        (np.full((32, 32), 5, np.uint16), {"tiffinfo": {262: 0}}),
    ],
)
def test_numbers_of_which_no_one_knows_what_is_white_are_refused(tmp_path, array, options):
    path = save(Image.fromarray(array), tmp_path / "a.tif", **options)
    with pytest.raises(InputError, match=r"a\.tif: .*white.*; save"):
        open_image(path)


# --- captions ------------------------------------------------------------------------------------------


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(InputError, match="none: no such folder"):
        list_images(tmp_path / "none")
    with pytest.raises(InputError, match=r"no image in it.*\.png"):
        list_images(tmp_path)


def test_captions_by_file_and_by_default(tmp_path):
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    (tmp_path / "b.txt").write_text("  a dog in the snow \n", encoding="utf-8")
    assert captions(paths, "a photo of a sks dog") == ["a photo of a sks dog", "a dog in the snow"]


def test_captions_by_metadata(tmp_path):
    paths = [tmp_path / name for name in ("a.png", "b.png", "c.png")]
    entries = [{"file_name": "c.png", "text": "ein Hund im Schnee, é"}, {"file_name": "b.png", "text": "listed"}]
    lines = "\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
    (tmp_path / "metadata.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "b.txt").write_text("beside")
    with pytest.raises(
        InputError, match=r"b\.png: its captions differ: metadata\.jsonl 'listed', b\.txt 'beside'; keep"
    ):
        captions(paths, "default")
    (tmp_path / "b.txt").write_text("listed\n")
    assert captions(paths, "default") == ["default", "listed", "ein Hund im Schnee, é"]


def test_captions_by_table(tmp_path):
    paths = [tmp_path / name for name in ("a.png", "b.png", "c.png")]
    rows = 'width,file_name,text\r\n64,c.png,"a dog, ""asleep"""\r\n64,b.png,ein Hund\r\n'
    (tmp_path / "metadata.csv").write_text(rows, encoding="utf-8-sig", newline="")
    assert captions(paths, "default") == ["default", "ein Hund", 'a dog, "asleep"']


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r":1: expected the columns file_name and text"),
        ("file_name;text\na.png;x\n", r":1: expected the columns file_name and text, separated by commas"),
        ("file_name,prompt\na.png,x\n", r":1: expected the columns file_name and text"),
        (
            "file_name,text\na.png,a dog, asleep\n",
            r":2: not as many fields as columns; put texts with commas in quotes",
        ),
        ("file_name,text\na.png\n", r":2: not as many fields as columns"),
        ('file_name,text\na.png,"a dog\n', r"not CSV"),
        ("file_name,text\nb.png,x\n", r":2: 'b\.png': no such image"),
        ("file_name,text\na.png,x\na.png,y\n", r":3: 'a\.png' is listed twice"),
        ("file_name,text\na.png, \n", r":2: an empty caption"),
    ],
)
def test_a_broken_table_names_its_line(tmp_path, content, message):
    (tmp_path / "metadata.csv").write_text(content)
    with pytest.raises(InputError, match=rf"metadata\.csv{message}|metadata\.csv:\d: {message}"):
        captions([tmp_path / "a.png"], "default")


def test_captions_in_caption_files(tmp_path):
    paths = [tmp_path / name for name in ("a.png", "b.png")]
    (tmp_path / "b.CAPTION").write_text("a dog\n")
    assert captions(paths, "default") == ["default", "a dog"]
    (tmp_path / "b.txt").write_text("a cat")
    with pytest.raises(InputError, match=r"b\.png: its captions differ: b\.CAPTION 'a dog', b\.txt 'a cat'; keep one"):
        captions(paths, "default")
    (tmp_path / "c.caption").write_text("a dog")
    with pytest.raises(InputError, match=r"c\.caption: a caption without an image"):
        captions(paths, "default")


@pytest.mark.parametrize("source", ["metadata.jsonl", "metadata.csv", "txt", "caption"])
@pytest.mark.parametrize(("on_disk", "in_text"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_names_match_in_any_unicode_form(tmp_path, source, on_disk, in_text):
    photograph = save(stripes(RED), tmp_path / f"{unicodedata.normalize(on_disk, 'café')}.png")
    name = unicodedata.normalize(in_text, "café")
    match source:
        case "metadata.jsonl":
            (tmp_path / source).write_text(json.dumps({"file_name": f"{name}.png", "text": "a dog"}), "utf-8")
        case "metadata.csv":
            (tmp_path / source).write_text(f"file_name,text\n{name}.png,a dog\n", "utf-8")
        case _:
            (tmp_path / f"{name}.{source}").write_text("a dog")
    assert captions(list_images(tmp_path), "default") == ["a dog"]
    assert list_unused(tmp_path) == []
    save(stripes(BLUE), tmp_path / f"{name}.png")
    if len(list(tmp_path.glob("*.png"))) == 2:  # some file systems treat both names as one
        with pytest.raises(InputError, match=r"its name looks like that of another file"):
            list_images(tmp_path)
    assert photograph.exists()


@pytest.mark.parametrize("bad", ['{"file_name": "a.png"}', "nonsense", '["a.png", "text"]', '{"text": "b"}'])
def test_broken_metadata_names_its_line(tmp_path, bad):
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "x"}\n' + bad)
    with pytest.raises(ValueError, match=r"metadata\.jsonl:2: expected"):
        captions([tmp_path / "a.png"], "default")
