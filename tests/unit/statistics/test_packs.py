"""Packs hold the same projectors as the stores in few bytes, and are refused early if they do not fit."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import yaml
from damage import flip_bit, truncate
from running import ROOT, Run, planned, snakemake

from nullbooth.errors import InputError, SettingsError
from nullbooth.inputs.settings import complete, sweep_points
from nullbooth.learning.adapter import Adapter
from nullbooth.models.identity import model_identity
from nullbooth.models.sites import find_sites
from nullbooth.models.sites_by_name import DEFAULT
from nullbooth.planning import estimate, shapes_from_headers
from nullbooth.planning.cost import Machine
from nullbooth.planning.plan import work_of
from nullbooth.statistics import pack_file, packs
from nullbooth.statistics.projector import decompose
from nullbooth.statistics.site_projectors import in_order, site_projectors
from nullbooth.storage import zarrstore
from nullbooth.storage.digests import digest
from nullbooth.storage.tensorfile import load_tensors, save_tensors

IDENTITY = {"model": "abc", "prompts": "p", "sampler": "s", "sites": digest(["cross-attention"])}
ABOUT = {"model": "tiny", "sites": ["cross-attention"], "sampler": {"steps": 2}, "resolution": None}
RULES = [{"energy": 1e-2}, {"energy": 0.7}, {"fraction": 0.5}, {"relative": 1e-3}, {"soft": 0.05}]
WIDTH = 48


def moment(seed: int, rank: int = WIDTH) -> np.ndarray:
    """A second moment with `rank` eigenvalues above zero, which span six orders of magnitude."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))
    values = np.where(np.arange(WIDTH) < rank, np.logspace(0, -6, WIDTH), 0)
    return (basis * values) @ basis.T


def write_stores(folder: Path, steps: int = 2, rank: int = WIDTH) -> list[str]:
    """Write eigenvectors like rule projector: a static feature with two readers, and one that varies."""
    paths, timesteps = [], [900.0, 100.0][:steps]
    for s in range(steps):
        arrays, features = {}, []
        for sites, static in ((["a.to_q"], False), (["a.to_k", "a.to_v"], True)):
            if not (static and s):
                w, u = decompose(moment(7 * s + static, rank))
                arrays |= {f"{sites[0]}:values": w, f"{sites[0]}:vectors": u}
                features.append({"name": sites[0], "sites": sites, "width": WIDTH, "static": static})
        paths.append(str(folder / f"{s:02d}.zarr"))
        said = {"timestep": timesteps[s], "timesteps": timesteps, "denoiser": "UNet2DConditionModel"}
        zarrstore.write(paths[-1], arrays, IDENTITY, features=features, **said)
    return paths


def write(folder: Path, rule: dict, scope: str = "timestep", stores: list[str] | None = None, **changes) -> Path:
    path = folder / f"{scope}.safetensors"
    stores = stores or write_stores(folder, 2 if scope == "timestep" else 1)
    pack_file.write(path, stores, IDENTITY, rule, scope, **{**ABOUT, "prompts": ["a star", "a blue ring"], **changes})
    return path


# --- content of a pack --------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_float32_pack_has_the_projectors_of_the_stores(tmp_path, rule):
    stores = write_stores(tmp_path)
    [(name, value)] = rule.items()
    expected, timesteps = site_projectors(stores, IDENTITY, name, value)
    found, cached = pack_file.read(write(tmp_path, rule, stores=stores, half=False))
    assert cached == timesteps
    assert found.keys() == expected.keys()
    assert found["a.to_k"] is found["a.to_v"]
    for site, projectors in expected.items():
        assert len(found[site]) == len(projectors)
        for p, q in zip(projectors, found[site], strict=True):
            assert (p.free, p.complement, p.basis.shape) == (q.free, q.complement, q.basis.shape), "the thinner basis"
            np.testing.assert_allclose(q.dense(), p.dense(), atol=2e-6)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_half_precision_leaks_no_more_than_the_rule_allows(tmp_path, rule):
    """Measured on the protected moments, with dense matrices in float64."""
    path = write(tmp_path, rule)
    assert {t.dtype for t in load_tensors(path, packs.FORMAT, "", "")[0].values()} >= {torch.float16}
    [(name, value)] = rule.items()
    exact, _ = site_projectors([str(tmp_path / f"{s:02d}.zarr") for s in range(2)], IDENTITY, name, value)
    found, _ = pack_file.read(path)
    for site, static in (("a.to_q", 0), ("a.to_k", 1)):
        for s, q in enumerate(found[site]):
            assert np.abs(q.basis.T @ q.basis - np.eye(q.basis.shape[1])).max() < 1e-5
            c = moment(7 * s + static)
            passed, allowed = (np.trace(P @ c @ P) for P in (q.dense().astype(float), exact[site][s].dense()))
            assert passed <= (1 + 1.5 * pack_file.TOLERANCE) * allowed
            assert not np.array_equal(q.dense(), exact[site][s].dense()), "it should be rounded"


