# Every target sets up what it needs; only make and Python 3.11 or newer have to be there.
# quickstart takes MINUTES=10 (default) of training on two cores.
MINUTES ?= 10

PLAIN := .venv/.plain
DEVELOPMENT := .venv/.development
# Two test processes with single-threaded arithmetic beat one process with two threads.
PYTEST := OMP_NUM_THREADS=1 XLA_FLAGS=--xla_cpu_multi_thread_eigen=false .venv/bin/python -m pytest -n 2

.PHONY: setup quickstart test test-all lint bench

setup: $(DEVELOPMENT)

$(PLAIN): pyproject.toml scripts/setup
	scripts/setup plain
	touch $@

$(DEVELOPMENT): pyproject.toml requirements.lock scripts/setup
	scripts/setup development
	touch $(PLAIN) $@

quickstart: $(PLAIN)
	.venv/bin/pollux quickstart --minutes $(MINUTES)

test: $(DEVELOPMENT)
	$(PYTEST)

test-all: $(DEVELOPMENT)
	$(PYTEST) -m "slow or not slow"

lint: $(DEVELOPMENT)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

# LLAMA: a Python with llama-cpp-python, which builds for minutes, to have llama.cpp beside us. The other programs of benchmarks/ read a
# trained model or train some; each says how it is called.
bench: $(DEVELOPMENT)
	.venv/bin/python benchmarks/training_step.py --no-bfloat16
	.venv/bin/python benchmarks/decoding.py $(if $(LLAMA),--llama $(LLAMA))
	test ! -d runs/quickstart/model || .venv/bin/python benchmarks/serving.py runs/quickstart/model
