"""NullBooth: teach an image model a new subject without making it forget.

Photographs -> adapters confined to the null space of the protected prompts' features -> gallery.
`snakemake results/samples`; single stages by name: trajectories, covariances, projectors, adapters.
"""

from snakemake.utils import min_version

min_version("9.14")


configfile: "config/config.yaml"


report: "workflow/report/workflow.rst"


include: "rules/common.smk"
include: "rules/statistics.smk"
include: "rules/train.smk"
include: "rules/sample.smk"
include: "rules/evaluation.smk"
include: "rules/edit.smk"
include: "rules/lifelong.smk"
include: "rules/gallery.smk"
include: "rules/plan.smk"


# Snakemake looks no further than a page that is there; the rule asks for all that it rests on, too.
rule samples:
    default_target: True
    input:
        rules.gallery.output,
        rules.gallery.input,
        collect("<kept>/runs/{run}/adapter.safetensors", run=kept_runs(RUNS)),
        statistics_in_use,


rule trajectories:
    input:
        trajectories_taken,


rule covariances:
    input:
        collect("<results>/covariances/{step}.zarr", step=STEPS),


rule projectors:
    input:
        collect("<results>/projectors/{step}.zarr", step=[*STEPS, "pooled"]),


rule adapters:
    input:
        collect("<results>/runs/{run}", run=RUNS),
