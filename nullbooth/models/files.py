"""Checks of the files of a model, without reading its weights; imports neither torch nor diffusers."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nullbooth.errors import InputError, SettingsError
from nullbooth.inputs.text import shown
from nullbooth.models.drawable import check_class, check_given, check_roles
from nullbooth.models.families import FAMILIES, known
from nullbooth.models.parts import (
    LIBRARIES,
    UNUSED,
    check_part,
    check_words,
    has_variant,
    kind_of,
    pipeline_files,
    read_json,
    weight_files,
    weights_name,
)

DENOISERS = ("unet", "transformer")
# Image encoders that read pictures of one size only; those that mask random parts of them.
_FIXED = ("clip", "clip_vision_model", "siglip", "siglip_vision_model", "vit", "deit")
_RANDOM = ("vit_mae",)
_PICKLED = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle")
# Prefixes of the weights of each part in a single file, as named in the original repositories; those of T5 differ.
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
# Parts of every pipeline, checked if its configs are not on this machine.
_LEAST = {"unet": "", "vae": "", "text_encoder": ""}
_OWN_CODE = "a model with code of its own is not run; use one whose classes are in diffusers or transformers"


def is_local(model: str, key: str, revision: str | None = None) -> bool:
    """Return True for a folder, False for a Hub id. Raises SettingsError for anything else; `key` is the setting."""
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
            f"{key}: {shown(model)} is not a folder, {path.parent} has {others}; for a model on the Hub, set its "
            "revision too"
        )
    return False


def check_pipeline(folder: Path, key: str = "model", variant: str | None = None, file: Path | None = None) -> None:
    """Refuse a folder that is not a text-to-image pipeline of diffusers in safetensors with a known denoiser.

    file: single file with the weights; only configs and tokenizers of `folder` are then checked. Raises InputError.
    """
    if not (folder / "model_index.json").is_file():
        raise SettingsError(f"{key}: {folder} has no model_index.json; give the folder of a diffusers pipeline")
    parts = components(read_json(folder / "model_index.json"), f"{key}: {folder}/model_index.json")
    [denoiser] = [name for name in DENOISERS if name in parts][:1]
    if variant and (folder / denoiser).is_dir() and not has_variant(folder / denoiser, variant):
        raise SettingsError(f"variant: {folder / denoiser} has no weights of the variant {variant!r}; remove it")
    check_drawn(folder, key)
    for name, (library, cls) in parts.items():
        part = folder / name
        check_part(part, cls, key)
        if kind_of(cls) == "model":
            check_config(part, key)
            if file is None:
                check_weights(part, key, library, variant if has_variant(part, variant) else None)
    if file:
        check_file(file, {name: cls for name, (_, cls) in parts.items() if kind_of(cls) == "model"})
    check_roles(parts, read_json(folder / denoiser / "config.json"), f"{key}: {folder}/model_index.json")
    for name, (_, cls) in parts.items():
        if kind_of(cls) == "tokenizer":
            encoder = name.replace("tokenizer", "text_encoder")
            config = read_json(folder / encoder / "config.json") if encoder in parts else {}
            check_words(folder / name, key, config.get("vocab_size"))


def check_drawn(folder: Path, key: str) -> None:
    """Refuse a pipeline that draws from more than a prompt, by its index and existing configs. Raises InputError."""
    index = folder / "model_index.json"
    parts = components(found := read_json(index), f"{key}: {index}")
    denoiser = next(name for name in DENOISERS if name in parts)
    configs = [path if (path := folder / name / "config.json").is_file() else None for name in (denoiser, "vae")]
    config, vae = (read_json(path) if path else {} for path in configs)
    where = f"{key}: {folder}/{denoiser}/config.json"
    if config:
        check_denoiser(config, where)
    check_given(config, vae, where)
    check_class(found["_class_name"], f"{key}: {index}")


def check_file(file: Path, parts: Mapping[str, str] = _LEAST, key: str = "model") -> None:
    """Refuse a single file that is not safetensors or lacks weights of `parts` (classes by name). Raises InputError."""
    if file.suffix != ".safetensors":
        raise SettingsError(
            f"{key}: {file} is one file, but not a .safetensors file; convert it, if you trust who made it, and give "
            f'the new folder: StableDiffusionPipeline.from_single_file("{file.name}").save_pretrained("{file.stem}")'
        )
    names = weight_names(file, key)
    places = {name: places_of(name, cls) for name, cls in parts.items()}
    lacking = [part for part, known in places.items() if not any(name.startswith(known) for name in names)]
    if not lacking:
        return
    if any(re.search("lora|lycoris|hada|lokr", name, re.IGNORECASE) for name in names):
        raise InputError(
            f"{key}: {file} is a LoRA ({shown(names[0])}), which only changes a model; give the base model"
        )
    sought = {part: " or ".join(f"{place}*" for place in places[part]) for part in lacking}
    missing = [f"{part} ({where or f'{parts[part]} cannot be read from one'})" for part, where in sought.items()]
    raise InputError(
        f"{key}: {file} has no {', no '.join(missing)}: it is not a whole pipeline; give a file with all parts, or the "
        "folder or Hub id of a pipeline"
    )


def places_of(part: str, cls: str = "") -> tuple[str, ...]:
    """Return the prefixes of a part's weights in a single file; none for parts that diffusers cannot read from one."""
    if part.startswith("text_encoder") and cls.startswith("T5"):
        return _T5
    clip = not cls or cls.startswith("CLIPTextModel")
    return _PLACES.get(part, ()) if clip or not part.startswith("text_encoder") else ()


