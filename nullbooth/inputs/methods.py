"""Table of methods: what each reads, learns and changes. Schema, cost model, rules and exports use it.

To add a method, write a file with its builder (`learning.rivals` has the present ones) and an entry of `METHODS`.
"""

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Method:
    """One way to learn a subject.

    builder: `module:function`, which the training job imports and calls with the denoiser, its sites by name and
    `learning.rivals.Options`; it returns what is trained. Empty for NullBooth itself (`learning.adapter`).
    """

    name: str
    builder: str = ""
    reads: Literal["projectors", "trajectories"] | None = None  # of the protected prompts
    # What it learns beside the photographs; None: the setting `prior`, which only NullBooth has.
    prior: Literal["images", "prediction", "protected"] | None = None
    low_rank: bool = False  # its change is one product of two factors at all timesteps, as in a LoRA file
    own_weights: bool = False  # changes the denoiser's weights, or computes its change from them: they must be float32
    whole: bool = False  # trains every weight of the denoiser


_RIVALS = "nullbooth.learning.rivals"
METHODS = {
    method.name: method
    for method in (
        Method("nullbooth", reads="projectors"),
        Method("dreambooth", f"{_RIVALS}:whole_denoiser", own_weights=True, whole=True),
        Method("dreambooth-prior", f"{_RIVALS}:whole_denoiser", prior="images", own_weights=True, whole=True),
        Method("custom-diffusion", f"{_RIVALS}:keys_and_values", prior="images", own_weights=True),
        Method("lora", f"{_RIVALS}:lora", low_rank=True),
        Method("prior-prediction", f"{_RIVALS}:lora", prior="prediction", low_rank=True),
        Method("replay", f"{_RIVALS}:lora", reads="trajectories", prior="protected", low_rank=True),
        Method("oft", f"{_RIVALS}:oft", own_weights=True),
        Method("corda", f"{_RIVALS}:corda", reads="trajectories", own_weights=True),
    )
}
OURS = "nullbooth"


def is_ours(entry: dict[str, Any]) -> bool:
    """Return True if an entry of `methods` is NullBooth itself, False for a rival."""
    return entry["method"] == OURS


def reads_trajectories(entry: dict[str, Any]) -> bool:
    """Return True if an entry of `methods` learns from the stored trajectories of the protected prompts."""
    return METHODS[entry["method"]].reads == "trajectories"


def prior_of(entry: dict[str, Any]) -> str | None:
    """Return what an entry of `methods` learns beside the photographs to keep the base model's knowledge, or None.

    `images`: pictures of the class by the base model. `prediction`: its prediction for captions that name the class
    alone. `protected`: its prediction for the protected prompts.
    """
    return METHODS[entry["method"]].prior or entry["prior"]


def is_lora(entry: dict[str, Any]) -> bool:
    """Return True if the change of an entry of `methods` is one product of two low-rank factors at all timesteps."""
    if is_ours(entry):
        return entry["scope"] != "timestep" and entry["rank"] != "full"
    return METHODS[entry["method"]].low_rank
