"""Which pipelines draw from a prompt alone, by the names of their classes and by the configs of their parts."""

import re
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nullbooth.errors import InputError
from nullbooth.inputs.text import shown
from nullbooth.models.families import FAMILIES

# Known to nullbooth beside what diffusers lists as text-to-image.
_MORE = ("SanaSprintPipeline", "StableDiffusionSAGPipeline", "StableDiffusionPanoramaPipeline")
_TASKS = re.compile("ControlNet|Img2Img|Inpaint|InstructPix2Pix|Pix2PixZero|Depth2Img|Upscale|Control|Fill|Union")
_ONLY_TEXT = "take the text-to-image model that it was made from"
# Values of a UNet's config by which it reads prompts, and nothing else, beside latents and timesteps.
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
    """Pipelines that draw from a prompt alone, as diffusers lists them in its text; none where it is not installed."""
    spec = find_spec("diffusers")
    path = spec and Path(str(spec.origin)).parent / "pipelines" / "auto_pipeline.py"
    if not path or not path.is_file():
        return frozenset()
    listed = path.read_text(encoding="utf-8").partition("AUTO_TEXT2IMAGE_PIPELINES_MAPPING = ")[2].partition("\n)")[0]
    named = re.findall(r", (\w+Pipeline)\)", listed)
    return frozenset({*_MORE, *(name for name in named if not _TASKS.search(name))}) if named else frozenset()


def check_class(cls: str, where: str) -> None:
    """Refuse the class of a pipeline that draws from more than a prompt. Raises InputError."""
    if not text_to_image() or cls in text_to_image():
        return
    plain = _TASKS.sub("", cls)
    mend = f"; if all of its parts are those of one, set _class_name to {plain!r}" if plain in text_to_image() else ""
    raise InputError(f"{where}: _class_name: {shown(cls)} does not draw from a prompt alone: {_ONLY_TEXT}{mend}")


def check_given(denoiser: Mapping[str, Any], vae: Mapping[str, Any], where: str) -> None:
    """Refuse a denoiser that takes more than latents of the VAE, timesteps and prompts. Raises InputError.

    denoiser, vae: their configs; what they leave out is not looked at.
    """
    channels, latents = denoiser.get("in_channels"), vae.get("latent_channels")
    if (family := FAMILIES.get(denoiser.get("_class_name", ""))) and isinstance(latents, int):
        latents *= family.square
    if isinstance(channels, int) and isinstance(latents, int) and channels != latents:
        raise InputError(
            f"{where}: in_channels: {channels}, but latents of the VAE have {latents}: this denoiser is given a "
            f"picture too (inpainting, editing, upscaling) and does not draw from a prompt alone; {_ONLY_TEXT}"
        )
    for key, known in _READS.items():
        if denoiser.get(key) not in known:
            raise InputError(
                f"{where}: {key}: {shown(denoiser[key])}: this denoiser is given {_GIVEN[key]} too and does not draw "
                f"from a prompt alone; {_ONLY_TEXT}"
            )


def check_roles(parts: Mapping[str, tuple[str, str]], denoiser: Mapping[str, Any], where: str) -> None:
    """Refuse a pipeline without a part that drawing from a prompt, or learning from pictures, needs. Raises InputError.

    parts: library and class by name.
    """
    texts = [name for name in parts if name.startswith("text_encoder")]
    needed = ["scheduler", "vae", *(texts or ["text_encoder"])]
    needed += [name.replace("text_encoder", "tokenizer") for name in texts]
    if denoiser.get("addition_embed_type") == "text_time":  # pooled text of the second encoder, as in XL
        needed.append("text_encoder_2")
    if missing := [name for name in needed if name not in parts]:
        raise InputError(
            f"{where}: no {missing[0]}: this pipeline cannot draw from a prompt alone; download the whole model, or "
            "take another"
        )
