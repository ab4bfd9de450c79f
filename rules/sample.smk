"""Pictures of base and tuned models from the same noise, and how they differ."""


def pictures_key(prompts, **names):
    """What names pictures of a model beside it: prompts and how they are drawn."""
    wildcards = Named(names)
    return digest([prompts(wildcards), drawn_sampler(wildcards), drawn_sampling(wildcards)])


def base_pictures(part):
    return f"{DRAWN}/{part}/{BASE_PICTURES[part]}"


def tuned_pictures(wildcards):
    run = "{concept}/{method}/{seed}".format(**run_of(wildcards))
    return f"<kept>/runs/{run}/{wildcards.key}/{PICTURES[run]}"


def class_key(concept):
    return digest([class_prompts(Named(concept=concept)), config["sampler"], pictures_of_class(concept)])


def measured_key(pictures, wildcards):
    """What names measurements of pictures: what they are compared with, and by what."""
    return digest([pictures, [Path(path).name for path in base_parts(wildcards)], ENCODERS, photographs(wildcards)])


BASE_PICTURES = {
    part: pictures_key(base_prompts, part=part) for part in [*PARTS, *(part + FEWER_STEPS for part in PARTS)]
}
CLASS_PICTURES = {concept: class_key(concept) for concept in CONCEPTS}
# By run, where its pictures and measurements are below its adapter.
PICTURES, MEASURED = {}, {}
for run in KEYS:
    named = dict(zip(("concept", "method", "seed"), run.split("/")))
    PICTURES[run] = f"images/{pictures_key(run_prompts, **named)}"
    MEASURED[run] = f"metrics/{measured_key(PICTURES[run], Named(named))}.json"

SHOWN |= {f"images/base/{part}": (base_pictures(part), "") for part in BASE_PICTURES}
for run, key in KEYS.items():
    SHOWN[f"runs/{run}/images"] = KEPT / "runs" / run / key / PICTURES[run], ""
    SHOWN[f"runs/{run}/metrics.json"] = KEPT / "runs" / run / key / MEASURED[run], ""


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
        directory("<drawn>/class/{concept}/{pictures}"),
    log:
        "<results>/logs/images/class/{concept}/{pictures}.log",
    benchmark:
        "<results>/benchmarks/images/class/{concept}/{pictures}.tsv"
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
        directory("<kept>/<run>/{key}/images/{pictures}"),
    log:
        "<results>/logs/images/{concept}/{method}/{seed}/{key}/{pictures}.log",
    benchmark:
        "<results>/benchmarks/images/{concept}/{method}/{seed}/{key}/{pictures}.tsv"
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
        mem_mb=grown(4000, "embed_base"),
        runtime=longer(30),
    params:
        identity=EMBEDDING,
    message:
        "Embedding pictures of the base model: {wildcards.part}"
    script:
        "../workflow/scripts/embed_base.py"


rule evaluate:
    input:
        tuned=tuned_pictures,
        base=base_parts,
        embedded=base_embeddings,
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
        mem_mb=grown(4000, "evaluate"),
        runtime=longer(30),
    params:
        identity=ENCODERS,
        concept=photographs,
    message:
        "Measuring {wildcards.concept} with {wildcards.method}, seed {wildcards.seed}"
    script:
        "../workflow/scripts/evaluate.py"