def test_a_rule_that_half_precision_would_break_keeps_float32(tmp_path):
    """The null space of low-rank features holds rounding only, of which float16 would leak far more."""
    path = write(tmp_path, {"energy": 1e-10}, stores=write_stores(tmp_path, rank=12))
    tensors, _ = load_tensors(path, packs.FORMAT, "", "")
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    for s, q in enumerate(pack_file.read(path)[0]["a.to_q"]):
        c = moment(7 * s, rank=12)
        assert np.trace(q.dense() @ c @ q.dense()) < 1e-9 * np.trace(c)


def test_only_the_soft_rule_stores_gains(tmp_path):
    for rule in ({"soft": 0.1}, {"energy": 0.01}):
        tensors, _ = load_tensors(write(tmp_path, rule), packs.FORMAT, "", "")
        assert any(name.endswith(":gain") for name in tensors) == ("soft" in rule)


def write_moments(unet, protected, folder: Path, pooled: bool) -> list[str]:
    """Write eigenvectors of a real denoiser's features, like rule projector."""
    found = tiny.moments(unet, protected, pooled)
    paths = []
    for s in range(1 if pooled else len(protected.timesteps)):
        arrays, features = {}, {}
        for site, moments in found.items():
            static = len(moments) == 1 and site.endswith(("to_k", "to_v"))
            if s < len(moments) and id(moments) not in features:
                features[id(moments)] = {"name": site, "sites": [], "width": tiny.WIDTH, "static": static}
                w, u = decompose(moments[s].mean().numpy())
                arrays |= {f"{site}:values": w, f"{site}:vectors": u}
            if s < len(moments):
                features[id(moments)]["sites"].append(site)
        paths.append(str(folder / f"{s:02d}.zarr"))
        said = {"timestep": None if pooled else protected.timesteps[s], "timesteps": protected.timesteps}
        zarrstore.write(paths[-1], arrays, IDENTITY, features=list(features.values()), **said, denoiser="UNet")
    return paths


@pytest.mark.parametrize("scope", ["pooled", "timestep"])
def test_training_with_a_pack_equals_training_with_the_stores(unet, protected, tmp_path, scope):
    """In float32, with Adam, the results are equal; in float16, protected outputs change hardly more."""
    rule, value = "energy", 1e-3
    stores = write_moments(unet, protected, tmp_path, scope == "pooled")
    stacks = [site_projectors(stores, IDENTITY, rule, value)[0]]
    stacks += [pack_file.read(write(tmp_path, {rule: value}, scope, stores, half=half))[0] for half in (False, True)]
    learned, changed, before = [], [], tiny.predictions(unet, protected)
    for found in stacks:
        torch.manual_seed(3)
        adapter = Adapter(in_order(find_sites(unet), found), found, protected.timesteps, scope, 4)
        tiny.fit(unet, adapter)
        learned.append(adapter.tensors())
        with adapter.attached(unet):
            changed.append(tiny.change(tiny.predictions(unet, protected), before))
    for name, value in learned[0].items():
        torch.testing.assert_close(learned[1][name], value, rtol=1e-3, atol=1e-4)
    assert 0 < changed[2] < 1.2 * changed[0]


# --- description of a pack ------------------------------------------------------------------------------


