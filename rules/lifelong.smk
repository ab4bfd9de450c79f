"""Concepts one after another: each is learned with those before at work, and leaves them alone; what becomes of each."""


def taught_prompts(wildcards):
    """What later subjects leave alone of one: its captions, or the prompts that the config gives, with its name."""
    concept = CONCEPTS[wildcards.concept]
    texts = SUBJECT_PROMPTS or concept["class_prompts"]
    return [fill_prompt(prompt, subject_words(concept)) for prompt in texts]


def moments_identity(run):
    """What the moments of a learned subject are made from."""
    return {"model": MODEL, "sampler": IDENTITY["sampler"], "run": KEYS[run], "prompts": SUBJECT_PROMPTS}


def earlier_moments(wildcards):
    return collect("<kept>/runs/{run}/moments.zarr", run=kept_runs(earlier_runs(**run_of(wildcards))))


def earlier_identities(wildcards):
    return [moments_identity(run) for run in earlier_runs(**run_of(wildcards))]


def stage_of(run, count):
    """The key of what is known after so many concepts, by the method and seed of a run."""
    _, method, seed = run.split("/")
    return digest(kept_runs(f"{concept}/{method}/{seed}" for concept in list(CONCEPTS)[:count]))


def pictures_at(stage, concept):
    """Where pictures of a concept are below a stage."""
    prompts = stage_prompts(Named(stage=stage, concept=concept))
    return f"images/{digest([prompts, config['sampler'], SAMPLING])}"


def stage_pictures(wildcards):
    place = "<kept>/lifelong/{method}/{seed}/{stage}/{concept}".format(**wildcards)
    return f"{place}/{pictures_at(wildcards.stage, wildcards.concept)}"


def measured_at(stage, concept):
    wildcards = Named(concept=concept, method=STAGES[stage][0].split("/")[1])
    return f"metrics/{measured_key(pictures_at(stage, concept), wildcards)}.json"


def stages_measured(of_run, of_stage):
    """Files by (method, seed, concepts known, concept): each concept when it was learned, and ever after. of_run: where
    they are below an adapter, by run; of_stage: below a stage, by its key and concept.

    A concept that was just learned on top of others has been drawn and measured as such, as a run; one that was learned
    alone, to be merged, too: then none counts as known.
    """
    found = {}
    for run in RUNS:
        concept, method, seed = run.split("/")
        if method not in LIFELONG:
            continue
        if LIFELONG[method] == "merged":
            found[method, int(seed), 0, concept] = f"<kept>/runs/{run}/{KEYS[run]}/{of_run[run]}"
        for count in range(list(CONCEPTS).index(concept) + 1, len(CONCEPTS) + 1):
            last = list(CONCEPTS)[count - 1]
            if count == 1 or (last == concept and LIFELONG[method] == "sequence"):
                place = f"<kept>/runs/{run}/{KEYS[run]}/{of_run[run]}"
            else:
                stage = stage_of(run, count)
                place = f"<kept>/lifelong/{method}/{seed}/{stage}/{concept}/{of_stage(stage, concept)}"
            found[method, int(seed), count, concept] = place
    return found


def stage_adapters(wildcards):
    return collect("<kept>/runs/{run}/adapter.safetensors", run=kept_runs(STAGES[wildcards.stage]))


def stage_prompts(wildcards):
    """All groups of the concept that was learned last, and of earlier ones what shows themselves."""
    groups = run_prompts(wildcards)
    last = STAGES[wildcards.stage][-1].split("/")[0] == wildcards.concept
    return groups if last else {group: groups[group] for group in ("subject", "class")}


def pairs_of(wildcards):
    """Two prompts for each two concepts that follow each other, of the left and of the right half of one picture."""
    words = [subject_words(CONCEPTS[run.split("/")[0]]) for run in STAGES[wildcards.stage]]
    left, right = config["lifelong"]["pair"]
    return [[fill_prompt(left, a), fill_prompt(right, b)] for a, b in itertools.pairwise(words)]


def whole_stages():
    """What is known in the end, by method and seed."""
    return {runs[0].partition("/")[2]: key for key, runs in STAGES.items() if len(runs) == len(CONCEPTS)}


def rooms(scope):
    """Projectors by method, seed and concept that say how many directions were free for it, of protecting sequences."""
    found = {}
    for run in RUNS:
        concept, method, seed = run.split("/")
        if LIFELONG.get(method) == "sequence" and is_ours(METHODS[method]) and METHODS[method]["scope"] == scope:
            step = "pooled" if scope == "pooled" else STEPS[0]
            joined = RECIPES[run]["identity"].get("lifelong")
            place = f"<kept>/runs/{run}/{KEYS[run]}" if joined else "<statistics>"
            found[method, int(seed), concept] = f"{place}/projectors/{step}.zarr"
    return found


def pairs_at(stage):
    """Where pictures of two subjects at once are below a stage."""
    pairs = pairs_of(Named(stage=stage))
    return f"together/{digest([pairs, config['sampler'], SAMPLING])}"


