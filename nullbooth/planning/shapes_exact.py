"""Shapes of a model, for nullbooth.planning.cost, from its configs alone: no weights are read and nothing is computed.

Models are built on torch's `meta` device, or from fake tensors, which have shapes but no numbers.
"""

import weakref
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode

from nullbooth.models.calls import flatten
from nullbooth.models.families import constants, family_of, known
from nullbooth.models.files import DENOISERS
from nullbooth.models.precision import DTYPES, autocast
from nullbooth.models.sites import find_sites, read_inputs
from nullbooth.planning.cost import Model, Reading
from nullbooth.planning.shapes_from_headers import latent_side, scale_factor, tokens_of

if TYPE_CHECKING:
    from diffusers import ModelMixin

RANK = 16  # of the adapter in simulated training, which hardly adds to the costs
CPU = torch.device("cpu")

Inputs = Callable[[nn.Module, int], dict[str, Any]]  # keyword arguments of one denoiser call on n samples
Sites = Callable[[nn.Module], dict[str, nn.Linear]]


class LiveBytes(TorchDispatchMode):
    """Counter of kernel calls, and of the bytes of live tensors made inside the context and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak, self.calls = 0, 0, 0
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)}
        for t in tree_iter(out):
            if isinstance(t, Tensor):
                self._hold(t.untyped_storage(), given)
        self.peak, self.calls = max(self.peak, self.live), self.calls + 1
        return out

    def _hold(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        key = storage._cdata
        if key not in given and key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            self.live += storage.nbytes()
            weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.live -= self.sizes.pop(key, 0)


def affine(measure: Callable[[int], float]) -> tuple[float, float]:
    """Split `measure(n)` into a fixed part and a part per sample, from two and four samples."""
    two, four = measure(2), measure(4)
    return max(0.0, 2 * two - four), (four - two) / 2


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def pass_flops(denoiser: nn.Module, inputs: Inputs, sites: Sites | None = None) -> float:
    """Return the FLOPs of one sample in a forward pass, or, if `sites` to train are given, forwards and backwards."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        run(denoiser, inputs(denoiser, 1), sites)
    return float(counter.get_total_flops())


def peak_bytes(denoiser: nn.Module, inputs: Inputs, n: int, precision: str, sites: Sites | None = None) -> float:
    """Return the peak bytes of a pass of n samples, weights excluded; within 0.1 % of a real pass on the CPU."""
    with autocast(CPU, precision):
        given = inputs(denoiser, n)
        with LiveBytes() as memory:
            run(denoiser, given, sites)
    return float(memory.peak)


def kernel_calls(denoiser: nn.Module, inputs: Inputs) -> int:
    with torch.device("meta"), LiveBytes() as memory:
        run(denoiser, inputs(denoiser, 1))
    return memory.calls


def run(denoiser: nn.Module, given: dict[str, Any], sites: Sites | None = None) -> None:
    """Run a pass without gradients, or, if `sites` are given, a forward and backward pass with an adapter at them."""
    if sites is None:
        with torch.no_grad():
            denoiser(**given)
        return
    handles = [linear.register_forward_hook(low_rank(linear)) for linear in sites(denoiser).values()]
    prediction = denoiser(**given).sample.float()
    F.mse_loss(prediction, torch.zeros_like(prediction)).backward()
    for handle in handles:
        handle.remove()


def low_rank(linear: nn.Linear) -> Callable[..., Tensor]:
    down = nn.Parameter(torch.empty(RANK, linear.in_features))
    up = nn.Parameter(torch.empty(linear.out_features, RANK))
    return lambda _module, args, out: out + F.linear(F.linear(args[0], down), up).to(out.dtype)


@torch.no_grad()
def readings(denoiser: nn.Module, inputs: Inputs, sites: Sites) -> tuple[Reading, ...]:
    """Return the features of the sites. A tensor that the denoiser received, or that several blocks read, is the prompt
    and thus static."""
    with torch.device("meta"):
        given, found = inputs(denoiser, 1), sites(denoiser)
        seen = read_inputs(found, lambda: denoiser(**given))
    conditions = {id(x) for x in flatten(given).values()}
    readers: dict[int, list[str]] = {}
    for name, x in seen.items():
        readers.setdefault(id(x), []).append(name)
    return tuple(
        Reading(
            width=found[names[0]].in_features,
            rows=seen[names[0]].numel() // found[names[0]].in_features,
            static=key in conditions or len({name.split(".attn")[0] for name in names}) > 1,
            sites=len(names),
            outs=sum(found[name].out_features for name in names),
        )
        for key, names in readers.items()
    )


