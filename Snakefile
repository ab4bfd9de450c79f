"""NullBooth: teach an image model a new subject without making it forget.

Photographs -> adapters confined to the null space of the protected prompts' features -> gallery.
`snakemake results/samples`; single stages by name: trajectories, covariances, projectors, adapters.
"""

import os
import sys

from snakemake.utils import min_version

min_version("9.14")

# Paths in configs begin here; and a workflow that takes this one as a module has another folder.
here = workflow.current_basedir.get_path_or_uri(secret_free=True)
home = os.path.dirname(os.path.realpath(os.path.join(here, "Snakefile")))
if os.path.realpath(os.getcwd()) != os.path.realpath(here) or not os.path.exists(os.path.join(here, "rules")):
    sys.exit(
        f"config: NullBooth works in its own checkout alone, not by -s, --directory or module: run it in {home}, and name "
        "your own folders in a config of your own (--configfile, with absolute paths)"
    )


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
include: "rules/targets.smk"


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
        collect("<statistics>/covariances/{step}.zarr", step=STEPS),


rule projectors:
    input:
        collect("<statistics>/projectors/{step}.zarr", step=[*STEPS, "pooled"]),


rule adapters:
    input:
        collect("<kept>/runs/{run}/adapter.safetensors", run=kept_runs(RUNS)),
