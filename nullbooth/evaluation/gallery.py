"""The gallery: a page with pictures of base and tuned model side by side, and a contact sheet per concept."""

import csv
import shutil
import textwrap
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image, ImageDraw, ImageFont, ImageOps

from nullbooth.evaluation import figures
from nullbooth.evaluation.comparison import DRIFT, FIDELITY, pareto_front, read_point
from nullbooth.evaluation.mechanism import summary
from nullbooth.inputs.edits import edits_of
from nullbooth.inputs.photographs import IN_BROWSERS, list_images, open_image
from nullbooth.inputs.shipped import shipped
from nullbooth.storage.atomic import read_json
from nullbooth.storage.pictures import read_drawn

GROUPS = {
    "subject": "The subject in new places",
    "class": "The same prompts without its name",
    "unrelated": "Everything else: unprotected prompts",
    "unprotected": "Prompts with words that no protected prompt contains",
    "names": "Other names",
    "protected": "Protected prompts",
}
EDITED = {"edited": "as taught", "paraphrased": "in another context"}
STATISTICS = {
    "free": "free_directions.svg",
    "spectra": "spectra.svg",
    "leak": "leak.svg",
}  # figures by their names in the template
CHANGES = {"change_protected.svg": "protected prompts", "change_heldout.svg": "unprotected prompts"}
SHEET = {"subject": 7, "class": 2, "unrelated": 3, "names": 2}  # prompts of each group on the contact sheet
COLUMNS = 7  # columns of the contact sheet, few enough for legible captions in a README
TILE = 128
Shown = tuple[str, str, int]  # group, prompt and seed of a picture


def collect_images(folder: Path, page: Path, name: str, seeds: set[int] | None = None) -> dict[Shown, str]:
    """Copy pictures of a folder (of all or some seeds) to the page; return addresses by group, prompt and seed."""
    drawn = read_drawn(folder)
    (page / name).mkdir(parents=True)
    images = [entry for entry in drawn["images"] if seeds is None or entry["seed"] in seeds]
    for entry in [*images, *drawn.get("attention", [])]:
        shutil.copy(folder / entry["file"], page / name / entry["file"])
    return {(e["group"], e["prompt"], e["seed"]): f"{name}/{e['file']}" for e in images}


def figure(metrics: list[dict], model: str, group: str, metric: str) -> dict | None:
    """Return a measured value with its interval, or None if it was not measured."""
    matches = [m for m in metrics if (m["model"], m["group"], m["metric"]) == (model, group, metric)]
    return matches[0] if matches else None


def leak_of(path: Path) -> list[str]:
    """Return sentences about a run's mechanism.csv, or none if it does not exist."""
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return summary(list(csv.DictReader(file)))


