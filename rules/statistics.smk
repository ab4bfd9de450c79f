"""Statistics of the protected prompts: once per model and prompt set, one job per timestep."""


def shard_prompts(wildcards):
    return SHARD_PROMPTS[wildcards.shard]


def identity_of_shard(wildcards):
    return shard_identity(OF_SHARDS, SHARD_PROMPTS[wildcards.shard])


def taken():
    """The shards that are protected: all, or the first ones until another one does not lower the leak by enough."""
    leaks = []
    for count in range(1, len(SHARDS) if UNTIL else 0):
        leaks.append(read_json(checkpoints.leak.get(number=count).output[0])["leak"])
        if enough(leaks, UNTIL):
            return list(SHARDS)[:count]
    return list(SHARDS)


def first_identities(wildcards):
    """By name, what the first so many shards are made from."""
    return dict(list(SHARD_IDENTITIES.items())[: int(wildcards.number)])


def first_shards(wildcards):
    return collect("<kept>/shards/{shard}/pooled.zarr", shard=list(SHARDS)[: int(wildcards.number)])


def moments_taken(wildcards):
    return collect(f"<kept>/shards/{{shard}}/moments/{wildcards.step}.zarr", shard=taken())


def leaks_taken(wildcards):
    return collect(f"{LEAK}/{{number}}.json", number=[i + 1 for i in range(len(taken()))])


def trajectories_taken(wildcards):
    return collect("<kept>/shards/{shard}/trajectory.zarr", shard=taken())


# What is drawn of the moments: how many directions a rule frees, and what more prompts bring for others.
FIGURES = f"{STATISTICS}/figures/{RULE}"
LEAK = f"{STATISTICS}/leak/{digest([config['protect']['rule'], HELDOUT_IDENTITY, list(SHARD_IDENTITIES.values())])}"
FOLDERS |= {"figures": "figures/free_directions.csv", "packs": f"packs/{SCOPES[0]}.safetensors"}
SHOWN |= {
    **{
        f"figures/{name}": (f"{FIGURES}/{name}", "")
        for name in ("spectra.svg", "free_directions.svg", "free_directions.csv")
    },
    **{f"figures/{name}": (f"{LEAK}/{name}", "") for name in ("leak.svg", "leak.csv")},
    **{
        f"packs/{scope}.safetensors": (f"{STATISTICS}/packs/{RULE}/{scope}.safetensors", "")
        for scope in ("pooled", "timestep")
    },
    **{
        f"{kind}/{step}.zarr": (f"{STATISTICS}/{kind}/{step}.zarr", "")
        for kind in ("covariances", "projectors")
        for step in [*STEPS, "pooled"]
    },
    **{
        f"trajectories/{i:02d}.zarr": (KEPT / "shards" / shard / "trajectory.zarr", "")
        for i, shard in enumerate(SHARDS)
    },
}


rule trajectory:
    output:
        directory("<kept>/shards/{shard}/trajectory.zarr"),
    log:
        "<results>/logs/trajectories/{shard}.log",
    cache: "omit-software"  # between workflows; what it cost stands in the store, for Snakemake benchmarks no such rule
    conda:
        "../envs/nullbooth.yaml"
    threads: CPUS
    resources:
        gpu=1,
        mem_mb=grown(4000, "trajectory"),
        runtime=longer(240),
    params:
        prompts=shard_prompts,
        sampler=config["sampler"],
        seed=config["protect"]["seed"],
        identity=identity_of_shard,
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
        mem_mb=grown(3000, "moments"),
        runtime=longer(60),
        turn=1,  # of a SLURM job of several
    params:
        step="{step}",  # a parameter, for a shared cache knows steps apart by parameters only
        sites=config["protect"]["sites"],
        identity=identity_of_shard,
    message:
        "Second moments at timestep {wildcards.step}, shard {wildcards.shard}"
    script:
        "../workflow/scripts/moments.py"


rule covariance:
    input:
        moments=moments_taken,
    output:
        directory("<statistics>/covariances/{step}.zarr"),
    log:
        "<results>/logs/covariances/{step}.log",
    cache: "omit-software"
    conda:
        "../envs/nullbooth.yaml"
    threads: 1
    resources:
        mem_mb=grown(2000, "covariance"),
        runtime=longer(30),
        turn=1,  # of a SLURM job of several
    params:
        step="{step}",
        shards=SHARD_IDENTITIES,
        identity=IDENTITY,
    message:
        "Second moments at timestep {wildcards.step}, all shards"
    script:
        "../workflow/scripts/covariance.py"