def check_denoiser(config: dict[str, Any], where: str) -> None:
    """Refuse a denoiser of an unknown family, or a UNet without cross-attention. Raises InputError."""
    name = config.get("_class_name", "denoiser")
    blocks = [
        config.get(f"{place}_type{s}") for place, s in (("down_block", "s"), ("mid_block", ""), ("up_block", "s"))
    ]
    reads = config.get("cross_attention_dim") and (not any(blocks) or "CrossAttn" in str(blocks))
    if name not in FAMILIES or (FAMILIES[name].part == "unet" and not reads):
        raise InputError(
            f"{where}: this {name} has no known cross-attention, where subjects are learned; use {known()}"
        )


def loaded_files(folder: Path, variant: str | None = None, weights: bool = True) -> list[Path]:
    """Return the files of a pipeline folder that are loaded. weights: include files of weights. Raises InputError."""
    index = folder / "model_index.json"
    parts = components(read_json(index), f"model: {index}")
    return list(pipeline_files(folder, parts, variant, weights))


def components(index: dict[str, Any], where: str) -> dict[str, tuple[str, str]]:
    """Return library and class of the parts of a pipeline that are loaded, by name. index: model_index.json.

    Raises InputError for code that comes with the model, for classes unknown to the libraries, and without a denoiser.
    """
    if not isinstance(index.get("_class_name"), str):
        raise InputError(f"{where}: _class_name {shown(index.get('_class_name'))}: {_OWN_CODE}")
    found = {}
    for name, value in index.items():
        if name.startswith("_") or not isinstance(value, list) or value == [None, None]:
            continue
        if name in UNUSED:
            continue
        if not re.fullmatch(r"\w+", name) or len(value) != 2 or not all(isinstance(v, str) for v in value):
            raise InputError(
                f"{where}: {shown(name)}: {shown(value)} is not a part of a pipeline; download the model again"
            )
        if value[0] not in LIBRARIES:
            raise InputError(f"{where}: {name}: {value[0]!r}: {_OWN_CODE}")
        found[name] = (value[0], value[1])
    named = {name: cls for name, (library, cls) in found.items() if library == "diffusers"}
    for name, cls in {"_class_name": index["_class_name"], **named}.items():
        if diffusers_names() and cls not in diffusers_names():
            raise InputError(
                f"{where}: {name}: {cls!r} is not in the installed diffusers; update it, or use another model"
            )
    for name, (library, cls) in found.items():
        if library == "transformers" and not transformers_has(cls):
            newer = cls.replace("FeatureExtractor", "ImageProcessor")
            hint = f"replace it by {newer!r}" if newer != cls else "update it, or use another model"
            raise InputError(f"{where}: {name}: {cls!r} is not in the installed transformers; {hint}")
    if not set(DENOISERS) & set(found):
        raise InputError(f"{where}: no component named {' or '.join(DENOISERS)}; is this a text-to-image pipeline?")
    return found


