"""All measurements as one table, and methods beside each other."""

TABULATED = [f"runs/{run}/metrics.json" for run in RUNS]
TABLE = {"concepts": list(CONCEPTS), "methods": list(LEARNED), "seeds": config["seeds"]}
EVALUATION = page_of("evaluation", TABULATED, **TABLE)
# What adapters change in each layer, by where it is below an adapter.
CHANGES = f"mechanism/{digest([IDENTITY, HELDOUT_IDENTITY])}"
COMPARED_NAMES = [
    *(f"runs/{run}/loss.csv" for run in LEARNED_FOR_POINTS),
    *(f"runs/{run}/{name}" for run in COMPARED_RUNS for name in ("metrics.json", "images")),
    *(f"images/base/{part}{FEWER_STEPS}" for part in [*COMPARED, "unrelated"]),
]
COMPARISON = {
    "points": POINTS,
    "concepts": COMPARED,
    "seeds": config["comparison"]["seeds"],
    "reference": REFERENCE,
    "steps": config["comparison"]["steps"],
    "small": SMALL_PICTURES,
}
FOLDERS |= {"evaluation": "evaluation/metrics.csv"}
SHOWN |= {
    **{f"evaluation/{name}": (EVALUATION / name, "") for name in ("metrics.csv", "metrics.json")},
    **{
        f"runs/{run}/{name}": (KEPT / "runs" / run / KEYS[run] / CHANGES / name, "")
        for run in RUNS
        for name in ("mechanism.csv", "change_protected.svg", "change_heldout.svg")
    },
    "comparison": (page_of("comparison", COMPARED_NAMES, **COMPARISON), ""),
}


rule evaluation:
    input:
        behind(TABULATED),
    output:
        table=report(
            EVALUATION / "metrics.csv",
            caption="../workflow/report/metrics.rst",
            category="Measurements",
            labels={"what": "all metrics", "form": "table"},
        ),
        json=EVALUATION / "metrics.json",
    log:
        "<results>/logs/evaluation.log",
    benchmark:
        "<results>/benchmarks/evaluation.tsv"
    conda:
        "../envs/nullbooth.yaml"
    resources:
        mem_mb=1000,
        runtime=longer(10),
        turn=1,  # of a SLURM job of several
    params:
        **TABLE,
        shown=viewed(TABULATED),
    message:
        "Writing the table of all measurements"
    script:
        "../workflow/scripts/evaluation.py"


rule mechanism:
    input:
        adapter=rules.adapter.output.adapter,
        covariances=collect(rules.covariance.output[0], step=STEPS),
        heldout=rules.heldout_moments.output[0],
    output:
        table=f"<kept>/<run>/{{key}}/{CHANGES}/mechanism.csv",
        protected=report(
            f"<kept>/<run>/{{key}}/{CHANGES}/change_protected.svg",
            caption="../workflow/report/change.rst",
            category="Mechanism",
            labels={"concept": "{concept}", "method": "{method}", "seed": "{seed}", "prompts": "protected"},
        ),
        heldout=report(
            f"<kept>/<run>/{{key}}/{CHANGES}/change_heldout.svg",
            caption="../workflow/report/change.rst",
            category="Mechanism",
            labels={"concept": "{concept}", "method": "{method}", "seed": "{seed}", "prompts": "not protected"},
        ),
    log:
        "<results>/logs/mechanism/{concept}/{method}/{seed}/{key}.log",
    benchmark:
        "<results>/benchmarks/mechanism/{concept}/{method}/{seed}/{key}.tsv"
    conda:
        "../envs/nullbooth.yaml"
    threads: 1
    resources:
        mem_mb=grown(4000, "mechanism"),
        runtime=longer(60),
    params:
        identity=IDENTITY,
        others=HELDOUT_IDENTITY,
    message:
        "What {wildcards.concept} with {wildcards.method}, seed {wildcards.seed}, changes in each layer"
    script:
        "../workflow/scripts/mechanism.py"


rule comparison:
    input:
        behind(COMPARED_NAMES),
    output:
        page=report(
            directory(SHOWN["comparison"][0]),
            htmlindex="index.html",
            caption="../workflow/report/comparison.rst",
            category="Comparison",
            labels={"what": "methods side by side", "form": "page"},
        ),
    log:
        "<results>/logs/comparison.log",
    benchmark:
        "<results>/benchmarks/comparison.tsv"
    conda:
        "../envs/nullbooth.yaml"
    resources:
        mem_mb=2000,
        runtime=longer(30),
    params:
        **COMPARISON,
        shown=viewed(COMPARED_NAMES),
        statistics=STORES,
        class_images=[
            f"{config['results']}/benchmarks/images/class/{name}/{CLASS_PICTURES[name]}.tsv" for name in COMPARED
        ],
        template="workflow/report/comparison.html.j2",
    message:
        "Comparing methods"
    script:
        "../workflow/scripts/comparison.py"
