"""Commands in README, docs, configs and Makefile: Snakemake understands each, and none needs --cores."""

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
    *(path for pattern in ("docs/**/*.md", "config/*.*", "rules/*.smk", "profiles/*/*") for path in ROOT.glob(pattern)),
]
HUB = {  # local replacements of the Hub models that pages name
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "resources/tinyworld",
    "openai/clip-vit-large-patch14": "resources/evaluators/clip",
    "facebook/dinov2-base": "resources/evaluators/dino",
}
WORD = r"(?: (?:--?[a-z][\w-]*|--(?= [a-z])|results/[\w/.-]+|\w[\w./-]*(?:=[\w./-]+)?))"
# In a block, between backticks, after the colon of a comment; not in a sentence.
COMMANDS = re.compile(
    rf"(?:^ *|^# |`|: |\")(?:\.venv/bin/|\t\$\(BIN\)/)?snakemake({WORD}+) *(?:#.*|-{{3,}}|;.*)?(?:$|`|\")", re.MULTILINE
)


def commands() -> list[tuple[str, list[str]]]:
    """Return (page, arguments) of each command."""
    found = []
    for page in PAGES:
        text = page.read_text().replace("$(CORES)", "all")
        found += [(page.relative_to(ROOT).as_posix(), shlex.split(given)) for given in COMMANDS.findall(text)]
    return found


def test_options_come_first_and_targets_after_two_dashes(monkeypatch):
    """Only this order keeps targets from being read as values of options (--configfile, --config, --report)."""
    monkeypatch.chdir(ROOT)
    found = commands()
    pages = {"README.md", "config/edits.yaml"}
    pages |= {f"docs/{name}.md" for name in ("cluster", "edits", "lifelong", "outputs", "scaling", "tutorial")}
    assert pages <= dict(found).keys()
    assert len(found) > 40
    for page, given in found:
        _, dashes, behind = " ".join(given).partition(" -- ")
        targets = behind.split() if dashes or given[0].startswith("-") else given
        _, arguments = parse_args(given)
        assert (list(arguments.targets or []), bool(arguments.cores)) == (targets, True), f"{page}: {given}"
        assert all(re.fullmatch(r"results/.+|[a-z]+", target) for target in targets), f"{page}: {given}"


def settings_of(page: str) -> dict[str, str]:
    """Return the configs of a page, by the name in their first line (`# mine.yaml`), or those of the README."""
    block = re.compile(r"^```yaml\n(# (\w+\.yaml)\n.*?)^```", re.MULTILINE | re.DOTALL)
    return {name: text for shown in ("README.md", page) for text, name in block.findall((ROOT / shown).read_text())}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A folder like that of users: the project, photographs, prompts, and a model in the Hub's cache."""
    folder = tmp_path_factory.mktemp("checkout")
    for place in ROOT.iterdir():
        if place.name[0] != "." and place.name != "results":
            (folder / place.name).symlink_to(place)
    for name in ("rex", "mug"):
        shutil.copytree(ROOT / "resources/subjects/starling/train", folder / "photos" / name)
    shutil.copytree(ROOT / "resources/subjects/starling", folder / "photos/starling")
    (folder / "my").mkdir()
    (folder / "my/subject.txt").write_text("a photo of {subject} on the moon\n")
    (folder / "my/class.txt").write_text("a photo of {class} on the moon\n")
    (folder / "my/unrelated.txt").write_text("an unheard-of zebra\n")
    for name, place in HUB.items():
        repository = folder / f"hub/models--{name.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs/main").write_text("0" * 40)
        shutil.copytree(ROOT / place, repository / "snapshots" / ("0" * 40))
    return folder


def distinct() -> list:
    """Return each command once for each config that it reads."""
    found = {}
    for page, given in commands():
        if len(given) == 1 and (name := given[0].removeprefix("results/")) in ("edits", "lifelong"):
            # The page mentions the setting, which is empty by default.
            page, given = f"docs/{name}.md", ["--configfile", "mine.yaml", "--", *given]
        configs = {name: text for name, text in settings_of(page).items() if name in given}
        found.setdefault((tuple(given), tuple(configs.items())), page)
    return [
        pytest.param(list(given), dict(configs), id=f"{page}: {' '.join(given)}")
        for (given, configs), page in found.items()
    ]


@pytest.mark.parametrize(("given", "configs"), distinct())
def test_every_command_is_understood_with_the_config_of_its_page(given, configs, checkout):
    """Reports and unlocking run for real. All other commands are planned, which also checks their inputs."""
    for name, text in configs.items():
        (checkout / name).write_text(text)
    if "--report" in given:
        pytest.skip("needs results: tests/workflow/test_workflow.py")
    dry = [] if "--unlock" in given else ["--dry-run"]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "HF_HUB_CACHE": str(checkout / "hub")}
    # The folder of the cache is read when Python starts.
    program = sys.executable if any(name in " ".join([*given, *configs.values()]) for name in HUB) else python()
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
    """Not even without a profile that sets a number."""
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
