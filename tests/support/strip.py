"""A family outside NullBooth, in one file: PixArt with a constant argument. For tests of the table."""

from typing import Any

import torch
from diffusers import PixArtSigmaPipeline, PixArtTransformer2DModel
from torch import nn

from nullbooth.models.families import Family
from nullbooth.planning.shapes_exact import Inputs, pixart_inputs


class StripTransformer2DModel(PixArtTransformer2DModel):
    """Takes `strip_ids`, the same for all prompts, as FLUX takes its positions."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # a pipeline of this family would pass it
        return super().__call__(*args, **{**kwargs, "strip_ids": torch.arange(7.0)})

    def forward(
        self,
        hidden_states,
        strip_ids=None,
        encoder_hidden_states=None,
        timestep=None,
        added_cond_kwargs=None,
        encoder_attention_mask=None,
        return_dict=True,
    ):
        assert strip_ids.shape == (7,)
        given = {"added_cond_kwargs": added_cond_kwargs, "encoder_attention_mask": encoder_attention_mask}
        return super().forward(hidden_states, encoder_hidden_states, timestep, **given, return_dict=return_dict)


# Its index names the class as one of diffusers, as it would be once diffusers has it.
StripTransformer2DModel.__module__ = "diffusers.models.transformers.strip"


def strip_inputs(tokens: int, side: int) -> Inputs:
    def inputs(denoiser: nn.Module, n: int) -> dict[str, Any]:
        return {**pixart_inputs(tokens, side)(denoiser, n), "strip_ids": torch.zeros(7)}

    return inputs


FAMILY = Family("StripTransformer2DModel", "Strip", "strip:strip_inputs", tokens=9, constants=("strip_ids",))


def pipeline_of(pixart: PixArtSigmaPipeline) -> PixArtSigmaPipeline:
    """Return the pipeline with its transformer replaced by one of this family with the same size."""
    config = {key: value for key, value in pixart.transformer.config.items() if not key.startswith("_")}
    return PixArtSigmaPipeline(**{**pixart.components, "transformer": StripTransformer2DModel(**config)})
