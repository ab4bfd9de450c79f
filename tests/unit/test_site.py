"""The documentation is a site that builds without a warning, needs no network, and quotes messages as they are."""

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import ROOT, snakemake


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


def test_the_workflow_of_ones_own_is_planned(tmp_path):
    """The Snakefile of docs/elsewhere.md, with the place of the checkout, beside a config that says little."""
    [text] = re.findall(r"^```py\n(.*?)^```", (ROOT / "docs/elsewhere.md").read_text(), re.MULTILINE | re.DOTALL)
    assert "/path/to/NullBooth/Snakefile" in text
    (tmp_path / "Snakefile").write_text(text.replace("/path/to/NullBooth", str(ROOT)))
    (tmp_path / "mine.yaml").write_text("concepts: [{name: rex, images: resources/subjects/quilt/train, class: heart}]")
    for target in ("published/rex.safetensors", "samples", "results/samples"):
        done = snakemake("--dry-run", "--", target, cwd=tmp_path)
        assert done.returncode == 0, done.stderr + done.stdout
        assert "results/kept/runs/rex/nullbooth/0/" in done.stderr + done.stdout


# --- Quoted messages ---
VARIABLE = "…"  # stands for names and numbers in the quotes of pages


def quotes() -> list[tuple[str, str]]:
    """(page, quote) of parts of messages: the first column of the tables of troubleshooting.md."""
    page = "troubleshooting.md"
    cells = [line.split(" | ")[0] for line in (ROOT / "docs" / page).read_text().splitlines() if line.startswith("| ")]
    return [(page, span) for cell in cells for span in re.findall(r"`([^`]+)`", cell)]


def examples() -> Iterator[tuple[str, str]]:
    """(page, example) of messages with their values: on every page a code span after "says"; in the tutorial the table
    of what Snakemake says, and output, without the lines of tables."""
    for path in sorted((ROOT / "docs").glob("**/*.md")):
        text = path.read_text()
        found = [" ".join(span.split()) for span in re.findall(r"\bsays?\s+`([^`]+)`", text)]
        if path.name == "tutorial.md":
            table = text.partition("| what Snakemake says")[2].partition("\n\n")[0]
            found += re.findall(r"^\| `([^`]+)` \| ", table, re.MULTILINE)
            output = "\n".join(re.findall(r"^```text\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
            found += [line for line in output.splitlines() if len(line) > 3 and len(re.findall("  +", line)) < 4]
        yield from ((path.name, example) for example in found)


@functools.cache
def messages() -> tuple[str, ...]:
    """Every line of text in the code, with variable parts as in the quotes."""
    found = []
    for path in [*(ROOT / "nullbooth").rglob("*.py"), *(ROOT / "workflow/scripts").glob("*.py")]:
        tree = ast.parse(path.read_text())
        said_of_code = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        found += [text_of(node) for node in ast.walk(tree) if id(node) not in said_of_code]
    for path in [*(ROOT / "rules").glob("*.smk"), ROOT / "Snakefile", ROOT / "Makefile"]:
        joined = re.sub(r'"\s*\n\s*f?"', "", path.read_text())  # one text in two lines
        found += [re.sub(r"\{[^{}]*\}", VARIABLE, text) for text in re.findall(r'"([^"\n]*)"', joined)]
    found += [re.sub(r"\{\{.*?\}\}", VARIABLE, page.read_text()) for page in (ROOT / "workflow/report").iterdir()]
    return tuple(line.strip(" ;,") for text in found for line in text.splitlines() if line.strip(" ;,"))


def text_of(node: ast.AST) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) or VARIABLE for part in node.values)
    return ""


def pattern(text: str) -> str:
    """Regular expression of a text with variable parts."""
    return ".*".join(map(re.escape, text.split(VARIABLE)))


def letters(text: str) -> int:
    return len(re.findall("[A-Za-z]", text))


def nearest(text: str) -> str:
    """The end of the complaint about a text: the message that shares most words with it."""
    words = set(text.split())
    near = max(messages(), key=lambda message: len(words & set(message.split())) - len(message) / 300)
    return f"is in no message of the code any more; the nearest is {near!r}"


def test_every_quoted_message_is_one_of_the_code():
    """A quote is a part of a message; an example is a message with its variable parts filled in."""
    assert len(quotes()) > 50
    assert {"tutorial.md", "results-lifelong.md"} <= {page for page, _ in examples()}
    gone = [(page, q) for page, q in quotes() if not any(re.search(pattern(q), message) for message in messages())]
    known = [message for message in messages() if letters(message) > 7]
    gone += [(page, e) for page, e in examples() if not any(re.search(pattern(message), e) for message in known)]
    faults = [f"docs/{page}: `{text}` {nearest(text)}" for page, text in gone]
    assert not faults, "\n".join(["", *faults])


def test_quotes_are_long_enough_to_be_known():
    short = [quote for _, quote in quotes() if " " not in quote or letters(quote) < 8]
    assert short == [], "quote more, or write it without a code span"


def test_a_quote_that_the_code_does_not_have_is_seen():
    assert not any(re.search(pattern("this format is not red"), message) for message in messages())
    assert "or move it elsewhere'" in nearest("this format is not red")
    assert any(re.search(pattern(f"this format is not read; {VARIABLE}"), message) for message in messages())
