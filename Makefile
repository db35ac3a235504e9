# make demo   train on the embedded default (ARGS="method=ncm seed=1" adds overrides)
# make test   run the tests, several at once (ARGS="-k router" adds pytest's options; "-n 0": one after the other)
# make lint   ruff and pyright
# make docs   the documentation, into site/ (site/index.html opens in a browser)
# make dist   sdist and wheel, into dist/, checked by twine
# make release  tests, dist, both installed into fresh environments; it says what is left to type
# make oldest   a few tests with the oldest versions that pyproject.toml allows (some GB of downloads)
# make clean  remove caches and environments; runs/ stays
#
# The environment is .venv, made with PYTHON and the versions of constraints.txt, once.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
DIST ?= dist
# What meets most dependencies in a few minutes
OLDEST_TESTS ?= tests/run/test_train.py tests/run/test_run_directory.py tests/run/test_eval.py tests/backbones/test_vit.py tests/routers tests/streams/test_folder.py

ifeq ($(strip $(VENV)),)
$(error VENV is set and empty: unset VENV, or name the folder of the environment: make test VENV=.venv)
endif

BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
PINS := pyproject.toml constraints.txt

.PHONY: demo test lint docs dist release oldest format clean

demo: $(VENV)/.installed
	$(BIN)/smope train --explain $(ARGS)

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "site/index.html"

# The wheel is made from the sdist, so that nothing is missing there.
dist: $(VENV)/.installed-release
	rm -f $(DIST)/smope-*
	$(BIN)/python -m build --outdir $(DIST)
	$(BIN)/python -m twine check --strict $(DIST)/*

release:
	PYTHON="$(PYTHON)" ARGS="$(ARGS)" .ci/release

oldest:
	$(PYTHON) -m venv --clear .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check uv
	.venv-oldest/bin/uv pip install --quiet --python .venv-oldest/bin/python --resolution lowest-direct --editable . 'pytest>=8.4' 'pytest-xdist>=3.6' 'hypothesis>=6.100'
	.venv-oldest/bin/python -m pytest --numprocesses 0 $(OLDEST_TESTS) $(ARGS)

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .venv-oldest build dist site .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "smope needs Python 3.11 or newer, and $(PYTHON) is not: make demo PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(PINS) | $(BIN)/python
	@echo "installing smope and its dependencies into $(VENV) (once; torch is large)"
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.installed-test: $(PINS) | $(VENV)/.installed
	$(INSTALL) --editable '.[test]'
	@touch $@

$(VENV)/.installed-dev: $(PINS) | $(VENV)/.installed-test
	$(INSTALL) --editable '.[dev]'
	@touch $@

$(VENV)/.installed-docs: $(PINS) | $(VENV)/.installed
	$(INSTALL) --editable '.[docs]'
	@touch $@

$(VENV)/.installed-release: $(PINS) | $(VENV)/.installed
	$(INSTALL) --editable '.[release]'
	@touch $@