@cache
def diffusers_names() -> frozenset[str]:
    """Return the names that diffusers exports, from its source text, because importing it takes seconds."""
    spec = find_spec("diffusers")
    return (
        frozenset(re.findall(r'"(\w+)"', Path(str(spec.origin)).read_text(encoding="utf-8"))) if spec else frozenset()
    )


@cache
def transformers_has(cls: str) -> bool:
    """Check that transformers defines a class, in the source text of the models whose names the class begins with."""
    spec, name = find_spec("transformers"), cls.removesuffix("Fast")
    root = spec and Path(str(spec.origin)).parent
    if not root or not (root / "models").is_dir():
        return True
    folders = [path for path in (root / "models").iterdir() if cls.lower().startswith(path.name.replace("_", ""))]
    defined = re.compile(rf"\b({re.escape(cls)}|{re.escape(name)})\b")
    files = [root / "__init__.py", *(path for folder in folders for path in folder.glob("*.py"))]
    return any(defined.search(path.read_text(encoding="utf-8")) for path in files)


@cache
def attention_names() -> tuple[str, ...]:
    """Return the attention back ends of the installed diffusers, from its source text, without those from the Hub."""
    spec = find_spec("diffusers")
    path = spec and Path(str(spec.origin)).parent / "models" / "attention_dispatch.py"
    if not path or not path.is_file():
        return ()
    listed = path.read_text(encoding="utf-8").partition("class AttentionBackendName")[2].partition("\nclass ")[0]
    return tuple(name for name in re.findall(r'^    \w+ = "(\w+)"', listed, re.M) if not name.endswith("_hub"))


def check_encoder(folder: Path, key: str) -> None:
    """Refuse a folder that is not an image encoder of transformers in safetensors. Raises InputError."""
    if not (folder / "config.json").is_file():
        raise SettingsError(f"{key}: {folder} has no config.json; give the folder of a transformers model")
    check_config(folder, key)
    check_weights(folder, key, "transformers")
    if not (folder / "preprocessor_config.json").is_file():
        raise InputError(f"{key}: {folder} has no preprocessor_config.json; download the model again")
    if (folder / "heads.json").is_file():
        weight_names(folder / "heads.safetensors", key)
    config, about = read_json(folder / "config.json"), read_json(folder / "preprocessor_config.json")
    named = [name for name in ("vision_config", "vision_config_dict") if isinstance(config.get(name), dict)]
    vision = config[named[0]] if named else config
    if not named and not {"image_size", "patch_size", "num_channels"} & set(vision):
        raise SettingsError(
            f"{key}: {folder}/config.json: model_type {shown(config.get('model_type'))} takes no images; give an image "
            "encoder such as openai/clip-vit-base-patch32 or facebook/dinov2-base"
        )
    if key == "evaluate.clip":
        check_texts(folder, config, key)
    if config.get("model_type") in _RANDOM:
        raise SettingsError(
            f"{key}: {folder}/config.json: model_type {config['model_type']!r} reads a random part of each picture, so "
            "that measurements cannot be repeated; give another image encoder, such as facebook/dinov2-base"
        )
    size, own = picture_size(about, where := f"{key}: {folder}/preprocessor_config.json"), vision.get("image_size", 224)
    if config.get("model_type") in _FIXED and isinstance(own, int) and size != own:
        raise InputError(
            f"{where}: pictures of {size} pixels, but config.json has image_size {own}, the only size that the model "
            "reads; the files do not belong together: download the model again"
        )


def check_texts(folder: Path, config: dict[str, Any], key: str) -> None:
    """Refuse an encoder without a text encoder and its vocabulary. Raises InputError."""
    named = [name for name in ("text_config", "text_config_dict") if isinstance(config.get(name), dict)]
    if not named:
        raise SettingsError(
            f"{key}: {folder}/config.json: model_type {shown(config.get('model_type'))} has no text encoder; give a "
            "CLIP or SigLIP model, such as openai/clip-vit-base-patch32"
        )
    check_words(folder, key, config[named[0]].get("vocab_size"))
    about = folder / "tokenizer_config.json"
    if about.is_file() and read_json(about).get("tokenizer_class") == "SiglipTokenizer":
        missing = [package for package in ("sentencepiece", "google.protobuf") if not _installed(package)]
        if missing:
            package = {"google.protobuf": "protobuf"}.get(missing[0], missing[0])
            raise SettingsError(
                f"{key}: {folder}: its SiglipTokenizer needs a package that is not installed: pip install {package}"
            )


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # of the parent package
        return False


