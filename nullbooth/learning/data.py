"""Training data from photographs and captions: latents and conditions, computed once."""

import inspect
from collections.abc import Callable, Sequence
from math import ceil, sqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nullbooth.inputs.photographs import captions, list_images, open_image
from nullbooth.inputs.settings import fill_prompt, subject_words
from nullbooth.learning.inversion import speaker
from nullbooth.learning.training import TrainData
from nullbooth.models.calls import first_call
from nullbooth.models.loading import device_of, packed
from nullbooth.models.pixels import load_image

Shape = tuple[int, int]  # height and width in pixels
Drawn = Sequence[tuple[Path, str]]  # pictures and their prompts
MOST_OBLONG = 2.0  # largest ratio of the sides of a bucket


def bucket_shape(width: int, height: int, side: int, step: int) -> Shape:
    """Return the shape nearest to a picture's, with about `side`² pixels and sides that are multiples of `step`."""
    stretch = sqrt(min(MOST_OBLONG, max(1 / MOST_OBLONG, width / height)))
    return step * round(side / stretch / step), step * round(side * stretch / step)


def bucket_step(pipeline: Any, side: int) -> int:
    """Return the unit of the sides of buckets: 64 pixels, or fewer for small models, but at least two latents."""
    latents = 2 * pipeline.vae_scale_factor
    return latents * ceil(min(64, side // 8) / latents)


# Input of latent consistency models in place of guidance; they never sample at guidance 1.
EMBEDDED_GUIDANCE = "timestep_cond"


@torch.no_grad()
def encode(pipeline: Any, paths: list[Path], shape: int | Shape, flip: bool = False) -> Tensor:
    """Return the scaled latents `[n, ...]` float32 of pictures and, with `flip`, then of their mirror images."""
    vae = pipeline.vae
    x = torch.stack([load_image(path, shape) for path in paths])
    x = torch.cat((x, x.flip(-1))) if flip else x
    found = [vae.encode(image[None].to(device_of(pipeline), vae.dtype)) for image in x]
    latents = torch.cat([f.latent_dist.mode() if hasattr(f, "latent_dist") else f.latent for f in found]).float().cpu()
    factor, shift = decoding(pipeline)
    return packed(pipeline, (latents - shift) / factor)


def decoding(pipeline: Any) -> tuple[Tensor, Tensor]:
    """Return factor and shift `[1, c or 1, 1, 1]` with which a pipeline converts its latents to those of its VAE.

    Pipelines differ in which numbers of the VAE's config they use, so these are looked up in the pipeline's code.
    """
    config, code = pipeline.vae.config, inspect.getsource(type(pipeline).__call__)
    used = {key: config.get(key) if key in code else None for key in ("latents_mean", "latents_std", "shift_factor")}
    factor, shift = torch.tensor(1 / config.scaling_factor), torch.tensor(float(used["shift_factor"] or 0))
    if used["latents_mean"] is not None and used["latents_std"] is not None:
        factor, shift = factor * torch.tensor(used["latents_std"]), torch.tensor(used["latents_mean"])
    return factor.view(1, -1, 1, 1), shift.view(1, -1, 1, 1)


def conditions(
    pipeline: Any, prompts: list[str], shape: Shape, arguments: dict[str, Any], guidance: float
) -> tuple[dict[str, Tensor], dict[str, Tensor], float]:
    """Return the denoiser's inputs for each prompt without guidance, `[n, ...]` by keyword; its inputs shared by all
    prompts; and its timestep for timestep 1 of the scheduler."""
    distinct = list(dict.fromkeys(prompts))
    given = first_call(pipeline, distinct, guidance=1.0, seed=0, resolution=shape, arguments=arguments)
    rows = [distinct.index(prompt) for prompt in prompts]
    unit = given.timesteps[0] / float(pipeline.scheduler.timesteps[0])
    found = {key: value[0][rows] for key, value in given.conditions.items()}
    if EMBEDDED_GUIDANCE in found:
        _, embedded = guided(pipeline, shape, arguments, guidance)
        found[EMBEDDED_GUIDANCE] = embedded[EMBEDDED_GUIDANCE].expand_as(found[EMBEDDED_GUIDANCE])
    return found, given.constants, unit


def guided(
    pipeline: Any, shape: Shape, arguments: dict[str, Any], guidance: float
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the denoiser's inputs in a guided call for the prompt "", `[1, ...]` by keyword: in the branch without the
    prompt (empty if there is none) and in the branch with it."""
    given = first_call(pipeline, [""], guidance=guidance, seed=0, resolution=shape, arguments=arguments).conditions
    branches = [{key: value[i] for key, value in given.items()} for i in range(len(next(iter(given.values()))))]
    return branches[0] if len(branches) > 1 else {}, branches[-1]


def training_data(
    pipeline: Any,
    folder: Path | str,
    concept: dict[str, Any],
    side: int,
    *,
    arguments: dict[str, Any],
    guidance: float = 1.0,
    flip: bool = False,
    buckets: bool = False,
    drawn: Drawn = (),
    as_class: bool = False,
    live: bool = False,
) -> list[TrainData]:
    """Return latents of the photographs in a folder and the denoiser's inputs for their captions: one entry, or with
    `buckets` one per shape.

    side: side of the model's own pictures, in pixels; guidance: that of the sampler; dropped captions are replaced by
    its branch without the prompt (zeros for Stable Diffusion XL, not the empty prompt); flip: add mirror images; drawn:
    pictures of the class, the prior; as_class: add the inputs for captions that name the class only; live: for text
    encoders in training.
    """
    paths, words = list_images(folder), subject_words(concept)
    said = dict(zip(paths, captions(paths, concept["prompt"]), strict=True))
    step, shapes = bucket_step(pipeline, side), dict.fromkeys(paths, (side, side))
    if buckets:
        shapes = {path: bucket_shape(*open_image(path).size, side, step) for path in paths}
    found = []
    for shape in sorted(set(shapes.values())):
        own = [path for path in paths if shapes[path] == shape]
        texts = [said[path] for path in own] * (1 + flip)
        filled = [fill_prompt(text, words) for text in texts]
        # The last prompt stands for dropped captions.
        given, constants, unit = conditions(pipeline, [*filled, ""], shape, arguments, guidance)
        unconditional, _ = guided(pipeline, shape, arguments, guidance)
        same = {key: value.shape for key, value in unconditional.items()}
        if same != {key: value[-1:].shape for key, value in given.items()}:  # no guidance, or prompts of varying length
            unconditional = {key: value[-1:] for key, value in given.items()}
        named = [fill_prompt(text, {**words, "subject": concept["class"]}) for text in texts]
        found.append(
            TrainData(
                latents=encode(pipeline, own, shape, flip),
                conditions={key: value[:-1] for key, value in given.items()},
                unconditional=unconditional,
                prior=_prior(pipeline, drawn, shape, arguments, guidance) if drawn else None,
                class_conditions=conditions(pipeline, named, shape, arguments, guidance)[0] if as_class else {},
                constants=constants,
                unit=unit,
                live=as_guided(speaker(pipeline, filled, shape, arguments), given) if live else None,
            )
        )
        print(f"{len(own)} photographs of {shape[1]} x {shape[0]} pixels")
    return found


def as_guided(speak: Callable[[Tensor], dict[str, Tensor]], given: dict[str, Tensor]) -> Callable:
    """Return `speak` with the embedded guidance of `given`, if the denoiser takes any, instead of its own."""

    def live(rows: Tensor) -> dict[str, Tensor]:
        found = speak(rows)
        if EMBEDDED_GUIDANCE in found:
            found[EMBEDDED_GUIDANCE] = given[EMBEDDED_GUIDANCE][:1].to(found[EMBEDDED_GUIDANCE]).expand(len(rows), -1)
        return found

    return live


def _prior(pipeline: Any, drawn: Drawn, shape: Shape, arguments: dict[str, Any], guidance: float) -> TrainData:
    latents = encode(pipeline, [path for path, _ in drawn], shape)
    return TrainData(latents, conditions(pipeline, [prompt for _, prompt in drawn], shape, arguments, guidance)[0])
