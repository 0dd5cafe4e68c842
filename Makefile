PYTHON ?= python3
BIN = .venv/bin

RUNS ?= runs

.PHONY: demo notebooks test test-all check format clean

demo: .venv/installed ## three small runs and their table
	$(BIN)/python launch.py -m num_routing=1,2,3 dataset=digits training=quick

notebooks: .venv/installed-dev ## execute analysis/*.ipynb on the runs in RUNS, into analysis/rendered
	$(BIN)/python analysis/render.py $(RUNS)

test: .venv/installed-dev ## all tests that take less than 20 s each
	$(BIN)/python -m pytest -m "not slow"

test-all: check ## linters, types, all tests
	$(BIN)/python -m pytest

check: .venv/installed-dev ## linters and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## the environment and caches; never runs or data
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml | .venv/bin/python
	$(BIN)/pip install -e .
	touch $@

.venv/installed-dev: pyproject.toml | .venv/bin/python
	$(BIN)/pip install -e '.[dev]'
	touch $@ .venv/installed
