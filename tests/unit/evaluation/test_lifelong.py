"""Subjects learned in sequence: joined moments, protection of earlier subjects, and reports."""

import numpy as np
import pytest
import tiny
import torch
from running import script
from saved_adapters import CHANGED, KEPT, saved

from nullbooth import load_adapter
from nullbooth.errors import ProjectorError, StoreError
from nullbooth.evaluation import figures
from nullbooth.evaluation.comparison import DRIFT, FIDELITY
from nullbooth.evaluation.lifelong import COLORS_RIGHT, Known, capacity, fidelities, free_counts, summary, tidy
from nullbooth.learning import job
from nullbooth.learning.adapter import Adapter
from nullbooth.models.calls import initial_latents
from nullbooth.models.loading import ModelSource, load_pipeline
from nullbooth.models.noise import prompt_seed
from nullbooth.models.sites import find_sites
from nullbooth.models.sites_by_name import DEFAULT
from nullbooth.statistics.eigenvectors import Earlier, decompose_store
from nullbooth.statistics.projector import decompose, projector
from nullbooth.statistics.records import EigenStore, MomentStore
from nullbooth.statistics.site_projectors import short_of, site_projectors
from nullbooth.storage import zarrstore

TIMESTEPS = [901.0, 501.0, 101.0]
OF_STATISTICS, OF_SUBJECTS = {"model": "abc"}, [{"run": "first"}, {"run": "second"}]
WIDTH = 12


# --- moments that join the protected ones ------------------------------------------------------------------


@pytest.fixture
def rows() -> dict[str, list[np.ndarray]]:
    """Features `[timesteps][rows, width]` of the protected prompts and of two subjects, each in a few directions."""
    rng = np.random.default_rng(0)
    names, counts = ("protected", "first", "second"), (30, 7, 5)
    return {
        name: [rng.normal(size=(n, 2)) @ rng.normal(size=(2, WIDTH)) for _ in TIMESTEPS]
        for name, n in zip(names, counts, strict=True)
    }


def packed(x: np.ndarray) -> np.ndarray:
    return zarrstore.pack_symmetric(x.T @ x)


def described(static: bool) -> dict:
    feature = {"name": "a.to_k", "sites": ["a.to_k", "a.to_v"], "width": WIDTH, "static": static}
    return {"features": [feature], "timesteps": TIMESTEPS}


def write_subjects(folder, rows, static: bool) -> list[str]:
    """Write sums of each timestep like rule subject_moments; of static features only the first."""
    paths = []
    for name, identity in zip(("first", "second"), OF_SUBJECTS, strict=True):
        steps = rows[name][:1] if static else rows[name]
        arrays = {f"{i:02d}:a.to_k": packed(x) for i, x in enumerate(steps)}
        counts = {f"{i:02d}:a.to_k": len(x) for i, x in enumerate(steps)}
        paths.append(str(folder / f"{name}.zarr"))
        zarrstore.write(paths[-1], arrays, identity, rows=counts, **described(static))
    return paths


def joined(folder, rows, step: str, static: bool, weight: float = 1.0) -> np.ndarray:
    """Return the second moment `[width, width]` whose eigenvectors rule joined_projector writes."""
    if step == "pooled":
        mean = sum(x.T @ x / len(x) for x in rows["protected"]) / len(TIMESTEPS)
        arrays, count, timestep = {"a.to_k": zarrstore.pack_symmetric(mean)}, 1, None
    else:
        x = rows["protected"][int(step)]
        arrays, count, timestep = {"a.to_k": packed(x)}, len(x), TIMESTEPS[int(step)]
    covariance, out = folder / f"{step}.zarr", folder / "joined.zarr"
    about = {"timestep": timestep, "denoiser": "UNet", **described(static)}
    zarrstore.write(covariance, arrays, OF_STATISTICS, rows={"a.to_k": count}, **about)
    subjects = write_subjects(folder, rows, static)
    identity = {"model": "abc", "earlier": {}}
    alone = str(folder / "alone.zarr")
    decompose_store(alone, str(covariance), OF_STATISTICS)
    earlier = Earlier(tuple(subjects), tuple(OF_SUBJECTS), weight, step, alone, OF_STATISTICS)
    decompose_store(str(out), str(covariance), identity, earlier)
    found = EigenStore(out, identity)
    assert found.timestep == timestep
    w, u = found.values("a.to_k"), found.vectors("a.to_k").astype(np.float64)
    return (u * w) @ u.T


