# `make demo` and `make test` do all the set-up a fresh machine needs; a second run reuses it.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
ARMS ?= transfer,control,sham
SEEDS ?= 0,1,2
export PYTHONUNBUFFERED := 1

.PHONY: demo test test-all lint bench evidence clean
.DEFAULT_GOAL := help

help:
	@echo "make demo      train a small BERT with what MiniLM knows, through the service, and show the proof"
	@echo "               (ARMS=all adds distillation and the naive copy, SEEDS=0,1,2,3,4 more seeds)"
	@echo "make test      all but the slow tests"
	@echo "make test-all  all tests"
	@echo "make lint      ruff, mypy, import-linter"
	@echo "make bench     the service under load; every number in the docs names its script in benchmarks/"
	@echo "make evidence  the tables of docs/evidence, resumable (hours)"

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; say make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[api,worker,fleet,embedded,dev]'
	@touch $@

demo: .venv/installed
	$(BIN)/python examples/fetch.py minilm bbc
	$(BIN)/mergenet run examples/bbc-topics.yaml --arms $(ARMS) --seeds $(SEEDS) --home demo/home --out demo/result
	$(BIN)/python examples/evaluate.py demo/result data/bbc/test.jsonl

test: .venv/installed
	$(BIN)/python -m pytest -m "not slow"

test-all: .venv/installed
	$(BIN)/python -m pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/installed
	$(BIN)/python benchmarks/load.py

evidence: .venv/installed
	$(BIN)/python examples/fetch.py minilm mobilenet bbc fashion-mnist fashion-cifar wordnet easy-vqa stamps
	$(BIN)/python benchmarks/evidence.py
	$(BIN)/python benchmarks/search.py

clean:
	rm -rf .venv demo
