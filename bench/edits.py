"""Sequences of closed-form edits of the embedded model and their side effects: AlphaEdit's experiment.

The embedded model knows 63 names of things ("a kdz moon" is a moon with a certain fill). Each edit changes the meaning
of one: "a kdz moon" becomes a red ring. After 1, 10 and 50 edits, one after another:

    efficacy      the edited prompts show colour and shape of the target, by the attribute heads of the evaluator
    generality    the same in contexts that were not taught
    specificity   (1 - cos)/2 between base and edited model, from the same noise, of prompts without edited names:
                  those of config/prompts/unrelated.txt, and other names (the hard case)

Protected are config/prompts/protected.txt and half of the names that are not edited; the other half is measured.

Compares AlphaEdit (with the projector of the protected prompts), the same solve without projector (as in MEMIT), and a
ridge on the protected features instead (as in UCE), each at several strengths. `ceiling` is the base model with the
target prompts.
"""

import random
from collections.abc import Callable

import torch
from common import ROOT, parser, report
from torch import Tensor

from nullbooth.editing.closed_form import edit_map, free_factor
from nullbooth.editing.features import TextFeatures
from nullbooth.evaluation.attributes import attribute_accuracy, edited_attributes
from nullbooth.evaluation.encoders import embed_images, load_encoder
from nullbooth.evaluation.intervals import bootstrap_mean
from nullbooth.evaluation.measure import paired_drift
from nullbooth.inputs.edits import Edit, not_concerned
from nullbooth.inputs.prompts import read_prompts
from nullbooth.models.loading import ModelSource, load_pipeline
from nullbooth.models.noise import prompt_seed
from nullbooth.models.sampling import sample
from nullbooth.storage.progress import reporter
from world.scenes import COLORS, NAMES, SHAPES

PROMPTS = ROOT / "config" / "prompts"
TAUGHT, OTHER = ("{concept}", "a photo of {concept}"), ("a photo of {concept} on a pink background",)
REPEATS = {1: 4, 10: 2, 50: 1}  # sequences by number of edits, each with different edits


def named_edits(n: int, seed: int) -> list[Edit]:
    rng = random.Random(seed)
    return [
        Edit(f"a {name} {rng.choice(SHAPES)}", f"a {rng.choice(list(COLORS))} {rng.choice(SHAPES)}")
        for name in rng.sample(NAMES, n)
    ]


def methods(c: Tensor, rows: int) -> dict[str, Callable]:
    """Return solvers of edits by name and strength. c: second moment `[in, in]` of the `rows` protected rows."""
    whole = torch.eye(len(c), dtype=torch.float64)
    found: dict[str, Callable] = {}
    for energy in (3e-4, 1e-3):
        free = free_factor(c, "energy", energy)
        found[f"AlphaEdit, energy {energy:g}"] = lambda pairs, free=free: edit_map(pairs, free, 1e-5)
    for l2 in (1e-4, 1e-2):
        found[f"no projector (MEMIT), l2 {l2:g}"] = lambda pairs, l2=l2: edit_map(pairs, whole, l2)
    for weight in (0.1, 1.0):
        found[f"ridge on the retained (UCE), weight {weight:g}"] = lambda pairs, weight=weight: edit_map(
            pairs, whole, 1e-5, retained=weight * rows * c
        )
    return found


