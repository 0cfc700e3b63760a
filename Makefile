# `make quickstart`: pictures -> words -> pictures in minutes. `make test`: everything that must hold.
# pip's own settings (its configuration file and PIP_* variables) say where packages come from.
PYTHON ?= python3
BIN := .venv/bin
QUICK := .venv/.quick
INSTALLED := .venv/.installed
PIP := $(BIN)/python -m pip
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help install quickstart test test-all suite check site package format bench

help:  ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

# torch goes first and alone, so that its build is the pinned one and no other package's wish picks it. The quickstart waits
# for what it needs and no more.
INSTALL := $(PIP) install --quiet --disable-pip-version-check --constraint constraints.txt
$(QUICK): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"pixlex needs Python 3.11 or newer, got {sys.version.split()[0]}: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	$(INSTALL) torch
	$(INSTALL) --editable '.[words]'
	@touch $@

$(INSTALLED): $(QUICK)
	$(INSTALL) --editable '.[all,test,dev,docs]'
	@touch $@

install: $(INSTALLED)  ## .venv with the package, its extras and the tools of development

# Threads that wait asleep: on cores busy with other work steps are up to twice as fast, on free ones level.
quickstart: $(QUICK)  ## train the tiny recipe and show original, words and reconstruction
	OMP_WAIT_POLICY=passive $(BIN)/pixlex quickstart

check: $(INSTALLED)  ## lint, format, types, import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict src
	$(BIN)/lint-imports

test: $(INSTALLED)  ## all checks and all tests
	$(MAKE) --no-print-directory --jobs 2 check suite

test-all: $(INSTALLED)  ## all checks and all tests, long campaigns too
	$(MAKE) --no-print-directory --jobs 2 check suite CAMPAIGNS='-m ""'

# One thread for each worker: more threads than cores make the suite slower, not faster. All tests of a file go to one
# worker, so that what they share is made once. Bytecode is kept, whatever the shell says.
suite: $(INSTALLED)
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) \
		--dist loadfile --no-loadscope-reorder $(CAMPAIGNS)

# Links and references that lead nowhere end it.
site: $(INSTALLED)  ## the documentation, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# What a user gets: the wheel alone, in an empty environment. BOUNDS=oldest takes the oldest version of every direct dependency.
BOUNDS ?= newest
EMPTY := build/$(BOUNDS)
package: $(INSTALLED)  ## both archives in dist/, checked; the wheel installed in an empty environment and tried
	rm -rf dist $(EMPTY)
	$(BIN)/python -m build --no-isolation --outdir dist . >/dev/null
	$(BIN)/python -m twine check --strict dist/*
	$(PYTHON) -m venv $(EMPTY)
	if [ $(BOUNDS) = oldest ]; then $(BIN)/python scripts/oldest.py; else cat constraints.txt; fi >$(EMPTY)/bounds.txt
	$(EMPTY)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(EMPTY)/bounds.txt torch
	$(EMPTY)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(EMPTY)/bounds.txt "$$(echo dist/*.whl)[words]"
	cd $(EMPTY) && bin/pixlex version && bin/python -I ../../scripts/try_package.py

format: $(INSTALLED)  ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED)  ## speed and memory, side by side with what one would use instead
	set -e; for script in benchmarks/nearest.py benchmarks/masked_words.py benchmarks/lqae_step.py benchmarks/cbvila_step.py benchmarks/growth.py benchmarks/scaling.py benchmarks/input_pipeline.py benchmarks/search.py benchmarks/reranking.py benchmarks/shared_images.py benchmarks/tokenizing.py benchmarks/small_reader.py; do echo "== $$script"; $(BIN)/python "$$script"; done
