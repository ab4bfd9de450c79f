"""Edits of what prompts mean, in closed form, and measurements of their efficacy and side effects."""


rule edit:
    input:
        configured(edited.edits, "edits: is empty; name what to edit, such as [{from: a moon, to: a yellow star}]"),
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
        mem_mb=memory(4000, "trajectory"),
        runtime=longer(60),
    params:
        recipe=edited.recipe,
    message:
        "Editing the model"
    script:
        "../workflow/scripts/edit.py"


use rule base_images as unedited_images with:
    output:
        directory(edited.base_pictures),
    log:
        "<results>/logs/edits/base.log",
    benchmark:
        "<results>/benchmarks/edits/base.tsv"
    params:
        prompts=edited.base_prompts,
        sampler=config["sampler"],
        sampling=pictures.sampling,
    message:
        "Drawing edited prompts with the base model"


use rule tuned_images as edited_images with:
    input:
        adapters=[rules.edit.output.edit],
    output:
        directory(edited.pictures),
    log:
        "<results>/logs/edits/images.log",
    benchmark:
        "<results>/benchmarks/edits/images.tsv"
    params:
        prompts=edited.prompts,
        sampler=config["sampler"],
        sampling=pictures.sampling,
    message:
        "Drawing edited prompts with the edited model"


rule measure_edits:
    input:
        edited=rules.edited_images.output[0],
        base=[rules.unedited_images.output[0], pictures.base_folder("unrelated")],
    output:
        f"{edited.metrics}.json",
        f"{edited.metrics}.csv",
    log:
        "<results>/logs/edits/metrics.log",
    benchmark:
        "<results>/benchmarks/edits/metrics.tsv"
    conda:
        "../envs/nullbooth.yaml"
    threads: 1
    resources:
        gpu=1,
        mem_mb=memory(4000, "evaluate"),
        runtime=longer(30),
    params:
        identity=project.evaluators,
        edits=config["edits"],
        contexts=edited.contexts,
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
        mem_mb=memory(6000, "base_images"),
        runtime=longer(30),
    message:
        "Exporting the edited model"
    script:
        "../workflow/scripts/export_edits.py"


rule edits:
    input:
        rules.edit.output,
        rules.measure_edits.output,
