"""Rule plan: estimate the cost of the config before anything runs."""

from nullbooth.planning.report import print_plan

if __name__ == "__main__":
    print_plan(snakemake.params.work, snakemake.config)