def denoiser_shapes(
    denoiser: "ModelMixin", inputs: Inputs, sites: Sites, precision: str, weights: str = "fp32"
) -> dict[str, Any]:
    """Return the fields of `planning.cost.Model` for a denoiser on the meta device.

    precision: of passes. weights: dtype of the loaded weights. Turns the denoiser's weights into fake tensors.
    """
    with torch.device("meta"):
        tensors = flatten(inputs(denoiser, 1)).items()
        given = {k: v.numel() for k, v in tensors if v.ndim > 1 and k not in constants()}
    latent = given.pop("sample" if "sample" in given else "hidden_states")
    shapes = {
        "parameters": count(denoiser),
        "readings": readings(denoiser, inputs, sites),
        "latent": latent,
        "condition": sum(given.values()),
        "flops": pass_flops(denoiser, inputs),
        "train_flops": pass_flops(denoiser, inputs, sites),
        "calls": kernel_calls(denoiser, inputs),
    }
    denoiser.to(DTYPES[weights])
    with FakeTensorMode(allow_non_fake_inputs=True):
        denoiser.to_empty(device="cpu")
        shapes["pass_bytes"] = affine(lambda n: peak_bytes(denoiser, inputs, n, precision))
        shapes["train_bytes"] = affine(lambda n: peak_bytes(denoiser, inputs, n, precision, sites))
        denoiser.enable_gradient_checkpointing()
        shapes["checkpointed_bytes"] = affine(lambda n: peak_bytes(denoiser, inputs, n, precision, sites))
        denoiser.disable_gradient_checkpointing()
    return {**shapes, "weights": weights, "precision": precision}


def decoder_shapes(vae: "ModelMixin", side: int, precision: str) -> dict[str, Any]:
    """Return the fields of `planning.cost.Model` for a VAE on the meta device, with float32 weights; passes run in
    bfloat16 if that is the `precision`, else in float32. Turns the VAE's weights into fake tensors.
    """

    def latents(_vae: nn.Module, n: int) -> dict[str, Any]:
        return {"z": torch.empty(n, vae.config.latent_channels, side, side)}

    vae.forward = vae.decode
    shapes: dict[str, Any] = {
        "vae_parameters": count(vae),
        "pixels": (side * scale_factor(vae.config)) ** 2,
        "decode_flops": pass_flops(vae, latents),
    }
    with FakeTensorMode(allow_non_fake_inputs=True):
        vae.to_empty(device="cpu")
        shapes["decode_bytes"] = affine(
            lambda n: peak_bytes(vae, latents, n, "bf16" if precision == "bf16" else "fp32")
        )
    return shapes


def unet_inputs(tokens: int, side: int) -> Inputs:
    """Arguments of UNet2DConditionModel in the pipelines of Stable Diffusion 1, 2 and XL."""

    def inputs(unet: nn.Module, n: int) -> dict[str, Any]:
        c: Any = unet.config
        given: dict[str, Any] = {
            "sample": torch.empty(n, c.in_channels, side, side),
            "timestep": torch.ones(n),
            "encoder_hidden_states": torch.empty(n, tokens, c.cross_attention_dim),
        }
        if c.addition_embed_type == "text_time":
            pooled = c.projection_class_embeddings_input_dim - 6 * c.addition_time_embed_dim
            added = {"text_embeds": torch.empty(n, pooled), "time_ids": torch.empty(n, 6)}
            given["added_cond_kwargs"] = added
        return given

    return inputs


