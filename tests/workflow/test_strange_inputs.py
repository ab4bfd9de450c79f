"""Real runs with strange inputs."""

import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import pytest
from hostile import SCRIPT, SMILE, TOKEN, UNUSUAL
from running import ROOT, Run, snakemake


@pytest.fixture(scope="module")
def strange(tmp_path_factory):
    """A finished run with markup, paths and quotes in prompts, captions and a name, and with an access token set."""
    run = Run(tmp_path_factory.mktemp("strange"))
    run.prompts.write_text("\n".join(UNUSUAL))
    photos = shutil.copytree(ROOT / "resources/subjects/starling/train", run.folder / "photos")
    (photos / "00.png").rename(photos / "0 #1?%20.png")
    (photos / "metadata.jsonl").unlink()
    (photos / "01.txt").write_text(f"a {{subject}} {SCRIPT} ../../x")
    prompts = {"subject": f"a {{subject}} {SCRIPT}", "class": "a ../{class}", "unrelated": f"a {SMILE}"}
    for group, text in prompts.items():
        prompts[group] = str(run.folder / f"{group}.txt")
        Path(prompts[group]).write_text(text)
    concept = {"name": "thing", "images": str(photos), "identifier": "v/../<b>k", "class": "star"}
    arguments = run.arguments(
        concepts=[concept],
        methods=[{"name": "ours", "rank": 4}],
        sampler={"steps": 2},
        train={"steps": 2, "batch": 2},
        sample={"prompts": prompts, "protected": 8},
    )
    began = time.time()
    done = snakemake(str(run.folder / "results/samples"), *arguments, HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr[-6000:]
    kept = [p for name in ("log", "metadata") for p in (ROOT / ".snakemake" / name).rglob("*") if p.is_file()]
    return SimpleNamespace(run=run, done=done, records=[p for p in kept if p.stat().st_mtime > began])


def test_strange_prompts_are_drawn_and_shown_as_text(strange):
    samples = strange.run.folder / "results/samples"
    page = (samples / "index.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "<b>k" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert SMILE in page
    addresses = [unquote(address) for address in re.findall(r'src="([^"]+)"', page)]
    assert any("0 #1?%20.png" in address for address in addresses)
    assert [address for address in addresses if not (samples / address).is_file()] == []


def test_no_token_is_written_anywhere(strange):
    files = [p for p in strange.run.folder.rglob("*") if p.is_file()] + strange.records
    assert len(strange.records) > 5
    assert [str(p) for p in files if TOKEN.encode() in p.read_bytes()] == []
    assert TOKEN not in strange.done.stdout + strange.done.stderr


def test_a_strange_run_writes_into_its_results_alone(strange):
    names = {p.name for p in strange.run.folder.iterdir()}
    assert names == {"results", "photos", "protected.txt", "subject.txt", "class.txt", "unrelated.txt", "settings.yaml"}
