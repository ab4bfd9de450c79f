"""The page that a person opens."""

OF_RUNS = ["images", "metrics.json", "loss.csv"]
CHANGED = ["mechanism.csv", "change_protected.svg", "change_heldout.svg"]
PICTURED = [
    *(f"runs/{run}/{name}" for run in RUNS for name in [*OF_RUNS, *(CHANGED if PROTECTING else [])]),
    *(f"images/base/{part}" for part in PARTS),
    "evaluation/metrics.csv",
    *(["figures/spectra.svg", "figures/free_directions.svg"] if PROTECTING else []),
    *(["figures/leak.svg"] if PROTECTING and len(SHARDS) > 1 else []),
    *(["lifelong"] if STAGES else []),
    *(
        [f"edits/{name}" for name in ("edit.safetensors", "base", "images", "metrics.json", "metrics.csv")]
        if EDITS
        else []
    ),
]
GALLERY = {
    "seeds": config["seeds"],
    "small": SMALL_PICTURES,
    "runs": RUNS,
    "methods": list(LEARNED),
    "model": str(config["model"]),
    "sampler": config["sampler"],
    "protecting": PROTECTING,
    "edits": config["edits"],
    "contexts": EDITED_CONTEXTS,
    "lifelong": bool(STAGES),
}
SAID = [
    {key: value for key, value in concept.items() if key not in ("images", "holdout")} for concept in CONCEPTS.values()
]
SHOWN["samples"] = page_of("samples", PICTURED, concepts=SAID, **GALLERY), ""


rule gallery:
    input:
        behind(PICTURED),
    output:
        report(
            directory(SHOWN["samples"][0]),
            htmlindex="index.html",
            caption="../workflow/report/gallery.rst",
            category="Gallery",
            labels={"what": "base and tuned side by side", "form": "page"},
        ),
    log:
        "<results>/logs/gallery.log",
    benchmark:
        "<results>/benchmarks/gallery.tsv"
    conda:
        "../envs/nullbooth.yaml"
    resources:
        mem_mb=1000,
        runtime=longer(10),
        turn=1,  # of a SLURM job of several
    params:
        **GALLERY,
        shown=viewed(PICTURED),
        template="workflow/report/gallery.html.j2",
        concepts=list(CONCEPTS.values()),
    message:
        "Writing the gallery"
    script:
        "../workflow/scripts/gallery.py"
