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

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv runs build src/*.egg-info .mypy_cache .pytest_cache .ruff_cache
