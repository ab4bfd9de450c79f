"""Pictures of base and tuned models from the same noise, and their measurements."""


rule base_images:
    output:
        directory("<drawn>/{part}/{pictures}"),
    log:
        "<results>/logs/images/base/{part}/{pictures}.log",
    benchmark:
        "<results>/benchmarks/images/base/{part}/{pictures}.tsv"
    conda:
        "../envs/nullbooth.yaml"
    threads: CPUS
    resources:
        gpu=1,
        mem_mb=memory(6000, "base_images"),
        runtime=longer(60),
    params:
        prompts=pictures.base_prompts,
        sampler=pictures.sampler_of,
        sampling=pictures.sampling_of,
        identity={"model": project.model},
    message:
        "Drawing with the base model: {wildcards.part}"
    script:
        "../workflow/scripts/sample.py"


use rule base_images as class_images with:
    output:
        directory("<drawn>/class/{concept}/{pictures}"),
    log:
        "<results>/logs/images/class/{concept}/{pictures}.log",
    benchmark:
        "<results>/benchmarks/images/class/{concept}/{pictures}.tsv"
    resources:
        gpu=1,
        mem_mb=memory(6000, "class_images"),
        runtime=longer(60),
    params:
        prompts=pictures.class_prompts,
        sampler=config["sampler"],
        sampling=pictures.class_sampling,
    message:
        "Drawing the class of {wildcards.concept} with the base model"


use rule base_images as tuned_images with:
    input:
        adapters=runs.adapter,
        earlier=runs.adapters_before,
    output:
        directory("<kept>/<run>/{key}/images/{pictures}"),
    log:
        "<results>/logs/images/{concept}/{method}/{seed}/{key}/{pictures}.log",
    benchmark:
        "<results>/benchmarks/images/{concept}/{method}/{seed}/{key}/{pictures}.tsv"
    resources:
        gpu=1,
        mem_mb=memory(6000, "tuned_images"),
        runtime=longer(60),
    params:
        prompts=pictures.run_prompts,
    message:
        "Drawing {wildcards.concept} with {wildcards.method}, seed {wildcards.seed}"


rule embed_base:
    input:
        "<drawn>/{part}/{pictures}",
    output:
        "<drawn>/{part}/embeddings/{pictures}/{measured}.safetensors",
    log:
        "<results>/logs/images/embeddings/{part}/{pictures}/{measured}.log",
    benchmark:
        "<results>/benchmarks/images/embeddings/{part}/{pictures}/{measured}.tsv"
    conda:
        "../envs/nullbooth.yaml"
    threads: 1
    resources:
        gpu=1,
        mem_mb=memory(4000, "embed_base"),
        runtime=longer(30),
    params:
        identity=project.embedders,
    message:
        "Embedding pictures of the base model: {wildcards.part}"
    script:
        "../workflow/scripts/embed_base.py"


rule evaluate:
    input:
        tuned=pictures.tuned_folder,
        base=pictures.base_of_run,
        embedded=pictures.base_embeddings,
    output:
        "<kept>/<run>/{key}/metrics/{measured}.json",
    log:
        "<results>/logs/metrics/{concept}/{method}/{seed}/{key}/{measured}.log",
    benchmark:
        "<results>/benchmarks/metrics/{concept}/{method}/{seed}/{key}/{measured}.tsv"
    conda:
        "../envs/nullbooth.yaml"
    threads: 1
    resources:
        gpu=1,
        mem_mb=memory(4000, "evaluate"),
        runtime=longer(30),
    params:
        identity=project.evaluators,
        concept=pictures.photographs,
    message:
        "Measuring {wildcards.concept} with {wildcards.method}, seed {wildcards.seed}"
    script:
        "../workflow/scripts/evaluate.py"
