"""Export of adapters for other tools: LoRA files, whole pipelines, and a model card."""

import os
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from nullbooth.adapters.file import AdapterInfo, read_adapter, split_word
from nullbooth.adapters.loaded import LoadedAdapter
from nullbooth.errors import InputError
from nullbooth.models.families import family_of
from nullbooth.models.loading import denoiser_of, pipeline_class
from nullbooth.storage.atomic import whole, write_text
from nullbooth.storage.tensorfile import save_tensors

KEYS = ("diffusers", "kohya")
ENCODERS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}  # of UNets


def export_lora(path: Path | str, out: Path | str, keys: str = "diffusers") -> None:
    """Write an adapter as a LoRA file. keys: `diffusers`, for `pipe.load_lora_weights`, or `kohya`, as for ComfyUI.

    The adapter's `up` already includes its scale, so that alpha equals the rank. Raises InputError if no single LoRA
    equals the adapter (`timestep` scope, full rank, a word of its own in a transformer), if kohya has no keys for the
    denoiser (transformers), or if `out` is the adapter itself.
    """
    tensors, info = read_adapter(path)
    tensors, word = split_word(tensors)
    family = family_of(info.denoiser, str(path))
    if word and not family.kohya:
        raise InputError(
            f"{path}: {_has_word(info)}, which other tools cannot use with a {info.denoiser}; load it with {_LOADER}"
        )
    if Path(out).exists() and Path(out).samefile(path):
        raise InputError(f"{out}: this is the adapter itself; give the LoRA another name")
    if keys not in KEYS:
        raise InputError(f"keys {keys!r}: use one of {', '.join(KEYS)}")
    if keys == "kohya" and not family.kohya:
        raise InputError(f"{path}: kohya's keys exist for UNets only, not for {info.denoiser}; use the keys diffusers")
    factors = low_rank(path, tensors, info)
    rank = max(len(down) for down, _ in factors.values())
    lora: dict[str, Tensor] = {}
    for site, (down, up) in factors.items():
        if keys == "diffusers":
            name = f"{family.part}.{site}"
            lora |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
        else:
            name = f"lora_unet_{site.replace('.', '_')}"
            lora |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
            lora[f"{name}.alpha"] = torch.tensor(float(len(down)))
    said = {"ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": str(rank)}
    said |= architecture(factors, info) | {"nullbooth.model": info.model}
    said |= {"modelspec.title": info.prompt, "modelspec.trigger_phrase": info.prompt}
    save_tensors(out, lora, {"format": "pt", **said})


# By the input width of cross-attention: the model's name in kohya's scripts, its name in ModelSpec, and its resolution.
# AUTOMATIC1111 lists a LoRA for the models in `ss_base_model_version`; without that key, it assumes SD 1.
UNETS = {
    768: ("sd_v1", "stable-diffusion-v1", 512),
    1024: ("sd_v2", "stable-diffusion-v2", None),
    2048: ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base", 1024),
}


def architecture(factors: dict[str, tuple[Tensor, Tensor]], info: AdapterInfo) -> dict[str, str]:
    """Return metadata that name a LoRA's base model: keys of kohya's scripts and required keys of ModelSpec 1.0.1."""
    said = {"modelspec.sai_model_spec": "1.0.1", "modelspec.implementation": "diffusers"}
    read = {down.shape[1] for site, (down, _) in factors.items() if site.endswith(("attn2.to_k", "attn2.to_v"))}
    unet = family_of(info.denoiser).part == "unet" and len(read) == 1
    version, name, side = UNETS.get(read.pop(), ("", "", None)) if unet else ("", "", None)
    if version:
        said |= {"ss_base_model_version": version, "ss_v2": str(version == "sd_v2")}
    if side:
        said["modelspec.resolution"] = f"{side}x{side}"
    return said | {"modelspec.architecture": f"{name or info.denoiser}/lora"}


def export_word(path: Path | str, out: Path | str) -> bool:
    """Write the identifier's learned vectors `[k, d]`, by ComfyUI's names of the text encoders. Returns False, and
    writes nothing, if there are none."""
    tensors, info = read_adapter(path)
    _, word = split_word(tensors)
    if word:
        named = {ENCODERS.get(name, name): vectors for name, vectors in word.items()}
        save_tensors(out, named, {"format": "pt", "token": token_of(info)})
    return bool(word)


def token_of(info: AdapterInfo) -> str:
    """Return the token that names an identifier with learned vectors in other tools; no tokenizer has it."""
    return f"<{info.identifier}>"


def keys_of(info: AdapterInfo) -> list[str]:
    """Return the kinds of keys that LoRA files of an adapter can have, some of KEYS."""
    return [keys for keys in KEYS if keys == "diffusers" or family_of(info.denoiser).kohya]


