"""The config: defaults, errors with hints, and files that agree with each other."""

import copy
import re
from dataclasses import fields

import jsonschema
import pytest
import yaml
from running import NEEDED
from snakemake.utils import update_config

from nullbooth.errors import InputError, SettingsError
from nullbooth.inputs.config_file import config_text
from nullbooth.inputs.methods import METHODS
from nullbooth.inputs.settings import compared_points, complete, fill_prompt, subject_words, sweep_points
from nullbooth.inputs.typed import resolve
from nullbooth.learning.training import TrainSettings


def with_entry(path: str, value: object) -> dict:
    """Return a minimal config with one entry set, by its dotted path."""
    config = copy.deepcopy(NEEDED)
    *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    inner = config
    for key in parents:
        inner = inner[key] if isinstance(key, int) else inner.setdefault(key, {})
    inner[last] = value
    return config


def overlaid(config: dict, other: dict) -> dict:
    """Merge configs as Snakemake does for `configfile:` and `--configfile other`."""
    config = copy.deepcopy(config)
    update_config(config, other)
    return config


# --- defaults ----------------------------------------------------------------------------------------


def test_defaults_are_filled_in_at_every_depth(schema):
    config = complete(NEEDED, schema)
    assert config["revision"] is None
    assert config["results"] == "results"
    assert config["sampler"]["steps"] == 50
    assert config["protect"]["sites"] == ["cross-attention"]
    assert config["protect"]["rule"] == {"energy": 0.001}
    assert config["concepts"][0]["identifier"] == "sks"
    assert config["concepts"][0]["holdout"] is None
    assert config["methods"][0] == {
        "name": "ours",
        "method": "nullbooth",
        "scope": "pooled",
        "rank": 16,
        "alpha": None,
        "prior": None,
        "rule": None,
        "train": {},
        "lifelong": None,
        "sweep": [{}],
    }
    assert config["comparison"] == {
        "concepts": [],
        "seeds": [0, 1, 2],
        "steps": 20,
        "scales": [0.4, 0.6, 0.8, 1.0],
        "reference": None,
        "methods": [],
    }
    assert config["train"]["learning_rate"] == 0.002
    assert config["validate"]["every"] == 0
    assert config["sample"]["per_prompt"] == 1


def test_what_is_given_stays(schema):
    config = complete(with_entry("sampler", {"steps": 7}), schema)
    assert config["sampler"]["steps"] == 7
    assert config["sampler"]["options"] == {}
    assert complete(with_entry("train", {"flip": True}), schema)["train"]["flip"]
    assert complete(with_entry("protect.rule", {"soft": 2}), schema)["protect"]["rule"] == {"soft": 2}


def test_neither_the_config_nor_the_schema_is_changed(schema):
    config, before = copy.deepcopy(NEEDED), copy.deepcopy(schema)
    filled = complete(config, schema)
    filled["protect"]["sites"].append("other")
    filled["sampler"]["options"]["a"] = 1
    assert config == NEEDED
    assert schema == before
    assert complete(NEEDED, schema)["protect"]["sites"] == ["cross-attention"]


def test_completing_twice_changes_nothing(schema):
    once = complete(NEEDED, schema)
    assert complete(once, schema) == once


