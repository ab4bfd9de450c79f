"""Loading of diffusers pipelines, or of their denoiser alone. Imports are late, so that small jobs start fast."""

import functools
import gc
import importlib
import inspect
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, fields
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from nullbooth.errors import InputError
from nullbooth.models.drawable import check_class, check_given
from nullbooth.models.families import Family, family_of
from nullbooth.models.files import DENOISERS, check_file, components, places_of, shapes_of
from nullbooth.models.identity import CONFIGS, known_configs
from nullbooth.models.parts import UNUSED, has_variant, lacking_words, read_json
from nullbooth.models.precision import DTYPES

if TYPE_CHECKING:
    from diffusers import ModelMixin

MOST_SAMPLES = {"cuda": 64, "cpu": 16}  # per pass: more are no faster, and a CPU does not report a lack of memory


@dataclass(frozen=True)
class ModelSource:
    """Location of a model, and options of loading it.

    model: folder, Hub id or single file. revision: of a Hub model, or of `model_config`. variant: of the files, such as
    `fp16`. model_config: folder or Hub id with configs and tokenizers of a single-file model; None for those that
    diffusers knows. weights: dtype of the loaded weights, `fp32`, `bf16` or `fp16`; the VAE stays float32.
    attention: as in `set_attention`.
    """

    model: str
    revision: str | None = None
    variant: str | None = None
    model_config: str | None = None
    weights: str = "fp32"
    attention: str | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "ModelSource":
        """Return the source that the settings name."""
        return cls(**{field.name: config[field.name] for field in fields(cls)})

    @property
    def file(self) -> Path | None:
        """Path of a single-file model, else None."""
        return Path(self.model) if Path(self.model).is_file() else None

    def config_folder(self) -> Path:
        """Return the folder with configs and tokenizers of a single-file model, downloaded if it is on the Hub."""
        configs = self.model_config or known_configs(Path(self.model))
        if Path(configs).is_dir():
            return Path(configs)
        from huggingface_hub import snapshot_download

        patterns = [f"*{suffix}" for suffix in CONFIGS]
        return Path(snapshot_download(configs, revision=self.revision, allow_patterns=patterns))


def load_pipeline(source: ModelSource, device: torch.device, offload: bool = False) -> Any:
    """Load a text-to-image pipeline on `device`: safetensors only, without progress bars, safety checker and watermark.

    offload: keep the parts on the CPU, and move each to the GPU while it works. Raises InputError if a part is
    incomplete or damaged, or if the model brings code of its own.
    """
    if source.file:
        pipeline = _pipeline_of_file(source.file, source.config_folder(), source.weights)
    else:
        pipeline = _pipeline_of_folder(source)
    _check_drawing(pipeline, source.model)
    _without_float16(pipeline.vae)
    if getattr(pipeline, "watermark", None) is not None:  # of XL, if its package is installed; not part of the model
        pipeline.watermark = None
    pipeline.set_progress_bar_config(disable=True)
    set_attention(denoiser_of(pipeline), source.attention)
    if offload and device.type != "cpu":
        pipeline.enable_model_cpu_offload(device=device)
        return pipeline
    return pipeline.to(device)


def _pipeline_of_folder(source: ModelSource) -> Any:
    from diffusers import DiffusionPipeline

    model, revision, dtype = source.model, source.revision, DTYPES[source.weights]
    parts = _classes(model, revision)
    accepted = inspect.signature(pipeline_class(model, revision).__init__).parameters
    left_out: dict[str, Any] = {name: None for name in UNUSED if name in accepted}
    left_out |= {"requires_safety_checker": False} if "requires_safety_checker" in accepted else {}
    loaded = {
        name: _load(source, name, cls, torch.float32 if name == "vae" else dtype)
        for name, cls in parts.items()
        if issubclass(cls, nn.Module)
    }
    return DiffusionPipeline.from_pretrained(
        model,
        revision=revision,
        torch_dtype=dtype,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=Path(model).exists(),
        **left_out,
        **loaded,
    )


