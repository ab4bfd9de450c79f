"""Photographs and captions as people keep them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from nullbooth.images import captions, list_images, load_image, to_pil
from nullbooth.text import InputError

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
            inner = x[:, 6:-6, 6:-6]  # the filter that resizes looks a little over the edge
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


def test_list_images(tmp_path):
    for name in ("b.JPG", "a.png", "c.webp", "d.jpeg", "e.bmp", "notes.txt", "metadata.jsonl"):
        (tmp_path / name).touch()
    assert [p.name for p in list_images(str(tmp_path))] == ["a.png", "b.JPG", "c.webp", "d.jpeg", "e.bmp"]


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
    assert captions(paths, "default") == ["default", "listed", "ein Hund im Schnee, é"]


@pytest.mark.parametrize("bad", ['{"file_name": "a.png"}', "nonsense", '["a.png", "text"]', '{"text": "b"}'])
def test_broken_metadata_names_its_line(tmp_path, bad):
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "x"}\n' + bad)
    with pytest.raises(ValueError, match=r"metadata\.jsonl:2: expected"):
        captions([tmp_path / "a.png"], "default")