class Bench:
    def __init__(self, steps: int):
        self.pipeline = load_pipeline(ModelSource(str(ROOT / "resources" / "tinyworld")), torch.device("cpu"))
        self.dino = load_encoder(str(ROOT / "resources" / "evaluators" / "dino"))
        self.texts, self.steps = TextFeatures(self.pipeline), steps
        [self.feature] = self.texts.features
        self.weights = {name: site.weight.detach().clone() for name, site in self.texts.sites.items()}
        self.known: dict[str, Tensor] = {}  # the base model's pictures

    def draw(self, prompts: list[str]) -> Tensor:
        seeds = [prompt_seed(prompt, 0) for prompt in prompts]
        return sample(self.pipeline, prompts, seeds, steps=self.steps, guidance=3.0, batch=32, precision="fp32")

    @torch.no_grad()
    def set(self, m: Tensor | None) -> None:
        for name, site in self.texts.sites.items():
            weight = self.weights[name]
            site.weight.copy_(weight if m is None else (weight.double() + weight.double() @ m).float())

    def base(self, prompts: list[str]) -> Tensor:
        if new := [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.known]:
            self.set(None)
            self.known |= dict(zip(new, self.draw(new), strict=True))
        return torch.stack([self.known[prompt] for prompt in prompts])

    def measure(self, m: Tensor | None, edits: list[Edit], kept: dict[str, list[str]]) -> dict[str, list[float]]:
        """Return values by measure, of the map `m`, or, for None, of the base model with the target prompts."""
        asked = edits if len(edits) <= 25 else edits[:: len(edits) // 25]
        groups = {
            key: [edit.filled(context) for edit in asked for context in contexts]
            for key, contexts in (("efficacy", TAUGHT), ("generality", OTHER))
        }
        prompts = [pair[m is None] for pairs in groups.values() for pair in pairs]
        texts = [text for group in kept.values() for text in group] if m is not None else []
        known = self.base(texts) if texts else None
        self.set(m)
        x, found = self.draw([*prompts, *texts]), {}
        start = 0
        for key, pairs in groups.items():
            part, (sources, targets) = x[start : start + len(pairs)], map(list, zip(*pairs, strict=True))
            found[key] = [v for v in edited_attributes(self.dino, part, sources, targets)["as_meant"] if v is not None]
            start += len(pairs)
        if texts:
            drift = paired_drift(embed_images(self.dino, x[start:]), embed_images(self.dino, known)).tolist()
            n = len(kept["unrelated"])
            found |= {"drift": drift[:n], "drift of other names": drift[n:]}
            hits = attribute_accuracy(self.dino, x[start : start + n], kept["unrelated"])
            found["colours right"] = [v for v in hits["color"] if v is not None]
        return found


def main(args) -> None:
    bench = Bench(args.steps)
    protected, unrelated, templates = (
        read_prompts(PROMPTS / f"{name}.txt") for name in ("protected", "unrelated", "templates")
    )
    table, show, done = [], reporter("sequences"), 0
    for count in args.counts:
        values: dict[str, dict[str, list[float]]] = {}
        for repeat in range(REPEATS.get(count, 1)):
            edits = named_edits(max(32, count), seed=3)[repeat * count :][:count]
            edited = {edit.source.split()[1] for edit in edits}
            others = [f"a photo of a {name} {SHAPES[i % 10]}" for i, name in enumerate(NAMES) if name not in edited]
            kept = {"unrelated": not_concerned(unrelated, edits), "others": others[1::2][: args.others]}
            retained = [*protected, "", *others[::2]]
            c, rows = bench.texts.moment(retained)[bench.feature.name], 24 * len(retained)
            pairs = [bench.texts.pairs(edit, templates)[bench.feature.name] for edit in edits]
            chosen = {name: solve for name, solve in methods(c, rows).items() if not args.only or args.only in name}
            for name, solve in {"ceiling": lambda _: None, **chosen}.items():
                found = bench.measure(solve(pairs), edits, kept)
                for key, part in found.items():
                    values.setdefault(name, {}).setdefault(key, []).extend(part)
            done += 1
            show(done, sum(REPEATS.get(n, 1) for n in args.counts))
        for name, found in values.items():
            row = {"method": name, "edits": count}
            for key, part in found.items():
                interval = bootstrap_mean(part)
                digits = 4 if "drift" in key else 2
                row |= {key: round(interval["value"], digits), f"{key} low": round(interval["low"], digits)}
                row |= {f"{key} high": round(interval["high"], digits)}
            table.append(row)
            print(row, flush=True)
    columns = ["method", "edits", "efficacy", "generality", "drift", "drift of other names", "colours right"]
    report("edits", [{key: row.get(key) for key in columns} for row in table], args)


if __name__ == "__main__":
    p = parser(__doc__, sizes=())
    p.add_argument("--counts", type=int, nargs="+", default=[1, 10, 50], help="numbers of edits")
    p.add_argument("--steps", type=int, default=20, help="of the sampler")
    p.add_argument("--others", type=int, default=8, help="unedited names to measure")
    p.add_argument("--only", help="methods with this in their name")
    main(p.parse_args())
