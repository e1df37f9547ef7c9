# Everything from a bare Python 3.10 to 3.13 with its venv module; no activated environment is needed.
#
#   make quickstart                     a first sweep, into runs/quickstart
#   make test PYTHON=python3.12         another interpreter (for a new .venv; remove the old one first)
#   make test CONSTRAINTS=              the newest dependencies instead of the tested ones

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt

# Bytecode is kept, whatever the environment says: processes that compile all that they import start three times as slowly.
export PYTHONDONTWRITEBYTECODE :=

PIP_INSTALL = $(VENV)/bin/python -m pip install --no-input --disable-pip-version-check --progress-bar off \
	$(if $(CONSTRAINTS),-c $(CONSTRAINTS))
PYTEST = $(VENV)/bin/python -m pytest
# The unit tests' tensors are small: threads cost more than they bring, processes do not.
PYTEST_UNIT = OMP_NUM_THREADS=1 $(PYTEST) -n auto
# Sweeps wait for much of their time, for clusters to start and for one another. What went wrong is shown at the end, which
# comes early where much does.
PYTEST_SWEEPS = $(PYTEST) -n 3 --dist loadscope --durations=25 --maxfail=3

# A stamp says that an installation is done; it is repeated when what it was made from is newer.
RUN_STAMP = $(VENV)/.installed
TEST_STAMP = $(VENV)/.installed-test
# A plain installation is a copy of the sources, an editable one reads them. Where the editable one exists, it serves
# quickstart too.
SOURCES := $(shell find lsmha orchestrator -name '*.py' -o -name '*.pyi')
INSTALLED := $(if $(wildcard $(TEST_STAMP)),$(TEST_STAMP),$(RUN_STAMP))

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-unit test-integration test-slow lint docs
# The steps of `test` share the machine's cores and the venv: one at a time, in order, also under -j.
.NOTPARALLEL:

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /|/' | while IFS='|' read -r target purpose; do \
		printf '  make %-18s %s\n' "$$target" "$$purpose"; done

# An earlier run folder is somebody's result: keep it and take the next free name.
quickstart: $(INSTALLED) ## Install, then run search_spaces/quickstart.yaml into runs/quickstart (or -2, -3, ...)
	@folder=runs/quickstart; number=2; \
	while [ -e "$$folder" ]; do folder=runs/quickstart-$$number; number=$$((number + 1)); done; \
	echo "==> lsmha-sweep run search_spaces/quickstart.yaml --out $$folder"; \
	$(VENV)/bin/lsmha-sweep run search_spaces/quickstart.yaml --out "$$folder"

test: lint test-unit test-integration ## Install with the test tools, then lint, unit and integration tests

lint: $(TEST_STAMP) ## ruff, mypy and the import rules
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

test-unit: $(TEST_STAMP) ## Unit tests: under a minute, no cluster
	$(PYTEST_UNIT) tests/unit

test-integration: $(TEST_STAMP) ## Integration tests: small sweeps on a local Ray cluster
	$(PYTEST_SWEEPS) tests/integration

test-slow: $(TEST_STAMP) ## Slow tests: whole sweeps, faults of every kind, analyses, pruning
	$(PYTEST_UNIT) tests/slow/units
	$(PYTEST_SWEEPS) --ignore=tests/slow/units tests/slow

docs: $(TEST_STAMP) ## Make what follows from the code in docs/ and search_spaces/ anew
	$(VENV)/bin/python docs/generate.py
	$(VENV)/bin/lsmha-sweep schema > search_spaces/sweep.schema.json

# bin/pip comes last when a venv is made, so a half-made one is made again.
$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || { \
		echo "error: Python 3.10 to 3.13 is needed, but $(PYTHON) is $$($(PYTHON) --version 2>&1 | tail -n 1);" \
			"name another with PYTHON=..." >&2; exit 1; }
	@echo "==> creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { \
		echo "error: $(PYTHON) cannot make a virtual environment (Debian and Ubuntu: install python3-venv)" >&2; \
		exit 1; }

$(RUN_STAMP): pyproject.toml $(CONSTRAINTS) $(SOURCES) | $(VENV)/bin/pip
	@echo "==> installing lsmha-sweep into $(VENV) (torch, CUDA: some GB at first, so minutes)"
	@rm -f $(TEST_STAMP) # this installation replaces an editable one
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(PIP_INSTALL) .
	@touch $@

$(TEST_STAMP): pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/pip
	@echo "==> installing lsmha-sweep and its test tools into $(VENV) (torch, CUDA: some GB at first, so minutes)"
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(PIP_INSTALL) --no-compile -e '.[test]' # but when it is first imported: most never is
	@touch $@
