# make help        this list; make alone shows it too
# make reproduce   set up, then run the batch on the CPU with the quick profile; writes runs/quick/ and figures/quick/
# make plan        what make reproduce would run, and how many seeds would decide the claims
# make test        set up, then run all tests, and the cells of all notebooks with brief trainings
# make test-faults inject all faults and all bad input: 17 minutes, 20 GB in TMPDIR; writes results/faults.json
# make audit       ask pip-audit for known vulnerabilities of the installed packages; needs the internet
# make lab         set up, then open the notebooks in JupyterLab, as copies in lab/; a copy that exists is kept
# make bench       all benchmarks but paper_hours.py, half an hour on a quiet machine; writes results/bench/; DATA= adds photographs
# make notebooks   run the committed notebooks in place, at default parameters, and the exercises with their solutions
# make recorded    after runs were recorded: collect them in results/ and run the notebooks that show them; writes figures/recorded/
# make exercises   the exercises with gaps, for students; writes runs/exercises/release/
# make grade       grade what is new in runs/exercises/handed_in/NAME/; writes runs/exercises/grades.csv and feedback/
# make site        set up, then build the website from the notebooks as they are; writes runs/site/html/
# make clean       remove .venv, runs/ and the tools' caches; lab/, figures/ and results/ stay
#
# The paper's settings on GPUs:  make reproduce PROFILE=paper DATA=/path/to/isic2018
# Variables: PYTHON (to set up with; python3), PROFILE (quick), DATA (none: synthetic images), SEEDS (0 1 2 3 4 5), CORES (all)
# All other settings: snakemake, see the first lines of the Snakefile

# "make help" prints the lines above, up to the first without "#".
VARIABLES := PYTHON PROFILE DATA SEEDS CORES
PYTHON ?= python3
PROFILE ?= quick
DATA ?=
SEEDS ?=
CORES := $(shell $(PYTHON) -I alutils/system/cores.py 2>/dev/null || nproc 2>/dev/null || echo 1)

UNKNOWN := $(filter-out $(VARIABLES) SHELL MAKEFLAGS,$(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name))))
NEAREST := import difflib, sys; near = difflib.get_close_matches(sys.argv[1].upper(), sys.argv[2:], 1, 0.5);
NEAREST += print("did you mean " + near[0] + "?" if near else "the valid ones are " + ", ".join(sys.argv[2:]))
ifneq ($(UNKNOWN),)
  QUOTED := '$(subst ','\'',$(firstword $(UNKNOWN)))'
  $(error there is no variable $(firstword $(UNKNOWN)); $(or $(shell $(PYTHON) -c '$(NEAREST)' $(QUOTED) $(VARIABLES)),the valid ones are $(VARIABLES)))
endif

BIN := .venv/bin
NOTEBOOKS := $(sort $(wildcard notebooks/0*.ipynb))
EXERCISES := $(sort $(wildcard notebooks/exercises/*.ipynb))
SNAKEMAKE = $(BIN)/snakemake --profile workflow/local --cores $(CORES)
# Of the notebook's metadata only the kernel's name stays: the rest differs from machine to machine
CLEAR := --ClearMetadataPreprocessor
EXECUTE = ALUTILS_RUNS=$$(mktemp -d) OMP_NUM_THREADS=1 $(BIN)/jupyter nbconvert --to notebook --execute --inplace \
  --ExecutePreprocessor.record_timing=False $(CLEAR).enabled=True $(CLEAR).clear_cell_metadata=False \
  $(CLEAR).preserve_nb_metadata_mask=kernelspec
CONFIG = --config profile="$(PROFILE)" data="$(DATA)" seeds="$(SEEDS)"

.PHONY: help reproduce plan test test-faults audit lab bench notebooks recorded exercises grade site clean

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' $(firstword $(MAKEFILE_LIST))

# After Ctrl-C make ends quietly: otherwise its own error message would follow the batch's last line
reproduce: .venv/installed
	trap 'stopped=1' INT; $(SNAKEMAKE) $(CONFIG) || [ "$$stopped" ]

plan: .venv/installed
	$(SNAKEMAKE) --dry-run --quiet rules host reason $(CONFIG)
	$(BIN)/python workflow/seeds.py "runs/$(notdir $(basename $(PROFILE)))" "results/$(notdir $(basename $(PROFILE)))"

test: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(CORES) --dist worksteal
	copies=$$(mktemp -d) && $(BIN)/python tests/brief.py "$$copies" $(NOTEBOOKS) && cd "$$copies" && \
	  ALUTILS_RUNS="$$copies" ALUTILS_FIGURES="$$copies" OMP_NUM_THREADS=1 \
	  "$(CURDIR)/$(BIN)/python" -m pytest -n $(CORES) --dist loadfile --nbval-lax --nbval-current-env .

# The longest test comes first: one core is busy with it nearly to the end
test-faults: .venv/installed
	ALUTILS_FAULTS=full OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(CORES) --dist worksteal --durations 10 \
	  tests/faults/test_soak.py \
	  tests/test_bad_pictures.py tests/test_bad_settings.py tests/test_leakage.py tests/test_shell_safety.py tests/faults

audit: .venv/installed
	$(BIN)/pip install --quiet pip-audit
	$(BIN)/pip-audit --skip-editable

# Running a notebook changes its file, so copies are opened. JupyterLab's root is the project, so that its browser
# reaches runs/ and figures/; it opens on a page with links to the copies. A copy is made only where there is none.
lab: .venv/installed $(patsubst notebooks/%,lab/%,$(NOTEBOOKS) $(EXERCISES))
	JUPYTER_CONFIG_PATH="$(CURDIR)/workflow/jupyter" \
	  $(BIN)/jupyter lab --ServerApp.root_dir="$(CURDIR)" --LabApp.default_url=/lab/tree/welcome.md

lab/%.ipynb: | notebooks/%.ipynb
	@mkdir -p "$(@D)"
	cp "notebooks/$*.ipynb" "$@"

# paper_hours.py is for a GPU: on two cores each of its training steps takes 13 seconds
bench: .venv/installed
	$(BIN)/pip install --quiet --editable '.[bench]'
	for name in allocator annotation augment batch_overhead explorers mc_dropout round_overhead scoring selection startup; do \
	  $(BIN)/python benchmarks/$$name.py || exit 1; done
	$(BIN)/python benchmarks/training.py $(if $(DATA),--data "$(DATA)")
	$(if $(DATA),$(BIN)/python benchmarks/open_data.py --data "$(DATA)",@echo "open_data.py needs a folder: make bench DATA=...")

notebooks: .venv/installed
	$(EXECUTE) $(NOTEBOOKS) $(EXERCISES)

recorded: .venv/installed
	$(BIN)/python workflow/record.py --collect
	$(EXECUTE) $(shell grep -l RESULTS_DIR $(NOTEBOOKS) $(EXERCISES))

exercises: .venv/installed
	@$(BIN)/python workflow/exercises.py release
	@echo "Give the students the notebooks in runs/exercises/release/"

# Students' code runs here with your rights. OMP_NUM_THREADS: with one thread losses are the same on every machine
grade: exercises
	@OMP_NUM_THREADS=1 $(BIN)/python workflow/exercises.py grade

site: .venv/installed
	rm -rf runs/site
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -c website -d runs/site/doctrees . runs/site/html
	@echo "Open runs/site/html/index.html"

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
