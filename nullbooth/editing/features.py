"""Features of the prompts of edits and of their targets, and the changes of weights that map one to the other, solved
in closed form (nullbooth.editing.closed_form)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nullbooth.editing.closed_form import edit_map, factors, free_factor
from nullbooth.errors import InputError
from nullbooth.inputs.edits import Edit, align
from nullbooth.inputs.text import shown
from nullbooth.models.calls import Resolution, denoiser_inputs, first_call
from nullbooth.models.loading import denoiser_of
from nullbooth.models.sites import find_features, find_sites, read_inputs
from nullbooth.models.sites_by_name import Feature

EDITED = ("to_k", "to_v")  # layers of cross-attention that read the prompt's features
SAME = 1e-3  # relative change of a feature below which it is rounding, which depends on the prompts per pass
BATCH = 16  # prompts per pass


class TextFeatures:
    """Features that the cross-attention keys and values of a pipeline's denoiser read for a prompt, at any timestep.

    Raises InputError for denoisers in which they depend on the timestep, and for pipelines that rewrite prompts.
    """

    def __init__(self, pipeline: Any, resolution: Resolution = None, arguments: dict[str, Any] | None = None):
        self.pipeline, self.resolution, self.arguments = pipeline, resolution, arguments or {}
        self.denoiser = denoiser_of(pipeline)
        if hasattr(pipeline, "_get_gemma_prompt_embeds") and self.arguments.get("complex_human_instruction", True):
            raise InputError(
                f"edits: {type(pipeline).__name__} puts instructions before every prompt, which edits cannot "
                "distinguish from its words; set sampler.arguments: {complex_human_instruction: null}"
            )
        sites = find_sites(self.denoiser)
        self.sites = {name: module for name, module in sites.items() if name.rpartition(".")[2] in EDITED}
        given, timestep = self._given([""])
        found = find_features(self.sites, lambda i: self._run(given, timestep / (i + 1), slice(0, 1)))
        if not all(feature.static for feature in found):
            raise InputError(
                f"edits: in {type(self.denoiser).__name__}, prompt and picture go through the same layers, whose input "
                "changes with the timestep; edits are for cross-attention (Stable Diffusion 1, 2, XL, PixArt, Sana)"
            )
        self.features: list[Feature] = found
        self._known: dict[str, tuple[dict[str, Tensor], Tensor | None]] = {}

    def _given(self, prompts: list[str]) -> tuple[Any, float]:
        seen = first_call(
            self.pipeline, prompts, guidance=1.0, seed=0, resolution=self.resolution, arguments=self.arguments
        )
        return seen, seen.timesteps[0]

    def _run(self, seen: Any, timestep: float, rows: slice) -> None:
        self.denoiser(
            **denoiser_inputs(self.denoiser, seen.latents[0], timestep, seen.conditions, rows, seen.constants)
        )

    @torch.no_grad()
    def read(self, prompts: list[str], progress: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Compute the features of prompts and cache them for `of`."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        readers = {feature.name: self.sites[feature.name] for feature in self.features}
        for i in range(0, len(new), BATCH):
            part = new[i : i + BATCH]
            seen, timestep = self._given(part)
            found = read_inputs(readers, partial(self._run, seen, timestep, slice(0, len(part))))
            mask = seen.conditions.get("encoder_attention_mask")
            for row, prompt in enumerate(part):
                features = {name: x[row].double().cpu() for name, x in found.items()}
                self._known[prompt] = features, None if mask is None else mask[0, row].bool().cpu()
            progress(i + len(part), len(new))

    def of(self, prompt: str) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return features `[tokens, in]` float64 by name, and which tokens are read, bool `[tokens]` (None: all)."""
        self.read([prompt])
        return self._known[prompt]

    def tokens(self, prompt: str, length: int) -> list[int]:
        """Return the token ids of a prompt as the pipeline reads it, with start and end tokens, without padding."""
        if hasattr(self.pipeline, "_text_preprocessing"):
            [prompt] = self.pipeline._text_preprocessing(prompt, clean_caption=False)
        return self.pipeline.tokenizer(prompt, truncation=True, max_length=length).input_ids

    def moment(self, prompts: list[str]) -> dict[str, Tensor]:
        """Return second moments `[in, in]` float64 by feature, over all tokens of the prompts that are read."""
        sums = {f.name: torch.zeros(f.width, f.width, dtype=torch.float64) for f in self.features}
        rows = 0
        for prompt in prompts:
            features, mask = self.of(prompt)
            for name, x in features.items():
                x = x if mask is None else x[mask]
                sums[name] += x.T @ x
            rows += len(x)
        return {name: total / rows for name, total in sums.items()}

    def pairs(self, edit: Edit, templates: list[str]) -> dict[str, tuple[Tensor, Tensor]]:
        """Return by feature the rows to change and their targets, `[m, in]` each. Raises InputError if none changes."""
        found: dict[str, list[tuple[Tensor, Tensor]]] = {feature.name: [] for feature in self.features}
        for source, target in map(edit.filled, templates):
            (ours, read), (theirs, read_there) = self.of(source), self.of(target)
            length = len(next(iter(ours.values())))
            into = torch.tensor(align(self.tokens(source, length), self.tokens(target, length), length))
            both = slice(None) if read is None or read_there is None else read & read_there[into]
            for name, x in ours.items():
                k, t = x[both], theirs[name][into][both]
                changed = (t - k).norm(dim=-1) > SAME * k.norm(dim=-1)
                found[name].append((k[changed], t[changed]))
        joined = {name: (torch.cat([k for k, _ in p]), torch.cat([t for _, t in p])) for name, p in found.items()}
        if not all(len(k) for k, _ in joined.values()):
            raise InputError(
                f"edits: {shown(edit.source)} and {shown(edit.target)} are the same to the model; name something else"
            )
        return joined


