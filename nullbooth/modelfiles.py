"""What the files of a model say of it, without reading its weights; imports neither torch nor diffusers."""

import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nullbooth.settings import SettingsError
from nullbooth.text import InputError, read_text, shown

DENOISERS = ("unet", "transformer")
# Of which a tiny one goes through the whole workflow in the tests.
TRANSFORMERS = ("PixArtTransformer2DModel", "SanaTransformer2DModel", "SD3Transformer2DModel", "FluxTransformer2DModel")
_PICKLED = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle")
_STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
# Where one file has the parts of a pipeline, in the names of the original repositories; T5 has a place of its own.
_DENOISER = ("model.diffusion_model.",)
_PLACES = {
    "unet": _DENOISER,
    "transformer": _DENOISER,
    "vae": ("first_stage_model.", "vae."),
    "text_encoder": ("cond_stage_model.", "conditioner.embedders.0.", "text_encoders.clip_l."),
    "text_encoder_2": ("conditioner.embedders.1.", "text_encoders.clip_g."),
}
_T5 = ("text_encoders.t5xxl.",)
TEXTS = (_PLACES["text_encoder"], _PLACES["text_encoder_2"], _T5)  # of each text encoder
# What any pipeline has, where its configs are not here.
_LEAST = {"unet": "", "vae": "", "text_encoder": ""}
_LEFT_OUT = "safety_checker"  # which diffusers never takes from one file
_OWN_CODE = "a model with code of its own is not run; use one that diffusers or transformers itself knows"


def is_local(model: str, key: str, revision: str | None = None) -> bool:
    """Whether a model is a folder here; else it is a Hub id. Raises SettingsError for what is neither."""
    path = Path(model)
    if path.is_file():
        raise SettingsError(f"{key}: {model} is one file; give the folder that it belongs to, or a Hub id")
    if path.is_dir():
        return True
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model, re.ASCII) or model.startswith("."):
        raise SettingsError(f"{key}: {shown(model)} is neither a folder nor a Hub id (owner/name)")
    if path.parent.is_dir() and not revision:
        others = ", ".join(sorted(p.name for p in path.parent.iterdir() if p.is_dir()))
        raise SettingsError(
            f"{key}: {shown(model)} is no folder, {path.parent} has {others}; for a model of the Hub, set its "
            "revision too"
        )
    return False


def read_json(path: Path) -> dict[str, Any]:
    """An object of a JSON file. Raises InputError."""
    try:
        if isinstance(found := json.loads(read_text(path)), dict):
            return found
    except (json.JSONDecodeError, RecursionError):
        pass
    raise InputError(f"{path}: not JSON of a model; download the model again")


def has_variant(part: Path, variant: str | None) -> bool:
    """Whether a part of a pipeline has weights of a variant (`model.fp16.safetensors`) of its own."""
    return variant is not None and any(re.search(rf"\.{re.escape(variant)}[.-]", path.name) for path in part.iterdir())


def check_pipeline(folder: Path, key: str = "model", variant: str | None = None, file: Path | None = None) -> None:
    """Refuse a folder that is not a diffusers pipeline whose denoiser has cross-attention, in safetensors.

    file: has the weights in place of the folder, of which configs and tokenizers alone are looked at.
    """
    if not (folder / "model_index.json").is_file():
        raise SettingsError(f"{key}: {folder} has no model_index.json; give the folder of a diffusers pipeline")
    parts = components(read_json(folder / "model_index.json"), f"{key}: {folder}/model_index.json")
    [denoiser] = [name for name in DENOISERS if name in parts][:1]
    if variant and (folder / denoiser).is_dir() and not has_variant(folder / denoiser, variant):
        raise SettingsError(f"variant: {folder / denoiser} has no weights of the variant {variant!r}; take it away")
    for name, (library, _) in parts.items():
        part = folder / name
        if file and name == _LEFT_OUT:
            continue
        if not part.is_dir():
            raise InputError(f"{key}: {part}: no such folder, but model_index.json names it; download the model again")
        if name in DENOISERS or (part / "config.json").is_file():
            check_config(part, key)
            if file is None:
                check_weights(part, key, library, variant if has_variant(part, variant) else None)
    if file:
        weighted = [name for name in parts if name != _LEFT_OUT and (folder / name / "config.json").is_file()]
        check_file(file, {name: parts[name][1] for name in weighted})
    check_denoiser(read_json(folder / denoiser / "config.json"), f"{key}: {folder}/{denoiser}/config.json")