def low_rank(path: Path | str, tensors: dict[str, Tensor], info: AdapterInfo) -> dict[str, tuple[Tensor, Tensor]]:
    """Return down `[r, in]` and up `[out, r]` by site. Raises InputError if a change has full rank or varies."""
    factors = {}
    for site in dict.fromkeys(key.rpartition(".")[0] for key in tensors):
        if f"{site}.up" not in tensors:
            raise InputError(f"{path}: a full-rank adapter is not a LoRA; train with an integer rank of the method")
        down = tensors[f"{site}.down"]
        if len(down) > 1:
            raise InputError(f"{path}: {_varies(info)}, which a LoRA file cannot hold; {_HINT}")
        factors[site] = down[0].contiguous(), tensors[f"{site}.up"]
    return factors


_LOADER = "nullbooth.load_adapter"
_HINT = f"train with scope pooled, or load it with {_LOADER}"


def _has_word(info: AdapterInfo) -> str:
    return f"has learned vectors for {info.identifier!r}"


def _varies(info: AdapterInfo) -> str:
    return f"scope {info.scope} has different weights at each timestep"


def fuse(pipeline: Any, path: Path | str, folder: Path | str, scale: float = 1.0) -> None:
    """Write the pipeline with the adapter merged into its weights, as a folder that `from_pretrained` loads without
    NullBooth.

    The pipeline itself does not change. Raises InputError if no single set of weights equals the adapter (`timestep`
    scope), if it has learned vectors, if another adapter is loaded in the pipeline, or if the folder exists.
    """
    tensors, info = read_adapter(path)
    if Path(folder).exists():
        raise InputError(f"{folder}: exists already; name a new folder")
    loaded = LoadedAdapter(denoiser_of(pipeline), tensors, info, scale)
    try:
        if info.identifier:
            raise InputError(
                f"{path}: {_has_word(info)}, which the weights of a pipeline cannot hold; load it with {_LOADER}"
            )
        if not loaded.alone:
            raise InputError(f"{path}: another adapter is loaded in the pipeline and would be fused too; unload it")
        if any(map(loaded.varies, loaded.original)):
            raise InputError(f"{path}: {_varies(info)}, which one pipeline cannot hold; {_HINT}")
        loaded.set_step(0)
        with whole(folder) as partial:
            pipeline.save_pretrained(partial)
    finally:
        loaded.unload()


CARD = """---
library_name: diffusers
{base}
tags: [text-to-image, lora, dreambooth, nullbooth]
---
# {title}

A LoRA of rank {rank} for {name}, trained with NullBooth. Its changes of the weights lie in the null space of the
layers' inputs for the protected prompts, so that the model draws these as before ({rule}).

Trigger: {title}

Run this in the folder of this file:

```python
from diffusers import {loader}

{local}pipe = {loader}.{call}
pipe.load_lora_weights(".", weight_name="{diffusers}")
{word}pipe({prompt!r}).images[0].save("picture.png")
```

{kohya}The licenses of the model and of the photographs apply: state them here before you share this.
"""


def as_code(text: str) -> str:
    """Return a text as Markdown code on one line, which no renderer interprets."""
    return "`" + " ".join(text.split()).replace("`", "'") + "`"


def as_found(model: str, card: Path | str) -> str:
    """Return the path of a model relative to the folder of `card`, or a Hub id unchanged."""
    return os.path.relpath(model, Path(card).resolve().parent) if Path(model).exists() else model


WORD = """from safetensors.torch import load_file

word = load_file("word.safetensors")
for key, number in (("clip_l", ""), ("clip_g", "_2")):
    if key in word:
        parts = {{part: getattr(pipe, part + number) for part in ("text_encoder", "tokenizer")}}
        pipe.load_textual_inversion({{{token!r}: word[key]}}, token={token!r}, **parts)
"""


def write_card(
    path: Path | str,
    out: Path | str,
    model: str,
    files: dict[str, str],
    configs: str | None = None,
    revision: str | None = None,
) -> None:
    """Write a model card for exported LoRA files, `files` by their keys.

    model: folder, Hub id or single file of the base model; configs, revision: folder or Hub id with the configs of a
    single file, and their commit.
    """
    _, info = read_adapter(path)
    found, own = as_found(model, out), as_found(configs, out) if configs else None
    loader, call = "DiffusionPipeline", f"from_pretrained({found!r})"
    if configs:
        loader, call = pipeline_class(configs, revision).__name__, f"from_single_file({found!r}, config={own!r})"
    prompt, word = info.prompt, ""
    if info.identifier:
        prompt, word = prompt.replace(info.identifier, token_of(info)), WORD.format(token=token_of(info))
    said = {
        "local": "" if found == model else "# A local path: replace it by a Hub id before you share this.\n",
        "loader": loader,
        "call": call,
        "base": yaml.safe_dump({"base_model": model}).strip(),
        "name": as_code(model),
        "title": as_code(prompt),
        "prompt": prompt,
        "rank": info.rank,
        "rule": info.rule or info.scope,
        "kohya": "",
        "word": word,
    }
    if "kohya" in files:
        said["kohya"] = f"For ComfyUI and other tools: `{files['kohya']}`, the same LoRA with kohya's keys.\n\n"
    write_text(out, CARD.format(diffusers=files["diffusers"], **said))
