# Two commands: `make run` for the main job, `make test` for all tests.
# Both set up .venv on first use. Another Python: make run PYTHON=python3.12
# Options of the command: make run ARGS="-p model openai:/gpt-4.1-mini"

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --no-input
# pip would compile what it installs on one core. A few files of packages cannot be compiled, and
# their tests are not used.
COMPILE = $(BIN)/python -m compileall -qq -j 0 -x '/tests/' $(VENV)/lib || true

# In a container one is often root, which Jupyter wants to be told.
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)

.PHONY: help run test test-slow lab bench bench-model clean
.DEFAULT_GOAL := help

help: ## Show this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 18

run: $(VENV)/.installed ## Set up, then run the whole lifecycle on the sample data
	$(BIN)/workbench run $(ARGS)

# Linters and type checks run beside the tests, on what time these leave, and are shown at the end.
CHECKS = $(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/lint-imports && $(BIN)/mypy
# More processes than cores, since many tests wait for a browser or a server; by file, since the
# tests of a file share what takes long to make.
PYTEST = $(BIN)/python -m pytest --numprocesses 5 --dist loadfile --no-loadscope-reorder

# Tests start some hundred processes: none is to compile the package again, as each would where
# the environment says that compiled files are not kept.
test test-slow: export PYTHONDONTWRITEBYTECODE =

test: $(VENV)/.installed-test ## Set up, then run linters, type checks and all tests but slow ones
	@$(BIN)/python -m compileall -qq -j 0 workbench
	@# Compiles the tests once; otherwise each of the processes would compile all of them.
	@checks=$$(mktemp); { $(CHECKS); } >$$checks 2>&1 & \
	$(BIN)/python -m pytest --collect-only -qq >/dev/null; \
	$(PYTEST); tests=$$?; \
	wait $$!; linters=$$?; \
	cat $$checks; rm -f $$checks; \
	[ $$linters = 0 ] || echo "Linters or type checks failed: see above." >&2; \
	exit $$((tests || linters))

test-slow: $(VENV)/.installed-test ## Run the tests that only a long run can show
	$(PYTEST) -m slow

lab: $(VENV)/.installed ## Open JupyterLab on the notebooks
	$(BIN)/jupyter lab notebooks $(AS_ROOT)

bench: $(VENV)/.installed-test ## Run the benchmarks, which print their figures
	@for script in $(filter-out %/bench_model.py,$(wildcard tests/benchmarks/bench_*.py)); do echo "== $$script"; $(BIN)/python $$script || exit 1; done

bench-model: $(VENV)/.installed-test ## Compare optimizers on a real model: BASE_URL=... MODEL=... DATA=...
	$(BIN)/python tests/benchmarks/bench_model.py $(if $(BASE_URL),--base-url $(BASE_URL)) \
		$(if $(MODEL),--model $(MODEL)) $(if $(DATA),--data "$(DATA)") $(ARGS)

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
	@# The pip that comes with Python 3.11 takes a minute longer to resolve the dependencies.
	-@$(PIP) install --quiet --upgrade pip
	@touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.created
	$(PIP) install --no-compile --editable .
	@$(COMPILE)
	@touch $@

$(VENV)/.installed-test: pyproject.toml $(VENV)/.created
	$(PIP) install --no-compile --editable ".[test]"
	@$(COMPILE)
	@touch $(VENV)/.installed $@