def loss_curve(path: Path, width: int = 320, height: int = 72, window: int = 20) -> str:
    """Return the points of an SVG polyline: the running mean of the training loss."""
    with open(path, encoding="utf-8", newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    means = [
        sum(losses[max(0, i - window) : i + 1]) / len(losses[max(0, i - window) : i + 1]) for i in range(len(losses))
    ]
    low, high = min(means), max(means)
    span = (high - low) or 1.0
    step = width / max(1, len(means) - 1)
    return " ".join(f"{i * step:.1f},{height - (m - low) / span * height:.1f}" for i, m in enumerate(means))


def contact_sheet(
    path: Path, page: Path, photographs: list[str], rows: list[tuple[str, list[str]]], captions: list[str]
) -> None:
    """Save a sheet of photographs, if any, and of pictures with a column per caption and a row per model, wrapped."""
    font = ImageFont.load_default(11)
    margin, head, pitch = 104, 64, TILE + 6
    lines = [slice(i, i + COLUMNS) for i in range(0, len(captions), COLUMNS)]
    width = min(COLUMNS, max(len(captions), len(photographs)))
    top = pitch if photographs else 0
    height = top + len(lines) * (head + len(rows) * pitch)
    sheet = Image.new("RGB", (margin + pitch * width, height), "white")
    draw = ImageDraw.Draw(sheet)

    def row(y: int, label: str, files: list[str]) -> None:
        draw.multiline_text((6, y + TILE // 2 - 12), textwrap.fill(label, 16), "black", font)
        for i, name in enumerate(files):
            picture = open_image(page / name)
            method = Image.Resampling.NEAREST if picture.width < TILE else Image.Resampling.LANCZOS
            square = ImageOps.fit(picture, (TILE, TILE), method)
            sheet.paste(square, (margin + i * pitch, y))

    if photographs:
        row(0, "photographs", photographs[:COLUMNS])
    y = top
    for line in lines:
        for i, caption in enumerate(captions[line]):
            text = textwrap.fill(caption, 21, max_lines=4, placeholder=" ...")
            draw.multiline_text((margin + i * pitch, y + 6), text, "black", font, spacing=2)
        y += head
        for label, files in rows:
            row(y, label, files[line])
            y += pitch
    sheet.save(path)


def attention_maps(drawn: dict[str, tuple[Path, str]]) -> list[dict]:
    """Return attention maps by prompt. drawn: folder of pictures and address of its copy, by label of the model."""
    found: dict[str, list[dict]] = {}
    for label, (folder, address) in drawn.items():
        for entry in read_drawn(folder).get("attention", []):
            found.setdefault(entry["prompt"], []).append(
                {"word": entry["word"], "label": label, "file": f"{address}/{entry['file']}"}
            )
    return [{"prompt": prompt, "maps": maps} for prompt, maps in found.items()]


def plot_of_methods(results: Path, concepts: list[str], methods: list[str], seeds: list[int]) -> str | None:
    """Return the trade-off plot of a gallery's methods as SVG text, or None for a single method."""
    if len(methods) < 2:
        return None
    named = [{"curve": name, "name": name, "run": name, "line": name, "scale": 1.0} for name in methods]
    points = [read_point(results, point, concepts, seeds) for point in named]
    curves = {p.curve: [[{"drift": p.mean(DRIFT), "fidelity": p.mean(FIDELITY)}]] for p in points}
    means = [(p.values[DRIFT].mean(), p.values[FIDELITY].mean()) for p in points]
    landmarks = {"base model": points[0].mean(("base", "subject", "dino_fidelity"))["value"]}
    drawing = figures.trade_off(curves, [means[i] for i in pareto_front(means)], landmarks)
    return figures.svg(drawing)


def write_samples(
    page: Path,
    results: Path,
    template: str,
    runs: list[str],
    concepts: list[dict[str, Any]],
    methods: list[str],
    seeds: list[int],
    model: str,
    sampler: dict[str, Any],
    small: bool,
    **sections: Any,
) -> None:
    """Write the gallery of a config with `write_gallery`, with a plot if it has several methods.

    small: enlarge pictures without smoothing; sections: further arguments of `write_gallery`.
    """
    about = {
        "model": model,
        "steps": sampler["steps"],
        "guidance": sampler["guidance"],
        "methods": len(methods) * len(seeds),
        "seeds": len(seeds),
        "small": small,
    }
    names = [concept["name"] for concept in concepts]
    plot = plot_of_methods(results, names, methods, seeds)
    write_gallery(page, shipped(template), results, runs, concepts, about, plot, **sections)


def write_gallery(
    page: Path,
    template: Path,
    results: Path,
    runs: list[str],
    concepts: list[dict[str, Any]],
    about: dict[str, Any],
    trade_off: str | None = None,
    protecting: bool = True,
    edits: list[dict[str, str]] | None = None,
    contexts: dict[str, list[str]] | None = None,
    lifelong: bool = False,
) -> None:
    """Write `page/index.html`, the pictures that it shows and `page/<concept>.png`, with relative addresses.

    Shows a run's heat maps if it has any, and the statistics figures if `protecting`. trade_off: SVG text; edits: those
    of the config, if any; contexts: their contexts by group of pictures; lifelong: some method learned the concepts in
    sequence.
    """
    page.mkdir(parents=True, exist_ok=True)
    # The base model drew an extra picture of each prompt, which has no partner.
    paired = {e["seed"] for run in runs for e in read_drawn(results / "runs" / run / "images")["images"]}
    unrelated = collect_images(results / "images/base/unrelated", page, "base/unrelated", paired)
    sections = [concept_section(page, results, concept, runs, about, unrelated, paired) for concept in concepts]
    statistics = {}
    for name, file in STATISTICS.items() if protecting else ():
        if (results / "figures" / file).is_file():
            statistics[name] = Path(shutil.copy(results / "figures" / file, page / file)).name
    shutil.copy(results / "evaluation" / "metrics.csv", page / "metrics.csv")
    context = {"sections": sections, "about": about, "figure": figure, "statistics": statistics}
    context["edits"] = edits_section(page, results / "edits", edits, contexts or {}) if edits else None
    photographs = {s["concept"]["name"]: s["photographs"][0] for s in sections}
    context["lifelong"] = lifelong_section(page, results / "lifelong", photographs) if lifelong else None
    render(template, page / "index.html", trade_off=trade_off, **context)


def concept_section(
    page: Path,
    results: Path,
    concept: dict,
    runs: list[str],
    about: dict,
    unrelated: dict[Shown, str],
    paired: set[int],
) -> dict:
    """Return the page's section about a concept; copy its files to the page and save its contact sheet. unrelated: the
    base model's pictures of prompts shared by all concepts; paired: seeds that tuned models drew from."""
    name = concept["name"]
    base = collect_images(results / "images/base" / name, page, f"base/{name}", paired) | unrelated
    photographs = list_images(concept["images"])
    (page / "photographs" / name).mkdir(parents=True)
    copies = [shown_copy(p, page / "photographs" / name).relative_to(page).as_posix() for p in photographs]
    tuned, drawn = [], {"base model": (results / "images/base" / name, f"base/{name}")}
    for run in (r for r in runs if r.split("/")[0] == name):
        folder = results / "runs" / run
        label = " ".join(run.split("/")[1:]) if about["seeds"] > 1 else run.split("/")[1]
        drawn[label if about["methods"] > 1 else "tuned model"] = (folder / "images", run)
        images = collect_images(folder / "images", page, run)
        change = [
            (Path(shutil.copy(folder / file, page / run / file)).relative_to(page).as_posix(), title)
            for file, title in CHANGES.items()
            if (folder / file).is_file()
        ]
        metrics = read_json(folder / "metrics.json")["metrics"]
        tuned.append(
            {
                "label": label,
                "images": images,
                "metrics": metrics,
                "loss": loss_curve(folder / "loss.csv"),
                "change": change,
                "leak": leak_of(folder / "mechanism.csv"),
            }
        )
    keys = list(tuned[0]["images"])
    groups = [
        {
            "name": group,
            "title": title,
            "rows": [
                {"prompt": k[1], "base": base[k], "tuned": [t["images"][k] for t in tuned]}
                for k in keys
                if k[0] == group
            ],
        }
        for group, title in GROUPS.items()
        if any(key[0] == group for key in keys)
    ]
    shown = [k for group, n in SHEET.items() for k in [q for q in keys if q[0] == group][:n]]
    rows = [("base model", [base[k] for k in shown])]
    rows += [(t["label"], [t["images"][k] for k in shown]) for t in tuned]
    contact_sheet(page / f"{name}.png", page, copies, rows, [k[1] for k in shown])
    attention = attention_maps(drawn)
    return {"concept": concept, "photographs": copies, "tuned": tuned, "groups": groups, "attention": attention}


def shown_copy(photograph: Path, folder: Path) -> Path:
    """Copy a photograph in a format that browsers show: unchanged, or as PNG."""
    if photograph.suffix.lower() in IN_BROWSERS:
        return Path(shutil.copy(photograph, folder / photograph.name))
    open_image(photograph).save(folder / f"{photograph.name}.png")
    return folder / f"{photograph.name}.png"


def edits_section(page: Path, folder: Path, edits: list[dict[str, str]], contexts: dict[str, list[str]]) -> dict:
    """Return the page's section about edits; copy their pictures to the page and save a contact sheet. folder: results
    of the edits; contexts: with {concept}, by group of pictures."""
    base, edited = (collect_images(folder / name, page, f"edits/{name}") for name in ("base", "images"))
    metrics = read_json(folder / "metrics.json")["metrics"]
    shutil.copy(folder / "metrics.csv", page / "edits.csv")
    sections: list[dict[str, Any]] = []
    for edit in edits_of(edits):
        own = {(group, edit.filled(context)[0]) for group, texts in contexts.items() for context in texts}
        keys = [key for key in edited if key[:2] in own]
        drawn = [{"prompt": key[1], "base": base[key], "edited": edited[key], "group": EDITED[key[0]]} for key in keys]
        sections.append({"edit": edit, "rows": drawn})
    shown = [row for section in sections for row in section["rows"][:2]]
    rows = [("base model", [row["base"] for row in shown]), ("edited", [row["edited"] for row in shown])]
    contact_sheet(page / "edits.png", page, [], rows, [row["prompt"] for row in shown])
    return {"sections": sections, "metrics": [m for m in metrics if m["edit"] == "all"]}


def lifelong_section(page: Path, folder: Path, photographs: dict[str, str]) -> dict:
    """Return the page's section about subjects learned in sequence; copy its files and save contact sheets of each
    subject over time and of two at once. folder: their results; photographs: one per concept."""
    found = read_json(folder / "lifelong.json")
    (page / "lifelong").mkdir()
    figures = [name for name in ("retention.svg", "room.svg") if (folder / name).is_file()]
    for name in ("lifelong.csv", *figures):
        shutil.copy(folder / name, page / "lifelong" / name)
    several = len({entry["seed"] for entry in found["shown"]}) > 1
    strips: dict[str, dict[str, list]] = {}
    for entry in found["shown"]:
        run = f"{entry['method']} {entry['seed']}" if several else entry["method"]
        drawn = next(e for e in read_drawn(Path(entry["images"]))["images"] if e["group"] == "subject")
        name = f"lifelong/{run.replace(' ', '-')}-{entry['concept']}-{entry['known']}.png"
        shutil.copy(Path(entry["images"]) / drawn["file"], page / name)
        picture = {"file": name, "known": entry["known"], "prompt": drawn["prompt"]}
        strips.setdefault(run, {}).setdefault(entry["concept"], []).append(picture)
    together: dict[str, dict[str, list[str]]] = {}
    for entry in found["together"]:
        run = " ".join(entry["run"].split("/")[: 1 + several])
        for key, file in collect_images(Path(entry["images"]), page, f"lifelong/together/{entry['run']}").items():
            together.setdefault(run, {}).setdefault(key[1], []).append(file)
    names = found["concepts"]
    shown = [(name, known) for i, name in enumerate(names, 1) for known in range(i, len(names) + 1)]
    rows = [("photograph", [photographs[name] for name, _ in shown])]
    for run, concepts in strips.items():
        files = {(name, p["known"]): p["file"] for name, pictures in concepts.items() for p in pictures}
        rows.append((run, [files[key] for key in shown]))
    contact_sheet(page / "lifelong.png", page, [], rows, [f"{name}, {known} known" for name, known in shown])
    if together:
        rows = [(run, [file for files in pairs.values() for file in files]) for run, pairs in together.items()]
        texts = [prompt for prompt, files in next(iter(together.values())).items() for _ in files]
        contact_sheet(page / "together.png", page, [], rows, texts)
    return {**found, "figures": figures, "strips": strips, "together": together}


def render(template: Path, path: Path, **context: Any) -> None:
    """Render a template to a page. It may extend templates in its folder; a missing value raises an error."""
    environment = Environment(
        loader=FileSystemLoader(template.parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    path.write_text(environment.get_template(template.name).render(**context), encoding="utf-8")
