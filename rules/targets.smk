"""What may be asked for by a plain name, and the links by which it is found."""

# To Snakemake, the name of a rule.
for name in set(sys.argv[1:]):
    files = workspace.known_as(name)
    if files and files != [name]:

        rule:
            name:
                name
            input:
                files,


def show_results():
    if writable(config["results"]):
        workspace.show()


# What is there already, of an earlier config perhaps, is not made by any job.
if workflow.is_main_process and not workflow.output_settings.dryrun:
    show_results()


onsuccess:
    show_results()


onerror:  # what was made before is there
    show_results()
