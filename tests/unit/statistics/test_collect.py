"""Moments and projectors from stored trajectories equal those from observing the pipeline directly."""

import numpy as np
import pytest
import tiny
import torch

from nullbooth.errors import ProjectorError, StoreError
from nullbooth.models.sites import find_sites
from nullbooth.models.sites_by_name import DEFAULT
from nullbooth.statistics.collect import moments_at
from nullbooth.statistics.moments import collecting
from nullbooth.statistics.projector import decompose
from nullbooth.statistics.site_projectors import free_share, in_order, site_projectors
from nullbooth.statistics.trajectories import record
from nullbooth.storage import zarrstore

PROMPTS = ["a red star", "a small blue ring", "a heart"]
IDENTITY = {"model": "abc"}
STEPS = 3


def write_trajectories(pipeline, folder, prompts: list[list[str]], steps: int = STEPS) -> list[str]:
    """Write one store per shard, like rule trajectory."""
    paths = []
    for i, shard in enumerate(prompts):
        found = record(pipeline, shard, steps=steps, guidance=4.0, seed=0, batch=2)
        arrays = {"latents": found.latents.numpy(), "timesteps": found.timesteps, "cached": found.timesteps}
        arrays |= {f"condition:{name}": value.numpy() for name, value in found.conditions.items()}
        paths.append(str(folder / f"{i:02d}.zarr"))
        zarrstore.write(paths[-1], arrays, IDENTITY)
    return paths


@torch.no_grad()
def collect(pipeline, paths, step, batch=2, **options):
    [path] = paths
    return moments_at(pipeline.unet, path, step, list(DEFAULT), batch, IDENTITY, **options)


def test_moments_of_stored_trajectories_equal_those_of_the_sampling_itself(pipeline, tmp_path):
    paths = write_trajectories(pipeline, tmp_path, [PROMPTS])
    sites, call = find_sites(pipeline.unet), 0
    watched = [dict() for _ in range(STEPS)]
    noise = torch.from_numpy(zarrstore.read(paths[0])["latents"][0])
    with collecting(sites) as moments:

        def after(_module, _args, _output) -> None:
            nonlocal call
            watched[call] = {name: (m.total.clone(), m.rows) for name, m in moments.items()}
            call += 1

        handle = pipeline.unet.register_forward_hook(after)
        pipeline(PROMPTS, latents=noise, num_inference_steps=STEPS, guidance_scale=4.0, output_type="latent")
        handle.remove()
    for step in range(STEPS):
        found, features, _ = collect(pipeline, paths, step)
        for feature in features:
            for site in feature.sites:
                total, rows = watched[step][site]
                if step:
                    total, rows = total - watched[step - 1][site][0], rows - watched[step - 1][site][1]
                assert found[feature.name].rows == rows
                torch.testing.assert_close(found[feature.name].total, total, rtol=1e-3, atol=1e-3)


def test_static_features_are_collected_at_the_first_step(pipeline, tmp_path):
    paths = write_trajectories(pipeline, tmp_path, [PROMPTS])
    for step in range(STEPS):
        moments, features, timesteps = collect(pipeline, paths, step)
        static = [f for f in features if f.static]
        assert len(static) == (step == 0)
        assert len(features) == 8 + len(static)
        assert set(moments) == {f.name for f in features}
        assert timesteps == zarrstore.read(paths[0])["timesteps"][:].tolist()


def test_a_sampler_of_one_step_tells_static_features_from_others(pipeline, tmp_path):
    """Its only timestep is compared with another one, not with itself."""
    _, features, _ = collect(pipeline, write_trajectories(pipeline, tmp_path, [PROMPTS], steps=1), 0)
    assert [f.static for f in features].count(True) == 1
    assert len(features) == 9


def test_all_steps_probe_the_same_timesteps_for_static_features(pipeline, tmp_path):
    """Otherwise jobs may disagree, because neighbouring timesteps can give equal features in half precision."""
    paths, asked = write_trajectories(pipeline, tmp_path, [PROMPTS]), []
    hook = pipeline.unet.register_forward_pre_hook(
        lambda _m, args, given: asked[-1].append(given | dict(zip(("sample", "timestep"), args, strict=False))),
        with_kwargs=True,
    )
    for step in range(STEPS):
        asked.append([])
        collect(pipeline, paths, step)
    hook.remove()
    probes = [[(float(call["timestep"].flatten()[0]), call["sample"]) for call in calls[:2]] for calls in asked]
    cached = zarrstore.read(paths[0])["cached"][:]
    for probe in probes:
        assert [timestep for timestep, _ in probe] == [cached[0], cached[-1]]
        assert all(sample.equal(probes[0][0][1]) for _, sample in probe)


