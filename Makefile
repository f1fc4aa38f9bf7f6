# Two commands do everything on a machine with Python 3.11: `make demo` and `make test`.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Two processes of tests, a file is one's; in the order of the folders, so that servers which a folder shares end with it.
SHARED_OUT := -n 2 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help setup demo example-movielens test test-long lint format protos bench clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup: $(STAMP) ## Make .venv and install the project with everything (once)

$(STAMP): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: set PYTHON=/path/to/python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

demo: setup ## Run everything end to end on a generated catalogue; writes demo/out/report.html
	$(BIN)/triptych demo --out demo/out

example-movielens: setup ## The same on real films, posters and ratings, in the folder that TRIPTYCH_DATA names
	@$(BIN)/python -m examples.movielens_run --out examples/out/movielens $(EXAMPLE)

test: setup ## Run the tests (under 15 minutes on 2 cores)
	$(BIN)/python -m pytest -m "not long" $(SHARED_OUT)

test-long: setup ## Run the long tests too: the whole demo, soaks, kill series
	$(BIN)/python -m pytest

lint: setup ## ruff, formatting, mypy strict, proto lint, generated code, architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/buf lint
	$(BIN)/python protos/generate.py --check
	$(BIN)/python -m pytest -q tests/architecture

format: setup ## Format and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

protos: setup ## Generate the protobuf code and its stubs
	$(BIN)/python protos/generate.py

bench: setup ## Run the benchmarks but those of hours (store_sizing, ranking), store its results and write them into README.md
	@for f in benchmarks/*.py; do n=$$(basename $$f .py); case $$n in common|readme|store_sizing|ranking|__init__) ;; *) \
	  $(BIN)/python -m benchmarks.$$n --json benchmarks/results/$$n.json || exit 1;; esac; done
	$(BIN)/python -m benchmarks.readme

clean: ## Remove what was built; .triptych (the data) stays
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache demo/out examples/out
