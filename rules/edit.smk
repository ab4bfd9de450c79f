"""What prompts mean, edited in closed form, one edit after another; how well that holds, and what it did elsewhere."""

# By the group of pictures that are drawn in them.
EDITED_CONTEXTS = {"edited": CONTEXTS.get("templates", []), "paraphrased": CONTEXTS.get("paraphrases", [])}


def in_contexts(group, target=False):
    """Prompts of all edits in some of their contexts, as they are to be drawn or as they are to be understood."""
    # By their hashes: by the alphabet, they would be photographs all of them.
    chosen = sorted(EDITED_CONTEXTS[group], key=digest)[: config["edit"]["pictures"]]
    return list(dict.fromkeys(edit.filled(c)[target] for edit in EDITS for c in chosen))


# What the base model draws, and the edited one.
UNEDITED_PROMPTS = {
    "edited": in_contexts("edited"),
    "paraphrased": in_contexts("paraphrased"),
    "meant": in_contexts("edited", target=True) + in_contexts("paraphrased", target=True),
}
EDITED_PROMPTS = {**{group: UNEDITED_PROMPTS[group] for group in EDITED_CONTEXTS}, **UNEDITED}
UNEDITED_PICTURES, EDITED_PICTURES = (
    EDITED / name / digest([prompts, config["sampler"], SAMPLING])
    for name, prompts in {"base": UNEDITED_PROMPTS, "images": EDITED_PROMPTS}.items()
)
EDITS_MEASURED = (
    EDITED
    / "metrics"
    / digest([UNEDITED_PICTURES.name, EDITED_PICTURES.name, BASE_PICTURES["unrelated"], ENCODERS, EDITED_CONTEXTS])
)
FOLDERS |= {"edits": "edits/edit.safetensors"}
SHOWN |= {
    **{f"edits/{name}": (EDITED / name, "") for name in ("edit.safetensors", "edit.json", "config.yaml")},
    **{f"edits/metrics.{kind}": (f"{EDITS_MEASURED}.{kind}", "") for kind in ("json", "csv")},
    "edits/base": (UNEDITED_PICTURES, ""),
    "edits/images": (EDITED_PICTURES, ""),
    "edits/pipeline": (EDITED / "pipeline", "model_index.json"),
    "edits/lora": (EDITED / "lora", "diffusers.safetensors"),
}


rule edit:
    input:
        configured(EDITS, "edits: is empty; name what to edit, such as [{from: a moon, to: a yellow star}]"),
    output:
        edit="<edited>/edit.safetensors",
        about="<edited>/edit.json",
        config="<edited>/config.yaml",
    log:
        "<results>/logs/edits/edit.log",
    benchmark:
        "<results>/benchmarks/edits/edit.tsv"
    conda:
        "../envs/nullbooth.yaml"
    threads: CPUS
    resources:
        gpu=1,
        mem_mb=grown(4000, "trajectory"),
        runtime=longer(60),
    params:
        recipe=EDITING,
    message:
        "Editing what the model understands"
    script:
        "../workflow/scripts/edit.py"


rule unedited_images:
    output:
        directory(UNEDITED_PICTURES),
    log:
        "<results>/logs/edits/base.log",
    benchmark:
        "<results>/benchmarks/edits/base.tsv"
    conda:
        "../envs/nullbooth.yaml"
    threads: CPUS
    resources:
        gpu=1,
        mem_mb=grown(6000, "base_images"),
        runtime=longer(60),
    params:
        prompts=UNEDITED_PROMPTS,
        sampler=config["sampler"],
        sampling=SAMPLING,
        identity={"model": MODEL},
    message:
        "Drawing what is edited with the base model"
    script:
        "../workflow/scripts/sample.py"


rule edited_images:
    input:
        adapters=[rules.edit.output.edit],
    output:
        directory(EDITED_PICTURES),
    log:
        "<results>/logs/edits/images.log",
    benchmark:
        "<results>/benchmarks/edits/images.tsv"
    conda:
        "../envs/nullbooth.yaml"
    threads: CPUS
    resources:
        gpu=1,
        mem_mb=grown(6000, "tuned_images"),
        runtime=longer(60),
    params:
        prompts=EDITED_PROMPTS,
        sampler=config["sampler"],
        sampling=SAMPLING,
        identity={"model": MODEL},
    message:
        "Drawing with the edited model"
    script:
        "../workflow/scripts/sample.py"


rule measure_edits:
    input:
        edited=rules.edited_images.output[0],
        base=[rules.unedited_images.output[0], base_pictures("unrelated")],
    output:
        f"{EDITS_MEASURED}.json",
        f"{EDITS_MEASURED}.csv",
    log:
        "<results>/logs/edits/metrics.log",
    benchmark:
        "<results>/benchmarks/edits/metrics.tsv"
    conda:
        "../envs/nullbooth.yaml"
    threads: 1
    resources:
        gpu=1,
        mem_mb=grown(4000, "evaluate"),
        runtime=longer(30),
    params:
        identity=ENCODERS,
        edits=config["edits"],
        contexts=EDITED_CONTEXTS,
    message:
        "Measuring the edits"
    script:
        "../workflow/scripts/measure_edits.py"


rule export_edits:
    input:
        edit=rules.edit.output.edit,
    output:
        pipeline="<edited>/pipeline/model_index.json",
        lora="<edited>/lora/diffusers.safetensors",
    log:
        "<results>/logs/edits/export.log",
    conda:
        "../envs/nullbooth.yaml"
    threads: 1
    resources:
        mem_mb=grown(6000, "base_images"),
        runtime=longer(30),
    message:
        "Exporting the edited model"
    script:
        "../workflow/scripts/export_edits.py"


rule edits:
    input:
        rules.edit.output,
        rules.measure_edits.output,