def test_the_description_of_a_pack_is_read_without_torch(tmp_path):
    path = write(tmp_path, {"energy": 0.01})
    about = packs.read_about(path)
    assert about["identity"] == IDENTITY
    assert (about["scope"], about["rule"], about["timesteps"]) == ("timestep", {"energy": 0.01}, [900.0, 100.0])
    assert about["prompts"] == ["a star", "a blue ring"]
    assert [(f["sites"], f["static"]) for f in about["features"]] == [(["a.to_q"], False), (["a.to_k", "a.to_v"], True)]
    code = "import sys; from nullbooth.statistics import packs; "
    code += f"packs.read_about(packs.Path({str(path)!r})); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "safetensors", "zarr"} & set(done.stdout.split())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scope": "shared"}, "its description is broken"),
        ({"rule": {"energy": "x"}}, "its description is broken"),
        ({"rule": {}}, "its description is broken"),
        ({"identity": {"model": "abc"}}, "its description is broken"),
        ({"timesteps": [float("nan")] * 2}, "its description is broken"),
        ({"timesteps": [1.0]}, "its description is broken"),
        ({"prompts": []}, "its description is broken"),
        ({"prompts": ["a\x07b"]}, "its description is broken"),
        ({"prompts": ["a {weird} star"]}, "its description is broken"),
        ({"features": []}, "its description is broken"),
        ({"features": "abc"}, "its description is broken"),
    ],
)
def test_invalid_descriptions_are_refused(tmp_path, change, message):
    path = write(tmp_path, {"energy": 0.01})
    tensors, metadata = load_tensors(path, packs.FORMAT, "", "")
    about = {**json.loads(metadata["about"]), **change}
    save_tensors(path, tensors, {**metadata, "about": json.dumps(about)})
    for read in (packs.read_about, pack_file.read):
        with pytest.raises(InputError, match=message):
            read(path)


def test_other_and_broken_files_are_refused(tmp_path):
    path = write(tmp_path, {"energy": 0.01})
    for name, content in {"empty": b"", "text": b"hello there, this is text", "zeros": bytes(64)}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name}: broken, or not a safetensors file"):
            packs.read_about(tmp_path / name)
    save_tensors(tmp_path / "other", {"a": torch.zeros(2)}, {"format": "something"})
    with pytest.raises(InputError, match="other: not a NullBooth pack"):
        packs.read_about(tmp_path / "other")
    flipped = shutil.copy(path, tmp_path / "flipped.safetensors")
    flip_bit(flipped, flipped.stat().st_size - 5)
    with pytest.raises(InputError, match="does not match its checksum"):
        pack_file.read(flipped)
    truncate(path)
    with pytest.raises(InputError, match=r"broken, \d+ bytes of \d+"):
        packs.read_about(path)


def test_a_basis_that_is_not_orthonormal_is_refused(tmp_path):
    """A valid checksum does not prove that a projector protects."""
    path = write(tmp_path, {"energy": 0.01})
    tensors, metadata = load_tensors(path, packs.FORMAT, "", "")
    key = next(name for name in tensors if name.endswith(":basis"))
    for wrong in (2 * tensors[key], tensors[key] * float("nan"), tensors[key][:-1], torch.zeros(WIDTH)):
        save_tensors(path, {**tensors, key: wrong}, metadata)
        with pytest.raises(InputError, match="is not an orthonormal basis"):
            pack_file.read(path)


def test_weights_belong_to_the_soft_rule(tmp_path):
    """Without weights, a soft projector would let everything pass."""
    path = write(tmp_path, {"soft": 0.1})
    tensors, metadata = load_tensors(path, packs.FORMAT, "", "")
    save_tensors(path, {name: t for name, t in tensors.items() if not name.endswith("gain")}, metadata)
    with pytest.raises(InputError, match="has weights without a soft rule, or none with one"):
        pack_file.read(path)
    save_tensors(path, {name: t + 1 if name.endswith("gain") else t for name, t in tensors.items()}, metadata)
    with pytest.raises(InputError, match="has weights that are not between 0 and 1"):
        pack_file.read(path)


# --- suitability ----------------------------------------------------------------------------------------


def opened(pack: Path, *scopes: str, model="abc", sites=IDENTITY["sites"], asked=None):
    return packs.open_packs(str(pack), scopes, model, sites, asked)


def test_packs_of_another_model_site_or_rule_are_refused(tmp_path):
    path = write(tmp_path, {"energy": 0.01})
    found, same = opened(path, "timestep", asked={"energy": 0.01})
    assert list(found) == ["timestep"]
    assert same == str(path)
    with pytest.raises(SettingsError, match=r"made for the model tiny \(abc\), but `model` is xyz"):
        opened(path, "timestep", model="xyz")
    with pytest.raises(SettingsError, match=r"protects the sites \[cross-attention\]: set protect\.sites"):
        opened(path, "timestep", sites="others")
    with pytest.raises(SettingsError, match=r"\{energy: 0\.01\}, which is fixed, but protect\.rule is \{soft: 1\}"):
        opened(path, "timestep", asked={"soft": 1})


