"""What the config will cost, before anything runs: snakemake plan"""

from nullbooth.planning.plan import work_of


localrules:
    plan,


rule plan:
    conda:
        "../envs/nullbooth.yaml"
    params:
        work=work_of(config, len(PROTECTED), {group: len(found) for group, found in PROMPTS.items()}, LEARNED),
    message:
        "Estimating jobs, time, memory and disk"
    script:
        "../workflow/scripts/plan.py"
