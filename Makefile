# One command for each habit. `make demo` on a fresh machine sets everything up first.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
BENCH  ?= main

.PHONY: setup peers demo test unit lint format proto soak fuzz bench clean

setup:
	setup/system.sh
	PYTHON=$(PYTHON) VENV=$(VENV) setup/python.sh

demo: setup
	$(BIN)/edgellm demo

# What the tests use besides: a Chromium, and from npm IPFS implementations of others and the official JavaScript clients.
peers: setup
	setup/system.sh tests
	VENV=$(VENV) setup/npm_packages.sh

# Everything: units, real libp2p and engines, hosts in network namespaces (these need root). Two files at once: tests wait more
# than they compute, and those of one file share what they bring up. In the order of their names, as long ones are not last then.
# Some tests say how soon something has to happen, which the neighbour's engine may spoil: what fails beside others must pass alone.
BESIDE := -n 2 --dist loadfile --no-loadscope-reorder --timeout 450
test: setup peers
	$(call beside,tests/unit)
	$(call beside,tests/chaos tests/integration tests/system)

beside = $(BIN)/python -m pytest $(BESIDE) $(1) || { echo "once more, alone:"; $(BIN)/python -m pytest --last-failed $(1); }

# No engine, no root; several at once, as they wait more than they compute. On a busy machine some may be too late then.
unit: setup
	$(BIN)/python -m pytest -n 3 tests/unit

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy edgellm backends/vllm/edgellm_vllm

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Writes edgellm/wire from proto/; the result is committed, so that installing needs no compiler.
proto: setup
	$(BIN)/python -m grpc_tools.protoc -I edgellm/wire=proto --python_out=. --pyi_out=. \
		$(patsubst proto/%,edgellm/wire/%,$(wildcard proto/*.proto))
	$(BIN)/python -m grpc_tools.protoc -I edgellm/wire=proto --grpc_python_out=. \
		edgellm/wire/backend.proto edgellm/wire/session.proto edgellm/wire/blocks.proto

# The long forms of tests that run short everywhere else: 10 GB through a store of 2 GB (needs that much disk), a node among
# strangers for 20 minutes, then a swarm with sessions, answers and strangers for EDGELLM_SOAK_MINUTES (30; needs root).
soak: setup
	EDGELLM_FULL_TESTS=1 $(BIN)/python -m pytest tests/chaos
	$(BIN)/python -m benchmarks.soak

# A million inputs and more for everything that reads bytes of strangers, in under five minutes; writes benchmarks/out/fuzz.json.
fuzz: setup
	$(BIN)/python -m tests.fuzz

# Both sides in one run; writes benchmarks/out/$(BENCH).json. Needs root.
bench: setup
	$(BIN)/python -m benchmarks.$(BENCH)

clean:
	rm -rf $(VENV) build *.egg-info backends/*/*.egg-info benchmarks/out
	find . -name __pycache__ -prune -exec rm -rf {} +