rule heldout_moments:
    input:
        trajectory=f"<kept>/shards/{HELDOUT}/trajectory.zarr",
    output:
        directory(f"<kept>/shards/{HELDOUT}/all.zarr"),
    log:
        "<results>/logs/moments/heldout.log",
    benchmark:
        "<results>/benchmarks/moments/heldout.tsv"
    conda:
        "../envs/nullbooth.yaml"
    threads: 1
    resources:
        gpu=1,
        mem_mb=grown(4000, "heldout_moments"),
        runtime=longer(120),
    params:
        sites=config["protect"]["sites"],
        steps=config["sampler"]["steps"],
        identity=HELDOUT_IDENTITY,
    message:
        "Second moments of prompts that are not protected, all timesteps"
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
        mem_mb=grown(2000, "shard_pool"),
        runtime=longer(30),
    params:
        identity=identity_of_shard,
    message:
        "Pooling the moments of all timesteps, shard {wildcards.shard}"
    script:
        "../workflow/scripts/pool.py"


checkpoint leak:  # for what more prompts would bring decides how many are protected (protect.prompts_until)
    input:
        moments=first_shards,
        heldout=rules.heldout_moments.output[0],
    output:
        f"{LEAK}/{{number}}.json",
    log:
        "<results>/logs/leak/{number}.log",
    benchmark:
        "<results>/benchmarks/leak/{number}.tsv"
    conda:
        "../envs/nullbooth.yaml"
    threads: 1
    resources:
        mem_mb=grown(2000, "leak"),
        runtime=longer(60),
    params:
        shards=first_identities,
        prompts=lambda wildcards: sum(map(len, list(SHARDS.values())[: int(wildcards.number)])),
        rule=config["protect"]["rule"],
        others=HELDOUT_IDENTITY,
    message:
        "Leak on other prompts with {params.prompts} protected prompts"
    script:
        "../workflow/scripts/leak.py"


rule leaks:
    input:
        leaks=leaks_taken,
    output:
        leak=report(
            f"{LEAK}/leak.svg",
            caption="../workflow/report/leak.rst",
            category="Moments",
            labels={"figure": "leak by number of prompts"},
        ),
        table=f"{LEAK}/leak.csv",
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
            f"{FIGURES}/spectra.svg",
            caption="../workflow/report/spectra.rst",
            category="Moments",
            labels={"figure": "spectra of the moments"},
        ),
        free=report(
            f"{FIGURES}/free_directions.svg",
            caption="../workflow/report/free_directions.rst",
            category="Moments",
            labels={"figure": "free directions"},
        ),
        table=f"{FIGURES}/free_directions.csv",
    log:
        "<results>/logs/spectra.log",
    benchmark:
        "<results>/benchmarks/spectra.tsv"
    conda:
        "../envs/nullbooth.yaml"
    threads: 1
    resources:
        mem_mb=grown(3000, "spectra"),
        runtime=longer(60),
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
        directory("<statistics>/covariances/pooled.zarr"),
    log:
        "<results>/logs/covariances/pooled.log",
    cache: "omit-software"
    conda:
        "../envs/nullbooth.yaml"
    resources:
        mem_mb=grown(2000, "pool"),
        runtime=longer(30),
    params:
        identity=IDENTITY,
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
        step="|".join([*STEPS, "pooled"]),
    cache: "omit-software"
    conda:
        "../envs/nullbooth.yaml"
    threads: 1
    resources:
        mem_mb=grown(2000, "projector"),
        runtime=longer(30),
        turn=1,  # of a SLURM job of several
    params:
        step="{step}",
        identity=IDENTITY,
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
        f"<statistics>/packs/{RULE}/{{scope}}.safetensors",
    log:
        "<results>/logs/packs/{scope}.log",
    benchmark:
        "<results>/benchmarks/packs/{scope}.tsv"
    conda:
        "../envs/nullbooth.yaml"
    threads: 1
    resources:
        mem_mb=grown(8000, "packed"),
        runtime=longer(60),
    params:
        scope="{scope}",
        rule=config["protect"]["rule"],
        identity=IDENTITY,
        about={
            "model": Path(config["model"]).name if Path(config["model"]).is_dir() else config["model"],
            "sites": config["protect"]["sites"],
            "sampler": config["sampler"],
            "resolution": config["resolution"],
        },
        shards=SHARDS,
    message:
        "Packing the projectors of scope {wildcards.scope}"
    script:
        "../workflow/scripts/pack.py"


rule pack:
    input:
        collect(rules.packed.output[0], scope=SCOPES),
