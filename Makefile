PYTHON ?= python3
BIN = .venv/bin

RUNS ?= runs

.PHONY: demo notebooks docs test test-all test-nightly test-floor check format clean

demo: .venv/installed ## three small runs and their table
	$(BIN)/python launch.py -m num_routing=1,2,3 dataset=digits training=quick

notebooks: .venv/installed-dev ## execute analysis/*.ipynb on the runs in RUNS, into analysis/rendered
	$(BIN)/python analysis/render.py $(RUNS)

WORKERS ?= 2
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup
# $(call timed,COMMAND) prints how long the tier took, also when it fails
timed = @start=$$(date +%s); code=0; $(1) || code=$$?; took=$$(($$(date +%s) - start)); \
	echo "make $@: $$((took / 60)) min $$((took % 60)) s"; exit $$code

test: .venv/installed-dev ## units: the answer while you work
	$(call timed,$(PYTEST) -m "not slow and not slurm and not nightly")

test-all: .venv/installed-dev ## the gate: linters, types, units, integration, a real SLURM
	$(call timed,$(MAKE) check && $(PYTEST) --durations 20 -m "not nightly")

test-nightly: .venv/installed-dev ## everything, with all variants of faults
	$(call timed,$(MAKE) check && $(PYTEST) --durations 40)

FLOOR = .venv/floor
test-floor: .venv/installed-dev ## units, on the oldest versions that pyproject.toml allows
	$(BIN)/pip install --quiet uv
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(FLOOR)
	$(BIN)/uv pip install --quiet --python $(FLOOR)/bin/python --resolution lowest-direct -e '.[dev]'
	$(call timed,$(FLOOR)/bin/python -m pytest -n $(WORKERS) --dist loadgroup -m "not slow and not slurm and not nightly")

check: .venv/installed-dev docs ## linters, types, and the documentation without a dead link
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: .venv/installed-dev ## the documentation as a site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

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
