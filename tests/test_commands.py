"""Every command of README, docs, configs and Makefile is read by Snakemake as it is meant, and none needs --cores."""

import re
import shlex
import subprocess

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
