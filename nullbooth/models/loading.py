"""Loading diffusers pipelines, or just their denoiser. Imports are late: a small job should start fast."""

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

MOST_SAMPLES = {"cuda": 64, "cpu": 16}  # in a pass: more gain nothing, and a CPU does not say when memory ends


@dataclass(frozen=True)
class ModelSource:
    """Where a model is, and how it is loaded.

    model: a folder, a Hub id or one file. revision: of a model on the Hub, or of `model_config`. variant: of the files,
    such as `fp16`. model_config: folder or Hub id with configs and tokenizers of a model in one file; None takes what
    diffusers knows for it. weights: type of the loaded weights, `fp32`, `bf16` or `fp16`; the VAE stays float32.
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
        """The file, for a model in one file."""
        return Path(self.model) if Path(self.model).is_file() else None

    def config_folder(self) -> Path:
        """Return the folder with configs and tokenizers of a model in one file, downloaded if it is on the Hub."""
        configs = self.model_config or known_configs(Path(self.model))
        if Path(configs).is_dir():
            return Path(configs)
        from huggingface_hub import snapshot_download

        patterns = [f"*{suffix}" for suffix in CONFIGS]
        return Path(snapshot_download(configs, revision=self.revision, allow_patterns=patterns))


def load_pipeline(source: ModelSource, device: torch.device, offload: bool = False) -> Any:
    """Load a text-to-image pipeline on `device`: safetensors only, silent, without safety checker and watermark.

    offload: keep the parts on the CPU, and move each to the GPU while it works. Raises InputError if a part is
    incomplete or damaged, or if the model brings code of its own.
    """
    if source.file:
        pipeline = _pipeline_of_file(source.file, source.config_folder(), source.weights)
    else:
        pipeline = _pipeline_of_folder(source)
    _check_drawing(pipeline, source.model)
    _without_float16(pipeline.vae)
    if getattr(pipeline, "watermark", None) is not None:  # XL's, where its package is installed: no part of the model
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
    """Refuse a pipeline that draws from more than a prompt, or whose tokenizers know no words. Raises InputError."""
    where, vae = f"model: {model}", getattr(pipeline, "vae", None)
    if vae is None:
        raise InputError(f"{where}: no vae: learning from pictures needs one; take a latent diffusion model")
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
    # All of them: diffusers would look for others among the configs, pickles included.
    check_file(file, {name: cls.__name__ for name, cls in parts.items() if issubclass(cls, nn.Module)})
    precise = {}
    if weights != "fp32":  # but of the VAE
        precise["vae"] = _from_file(parts["vae"], file, configs, subfolder="vae", torch_dtype=torch.float32)
    cls = pipeline_class(str(configs))
    left_out = {name: None for name in UNUSED if name in inspect.signature(cls.__init__).parameters}
    pipeline = _from_file(cls, file, configs, torch_dtype=DTYPES[weights], **left_out, **precise)
    for name, module in pipeline.components.items():
        if isinstance(module, nn.Module):
            _check_part(name, module.eval(), file)  # T5 would come with dropout
    return pipeline


def _from_file(cls: Any, file: Path, configs: Path, **options: Any) -> Any:
    """`cls.from_single_file`, of a pipeline or a part of one. Raises InputError."""
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    where, mend = f"model: {file}: {cls.__name__}", f"is it whole, and of the kind that {configs} describes?"
    if not hasattr(cls, "from_single_file"):
        raise InputError(f"{where}: diffusers reads none from one file; give the folder or Hub id of the pipeline")
    try:
        return cls.from_single_file(str(file), config=str(configs), local_files_only=True, **options)
    except NotImplementedError as error:
        if "meta tensor" not in str(error):  # which is what torch says of weights that were never filled
            raise
        raise InputError(f"{where}: some of its weights are missing; {mend}") from error
    except (SingleFileComponentError, LookupError, ValueError, RuntimeError, OSError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0].partition("If you want")[0]
        raise InputError(f"{where}: {reason} ({mend})") from error


def _check_part(name: str, module: Any, file: Path) -> None:
    """Refuse a part of a pipeline that its file does not wholly have, or a denoiser of which it has more."""
    where, mend = f"model: {file}: {name}", "the file is damaged, or not of the kind that model_config describes"
    if hasattr(module, "tie_weights"):  # what is twice in a text encoder may be once in the file
        module.tie_weights()
    check_numbers(module, where, mend)
    if name in DENOISERS:
        there = sum(map(prod, shapes_of(file, places_of(name)).values()))
        if there != (known := sum(weight.numel() for weight in module.state_dict().values())):
            raise InputError(f"{where}: {there:,} numbers in the file, {known:,} in the model; {mend}")


def pipeline_class(model: str, revision: str | None = None) -> Any:
    """The class of a pipeline by its index. Raises InputError as `_classes`."""
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
    """Let a VAE take what half-precision denoisers give it, and work in float32 where autocast would have float16, in
    which some give NaN (Stable Diffusion XL's)."""

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
    """Let a denoiser attend by another of diffusers' back ends; None leaves its choice.

    Raises InputError where diffusers has no choice for its kind, and for a back end that is not installed.
    """
    if backend is None:
        return
    if not any(hasattr(getattr(module, "processor", None), "_attention_backend") for module in denoiser.modules()):
        raise InputError(
            f"attention: {backend}: diffusers gives {type(denoiser).__name__} no choice of back ends; set it to null"
        )
    try:
        denoiser.set_attention_backend(backend)
    except (ValueError, RuntimeError, ImportError) as error:
        raise InputError(f"attention: {backend}: {error}") from error


def device_of(pipeline: Any) -> torch.device:
    """Where a pipeline works: with offloading, not where its parts lie."""
    return pipeline._execution_device


def beside_denoiser(pipeline: Any) -> dict[str, nn.Module]:
    """Text encoders, VAE and whatever else a pipeline has of weights, by name."""
    denoiser = denoiser_of(pipeline)
    parts = pipeline.components.items()
    return {name: part for name, part in parts if isinstance(part, nn.Module) and part is not denoiser}


def move_beside(pipeline: Any, device: torch.device | str) -> None:
    """Move all but the denoiser."""
    for part in beside_denoiser(pipeline).values():
        part.to(device)
    _free()


def denoiser_alone(pipeline: Any, device: torch.device, keep: bool) -> nn.Module:
    """The denoiser of a pipeline, frozen, on `device`, no longer offloaded. Its other parts leave the GPU, and unless
    they are to be kept, memory too."""
    pipeline.remove_all_hooks()
    if keep:
        move_beside(pipeline, "cpu")
    else:
        pipeline.register_modules(**dict.fromkeys(beside_denoiser(pipeline)))
        _free()
    return denoiser_of(pipeline).to(device).requires_grad_(False)


def _free() -> None:
    """Give memory back of what is no longer used, to the system and to other jobs on the GPU."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _classes(model: str, revision: str | None, wanted: Collection[str] | None = None) -> dict[str, type]:
    """Classes of a pipeline's parts by name, but for those that only one kind of pipeline knows. wanted: names of those
    to import, or None for all."""
    index = _index(model, revision)
    found: dict[str, Any] = {}
    for name, (library, cls) in components(read_json(index), f"model: {index}").items():
        if library in ("diffusers", "transformers") and (wanted is None or name in wanted):
            found[name] = getattr(importlib.import_module(library), cls, None)
            if found[name] is None:
                raise InputError(f"model: {index}: {name}: {cls!r} is no class of the installed {library}; update it")
    return found


def _load(source: ModelSource, name: str, cls: type, dtype: torch.dtype) -> nn.Module:
    """Load one part of a pipeline, whose files must hold all of its weights and no others, all finite."""
    model, variant = source.model, source.variant
    if Path(model).is_dir() and not has_variant(Path(model) / name, variant):
        variant = None  # some parts may have no variant of their own
    options: dict[str, Any] = {"subfolder": name, "revision": source.revision, "variant": variant}
    options["torch_dtype" if _of_diffusers(cls) else "dtype"] = dtype
    return load_whole(cls, model, f"model: {model}/{name}", **options)


def _of_diffusers(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "diffusers"


def load_whole(cls: Any, model: str, where: str, optional: tuple[str, ...] = (), **options: Any) -> Any:
    """`cls.from_pretrained`, where the libraries would leave weights at random or carry on with NaN: raises InputError.

    Safetensors only. Weights beyond the model's own are refused of diffusers' models alone: text encoders are often
    taken out of larger ones. optional: children that become None if the files have no weight of theirs.
    """
    mend = "its files are damaged or do not belong together: download the model again"
    if not _of_diffusers(cls):
        options["ignore_mismatched_sizes"] = True  # they are named below
    try:
        module, said = cls.from_pretrained(model, use_safetensors=True, output_loading_info=True, **options)
    except (ValueError, RuntimeError, OSError, SafetensorError) as error:
        raise InputError(f"{where}: {str(error).strip().partition('If you want')[0]} ({mend})") from error
    for name in optional:
        own = {key for key in module.state_dict() if key.startswith(f"{name}.")}
        if own and own <= set(said["missing_keys"]):
            setattr(module, name, None)
            said["missing_keys"] = set(said["missing_keys"]) - own
    problems = {"missing_keys": "is missing", "mismatched_keys": "has another shape"}
    problems |= {"unexpected_keys": "is no weight of this model"} if _of_diffusers(type(module)) else {}
    for kind, problem in problems.items():
        if names := sorted(str(key[0] if isinstance(key, tuple) else key) for key in said[kind]):
            raise InputError(f"{where}: {names[0]} {problem} ({len(names)} such weights); {mend}")
    check_numbers(module, where, mend)
    return module


def check_numbers(module: nn.Module, where: str, mend: str) -> None:
    """Refuse weights that were never filled, or not with finite numbers. Raises InputError."""
    for name, weight in module.state_dict().items():
        if weight.is_meta:
            raise InputError(f"{where}: {name} is missing; {mend}")
        if not weight.sum(dtype=torch.float32).isfinite():
            raise InputError(f"{where}: {name} has NaN or infinite entries; {mend}")


def denoiser_of(pipeline: Any) -> "ModelMixin":
    """The UNet or transformer of a pipeline."""
    for name in DENOISERS:
        if (module := getattr(pipeline, name, None)) is not None:
            return module
    raise ValueError(f"{type(pipeline).__name__} has no component named {' or '.join(DENOISERS)}")


def family(pipeline: Any) -> Family:
    """Return the family of a pipeline's denoiser. Raises InputError for an unknown class."""
    denoiser = denoiser_of(pipeline)
    return family_of(type(getattr(denoiser, "_orig_mod", denoiser)).__name__)  # what torch.compile wraps


def fitting_batch(passes: Callable[[int], object], batch: int | None, most: int) -> int:
    """Samples in a pass: `batch`, or where that is None, as many as the GPU has room for, up to `most`.

    `passes(n)` runs n samples; where they do not fit, half as many are tried.
    """
    if batch is not None:
        return batch
    from accelerate.utils import find_executable_batch_size  # of the workflow: adapters load without it

    kind = "cuda" if torch.cuda.is_available() else "cpu"

    @find_executable_batch_size(starting_batch_size=min(most, MOST_SAMPLES[kind]))
    def attempt(n: int) -> int:
        passes(n)
        return n

    found = attempt()
    print(f"{found} prompts in a pass")
    return found


def latents_name(denoiser: nn.Module) -> str:
    """What a denoiser calls its noisy latents: the first argument of its forward pass."""
    return next(iter(inspect.signature(denoiser.forward).parameters))


def resolution_of(pipeline: Any) -> int:
    """Side of the model's own pictures, in pixels."""
    side = denoiser_of(pipeline).config.get("sample_size") or pipeline.default_sample_size
    return side * pipeline.vae_scale_factor


def packed(pipeline: Any, latents: Tensor) -> Tensor:
    """Return latents `[n, c, h, w]` as the denoiser takes them; `[n, hw / 4, 4c]` for families that pack them."""
    pack = family(pipeline).pack
    return getattr(pipeline, pack)(latents, *latents.shape) if pack else latents