def mean_moment(xs: list[np.ndarray]) -> np.ndarray:
    """Compute the mean moment independently of the library, as an average of outer products."""
    return np.mean([np.einsum("ni,nj->ij", x, x) / len(x) for x in xs], axis=0)


@pytest.mark.parametrize("weight", [1.0, 0.25])
@pytest.mark.parametrize(
    ("step", "static", "taken"),
    [("01", False, [1]), ("pooled", False, [0, 1, 2]), ("00", True, [0])],
)
def test_each_earlier_subject_adds_the_mean_moment_of_its_features(tmp_path, rows, step, static, taken, weight):
    expected = mean_moment([rows["protected"][i] for i in taken])
    expected += weight * sum(mean_moment([rows[name][i] for i in taken]) for name in ("first", "second"))
    np.testing.assert_allclose(joined(tmp_path, rows, step, static, weight), expected, atol=1e-5 * expected.max())


def test_remaining_free_directions_are_orthogonal_to_all_features(tmp_path, rows):
    """Tested with the features themselves, which the workflow does not keep."""
    joined(tmp_path, rows, "02", False)
    found, _ = site_projectors([tmp_path / "joined.zarr"], {"model": "abc", "earlier": {}}, "relative", 1e-6)
    [p] = found["a.to_v"]
    assert p.free == WIDTH - 3 * 2, "each of the three takes two directions"
    for name in rows:
        assert np.abs(rows[name][2] @ p.dense()).max() < 1e-4
        assert np.abs(rows[name][1] @ p.dense()).max() > 0.1, "features of other timesteps are not protected here"


@pytest.mark.parametrize(("rule", "value"), [("energy", 0.05), ("relative", 0.1), ("absolute", 0.2)])
def test_no_subject_weakens_the_protection_of_prompts(tmp_path, rows, rule, value):
    """A share of the energy of all features together would grow with the number of subjects."""
    for x in (found for features in rows.values() for found in features):
        x += 0.3 * np.random.default_rng(len(x)).normal(size=x.shape)
    joined(tmp_path, rows, "02", False)
    found, _ = site_projectors([tmp_path / "joined.zarr"], {"model": "abc", "earlier": {}}, rule, value)
    [p], x = found["a.to_v"], rows["protected"][2]
    alone = projector(*decompose(x.T @ x / len(x)), rule, value)
    assert 0 < p.free < alone.free
    if rule == "energy":
        everything = mean_moment([rows["protected"][2]]) + sum(mean_moment([rows[n][2]]) for n in ("first", "second"))
        assert np.trace(p.dense() @ everything) <= value * np.square(x).sum() / len(x) * (1 + 1e-6)
    assert free_counts(str(tmp_path / "joined.zarr"), rule, value)["counts"] == [pytest.approx(p.free)] * 2


def test_moments_of_another_run_are_refused(tmp_path, rows):
    """A subject that was trained again has other moments, which older ones must not replace."""
    joined(tmp_path, rows, "01", False)
    subjects = tuple(str(tmp_path / f"{name}.zarr") for name in ("first", "second"))
    identities, alone = (OF_SUBJECTS[0], {"run": "anew"}), str(tmp_path / "alone.zarr")
    earlier = Earlier(subjects, identities, 1.0, "01", alone, OF_STATISTICS)
    with pytest.raises(StoreError, match=r"second\.zarr"):
        decompose_store(str(tmp_path / "x.zarr"), str(tmp_path / "01.zarr"), {}, earlier)


# --- subjects on top of others -------------------------------------------------------------------------------


def pooled_moments(unet, given: tiny.Protected) -> dict[str, torch.Tensor]:
    return {site: found[0].mean() for site, found in tiny.moments(unet, given, pooled=True).items()}


def learned(unet, moments: dict[str, torch.Tensor], seed: int) -> Adapter:
    """An adapter trained within the null space of these moments, for all timesteps."""
    torch.manual_seed(seed)
    free = {site: [projector(*decompose(c.numpy(), site), "energy", tiny.ENERGY, site)] for site, c in moments.items()}
    adapter = Adapter(find_sites(unet), free, TIMESTEPS, "pooled", 4)
    tiny.fit(unet, adapter)
    return adapter


