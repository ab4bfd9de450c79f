"""Groups of prompts: their checks, their files, and the groups that are drawn."""

import pytest
import yaml

from nullbooth.errors import SettingsError
from nullbooth.inputs.groups import OTHERS, check_groups
from nullbooth.inputs.prompts import read_prompts
from nullbooth.inputs.settings import EMBEDDED, EMBEDDED_NAMES, complete
from world.scenes import NAMES

PROTECTED = ["a red star", "a small, blue ring"]


def completed(schema: dict, model: str = EMBEDDED, **prompts) -> dict:
    """Return the files of a complete config, by group."""
    given = {"subject": "s.txt", "class": "c.txt", "unrelated": "u.txt", **prompts}
    config = {
        "model": model,
        "protect": {"prompts": "p.txt"},
        "concepts": [{"name": "dog", "images": "dog", "class": "dog"}],
        "methods": [{"name": "ours"}],
        "sample": {"prompts": given},
        "evaluate": {"clip": "c", "dino": "d"},
    }
    return complete(config, schema)["sample"]["prompts"]


def test_the_embedded_model_has_names_and_other_models_have_none(schema, root):
    assert completed(schema)["names"] == EMBEDDED_NAMES
    assert completed(schema, str(root / EMBEDDED))["names"] == EMBEDDED_NAMES
    assert set(completed(schema, "sd15")) == {"subject", "class", "unrelated"}
    assert set(completed(schema, names=None)) == {"subject", "class", "unrelated"}
    assert completed(schema, "sd15", names="n.txt", unprotected="w.txt")["names"] == "n.txt"


def test_a_strange_group_is_named(schema):
    with pytest.raises(SettingsError, match=r"^sample\.prompts\.name: unknown key; did you mean 'names'\?"):
        completed(schema, name="n.txt")


@pytest.mark.parametrize("group", OTHERS)
def test_protected_prompts_are_refused_in_other_groups(group):
    found = {"unrelated": ["a green moon"], group: ["a red star"]}
    with pytest.raises(
        SettingsError, match=rf"^sample\.prompts\.{group}: 'a red star' is also protected .* from p\.txt$"
    ):
        check_groups(found, PROTECTED, "p.txt", [])


@pytest.mark.parametrize("prompt", ["a red ring", "A Blue star", "a small, ring"])
def test_unprotected_prompts_have_a_word_of_their_own(prompt):
    check_groups({"unprotected": ["a green star", "a ring outside"]}, PROTECTED, "p.txt", [])
    with pytest.raises(
        SettingsError, match=r"^sample\.prompts\.unprotected: .*: all of its words are in protected pro"
    ):
        check_groups({"unprotected": ["a green star", prompt]}, PROTECTED, "p.txt", [])


def test_names_are_not_those_of_subjects():
    check_groups({"names": ["a kdz moon", "a vbks moon"]}, PROTECTED, "p.txt", ["vbk"])
    with pytest.raises(SettingsError, match=r"^sample\.prompts\.names: 'a VBK moon': vbk is the identifier of a conc"):
        check_groups({"names": ["a VBK moon"]}, PROTECTED, "p.txt", ["sks", "vbk"])


def test_the_embedded_names_are_known_and_their_shapes_are_of_no_subject(root):
    found = read_prompts(root / EMBEDDED_NAMES)
    config = yaml.safe_load((root / "config" / "config.yaml").read_text())
    classes = {concept["class"] for concept in config["concepts"]}
    assert len(found) == 16
    for prompt in found:
        assert set(prompt.split()) & set(NAMES)
        assert not set(prompt.split()) & classes


def test_the_groups_of_the_comparison_are_what_their_names_say(root):
    folder = root / "config" / "comparison"
    protected = read_prompts(folder / "protected.txt")
    assert set(protected) < set(read_prompts(root / "config/prompts/protected.txt"))
    found = {group: read_prompts(folder / f"{group}.txt") for group in ("unrelated", "unprotected")}
    found["names"] = read_prompts(root / EMBEDDED_NAMES)
    check_groups(found, protected, "protected.txt", ["vbk"])
    with pytest.raises(SettingsError, match="all of its words"):
        check_groups({"unprotected": found["unrelated"][:1]}, protected, "protected.txt", [])
    assert {len(prompts) for prompts in found.values()} == {16}
