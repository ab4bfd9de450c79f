"""The documentation is a site that builds without a warning, and that needs no network."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_every_page_is_built(site):
    pages = [path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")]
    assert len(pages) > 20
    assert [page for page in pages if not (site / page).is_file()] == []


def test_no_page_loads_anything_from_the_network(site):
    loads = re.compile(r'<(?:script|img|iframe)[^>]*src="(https?:)?//|<link[^>]*rel="(?:stylesheet|preconnect)"[^>]*//')
    pages = sorted(site.rglob("*.html"))
    assert [page.name for page in pages if loads.search(page.read_text())] == []
    assert [
        path.name
        for path in site.rglob("*.css")
        if re.search(r"(?:@import|url\()\s*[\"']?(https?:)?//", path.read_text())
    ] == []


def test_formulas_are_mathml(site):
    text = (site / "method.html").read_text()
    assert text.count("<math") > 40
    assert not re.search(r"\\(?:operatorname|top|frac|Delta)\b|arithmatex", text)


def test_every_setting_is_on_the_page_of_settings(site):
    text = (site / "reference/settings.html").read_text()
    for key in (
        "model",
        "protect.rule",
        "concepts.identifier",
        "methods.scope",
        "train.learning_rate",
        "evaluate.lpips",
    ):
        assert f'id="{key.replace(".", "-").replace("_", "-")}"' in text
    assert "<!-- settings -->" not in text


def test_every_public_name_is_on_the_page_of_the_api(site):
    import nullbooth

    text = (site / "reference/api.html").read_text()
    assert [name for name in nullbooth.__all__ if f'id="nullbooth.{name}"' not in text] == []


def test_links_of_the_readmes_lead_somewhere():
    for name in ("README.md", "CONTRIBUTING.md", "bench/README.md", "config/README.md", "resources/README.md"):
        for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", (ROOT / name).read_text()):
            path, _, anchor = link.partition("#")
            page = (ROOT / name).parent / path if path else ROOT / name
            assert page.exists(), f"{name}: {link}"
            heads = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE) if anchor else []
            anchors = [re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads]
            assert not anchor or anchor in anchors, f"{name}: {link}"
