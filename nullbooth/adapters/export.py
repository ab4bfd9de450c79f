"""Adapters in the forms that other tools read: LoRA files, whole pipelines, and a card that says what they are."""

import os
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from nullbooth.adapters.file import AdapterInfo, read_adapter, split_word
from nullbooth.adapters.loaded import LoadedAdapter
from nullbooth.errors import InputError
from nullbooth.models.loading import denoiser_of, pipeline_class
from nullbooth.storage.atomic import whole, write_text
from nullbooth.storage.tensorfile import save_tensors

KEYS = ("diffusers", "kohya")
ENCODERS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}  # of UNets


def export_lora(path: Path | str, out: Path | str, keys: str = "diffusers") -> None:
    """Write an adapter as a LoRA file: with the keys of diffusers and peft, for `pipe.load_lora_weights`, or with those
    of kohya's scripts, which ComfyUI and others read too.

    The scale of the adapter is part of its `up`, so that alpha is the rank in either. Raises InputError where no single
    LoRA equals the adapter (`timestep` scope, full rank), and where kohya's keys do not exist (transformers).
    """
    tensors, info = read_adapter(path)
    tensors, word = split_word(tensors)
    if word and not of_unet(info):
        raise InputError(
            f"{path}: {_has_word(info)}, which other tools do not read in a {info.denoiser}; load it with {_LOADER}"
        )
    if Path(out).exists() and Path(out).samefile(path):
        raise InputError(f"{out}: the adapter itself; give the LoRA another name")
    if keys not in KEYS:
        raise InputError(f"keys {keys!r}: use one of {', '.join(KEYS)}")
    if keys == "kohya" and not of_unet(info):
        raise InputError(f"{path}: kohya's keys are those of UNets, this is of {info.denoiser}; take diffusers' keys")
    factors = low_rank(path, tensors, info)
    rank = max(len(down) for down, _ in factors.values())
    lora: dict[str, Tensor] = {}
    for site, (down, up) in factors.items():
        if keys == "diffusers":
            name = f"{'unet' if of_unet(info) else 'transformer'}.{site}"
            lora |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
        else:
            name = f"lora_unet_{site.replace('.', '_')}"
            lora |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
            lora[f"{name}.alpha"] = torch.tensor(float(len(down)))
    said = {"ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": str(rank)}
    said |= architecture(factors, info) | {"nullbooth.model": info.model}
    said |= {"modelspec.title": info.prompt, "modelspec.trigger_phrase": info.prompt}
    save_tensors(out, lora, {"format": "pt", **said})


# By the width of what cross-attention reads: the names of kohya's scripts and of ModelSpec, and the side of pictures.
# AUTOMATIC1111 shows a LoRA for the models that its `ss_base_model_version` names, and takes one without for SD 1.
UNETS = {
    768: ("sd_v1", "stable-diffusion-v1", 512),
    1024: ("sd_v2", "stable-diffusion-v2", None),
    2048: ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base", 1024),
}


def architecture(factors: dict[str, tuple[Tensor, Tensor]], info: AdapterInfo) -> dict[str, str]:
    """What other tools read of the model that a LoRA is for: kohya's keys, and those that ModelSpec 1.0.1 demands."""
    said = {"modelspec.sai_model_spec": "1.0.1", "modelspec.implementation": "diffusers"}
    read = {down.shape[1] for site, (down, _) in factors.items() if site.endswith(("attn2.to_k", "attn2.to_v"))}
    version, name, side = UNETS.get(read.pop(), ("", "", None)) if of_unet(info) and len(read) == 1 else ("", "", None)
    if version:
        said |= {"ss_base_model_version": version, "ss_v2": str(version == "sd_v2")}
    if side:
        said["modelspec.resolution"] = f"{side}x{side}"
    return said | {"modelspec.architecture": f"{name or info.denoiser}/lora"}


def export_word(path: Path | str, out: Path | str) -> bool:
    """Write the identifier's vectors, if it has some: `[k, d]` by the key that ComfyUI gives the text encoder. Says
    whether it has."""
    tensors, info = read_adapter(path)
    _, word = split_word(tensors)
    if word:
        named = {ENCODERS.get(name, name): vectors for name, vectors in word.items()}
        save_tensors(out, named, {"format": "pt", "token": token_of(info)})
    return bool(word)


