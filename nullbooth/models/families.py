"""Table of model families: the inputs of their denoisers, and what differs between their pipelines.

To add a family, write its `inputs` function in a file of its own and one entry of `FAMILIES` that names it. A family
whose pipeline follows those of diffusers needs nothing else. Imports no torch: the rules read the table.
"""

from dataclasses import dataclass
from typing import Literal

from nullbooth.errors import InputError


@dataclass(frozen=True)
class Family:
    """One class of denoisers.

    denoiser: class in diffusers. models: names that people know. part: name of the denoiser in a pipeline.
    inputs: `module:function` that takes the numbers of tokens and of latents per side, and returns a function of the
    denoiser and a number of samples, which makes the arguments of one call as empty tensors (`planning.shapes_exact`).
    tokens: number of tokens that a text encoder other than CLIP reads by default; None if there is only CLIP.
    behind_clip: whether these tokens follow those of CLIP in one sequence.
    pack: the pipeline's method that turns squares of 2 x 2 latents into one token of four times the channels, called
    with latents `[n, c, h, w]` and these four numbers; empty if the denoiser takes latents as pictures.
    constants: arguments without an axis for prompts.
    side: latents per side of the model's own pictures, for configs without `sample_size`.
    words_in_place: whether the tokens of a prompt's words have fixed positions, as heat maps need.
    kohya: whether LoRA files with kohya's keys exist for this family.
    """

    denoiser: str
    models: str
    inputs: str
    part: Literal["unet", "transformer"] = "transformer"
    tokens: int | None = None
    behind_clip: bool = False
    pack: str = ""
    constants: tuple[str, ...] = ()
    side: int | None = None
    words_in_place: bool = True
    kohya: bool = False

    @property
    def square(self) -> int:
        """Number of latents in one token of the denoiser's input."""
        return 4 if self.pack else 1


_INPUTS = "nullbooth.planning.shapes_exact"
FAMILIES = {
    family.denoiser: family
    for family in (
        Family(
            "UNet2DConditionModel", "Stable Diffusion 1, 2 and XL", f"{_INPUTS}:unet_inputs", part="unet", kohya=True
        ),
        Family("PixArtTransformer2DModel", "PixArt", f"{_INPUTS}:pixart_inputs", tokens=300),
        Family("SanaTransformer2DModel", "Sana", f"{_INPUTS}:pixart_inputs", tokens=300, words_in_place=False),
        Family("SD3Transformer2DModel", "Stable Diffusion 3", f"{_INPUTS}:sd3_inputs", tokens=256, behind_clip=True),
        Family(
            "FluxTransformer2DModel",
            "FLUX.1",
            f"{_INPUTS}:flux_inputs",
            tokens=512,
            pack="_pack_latents",
            constants=("txt_ids", "img_ids"),
            side=128,
        ),
    )
}


def family_of(denoiser: str, where: str = "model") -> Family:
    """Return the family of a denoiser's class. Raises InputError for an unknown class; `where` names it."""
    if denoiser not in FAMILIES:
        raise InputError(f"{where}: {denoiser} is not a known denoiser; use {known()}")
    return FAMILIES[denoiser]


def known() -> str:
    """Return the names of all families, joined for messages."""
    return " or ".join(family.models for family in FAMILIES.values())


def constants() -> frozenset[str]:
    """Return the arguments of denoisers, of any family, that are the same for all prompts."""
    return frozenset(name for family in FAMILIES.values() for name in family.constants)
