"""Schedulers: the objective that a model was trained with, and the sampler that draws with it."""

import difflib
import inspect
from importlib.util import find_spec
from typing import Any

from nullbooth.errors import InputError

# Options of a scheduler that describe the training of the model, not the sampling.
OF_OBJECTIVE = (
    "prediction_type",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
)


def objective_of(scheduler: Any) -> str | None:
    """Return the training objective of models with this scheduler: `flow` (velocity along straight lines from data to
    noise, arXiv 2403.03206), `diffusion` (noise, data or velocity of a DDPM schedule, arXiv 2006.11239) or None (EDM,
    consistency models, ...)."""
    if type(scheduler).__name__.startswith("FlowMatch") or scheduler.config.get("prediction_type") == "flow_prediction":
        return "flow"
    known = scheduler.config.get("prediction_type") in ("epsilon", "v_prediction", "sample")
    return "diffusion" if known and hasattr(scheduler, "alphas_cumprod") else None


def training_scheduler(own: Any, options: dict[str, Any] | None = None) -> Any:
    """Return a scheduler for training, with the objective and noise schedule of a model's own, whatever the sampler.

    options: those of the sampler, of which only OF_OBJECTIVE apply, to `diffusion` alone. Raises InputError for
    unknown objectives.
    """
    from diffusers import DDPMScheduler

    kind = objective_of(own)
    if kind is None:
        raise InputError(
            f"model: its scheduler {type(own).__name__} is neither for DDPM schedules nor for flow matching, so that "
            "its training objective is unknown; use another model"
        )
    if kind == "flow":
        return own
    return DDPMScheduler.from_config(own.config, **{k: v for k, v in (options or {}).items() if k in OF_OBJECTIVE})


def scheduler_class(name: str) -> Any:
    """Return a scheduler class of diffusers whose `step` needs no special arguments. Raises InputError for others."""
    import diffusers

    cls = getattr(diffusers, name, None)
    # diffusers replaces classes whose packages are missing by dummies, which raise when used.
    if missing := [package for package in vars(cls or object).get("_backends", []) if find_spec(package) is None]:
        raise InputError(f"sampler.scheduler: {name} needs the package {missing[0]}: pip install {missing[0]}")
    if cls is None or not (hasattr(cls, "set_timesteps") and hasattr(cls, "step")):
        raise InputError(
            f"sampler.scheduler: {name!r} is not a scheduler class of diffusers; use one, such as DDIMScheduler"
        )
    needed = [p.name for p in inspect.signature(cls.step).parameters.values() if p.default is inspect.Parameter.empty]
    if "Inverse" in name or needed != ["self", "model_output", "timestep", "sample"]:
        raise InputError(f"sampler.scheduler: {name} does not draw from a prompt; use another, such as DDIMScheduler")
    return cls


def set_sampler(pipeline: Any, name: str | None, options: dict[str, Any] | None = None) -> None:
    """Replace the pipeline's scheduler by the class `name` of diffusers, with the same config and `options`.

    Raises InputError for unknown names and options, and for schedulers for another training objective.
    """
    if name is None and not options:
        return
    pipeline.scheduler = fitting_sampler(pipeline.scheduler, name, options or {})


def check_steps(scheduler: Any, steps: int, key: str = "sampler.steps") -> None:
    """Raise InputError if a scheduler cannot take this number of steps. key: the setting."""
    given = {"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") else {}
    try:
        scheduler.set_timesteps(steps, **given)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"{key}: {steps}: {type(scheduler).__name__} does not work with so many ({error}); use another number, "
            "or another sampler.scheduler"
        ) from error


def fitting_sampler(own: Any, name: str | None, options: dict[str, Any]) -> Any:
    """Return a scheduler of the class `name` (None: the same) from the config of a model's own, as `set_sampler`."""
    cls = type(own) if name is None else scheduler_class(name)
    known = list(inspect.signature(cls.__init__).parameters)[1:]
    if unknown := sorted(set(options) - set(known)):  # diffusers would ignore them
        near = difflib.get_close_matches(unknown[0], known, 1, 0.5) or known
        raise InputError(f"sampler.options.{unknown[0]}: {cls.__name__} has no such option; did you mean {near[0]!r}?")
    try:
        found = cls.from_config(own.config, **options)
    except (ImportError, NotImplementedError, TypeError, ValueError) as error:
        raise InputError(f"sampler.scheduler: {cls.__name__}: {error}") from error
    if (kind := objective_of(own)) and objective_of(found) != kind:
        fit = "a FlowMatch scheduler, or one with options {use_flow_sigmas: true, prediction_type: flow_prediction}"
        raise InputError(
            f"sampler.scheduler: {cls.__name__} does not fit this model, whose own is {type(own).__name__}: use "
            f"{fit if kind == 'flow' else 'one for DDPM schedules, such as DDIMScheduler or EulerDiscreteScheduler'}"
        )
    return found
