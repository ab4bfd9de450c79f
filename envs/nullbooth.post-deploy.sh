#!/usr/bin/env bash
# Run by Snakemake in the new environment, wherever the user works: jobs import the library of this workflow.
set -euo pipefail
if [ ! -f "${NULLBOOTH_HOME:-}/pyproject.toml" ]; then
  echo "conda: NullBooth has no checkout here to install its library from; use an environment made with pip" >&2
  exit 1
fi
pip install --no-deps --editable "$NULLBOOTH_HOME"
