# The whole developer manual. Needs Python 3.11+, make and a shell; everything else is installed into .venv.

PYTHON ?= python3
CONFIG ?= configs/dev.yaml
# For `make test`, for example PYTEST='-k retry -x'.
PYTEST ?=
# For `make chaos`, for example CHAOS='-k FI-05 --seed 7'.
CHAOS ?=
# For `make test-busy`, for example BUSY='--loops 8 --runs 1'.
BUSY ?=
# For `make bench`: QUICK=1 for a look of two minutes, and for example BENCH='--only drain,publish'.
QUICK ?=
BENCH ?= $(if $(QUICK),,--publish)

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help install start check test browser openapi manifests test-busy test-wheel test-all chaos bench bench-growth reference docs format lock sbom clean

help:
	@echo 'make install    make .venv with the runner in it'
	@echo 'make start      install, then run $(CONFIG) (another file: make start CONFIG=...)'
	@echo 'make check      format, lint, types and import directions'
	@echo 'make test       the whole test suite, with its own PostgreSQL and NATS (options: PYTEST="-k retry")'
	@echo 'make test-busy  that three times in a row, with four busy processes beside it (options: BUSY="--loops 8 --runs 1")'
	@echo 'make browser    what the tests in a browser need: the Chromium of the distribution (by apt) and playwright'
	@echo 'make manifests  check deploy/kubernetes against the schema of Kubernetes, which it installs, and against its runner.yaml'
	@echo 'make openapi    every operation of /openapi.json, asked by schemathesis with all its checks (minutes)'
	@echo 'make test-wheel every code block of the documents, run from the wheel in an empty environment'
	@echo 'make test-all   make test on PostgreSQL 18 and on 16, and make test-wheel'
	@echo 'make chaos      every fault of docs/reliability.md, which it rewrites (options: CHAOS="-k FI-05 --seed 7")'
	@echo 'make bench      this bus against its peers and the floor (two minutes: QUICK=1; options: BENCH="--only drain")'
	@echo 'make bench-growth  how its figures grow, as curves'
	@echo 'make reference  docs/reference.md and docs/commands.md anew, from the schema and the command line'
	@echo 'make docs       the documents as a site, in build/site'
	@echo 'make format     let ruff rewrite what `make check` would complain about'
	@echo 'make lock       requirements/*.txt anew, with the hashes of every file of each version in constraints.txt'
	@echo 'make sbom       dist/sbom.cdx.json, a bill of materials (CycloneDX) of what the image installs'
	@echo 'make clean      remove .venv and all caches'

install: .venv/installed

start: install
	@exec $(BIN)/runner start -c $(CONFIG)

check: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# First what may run side by side, then what measures time. Four processes on any machine: most tests wait for a server.
# Exit code 5: the half has none of the tests asked for.
# A debugger needs one process: PYTEST='-n0 --pdb'.
test: .venv/installed-dev
	@$(BIN)/python -m pytest -m 'not chaos and not alone and not wheel and not openapi' --numprocesses 4 --dist worksteal $(PYTEST); \
		first=$$?; [ $$first -eq 0 ] || [ $$first -eq 5 ] || exit $$first; \
		$(BIN)/python -m pytest -m 'alone or chaos_short' $(PYTEST); \
		second=$$?; [ $$second -ne 5 ] || exit $$first; exit $$second

# A test that only a quiet machine passes fails here: it races something, in place of waiting for it.
test-busy: .venv/installed-dev
	@$(BIN)/python -m tests.support.busy $(BUSY) $(MAKE) test

# `make test` skips the tests in a browser where one of the two is missing, and says so.
APT := $(if $(filter 0,$(shell id -u)),,sudo -n )timeout 300 env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0
browser: .venv/installed-dev
	@$(PIP) --requirement tests/browser/requirements.txt
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || { \
		echo 'installing the Chromium of the distribution'; \
		{ $(APT) update && $(APT) install --yes --no-install-recommends chromium; } >/dev/null || { \
			echo 'no Chromium: apt-get could not install it; put one on the path, or name it in $$CHROMIUM' >&2; exit 1; }; }

# The schemas of twelve versions of Kubernetes are 70 MB; `make test` leaves that one check out where they are missing.
manifests: .venv/installed-dev
	@$(PIP) --requirement requirements/manifests.txt
	@$(BIN)/python -m pytest -n0 tests/unit/test_kubernetes.py $(PYTEST)

