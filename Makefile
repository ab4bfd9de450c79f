# make samples: all steps from photographs to gallery, with the embedded model. make test: all tests.
# Both first set up .venv from requirements.lock. They need make and Python 3.11 or newer.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CORES ?= all

.PHONY: samples test fast-test coverage lint format settings docs lock clean

samples: $(VENV)/.ready
	$(BIN)/snakemake --cores $(CORES) --configfile config/edits.yaml -- results/samples

test: $(VENV)/.ready lint
	$(BIN)/pytest

fast-test: $(VENV)/.ready
	$(BIN)/pytest -m "not slow"

# Coverage of the fast tests. Slow tests run the library in other processes, which are not measured.
coverage: $(VENV)/.ready
	$(BIN)/pytest -m "not slow" --cov --cov-report=term

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile rules workflow/Snakefile world/Snakefile
	$(BIN)/codespell
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

format: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile rules workflow/Snakefile world/Snakefile

# config/config.yaml from config/schema.yaml.
settings: $(VENV)/.ready
	$(BIN)/python -m nullbooth.inputs.config_file

docs: $(VENV)/.ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "Open site/index.html in a browser."

$(VENV)/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else f"Python 3.11 or newer is needed, {sys.executable} is {v.major}.{v.minor}; try: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --quiet --requirement requirements.lock
	$(BIN)/pip install --disable-pip-version-check --quiet --no-deps --editable .
	@touch $@

# Write requirements.lock from an environment with the newest versions that pyproject.toml allows.
lock:
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet torch==2.13.0 --editable '.[dev,docs,slurm]'
	{ echo "# The set that CI installs and tests: make lock writes it anew from pyproject.toml."; \
	  .venv-lock/bin/pip freeze --exclude-editable | sed 's/+cpu//' | tr '[:upper:]_' '[:lower:]-'; } > requirements.lock
	rm -rf .venv-lock

clean:
	rm -rf results site .snakemake