def _check_drawing(pipeline: Any, model: str) -> None:
    """Refuse a pipeline that draws from more than a prompt, or whose tokenizers lack words. Raises InputError."""
    where, vae = f"model: {model}", getattr(pipeline, "vae", None)
    if vae is None:
        raise InputError(f"{where}: no vae: learning from pictures needs one; use a latent diffusion model")
    check_given(denoiser_of(pipeline).config, vae.config, where)
    check_class(type(pipeline).__name__, where)
    for name, tokenizer in pipeline.components.items():
        encoder = getattr(pipeline, name.replace("tokenizer", "text_encoder"), None)
        if name.startswith("tokenizer") and tokenizer is not None and encoder is not None:
            rows = encoder.get_input_embeddings().num_embeddings
            if lacking_words(len(tokenizer), rows):
                raise InputError(
                    f"{where}: {name} has {len(tokenizer)} tokens, but its text encoder has {rows}: its vocabulary is "
                    "missing or cut off; download the model again"
                )


def load_denoiser(source: ModelSource, device: torch.device) -> nn.Module:
    """Load the denoiser alone, frozen and in evaluation mode. Raises as `load_pipeline`."""
    file, dtype = source.file, DTYPES[source.weights]
    folder = source.config_folder() if file else None
    parts = _classes(str(folder or source.model), source.revision, DENOISERS)
    name = next(name for name in DENOISERS if name in parts)
    if file and folder:
        check_file(file, {name: parts[name].__name__})
        module = _from_file(parts[name], file, folder, subfolder=name, torch_dtype=dtype)
        _check_part(name, module, file)
    else:
        module = _load(source, name, parts[name], dtype)
    set_attention(module, source.attention)
    return module.to(device).eval().requires_grad_(False)


def _pipeline_of_file(file: Path, configs: Path, weights: str) -> Any:
    parts = _classes(str(configs), None)
    # Check all parts: diffusers would look for missing ones among the configs, pickles included.
    check_file(file, {name: cls.__name__ for name, cls in parts.items() if issubclass(cls, nn.Module)})
    precise = {}
    if weights != "fp32":  # the VAE stays float32
        precise["vae"] = _from_file(parts["vae"], file, configs, subfolder="vae", torch_dtype=torch.float32)
    cls = pipeline_class(str(configs))
    left_out = {name: None for name in UNUSED if name in inspect.signature(cls.__init__).parameters}
    pipeline = _from_file(cls, file, configs, torch_dtype=DTYPES[weights], **left_out, **precise)
    for name, module in pipeline.components.items():
        if isinstance(module, nn.Module):
            _check_part(name, module.eval(), file)  # diffusers leaves dropout of T5 on
    return pipeline


def _from_file(cls: Any, file: Path, configs: Path, **options: Any) -> Any:
    """Call `cls.from_single_file` of a pipeline or a part. Raises InputError."""
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    where, hint = f"model: {file}: {cls.__name__}", f"is it complete, and of the kind that {configs} describes?"
    if not hasattr(cls, "from_single_file"):
        raise InputError(f"{where}: diffusers cannot read it from one file; give a pipeline's folder or Hub id")
    try:
        return cls.from_single_file(str(file), config=str(configs), local_files_only=True, **options)
    except NotImplementedError as error:
        if "meta tensor" not in str(error):  # torch's message for weights that were never filled
            raise
        raise InputError(f"{where}: some of its weights are missing; {hint}") from error
    except (SingleFileComponentError, LookupError, ValueError, RuntimeError, OSError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0].partition("If you want")[0]
        raise InputError(f"{where}: {reason} ({hint})") from error


def _check_part(name: str, module: Any, file: Path) -> None:
    """Refuse a part whose weights are not all in the file, or a denoiser with others in it. Raises InputError."""
    where, hint = f"model: {file}: {name}", "the file is damaged, or not of the kind that model_config describes"
    if hasattr(module, "tie_weights"):  # weights that a text encoder has twice may be in the file once
        module.tie_weights()
    check_numbers(module, where, hint)
    if name in DENOISERS:
        there = sum(map(prod, shapes_of(file, places_of(name)).values()))
        if there != (known := sum(weight.numel() for weight in module.state_dict().values())):
            raise InputError(f"{where}: {there:,} numbers in the file, {known:,} in the model; {hint}")


