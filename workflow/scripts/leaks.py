"""Rule leaks: write the leak of held-out prompts against the number of protected prompts as a table and a figure."""

from nullbooth.evaluation import figures
from nullbooth.storage.atomic import read_json
from nullbooth.storage.progress import log_to
from nullbooth.storage.tables import write_csv


def main(out: dict, leaks: list[str]) -> None:
    found = [read_json(path) for path in leaks]
    rows = []
    for at in found:
        known = {key: at[key] for key in ("shards", "prompts")}
        sites = sum(feature["sites"] for feature in at["features"].values())
        rows.append({**known, "feature": "mean", "sites": sites, "leak": at["leak"]})
        rows += [{**known, "feature": name, **feature} for name, feature in at["features"].items()]
    write_csv(out["table"], rows, ("shards", "prompts", "feature", "sites", "leak"))
    curves = {name: [at["features"][name]["leak"] for at in found] for name in found[0]["features"]}
    drawing = figures.leaks([at["prompts"] for at in found], [at["leak"] for at in found], list(curves.values()))
    figures.save(drawing, out["leak"])


if __name__ == "__main__":
    log_to(snakemake.log[0])
    main(dict(snakemake.output.items()), snakemake.input.leaks)