@torch.no_grad()
def solve_edits(
    texts: TextFeatures,
    edits: list[Edit],
    templates: list[str],
    protected: list[str],
    rule: tuple[str, float],
    l2: float,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return changes of all cross-attention keys and values by successive edits, and facts about them.

    The changes are tensors of an adapter (`up: [out, r]`, `down: [1, r, in]` by site, float32). protected: prompts
    whose features must not change; rule: rank rule and value; l2: ridge (`closed_form.edit_map`).

    Raises ProjectorError if no direction is free.
    """
    filled = [prompt for edit in edits for template in templates for prompt in edit.filled(template)]
    texts.read([*filled, *protected], progress)
    moments = texts.moment(protected)
    pairs = [texts.pairs(edit, templates) for edit in edits]
    tensors: dict[str, Tensor] = {}
    reached, about = torch.zeros(len(edits), dtype=torch.float64), {}
    for feature in texts.features:
        of_feature = [found[feature.name] for found in pairs]
        c = moments[feature.name]
        free = free_factor(c, *rule, feature.name)
        m = edit_map(of_feature, free, l2)
        for i, (k, t) in enumerate(of_feature):
            reached[i] += 1 - (t - k - k @ m.T).square().sum() / (t - k).square().sum()
        edited = sum(k.T @ k / len(k) for k, _ in of_feature) / len(of_feature)
        ups, down = factors(m, c + edited)
        for name in feature.sites:
            weight = texts.sites[name].weight
            tensors[f"{name}.up"] = (weight.double().cpu() @ ups).float()
            tensors[f"{name}.down"] = down.float()[None].clone()
        about[feature.name] = {
            "directions": feature.width,
            "free": float(free.square().sum()),
            "rank": len(down),
            "change_protected": float(((m @ c * m).sum() / c.trace()).clamp(min=0).sqrt()),
        }
    listed = [
        {"from": edit.source, "to": edit.target, "reached": share}
        for edit, share in zip(edits, (reached / len(texts.features)).tolist(), strict=True)
    ]
    return tensors, {"edits": listed, "features": about, "protected": len(protected)}
