"""One adapter per concept, method and seed."""


rule adapter:
    input:
        projectors=step_projectors,
        trajectories=calibration,
        class_images=class_images,
    output:
        adapter="<results>/runs/{concept}/{method}/{seed}/adapter.safetensors",
        loss="<results>/runs/{concept}/{method}/{seed}/loss.csv",
        config="<results>/runs/{concept}/{method}/{seed}/config.yaml",
    log:
        "<results>/logs/adapters/{concept}/{method}/{seed}.log",
    benchmark:
        "<results>/benchmarks/adapters/{concept}/{method}/{seed}.tsv"
    conda:
        "../envs/nullbooth.yaml"
    threads: workflow.cores or 1
    resources:
        gpu=1,
        mem_mb=grown(8000),
        runtime=480,
    params:
        concept=concept_settings,
        method=method_settings,
        sampler=config["sampler"],
        resolution=config["resolution"],
        validate=config["validate"],
        projections=config["protect"]["projections"],
        identity=method_identity,
    message:
        "Learning {wildcards.concept} with {wildcards.method}, seed {wildcards.seed}"
    script:
        "../workflow/scripts/adapter.py"