def pixart_inputs(tokens: int, side: int) -> Inputs:
    """Arguments of PixArtTransformer2DModel and SanaTransformer2DModel."""

    def inputs(denoiser: nn.Module, n: int) -> dict[str, Any]:
        c: Any = denoiser.config
        given: dict[str, Any] = {
            "hidden_states": torch.empty(n, c.in_channels, side, side),
            "encoder_hidden_states": torch.empty(n, tokens, c.caption_channels),
            "encoder_attention_mask": torch.ones(n, tokens),
            "timestep": torch.ones(n),
        }
        if c.get("use_additional_conditions"):
            given["added_cond_kwargs"] = {"resolution": torch.ones(n, 2), "aspect_ratio": torch.ones(n, 1)}
        return given

    return inputs


def sd3_inputs(tokens: int, side: int) -> Inputs:
    """Arguments of SD3Transformer2DModel."""

    def inputs(denoiser: nn.Module, n: int) -> dict[str, Any]:
        c: Any = denoiser.config
        return {
            "hidden_states": torch.empty(n, c.in_channels, side, side),
            "encoder_hidden_states": torch.empty(n, tokens, c.joint_attention_dim),
            "pooled_projections": torch.empty(n, c.pooled_projection_dim),
            "timestep": torch.ones(n),
        }

    return inputs


def flux_inputs(tokens: int, side: int) -> Inputs:
    """Arguments of FluxTransformer2DModel, in which a square of four latents is one token."""

    def inputs(denoiser: nn.Module, n: int) -> dict[str, Any]:
        c: Any = denoiser.config
        patches = side**2 // 4
        given = {
            "hidden_states": torch.empty(n, patches, c.in_channels),
            "encoder_hidden_states": torch.empty(n, tokens, c.joint_attention_dim),
            "pooled_projections": torch.empty(n, c.pooled_projection_dim),
            "timestep": torch.ones(n),
            "img_ids": torch.zeros(patches, 3),
            "txt_ids": torch.zeros(tokens, 3),
        }
        return given | ({"guidance": torch.ones(n)} if c.guidance_embeds else {})

    return inputs


def inputs_of(denoiser: str, tokens: int, side: int) -> Inputs:
    """Return the function that makes the arguments of one call of a denoiser, from the entry of its family."""
    module, _, function = family_of(denoiser).inputs.partition(":")
    return getattr(import_module(module), function)(tokens, side)


def pipeline_shapes(
    model: str,
    revision: str | None,
    sites: tuple[str, ...],
    precision: str,
    weights: str = "fp32",
    resolution: int | None = None,
    most: int | None = None,
) -> Model:
    """Return the shapes of a diffusers pipeline in a folder or on the Hub. resolution, most: as in
    `shapes_from_headers.read`. Raises ValueError if the class of its denoiser is unknown.
    """
    import diffusers
    import transformers

    listed = diffusers.DiffusionPipeline.load_config(model, revision=revision)
    parts = {name: entry for name, entry in listed.items() if isinstance(entry, (list, tuple)) and entry[0]}
    name = next((name for name in DENOISERS if name in parts), None)
    if name is None:
        raise ValueError(f"model: {model!r} has no denoiser; costs can be estimated for {known()}")
    family_of(parts[name][1], f"model: {model!r}")

    def built(name: str) -> Any:
        library, kind = parts[name]
        if library == "diffusers":
            cls = getattr(diffusers, kind)
            return cls.from_config(cls.load_config(model, subfolder=name, revision=revision))
        config = transformers.AutoConfig.from_pretrained(model, subfolder=name, revision=revision)
        return getattr(transformers, kind)._from_config(config)

    with torch.device("meta"):
        texts = [built(key) for key in parts if key.startswith("text_encoder")]
        denoiser, vae = (built(key).eval().requires_grad_(False) for key in (name, "vae"))
    clip = max(getattr(text.config, "max_position_embeddings", 0) for text in texts)
    tokens = tokens_of(parts[name][1], clip, most)
    side = resolution // scale_factor(vae.config) if resolution else latent_side(denoiser.config)
    inputs = inputs_of(parts[name][1], tokens, side)
    return Model(
        name=model,
        text_parameters=sum(map(count, texts)),
        largest_text=max(map(count, texts)),
        text_flops=2.0 * tokens * sum(map(count, texts)),
        **denoiser_shapes(denoiser, inputs, lambda module: find_sites(module, sites), precision, weights),
        **decoder_shapes(vae, side, precision),
    )