def test_later_subjects_leave_earlier_ones_unchanged(pipeline, tmp_path):
    """Outputs for prompts of the first subject and protected ones do not change when the second is learned. Without
    protection of the first, outputs for its prompts do."""
    unet = pipeline.unet
    protected, first, other = (tiny.protected_inputs(seed=seed, n=1, tokens_=2) for seed in (5, 6, 77))
    base = tiny.predictions(unet, protected)
    kept = pooled_moments(unet, protected)
    load_adapter(pipeline, saved(learned(unet, kept, 1), tmp_path)).merge()
    knows_first, elsewhere = tiny.predictions(unet, first), tiny.predictions(unet, other)
    subject = pooled_moments(unet, first)
    second = {
        "in turn": learned(unet, {site: kept[site] + subject[site] for site in kept}, 2),
        "as if alone": learned(unet, kept, 2),
    }
    for name, adapter in second.items():
        loaded = load_adapter(pipeline, saved(adapter, tmp_path))
        assert tiny.change(tiny.predictions(unet, protected), base) < 10 * KEPT
        assert tiny.change(tiny.predictions(unet, other), elsewhere) > CHANGED, "training has an effect"
        forgotten = tiny.change(tiny.predictions(unet, first), knows_first)
        assert forgotten < 10 * KEPT if name == "in turn" else forgotten > CHANGED
        loaded.unload()


def test_moments_of_a_subject_come_from_the_model_that_has_learned_it(pipeline, pipeline_folder, protected, tmp_path):
    """The reference observes the pipeline while it draws the prompts with all adapters loaded."""
    paths = []
    for seed in (3, 4):
        folder = tmp_path / str(seed)
        folder.mkdir()
        torch.manual_seed(seed)
        adapter = tiny.adapter(pipeline.unet, protected, "timestep")
        with torch.no_grad():
            for p in adapter.parameters():
                p.normal_(std=0.2)
        paths.append(str(saved(adapter, folder)))
    sampler = {"scheduler": None, "options": {}, "arguments": {}, "steps": 3, "guidance": 4.0}
    prompts, identity = ["a red star", "a small blue ring"], {"model": "abc", "run": "x"}
    config = vars(ModelSource(str(pipeline_folder))) | {"offload": False, "precision": "fp32"}
    config |= {
        "device": "cpu",
        "protect": {"batch": 1, "negatives": []},
        "resolution": None,
    }
    out = tmp_path / "moments.zarr"
    params = {"sampler": sampler, "seed": 0, "sites": list(DEFAULT)}
    script("subject_moments").main(str(out), paths, prompts, identity, params, config)
    moments = MomentStore(out, identity)

    for path in paths:
        load_adapter(pipeline, path)
    sites, seen = find_sites(pipeline.unet), {}
    noise = initial_latents(pipeline, [prompt_seed(prompt, 0) for prompt in prompts], None)

    def note(name):
        def hook(_module, args):
            seen.setdefault(name, []).append(args[0].detach().double())

        return hook

    handles = [module.register_forward_pre_hook(note(name)) for name, module in sites.items()]
    pipeline(prompts, num_inference_steps=3, guidance_scale=4.0, latents=noise, output_type="latent")
    for handle in handles:
        handle.remove()
    for feature in moments.features:
        for step in [0] if feature.static else range(3):
            x = seen[feature.name][step].flatten(0, -2)
            assert moments.rows(feature.name, step) == len(x)
            found = torch.from_numpy(zarrstore.unpack_symmetric(moments.sum(feature.name, step)))
            torch.testing.assert_close(found.double(), x.T @ x, rtol=1e-3, atol=1e-3 * float((x.T @ x).abs().max()))


def test_only_adapters_that_do_not_depend_on_the_timestep_are_merged(pipeline, pipeline_folder, tmp_path):
    build_on, unet = job.build_on, pipeline.unet
    protected, other = tiny.protected_inputs(), tiny.protected_inputs(seed=77)
    own, paths = {name: p.clone() for name, p in unet.state_dict().items()}, []
    for scope in ("pooled", "timestep"):
        (tmp_path / scope).mkdir()
        adapter = tiny.randomise(tiny.adapter(unet, protected, scope))
        paths.append(str(saved(adapter, tmp_path / scope)))
    build_on(pipeline, paths[:1], "abc")
    assert any(not p.equal(own[name]) for name, p in unet.state_dict().items())
    build_on(pipeline, paths[1:], "abc")
    loaded = load_pipeline(ModelSource(str(pipeline_folder)), torch.device("cpu"))
    for path in paths:
        load_adapter(loaded, path)
    torch.testing.assert_close(
        tiny.predictions(unet, other), tiny.predictions(loaded.unet, other), rtol=1e-4, atol=1e-5
    )


