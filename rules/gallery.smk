"""The page that a person opens."""


rule gallery:
    input:
        tuned=collect("<results>/images/{run}", run=RUNS),
        base=collect("<results>/images/base/{part}", part=[*CONCEPTS, "unrelated"]),
        metrics=collect("<results>/runs/{run}/metrics.json", run=RUNS),
        losses=collect("<results>/runs/{run}/loss.csv", run=RUNS),
        table=rules.evaluation.output.table,
        statistics=[rules.spectra.output.spectra, rules.spectra.output.free] if PROTECTING else [],
        mechanism=collect("<results>/runs/{run}/mechanism.csv", run=RUNS if PROTECTING else []),
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
        runtime=10,
    params:
        results=config["results"],
        template=str(Path(workflow.basedir) / "workflow" / "report" / "gallery.html.j2"),
        seeds=config["seeds"],
        small=SMALL_PICTURES,
        runs=RUNS,
        concepts=list(CONCEPTS.values()),
        methods=list(LEARNED),
        model=str(config["model"]),
        sampler=config["sampler"],
    message:
        "Writing the gallery"
    script:
        "../workflow/scripts/gallery.py"
