"""Statistics of the protected prompts: once per model and prompt set, one job per timestep."""


rule trajectory:
    output:
        directory("<kept>/shards/{shard}/trajectory.zarr"),
    log:
        "<results>/logs/trajectories/{shard}.log",
    cache: "omit-software"  # between workflows; the store records the costs, as Snakemake benchmarks no such rule
    conda:
        "../envs/nullbooth.yaml"
    threads: CPUS
    resources:
        gpu=1,
        mem_mb=memory(4000, "trajectory"),
        runtime=longer(240),
    params:
        prompts=statistics.prompts_of,
        sampler=config["sampler"],
        seed=config["protect"]["seed"],
        identity=statistics.identity_of,
    message:
        "Sampling prompts for the statistics: shard {wildcards.shard}"
    script:
        "../workflow/scripts/trajectory.py"


rule moments:
    input:
        trajectory=rules.trajectory.output[0],
    output:
        directory("<kept>/shards/{shard}/moments/{step}.zarr"),
    log:
        "<results>/logs/moments/{shard}/{step}.log",
    cache: "omit-software"
    conda:
        "../envs/nullbooth.yaml"
    threads: 1
    resources:
        gpu=1,
        mem_mb=memory(3000, "moments"),
        runtime=longer(60),
        turn=1,  # of a SLURM job of several
    params:
        step="{step}",  # a parameter, because a shared cache distinguishes steps by parameters only
        sites=config["protect"]["sites"],
        identity=statistics.identity_of,
    message:
        "Second moments at timestep {wildcards.step}, shard {wildcards.shard}"
    script:
        "../workflow/scripts/moments.py"


rule covariance:
    input:
        moments=lambda wildcards: statistics.moments_taken(leak_file, wildcards.step),
    output:
        directory("<statistics>/covariances/{step}.zarr"),
    log:
        "<results>/logs/covariances/{step}.log",
    cache: "omit-software"
    conda:
        "../envs/nullbooth.yaml"
    threads: 1
    resources:
        mem_mb=memory(2000, "covariance"),
        runtime=longer(30),
        turn=1,  # of a SLURM job of several
    params:
        step="{step}",
        shards=statistics.identities,
        identity=statistics.identity,
    message:
        "Second moments at timestep {wildcards.step}, all shards"
    script:
        "../workflow/scripts/covariance.py"


rule heldout_moments:
    input:
        trajectory=f"<kept>/shards/{statistics.heldout}/trajectory.zarr",
    output:
        directory(f"<kept>/shards/{statistics.heldout}/all.zarr"),
    log:
        "<results>/logs/moments/heldout.log",
    benchmark:
        "<results>/benchmarks/moments/heldout.tsv"
    conda:
        "../envs/nullbooth.yaml"
    threads: 1
    resources:
        gpu=1,
        mem_mb=memory(4000, "heldout_moments"),
        runtime=longer(120),
    params:
        sites=config["protect"]["sites"],
        steps=config["sampler"]["steps"],
        identity=statistics.heldout_identity,
    message:
        "Second moments of unprotected prompts, all timesteps"
    script:
        "../workflow/scripts/heldout.py"


rule shard_pool:
    input:
        covariances=collect("<kept>/shards/{{shard}}/moments/{step}.zarr", step=STEPS),
    output:
        directory("<kept>/shards/{shard}/pooled.zarr"),
    log:
        "<results>/logs/moments/{shard}/pooled.log",
    benchmark:
        "<results>/benchmarks/moments/{shard}/pooled.tsv"
    conda:
        "../envs/nullbooth.yaml"
    threads: 1
    resources:
        mem_mb=memory(2000, "shard_pool"),
        runtime=longer(30),
    params:
        identity=statistics.identity_of,
    message:
        "Pooling the moments of all timesteps, shard {wildcards.shard}"
    script:
        "../workflow/scripts/pool.py"


checkpoint leak:  # its result decides how many prompts are protected (protect.prompts_until)
    input:
        moments=lambda wildcards: [f"<kept>/shards/{shard}/pooled.zarr" for shard in statistics.first(wildcards)],
        heldout=rules.heldout_moments.output[0],
    output:
        f"{statistics.leak}/{{number}}.json",
    log:
        "<results>/logs/leak/{number}.log",
    benchmark:
        "<results>/benchmarks/leak/{number}.tsv"
    conda:
        "../envs/nullbooth.yaml"
    threads: 1
    resources:
        mem_mb=memory(2000, "leak"),
        runtime=longer(60),
    params:
        shards=lambda wildcards: {shard: statistics.identities[shard] for shard in statistics.first(wildcards)},
        prompts=lambda wildcards: sum(len(statistics.shards[shard]) for shard in statistics.first(wildcards)),
        rule=config["protect"]["rule"],
        others=statistics.heldout_identity,
    message:
        "Leak on other prompts with {params.prompts} protected prompts"
    script:
        "../workflow/scripts/leak.py"