# --- reports -------------------------------------------------------------------------------------------------


def measured(method: str, count: int, concept: str, fidelity: list[float], drift: list[float], right=None) -> Known:
    """Return the content of metrics.json of one concept."""
    values = {FIDELITY: fidelity, DRIFT: drift, ("base", "subject", "dino_fidelity"): [0.0] * len(fidelity)}
    if right is not None:
        values[COLORS_RIGHT] = right
    metrics = []
    for (model, group, metric), found in values.items():
        known = [value for value in found if value is not None]
        if known:
            interval = {"value": float(np.mean(known)), "low": min(known), "high": max(known), "n": len(known)}
            metrics.append({"model": model, "group": group, "metric": metric, "values": found} | interval)
    return Known(method, 0, count, concept, {"prompts": ["a", "b"], "metrics": metrics})


@pytest.fixture
def in_turn() -> list[Known]:
    """Two subjects: the first loses 0.1 and 0.3 of its fidelity when the second is learned."""
    return [
        measured("ours", 1, "ann", [0.6, 0.8], [0.1, 0.1]),
        measured("ours", 2, "ann", [0.5, 0.5], []),
        measured("ours", 2, "bob", [0.9, 0.7], [0.2, 0.4], [1.0, 0.0, None, 1.0]),
    ]


def test_forgetting_is_the_mean_difference_of_the_same_prompts(in_turn):
    row = summary("ours", in_turn)
    assert row["when_learned"]["value"] == pytest.approx((0.6 + 0.8 + 0.9 + 0.7) / 4)
    assert row["at_the_end"]["value"] == pytest.approx((0.5 + 0.5 + 0.9 + 0.7) / 4)
    assert row["forgotten"]["value"] == pytest.approx((0.1 + 0.3 + 0 + 0) / 4)
    assert row["forgotten"]["low"] <= row["forgotten"]["value"] <= row["forgotten"]["high"]
    assert {count: found["value"] for count, found in row["drift"].items()} == pytest.approx({"1": 0.1, "2": 0.3})
    assert row["colors_right"]["value"] == pytest.approx(2 / 3)


def test_adapters_to_be_merged_count_as_learned_when_alone(in_turn):
    alone = [measured("ours", 0, "ann", [0.6, 0.8], [0.1, 0.1]), measured("ours", 0, "bob", [1.0, 1.0], [0.1, 0.1])]
    row = summary("ours", alone + in_turn)
    assert row["when_learned"]["value"] == pytest.approx((0.6 + 0.8 + 2) / 4)
    assert row["forgotten"]["value"] == pytest.approx((0.1 + 0.3 + 0.1 + 0.3) / 4)
    assert list(row["drift"]) == ["1", "2"], "drift is reported by number of learned subjects"


def test_the_curve_of_a_subject_begins_when_it_is_learned(in_turn):
    found = fidelities(in_turn, "ours", ["ann", "bob"])
    assert {name: [(count, value["value"]) for count, value in points] for name, points in found.items()} == {
        "ann": [(1, pytest.approx(0.7)), (2, pytest.approx(0.5))],
        "bob": [(2, pytest.approx(0.8))],
    }
    drawn = figures.retention({"ours": found}, {"ours": [(1, found["ann"][0][1]), (2, found["bob"][0][1])]})
    curves = {bars.get_label(): bars.lines[0].get_xydata().tolist() for bars in drawn.axes[0].containers}
    assert curves == {"ann": [[1, pytest.approx(0.7)], [2, pytest.approx(0.5)]], "bob": [[2, pytest.approx(0.8)]]}


def test_the_table_contains_tuned_models_only(in_turn):
    table = tidy(in_turn)
    assert len(table) == 2 + 1 + 3
    assert table[0] == {
        "method": "ours", "seed": 0, "known": 1, "concept": "ann",
        "group": "subject", "metric": "dino_fidelity", "value": pytest.approx(0.7), "low": 0.6, "high": 0.8, "n": 2,
    }  # fmt: skip


