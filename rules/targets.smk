"""What may be asked for by a plain name."""

# A file behind a link, or in a page, by its plain name and in any spelling: to Snakemake the name of a rule.
for name in set(sys.argv[1:]):
    files = known_as(name, config["results"], SHOWN, PAGES)
    if files and files != [name]:

        rule:
            name:
                name
            input:
                files,