def pipeline_class(model: str, revision: str | None = None) -> Any:
    """Return the class of a pipeline by its model_index.json. Raises InputError as `components`."""
    import diffusers

    path = _index(model, revision)
    index = read_json(path)
    components(index, f"model: {path}")
    return getattr(diffusers, index["_class_name"])


def _index(model: str, revision: str | None) -> Path:
    index = Path(model) / "model_index.json"
    if index.is_file():
        return index
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(model, "model_index.json", revision=revision))


def _without_float16(vae: "ModelMixin") -> None:
    """Make a VAE accept half-precision inputs, and compute in its own dtype where autocast would use float16, in which
    some VAEs return NaN (that of Stable Diffusion XL)."""

    def guarded(run: Callable) -> Callable:
        @functools.wraps(run)
        def wrapper(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            kind = x.device.type
            float16 = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
            with torch.autocast(kind, enabled=False) if float16 else nullcontext():
                return run(x.to(vae.dtype), *args, **kwargs)

        return wrapper

    vae.encode, vae.decode = guarded(vae.encode), guarded(vae.decode)


def set_attention(denoiser: "ModelMixin", backend: str | None) -> None:
    """Set the attention back end of a denoiser by its name in diffusers; None keeps the default.

    Raises InputError if diffusers offers no choice for this denoiser, or if the back end is unknown or not installed.
    """
    if backend is None:
        return
    if not any(hasattr(getattr(module, "processor", None), "_attention_backend") for module in denoiser.modules()):
        raise InputError(
            f"attention: {backend}: diffusers has no choice of back ends for {type(denoiser).__name__}; set it to null"
        )
    try:
        denoiser.set_attention_backend(backend)
    except (ValueError, RuntimeError, ImportError) as error:
        raise InputError(f"attention: {backend}: {error}") from error


def device_of(pipeline: Any) -> torch.device:
    """Return the device that a pipeline computes on, which with offloading is not the one that its parts are on."""
    return pipeline._execution_device


def beside_denoiser(pipeline: Any) -> dict[str, nn.Module]:
    """Return the parts of a pipeline that have weights, except the denoiser, by name."""
    denoiser = denoiser_of(pipeline)
    parts = pipeline.components.items()
    return {name: part for name, part in parts if isinstance(part, nn.Module) and part is not denoiser}


def move_beside(pipeline: Any, device: torch.device | str) -> None:
    """Move all parts but the denoiser to a device, and free unused memory."""
    for part in beside_denoiser(pipeline).values():
        part.to(device)
    _free()


def denoiser_alone(pipeline: Any, device: torch.device, keep: bool) -> nn.Module:
    """Return the denoiser of a pipeline, frozen, on `device`, without offloading. All other parts are moved to the CPU
    if `keep`, else removed from the pipeline."""
    pipeline.remove_all_hooks()
    if keep:
        move_beside(pipeline, "cpu")
    else:
        pipeline.register_modules(**dict.fromkeys(beside_denoiser(pipeline)))
        _free()
    return denoiser_of(pipeline).to(device).requires_grad_(False)


def _free() -> None:
    """Free unused memory, on the GPU for other jobs too."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _classes(model: str, revision: str | None, wanted: Collection[str] | None = None) -> dict[str, type]:
    """Return the classes of a pipeline's parts in diffusers and transformers, by name. wanted: names of parts, or None
    for all. Raises InputError as `components`."""
    index = _index(model, revision)
    found: dict[str, Any] = {}
    for name, (library, cls) in components(read_json(index), f"model: {index}").items():
        if library in ("diffusers", "transformers") and (wanted is None or name in wanted):
            found[name] = getattr(importlib.import_module(library), cls, None)
            if found[name] is None:
                raise InputError(f"model: {index}: {name}: {cls!r} is not in the installed {library}; update it")
    return found


def _load(source: ModelSource, name: str, cls: type, dtype: torch.dtype) -> nn.Module:
    """Load one part of a pipeline. Raises InputError as `load_whole`."""
    model, variant = source.model, source.variant
    if Path(model).is_dir() and not has_variant(Path(model) / name, variant):
        variant = None  # not every part has the variant
    options: dict[str, Any] = {"subfolder": name, "revision": source.revision, "variant": variant}
    options["torch_dtype" if _of_diffusers(cls) else "dtype"] = dtype
    return load_whole(cls, model, f"model: {model}/{name}", **options)


def _of_diffusers(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "diffusers"


def load_whole(cls: Any, model: str, where: str, optional: tuple[str, ...] = (), **options: Any) -> Any:
    """Call `cls.from_pretrained`, from safetensors only. Raises InputError for missing weights, which the libraries
    would fill at random, and for weights of another shape or with NaN or infinite entries.

    Unknown weights raise only for classes of diffusers, because text encoders are often taken from larger models.
    optional: children that become None if the files have none of their weights. where: beginning of messages."""
    hint = "its files are damaged or do not belong together: download the model again"
    if not _of_diffusers(cls):
        options["ignore_mismatched_sizes"] = True  # reported below
    try:
        module, said = cls.from_pretrained(model, use_safetensors=True, output_loading_info=True, **options)
    except (ValueError, RuntimeError, OSError, SafetensorError) as error:
        raise InputError(f"{where}: {str(error).strip().partition('If you want')[0]} ({hint})") from error
    for name in optional:
        own = {key for key in module.state_dict() if key.startswith(f"{name}.")}
        if own and own <= set(said["missing_keys"]):
            setattr(module, name, None)
            said["missing_keys"] = set(said["missing_keys"]) - own
    problems = {"missing_keys": "is missing", "mismatched_keys": "has another shape"}
    problems |= {"unexpected_keys": "is not a weight of this model"} if _of_diffusers(type(module)) else {}
    for kind, problem in problems.items():
        if names := sorted(str(key[0] if isinstance(key, tuple) else key) for key in said[kind]):
            raise InputError(f"{where}: {names[0]} {problem} ({len(names)} such weights); {hint}")
    check_numbers(module, where, hint)
    return module


def check_numbers(module: nn.Module, where: str, hint: str) -> None:
    """Raise InputError if weights of a module are missing, or have NaN or infinite entries."""
    for name, weight in module.state_dict().items():
        if weight.is_meta:
            raise InputError(f"{where}: {name} is missing; {hint}")
        if not weight.sum(dtype=torch.float32).isfinite():
            raise InputError(f"{where}: {name} has NaN or infinite entries; {hint}")


def denoiser_of(pipeline: Any) -> "ModelMixin":
    """Return the UNet or transformer of a pipeline. Raises ValueError if it has neither."""
    for name in DENOISERS:
        if (module := getattr(pipeline, name, None)) is not None:
            return module
    raise ValueError(f"{type(pipeline).__name__} has no component named {' or '.join(DENOISERS)}")


def family(pipeline: Any) -> Family:
    """Return the family of a pipeline's denoiser. Raises InputError for an unknown class."""
    denoiser = denoiser_of(pipeline)
    return family_of(type(getattr(denoiser, "_orig_mod", denoiser)).__name__)  # the module inside torch.compile's


def fitting_batch(passes: Callable[[int], object], batch: int | None, most: int) -> int:
    """Return the number of samples per pass: `batch`, or if that is None, as many as fit in memory, up to `most`.

    passes: `passes(n)` runs n samples; after a lack of memory, half as many are tried.
    """
    if batch is not None:
        return batch
    from accelerate.utils import find_executable_batch_size  # not installed with the library alone

    kind = "cuda" if torch.cuda.is_available() else "cpu"

    @find_executable_batch_size(starting_batch_size=min(most, MOST_SAMPLES[kind]))
    def attempt(n: int) -> int:
        passes(n)
        return n

    found = attempt()
    print(f"{found} prompts per pass")
    return found


def latents_name(denoiser: nn.Module) -> str:
    """Return a denoiser's name for its noisy latents, the first argument of its forward pass."""
    return next(iter(inspect.signature(denoiser.forward).parameters))


def resolution_of(pipeline: Any) -> int:
    """Return the side of the model's own pictures in pixels."""
    side = denoiser_of(pipeline).config.get("sample_size") or pipeline.default_sample_size
    return side * pipeline.vae_scale_factor


def packed(pipeline: Any, latents: Tensor) -> Tensor:
    """Return latents `[n, c, h, w]` as the denoiser takes them: `[n, hw / 4, 4c]` for families that pack them."""
    pack = family(pipeline).pack
    return getattr(pipeline, pack)(latents, *latents.shape) if pack else latents
