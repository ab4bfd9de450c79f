"""The first law of docs/architecture.md: settings that change a result are in its job's params or identity."""

import ast
from dataclasses import fields
from pathlib import Path

from running import ROOT

from nullbooth.models.loading import ModelSource
from nullbooth.workflow import HOW

PACKAGES = ("statistics", "adapters", "learning", "editing", "evaluation")  # whose functions get a config in jobs
JOBS = [
    *(ROOT / "workflow/scripts").glob("*.py"),
    *(path for name in PACKAGES for path in (ROOT / "nullbooth" / name).glob("*.py")),
]


def read_keys(path: Path) -> set[str]:
    """Return the dotted keys that a file reads from `config`, such as `a.b` for `config["a"]["b"]`."""
    found, inner = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        keys, at = [], node
        while isinstance(at, ast.Subscript):
            inner.add(id(at.value))
            keys.append(at.slice.value if isinstance(at.slice, ast.Constant) else None)
            at = at.value
        named = getattr(at, "id", None) or getattr(at, "attr", None)  # `config` or `snakemake.config`
        if named == "config" and keys and id(node) not in inner:
            found.add(".".join(str(key) for key in reversed(keys) if key is not None))
    return found - {""}  # a key by a variable


def test_jobs_read_from_the_config_only_how_a_result_is_made():
    read = {key: path.name for path in JOBS for key in read_keys(path)}
    assert {key: name for key, name in read.items() if key not in HOW} == {}
    assert len(read) > 10, "keys were found"


def test_what_a_model_is_loaded_with_is_how_it_computes():
    assert {field.name for field in fields(ModelSource)} <= {*HOW}


def test_no_key_is_allowed_that_nobody_reads():
    read = {key for path in JOBS for key in read_keys(path)} | {field.name for field in fields(ModelSource)}
    assert {key for key in HOW if key not in read} <= {"plan", "results"}, "read by the rule plan"