def check_file(file: Path, parts: Mapping[str, str] = _LEAST, key: str = "model") -> None:
    """Refuse one file that is no safetensors, or lacks the weights of one of a pipeline's `parts`, classes by name."""
    if file.suffix != ".safetensors":
        raise SettingsError(
            f"{key}: {file} is one file, and no .safetensors, which alone are read; convert it, if you trust who made "
            f'it, and give the new folder: StableDiffusionPipeline.from_single_file("{file.name}")'
            f'.save_pretrained("{file.stem}")'
        )
    names = weight_names(file, key)
    places = {name: places_of(name, cls) for name, cls in parts.items()}
    lacking = [part for part, known in places.items() if not any(name.startswith(known) for name in names)]
    if not lacking:
        return
    if any(re.search("lora|lycoris|hada|lokr", name, re.IGNORECASE) for name in names):
        raise InputError(f"{key}: {file} is a LoRA ({shown(names[0])}), which only changes a model: give that model")
    sought = {part: " or ".join(f"{place}*" for place in places[part]) for part in lacking}
    missing = [f"{part} ({where or f'{parts[part]} is read from no file'})" for part, where in sought.items()]
    raise InputError(
        f"{key}: {file} has no {', no '.join(missing)}: it is not a whole pipeline; take a file that has all of one, "
        "or the folder or Hub id of one"
    )


def places_of(part: str, cls: str = "") -> tuple[str, ...]:
    """What the names of a part's weights may begin with in one file; none where diffusers knows no such place."""
    if part.startswith("text_encoder") and cls.startswith("T5"):
        return _T5
    clip = not cls or cls.startswith("CLIPTextModel")
    return _PLACES.get(part, ()) if clip or not part.startswith("text_encoder") else ()


def check_denoiser(config: dict[str, Any], where: str) -> None:
    """Refuse a denoiser that does not read prompts in a way that is known."""
    name = config.get("_class_name")
    blocks = [
        config.get(f"{place}_type{s}") for place, s in (("down_block", "s"), ("mid_block", ""), ("up_block", "s"))
    ]
    unet = name == "UNet2DConditionModel" and config.get("cross_attention_dim")
    if not (name in TRANSFORMERS or (unet and (not any(blocks) or "CrossAttn" in str(blocks)))):
        raise InputError(
            f"{where}: this {name} has no cross-attention, where a subject is learned, or none that is known; use a "
            f"model with a cross-attention UNet, such as Stable Diffusion, or with {' or '.join(TRANSFORMERS)}"
        )


def components(index: dict[str, Any], where: str) -> dict[str, tuple[str, str]]:
    """The parts of a pipeline by name, with library and class. Raises InputError for code that came with the model, for
    classes that diffusers does not know, and where there is no denoiser."""
    if not isinstance(index.get("_class_name"), str):
        raise InputError(f"{where}: _class_name {shown(index.get('_class_name'))}: {_OWN_CODE}")
    found = {}
    for name, value in index.items():
        if name.startswith("_") or not isinstance(value, list) or value == [None, None]:
            continue
        if not re.fullmatch(r"\w+", name) or len(value) != 2 or not all(isinstance(v, str) for v in value):
            raise InputError(
                f"{where}: {shown(name)}: {shown(value)} is no part of a pipeline; download the model again"
            )
        if value[0] not in (*_STEMS, "stable_diffusion"):
            raise InputError(f"{where}: {name}: {value[0]!r}: {_OWN_CODE}")
        found[name] = (value[0], value[1])
    named = {name: cls for name, (library, cls) in found.items() if library == "diffusers"}
    for name, cls in {"_class_name": index["_class_name"], **named}.items():
        if diffusers_names() and cls not in diffusers_names():
            raise InputError(
                f"{where}: {name}: {cls!r} is no class of the installed diffusers; update it, or use another model"
            )
    if not set(DENOISERS) & set(found):
        raise InputError(f"{where}: no component named {' or '.join(DENOISERS)}; is this a text-to-image pipeline?")
    return found