# --- errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("modle", "m", r"^modle: unknown key; did you mean 'model'\?"),
        ("sampler.step", 5, r"^sampler\.step: unknown key; did you mean 'steps'\?"),
        ("train.learning_rat", 1.0, r"^train\.learning_rat: unknown key; did you mean 'learning_rate'\?"),
        ("concepts.0.identifer", "x", r"^concepts\.0\.identifer: unknown key; did you mean 'identifier'\?"),
        ("methods.0.scop", "pooled", r"^methods\.0\.scop: unknown key; did you mean 'scope'\?"),
        ("protect.rule", {"enrgy": 0.1}, r"^protect\.rule\.enrgy: unknown key; did you mean 'energy'\?"),
        ("methods.0.rule", {"enrgy": 0.1}, r"^methods\.0\.rule\.enrgy: unknown key; did you mean 'energy'\?"),
        ("methods.0.train", {"stepz": 1}, r"^methods\.0\.train\.stepz: unknown key; did you mean 'steps'\?"),
        ("validate.zzz", 1, r"^validate\.zzz: unknown key; known keys are every, prompts"),
    ],
)  # fmt: skip
def test_an_unknown_key_suggests_the_nearest(schema, path, value, message):
    with pytest.raises(SettingsError, match=message):
        complete(with_entry(path, value), schema)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("sampler.steps", "fifty"),
        ("sampler.steps", 0),
        ("precision", "fp8"),
        ("train.learning_rate", -1),
        ("train.batch", 1.5),
        ("train.timesteps", "some"),
        ("train.caption_dropout", 2),
        ("methods.0.scope", "step"),
        ("methods.0.rank", "half"),
        ("methods.0.alpha", 0),
        ("methods.0.train", {"steps": "many"}),
        ("protect.rule", {"energy": 2}),
        ("protect.rule", {"energy": 0.1, "soft": 1}),
        ("protect.rule", {}),
        ("protect.sites", []),
        ("seeds", [0, 0]),
        ("seeds", []),
        ("concepts.0.name", "base"),
        ("concepts.0.name", "unrelated"),
        ("concepts.0.name", "a/b"),
        ("concepts", []),
    ],
)
def test_a_wrong_value_names_key_and_value(schema, path, value):
    with pytest.raises(SettingsError) as error:
        complete(with_entry(path, value), schema)
    inner = value if not isinstance(value, dict) or len(value) != 1 else next(iter(value.values()))
    assert str(error.value).startswith(path)
    assert repr(inner) in str(error.value)


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("train.learning_rate", "1e-4", 1e-4),
        ("train.learning_rate", "2", 2),
        ("train.learning_rate", " .5 ", 0.5),
        ("train.steps", "5", 5),
        ("train.flip", "true", True),
        ("train.flip", "False", False),
        ("train.ema", "null", None),
        ("train.ema", "0.99", 0.99),
        ("resolution", "null", None),
        ("resolution", "512", 512),
        ("revision", "null", None),
        ("revision", "1234567", "1234567"),
        ("model", "5", "5"),
        ("methods.0.rank", "8", 8),
        ("methods.0.rank", "full", "full"),
        ("methods.0.prior", "null", None),
        ("methods.0.rule", "{energy: 1e-2}", {"energy": 0.01}),
        ("methods.0.sweep", [{"steps": "5"}, {"learning_rate": "1e-4"}], [{"steps": 5}, {"learning_rate": 1e-4}]),
        ("protect.rule", {"energy": "1e-2"}, {"energy": 0.01}),
        ("protect.sites", ["5"], ["5"]),
        ("seeds", ["0", "1"], [0, 1]),
        ("seeds", "[0, 1]", [0, 1]),
        ("validate.prompts", ["[1]"], ["[1]"]),
        (
            "sampler.options",
            {"num_train_timesteps": "20", "betas": ["1e-4", "0.1"], "timestep_spacing": "trailing", "clip": "true"},
            {"num_train_timesteps": 20, "betas": [1e-4, 0.1], "timestep_spacing": "trailing", "clip": True},
        ),
    ],
)
def test_text_is_what_it_spells_where_the_schema_wants_no_text(schema, path, text, expected):
    found = complete(with_entry(path, text), schema)
    for key in path.split("."):
        found = found[int(key) if key.isdigit() else key]
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("train.learning_rate", "fast"),
        ("train.learning_rate", "nan"),
        ("train.learning_rate", "1e999"),
        ("train.learning_rate", "true"),
        ("train.steps", "5.0"),
        ("train.steps", "9" * 400),
        ("train.steps", "2020-01-01"),
        ("train.flip", "1"),
        ("train.flip", "truth"),
        ("seeds", "0"),
        ("seeds", "[0, x]"),
        ("seeds", "[" * 1000),
        ("seeds", "&a [*a, *a]"),
        ("train", "{steps: 5"),
        ("sampler.options", "!!python/object:os.system {}"),
    ],
)
def test_text_that_spells_nothing_of_the_kind_is_refused_as_it_stands(schema, path, text):
    with pytest.raises(SettingsError, match=rf"^{path}"):
        complete(with_entry(path, text), schema)


def test_a_whole_mapping_may_be_text(schema):
    found = complete(with_entry("train", "{steps: 5, learning_rate: 1e-4}"), schema)["train"]
    assert (found["steps"], found["learning_rate"]) == (5, 1e-4)


