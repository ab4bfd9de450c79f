"""Every family of models: from its pipeline to an adapter that does not change protected prompts."""

import inspect
import math
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import families
import pytest
import tiny
import torch
from PIL import Image
from running import script

from nullbooth import load_adapter
from nullbooth.adapters.file import AdapterInfo
from nullbooth.learning.adapter import Adapter
from nullbooth.learning.data import encode
from nullbooth.models.calls import denoiser_inputs
from nullbooth.models.loading import ModelSource, denoiser_of, load_pipeline, resolution_of
from nullbooth.models.schedulers import set_sampler
from nullbooth.models.sites import find_sites
from nullbooth.models.sites_by_name import DEFAULT
from nullbooth.models.timesteps import calls_of
from nullbooth.statistics.eigenvectors import decompose_store
from nullbooth.statistics.records import MomentStore, TrajectoryStore
from nullbooth.statistics.site_projectors import in_order, site_projectors
from nullbooth.statistics.sums import sum_shards
from nullbooth.statistics.trajectories import record

STEPS = 3
SAMPLER = {"scheduler": None, "options": {}, "arguments": {}, "steps": STEPS, "guidance": 3.0}
PROTECTED, OTHER = ["a red ring"], ["a blue star"]
CPU = torch.device("cpu")
JOINT = ("SD3Transformer2DModel", "FluxTransformer2DModel")


@dataclass
class Collected:
    """A family's pipeline, and the stores that the workflow's scripts wrote for one protected prompt."""

    pipeline: Any
    folder: Path
    small: dict

    def projectors(self) -> list[str]:
        return [str(self.folder / f"projector{step}.zarr") for step in range(STEPS)]

    def outputs(self, latents: torch.Tensor, timesteps: list[float], conditions: dict, constants: dict) -> torch.Tensor:
        """Return the outputs of the denoiser at each call, `[C, branches * n, ...]`."""
        denoiser, every = denoiser_of(self.pipeline), slice(None)
        calls = zip(latents, timesteps, strict=True)
        inputs = [denoiser_inputs(denoiser, x, t, conditions, every, constants) for x, t in calls]
        with torch.no_grad():
            return torch.stack([denoiser(**given).sample for given in inputs])

    def protected_outputs(self) -> torch.Tensor:
        store = TrajectoryStore(self.folder / "trajectory.zarr")
        latents = torch.stack([store.latents(call) for call in range(len(store.timesteps))])
        return self.outputs(latents, store.timesteps, store.conditions(), store.constants())

    def other_outputs(self) -> torch.Tensor:
        found = record(self.pipeline, OTHER, steps=STEPS, guidance=3.0, seed=1, batch=1, **self.small)
        return self.outputs(found.latents, found.timesteps, found.conditions, found.constants)