def token_of(info: AdapterInfo) -> str:
    """What other tools call an identifier with vectors of its own: a token that no tokenizer has."""
    return f"<{info.identifier}>"


def of_unet(info: AdapterInfo) -> bool:
    return info.denoiser.startswith("UNet")


def low_rank(path: Path | str, tensors: dict[str, Tensor], info: AdapterInfo) -> dict[str, tuple[Tensor, Tensor]]:
    """down `[r, in]` and up `[out, r]` by site. Raises InputError where a site's change is not that, or not one."""
    factors = {}
    for site in dict.fromkeys(key.rpartition(".")[0] for key in tensors):
        if f"{site}.up" not in tensors:
            raise InputError(f"{path}: a full-rank adapter is no LoRA; train with an integer method rank")
        down = tensors[f"{site}.down"]
        if len(down) > 1:
            raise InputError(f"{path}: {_varies(info)}, which no LoRA file can say; {_MEND}")
        factors[site] = down[0].contiguous(), tensors[f"{site}.up"]
    return factors


_LOADER = "nullbooth.load_adapter"
_MEND = f"train with scope pooled, or load it with {_LOADER}"


def _has_word(info: AdapterInfo) -> str:
    return f"has vectors of its own for {info.identifier!r}"


def _varies(info: AdapterInfo) -> str:
    return f"scope {info.scope} has other weights at each timestep"


def fuse(pipeline: Any, path: Path | str, folder: Path | str, scale: float = 1.0) -> None:
    """Write the pipeline, with the adapter in its weights, as a folder that `from_pretrained` loads without NullBooth.

    The pipeline itself stays as it was. Raises InputError where no single set of weights equals the adapter (`timestep`
    scope), if another one is at work in the pipeline, and if the folder is there already.
    """
    tensors, info = read_adapter(path)
    if Path(folder).exists():
        raise InputError(f"{folder}: is there already; name a new folder")
    loaded = LoadedAdapter(denoiser_of(pipeline), tensors, info, scale)
    try:
        if info.identifier:
            raise InputError(
                f"{path}: has vectors of its own for {info.identifier!r}, which are no weights of a pipeline; "
                "load it with nullbooth.load_adapter"
            )
        if not loaded.alone:
            raise InputError(f"{path}: another adapter is at work in the pipeline, and would be fused too; unload it")
        if any(map(loaded.varies, loaded.original)):
            raise InputError(f"{path}: {_varies(info)}, which no one pipeline has; {_MEND}")
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

A LoRA of rank {rank} for {name}, learned by NullBooth: every change of a weight is confined to the null space of
what the model's layers read for the prompts that were protected, so that those are drawn as before ({rule}).

Trigger: {title}

Run in the folder of this file:

```python
from diffusers import {loader}

{local}pipe = {loader}.{call}
pipe.load_lora_weights(".", weight_name="{diffusers}")
{word}pipe({prompt!r}).images[0].save("picture.png")
```

{kohya}The license is that of the model and of the photographs: say it here before you share this.
"""


def as_code(text: str) -> str:
    """Any text as it is, on one line of Markdown."""
    return "`" + " ".join(text.split()).replace("`", "'") + "`"


def as_found(model: str, card: Path | str) -> str:
    """A folder or file as code in the card's folder finds it, and a Hub id as it is."""
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
    """Write a model card for exported LoRA files, `files` by their keys. model: folder, Hub id or one file of the base;
    configs, revision: folder or Hub id with the configs of one file, and their commit."""
    _, info = read_adapter(path)
    found, own = as_found(model, out), as_found(configs, out) if configs else None
    loader, call = "DiffusionPipeline", f"from_pretrained({found!r})"
    if configs:
        loader, call = pipeline_class(configs, revision).__name__, f"from_single_file({found!r}, config={own!r})"
    prompt, word = info.prompt, ""
    if info.identifier:
        prompt, word = prompt.replace(info.identifier, token_of(info)), WORD.format(token=token_of(info))
    said = {
        "local": "" if found == model else "# On this computer: name a model of the Hub before you share this.\n",
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
        said["kohya"] = f"For ComfyUI and other tools: `{files['kohya']}`, the same with kohya's keys.\n\n"
    write_text(out, CARD.format(diffusers=files["diffusers"], **said))