def test_free_directions_are_counted_by_kind_and_layer(tmp_path):
    arrays = {"first:values": np.array([0.0, 0.0, 0.0, 1.0]), "second:values": np.array([0.0, 1.0])}
    sites = [["down.0.attn2.to_k", "up.0.attn2.to_k", "down.0.attn2.to_v"], ["blocks.0.attn.to_out.0"]]
    features = [
        {"name": name, "sites": of, "width": len(arrays[f"{name}:values"]), "static": False}
        for name, of in zip(("first", "second"), sites, strict=True)
    ]
    zarrstore.write(tmp_path / "p.zarr", arrays, {}, features=features, timesteps=[1.0])
    found = free_counts(str(tmp_path / "p.zarr"), "relative", 0.5)
    assert found["kinds"] == {"to_k": 0.75, "to_out.0": 0.5, "to_v": 0.75}
    assert found["mean"] == pytest.approx((3 * 0.75 + 0.5) / 4)
    assert found["counts"] == [3, 3, 3, 1]


@pytest.mark.parametrize(
    ("means", "counts", "rank", "more", "says"),
    [
        ([1.0, 0.75, 0.5], [9, 9], 4, 2, "50.0%; at this pace they last for about 2 more"),
        ([1.0, 0.75, 0.5], [9, 3], 4, 2, "; 1 of 2 layers have fewer than the rank, 4"),
        ([0.5, 0.4, 0.3], [3, 3], 4, 0, "no layer has as many left as the rank, 4: raise protect.rule"),
        ([1.0, 0.75, 0.5], [1, 1], "full", 2, "they last for about 2 more"),
        ([0.5, 0.5], [9, 9], 4, None, "the subjects use none"),
        ([0.5], [9, 9], 4, None, "the subjects use none"),
    ],
)
def test_capacity_is_described_in_words(means, counts, rank, more, says):
    rooms = [{"mean": mean, "counts": counts} for mean in means]
    found = capacity(rooms, rank)
    assert found["more"] == more
    assert says in found["said"]


def test_free_directions_are_plotted_by_number_of_learned_subjects():
    drawn = figures.rooms({"to_k": [0.5, 0.4], "to_v": [0.3, 0.1]}, "free")
    assert [list(line.get_ydata()) for line in drawn.axes[0].lines] == [[0.5, 0.4], [0.3, 0.1]]


def test_layers_with_too_few_free_directions_for_the_rank_are_named():
    rng = np.random.default_rng(0)
    few, many = (projector(*decompose(np.cov(rng.normal(size=(8, n)))), "relative", 1e-6) for n in (7, 3))
    assert short_of({"a": [few], "b": [many], "c": [many, few]}, 4) == ["a", "c"]
    assert short_of({"a": [few], "b": [many]}, 7) == ["a", "b"]


def test_the_error_without_free_directions_names_the_earlier_subjects(monkeypatch, tmp_path, pipeline_folder):
    """Happens when earlier subjects have used up the free directions."""

    def full(*_):
        raise ProjectorError("a.to_q: no free direction under the rule energy: 0.001")

    monkeypatch.setattr(job, "protected_adapter", full)
    monkeypatch.setattr(job, "training_data", lambda *_, **__: [])
    monkeypatch.setattr(job, "build_on", lambda *_: None)
    monkeypatch.setattr(job.loading, "denoiser_alone", lambda *_, **__: None)
    config = vars(ModelSource(str(pipeline_folder))) | {"offload": False, "protect": {"pack": None}}
    config |= {"device": "cpu", "validate": {"every": 0}, "sampler": {"guidance": 3.0}}
    config["concepts"] = [{"name": "cleo", "images": "photos"}]
    concept = {"name": "cleo", "identifier": "vbk", "class": "star", "prompt": "a {subject}", "class_prompts": []}
    method = {"train": {"inversion_steps": 0, "flip": False, "buckets": 1, "gpus": 1}, "method": "nullbooth"}
    method |= {"scope": "pooled", "prior": None}
    sampler = {"scheduler": None, "options": {}, "arguments": {}}
    identity = {"model": "abc", "earlier": {"ann/ours/0": "1", "bob/ours/0": "2"}}
    out = {"adapter": str(tmp_path / "adapter.safetensors")}
    before = ([], [], None, ["one", "two"])
    said = r"^cleo: .*subjects before it \(ann, bob\) leave no direction free: a\.to_q: no free .*rule energy"
    with pytest.raises(ProjectorError, match=said):
        job.learn(out, *before, concept, method, sampler, None, ["cross-attention"], identity, config)
