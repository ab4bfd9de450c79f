"""The gallery, the page with all pictures."""


rule gallery:
    input:
        workspace.names.files(pages.pictured),
    output:
        report(
            directory(workspace.names.shown["samples"][0]),
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
        **pages.gallery,
        shown=workspace.names.targets(pages.pictured),
        template="workflow/report/gallery.html.j2",
        concepts=list(project.concepts.values()),
    message:
        "Writing the gallery"
    script:
        "../workflow/scripts/gallery.py"
