"""Estimated costs of the config, before anything runs: snakemake plan"""

from nullbooth.workflow.memory import work


localrules:
    plan,


rule plan:
    conda:
        "../envs/nullbooth.yaml"
    params:
        work=work(project, project.learned),
    message:
        "Estimating jobs, time, memory and disk"
    script:
        "../workflow/scripts/plan.py"