SAMPLERS = [  # of second order, with their own timesteps, or with an additional first call
    ("Stable Diffusion 1", "HeunDiscreteScheduler", {"use_karras_sigmas": True}),
    ("Stable Diffusion 1", "KDPM2DiscreteScheduler", {}),
    ("Stable Diffusion 1", "KDPM2AncestralDiscreteScheduler", {}),
    ("Stable Diffusion 1", "PNDMScheduler", {"skip_prk_steps": True}),
    ("Stable Diffusion 2", "DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    ("Stable Diffusion 2", "UniPCMultistepScheduler", {"timestep_spacing": "trailing"}),
    ("Stable Diffusion 3", "FlowMatchHeunDiscreteScheduler", {}),
]


@pytest.fixture(scope="module", params=[(family, None, {}) for family in families.FAMILIES] + SAMPLERS, ids=str)
def collected(request, tmp_path_factory) -> Collected:
    folder = tmp_path_factory.mktemp("family")
    family, scheduler, options = request.param
    model = families.save(family, folder / "model")
    config = {"model": str(model), "device": "cpu", "precision": "fp32", "weights": "fp32"}
    config |= dict.fromkeys(("revision", "variant", "model_config"))
    small = families.SMALL.get(family, {})
    config |= {"offload": False, "attention": None}
    config["resolution"] = small.get("resolution")
    sampler = {**SAMPLER, "scheduler": scheduler, "options": options, "arguments": small.get("arguments", {})}
    config["protect"] = {"batch": 2, "negatives": ["dull"]}
    trajectory = folder / "trajectory.zarr"
    script("trajectory").main(trajectory, PROTECTED, sampler, 0, {}, config)
    for step in range(STEPS):
        moments, sums = folder / f"moments{step}.zarr", folder / f"covariance{step}.zarr"
        script("moments").main(moments, trajectory, step, list(DEFAULT), {}, config)
        sum_shards(sums, [moments], {"all": {}}, {})
        decompose_store(folder / f"projector{step}.zarr", sums, {})
    pipeline = load_pipeline(ModelSource(str(model)), CPU)
    set_sampler(pipeline, scheduler, options)
    return Collected(pipeline, folder, small)


def test_every_cross_attention_is_protected(collected):
    """Sites are the layers that a table of the architectures lists, and no others."""
    denoiser = denoiser_of(collected.pipeline)
    sites, linears = find_sites(denoiser), [n for n, m in denoiser.named_modules() if isinstance(m, torch.nn.Linear)]
    joint = type(denoiser).__name__ in JOINT
    assert list(sites) == [name for name in linears if (".attn." if joint else ".attn2.") in name] != []
    stacks, timesteps = site_projectors(collected.projectors(), {}, "energy", tiny.ENERGY)
    assert set(stacks) == set(sites)
    assert len(timesteps) == STEPS


def test_masked_text_has_no_rows_in_moments(collected):
    """The moment of the prompt has no rows of padding that the denoiser masks."""
    given, found = (
        TrajectoryStore(collected.folder / "trajectory.zarr"),
        MomentStore(collected.folder / "moments0.zarr"),
    )
    conditions, mask = given.conditions(), "encoder_attention_mask"
    tokens = conditions["encoder_hidden_states"].shape[:-1]
    read = int(conditions[mask].sum()) if mask in conditions else math.prod(tokens)
    joint = type(denoiser_of(collected.pipeline)).__name__ in JOINT
    assert (mask in conditions) == (read < math.prod(tokens))
    static = [feature.name for feature in found.features if feature.static]
    calls = len(calls_of(given.timesteps, given.cached, step=0))
    assert [found.rows(name) for name in static] == ([] if joint else [calls * read])


def test_protected_prompts_stay_as_they_were(collected, tmp_path):
    """For an adapter with random factors, at every cached timestep, also after saving and loading."""
    stacks, timesteps = site_projectors(collected.projectors(), {}, "energy", tiny.ENERGY)
    denoiser = denoiser_of(collected.pipeline)
    adapter = tiny.randomise(Adapter(in_order(find_sites(denoiser), stacks), stacks, timesteps, "timestep", 4))
    adapter.save(tmp_path / "a.safetensors", AdapterInfo("timestep", 4, tuple(timesteps), "", "m", "p", "r"))
    before, others = collected.protected_outputs(), collected.other_outputs()
    loaded = load_adapter(collected.pipeline, tmp_path / "a.safetensors")
    assert tiny.change(collected.protected_outputs(), before) < 1e-3  # the root of the leaked energy is 3e-4
    assert tiny.change(collected.other_outputs(), others) > 0.02
    loaded.unload()
    assert collected.protected_outputs().equal(before)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_protected_prompts_stay_with_weights_in_half_precision(family, tmp_path):
    """With statistics and adapter in bfloat16, only rounding errors remain."""
    folder, small = families.save(family, tmp_path / "model"), families.SMALL.get(family, {})
    config = {"model": str(folder), "device": "cpu", "precision": "bf16"}
    config |= {"weights": "bf16", "offload": True, "protect": {"batch": 1, "negatives": []}}
    config |= dict.fromkeys(("revision", "variant", "model_config", "attention"))
    config["resolution"] = small.get("resolution")
    sampler = {**SAMPLER, "arguments": small.get("arguments", {})}
    script("trajectory").main(tmp_path / "trajectory.zarr", PROTECTED, sampler, 0, {}, config)
    for step in range(STEPS):
        moments, sums = tmp_path / f"moments{step}.zarr", tmp_path / f"covariance{step}.zarr"
        script("moments").main(moments, tmp_path / "trajectory.zarr", step, list(DEFAULT), {}, config)
        sum_shards(sums, [moments], {"all": {}}, {})
        decompose_store(tmp_path / f"projector{step}.zarr", sums, {})
    held = Collected(load_pipeline(ModelSource(str(folder), weights="bf16"), CPU), tmp_path, small)
    stacks, timesteps = site_projectors(held.projectors(), {}, "energy", 1e-5)
    denoiser = denoiser_of(held.pipeline)
    assert {p.dtype for p in denoiser.parameters()} == {torch.bfloat16}
    adapter = tiny.randomise(Adapter(in_order(find_sites(denoiser), stacks), stacks, timesteps, "timestep", 4))
    adapter.save(tmp_path / "a.safetensors", AdapterInfo("timestep", 4, tuple(timesteps), "", "m", "p", "r"))
    with torch.autocast("cpu", torch.bfloat16):
        before, others = held.protected_outputs().float(), held.other_outputs().float()
        loaded = load_adapter(held.pipeline, tmp_path / "a.safetensors")
        leak = tiny.change(held.protected_outputs().float(), before)
        assert leak < 0.02
        assert tiny.change(held.other_outputs().float(), others) > max(0.02, 2.5 * leak)
        loaded.unload()
        assert held.protected_outputs().float().equal(before)


# --- latents -----------------------------------------------------------------------------------------------


class _Decoded(Exception):  # noqa: N818 (no error: the way out of a pipeline)
    """Raised when the VAE receives latents to decode."""


def decoded(pipeline, small: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the latents `[1, c, h, w]` or tokens of the last step, and the latents that the pipeline decodes."""
    last = []

    def decode(latents, *_args, **_kwargs):
        last.append(latents.clone())
        raise _Decoded

    def at_end(_pipeline, _step, _timestep, values):
        last[:] = [values["latents"].clone()]
        return values

    pipeline.vae.decode = decode
    side = {"height": small["resolution"], "width": small["resolution"]} if "resolution" in small else {}
    known = inspect.signature(pipeline.__call__).parameters
    options = {"callback_on_step_end": at_end} if "callback_on_step_end" in known else {"callback": at_step(last)}
    options |= {"use_resolution_binning": False} if "use_resolution_binning" in known else {}
    with pytest.raises(_Decoded):
        pipeline("a red star", num_inference_steps=2, **side, **small.get("arguments", {}), **options)
    return last[0], last[1]


def at_step(last: list):
    def found(_step, _timestep, latents):
        last[:] = [latents.clone()]

    return found


@pytest.mark.parametrize("numbers", ["none", "mean and std", "mean", "shift"])
@pytest.mark.parametrize("family", families.FAMILIES)
def test_pictures_are_encoded_into_the_latents_that_the_pipeline_decodes(family, numbers, tmp_path):
    """Each pipeline uses other values of a VAE's config."""
    pipeline, small = families.FAMILIES[family](), families.SMALL.get(family, {})
    pipeline.set_progress_bar_config(disable=True)
    changes = {"scaling_factor": 0.3}
    if "mean" in numbers:
        changes["latents_mean"] = [1.5, -2.0, 0.5, 3.0]
    if "std" in numbers:
        changes["latents_std"] = [4.0, 2.0, 5.0, 3.0]
    if numbers == "shift":
        changes["shift_factor"] = 0.7
    pipeline.vae.register_to_config(**changes)
    latents, of_vae = decoded(pipeline, small)
    side = small.get("resolution") or resolution_of(pipeline)
    Image.new("RGB", (side, side), "red").save(tmp_path / "x.png")
    given = SimpleNamespace(latent=of_vae)  # as if the VAE had encoded a picture into these
    pipeline.vae.encode = lambda _x: given
    torch.testing.assert_close(encode(pipeline, [tmp_path / "x.png"], side), latents.float(), rtol=1e-4, atol=1e-4)
