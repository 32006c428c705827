# make reproduce   set up, then run the batch on the CPU with the quick profile; writes runs/quick/ and figures/quick/
# make plan        what make reproduce would run
# make test        set up, then run all tests
# make lab         set up, then open the notebooks in JupyterLab
# make notebooks   run the committed notebooks in place, at default parameters
# make clean       remove what the above made
#
# The paper's settings on GPUs:  make reproduce PROFILE=paper DATA=/path/to/isic2018 SEEDS="0 1 2"
# All other settings: snakemake, see the first lines of the Snakefile

PYTHON ?= python3
PROFILE ?= quick
DATA ?=
SEEDS ?=
CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)

BIN := .venv/bin
NOTEBOOKS := $(sort $(wildcard notebooks/0*.ipynb))
SNAKEMAKE = $(BIN)/snakemake --profile workflow/local --cores $(CORES)
CONFIG = --config profile="$(PROFILE)" data="$(DATA)" seeds="$(SEEDS)"

.PHONY: reproduce plan test lab notebooks clean

reproduce: .venv/installed
	$(SNAKEMAKE) $(CONFIG)

plan: .venv/installed
	$(SNAKEMAKE) --dry-run --quiet rules host reason $(CONFIG)

test: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(CORES) --dist worksteal
	ALUTILS_RUNS=$$(mktemp -d) ALUTILS_FIGURES=$$(mktemp -d) OMP_NUM_THREADS=1 \
	  $(BIN)/python -m pytest -n $(CORES) --dist loadfile --nbval-lax --nbval-current-env notebooks

lab: .venv/installed
	$(BIN)/jupyter lab notebooks

notebooks: .venv/installed
	ALUTILS_RUNS=$$(mktemp -d) $(BIN)/jupyter nbconvert --to notebook --execute --inplace $(NOTEBOOKS)

# Built once, and again whenever the list of packages changes.
.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	rm -rf .venv
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[test]'
	@touch $@

clean:
	rm -rf .venv runs .snakemake .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
