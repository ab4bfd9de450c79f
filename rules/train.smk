"""One adapter per concept, method and seed."""

# A run drawn with the adapter of another has measurements only.
FOLDERS |= {
    f"runs/{run}": f"runs/{run}/{'adapter.safetensors' if learned_run(run) == run else 'metrics.json'}" for run in KEYS
}
FILES_OF_RUN = {name: "" for name in ("adapter.safetensors", "loss.csv", "config.yaml", "tensorboard", "wandb")}
SHOWN |= {
    f"runs/{run}/{name}": (KEPT / "runs" / run / key / name, file)
    for run, key in KEYS.items()
    for name, file in {**FILES_OF_RUN, "lora": "README.md"}.items()
}


rule adapter:
    input:
        projectors=step_projectors,
        trajectories=calibration,
        class_images=class_images,
        earlier=adapters_before,
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
        gpu=training_gpus,
        mem_mb=grown(8000, "adapter"),
        runtime=480,
    params:
        **{key: made_from(key) for key in ("concept", "method", "sampler", "resolution", "sites", "identity")},
    message:
        "Learning {wildcards.concept} with {wildcards.method}, seed {wildcards.seed}"
    script:
        "../workflow/scripts/adapter.py"


rule export:
    input:
        adapter=rules.adapter.output.adapter,
    output:
        # No directory(): Snakemake would leave a file of its own in what people upload.
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
        collect("<kept>/runs/{run}/lora/README.md", run=kept_runs(EXPORTABLE)),
        ["<edited>/pipeline/model_index.json", "<edited>/lora/diffusers.safetensors"] if EDITS else [],
