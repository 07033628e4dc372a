# `make run` and `make test` are all a newcomer needs; `make help` lists the rest.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check -c .constraints.txt
PYTEST := $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help run setup check unit test bench docs figures report clean packages oracles softroce guests

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

run: $(VENV)/.run ## install, run specs/quickstart.yaml, print its table and where the report lies
	$(BIN)/harness run specs/quickstart.yaml

# Without what they ask for: NIXL's wheels would have pip look for CUDA packages, and neither needs any here.
PEERS := nixl nixl-cu12 mooncake-transfer-engine-non-cuda

setup: $(VENV)/.test ## install everything the tests and the checks need into .venv

$(VENV)/.venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "harness needs Python 3.11 or later; name one with make PYTHON=..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); $(MAKE) --no-print-directory packages NAMES=python3-venv && $(PYTHON) -m venv $(VENV); }
	@touch $@

# The CPU build by its own name: `torch==2.13.0` alone would let pip take the CUDA build and its gigabytes.
# Where no CPU build is offered, plans are `unsupported`, and the tests that need torch are skipped; both say so.
$(VENV)/.run: $(VENV)/.venv pyproject.toml .constraints.txt
	$(INSTALL) -e '.[rdma,ray,report,completion]'
	@if command -v nvidia-smi >/dev/null; then $(INSTALL) 'torch==2.13.0' -e '.[planning]'; \
	 else $(INSTALL) 'torch==2.13.0+cpu' -e '.[planning]' || echo "no CPU build of torch 2.13.0 here: models cannot be traced"; fi
	@touch $@

$(VENV)/.test: $(VENV)/.run
	$(INSTALL) -e '.[rdma,verbs,ray,report,completion,test]'
	@if command -v nvidia-smi >/dev/null; then $(INSTALL) 'torch==2.13.0' -e '.[gpu,models]'; \
	 else $(INSTALL) 'torch==2.13.0+cpu' -e '.[models]' || echo "no CPU build of torch 2.13.0 here: tests that need it are skipped"; fi
	@$(INSTALL) --no-deps $(PEERS) || echo "not to be had here: $(PEERS); tests that hold transports to them are skipped"
	@touch $@

packages: ## install Debian packages by NAMES="..." (needs root), or say which are missing
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	   apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(NAMES) >/dev/null; \
	 else echo "please install: $(NAMES)"; exit 1; fi

check: $(VENV)/.test ## formatting, lint, types and import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/harness schema --check

unit: $(VENV)/.test ## the unit tests alone
	$(PYTEST) tests/unit

# A browser to open the report in, SimGrid to hold bandwidth sharing to, a library that Mooncake asks for; without root
# the tests that need them are skipped.
oracles:
	@for package in chromium python3-simgrid libibverbs1; do dpkg -s $$package >/dev/null 2>&1 || $(MAKE) --no-print-directory packages NAMES=$$package || true; done

# Guests with real RDMA verbs. Without root, or without QEMU's packages, these tests say so and are skipped; CI requires them.
SOFTROCE := qemu-system-x86 mmdebstrap kmod cpio zstd e2fsprogs xz-utils

softroce: $(VENV)/.test guests ## the tests in virtual machines with real RDMA verbs
	$(PYTEST) --durations=10 tests/softroce

guests:
	@for package in $(SOFTROCE); do dpkg -s $$package >/dev/null 2>&1 || { $(MAKE) --no-print-directory packages NAMES="$(SOFTROCE)" || true; break; }; done

# One process cannot load both NIXL, which transports are held to, and OR-tools, which orders are found with: it aborts.
test: check oracles softroce ## everything CI runs: checks, then all tests
	$(PYTEST) -n auto --dist worksteal --benchmark-disable tests --ignore=tests/benchmarks --ignore=tests/softroce --ignore-glob='*/superscaler'
	$(PYTEST) -n auto --dist worksteal --benchmark-disable $(filter-out tests/benchmarks/%,$(wildcard tests/*/superscaler))
	$(PYTEST) --benchmark-only --benchmark-columns=median,iqr,rounds tests/benchmarks --ignore=tests/benchmarks/superscaler
	$(PYTEST) --benchmark-only --benchmark-columns=median,iqr,rounds tests/benchmarks/superscaler

bench: $(VENV)/.test ## the benchmarks, with their full tables
	$(PYTEST) --benchmark-only tests/benchmarks

docs: $(VENV)/.test ## check that the documentation's commands and examples still work
	$(PYTEST) tests/unit/docs

figures: $(VENV)/.run ## draw the documentation's figures from the committed records
	$(BIN)/python -m harness.report.documentation

report: $(VENV)/.run ## write the quickstart's report again from what is recorded
	$(BIN)/harness report specs/quickstart.yaml

clean: ## delete the environment, caches and run directories
	rm -rf $(VENV) results/runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