def test_batches_make_no_difference(pipeline, tmp_path):
    paths = write_trajectories(pipeline, tmp_path, [PROMPTS])
    expected, _, _ = collect(pipeline, paths, 1, batch=3)
    found, _, _ = collect(pipeline, paths, 1, batch=2)
    for name, moment in expected.items():
        assert found[name].rows == moment.rows == 3 * 2 * 4
        torch.testing.assert_close(found[name].total, moment.total, rtol=1e-3, atol=1e-3)


def test_progress_counts_prompts(pipeline, tmp_path):
    told = []
    paths = write_trajectories(pipeline, tmp_path, [PROMPTS])
    collect(pipeline, paths, 1, batch=2, progress=lambda done, total: told.append((done, total)))
    assert told == [(2, 3), (3, 3)]


def test_trajectories_of_another_identity_are_refused(pipeline, tmp_path):
    [path] = write_trajectories(pipeline, tmp_path, [PROMPTS[:1]])
    with pytest.raises(StoreError, match="model"):
        moments_at(pipeline.unet, path, 0, list(DEFAULT), 2, {"model": "other"})


# --- projectors --------------------------------------------------------------------------------------

READERS = ("a.to_k", "a.to_v")


def write_projectors(folder, timesteps=(9.0, 1.0)) -> list[str]:
    """Write a static feature with two readers to the first store, and one per timestep for `a.to_q`."""
    rng, paths = np.random.default_rng(0), []
    for s, timestep in enumerate(timesteps):
        arrays, features = {}, []
        for sites, static in ((("a.to_q",), False), (READERS, True)):
            if static and s:
                continue
            x = rng.normal(size=(5, 8))
            w, u = decompose(x.T @ x / 5)
            arrays |= {f"{sites[0]}:values": w, f"{sites[0]}:vectors": u}
            features.append({"name": sites[0], "sites": list(sites), "width": 8, "static": static})
        paths.append(str(folder / f"{s:02d}.zarr"))
        zarrstore.write(paths[-1], arrays, IDENTITY, features=features, timestep=timestep, timesteps=list(timesteps))
    return paths


def test_every_site_has_the_projectors_of_its_feature(tmp_path):
    paths = write_projectors(tmp_path)
    found, timesteps = site_projectors(paths, IDENTITY, "relative", 1e-6)
    assert timesteps == [9.0, 1.0]
    assert {name: len(ps) for name, ps in found.items()} == {"a.to_q": 2, "a.to_k": 1, "a.to_v": 1}
    assert found["a.to_k"] is found["a.to_v"]  # stored once
    for s, p in enumerate(found["a.to_q"]):
        group = zarrstore.read(paths[s])
        free = group["a.to_q:vectors"][:][:, :3]
        np.testing.assert_allclose(p.dense(), free @ free.T, atol=1e-5)
    assert free_share(found) == {"a.to_q": 3 / 8, "a.to_k": 3 / 8, "a.to_v": 3 / 8}


def test_several_rules_read_the_same_stores(tmp_path):
    paths = write_projectors(tmp_path)
    found, _ = site_projectors(paths, IDENTITY, "fraction", 0.5)
    assert [p.free for p in found["a.to_q"]] == [4, 4]


def test_the_error_of_an_empty_null_space_names_site_and_timestep(tmp_path):
    with pytest.raises(ProjectorError, match=r"a\.to_q at timestep 9: no free direction under the rule fraction"):
        site_projectors(write_projectors(tmp_path), IDENTITY, "fraction", 0.01)


def test_a_missing_store_is_an_error(tmp_path):
    """Mistake 9: missing files silently meant no projection."""
    paths = write_projectors(tmp_path)
    with pytest.raises(StoreError, match=r"02\.zarr"):
        site_projectors([*paths, str(tmp_path / "02.zarr")], IDENTITY, "energy", 0.01)


def test_sites_keep_the_order_of_the_denoiser(unet):
    sites = find_sites(unet)
    some = {name: [] for name in list(sites)[5:2:-1]}
    assert list(in_order(sites, some)) == list(sites)[3:6]
    with pytest.raises(KeyError, match=r"the statistics have a site other\.to_k that the denoiser lacks"):
        in_order(sites, {"other.to_k": []})


def test_projectors_of_the_fixtures_equal_those_of_the_workflow(unet, protected):
    """Other test files use these fixtures."""
    stacks = tiny.projectors(unet, protected)
    assert {len(ps) for name, ps in stacks.items() if name.endswith(("to_k", "to_v"))} == {1}
    assert {len(ps) for name, ps in stacks.items() if name.endswith(("to_q", "to_out.0"))} == {3}
