"""The table of all measurements, changes by layer, and the comparison of methods."""


rule evaluation:
    input:
        workspace.names.files(pages.tabulated),
    output:
        table=report(
            pages.evaluation / "metrics.csv",
            caption="../workflow/report/metrics.rst",
            category="Measurements",
            labels={"what": "all metrics", "form": "table"},
        ),
        json=pages.evaluation / "metrics.json",
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
        **pages.table,
        shown=workspace.names.targets(pages.tabulated),
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
        table=f"<kept>/<run>/{{key}}/{pages.changes}/mechanism.csv",
        protected=report(
            f"<kept>/<run>/{{key}}/{pages.changes}/change_protected.svg",
            caption="../workflow/report/change.rst",
            category="Mechanism",
            labels={"concept": "{concept}", "method": "{method}", "seed": "{seed}", "prompts": "protected"},
        ),
        heldout=report(
            f"<kept>/<run>/{{key}}/{pages.changes}/change_heldout.svg",
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
        mem_mb=memory(4000, "mechanism"),
        runtime=longer(60),
    params:
        identity=statistics.identity,
        others=statistics.heldout_identity,
    message:
        "Measuring changes by layer: {wildcards.concept} with {wildcards.method}, seed {wildcards.seed}"
    script:
        "../workflow/scripts/mechanism.py"


rule comparison:
    input:
        workspace.names.files(pages.compared),
    output:
        page=report(
            directory(workspace.names.shown["comparison"][0]),
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
        **pages.comparison,
        shown=workspace.names.targets(pages.compared),
        statistics=statistics.stores,
        class_images=pages.times_of_class,
        template="workflow/report/comparison.html.j2",
    message:
        "Comparing methods"
    script:
        "../workflow/scripts/comparison.py"
