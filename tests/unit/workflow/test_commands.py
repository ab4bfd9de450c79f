"""Every command of README, docs, configs and Makefile is read by Snakemake as it is meant, and none needs --cores."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from running import ROOT, python
from snakemake.cli import parse_args

PAGES = [
    *(ROOT / name for name in ("README.md", "Makefile", "Snakefile", "bench/README.md", "bench/sweep.yaml")),
    *(path for pattern in ("docs/*.md", "config/*.*", "rules/*.smk", "profiles/*/*") for path in ROOT.glob(pattern)),
]
WORD = r"(?: (?:--?[a-z][\w-]*|--(?= [a-z])|results/[\w/.-]+|\w[\w./-]*(?:=[\w./-]+)?))"
# In a block, between backticks, after the colon of a comment; not in a sentence.
COMMANDS = re.compile(
    rf"(?:^ *|^# |`|: |\")(?:\.venv/bin/|\t\$\(BIN\)/)?snakemake({WORD}+) *(?:#.*|-{{3,}}|;.*)?(?:$|`|\")", re.MULTILINE
)


def commands() -> list[tuple[str, list[str]]]:
    """(page, arguments) of each."""
    found = []
    for page in PAGES:
        text = page.read_text().replace("$(CORES)", "all")
        found += [(page.relative_to(ROOT).as_posix(), shlex.split(given)) for given in COMMANDS.findall(text)]
    return found


def test_options_come_first_and_targets_after_two_dashes(monkeypatch):
    """The one order in which no option takes a target for a value of its own (--configfile, --config, --report)."""
    monkeypatch.chdir(ROOT)
    found = commands()
    assert {"README.md", "docs/cluster.md", "docs/edits.md", "docs/scaling.md", "config/edits.yaml"} <= dict(
        found
    ).keys()
    assert len(found) > 25
    for page, given in found:
        _, dashes, behind = " ".join(given).partition(" -- ")
        targets = behind.split() if dashes or given[0].startswith("-") else given
        _, arguments = parse_args(given)
        assert (list(arguments.targets or []), bool(arguments.cores)) == (targets, True), f"{page}: {given}"
        assert all(re.fullmatch(r"results/.+|[a-z]+", target) for target in targets), f"{page}: {given}"


def settings_of(page: str) -> str:
    """The mine.yaml that a page shows, or that of the README."""
    block = re.compile(r"^```yaml\n(# mine\.yaml\n.*?)^```", re.MULTILINE | re.DOTALL)
    for name in (page, "README.md"):
        if found := block.search((ROOT / name).read_text()):
            return found[1]
    raise ValueError("no page has a mine.yaml")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """What users of these commands have: the project, photographs, prompts, and a model in the Hub's cache."""
    folder = tmp_path_factory.mktemp("checkout")
    for place in ROOT.iterdir():
        if place.name[0] != "." and place.name != "results":
            (folder / place.name).symlink_to(place)
    for name in ("rex", "mug"):
        shutil.copytree(ROOT / "resources/subjects/starling/train", folder / "photos" / name)
    (folder / "my").mkdir()
    (folder / "my/subject.txt").write_text("a photo of {subject} on the moon\n")
    (folder / "my/class.txt").write_text("a photo of {class} on the moon\n")
    (folder / "my/unrelated.txt").write_text("an unheard-of zebra\n")
    repository = folder / "hub/models--stable-diffusion-v1-5--stable-diffusion-v1-5"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("0" * 40)
    shutil.copytree(ROOT / "resources/tinyworld", repository / "snapshots" / ("0" * 40))
    return folder


def distinct() -> list:
    """Each command once for each config that it reads."""
    found = {}
    for page, given in commands():
        if len(given) == 1 and (name := given[0].removeprefix("results/")) in ("edits", "lifelong"):
            # Said beside the setting, which is empty by default.
            page, given = f"docs/{name}.md", ["--configfile", "mine.yaml", "--", *given]
        mine = settings_of(page) if "mine.yaml" in given else ""
        found.setdefault((tuple(given), mine), page)
    return [pytest.param(list(given), mine, id=f"{page}: {' '.join(given)}") for (given, mine), page in found.items()]


@pytest.mark.parametrize(("given", "mine"), distinct())
def test_every_command_is_understood_with_the_config_of_its_page(given, mine, checkout):
    """Reports and unlocking are done; of anything else it is found what would run, and that every input is there."""
    (checkout / "mine.yaml").write_text(mine)
    if "--report" in given:
        pytest.skip("needs results: tests/workflow/test_workflow.py")
    dry = [] if "--unlock" in given else ["--dry-run"]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "HF_HUB_CACHE": str(checkout / "hub")}
    program = sys.executable if "--config" in given else python()  # the place of the cache is read when Python starts
    done = subprocess.run(
        [program, "-m", "snakemake", *dry, *given],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("edits", "config: edits: is empty; name what to edit"),
        ("results/edits/metrics.csv", "config: edits: is empty; name what to edit"),
        ("results/lifelong", "config: methods: none has lifelong; set lifelong: sequence (or merged) for one"),
    ],
)
def test_a_target_for_which_the_config_has_nothing_says_which_key_to_set(target, said, checkout):
    done = subprocess.run(
        [python(), "-m", "snakemake", "--dry-run", target], cwd=checkout, capture_output=True, text=True, timeout=300
    )
    assert done.returncode
    assert said in done.stdout + done.stderr


@pytest.mark.parametrize("question", ["--dag", "--rulegraph", "--summary", "--list-params-changes", "--unlock"])
def test_what_asks_about_a_run_needs_no_cores(question, tmp_path):
    """Where no profile names a number, too."""
    for name in ("Snakefile", "config", "nullbooth", "resources", "rules", "workflow", "envs"):
        (tmp_path / name).symlink_to(ROOT / name)
    command = [
        python(),
        "-m",
        "snakemake",
        "--workflow-profile",
        "none",
        "--configfile",
        "config/minimal.yaml",
        question,
    ]
    done = subprocess.run([*command, "--", "samples"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