rule leaks:
    input:
        leaks=lambda wildcards: statistics.leaks_taken(leak_file),
    output:
        leak=report(
            f"{statistics.leak}/leak.svg",
            caption="../workflow/report/leak.rst",
            category="Moments",
            labels={"figure": "leak by number of prompts"},
        ),
        table=f"{statistics.leak}/leak.csv",
    log:
        "<results>/logs/leaks.log",
    benchmark:
        "<results>/benchmarks/leaks.tsv"
    conda:
        "../envs/nullbooth.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=longer(10),
    message:
        "Drawing the leak on other prompts"
    script:
        "../workflow/scripts/leaks.py"


rule spectra:
    input:
        covariances=collect(rules.covariance.output[0], step=STEPS),
    output:
        spectra=report(
            f"{statistics.figures}/spectra.svg",
            caption="../workflow/report/spectra.rst",
            category="Moments",
            labels={"figure": "spectra of the moments"},
        ),
        free=report(
            f"{statistics.figures}/free_directions.svg",
            caption="../workflow/report/free_directions.rst",
            category="Moments",
            labels={"figure": "free directions"},
        ),
        table=f"{statistics.figures}/free_directions.csv",
    log:
        "<results>/logs/spectra.log",
    benchmark:
        "<results>/benchmarks/spectra.tsv"
    conda:
        "../envs/nullbooth.yaml"
    threads: 1
    resources:
        mem_mb=memory(3000, "spectra"),
        runtime=longer(60),
    params:
        rule=config["protect"]["rule"],
        identity=statistics.identity,
    message:
        "Drawing spectra and free directions"
    script:
        "../workflow/scripts/spectra.py"


rule pool:
    input:
        covariances=collect(rules.covariance.output[0], step=STEPS),
    output:
        directory("<statistics>/covariances/pooled.zarr"),
    log:
        "<results>/logs/covariances/pooled.log",
    cache: "omit-software"
    conda:
        "../envs/nullbooth.yaml"
    resources:
        mem_mb=memory(2000, "pool"),
        runtime=longer(30),
    params:
        identity=statistics.identity,
    message:
        "Pooling the moments of all timesteps"
    script:
        "../workflow/scripts/pool.py"


rule projector:
    input:
        covariance="<statistics>/covariances/{step}.zarr",
    output:
        directory("<statistics>/projectors/{step}.zarr"),
    log:
        "<results>/logs/projectors/{step}.log",
    wildcard_constraints:
        step="|".join(statistics.pooled),
    cache: "omit-software"
    conda:
        "../envs/nullbooth.yaml"
    threads: 1
    resources:
        mem_mb=memory(2000, "projector"),
        runtime=longer(30),
        turn=1,  # of a SLURM job of several
    params:
        step="{step}",
        identity=statistics.identity,
    message:
        "Eigenvectors at timestep {wildcards.step}"
    script:
        "../workflow/scripts/projector.py"


rule packed:
    input:
        projectors=lambda wildcards: collect(
            "<statistics>/projectors/{step}.zarr", step=["pooled"] if wildcards.scope == "pooled" else STEPS
        ),
        covariance="<statistics>/covariances/00.zarr",
    output:
        f"<statistics>/packs/{statistics.rule}/{{scope}}.safetensors",
    log:
        "<results>/logs/packs/{scope}.log",
    benchmark:
        "<results>/benchmarks/packs/{scope}.tsv"
    conda:
        "../envs/nullbooth.yaml"
    threads: 1
    resources:
        mem_mb=memory(8000, "packed"),
        runtime=longer(60),
    params:
        scope="{scope}",
        rule=config["protect"]["rule"],
        identity=statistics.identity,
        about={
            "model": Path(config["model"]).name if Path(config["model"]).is_dir() else config["model"],
            "sites": config["protect"]["sites"],
            "sampler": config["sampler"],
            "resolution": config["resolution"],
        },
        shards=statistics.shards,
    message:
        "Packing the projectors of scope {wildcards.scope}"
    script:
        "../workflow/scripts/pack.py"


rule pack:
    input:
        collect(rules.packed.output[0], scope=statistics.scopes),
