# make reproduce   set up, then run all notebooks on the CPU with the quick profile; writes runs/quick/
# make test        set up, then run all tests
# make lab         set up, then open the notebooks in JupyterLab
# make notebooks   run the committed notebooks in place, at default parameters
# make clean       remove what the above made
#
# The paper's settings on a GPU:  make reproduce PROFILE=paper DATA=/path/to/isic2018

PYTHON ?= python3
PROFILE ?= quick
DATA ?=
CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)

BIN := .venv/bin
NOTEBOOKS := $(sort $(wildcard notebooks/0*.ipynb))
RUNS := runs/$(basename $(notdir $(PROFILE)))

.PHONY: reproduce test lab notebooks clean

reproduce: .venv/installed
	@mkdir -p $(RUNS)
	@set -e; for notebook in $(NOTEBOOKS); do \
	  echo "== $$notebook"; \
	  $(BIN)/papermill --log-output "$$notebook" "$(RUNS)/$$(basename $$notebook)" -p profile "$(PROFILE)" -p data_root "$(DATA)"; \
	done
	@echo "done: executed notebooks in $(RUNS)/, their figures and tables in a folder each"

test: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(CORES) --dist worksteal
	ALUTILS_RUNS=$$(mktemp -d) OMP_NUM_THREADS=1 \
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
	rm -rf .venv runs .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
