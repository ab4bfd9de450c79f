"""From photographs and captions to what training is given: latents and conditions, computed once."""

import inspect
from collections.abc import Callable
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
Drawn = list[tuple[Path, str]]  # pictures, and their prompts
MOST_OBLONG = 2.0  # of a bucket: the longer side over the shorter one


def bucket_shape(width: int, height: int, side: int, step: int) -> Shape:
    """The shape nearest to that of a picture, of about `side`² pixels, with sides that are multiples of `step`."""
    stretch = sqrt(min(MOST_OBLONG, max(1 / MOST_OBLONG, width / height)))
    return step * round(side / stretch / step), step * round(side * stretch / step)


def bucket_step(pipeline: Any, side: int) -> int:
    """What sides of buckets are multiples of: 64 pixels, or less of small models, and at least two latents."""
    latents = 2 * pipeline.vae_scale_factor
    return latents * ceil(min(64, side // 8) / latents)


# What latent consistency models are given in place of guidance; they never sample at 1.
EMBEDDED_GUIDANCE = "timestep_cond"


@torch.no_grad()
def encode(pipeline: Any, paths: list[Path], shape: int | Shape, flip: bool = False) -> Tensor:
    """Latents `[n, ...]` of pictures, and behind them of their mirror images."""
    vae = pipeline.vae
    x = torch.stack([load_image(path, shape) for path in paths])
    x = torch.cat((x, x.flip(-1))) if flip else x
    found = [vae.encode(image[None].to(device_of(pipeline), vae.dtype)) for image in x]
    latents = torch.cat([f.latent_dist.mode() if hasattr(f, "latent_dist") else f.latent for f in found]).float().cpu()
    factor, shift = decoding(pipeline)
    return packed(pipeline, (latents - shift) / factor)


def decoding(pipeline: Any) -> tuple[Tensor, Tensor]:
    """Factor and shift `[1, c or 1, 1, 1]` by which a pipeline takes its latents back to those of its VAE.

    Pipelines differ in the numbers of a VAE's config that they use, so their own code is asked.
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
    """What the denoiser is given for each prompt, one row a prompt, without guidance; what it is given for all of them;
    and its timestep for 1 of the scheduler's."""
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
    """What the denoiser is given in a guided call, `[1, ...]` each: in the branch without the prompt, empty where there
    is none, and in the branch with it, for the prompt ""."""
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
    """Latents of the photographs in a folder and what the denoiser is given for their captions: one entry, or with
    `buckets` one for each of their shapes.

    side: pixels of a picture of the model's own shape; guidance: that one samples with, whose branch without the prompt
    dropped captions are learned on (zeros for Stable Diffusion XL, and not the empty prompt); drawn: pictures of the
    class to learn beside them; as_class: with what the denoiser is given for the captions that name the class alone;
    live: for text encoders that learn.
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
        # The last one for captions that are dropped.
        given, constants, unit = conditions(pipeline, [*filled, ""], shape, arguments, guidance)
        unconditional, _ = guided(pipeline, shape, arguments, guidance)
        same = {key: value.shape for key, value in unconditional.items()}
        if same != {key: value[-1:].shape for key, value in given.items()}:  # no guidance, or prompts of any length
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
    """`speak` with the guidance of what is given, where that is embedded, in place of its own."""

    def live(rows: Tensor) -> dict[str, Tensor]:
        found = speak(rows)
        if EMBEDDED_GUIDANCE in found:
            found[EMBEDDED_GUIDANCE] = given[EMBEDDED_GUIDANCE][:1].to(found[EMBEDDED_GUIDANCE]).expand(len(rows), -1)
        return found

    return live


def _prior(pipeline: Any, drawn: Drawn, shape: Shape, arguments: dict[str, Any], guidance: float) -> TrainData:
    latents = encode(pipeline, [path for path, _ in drawn], shape)
    return TrainData(latents, conditions(pipeline, [prompt for _, prompt in drawn], shape, arguments, guidance)[0])
