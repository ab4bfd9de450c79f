"""What may be asked for by a plain name, and the links by which it is found."""


rule trajectories:
    input:
        lambda wildcards: statistics.trajectories_taken(leak_file),


rule covariances:
    input:
        collect("<statistics>/covariances/{step}.zarr", step=STEPS),


rule projectors:
    input:
        collect("<statistics>/projectors/{step}.zarr", step=statistics.pooled),


rule adapters:
    input:
        runs.adapters(runs.of_methods),


# To Snakemake, the name of a rule.
for name in set(sys.argv[1:]):
    files = workspace.known_as(name)
    if files and files != [name]:

        rule:
            name:
                name
            input:
                files,


# What is there already, of an earlier config perhaps, is not made by any job.
if workflow.is_main_process and not workflow.output_settings.dryrun:
    workspace.show()


onsuccess:
    workspace.show()


onerror:  # what was made before is there
    workspace.show()
