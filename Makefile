.DEFAULT_GOAL := help
SHELL := /bin/bash
# The system's own first: distributions build Python with optimisations, version managers often do not, and that is a tenth
# of a worker's CPU (docs/architecture.md). `ensurepip` is what Debian leaves out without python3-venv.
PYTHON ?= $(shell for p in /usr/bin/python3 python3.13 python3.12 python3.11 python3 python; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import ensurepip, sys; raise SystemExit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin

.PHONY: help run demo kafka test lint format load chaos random-kills broker-away soak pipeline times queries exchanges lock clean

help: ## Say what each target does
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

run: .venv/run ## Set everything up and start Heliograph on this machine (Ctrl-C stops it)
	@$(BIN)/heliograph up

demo: .venv/run ## Send a few minutes of believable traffic through the running edge
	@$(BIN)/heliograph demo

kafka: .venv/run ## Start a real Kafka broker on 127.0.0.1:9092 for `heliograph up --kafka` (Java, Maven; Ctrl-C stops it)
	@$(BIN)/python -m infra.local.kafka_foreground $(ARGS)

test: .venv/dev ## Set everything up and run all tests with the real servers
	$(BIN)/python -m pytest $(ARGS)

lint: .venv/dev ## Check form, types, the direction of imports and the generated files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m cli generated --check

format: .venv/dev ## Bring the code into form and make the generated files anew
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/python -m cli generated

load: .venv/dev ## Measure the hot path against nginx, Portkey and LiteLLM, then the pipeline (about half an hour)
	$(BIN)/python -m load_tests $(ARGS)
	$(BIN)/python -m load_tests.pipeline
	$(BIN)/python -m load_tests.pipeline --kafka

chaos: .venv/dev ## Kill each process in turn under load and count what is left
	$(BIN)/python -m load_tests.chaos $(ARGS)

random-kills: .venv/dev ## kill -9 at random moments, 5 seeds on the spool and 20 on Kafka (about an hour)
	$(BIN)/python -m load_tests.random_kills $(ARGS)
	$(BIN)/python -m load_tests.random_kills --kafka $(ARGS)

broker-away: .venv/dev ## Five minutes of load without the Kafka broker: does a call notice, does everything arrive
	$(BIN)/python -m load_tests.broker_away $(ARGS)

soak: .venv/dev ## Ten minutes of steady load with the edge's memory watched
	$(BIN)/python -m load_tests.soak $(ARGS)

pipeline: .venv/dev ## Measure freshness, enrichment and bytes a request
	$(BIN)/python -m load_tests.pipeline $(ARGS)

times: .venv/dev ## Time a newcomer's first minutes: clone, make run, one call; ARGS="--test --readme" for all
	$(BIN)/python -m load_tests.times $(ARGS)

queries: .venv/dev ## Time the list and every metric over 30 million rows
	$(BIN)/python -m load_tests.queries $(ARGS)

exchanges: .venv/dev ## Replay every recorded exchange through a running edge and compare
	$(BIN)/python -m pytest tests/e2e/test_exchanges.py -s $(ARGS)

lock: ## Resolve the lock files anew (needs uv)
	echo uv | uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url - -o requirements/uv.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --extra all pyproject.toml -o requirements/run.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --extra dev pyproject.toml -o requirements/dev.txt

clean: ## Remove the environment and every cache, never data
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

# The environment is made once for each lock file. Only wheels named with their hashes are installed.
.venv/run: requirements/run.txt pyproject.toml
	@$(call set_up,run)

.venv/dev: requirements/dev.txt pyproject.toml
	@$(call set_up,dev)
	@touch .venv/run

# uv installs in a quarter of pip's time; where it is not to be had, pip does the same.
define set_up
	[ -n "$(PYTHON)" ] || { echo "Heliograph needs Python 3.11, 3.12 or 3.13 with ensurepip on the PATH (Debian, Ubuntu: apt install python3-venv; or: make $@ PYTHON=/path/to/python)"; exit 1; }; \
	[ -x $(BIN)/python ] || { echo "making .venv with $(PYTHON)"; $(PYTHON) -m venv .venv; }; \
	echo "installing requirements/$(1).txt (about 250 MB to download the first time)"; \
	if $(PIP) -r requirements/uv.txt && $(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements/$(1).txt; then :; \
	else echo "uv could not; installing with pip"; $(PIP) -r requirements/$(1).txt; fi && \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable . && touch $@
endef
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes
