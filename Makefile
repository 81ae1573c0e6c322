# Granville. `make` lists what there is; `make demo` and `make test` need nothing done before.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check

# llama-cpp-python is compiled for the processor it is built on and dies of SIGILL on a lesser one: what pip keeps of
# it is kept by the processor's flags.
CPU := $(shell (grep -m1 '^flags' /proc/cpuinfo || sysctl -n machdep.cpu.brand_string) 2>/dev/null | cksum | cut -d' ' -f1)
LLAMA_CACHE := $(HOME)/.cache/granville/pip-$(CPU)

.DEFAULT_GOAL := help
.PHONY: help setup demo models serve test lint bench peers clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## Create .venv and install everything (the first time compiles llama.cpp, about 6 minutes)

$(READY): pyproject.toml
	@echo 'Making $(VENV)'
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --quiet --upgrade 'pip>=25.1'
	@echo 'Installing llama-cpp-python; the first time it is compiled, which takes about 6 minutes'
	@$(PIP) install --progress-bar off --cache-dir '$(LLAMA_CACHE)' \
		"$$(sed -n 's/^ *"\(llama-cpp-python==[^"]*\)",*$$/\1/p' pyproject.toml)"
	@echo 'Installing Granville and what it is developed with'
	@$(PIP) install --quiet --editable '.[whisper,piper,espeak,crucible]' --group dev
	@# asks pins an anyio that today's Trio cannot run with, and trio-typing's stubs hide Trio's own types:
	@# docs/dependencies.md tells both stories.
	@$(PIP) install --quiet --no-deps asks async-generator
	@rm -rf $(VENV)/lib/python*/site-packages/trio-stubs
	@touch $@

demo: $(READY) ## Fetch the small default model, serve it, watch requests of all four classes, and run a workflow
	$(BIN)/python -m granville.cli.demo

models: $(READY) ## Fetch the models of the examples: SmolLM2, Whisper, a voice, MiniLM
	$(BIN)/granville download smollm2
	$(BIN)/granville download whisper-tiny.en
	$(BIN)/granville download joe
	$(BIN)/python -m examples.models.minilm

serve: $(READY) ## Serve the default model until Ctrl-C
	$(BIN)/granville serve smollm2

test: lint ## Lint, check types, and run all tests
	$(BIN)/python -m pytest

lint: $(READY) ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

peers: $(READY) ## Build llama.cpp's own server and batched bench, to measure against
	$(BIN)/python benchmarks/peers.py

bench: peers ## Measure Granville and llama.cpp's server in turn, and print the ratios
	$(BIN)/python benchmarks/bench.py

clean: ## Remove the virtual environment, builds and caches
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