def test_what_is_given_to_config_arrives_as_it_is_meant(schema):
    """Snakemake reads values of --config with YAML's BaseLoader, which keeps numbers in brackets as text."""
    from snakemake.cli import parse_config

    given = ["seeds=[0,1]", "train={steps: 5, learning_rate: 1e-4, flip: true}", "resolution=null", "precision=fp32"]
    found = complete(overlaid(NEEDED, parse_config(given)), schema)
    assert (found["seeds"], found["resolution"], found["precision"]) == ([0, 1], None, "fp32")
    assert {key: found["train"][key] for key in ("steps", "learning_rate", "flip")} == {
        "steps": 5,
        "learning_rate": 1e-4,
        "flip": True,
    }


@pytest.mark.parametrize("key", ["model", "protect", "concepts", "methods", "sample", "evaluate"])
def test_a_missing_key_is_named(schema, key):
    config = {k: v for k, v in NEEDED.items() if k != key}
    with pytest.raises(SettingsError, match=f"^config: missing {key}"):
        complete(config, schema)


def test_a_missing_inner_key_is_named(schema):
    with pytest.raises(SettingsError, match=r"^concepts\.0: missing class"):
        complete(with_entry("concepts", [{"name": "a", "images": "b"}]), schema)


def test_all_errors_are_told_at_once(schema):
    config = with_entry("sampler", {"steps": 0, "guidence": 1})
    with pytest.raises(SettingsError) as error:
        complete(config | {"device": 5}, schema)
    assert len(str(error.value).splitlines()) == 3


@pytest.mark.parametrize("kind", ["concepts", "methods"])
def test_a_doubled_name_is_refused(schema, kind):
    config = copy.deepcopy(NEEDED)
    config[kind].append(config[kind][0])
    with pytest.raises(SettingsError, match=rf"^{kind}: the name '{config[kind][0]['name']}' is used twice"):
        complete(config, schema)


# --- the files of the project ------------------------------------------------------------------------


def defaults(schema: dict, root: dict, where: str = "") -> dict[str, object]:
    """Return all defaults of a schema by dotted path; those of objects come from their properties."""
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rsplit("/", 1)[1]] | {k: v for k, v in schema.items() if k == "default"}
    found = {}
    for key, sub in schema.get("properties", {}).items():
        path = f"{where}.{key}".lstrip(".")
        inner = defaults(sub, root, path)
        if "default" in sub and not inner:
            found[path] = sub["default"]
        found |= inner
    return found


def at(config: dict, path: str) -> object:
    for key in path.split("."):
        config = config[key]
    return config


def test_the_config_file_is_valid_and_says_everything(config, schema):
    assert complete(config, schema) is not None
    for path in set(defaults(schema, schema)) - {"protect.rule"}:
        at(config, path)  # KeyError: config.yaml lacks a key
    assert set(config["concepts"][0]) == set(schema["$defs"]["concept"]["properties"])
    assert set(config["methods"][0]) == set(schema["$defs"]["method"]["properties"])


def test_the_schema_knows_every_rival(schema):
    assert schema["$defs"]["method"]["properties"]["method"]["enum"] == list(METHODS)


def test_the_config_file_states_the_defaults(config, schema):
    """Its first lines say so: "Every key may be left out: config/schema.yaml holds the same defaults"."""
    expected = defaults(schema, schema)
    assert expected.pop("protect.rule") == {"energy": 1e-3}  # a comment there, so that another file can replace it
    assert expected.pop("comparison.methods") == []  # the file has an example, as for concepts and methods
    assert expected.pop("comparison.reference") is None
    assert len(expected) > 25
    assert {path: at(config, path) for path in expected} == expected


def test_every_method_can_be_asked_for(schema):
    assert schema["$defs"]["method"]["properties"]["method"]["enum"] == list(METHODS)


def test_the_config_file_states_the_defaults_of_a_concept_and_a_method(config, schema):
    for kind in ("concept", "method"):
        stated, properties = config[f"{kind}s"][0], schema["$defs"][kind]["properties"]
        own = {"holdout", "identifier"}  # settings that the embedded subjects need
        expected = {key: sub["default"] for key, sub in properties.items() if "default" in sub and key not in own}
        assert {key: stated[key] for key in expected} == expected


def test_the_minimal_config_is_valid_on_top_of_it(config, schema, root):
    minimal = yaml.safe_load((root / "config" / "minimal.yaml").read_text())
    merged = complete(overlaid(config, minimal), schema)
    assert merged["sampler"]["steps"] == 3
    assert merged["train"]["steps"] == 4
    assert merged["model"] == config["model"]


@pytest.mark.parametrize("name", ["edits", "lifelong"])
def test_configs_to_show_something_are_valid_on_top_of_it(config, schema, root, name):
    merged = complete(overlaid(config, yaml.safe_load((root / "config" / f"{name}.yaml").read_text())), schema)
    assert merged["edits"] or [method for method in merged["methods"] if method["lifelong"]]