def picture_size(about: dict[str, Any], where: str) -> int:
    """Return the side in pixels of the square pictures that an encoder takes. about: its preprocessor_config.json.

    Reads all forms that transformers has written: a number, height and width, or the shortest edge; those of the crop
    if there is one. Raises InputError, beginning with `where`, for other sizes, and as `normalisation`.
    """
    normalisation(about, where)
    crop = about.get("do_center_crop", True) and about.get("crop_size") is not None
    size = about.get("crop_size" if crop else "size")
    side = size.get("height", size.get("shortest_edge")) if isinstance(size, dict) else size
    oblong = isinstance(size, dict) and size.get("width", side) != side
    if not isinstance(side, int) or isinstance(side, bool) or side < 1 or oblong:
        raise InputError(
            f"{where}: {'crop_size' if crop else 'size'} {shown(size)} is not a size of square pictures; download the "
            "model again"
        )
    return side


def normalisation(about: dict[str, Any], where: str) -> tuple[list[float], list[float]]:
    """Return the means and standard deviations by which an encoder normalises colours in [0, 1].

    Raises InputError, beginning with `where`, unless they are three numbers each and all deviations are positive.
    """
    if about.get("do_normalize") is False:
        return [0.0] * 3, [1.0] * 3
    found = []
    for name in ("image_mean", "image_std"):
        value, least = about.get(name), 0.0 if name == "image_std" else -math.inf
        numbers = isinstance(value, list) and [v for v in value if type(v) in (int, float) and least < v < math.inf]
        if not numbers or len(numbers) != 3 or numbers != value:
            raise InputError(f"{where}: {name} {shown(value)}: needs three numbers; download the model again")
        found.append([float(v) for v in numbers])
    return found[0], found[1]


def check_config(folder: Path, key: str) -> None:
    """Refuse a part of a model, or an encoder, that brings code of its own. Raises InputError."""
    if "auto_map" in read_json(folder / "config.json"):
        raise InputError(f"{key}: {folder}/config.json: auto_map: {_OWN_CODE}")


def check_weights(folder: Path, key: str, library: str, variant: str | None = None) -> None:
    """Refuse a part of a model, or an encoder, whose weights are missing, pickled or broken. Raises InputError."""
    try:
        files = weight_files(folder, library, variant)
    except InputError as error:
        raise InputError(f"{key}: {error}") from error
    if not files:
        loader = "AutoModel" if key != "model" else "DiffusionPipeline"
        raise InputError(_no_weights(folder, key, weights_name(library, variant), loader))
    shards = [path for path in files if path.suffix == ".safetensors"]
    for path in shards:
        weight_names(path, f"{key}: {files[0]}" if len(files) > 1 else key)


def _no_weights(folder: Path, key: str, wanted: str, loader: str) -> str:
    files = sorted(p.name for p in folder.iterdir())
    if pickled := [name for name in files if name.endswith(_PICKLED)]:
        return (
            f"{key}: {folder}: {pickled[0]} is a pickle, which can run any code, and is not read. Use the model's "
            "safetensors, or convert it if you trust it: "
            f'{loader}.from_pretrained("old", use_safetensors=False).save_pretrained("new")'
        )
    others = [name for name in files if name.endswith(".safetensors")]
    hint = f"rename {others[0]}" if len(others) == 1 else "download the model again"
    return f"{key}: {folder}: no {wanted}; {hint}"


def weight_names(path: Path, key: str) -> list[str]:
    """Return the names of the tensors in a safetensors file, from its header. Raises InputError."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(f"{key}: {path}: no such file; download the model again")
    try:
        with safe_open(path, "numpy") as file:
            return list(file.keys())
    except (SafetensorError, OSError) as error:
        raise InputError(f"{key}: {path}: broken safetensors ({error}); download it again") from error


def shapes_of(path: Path, places: Iterable[str] = ("",)) -> dict[str, list[int]]:
    """Return the shapes of those tensors in a safetensors file whose names begin with one of `places`, by name."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    shapes = {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
    return {name: shape for name, shape in shapes.items() if name.startswith(tuple(places))}
