"""The page: every picture in place, everything escaped."""

import json
from pathlib import Path

import pytest
from PIL import Image

from nullbooth.gallery import contact_sheet, loss_curve, write_gallery

TEMPLATE = Path(__file__).parents[1] / "workflow/report/gallery.html.j2"
NASTY = 'a "photo" of <script>alert(1)</script> & 星'
FIGURES = [
    {"model": m, "group": g, "metric": k, "value": 0.5, "low": 0.4, "high": 0.6, "n": 1}
    for m in ("base", "tuned")
    for g in ("subject", "class", "unrelated")
    for k in ("dino_fidelity", "dino_drift")
]


def pictures(folder: Path, groups: list[str]) -> None:
    folder.mkdir(parents=True)
    images = [{"group": g, "prompt": f"{NASTY} {g}", "seed": 1, "file": f"{g}-000.png"} for g in groups]
    for image in images:
        Image.new("RGB", (8, 8), "red").save(folder / image["file"])
    (folder / "images.json").write_text(json.dumps({"images": images}))


@pytest.fixture
def page(tmp_path):
    results = tmp_path / "results"
    pictures(results / "images/base/unrelated", ["unrelated"])
    pictures(results / "images/base/thing", ["subject", "class"])
    pictures(results / "images/thing/pooled/0", ["subject", "class", "unrelated"])
    run = results / "runs/thing/pooled/0"
    run.mkdir(parents=True)
    (run / "metrics.json").write_text(json.dumps({"metrics": FIGURES}))
    (run / "loss.csv").write_text("step,loss\n1,2.0\n2,1.0\n")
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    Image.new("RGB", (8, 8), "blue").save(photographs / "a.png")
    concept = {"name": "thing", "images": str(photographs), "holdout": None, "identifier": "sks", "class": "<b>dog</b>"}
    about = {"model": "m", "steps": 2, "guidance": 1.0, "methods": 1, "seeds": 1, "small": True}
    write_gallery(tmp_path / "page", TEMPLATE, results, ["thing/pooled/0"], [concept], about)
    return tmp_path / "page"


def test_prompts_and_names_are_escaped(page):
    html = (page / "index.html").read_text()
    assert "<script>" not in html
    assert "<b>dog" not in html
    assert "&lt;script&gt;alert(1)" in html
    assert "星" in html


def test_base_and_tuned_stand_side_by_side(page):
    html = (page / "index.html").read_text()
    for group, base in (("subject", "thing"), ("class", "thing"), ("unrelated", "unrelated")):
        assert f'src="base/{base}/{group}-000.png"' in html
        assert f'src="thing/pooled/0/{group}-000.png"' in html
        assert (page / f"thing/pooled/0/{group}-000.png").is_file()


def test_contact_sheet_has_photographs_a_row_per_model_and_a_column_per_prompt(page):
    with Image.open(page / "thing.png") as sheet:
        assert sheet.getpixel((164, 60)) == (0, 0, 255)
        colors = [sheet.getpixel((104 + 134 * i + 60, 134 + 64 + 134 * j + 60)) for i in range(3) for j in range(2)]
    assert colors == [(255, 0, 0)] * 6


def test_contact_sheet_wraps_many_prompts_and_does_not_distort(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "square.png")
    tall = Image.new("RGB", (8, 24), "red")
    tall.paste("blue", (0, 8, 8, 16))
    tall.save(tmp_path / "tall.png")
    contact_sheet(tmp_path / "s.png", tmp_path, ["tall.png"], [("base", ["square.png"] * 9)], ["a prompt " * 20] * 9)
    with Image.open(tmp_path / "s.png") as sheet:
        assert sheet.size == (104 + 7 * 134, 134 + 2 * (64 + 134))
        assert {sheet.getpixel((164, y)) for y in (4, 64, 124)} == {(0, 0, 255)}  # its middle third
        last = 134 + 2 * 64 + 134 + 60
        found = [sheet.getpixel((104 + 134 * i + 60, last)) for i in range(3)]
    assert found == [(255, 0, 0), (255, 0, 0), (255, 255, 255)]


def test_loss_curve_falls_with_the_loss(tmp_path):
    (tmp_path / "loss.csv").write_text("step,loss\n1,3.0\n2,2.0\n3,1.0\n")
    heights = [float(point.split(",")[1]) for point in loss_curve(tmp_path / "loss.csv").split()]
    assert heights == sorted(heights)  # SVG counts downwards
    assert heights[0] == 0