@cache
def diffusers_names() -> frozenset[str]:
    """Names that diffusers exports, read from its text: importing it takes seconds."""
    spec = find_spec("diffusers")
    return frozenset(re.findall(r'"(\w+)"', Path(spec.origin).read_text())) if spec else frozenset()


@cache
def attention_names() -> tuple[str, ...]:
    """Attention back ends of the installed diffusers, by its text, without those whose code comes from the Hub."""
    spec = find_spec("diffusers")
    path = spec and Path(spec.origin).parent / "models" / "attention_dispatch.py"
    if not path or not path.is_file():
        return ()
    listed = path.read_text().partition("class AttentionBackendName")[2].partition("\nclass ")[0]
    return tuple(name for name in re.findall(r'^    \w+ = "(\w+)"', listed, re.M) if not name.endswith("_hub"))


def check_encoder(folder: Path, key: str) -> None:
    """Refuse a folder that is not a model of transformers in safetensors."""
    if not (folder / "config.json").is_file():
        raise SettingsError(f"{key}: {folder} has no config.json; give the folder of a transformers model")
    check_config(folder, key)
    check_weights(folder, key, "transformers")
    if not (folder / "preprocessor_config.json").is_file():
        raise InputError(f"{key}: {folder} has no preprocessor_config.json, which says how it wants its images")


def check_config(folder: Path, key: str) -> None:
    """Refuse one model that brings code."""
    if "auto_map" in read_json(folder / "config.json"):
        raise InputError(f"{key}: {folder}/config.json: auto_map: {_OWN_CODE}")


def check_weights(folder: Path, key: str, library: str, variant: str | None = None) -> None:
    """Refuse one model whose weights are missing, pickled or cut off."""
    stem = _STEMS.get(library, "model")
    middle = f".{variant}" if variant else ""
    whole, index = folder / f"{stem}{middle}.safetensors", folder / f"{stem}.safetensors.index{middle}.json"
    if whole.is_file():
        weight_names(whole, key)
    elif index.is_file():
        listed = read_json(index).get("weight_map")
        if not isinstance(listed, dict) or not listed:
            raise InputError(f"{key}: {index}: it lists no weights; download the model again")
        for name in sorted({str(name) for name in listed.values()}):
            if Path(name).name != name:
                raise InputError(f"{key}: {index}: {name!r} leaves its folder; download the model again")
            weight_names(folder / name, f"{key}: {index}")
    else:
        raise InputError(_no_weights(folder, key, whole.name, "AutoModel" if key != "model" else "DiffusionPipeline"))


def _no_weights(folder: Path, key: str, wanted: str, loader: str) -> str:
    files = sorted(p.name for p in folder.iterdir())
    if pickled := [name for name in files if name.endswith(_PICKLED)]:
        return (
            f"{key}: {folder}: {pickled[0]} is a pickle, which can run any code, and is not read. Take the model's "
            "safetensors, or convert it where you trust it: "
            f'{loader}.from_pretrained("old", use_safetensors=False).save_pretrained("new")'
        )
    others = [name for name in files if name.endswith(".safetensors")]
    mend = f"rename {others[0]}" if len(others) == 1 else "download the model again"
    return f"{key}: {folder}: no {wanted}; {mend}"


def weight_names(path: Path, key: str) -> list[str]:
    """Names of the tensors of a safetensors file, by its header. Raises InputError."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(f"{key}: {path}: no such file; download the model again")
    try:
        with safe_open(path, "numpy") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise InputError(f"{key}: {path}: broken safetensors ({error}); download it again") from error


def shapes_of(path: Path, places: Iterable[str] = ("",)) -> dict[str, list[int]]:
    """Shapes of a safetensors file's tensors by name, of those alone whose names begin with one of `places`."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    shapes = {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
    return {name: shape for name, shape in shapes.items() if name.startswith(tuple(places))}
