# Each target makes the environment it needs, from python3.11 or newer, git and make alone.
#   make PYTHON=python3.12 …   chooses the interpreter;   make ARGS="-k words" test   passes arguments on;
#   make WORKERS=8 test        tests in eight processes of one thread each.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
PEERS := .venv-peers
CLIENTS := .venv-clients
PIP := -m pip install --quiet --disable-pip-version-check
TSC := npx --yes -p typescript@5.9.3 tsc
JS_TESTS = $(wildcard tests/web/*.test.mjs tests/web/*.test.js)
TORCH := $(shell grep -m1 '^torch==' constraints.txt)
WORKERS ?= 2
SANITIZE := -std=c++17 -O1 -march=native -fno-math-errno -Wall -Wextra -Werror -Wno-psabi -Wno-uninitialized \
	-Wno-maybe-uninitialized -fsanitize=address,undefined -fno-sanitize-recover=undefined
SELFTEST := $(or $(TMPDIR),/tmp)/glassformer-selftest
PYTHON_FILES := src tests benchmarks scripts

# $(call with,PROGRAM,WHAT,COMMAND): run COMMAND; without PROGRAM say what is left out, or in CI fail.
with = @if command -v $(1) >/dev/null; then echo '$(3)' && $(3); \
	elif [ -n "$$CI" ]; then echo 'There is no $(1), which checks $(2).' && exit 1; \
	else echo "skipped: there is no $(1) to check $(2)"; fi

.DEFAULT_GOAL := help
.PHONY: help demo test quick size sanitize lint format docs bench census peers clients gpu-packages clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.ready ## install, fetch SmolLM2-135M, and show the next words of a few sentences
	@$(BIN)/glassformer demo

test: $(VENV)/.ready-dev ## run every test
	$(if $(JS_TESTS),$(call with,node,the units of the page,node --test $(JS_TESTS)))
	OMP_NUM_THREADS=$(or $(OMP_NUM_THREADS),1) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

quick: $(VENV)/.ready-dev ## style, types, and the tests of the model, in under a minute
	$(BIN)/ruff check $(PYTHON_FILES)
	@$(BIN)/mypy & types=$$!; OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) -m "not slow" tests/model \
	tests/test_floors.py $(ARGS); tests=$$?; wait $$types && exit $$tests

size: ## lines by package, the largest files and the longest functions
	@python3 scripts/size.py

sanitize: ## every fast kernel beside its naive loop, with warnings as errors and sanitizers
	$(or $(CXX),c++) $(SANITIZE) src/glassformer/kernels/csrc/selftest.cpp -o $(SELFTEST) -pthread && $(SELFTEST)

lint: $(VENV)/.ready-dev ## check style, types and the generated documentation
	$(BIN)/ruff check $(PYTHON_FILES)
	$(BIN)/ruff format --check $(PYTHON_FILES)
	$(BIN)/mypy
	$(BIN)/python scripts/make_docs.py --check
	$(if $(wildcard jsconfig.json),$(call with,npx,the types of the page,$(TSC) -p jsconfig.json))

format: $(VENV)/.ready-dev ## put the code into its format and mend what can be mended by rule
	$(BIN)/ruff format $(PYTHON_FILES)
	$(BIN)/ruff check --fix $(PYTHON_FILES)

docs: $(VENV)/.ready-dev ## write the documentation that is generated
	$(BIN)/python scripts/make_docs.py

bench: $(VENV)/.ready-dev ## run every benchmark beside its peer (make peers first) and say what was skipped
	$(BIN)/python benchmarks/run.py $(ARGS)

census: $(VENV)/.ready-dev ## compare every decoder-only type of transformers with transformers itself (some minutes)
	$(BIN)/python benchmarks/census.py $(ARGS)

clients: $(VENV)/.ready $(CLIENTS)/.ready ## try the server with real clients and print what each of them sees
	$(BIN)/python benchmarks/clients.py --environment $(CLIENTS) $(ARGS)

peers: $(PEERS)/.ready .venv-vllm/.ready .venv-openvino/.ready ## install the libraries that the benchmarks compare with, apart from ours

gpu-packages: $(VENV)/.ready ## put what benchmarks/gpu.py needs beside torch and transformers into .gpu-packages, to be copied along
	@$(BIN)/python $(PIP) -c constraints.txt --no-deps --upgrade --target .gpu-packages jaxtyping wadler-lindig platformdirs psutil

clean: ## remove the environments and caches; models fetched stay
	rm -rf .gpu-packages $(VENV) $(PEERS) .venv-vllm .venv-openvino $(CLIENTS) .mypy_cache .ruff_cache .pytest_cache .hypothesis

# torch first and by its exact version: whatever comes after is satisfied with it.
$(VENV)/.torch: constraints.txt
	@test -n "$(PYTHON)" || { echo "Glassformer needs Python 3.11 or newer; none was found. Try make PYTHON=/path/to/python3"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing $(TORCH) into $(VENV) (the largest part, some minutes the first time) …"
	@$(BIN)/python $(PIP) -c constraints.txt '$(TORCH)'
	@touch $@

$(VENV)/.ready: $(VENV)/.torch pyproject.toml
	@echo "Installing Glassformer …"
	@$(BIN)/python $(PIP) -c constraints.txt -e '.[serve,chat]'
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.torch pyproject.toml
	@echo "Installing Glassformer and what its tests need …"
	@$(BIN)/python $(PIP) -c constraints.txt -e '.[test,dev]'
	@touch $@ $(VENV)/.ready

$(CLIENTS)/.ready: benchmarks/clients.txt
	@test -x $(CLIENTS)/bin/python || $(PYTHON) -m venv $(CLIENTS)
	@$(CLIENTS)/bin/python $(PIP) -r benchmarks/clients.txt
	@mkdir -p $(CLIENTS)/node
	@if command -v npm >/dev/null; then npm install --silent --no-fund --no-audit --prefix $(CLIENTS)/node \
		openai ai @ai-sdk/openai-compatible; else echo "skipped: there is no npm for the clients of Node"; fi
	@touch $@

$(PEERS)/.ready: benchmarks/peers.txt benchmarks/peers-images.txt constraints.txt
	@test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	@$(PEERS)/bin/python $(PIP) '$(TORCH)'
	@$(PEERS)/bin/python $(PIP) '$(TORCH)' -r benchmarks/peers.txt
	@$(PEERS)/bin/python $(PIP) --no-deps --upgrade --target $(PEERS)/images -r benchmarks/peers-images.txt
	@touch $@

# Each of these wants its own versions of what the others need; its companions for images and sound are of no use here.
.venv-vllm/.ready .venv-openvino/.ready: .venv-%/.ready: benchmarks/peers-%.txt constraints.txt
	@test -x .venv-$*/bin/python || $(PYTHON) -m venv .venv-$*
	@if .venv-$*/bin/python $(PIP) '$(TORCH)' && .venv-$*/bin/python $(PIP) '$(TORCH)' -r benchmarks/peers-$*.txt; then \
		.venv-$*/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec; touch $@; \
	else echo "skipped: $* cannot be installed here"; fi
