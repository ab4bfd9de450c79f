"""NullBooth: teach an image model a new subject without making it forget.

Photographs -> adapters confined to the null space of the protected prompts' features -> gallery.
`snakemake --cores all results/samples`; single stages by name: trajectories, covariances, projectors, adapters.
"""

from snakemake.utils import min_version

min_version("9.14")


configfile: "config/config.yaml"


report: "workflow/report/workflow.rst"


pathvars:
    results=config.get("results", "results"),


include: "rules/common.smk"
include: "rules/statistics.smk"
include: "rules/train.smk"
include: "rules/sample.smk"
include: "rules/evaluation.smk"
include: "rules/gallery.smk"


rule samples:
    default_target: True
    input:
        rules.gallery.output,


rule trajectories:
    input:
        collect("<results>/trajectories/{shard}.zarr", shard=SHARDS),


rule covariances:
    input:
        collect("<results>/covariances/{step}.zarr", step=STEPS),


rule projectors:
    input:
        collect("<results>/projectors/{step}.zarr", step=[*STEPS, "pooled"]),


rule adapters:
    input:
        collect("<results>/runs/{run}/adapter.safetensors", run=RUNS),
