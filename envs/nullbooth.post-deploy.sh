#!/usr/bin/env bash
# Run by Snakemake from the project's root in the new environment: jobs import the library.
set -euo pipefail
pip install --no-deps --editable .
