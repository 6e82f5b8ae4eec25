# Two commands: `make run` for the main job, `make test` for all tests.
# Both set up .venv on first use. Another Python: make run PYTHON=python3.12
# Options of the command: make run ARGS="-p model openai:/gpt-4.1-mini"

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --no-input
# pip would compile what it installs on one core. A few files of packages cannot be compiled.
COMPILE = $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true

# In a container one is often root, which Jupyter wants to be told.
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)

.PHONY: help run test lab bench clean
.DEFAULT_GOAL := help

help: ## Show this list
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 14

run: $(VENV)/.installed ## Set up, then run the whole lifecycle on the sample data
	$(BIN)/workbench run $(ARGS)

# More processes than cores, since many tests wait for a browser or a server; by file, since what
# the tests of a file share, such as notebooks that were run, takes long to make.
test: $(VENV)/.installed-test ## Set up, then run linters, type checks and all tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

lab: $(VENV)/.installed ## Open JupyterLab on the notebooks
	$(BIN)/jupyter lab notebooks $(AS_ROOT)

bench: $(VENV)/.installed-test ## Run the benchmarks, which print their figures
	@for script in tests/benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

clean: ## Remove .venv, caches and output
	rm -rf $(VENV) output build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is written only after its step succeeded, so that a broken set-up is taken up again.
$(VENV)/.created:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found. Install Python 3.10 or newer, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "$$($(PYTHON) --version) is too old; 3.10 or newer is needed. Name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "$(PYTHON) has no venv. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "Setting up $(VENV): a few minutes the first time."
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.created
	$(PIP) install --no-compile --editable .
	@$(COMPILE)
	@touch $@

$(VENV)/.installed-test: pyproject.toml $(VENV)/.created
	$(PIP) install --no-compile --editable ".[test]"
	@$(COMPILE)
	@touch $(VENV)/.installed $@
