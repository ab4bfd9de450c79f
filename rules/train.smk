"""One adapter per concept, method and seed."""


rule adapter:
    input:
        projectors=explained(runs.projectors),
        trajectories=lambda wildcards: (
            statistics.trajectories_taken(leak_file) if runs.reads_trajectories(wildcards) else []
        ),
        class_images=pictures.of_class,
        earlier=runs.adapters_before,
    output:
        adapter="<kept>/<run>/{key}/adapter.safetensors",
        loss="<kept>/<run>/{key}/loss.csv",
        config="<kept>/<run>/{key}/config.yaml",
    log:
        "<results>/logs/adapters/{concept}/{method}/{seed}/{key}.log",
    benchmark:
        "<results>/benchmarks/adapters/{concept}/{method}/{seed}/{key}.tsv"
    conda:
        "../envs/nullbooth.yaml"
    threads: CPUS
    resources:
        gpu=lambda wildcards: runs.gpus(wildcards.method),
        mem_mb=memory(8000, "adapter"),
        runtime=480,
    params:
        **{key: runs.part(key) for key in ("concept", "method", "sampler", "resolution", "sites", "identity")},
    message:
        "Learning {wildcards.concept} with {wildcards.method}, seed {wildcards.seed}"
    script:
        "../workflow/scripts/adapter.py"


rule export:
    input:
        adapter=rules.adapter.output.adapter,
    output:
        # Not directory(): Snakemake would add a file of its own to the folder that people upload.
        card="<kept>/<run>/{key}/lora/README.md",
        lora="<kept>/<run>/{key}/lora/diffusers.safetensors",
    log:
        "<results>/logs/lora/{concept}/{method}/{seed}/{key}.log",
    conda:
        "../envs/nullbooth.yaml"
    threads: 1
    resources:
        mem_mb=2000,
        runtime=longer(10),
    params:
        model=config["model"],
        configs=config["model_config"],
        revision=config["revision"],
    message:
        "Exporting {wildcards.concept}, learned with {wildcards.method}, seed {wildcards.seed}"
    script:
        "../workflow/scripts/export.py"


rule exports:
    input:
        [f"{runs.folder(run)}/lora/README.md" for run in runs.exportable],
        ["<edited>/pipeline/model_index.json", "<edited>/lora/diffusers.safetensors"] if edited.edits else [],
