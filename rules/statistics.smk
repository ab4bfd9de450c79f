"""Statistics of the protected prompts: once per model and prompt set, one job per timestep."""


rule trajectory:
    output:
        directory("<results>/trajectories/{shard}.zarr"),
    log:
        "<results>/logs/trajectories/{shard}.log",
    benchmark:
        "<results>/benchmarks/trajectories/{shard}.tsv"
    conda:
        "../envs/nullbooth.yaml"
    threads: workflow.cores or 1
    resources:
        gpu=1,
        mem_mb=grown(4000),
        runtime=240,
    params:
        prompts=protected_shard,
        sampler=config["sampler"],
        seed=config["protect"]["seed"],
        identity=IDENTITY,
    message:
        "Sampling the protected prompts, shard {wildcards.shard}"
    script:
        "../workflow/scripts/trajectory.py"


rule covariance:
    input:
        trajectories=collect(rules.trajectory.output[0], shard=SHARDS),
    output:
        directory("<results>/covariances/{step}.zarr"),
    log:
        "<results>/logs/covariances/{step}.log",
    benchmark:
        "<results>/benchmarks/covariances/{step}.tsv"
    conda:
        "../envs/nullbooth.yaml"
    threads: 1
    resources:
        gpu=1,
        mem_mb=grown(3000),
        runtime=60,
    params:
        projections=config["protect"]["projections"],
        identity=IDENTITY,
    message:
        "Second moments at timestep {wildcards.step}"
    script:
        "../workflow/scripts/covariance.py"


rule heldout_trajectory:
    output:
        directory("<results>/trajectories/heldout.zarr"),
    log:
        "<results>/logs/trajectories/heldout.log",
    benchmark:
        "<results>/benchmarks/trajectories/heldout.tsv"
    conda:
        "../envs/nullbooth.yaml"
    threads: workflow.cores or 1
    resources:
        gpu=1,
        mem_mb=grown(4000),
        runtime=60,
    params:
        prompts=HELDOUT,
        sampler=config["sampler"],
        seed=config["protect"]["seed"],
        identity=HELDOUT_IDENTITY,
    message:
        "Sampling prompts that are not protected"
    script:
        "../workflow/scripts/trajectory.py"


rule heldout_moments:
    input:
        trajectories=rules.heldout_trajectory.output[0],
    output:
        directory("<results>/covariances/heldout.zarr"),
    log:
        "<results>/logs/covariances/heldout.log",
    benchmark:
        "<results>/benchmarks/covariances/heldout.tsv"
    conda:
        "../envs/nullbooth.yaml"
    threads: 1
    resources:
        gpu=1,
        mem_mb=grown(4000),
        runtime=120,
    params:
        projections=config["protect"]["projections"],
        steps=config["sampler"]["steps"],
        identity=HELDOUT_IDENTITY,
    message:
        "Second moments of prompts that are not protected, all timesteps"
    script:
        "../workflow/scripts/heldout.py"


rule spectra:
    input:
        covariances=collect(rules.covariance.output[0], step=STEPS),
    output:
        spectra=report(
            "<results>/figures/spectra.svg",
            caption="../workflow/report/spectra.rst",
            category="Moments",
            labels={"figure": "spectra of the moments"},
        ),
        free=report(
            "<results>/figures/free_directions.svg",
            caption="../workflow/report/free_directions.rst",
            category="Moments",
            labels={"figure": "free directions"},
        ),
        table="<results>/figures/free_directions.csv",
    log:
        "<results>/logs/spectra.log",
    benchmark:
        "<results>/benchmarks/spectra.tsv"
    conda:
        "../envs/nullbooth.yaml"
    threads: 1
    resources:
        mem_mb=grown(3000),
        runtime=60,
    params:
        rule=config["protect"]["rule"],
        identity=IDENTITY,
    message:
        "Drawing spectra and free directions"
    script:
        "../workflow/scripts/spectra.py"


rule pool:
    input:
        covariances=collect(rules.covariance.output[0], step=STEPS),
    output:
        directory("<results>/covariances/pooled.zarr"),
    log:
        "<results>/logs/covariances/pooled.log",
    benchmark:
        "<results>/benchmarks/covariances/pooled.tsv"
    conda:
        "../envs/nullbooth.yaml"
    resources:
        mem_mb=grown(2000),
        runtime=30,
    params:
        identity=IDENTITY,
    message:
        "Pooling the moments of all timesteps"
    script:
        "../workflow/scripts/pool.py"


rule projector:
    input:
        covariance="<results>/covariances/{step}.zarr",
    output:
        directory("<results>/projectors/{step}.zarr"),
    log:
        "<results>/logs/projectors/{step}.log",
    benchmark:
        "<results>/benchmarks/projectors/{step}.tsv"
    wildcard_constraints:
        step="|".join([*STEPS, "pooled"]),
    conda:
        "../envs/nullbooth.yaml"
    threads: 1
    resources:
        mem_mb=grown(2000),
        runtime=30,
    params:
        identity=IDENTITY,
    message:
        "Eigenvectors at timestep {wildcards.step}"
    script:
        "../workflow/scripts/projector.py"
