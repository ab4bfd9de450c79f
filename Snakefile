"""NullBooth: teach a diffusion model a new subject without making it forget.

Photographs -> adapters confined to the null space of the protected prompts' features -> gallery.
`snakemake results/samples`; single stages by name: trajectories, covariances, projectors, adapters.
"""

import sys
from pathlib import Path

from snakemake.utils import min_version

min_version("9.14")

# Snakemake may run in another folder: with -s, with --directory, or if a workflow uses this one as a module.
here = workflow.current_basedir.get_path_or_uri(secret_free=True)
if Path(here, "Snakefile").is_symlink() and not Path(here, "rules").exists():
    sys.exit(
        f"config: {here}/Snakefile is a link without its rules; run snakemake -s {Path(here, 'Snakefile').resolve()}"
    )
sys.path.insert(0, here)

from nullbooth.inputs.shipped import shipped

# Settings of the user's own config/config.yaml extend the defaults, like those of --configfile.
if not Path("config/config.yaml").exists() or not shipped("config/config.yaml").samefile("config/config.yaml"):

    configfile: shipped("config/config.yaml")


if Path("config/config.yaml").exists():

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


# If the gallery exists, Snakemake does not check its inputs; this rule requests them too.
rule samples:
    default_target: True
    input:
        rules.gallery.output,
        rules.gallery.input,
        runs.adapters(runs.of_methods),
        statistics.in_use(),
