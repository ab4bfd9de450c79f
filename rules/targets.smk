"""Targets by plain name, and the links under these names."""


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


# A rule for each plain name on the command line.
for name in set(sys.argv[1:]):
    files = workspace.known_as(name)
    if files and files != [name]:

        rule:
            name:
                name
            input:
                files,


# Link existing results now: if an earlier config made them, no job will.
if workflow.is_main_process and not workflow.output_settings.dryrun:
    workspace.show()


onsuccess:
    workspace.show()
    if gallery := workspace.gallery():
        print(f"Open {gallery} in a browser.", file=sys.stderr)


onerror:  # results from before the error
    workspace.show()
