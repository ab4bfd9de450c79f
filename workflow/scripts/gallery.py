"""Rule gallery: copy the pictures to one folder and write the page around them."""

from pathlib import Path

from nullbooth.evaluation import figures
from nullbooth.evaluation.comparison import DRIFT, FIDELITY, pareto_front, read_point
from nullbooth.evaluation.gallery import write_gallery
from nullbooth.storage.atomic import whole
from nullbooth.storage.progress import log_to
from nullbooth.workflow.shown import view


def plot_of_methods(results: Path, concepts: list[str], methods: list[str], seeds: list[int]) -> str | None:
    """The trade-off of the methods of a gallery as SVG text, or None if there is but one."""
    if len(methods) < 2:
        return None
    named = [{"curve": name, "name": name, "run": name, "line": name, "scale": 1.0} for name in methods]
    points = [read_point(results, point, concepts, seeds) for point in named]
    curves = {p.curve: [[{"drift": p.mean(DRIFT), "fidelity": p.mean(FIDELITY)}]] for p in points}
    means = [(p.values[DRIFT].mean(), p.values[FIDELITY].mean()) for p in points]
    landmarks = {"base model": points[0].mean(("base", "subject", "dino_fidelity"))["value"]}
    drawing = figures.trade_off(curves, [means[i] for i in pareto_front(means)], landmarks)
    return figures.svg(drawing)


def main(
    out: str,
    shown: dict[str, list[str]],
    template: str,
    runs,
    concepts,
    methods,
    seeds,
    model,
    sampler,
    small,
    protecting,
    **sections,
) -> None:
    about = {
        "model": model,
        "steps": sampler["steps"],
        "guidance": sampler["guidance"],
        "methods": len(methods) * len(seeds),
        "seeds": len(seeds),
        "small": small,
    }
    names = [concept["name"] for concept in concepts]
    with view(shown) as results, whole(out) as page:
        plot = plot_of_methods(results, names, methods, seeds)
        write_gallery(page, Path(template), results, runs, concepts, about, plot, protecting, **sections)


if __name__ == "__main__":
    log_to(snakemake.log[0])
    main(snakemake.output[0], **snakemake.params)
