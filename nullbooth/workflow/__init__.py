"""What the rules compute when Snakemake reads them. Imports no torch."""