# In an environment of its own, for it wants another jsonschema-rs. Options: PYTEST='-k sqlite'.
openapi: .venv/installed-dev .venv-openapi/installed
	@$(BIN)/python -m pytest -m openapi -o faulthandler_timeout=0 tests/openapi $(PYTEST)

.venv-openapi/installed: tests/openapi/requirements.txt
	@$(PYTHON) -m venv --clear .venv-openapi
	@.venv-openapi/bin/python -m pip --disable-pip-version-check install --quiet --requirement $<
	@touch $@

test-wheel: .venv/installed-dev
	@$(BIN)/python -m pytest -m wheel $(PYTEST)

test-all: test test-wheel
	@$(MAKE) test PYTEST='$(subst ','\'',--postgres 16 $(PYTEST))'

# Exit code 5: what was chosen has nothing to do with PostgreSQL, and is not run again on the other version.
chaos: .venv/installed-dev
	$(BIN)/python -m pytest tests/chaos -m chaos --chaos-report docs/reliability.md $(CHAOS)
	$(BIN)/python -m pytest tests/chaos -m 'chaos and chaos_postgres' --postgres 16 --chaos-report docs/reliability.md \
		$(CHAOS) || [ $$? -eq 5 ]

bench: .venv/installed-bench
	$(BIN)/python -m bench $(if $(QUICK),--quick) $(BENCH)

bench-growth: .venv/installed-bench
	$(BIN)/python -m bench --growth $(if $(QUICK),--quick) $(BENCH)

reference: .venv/installed-dev
	@$(BIN)/python -m tests.support.reference

# A link that leads nowhere fails it. Nothing of it is committed.
docs: .venv/installed-docs
	@$(BIN)/python -m tests.support.site build/pages
	@$(BIN)/zensical build --clean --strict
	@echo 'open build/site/index.html'

format: .venv/installed-dev
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

# For the image: all platforms' files of a version have their hash, so one list serves x86-64 and ARM.
LOCK := .venv-lock/bin/pip-compile --quiet --generate-hashes --allow-unsafe --strip-extras --constraint constraints.txt \
	--no-header --no-annotate --no-emit-options --no-emit-index-url --no-emit-trusted-host --no-emit-find-links
lock:
	@$(PYTHON) -m venv --clear .venv-lock
	@.venv-lock/bin/pip install --quiet 'pip-tools>=7.5,<8'
	$(LOCK) --output-file requirements/runtime.txt pyproject.toml
	$(LOCK) --output-file requirements/build.txt requirements/build.in
	@rm -rf .venv-lock

# By the tool of CycloneDX, of an environment of its own: nothing of it is in the list.
sbom:
	@$(PYTHON) -m venv --clear .venv-sbom
	@.venv-sbom/bin/pip install --quiet 'cyclonedx-bom>=7.5,<8'
	@mkdir -p dist
	PYTHONWARNINGS=ignore .venv-sbom/bin/cyclonedx-py requirements --pyproject pyproject.toml --mc-type application --output-reproducible \
		--spec-version 1.6 --output-format JSON --output-file dist/sbom.cdx.json requirements/runtime.txt
	@rm -rf .venv-sbom

clean:
	rm -rf .venv .venv-lock .venv-sbom .venv-openapi build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps make a second run instant; a change of the dependencies makes them old.
.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	@echo 'installing the runner into .venv'
	@$(PIP) --editable .
	@touch $@
	@echo 'installed: $(BIN)/runner --help'

.venv/installed-dev: .venv/bin/python pyproject.toml constraints.txt
	@echo 'installing the runner and its test tools into .venv'
	@$(PIP) --editable '.[dev]'
	@touch .venv/installed $@

.venv/installed-bench: .venv/bin/python pyproject.toml constraints.txt bench/requirements.txt
	@echo 'installing the runner, the peers and the plots into .venv'
	@$(PIP) --editable '.[test]' --requirement bench/requirements.txt
	@touch .venv/installed $@

.venv/installed-docs: .venv/bin/python pyproject.toml constraints.txt docs/requirements.txt
	@echo 'installing the runner and the generator of the site into .venv'
	@$(PIP) --editable . --requirement docs/requirements.txt
	@touch $@

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo 'Python 3.11 or newer is needed, and $(PYTHON) is not (or is missing):' >&2; \
		$(PYTHON) --version >&2; \
		echo 'name another one, for example: make $(or $(MAKECMDGOALS),install) PYTHON=python3.12' >&2; \
		exit 1; }
	@$(PYTHON) -m venv --clear .venv
