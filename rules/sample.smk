"""Pictures of base and tuned models from the same noise, and how they differ."""


rule base_images:
    output:
        directory("<drawn>/{part}"),
    log:
        "<results>/logs/images/base/{part}.log",
    benchmark:
        "<results>/benchmarks/images/base/{part}.tsv"
    conda:
        "../envs/nullbooth.yaml"
    threads: CPUS
    resources:
        gpu=1,
        mem_mb=grown(6000, "base_images"),
        runtime=longer(60),
    params:
        prompts=base_prompts,
        sampler=drawn_sampler,
        sampling=drawn_sampling,
        identity={"model": MODEL},
    message:
        "Drawing with the base model: {wildcards.part}"
    script:
        "../workflow/scripts/sample.py"


rule class_images:
    output:
        directory("<drawn>/class/{concept}"),
    log:
        "<results>/logs/images/class/{concept}.log",
    benchmark:
        "<results>/benchmarks/images/class/{concept}.tsv"
    conda:
        "../envs/nullbooth.yaml"
    threads: CPUS
    resources:
        gpu=1,
        mem_mb=grown(6000, "class_images"),
        runtime=longer(60),
    params:
        prompts=class_prompts,
        sampler=config["sampler"],
        sampling=lambda wildcards: pictures_of_class(wildcards.concept),
        identity={"model": MODEL},
    message:
        "Drawing the class of {wildcards.concept} with the base model"
    script:
        "../workflow/scripts/sample.py"


rule tuned_images:
    input:
        adapters=adapter_of,
        earlier=adapters_before,
    output:
        directory("<kept>/<run>/{key}/images"),
    log:
        "<results>/logs/images/{concept}/{method}/{seed}/{key}.log",
    benchmark:
        "<results>/benchmarks/images/{concept}/{method}/{seed}/{key}.tsv"
    conda:
        "../envs/nullbooth.yaml"
    threads: CPUS
    resources:
        gpu=1,
        mem_mb=grown(6000, "tuned_images"),
        runtime=longer(60),
    params:
        prompts=run_prompts,
        sampler=drawn_sampler,
        sampling=drawn_sampling,
        identity={"model": MODEL},
    message:
        "Drawing {wildcards.concept} with {wildcards.method}, seed {wildcards.seed}"
    script:
        "../workflow/scripts/sample.py"


rule evaluate:
    input:
        tuned=rules.tuned_images.output[0],
        base=base_parts,
    output:
        "<kept>/<run>/{key}/metrics.json",
    log:
        "<results>/logs/metrics/{concept}/{method}/{seed}/{key}.log",
    benchmark:
        "<results>/benchmarks/metrics/{concept}/{method}/{seed}/{key}.tsv"
    conda:
        "../envs/nullbooth.yaml"
    threads: 1
    resources:
        gpu=1,
        mem_mb=grown(4000, "evaluate"),
        runtime=longer(30),
    params:
        identity=ENCODERS,
        concept=photographs,
    message:
        "Measuring {wildcards.concept} with {wildcards.method}, seed {wildcards.seed}"
    script:
        "../workflow/scripts/evaluate.py"
