"""The page that compares methods, with a plot, a table and pictures."""

import csv
import json
import math
import shutil
from pathlib import Path

from matplotlib.figure import Figure

from nullbooth.evaluation import figures
from nullbooth.evaluation.comparison import (
    DRIFT,
    FIDELITY,
    MOST_GAP,
    Point,
    at_equal_fidelity,
    lines_of,
    pareto_front,
    read_point,
)
from nullbooth.evaluation.gallery import render
from nullbooth.inputs.methods import is_ours, prior_of, reads_trajectories
from nullbooth.inputs.shipped import shipped
from nullbooth.storage.pictures import read_drawn
from nullbooth.storage.seal import read_attributes
from nullbooth.storage.tables import write_csv

COLUMNS = {
    "fidelity": FIDELITY,
    "drift": DRIFT,
    "drift_protected": ("tuned", "protected", "dino_drift"),
    "drift_unprotected": ("tuned", "unprotected", "dino_drift"),
    "drift_names": ("tuned", "names", "dino_drift"),
    "drift_class": ("tuned", "class", "dino_drift"),
    "names_likeness": ("tuned", "names", "dino_fidelity"),
    "pres": ("tuned", "class", "pres"),
    "colors_right": ("tuned", "unrelated", "color_accuracy"),
    "shapes_right": ("tuned", "unrelated", "shape_accuracy"),
}
SHOWN = {"subject": 4, "class": 2, "unrelated": 2, "unprotected": 1, "names": 2}  # pictures of each method on the page


def best_point(points: list[Point], target: float) -> Point:
    """Return the point of a curve with the least drift among those that reach `target`, else the highest fidelity."""
    reaching = [p for p in points if p.values[FIDELITY].mean() >= target]
    if reaching:
        return min(reaching, key=lambda p: p.values[DRIFT].mean())
    return max(points, key=lambda p: p.values[FIDELITY].mean())


def cost(paths: list[Path]) -> float | None:
    """Return the seconds of jobs from their benchmark files, or None if one is missing."""
    if not all(path.is_file() for path in paths):
        return None
    return sum(
        float(row["s"])
        for path in paths
        for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines(), delimiter="\t")
    )


def columns_of(folder: Path) -> list[tuple[str, str, int]]:
    """Return group, prompt and seed of the first pictures of each group in a folder."""
    listed = [(entry["group"], entry["prompt"], entry["seed"]) for entry in read_drawn(folder)["images"]]
    return [column for group, n in SHOWN.items() for column in [e for e in listed if e[0] == group][:n]]


def strip(folders: list[Path], page: Path, name: str, columns: list[tuple[str, str, int]]) -> list[dict]:
    """Copy the pictures of these columns from several folders to the page; return addresses and prompts. Other
    pictures, which the base model drew from other noise, are not copied."""
    listed = [(folder, entry) for folder in folders for entry in read_drawn(folder)["images"]]
    known = {(e["group"], e["prompt"], e["seed"]): folder / e["file"] for folder, e in listed}
    (page / name).mkdir(parents=True, exist_ok=True)
    copies = []
    for i, column in enumerate(columns):
        copy = Path(shutil.copy(known[column], page / name / f"{i:02d}{known[column].suffix}"))
        copies.append({"file": copy.relative_to(page).as_posix(), "prompt": column[1]})
    return copies


def not_known(equal: dict) -> tuple[int, float]:
    """Sort key of drifts: first measured ones by value, then those across a gap, then those not reached."""
    rank = 1 if math.isnan(equal["value"]) else 2 if math.isinf(equal["value"]) else 0
    return rank, 0.0 if rank else equal["value"]


def table_row(curve: str, point: Point, equal: dict, method: dict, once: dict[str, float | None]) -> dict:
    """Return a row of the page's table: the point to show, the drift at equal fidelity, and costs."""
    ours, given = is_ours(method), reads_trajectories(method)
    return {
        "curve": curve,
        "point": point.name,
        "scale": point.scale,
        "equal": equal,
        **{name: point.mean(key) for name, key in COLUMNS.items() if key in point.values},
        "step_seconds": point.step_seconds,
        "train_seconds": point.train_seconds,
        "subject_seconds": once["class images"] if prior_of(method) == "images" else 0.0,
        "model_seconds": once["statistics"] if ours else once["trajectories"] if given else 0.0,
    }


def seconds_of(stores: list[str]) -> float | None:
    """Return the seconds that it took to make stores, or None if there are none."""
    made = [read_attributes(Path(path))["spent"]["seconds"] for path in stores if Path(path).is_dir()]
    return sum(made) if made else None


