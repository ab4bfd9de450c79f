"""Loading diffusers pipelines, or just their denoiser. Imports are late: a small job should start fast."""

import difflib
import importlib
import inspect
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import find_executable_batch_size
from safetensors import SafetensorError
from torch import Tensor, nn

from nullbooth import devices
from nullbooth.modelfiles import DENOISERS, components, has_variant, read_json
from nullbooth.text import InputError

MOST_SAMPLES = {"cuda": 64, "cpu": 16}  # in a pass: more gain nothing, and a CPU does not say when memory ends


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is a GPU that no other job has, held until this process ends, or the CPU where there is no GPU.

    Anything else is obeyed as it is. Call it before CUDA is used: CUDA then sees that GPU alone.
    Raises RuntimeError where there is a GPU that PyTorch was built for and cannot use.
    """
    if name != "auto":
        return torch.device(name)
    taken = devices.take() if torch.backends.cuda.is_built() else None
    usable = torch.cuda.is_available()
    if taken and not usable:
        raise RuntimeError(
            f"device: auto: there is a GPU, {taken}, that PyTorch {torch.__version__} cannot use; does the driver "
            f"suit its CUDA {torch.version.cuda}? To do without a GPU, set device: cpu"
        )
    if usable and not taken:
        print("nvidia-smi names no GPU, so none is locked: other jobs may use the same one")
    return torch.device("cuda" if usable else "cpu")


def autocast(device: torch.device, precision: str):
    """Mixed precision as a context: `fp32` (off), `bf16` or `fp16`."""
    dtypes = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
    if precision not in dtypes:
        raise ValueError(f"precision {precision!r}: use one of {', '.join(dtypes)}")
    return torch.autocast(device.type, dtypes[precision], enabled=dtypes[precision] is not None)


def load_pipeline(
    model: str,
    device: torch.device,
    revision: str | None = None,
    variant: str | None = None,
    dtype: torch.dtype = torch.float32,
):
    """A text-to-image pipeline from a folder or the Hub, safetensors only, silent, on `device`.

    variant: of the files, such as `fp16`; what they hold becomes `dtype`.

    Raises InputError if a part of it is not wholly in its files, or if it brings code of its own.
    """
    from diffusers import DiffusionPipeline

    parts = _classes(model, revision)
    loaded = {
        name: _load(model, name, cls, revision, variant, dtype)
        for name, cls in parts.items()
        if issubclass(cls, nn.Module)
    }
    pipeline = DiffusionPipeline.from_pretrained(
        model,
        revision=revision,
        torch_dtype=dtype,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=Path(model).exists(),
        **loaded,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def load_denoiser(
    model: str,
    device: torch.device,
    revision: str | None = None,
    variant: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """The denoiser alone, without text encoder and VAE, frozen and in evaluation mode. Raises as `load_pipeline`."""
    parts = _classes(model, revision, DENOISERS)
    name = next(name for name in DENOISERS if name in parts)
    return _load(model, name, parts[name], revision, variant, dtype).to(device).eval().requires_grad_(False)


def _classes(model: str, revision: str | None, wanted: Collection[str] | None = None) -> dict[str, type]:
    """Classes of a pipeline's parts by name, but for those that only one kind of pipeline knows; all, or the `wanted`.

    What nobody wants is not imported: text encoders take seconds.
    """
    index = Path(model) / "model_index.json"
    if not index.is_file():
        from huggingface_hub import hf_hub_download

        index = Path(hf_hub_download(model, "model_index.json", revision=revision))
    found = {}
    for name, (library, cls) in components(read_json(index), f"model: {index}").items():
        if library in ("diffusers", "transformers") and (wanted is None or name in wanted):
            found[name] = getattr(importlib.import_module(library), cls, None)
            if found[name] is None:
                raise InputError(f"model: {index}: {name}: {cls!r} is no class of the installed {library}; update it")
    return found


def _load(model: str, name: str, cls: type, revision: str | None, variant: str | None, dtype: torch.dtype) -> nn.Module:
    """One part of a pipeline, whose files must hold all of its weights and no others, all finite."""
    if Path(model).is_dir() and not has_variant(Path(model) / name, variant):
        variant = None  # some parts may have none of their own
    dtypes = {"torch_dtype" if _of_diffusers(cls) else "dtype": dtype}
    return load_whole(
        cls, model, f"model: {model}/{name}", subfolder=name, revision=revision, variant=variant, **dtypes
    )


def _of_diffusers(cls: type) -> bool:
    return cls.__module__.partition(".")[0] == "diffusers"


def load_whole(cls: Any, model: str, where: str, **options: Any) -> Any:
    """`cls.from_pretrained`, where the libraries would leave weights at random or carry on with NaN: raises InputError.

    Safetensors only. Weights beyond the model's own are refused of diffusers' models alone: text encoders are often
    taken out of larger ones.
    """
    mend = "its files are damaged or do not belong together: download the model again"
    if not _of_diffusers(cls):
        options["ignore_mismatched_sizes"] = True  # they are named below
    try:
        module, said = cls.from_pretrained(model, use_safetensors=True, output_loading_info=True, **options)
    except (ValueError, RuntimeError, OSError, SafetensorError) as error:
        raise InputError(f"{where}: {str(error).strip().partition('If you want')[0]} ({mend})") from error
    problems = {"missing_keys": "is missing", "mismatched_keys": "has another shape"}
    problems |= {"unexpected_keys": "is no weight of this model"} if _of_diffusers(type(module)) else {}
    for kind, problem in problems.items():
        if names := sorted(str(key[0] if isinstance(key, tuple) else key) for key in said[kind]):
            raise InputError(f"{where}: {names[0]} {problem} ({len(names)} such weights); {mend}")
    for name, weight in module.state_dict().items():
        if not weight.sum(dtype=torch.float32).isfinite():
            raise InputError(f"{where}: {name} has NaN or infinite entries; {mend}")
    return module


def denoiser_of(pipeline: Any) -> nn.Module:
    """The UNet or transformer of a pipeline."""
    for name in DENOISERS:
        if (module := getattr(pipeline, name, None)) is not None:
            return module
    raise ValueError(f"{type(pipeline).__name__} has no component named {' or '.join(DENOISERS)}")


def fitting_batch(passes: Callable[[int], object], batch: int | None, most: int) -> int:
    """Samples in a pass: `batch`, or where that is None, as many as the GPU has room for, up to `most`.

    `passes(n)` runs n samples; where they do not fit, half as many are tried.
    """
    if batch is not None:
        return batch
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
    """Latents `[n, c, h, w]` as the denoiser takes them: for some, squares of 2x2 are one token, `[n, hw / 4, 4c]`."""
    return pipeline._pack_latents(latents, *latents.shape) if hasattr(pipeline, "_pack_latents") else latents


def set_sampler(pipeline: Any, name: str | None, options: dict[str, Any] | None = None) -> None:
    """Replace the pipeline's scheduler by another class of diffusers, from the same config plus `options`."""
    import diffusers

    if name is None and not options:
        return
    cls = type(pipeline.scheduler) if name is None else getattr(diffusers, name, None)
    if cls is None or not hasattr(cls, "set_timesteps"):
        raise InputError(f"sampler.scheduler: {name!r} is not a scheduler class of diffusers")
    known = list(inspect.signature(cls.__init__).parameters)[1:]
    if unknown := sorted(set(options or {}) - set(known)):  # which diffusers would pass over
        near = difflib.get_close_matches(unknown[0], known, 1, 0.5) or known
        raise InputError(f"sampler.options.{unknown[0]}: {cls.__name__} has no such option; did you mean {near[0]!r}?")
    pipeline.scheduler = cls.from_config(pipeline.scheduler.config, **(options or {}))
