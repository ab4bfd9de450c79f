"""Lifelong learning: concepts are learned one after another, each on top of earlier ones, and measured again later."""


rule subject_moments:
    input:
        earlier=runs.adapters_before,
        adapter=rules.adapter.output.adapter,
    output:
        directory("<kept>/<run>/{key}/moments.zarr"),
    log:
        "<results>/logs/lifelong/moments/{concept}/{method}/{seed}/{key}.log",
    benchmark:
        "<results>/benchmarks/lifelong/moments/{concept}/{method}/{seed}/{key}.tsv"
    conda:
        "../envs/nullbooth.yaml"
    threads: CPUS
    resources:
        gpu=1,
        mem_mb=memory(4000, "heldout_moments"),
        runtime=longer(120),
    params:
        prompts=stages.taught_prompts,
        sampler=config["sampler"],
        seed=config["protect"]["seed"],
        sites=config["protect"]["sites"],
        identity=stages.moments_identity,
    message:
        "Second moments of {wildcards.concept}, learned with {wildcards.method}, seed {wildcards.seed}"
    script:
        "../workflow/scripts/subject_moments.py"


rule joined_projector:
    input:
        covariance="<statistics>/covariances/{step}.zarr",
        alone="<statistics>/projectors/{step}.zarr",
        earlier=stages.earlier_moments,
    output:
        directory("<kept>/<run>/{key}/projectors/{step}.zarr"),
    log:
        "<results>/logs/lifelong/projectors/{concept}/{method}/{seed}/{key}/{step}.log",
    benchmark:
        "<results>/benchmarks/lifelong/projectors/{concept}/{method}/{seed}/{key}/{step}.tsv"
    wildcard_constraints:
        step="|".join(statistics.pooled),
    conda:
        "../envs/nullbooth.yaml"
    threads: 1
    resources:
        mem_mb=memory(2000, "projector"),
        runtime=longer(30),
    params:
        step="{step}",
        weight=runs.later["weight"],
        of_statistics=statistics.identity,
        of_earlier=stages.earlier_identities,
        identity=runs.part("identity"),
    message:
        "Eigenvectors at timestep {wildcards.step}, with the subjects learned before {wildcards.concept}"
    script:
        "../workflow/scripts/projector.py"


use rule tuned_images as stage_images with:
    input:
        adapters=stages.adapters,
    output:
        directory("<kept>/lifelong/{method}/{seed}/{stage}/{concept}/images/{pictures}"),
    log:
        "<results>/logs/lifelong/images/{method}/{seed}/{stage}/{concept}/{pictures}.log",
    benchmark:
        "<results>/benchmarks/lifelong/images/{method}/{seed}/{stage}/{concept}/{pictures}.tsv"
    params:
        prompts=stages.prompts,
        sampler=config["sampler"],
        sampling=pictures.sampling,
    message:
        "Drawing {wildcards.concept} with all subjects learned so far, {wildcards.method}, seed {wildcards.seed}"


use rule evaluate as stage_metrics with:
    input:
        tuned=stages.pictures,
        base=pictures.base_of_run,
        embedded=pictures.base_embeddings,
    output:
        "<kept>/lifelong/{method}/{seed}/{stage}/{concept}/metrics/{measured}.json",
    log:
        "<results>/logs/lifelong/metrics/{method}/{seed}/{stage}/{concept}/{measured}.log",
    benchmark:
        "<results>/benchmarks/lifelong/metrics/{method}/{seed}/{stage}/{concept}/{measured}.tsv"
    message:
        "Measuring {wildcards.concept} with all subjects learned so far, {wildcards.method}, seed {wildcards.seed}"


rule together:
    input:
        adapters=stages.adapters,
    output:
        directory("<kept>/lifelong/{method}/{seed}/{stage}/together/{pictures}"),
    log:
        "<results>/logs/lifelong/together/{method}/{seed}/{stage}/{pictures}.log",
    benchmark:
        "<results>/benchmarks/lifelong/together/{method}/{seed}/{stage}/{pictures}.tsv"
    conda:
        "../envs/nullbooth.yaml"
    threads: CPUS
    resources:
        gpu=1,
        mem_mb=memory(6000, "tuned_images"),
        runtime=longer(60),
    params:
        pairs=stages.pairs,
        sampler=config["sampler"],
        sampling=pictures.sampling,
        identity={"model": project.model},
    message:
        "Drawing two subjects in one picture with {wildcards.method}, seed {wildcards.seed}"
    script:
        "../workflow/scripts/together.py"


rule lifelong:
    input:
        configured(stages.of_methods, "methods: none has lifelong; set lifelong: sequence (or merged) for one"),
        metrics=stages.judged.values(),
        images=stages.seen.values(),
        rooms=stages.free.values(),
        together=stages.together.values(),
    output:
        folder=report(
            directory(workspace.names.shown["lifelong"][0]),
            htmlindex="retention.svg",
            caption="../workflow/report/lifelong.rst",
            category="Lifelong",
            labels={"figure": "subjects one after another"},
        ),
    log:
        "<results>/logs/lifelong/table.log",
    benchmark:
        "<results>/benchmarks/lifelong/table.tsv"
    conda:
        "../envs/nullbooth.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=longer(10),
    params:
        **stages.about,
    message:
        "Writing the retention of all subjects"
    script:
        "../workflow/scripts/lifelong.py"