def test_the_comparison_of_readme_claims_nothing_of_the_subject_that_settings_were_chosen_on(config, schema, root):
    merged = complete(overlaid(config, yaml.safe_load((root / "config/comparison.yaml").read_text())), schema)
    found = merged["comparison"]
    assert found["concepts"] == ["quilt", "muppet"]
    assert set(found["concepts"]) <= {concept["name"] for concept in merged["concepts"]}
    assert {"nullbooth", "replay"} < {method["method"] for method in found["methods"]}
    assert found["reference"] in {method["name"] for method in found["methods"]}
    assert len(found["scales"]) >= 4
    assert len(found["seeds"]) >= 3
    assert {"unrelated", "unprotected", "names"} < merged["sample"]["prompts"].keys()
    assert [path for path in merged["sample"]["prompts"].values() if not (root / path).is_file()] == []


@pytest.mark.parametrize("rule", [{"absolute": 0.02}, {"soft": 1.0}, {"energy": 0.01}])
def test_another_rule_in_a_config_on_top_replaces_the_rule(config, schema, rule):
    """Snakemake merges dictionaries of config files key by key."""
    assert complete(overlaid(config, {"protect": {"rule": rule}}), schema)["protect"]["rule"] == rule


def test_files_that_the_configs_name_are_there(config, schema, root):
    minimal = yaml.safe_load((root / "config" / "minimal.yaml").read_text())
    for settings in (complete(config, schema), complete(overlaid(config, minimal), schema)):
        named = [settings["protect"]["prompts"], *settings["sample"]["prompts"].values()]
        assert [path for path in named if not (root / path).is_file()] == []


def test_training_defaults_are_those_of_the_schema(schema):
    properties = schema["$defs"]["train"]["properties"]
    others = ("flip", "buckets", "gpus", "inversion_steps", "inversion_rate")
    expected = {key: sub["default"] for key, sub in properties.items() if key not in others}
    found = {f.name: f.default for f in fields(TrainSettings)}
    assert {key: found[key] for key in expected} == expected
    assert set(found) - set(expected) == {"precision", "seed"}


def test_placeholders_are_filled_and_strangers_refused():
    words = subject_words({"identifier": "sks", "class": "dog"})
    assert fill_prompt("a {subject} beside a {class}", words) == "a sks dog beside a dog"
    with pytest.raises(SettingsError, match=r"unknown placeholder \{sbject\}; use \{subject\} or \{class\}"):
        fill_prompt("a {sbject}", words)


def test_weights_are_full_or_those_of_passes(schema):
    for weights, precision in (("fp32", "bf16"), ("bf16", "bf16"), ("fp16", "fp16"), ("fp32", "fp32")):
        complete({**NEEDED, "weights": weights, "precision": precision}, schema)
    with pytest.raises(SettingsError, match=r"^weights: 'fp16', but precision is 'bf16'; set both to fp16"):
        complete({**NEEDED, "weights": "fp16"}, schema)


def in_turn(**method) -> dict:
    """Settings with two concepts that one method learns one after another."""
    concepts = [{"name": name, "images": name, "class": "dog", "identifier": name} for name in ("ann", "bob")]
    return {**NEEDED, "concepts": concepts, "methods": [{"name": "ours", "lifelong": "sequence", **method}]}


def test_what_can_be_learned_in_turn(schema):
    for method in (
        {"scope": "timestep", "train": {"distinct_timesteps": 1}},
        {"scope": "timestep", "train": {"distinct_timesteps": 1}, "prior": "prediction"},
        {"prior": "images"},
        {"train": {"inversion_steps": 5}},
        {"method": "dreambooth-prior"},
        {"lifelong": "merged", "scope": "timestep", "prior": "images"},
    ):
        found = complete(in_turn(**method), schema)
        assert found["lifelong"]["weight"] == 1.0


@pytest.mark.parametrize("way", ["sequence", "merged"])
def test_learned_words_need_identifiers_of_their_own(schema, way):
    config = in_turn(lifelong=way, sweep=[{}, {"inversion_steps": 5}])
    config["concepts"][1]["identifier"] = "ann"
    with pytest.raises(SettingsError, match=rf"^methods\.0\.lifelong: {way}: with train\.inversion_steps"):
        complete(config, schema)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"scope": "timestep"},
            r"^methods\.0\.lifelong: sequence: .*distinct_timesteps to 1, or scope to pooled",
        ),
        (
            {"scope": "timestep", "prior": "images", "train": {"distinct_timesteps": 1}},
            r"^methods\.0\.lifelong: sequence: .*prior: images.*set prior to prediction",
        ),
    ],
)
def test_several_timesteps_in_a_batch_are_refused_where_known_subjects_have_but_one(schema, changes, says):
    with pytest.raises(SettingsError, match=says):
        complete(in_turn(**changes), schema)