ROOMS = {key: path for scope in ("pooled", "timestep", "shared") for key, path in rooms(scope).items()}
SEEN, JUDGED = stages_measured(PICTURES, pictures_at), stages_measured(MEASURED, measured_at)
TOGETHER = {run: f"<kept>/lifelong/{run}/{stage}/{pairs_at(stage)}" for run, stage in whole_stages().items()}
LEARNED_IN_TURN = {
    "stages": [list(key) for key in SEEN],
    "rooms": [list(key) for key in ROOMS],
    "runs": list(TOGETHER),
    "rules": {name: METHODS[name]["rule"] or config["protect"]["rule"] for name in LIFELONG},
    "ranks": {name: METHODS[name]["rank"] for name in LIFELONG},
    "concepts": list(CONCEPTS),
}
SHOWN["lifelong"] = (
    page_of(
        "lifelong",
        [],
        of=[STATISTICS.name, *SEEN.values(), *JUDGED.values(), *ROOMS.values(), TOGETHER],
        **LEARNED_IN_TURN,
    ),
    "",
)


rule subject_moments:
    input:
        earlier=adapters_before,
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
        mem_mb=grown(4000, "heldout_moments"),
        runtime=longer(120),
    params:
        prompts=taught_prompts,
        sampler=config["sampler"],
        seed=config["protect"]["seed"],
        sites=config["protect"]["sites"],
        identity=lambda wildcards: moments_identity("{concept}/{method}/{seed}".format(**run_of(wildcards))),
    message:
        "Second moments of {wildcards.concept}, as {wildcards.method} has learned it, seed {wildcards.seed}"
    script:
        "../workflow/scripts/subject_moments.py"


rule joined_projector:
    input:
        covariance="<statistics>/covariances/{step}.zarr",
        alone="<statistics>/projectors/{step}.zarr",
        earlier=earlier_moments,
    output:
        directory("<kept>/<run>/{key}/projectors/{step}.zarr"),
    log:
        "<results>/logs/lifelong/projectors/{concept}/{method}/{seed}/{key}/{step}.log",
    benchmark:
        "<results>/benchmarks/lifelong/projectors/{concept}/{method}/{seed}/{key}/{step}.tsv"
    wildcard_constraints:
        step="|".join([*STEPS, "pooled"]),
    conda:
        "../envs/nullbooth.yaml"
    threads: 1
    resources:
        mem_mb=grown(2000, "projector"),
        runtime=longer(30),
    params:
        step="{step}",
        weight=LATER["weight"],
        of_statistics=IDENTITY,
        of_earlier=earlier_identities,
        identity=made_from("identity"),
    message:
        "Eigenvectors at timestep {wildcards.step}, with the subjects before {wildcards.concept}"
    script:
        "../workflow/scripts/projector.py"


rule stage_images:
    input:
        adapters=stage_adapters,
    output:
        directory("<kept>/lifelong/{method}/{seed}/{stage}/{concept}/images/{pictures}"),
    log:
        "<results>/logs/lifelong/images/{method}/{seed}/{stage}/{concept}/{pictures}.log",
    benchmark:
        "<results>/benchmarks/lifelong/images/{method}/{seed}/{stage}/{concept}/{pictures}.tsv"
    conda:
        "../envs/nullbooth.yaml"
    threads: CPUS
    resources:
        gpu=1,
        mem_mb=grown(6000, "tuned_images"),
        runtime=longer(60),
    params:
        prompts=stage_prompts,
        sampler=config["sampler"],
        sampling=SAMPLING,
        identity={"model": MODEL},
    message:
        "Drawing {wildcards.concept} with all that {wildcards.method} has learned by then, seed {wildcards.seed}"
    script:
        "../workflow/scripts/sample.py"


rule stage_metrics:
    input:
        tuned=stage_pictures,
        base=base_parts,
        embedded=base_embeddings,
    output:
        "<kept>/lifelong/{method}/{seed}/{stage}/{concept}/metrics/{measured}.json",
    log:
        "<results>/logs/lifelong/metrics/{method}/{seed}/{stage}/{concept}/{measured}.log",
    benchmark:
        "<results>/benchmarks/lifelong/metrics/{method}/{seed}/{stage}/{concept}/{measured}.tsv"
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
        "Measuring {wildcards.concept} with all that {wildcards.method} has learned by then, seed {wildcards.seed}"
    script:
        "../workflow/scripts/evaluate.py"


rule together:
    input:
        adapters=stage_adapters,
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
        mem_mb=grown(6000, "tuned_images"),
        runtime=longer(60),
    params:
        pairs=pairs_of,
        sampler=config["sampler"],
        sampling=SAMPLING,
        identity={"model": MODEL},
    message:
        "Drawing two subjects in one picture with {wildcards.method}, seed {wildcards.seed}"
    script:
        "../workflow/scripts/together.py"


rule lifelong:
    input:
        configured(LIFELONG, "methods: none has lifelong; set lifelong: sequence (or merged) for one"),
        metrics=JUDGED.values(),
        images=SEEN.values(),
        rooms=ROOMS.values(),
        together=TOGETHER.values(),
    output:
        folder=report(
            directory(SHOWN["lifelong"][0]),
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
        **LEARNED_IN_TURN,
    message:
        "Writing what became of each subject"
    script:
        "../workflow/scripts/lifelong.py"
