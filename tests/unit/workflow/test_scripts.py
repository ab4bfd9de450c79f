"""Scripts of the workflow: a docstring and little more than a call of the library."""

import ast

import pytest
from running import ROOT

SCRIPTS = sorted((ROOT / "workflow/scripts").glob("*.py"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_is_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 40
    tree = ast.parse(text)
    assert ast.get_docstring(tree).startswith("Rule")
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert [f.name for f in functions] in ([], ["main"]), "science belongs into the library"
    assert all(len(f.args.args) + len(f.args.kwonlyargs) <= 6 for f in functions)


def test_every_script_belongs_to_a_rule():
    rules = "\n".join(path.read_text() for path in (ROOT / "rules").glob("*.smk"))
    assert [path.name for path in SCRIPTS if f"workflow/scripts/{path.name}" not in rules] == []