def test_cached_timesteps_are_refused_for_rivals_before_anything_runs(schema):
    rival = {"name": "lora", "method": "lora"}
    said = r"^methods\.1: train\.timesteps: cached: only the method nullbooth .* set it to all for the rival lora"
    with pytest.raises(SettingsError, match=said):
        complete({**NEEDED, "methods": [*NEEDED["methods"], rival], "train": {"timesteps": "cached"}}, schema)
    complete(
        {**NEEDED, "methods": [{**rival, "train": {"timesteps": "all"}}], "train": {"timesteps": "cached"}}, schema
    )
    complete({**NEEDED, "train": {"timesteps": "cached"}}, schema)


def test_a_pack_has_no_moments_that_those_of_subjects_could_be_added_to(schema):
    config = {**in_turn(), "protect": {"prompts": "p.txt", "pack": "mine"}}
    with pytest.raises(
        SettingsError, match=r"^methods\.0\.lifelong: sequence: moments .* a pack.*protect\.pack to null"
    ):
        complete(config, schema)
    complete({**in_turn(lifelong="merged"), "protect": config["protect"]}, schema)
    complete({**in_turn(method="lora"), "protect": config["protect"]}, schema)


def test_the_comparison_learns_one_concept_at_a_time(schema):
    compared = {"comparison": {"methods": [{"name": "lora", "method": "lora", "lifelong": "merged"}]}}
    with pytest.raises(SettingsError, match=r"^comparison\.methods: lora: lifelong is an option of `methods`"):
        complete({**NEEDED, **compared}, schema)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "nullbooth"])
def test_methods_of_the_weights_themselves_need_them_in_full(schema, method):
    config = {**NEEDED, "methods": [{"name": "ours"}, {"name": "other", "method": method}]}
    complete(config, schema)
    if method in ("lora", "prior-prediction", "replay"):
        complete({**config, "weights": "bf16"}, schema)
    else:
        with pytest.raises(SettingsError, match=f"^methods.1.method: '{method}' needs weights: fp32, not bf16"):
            complete({**config, "weights": "bf16"}, schema)


# --- sweeps ------------------------------------------------------------------------------------------


def compared(scales: list, **method) -> dict:
    sweep = [{"steps": 5}, {"steps": 9}]
    listed = [{"name": "lora", "method": "lora", "train": {}, "sweep": sweep, **method}]
    return compared_points({"methods": listed, "scales": scales})


def test_a_comparison_draws_each_adapter_at_each_scale():
    found = compared([1, 0.5])
    assert list(found) == ["lora-steps5@0.5", "lora-steps5", "lora-steps9@0.5", "lora-steps9"]
    assert found["lora-steps5@0.5"]["run"] == found["lora-steps5@0.5"]["line"] == "lora-steps5"
    assert [point["scale"] for point in found.values()] == [0.5, 1.0, 0.5, 1.0]
    assert {point["curve"] for point in found.values()} == {"lora"}
    assert all(point["name"] == name for name, point in found.items())


def test_points_of_one_scale_are_named_as_their_runs_and_joined():
    found = compared([1.0])
    assert {name: point["run"] for name, point in found.items()} == {name: name for name in found}
    assert {point["line"] for point in found.values()} == {"lora"}


@pytest.mark.parametrize("scales", [[], [0], [-1], [0.5, 0.5], ["half"], 0.5])
def test_scales_that_are_none_are_refused(schema, scales):
    with pytest.raises(SettingsError, match=r"^comparison\.scales"):
        complete({**NEEDED, "comparison": {"scales": scales}}, schema)


def test_a_sweep_is_the_method_once_for_each_entry():
    method = {"name": "lora", "rank": 4, "train": {"batch": 2, "steps": 9}, "sweep": [{}, {"steps": 5, "batch": 1}]}
    plain, changed = sweep_points(method)
    assert plain["name"] == "lora"
    assert plain["train"] == {"batch": 2, "steps": 9}
    assert changed["name"] == "lora-batch1-steps5"
    assert changed["train"] == {"batch": 1, "steps": 5}
    assert {p["curve"] for p in (plain, changed)} == {"lora"}


