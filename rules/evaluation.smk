"""All measurements as one table, and methods beside each other."""


rule evaluation:
    input:
        metrics=collect("<kept>/runs/{run}/metrics.json", run=kept_runs(RUNS)),
        shown=collect("<results>/runs/{run}", run=RUNS),
    output:
        table=report(
            "<results>/evaluation/metrics.csv",
            caption="../workflow/report/metrics.rst",
            category="Measurements",
            labels={"what": "all metrics", "form": "table"},
        ),
        json="<results>/evaluation/metrics.json",
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
        results=config["results"],
        concepts=list(CONCEPTS),
        methods=list(LEARNED),
        seeds=config["seeds"],
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
        table="<kept>/<run>/{key}/mechanism.csv",
        protected=report(
            "<kept>/<run>/{key}/change_protected.svg",
            caption="../workflow/report/change.rst",
            category="Mechanism",
            labels={"concept": "{concept}", "method": "{method}", "seed": "{seed}", "prompts": "protected"},
        ),
        heldout=report(
            "<kept>/<run>/{key}/change_heldout.svg",
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
        metrics=collect("<kept>/runs/{run}/metrics.json", run=kept_runs(COMPARED_RUNS)),
        losses=collect("<kept>/runs/{run}/loss.csv", run=kept_runs(LEARNED_FOR_POINTS)),
        images=collect("<kept>/runs/{run}/images", run=kept_runs(COMPARED_RUNS)),
        shown=collect("<results>/runs/{run}", run=dict.fromkeys([*LEARNED_FOR_POINTS, *COMPARED_RUNS])),
        base=collect("<results>/images/base/{part}" + FEWER_STEPS, part=[*COMPARED, "unrelated"]),
    output:
        page=report(
            directory("<results>/comparison"),
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
        results=config["results"],
        statistics=STORES,
        template="workflow/report/comparison.html.j2",
        points=POINTS,
        concepts=COMPARED,
        seeds=config["comparison"]["seeds"],
        reference=REFERENCE,
        steps=config["comparison"]["steps"],
        small=SMALL_PICTURES,
    message:
        "Comparing methods"
    script:
        "../workflow/scripts/comparison.py"
