"""The page that a person opens, and plain names for what is kept."""


rule gallery:
    input:
        tuned=collect("<kept>/runs/{run}/images", run=kept_runs(RUNS)),
        base=collect("<results>/images/base/{part}", part=PARTS),
        metrics=collect("<kept>/runs/{run}/metrics.json", run=kept_runs(RUNS)),
        losses=collect("<kept>/runs/{run}/loss.csv", run=kept_runs(RUNS)),
        mechanism=collect("<kept>/runs/{run}/mechanism.csv", run=kept_runs(RUNS if PROTECTING else [])),
        shown=collect("<results>/runs/{run}", run=RUNS),
        table=rules.evaluation.output.table,
        statistics=["<results>/figures"] if PROTECTING else [],
        lifelong=rules.lifelong.output if STAGES else [],
        edits=[*rules.measure_edits.output, *rules.measure_edits.input, "<results>/edits"] if EDITS else [],
        leaks=rules.leaks.output.leak if PROTECTING and len(SHARDS) > 1 else [],
    output:
        report(
            directory("<results>/samples"),
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
        results=config["results"],
        template="workflow/report/gallery.html.j2",
        seeds=config["seeds"],
        small=SMALL_PICTURES,
        runs=RUNS,
        concepts=list(CONCEPTS.values()),
        methods=list(LEARNED),
        model=str(config["model"]),
        sampler=config["sampler"],
        protecting=PROTECTING,
        edits=config["edits"],
        contexts=EDITED_CONTEXTS,
        lifelong=bool(STAGES),
    message:
        "Writing the gallery"
    script:
        "../workflow/scripts/gallery.py"


rule shown:
    input:
        lambda wildcards: str(Path(*SHOWN[wildcards.shown])),
    output:
        directory("<results>/{shown}"),
    localrule: True
    params:
        target=lambda wildcards, output: os.path.relpath(SHOWN[wildcards.shown][0], Path(output[0]).parent),
    message:
        "{output} is {params.target}"
    shell:
        "ln -s -- {params.target:q} {output:q}"
