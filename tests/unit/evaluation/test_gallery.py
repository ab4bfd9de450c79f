"""The gallery: all pictures are in place, and all texts are escaped."""

import json
import re
from pathlib import Path

import browser
import pytest
from PIL import Image

from nullbooth.evaluation.gallery import contact_sheet, loss_curve, shown_copy, write_gallery

TEMPLATE = Path(__file__).parents[3] / "workflow/report/gallery.html.j2"
NASTY = 'a "photo" of <script>alert(1)</script> & 星'
FIGURES = [
    {"model": m, "group": g, "metric": k, "value": 0.5, "low": 0.4, "high": 0.6, "n": 1}
    for m in ("base", "tuned")
    for g in ("subject", "class", "unrelated", "protected")
    for k in ("dino_fidelity", "dino_drift")
]


def pictures(folder: Path, groups: list[str], words: tuple[str, ...] = ()) -> None:
    folder.mkdir(parents=True)
    images = [{"group": g, "prompt": f"{NASTY} {g}", "seed": 1, "file": f"{g}-000.png"} for g in groups]
    for image in images:
        Image.new("RGB", (8, 8), "red").save(folder / image["file"])
    maps = [
        {"prompt": images[0]["prompt"], "seed": 1, "word": w, "file": f"attention-0-{i}.png"}
        for i, w in enumerate(words)
    ]
    for entry in maps:
        Image.new("RGB", (8, 8), "yellow").save(folder / entry["file"])
    (folder / "images.json").write_text(json.dumps({"images": images, "attention": maps}))


EDITS = [{"from": "a <b>ring</b>", "to": "<i>&"}, {"from": "a big a <b>ring</b>", "to": ""}]
CONTEXTS = {"edited": ["{concept}", "a photo of {concept}"], "paraphrased": ["{concept} <u>there</u>"]}


def edited_pictures(folder: Path) -> dict[str, list[str]]:
    """Write pictures and measurements of EDITS in CONTEXTS, except in the last taught context; return CONTEXTS."""
    prompts = [
        (group, context.replace("{concept}", edit["from"]))
        for group, texts in CONTEXTS.items()
        for edit in EDITS
        for context in texts[:1]
    ]
    for name in ("base", "images"):
        (folder / name).mkdir(parents=True)
        listed = [{"group": g, "prompt": p, "seed": 1, "file": f"{i}.png"} for i, (g, p) in enumerate(prompts)]
        for image in listed:
            Image.new("RGB", (8, 8), "red").save(folder / name / image["file"])
        (folder / name / "images.json").write_text(json.dumps({"images": listed}))
    of_all = [("edited", "clip_prefers"), ("paraphrased", "clip_prefers"), ("unrelated", "dino_drift")]
    number = {"edit": "all", "model": "edited", "value": 0.5, "low": 0.4, "high": 0.6, "n": 1}
    found = [{**number, "group": group, "metric": metric} for group, metric in of_all]
    (folder / "metrics.json").write_text(json.dumps({"metrics": found}))
    (folder / "metrics.csv").write_text("edit,model\n")
    return CONTEXTS


def build(tmp_path, figures=("spectra", "free_directions"), protecting=True, edits=None):
    results = tmp_path / "results"
    words = ("sks", "<i>dog</i>")
    pictures(results / "images/base/unrelated", ["unrelated", "protected"])
    pictures(results / "images/base/thing", ["subject", "class"], words)
    pictures(results / "runs/thing/pooled/0/images", ["subject", "class", "unrelated", "protected"], words)
    run = results / "runs/thing/pooled/0"
    (results / "figures").mkdir()
    (results / "evaluation").mkdir()
    (results / "evaluation/metrics.csv").write_text("concept,method\n")
    drawing = '<svg xmlns="http://www.w3.org/2000/svg" width="40" height="20"><rect width="40" height="20"/></svg>'
    changes = [run / f"change_{prompts}.svg" for prompts in ("protected", "heldout")]
    for path in [*changes, *(results / f"figures/{name}.svg" for name in figures)]:
        path.write_text(drawing)
    (run / "metrics.json").write_text(json.dumps({"metrics": FIGURES}))
    (run / "loss.csv").write_text("step,loss\n1,2.0\n2,1.0\n")
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    Image.new("RGB", (8, 8), "blue").save(photographs / "a.png")
    concept = {"name": "thing", "images": str(photographs), "holdout": None, "identifier": "sks", "class": "<b>dog</b>"}
    about = {"model": "m", "steps": 2, "guidance": 1.0, "methods": 1, "seeds": 1, "small": True}
    runs = ["thing/pooled/0"]
    contexts = edits and edited_pictures(results / "edits")
    page = tmp_path / "page"
    write_gallery(page, TEMPLATE, results, runs, [concept], about, None, protecting, edits, contexts)
    return tmp_path / "page"