@pytest.mark.parametrize(
    ("methods", "compared", "kind"),
    [
        ([{"name": "a", "sweep": [{"steps": 5}, {"steps": 5}]}], [], "methods"),
        ([{"name": "a"}], [{"name": "a"}], "methods"),
        ([{"name": "a"}], [{"name": "b", "sweep": [{"steps": 1}]}, {"name": "b"}], "comparison.methods"),
    ],
)
def test_no_two_results_share_a_name(schema, methods, compared, kind):
    config = {**NEEDED, "methods": methods, "comparison": {"methods": compared}}
    with pytest.raises(SettingsError, match=f"^{kind}: the name .* is used twice"):
        complete(config, schema)


def test_a_method_may_be_compared_at_other_settings(schema):
    config = {**NEEDED, "methods": [{"name": "a"}], "comparison": {"methods": [{"name": "a", "sweep": [{"steps": 5}]}]}}
    assert complete(config, schema)["comparison"]["methods"][0]["name"] == "a"


@pytest.mark.parametrize(
    ("model", "given", "expected"),
    [
        ("owner/name", "auto", "blurry, low quality, deformed"),
        ("resources/tinyworld", "config/prompts/negatives_embedded.txt", "ugly, bad anatomy, extra limbs"),
        ("owner/name", ["dull"], "dull"),
    ],
)
def test_negative_prompts_come_from_a_list_a_file_or_the_kind_of_model(schema, model, given, expected):
    config = {**NEEDED, "model": model, "protect": {"prompts": "p.txt", "negatives": given}}
    assert expected in complete(config, schema)["protect"]["negatives"]


@pytest.mark.parametrize(("model", "given"), [("resources/tinyworld", "auto"), ("owner/name", [])])
def test_there_may_be_no_negative_prompts(schema, model, given):
    config = {**NEEDED, "model": model, "protect": {"prompts": "p.txt", "negatives": given}}
    assert complete(config, schema)["protect"]["negatives"] == []


def test_a_file_of_negative_prompts_must_be_there(schema):
    with pytest.raises(InputError, match=r"protect\.negatives: 'none\.txt': no such file"):
        complete({**NEEDED, "protect": {"prompts": "p.txt", "negatives": "none.txt"}}, schema)


def test_a_negative_prompt_of_the_sampler_is_text(schema):
    for value in (["a", "b"], 3):
        with pytest.raises(SettingsError, match=r"sampler\.arguments\.negative_prompt: .* must be text"):
            complete({**NEEDED, "sampler": {"arguments": {"negative_prompt": value}}}, schema)


# --- one source ------------------------------------------------------------------------------------


def described(part: dict, root: dict, where: str = "") -> list[tuple[str, dict]]:
    """All settings below a part of the schema, with their keys."""
    found = []
    for name, given in resolve(part, root).get("properties", {}).items():
        found += [(f"{where}{name}", given), *described(given, root, f"{where}{name}.")]
        found += described(given.get("items", {}), root, f"{where}{name}.0.")
    return found


def test_the_default_config_is_written_from_the_schema(root, schema):
    """Whoever changes a setting runs `make settings`."""
    text = (root / "config/config.yaml").read_text()
    assert text == config_text(schema)
    assert max(map(len, text.splitlines())) <= 120


def test_every_setting_has_a_description_and_a_value(schema):
    found = described(schema, schema)
    assert len(found) > 100
    rules = [key for key, _ in found if re.search(r"rule\.\w+$", key)]  # which protect.rule describes all
    assert [key for key, part in found if not part.get("description") and key not in rules] == []
    entries = [key for key, _ in found if ".0." in key]  # of lists, whose examples give them values
    lacking = [key for key, part in found if not {"default", "examples", "properties"} & set(part)]
    assert set(lacking) <= {*rules, *entries}


def test_the_schema_is_one_and_accepts_its_own_values(schema):
    jsonschema.Draft202012Validator.check_schema(schema)
    written = yaml.safe_load(config_text(schema))
    once = complete(written, schema)
    assert once["train"] == complete({**written, "train": {}}, schema)["train"], "a default is one, wherever it stands"
    for key in written:
        if key not in ("model", "protect", "concepts", "methods", "sample", "evaluate", "comparison"):
            assert complete({k: v for k, v in written.items() if k != key}, schema)[key] == once[key], key
