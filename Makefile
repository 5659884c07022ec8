# `make demo` and `make test` do all the set-up that a new machine needs; later runs reuse it.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
ARMS ?= transfer,control,sham
SEEDS ?= 0,1,2
# two test processes, one thread each; a file stays in one process because its tests share fixtures
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
export PYTHONUNBUFFERED := 1

.PHONY: help demo test test-all lint bench evidence picture clean
.DEFAULT_GOAL := help

help:
	@echo "make demo      run one job through the service: MiniLM-L6 into a small BERT, with control and sham"
	@echo "               (ARMS=all adds distillation and the naive copy, SEEDS=0,1,2,3,4 sets the seeds)"
	@echo "make test      run all tests but the slow ones"
	@echo "make test-all  run all tests"
	@echo "make lint      run ruff, mypy and import-linter"
	@echo "make bench     measure the service under load"
	@echo "make evidence  run the settings of docs/evidence and write their tables (hours; can be interrupted)"
	@echo "make picture   draw docs/gain.svg from docs/evidence"
	@echo "make clean     remove .venv and demo"

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; run make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[api,worker,fleet,embedded,dev]'
	@touch $@

demo: .venv/installed
	$(BIN)/python examples/fetch.py minilm bbc
	$(BIN)/mergenet run examples/bbc-topics.yaml --arms $(ARMS) --seeds $(SEEDS) --home demo/home --out demo/result
	$(BIN)/python examples/evaluate.py demo/result data/bbc/test.jsonl

test: .venv/installed
	$(PYTEST) -m "not slow"

test-all: .venv/installed
	$(PYTEST)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/installed
	$(BIN)/python benchmarks/load.py

evidence: .venv/installed
	$(BIN)/python examples/fetch.py minilm mobilenet bbc fashion-mnist fashion-cifar newsgroups r8 wordnet easy-vqa stamps
	$(BIN)/python benchmarks/evidence.py
	$(BIN)/python benchmarks/search.py

picture: .venv/installed
	$(BIN)/python benchmarks/gain_plot.py

clean:
	rm -rf .venv demo