def costs(statistics: dict[str, list[str]], class_images: list[str]) -> dict[str, float | None]:
    """Return the seconds of jobs shared by all runs. statistics: stores by kind; class_images: benchmark files of the
    jobs that drew them."""
    stores = [path for paths in statistics.values() for path in paths]
    return {
        "statistics": seconds_of(stores) if seconds_of(statistics["moments"]) else None,
        "trajectories": seconds_of(statistics["trajectories"]),
        "class images": cost([Path(path) for path in class_images]),
    }


def plot(curves: dict[str, list[Point]], front: list[tuple[float, float]], reference: str, target: float) -> Figure:
    """Plot subject fidelity against drift for all curves, with landmarks."""
    known = next(iter(curves.values()))[0]
    landmarks = {"base model": known.mean(("base", "subject", "dino_fidelity"))["value"]}
    landmarks[f"best of {reference}"] = target
    if (photographs := ("photographs", "subject", "dino_fidelity")) in known.values:
        landmarks["photographs"] = known.mean(photographs)["value"]
    drawn = {
        curve: [[{"drift": p.mean(DRIFT), "fidelity": p.mean(FIDELITY)} for p in line] for line in lines_of(points)]
        for curve, points in curves.items()
    }
    return figures.trade_off(drawn, front, landmarks)


def point_rows(found: list[Point], front: list[int], points: dict[str, dict]) -> list[dict]:
    """Return a row per point: settings, measurements and times."""
    rows = []
    for i, point in enumerate(found):
        row = {"method": point.curve, "point": point.name, "scale": point.scale, "pareto": i in front}
        row |= points[point.name]["train"]
        for name, key in COLUMNS.items():
            if key in point.values:
                row |= {name if k == "value" else f"{name}_{k}": v for k, v in point.mean(key).items() if k != "n"}
        rows.append({**row, "step_seconds": point.step_seconds, "train_seconds": point.train_seconds})
    return rows


def write_comparison(
    out: str,
    results: Path,
    statistics: dict[str, list[str]],
    class_images: list[str],
    template: str,
    points: dict[str, dict],
    concepts: list[str],
    seeds: list[int],
    reference: str,
    steps: int,
    small: bool,
) -> None:
    """Write the page, its pictures, the plot, `points.csv` and `comparison.json` to the folder `out`.

    Raises ValueError without points.
    """
    if not points:
        raise ValueError("comparison.methods: there is nothing to compare; name at least one method")
    page = Path(out)
    page.mkdir(parents=True)
    found = [read_point(results, point, concepts, seeds) for point in points.values()]
    curves = {p.curve: [q for q in found if q.curve == p.curve] for p in found}
    target, equal = at_equal_fidelity(found, reference)
    means = [(p.values[DRIFT].mean(), p.values[FIDELITY].mean()) for p in found]
    front = pareto_front(means)
    drawing = plot(curves, [means[i] for i in front], reference, target)
    figures.save(drawing, page / "trade-off.png")
    svg = figures.svg(drawing)
    (page / "trade-off.svg").write_text(svg)

    def pictures_of(point: str) -> Path:
        return results / "runs" / concepts[0] / point / str(seeds[0]) / "images"

    table, once, columns = [], costs(statistics, class_images), columns_of(pictures_of(found[0].name))
    for curve, ps in curves.items():
        point = best_point(ps, target)
        row = table_row(curve, point, equal[curve], points[point.name], once)
        table.append({**row, "pictures": strip([pictures_of(point.name)], page, curve, columns)})
    table.sort(key=lambda row: (not_known(row["equal"]), row["drift"]["value"]))
    rows = point_rows(found, front, points)
    write_csv(page / "points.csv", rows)
    summary = {"fidelity": target, "reference": reference, "once": once, "methods": table, "points": rows}
    (page / "comparison.json").write_text(json.dumps(summary, indent=1))
    drawn = [results / "images/base" / f"{part}@{steps}" for part in (concepts[0], "unrelated")]
    base = strip(drawn, page, "base", columns)
    about = {"reference": reference, "target": target, "seeds": len(seeds), "steps": steps, "small": small}
    about |= {"scales": sorted({point.scale for point in found}), "most_gap": MOST_GAP}
    about |= {group: f"drift_{group}" in table[0] for group in ("unprotected", "names")}
    render(shipped(template), page / "index.html", table=table, base=base, about=about, concepts=concepts, plot=svg)
