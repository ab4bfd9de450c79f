"""Checks that a pipeline draws from a prompt alone, by the name of its class and the configs of its parts."""

import re
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nullbooth.errors import InputError
from nullbooth.inputs.text import shown
from nullbooth.models.families import FAMILIES

# Text-to-image pipelines that diffusers does not list as such.
_MORE = ("SanaSprintPipeline", "StableDiffusionSAGPipeline", "StableDiffusionPanoramaPipeline")
_TASKS = re.compile("ControlNet|Img2Img|Inpaint|InstructPix2Pix|Pix2PixZero|Depth2Img|Upscale|Control|Fill|Union")
_ONLY_TEXT = "use the text-to-image model that it was made from"
# Values in the config of UNets that read only latents, timesteps and prompts.
_READS = {
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "addition_embed_type": (None, "text", "text_time"),
    "encoder_hid_dim_type": (None, "text_proj"),
}
_GIVEN = {
    "class_embed_type": "class labels or embeddings of pictures",
    "num_class_embeds": "class labels or noise levels",
    "addition_embed_type": "embeddings of pictures",
    "encoder_hid_dim_type": "embeddings of pictures",
}


@cache
def text_to_image() -> frozenset[str]:
    """Return the classes of text-to-image pipelines, from the source text of diffusers; none if it is not installed."""
    spec = find_spec("diffusers")
    path = spec and Path(str(spec.origin)).parent / "pipelines" / "auto_pipeline.py"
    if not path or not path.is_file():
        return frozenset()
    listed = path.read_text(encoding="utf-8").partition("AUTO_TEXT2IMAGE_PIPELINES_MAPPING = ")[2].partition("\n)")[0]
    named = re.findall(r", (\w+Pipeline)\)", listed)
    return frozenset({*_MORE, *(name for name in named if not _TASKS.search(name))}) if named else frozenset()


def check_class(cls: str, where: str) -> None:
    """Raise InputError if pipelines of this class need more than a prompt."""
    if not text_to_image() or cls in text_to_image():
        return
    plain = _TASKS.sub("", cls)
    hint = f"; if all of its parts are those of one, set _class_name to {plain!r}" if plain in text_to_image() else ""
    raise InputError(f"{where}: _class_name: {shown(cls)} does not draw from a prompt alone: {_ONLY_TEXT}{hint}")


def check_given(denoiser: Mapping[str, Any], vae: Mapping[str, Any], where: str) -> None:
    """Raise InputError if a denoiser takes more than latents of the VAE, timesteps and prompts.

    denoiser, vae: their configs; missing keys are not checked.
    """
    channels, latents = denoiser.get("in_channels"), vae.get("latent_channels")
    if (family := FAMILIES.get(denoiser.get("_class_name", ""))) and isinstance(latents, int):
        latents *= family.square
    if isinstance(channels, int) and isinstance(latents, int) and channels != latents:
        raise InputError(
            f"{where}: in_channels: {channels}, but latents of the VAE have {latents}: this denoiser also takes a "
            f"picture (inpainting, editing, upscaling) and does not draw from a prompt alone; {_ONLY_TEXT}"
        )
    for key, known in _READS.items():
        if denoiser.get(key) not in known:
            raise InputError(
                f"{where}: {key}: {shown(denoiser[key])}: this denoiser also takes {_GIVEN[key]} and does not draw "
                f"from a prompt alone; {_ONLY_TEXT}"
            )


def check_roles(parts: Mapping[str, tuple[str, str]], denoiser: Mapping[str, Any], where: str) -> None:
    """Raise InputError if a pipeline lacks a part that drawing from a prompt or learning from pictures needs.

    parts: library and class by name. denoiser: its config.
    """
    texts = [name for name in parts if name.startswith("text_encoder")]
    needed = ["scheduler", "vae", *(texts or ["text_encoder"])]
    needed += [name.replace("text_encoder", "tokenizer") for name in texts]
    if denoiser.get("addition_embed_type") == "text_time":  # pooled text of the second encoder, as in XL
        needed.append("text_encoder_2")
    if missing := [name for name in needed if name not in parts]:
        raise InputError(
            f"{where}: no {missing[0]}: this pipeline cannot draw from a prompt alone; download the whole model, or "
            "use another"
        )