def test_methods_that_a_pack_does_not_fit_are_refused(tmp_path):
    path = write(tmp_path, {"energy": 0.01})
    found, _ = opened(path, "pooled")
    method = {"name": "mine", "method": "nullbooth", "scope": "shared", "rule": None}
    packs.check_method(method, found)  # scope shared uses the projectors of every step
    packs.check_method({**method, "scope": "pooled", "method": "lora"}, found)
    with pytest.raises(SettingsError, match=r"is of scope timestep, but the method mine has scope pooled: give"):
        packs.check_method({**method, "scope": "pooled"}, found)
    with pytest.raises(SettingsError, match=r"the rule of the method mine is \{fraction: 0\.5\}: remove it"):
        packs.check_method({**method, "rule": {"fraction": 0.5}}, found)


def test_a_folder_has_a_pack_for_each_scope(tmp_path):
    write(tmp_path, {"energy": 0.01})
    with pytest.raises(InputError, match=r"has no pooled\.safetensors"):
        opened(tmp_path, "pooled", "timestep")
    write(tmp_path, {"energy": 0.01}, "pooled")
    assert list(opened(tmp_path, "pooled", "timestep")[0]) == ["pooled", "timestep"]
    write(tmp_path, {"energy": 0.01}, "pooled", prompts=["another"])
    with pytest.raises(SettingsError, match="protect different prompts"):
        opened(tmp_path, "pooled", "timestep")
    shutil.copy(tmp_path / "timestep.safetensors", tmp_path / "pooled.safetensors")
    with pytest.raises(SettingsError, match="is of scope timestep, not of the scope in its name"):
        opened(tmp_path, "pooled")


