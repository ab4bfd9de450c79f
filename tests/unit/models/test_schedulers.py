"""Samplers and training objectives: a model keeps its objective, and samplers that do not fit it are refused."""

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from nullbooth.errors import InputError
from nullbooth.models.schedulers import check_steps, fitting_sampler, objective_of, training_scheduler

DIFFUSION = ("DDIM", "DDPM", "DEISMultistep", "DPMSolverMultistep", "EulerAncestralDiscrete", "HeunDiscrete", "LCM",
             "KDPM2AncestralDiscrete", "LMSDiscrete", "PNDM", "SASolver", "TCD", "UniPCMultistep")  # fmt: skip
FLOW = ("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete", "FlowMatchLCM")
OTHERS = ("EDMEuler", "EDMDPMSolverMultistep", "IPNDM", "CMStochasticIterative", "KarrasVe", "RePaint", "VQDiffusion",
          "ScoreSdeVe", "DDIMInverse", "DPMSolverMultistepInverse", "SCM", "FlaxDDIM")  # fmt: skip


@pytest.mark.parametrize("name", DIFFUSION)
def test_samplers_of_ddpm_schedules_fit_their_models(name):
    found = fitting_sampler(DDIMScheduler(beta_start=0.001), f"{name}Scheduler", {})
    assert objective_of(found) == "diffusion"
    check_steps(found, 5)
    with pytest.raises(InputError, match=r"sampler\.scheduler: \w+ does not fit this model, whose own is FlowMatch"):
        fitting_sampler(FlowMatchEulerDiscreteScheduler(), f"{name}Scheduler", {})


@pytest.mark.parametrize("name", FLOW)
def test_samplers_of_flows_fit_their_models(name):
    assert objective_of(fitting_sampler(FlowMatchEulerDiscreteScheduler(), f"{name}Scheduler", {})) == "flow"
    with pytest.raises(InputError, match=r"sampler\.scheduler: \w+ does not fit this model, whose own is DDIM"):
        fitting_sampler(DDIMScheduler(), f"{name}Scheduler", {})


def test_solvers_that_can_do_both_fit_flows_by_their_options():
    options = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    found = fitting_sampler(FlowMatchEulerDiscreteScheduler(), "UniPCMultistepScheduler", options)
    assert objective_of(found) == "flow"


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("own", [DDIMScheduler(), FlowMatchEulerDiscreteScheduler()], ids=["diffusion", "flow"])
def test_samplers_of_other_kinds_are_refused_by_name(name, own):
    with pytest.raises(InputError, match=rf"sampler\.scheduler: .?{name}Scheduler"):
        fitting_sampler(own, f"{name}Scheduler", {})


def test_a_sampler_that_needs_a_package_names_it(monkeypatch):
    monkeypatch.setattr(
        "nullbooth.models.schedulers.find_spec", lambda package: None if package == "torchsde" else True
    )
    dummy = type("DPMSolverSDEScheduler", (), {"_backends": ["torch", "torchsde"]})
    monkeypatch.setattr(diffusers, "DPMSolverSDEScheduler", dummy)
    with pytest.raises(InputError, match=r"needs the package torchsde: pip install torchsde"):
        fitting_sampler(DDIMScheduler(), "DPMSolverSDEScheduler", {})


@pytest.mark.parametrize("name", ["EDMEuler", "IPNDM", "CMStochasticIterative"])
def test_models_of_other_objectives_are_refused(name):
    own = getattr(diffusers, f"{name}Scheduler")()
    assert objective_of(own) is None
    with pytest.raises(InputError, match=f"model: its scheduler {name}Scheduler is neither for DDPM schedules nor for"):
        training_scheduler(own)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_the_objective_does_not_depend_on_the_sampler(prediction_type):
    own = EulerDiscreteScheduler(prediction_type=prediction_type, beta_start=0.002, timestep_spacing="trailing")
    found = training_scheduler(own, {"use_karras_sigmas": True, "timestep_spacing": "leading"})
    assert found.config.prediction_type == prediction_type
    torch.testing.assert_close(found.alphas_cumprod, own.alphas_cumprod)


def test_options_of_the_objective_apply_to_training():
    """For single files with the configs of another model, such as a velocity-predicting Stable Diffusion XL."""
    options = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    found = training_scheduler(DDIMScheduler(), options)
    assert found.config.prediction_type == "v_prediction"
    assert found.alphas_cumprod[-1] < 1e-6


def test_a_flow_learns_by_its_own_scheduler():
    own = FlowMatchEulerDiscreteScheduler(shift=3.0)
    assert training_scheduler(own) is own


@pytest.mark.parametrize(("name", "steps"), [("PNDM", 3), ("UnCLIP", 1)])
def test_numbers_of_steps_that_a_scheduler_cannot_take_are_refused(name, steps):
    found = fitting_sampler(DDIMScheduler(), f"{name}Scheduler", {})
    with pytest.raises(InputError, match=rf"sampler\.steps: {steps}: {name}Scheduler does not work with so many"):
        check_steps(found, steps)
