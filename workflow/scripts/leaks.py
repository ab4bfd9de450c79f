"""Rule leaks: the leak on prompts held out against the number of protected prompts, as a table and a figure."""

import csv

from nullbooth.evaluation import figures
from nullbooth.storage.atomic import read_json, whole
from nullbooth.storage.progress import log_to


def main(out: dict, leaks: list[str]) -> None:
    found = [read_json(path) for path in leaks]
    with whole(out["table"]) as partial, open(partial, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("shards", "prompts", "feature", "sites", "leak"))
        for at in found:
            sites = sum(feature["sites"] for feature in at["features"].values())
            writer.writerow((at["shards"], at["prompts"], "mean", sites, at["leak"]))
            rows = ((name, feature["sites"], feature["leak"]) for name, feature in at["features"].items())
            writer.writerows((at["shards"], at["prompts"], *row) for row in rows)
    curves = {name: [at["features"][name]["leak"] for at in found] for name in found[0]["features"]}
    drawing = figures.leaks([at["prompts"] for at in found], [at["leak"] for at in found], list(curves.values()))
    figures.save(drawing, out["leak"])


if __name__ == "__main__":
    log_to(snakemake.log[0])
    main(dict(snakemake.output.items()), snakemake.input.leaks)