def test_packs_of_the_hub_are_identified_by_commit(tmp_path, monkeypatch):
    """Jobs load the commit that a branch had when it was resolved, from the Hub's cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for pack in ("owner/name", "owner/name@v2"):
        with pytest.raises(FileNotFoundError, match=r"protect\.pack: 'owner/name', revision .* not in the Hub's cache"):
            opened(pack, "timestep")
    path, repo = write(tmp_path, {"energy": 0.01}), tmp_path / "hub/models--owner--name"
    for revision, commit in {"main": "a" * 40, "v2": "b" * 40}.items():
        (repo / "refs").mkdir(parents=True, exist_ok=True)
        (repo / "refs" / revision).write_text(commit)
        (repo / "snapshots" / commit).mkdir(parents=True)
        shutil.copy(path, repo / "snapshots" / commit)
    for pack, commit in {"owner/name": "a", "owner/name@v2": "b", f"owner/name@{'b' * 40}": "b"}.items():
        found, pinned = opened(pack, "timestep")
        assert pinned == f"owner/name@{commit * 40}"
        assert packs.locate(pinned, "timestep")[0] == found["timestep"][0]
        assert packs.content(found["timestep"][0]) == packs.content(path), "the same bytes are the same pack"
    for wrong in ("nowhere.safetensors", "a/b/c", "../x/y", "owner/na me"):
        with pytest.raises(InputError, match="neither a file, nor a folder, nor a Hub id"):
            opened(wrong, "timestep")


# --- the workflow ---------------------------------------------------------------------------------------


STATISTICS = {"trajectory", "moments", "covariance", "pool", "projector", "spectra", "heldout_moments", "mechanism"}


@pytest.fixture
def world(tmp_path) -> tuple[Run, Path]:
    """A config and a folder of packs that fit it, with invented projectors."""
    model = {**IDENTITY, "model": model_identity(str(ROOT / "resources/tinyworld"))}
    for scope in ("pooled", "timestep"):
        path = write(tmp_path, {"energy": 0.01}, scope)
        tensors, metadata = load_tensors(path, packs.FORMAT, "", "")
        about = {**json.loads(metadata["about"]), "identity": model}
        save_tensors(tmp_path / "packs" / path.name, tensors, {**metadata, "about": json.dumps(about)})
    return Run(tmp_path), tmp_path / "packs"


def with_pack(run: Run, pack: Path, **changes) -> list[str]:
    protect = {"prompts": str(run.prompts), "pack": str(pack), **changes.pop("protect", {})}
    return run.arguments(**changes, protect=protect)


def project(name: str = "config") -> dict:
    """config/config.yaml with config/minimal.yaml on top, or another file of config/."""
    layers = [yaml.safe_load((ROOT / f"config/{file}.yaml").read_text()) for file in (name, "minimal")]
    return {**layers[0], **(layers[1] if name == "config" else {})}


def named(methods: list[dict]) -> dict[str, dict]:
    return {point["name"]: point for method in methods for point in sweep_points(method)}


def test_a_pack_replaces_all_statistics(world):
    run, pack = world
    jobs = planned(*with_pack(run, pack))
    assert not STATISTICS & set(jobs)
    assert jobs["adapter"] == 2
    config = complete({**project(), **yaml.safe_load((run.folder / "settings.yaml").read_text())}, project("schema"))
    config["concepts"] = [{**entry, "class_prompts": [entry["prompt"]]} for entry in config["concepts"]]
    work = work_of(config, 2, {"subject": 1, "class": 1, "unrelated": 3, "protected": 2}, named(config["methods"]))
    estimated = estimate.jobs(
        shapes_from_headers.read(ROOT / "resources/tinyworld", DEFAULT), work, Machine(1e11, 5e10)
    )
    assert {job.rule: job.count for job in estimated} == {rule: n for rule, n in jobs.items() if rule != "samples"}
    corda = [{"name": "ours"}, {"name": "corda", "method": "corda"}]
    assert planned(*with_pack(run, pack / "pooled.safetensors", methods=corda))["trajectory"] == 1, "needed by corda"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": [{"name": "t", "scope": "timestep"}]}, "is of scope pooled, but the method t has scope timestep"),
        ({"methods": [{"name": "p", "rule": {"soft": 1}}]}, "the rule of the method p is {soft: 1}: remove it"),
        ({"methods": [{"name": "p"}], "protect": {"rule": {"energy": 0.001}}}, "but protect.rule is {energy: 0.001}"),
        (
            {"methods": [{"name": "p"}], "protect": {"sites": ["self-attention"]}},
            "protects the sites [cross-attention]",
        ),
        ({"methods": [{"name": "p"}], "protect": {"pack": "nowhere"}}, "protect.pack: 'nowhere' is neither a file"),
        ({"methods": [{"name": "p"}], "protect": {"pack": "README.md"}}, "README.md: broken, or not a safetensors"),
    ],
)
def test_unsuitable_packs_are_refused_before_any_job(world, change, message):
    run, pack = world
    done = snakemake("--dry-run", *with_pack(run, pack / "pooled.safetensors", **change))
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_comparison_that_a_pack_does_not_fit_is_refused_when_it_is_requested(world):
    run, pack = world
    methods = {
        "methods": [{"name": "p"}],
        "comparison": {"methods": [{"name": "t", "scope": "timestep"}], "reference": "t"},
    }
    arguments = with_pack(run, pack / "pooled.safetensors", **methods)
    assert planned(*arguments)["adapter"] == 1
    done = snakemake("--dry-run", str(run.folder / "results/comparison"), *arguments)
    assert done.returncode != 0
    assert "the method t has scope timestep" in done.stdout + done.stderr


def test_adapters_depend_on_the_pack_and_not_on_the_prompts(world):
    run, pack = world

    def keys() -> set[str]:
        done = snakemake("--dry-run", "adapters", *with_pack(run, pack))
        assert done.returncode == 0, done.stderr
        return set(re.findall(r"kept/runs/(starling/\S+)/adapter\.safetensors", done.stdout + done.stderr))

    before = keys()
    run.prompts.write_text("something else\n")
    assert keys() == before
    assert len(before) == 2
    tensors, metadata = load_tensors(pack / "pooled.safetensors", packs.FORMAT, "", "")
    save_tensors(pack / "pooled.safetensors", tensors, {**metadata, "note": "other bytes"})
    changed = keys() - before
    assert [key.split("/")[1] for key in changed] == ["pooled"], "the other scope has its own file"


def test_edits_take_the_prompts_and_the_rule_of_a_pack(world):
    """Other prompts of the config do not matter then, but a rule of the edits does."""
    run, pack = world

    def solved(**changes) -> str:
        done = snakemake("--dry-run", "edit", *with_pack(run, pack, edits=[{"from": "a moon", "to": ""}], **changes))
        assert done.returncode == 0, done.stderr
        [key] = set(re.findall(r"kept/edits/(\w+)/edit\.safetensors", done.stdout + done.stderr))
        return key

    key = solved()
    assert solved(edit={"rule": {"energy": 0.01}}) == key, "the rule of the pack"
    assert solved(edit={"rule": {"energy": 0.02}}) != key
    run.prompts.write_text("something else\n")
    assert solved() == key
