# Two commands for a newcomer: `make demo` and `make test`. Nothing needs to be set up before.
# Every command runs in the project's own environment (.venv); `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo test check lock registry collector collector-path bench peers picture clean

PY := .venv/bin/python

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## Local and remote model calls, instrumented, gated, received and shown (under a minute)
	@tools/environment.sh demo
	@$(PY) examples/demo/demo.py

test: ## The whole suite; builds llama-cpp-python and the Collector once
	@tools/environment.sh test
	@$(PY) tools/collector.py --optional >/dev/null
	@$(MAKE) -s lint
	@$(PY) -m pytest -q -n logical --dist loadfile $(ARGS)

UNIT := $(wildcard tests/test_*.py) tests/protocols $(filter-out %/test_mutations.py %/test_leak_corpus.py %/test_dialects.py %/test_catalogue.py %/test_profiles.py,$(wildcard tests/privacy/test_*.py)) tests/clients/test_openai.py tests/transports/test_httpx.py

check: ## The quick inner loop, about a minute: lint, types, unit tests
	@tools/environment.sh check
	@$(MAKE) -s lint
	@$(PY) -m pytest -q -x -n logical --dist loadfile -m "not e2e" $(UNIT) $(ARGS)

PYTHONS := 3.10 3.12 3.13 3.14
.PHONY: pythons
pythons: ## The unit tests on other Pythons that this machine has (PYTHONS="3.10 3.13")
	@tools/environment.sh check
	@tools/pythons.sh "$(PYTHONS)" $(UNIT) $(ARGS)

.PHONY: lint
lint:
	@.venv/bin/ruff format --check -q .
	@.venv/bin/ruff check -q .
	@.venv/bin/mypy
	@$(PY) semconv/generate.py --check

lock: ## Resolve the pinned requirements again
	@tools/environment.sh check
	@tools/lock.sh

registry: ## Generate the tables and docs/TELEMETRY.md from semconv/ (after a review: ARGS="--review ID")
	@tools/environment.sh check
	@$(PY) semconv/generate.py $(ARGS)

collector: ## Build the OpenTelemetry Collector (or find one) for the end-to-end tests
	@tools/environment.sh demo
	@$(PY) tools/collector.py

collector-path: ## Print where the Collector is
	@tools/environment.sh demo
	@$(PY) tools/collector.py --path

bench: ## Print the cost tables
	@tools/environment.sh test
	@for b in $(filter-out benchmarks/peers.py,$(wildcard benchmarks/*.py)); do echo "── $$b"; $(PY) $$b || exit 1; done

peers: ## Compare with other instrumentations, each in an environment of its own (some 10 minutes)
	@tools/environment.sh check
	@$(PY) benchmarks/peers.py $(ARGS)

picture: ## Make docs/img/demo.svg from a run of the demo
	@tools/environment.sh demo
	@$(PY) examples/demo/demo.py --svg docs/img/demo.svg

clean: ## Remove the environment and everything generated (the cache folder stays)
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