@pytest.fixture
def page(tmp_path):
    return build(tmp_path)


def test_prompts_and_names_are_escaped(page):
    html = (page / "index.html").read_text()
    assert "<script>alert" not in html
    assert "<b>dog" not in html
    assert "<i>dog" not in html
    assert "&lt;script&gt;alert(1)" in html
    assert "星" in html


def test_each_edit_is_escaped_and_shown_with_its_own_pictures(tmp_path):
    """The prompts of the second edit contain the words of the first."""
    page = build(tmp_path, edits=EDITS)
    html = (page / "index.html").read_text()
    assert not re.search("<[bu]>(ring|there)|<i>&", html)
    _, first, second = html.split('<section id="edits">')[1].split("</section>")[0].split("<h3>")
    assert "“a &lt;b&gt;ring&lt;/b&gt;” → “&lt;i&gt;&amp;”" in first
    assert "“a big a &lt;b&gt;ring&lt;/b&gt;” → nothing" in second
    captions = [re.findall("<figcaption>(.*?)</figcaption>", part) for part in (first, second)]
    ring = "a &lt;b&gt;ring&lt;/b&gt;"
    assert captions[0] == [ring, f"{ring} &lt;u&gt;there&lt;/u&gt;"]
    assert captions[1] == [f"a big {ring}", f"a big {ring} &lt;u&gt;there&lt;/u&gt;"]
    addresses = re.findall(r'(?:src|data-base)="(edits/[^"]+)"', html)
    assert len(addresses) == 4 * 3
    assert all((page / address).is_file() for address in addresses)
    assert (page / "edits.csv").is_file()


def test_without_edits_the_page_has_no_section_for_them(page):
    html = (page / "index.html").read_text()
    assert 'id="edits"' not in html
    assert "#edits" not in html


def test_base_and_tuned_pictures_are_side_by_side(page):
    html = (page / "index.html").read_text()
    for group, base in (("subject", "thing"), ("class", "thing"), ("unrelated", "unrelated")):
        assert f'src="base/{base}/{group}-000.png"' in html
        assert f'src="thing/pooled/0/{group}-000.png"' in html
        assert (page / f"thing/pooled/0/{group}-000.png").is_file()


def test_attention_maps_of_base_and_tuned_model_are_together(page):
    html = (page / "index.html").read_text()
    files = re.findall(r'src="([^"]*attention[^"]*)"', html)
    assert files == [f"{who}/attention-0-{i}.png" for who in ("base/thing", "thing/pooled/0") for i in (0, 1)]
    assert all((page / file).is_file() for file in files)


def test_figures_of_run_and_statistics_are_copied_to_the_page(page):
    html = (page / "index.html").read_text()
    for file in (
        "thing/pooled/0/change_protected.svg",
        "thing/pooled/0/change_heldout.svg",
        "spectra.svg",
        "free_directions.svg",
    ):
        assert f'src="{file}"' in html
        assert (page / file).is_file()
    assert 'href="metrics.csv"' in html
    assert (page / "metrics.csv").is_file()


def test_the_leak_is_shown_if_shards_were_added(page, tmp_path):
    assert "Enough prompts?" not in (page / "index.html").read_text()
    (tmp_path / "more").mkdir()
    more = build(tmp_path / "more", ("spectra", "free_directions", "leak"))
    assert 'src="leak.svg"' in (more / "index.html").read_text()
    assert (more / "leak.svg").is_file()


def test_older_statistics_are_not_shown_with_a_pack(tmp_path):
    """Their figures may still exist."""
    page = build(tmp_path, protecting=False)
    assert "spectra" not in (page / "index.html").read_text()
    assert not (page / "spectra.svg").exists()


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


@pytest.mark.parametrize("size", browser.SIZES)
def test_the_page_works_in_a_browser(page, tmp_path, size):
    with browser.opened(page / "index.html", size, tmp_path / "profile") as driver:
        browser.assert_sound(driver)
        browser.assert_slider_works(driver)
        browser.assert_sound(driver)


def test_photographs_that_browsers_cannot_show_are_copied_as_png(tmp_path):
    folder = tmp_path / "page"
    folder.mkdir()
    for name in ("a.tif", "a.png", "b.ppm"):
        Image.new("RGB", (8, 8), "blue").save(tmp_path / name)
    copies = [shown_copy(tmp_path / name, folder) for name in ("a.tif", "a.png", "b.ppm")]
    assert [path.name for path in copies] == ["a.tif.png", "a.png", "b.ppm.png"]
    for path in copies:
        with Image.open(path, formats=["PNG"]) as image:
            assert image.convert("RGB").getpixel((4, 4)) == (0, 0, 255)
