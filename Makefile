# make reproduce   every figure and number of the embedded default
# make test        linters, type checker, test suite and a smoke run of the DAG
# make help        the rest
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help env reproduce figure report smoke test lint docs lock

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name))))
CORES ?= all
CONFIGFILE ?= config/config.yaml
BIN := .venv/bin
REPORT = results/$(shell sed -n "s/^profile: *['\"]*\([A-Za-z0-9._-]*\).*/\1/p" $(CONFIGFILE))/report.html
READY := .venv/ready
RUN := PATH="$(CURDIR)/$(BIN):$$PATH"
# --configfile takes every word up to the next option, so a target must not follow it.
SNAKEMAKE := $(RUN) snakemake --configfile $(CONFIGFILE) --cores $(CORES)

help:
	@echo "make reproduce            every figure and number of a profile (CONFIGFILE=$(CONFIGFILE), CORES=$(CORES))"
	@echo "make figure FIG=name      one figure and what it needs"
	@echo "make report               one HTML file with figures, claims, notebooks and run times of a finished run"
	@echo "make smoke                a tiny random model through the whole DAG, in a few minutes"
	@echo "make test                 linters, type checker, test suite, smoke run"
	@echo "make docs                 fill README.md and docs/ from the last run"
	@echo "make env                  the environment alone, in .venv"
	@echo "make lock                 write envs/requirements.lock anew from pyproject.toml"

# The environment is made once, and anew when the lock or the package's metadata changes.
$(READY): envs/requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no python3 found; install Python 3.11 or newer, or run: make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $(PYTHON) is $$($(PYTHON) -V), and 3.11 or newer is needed; run: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || { \
	  echo "error: $(PYTHON) has no venv module; install it (Debian and Ubuntu: python3-venv)"; exit 1; }
	@echo "Setting up the environment in .venv (a few minutes, once)"
	@rm -rf .venv && $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement envs/requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

env: $(READY)

reproduce: $(READY)
	@$(SNAKEMAKE)
	@$(BIN)/python -m tsae show-claims --configfile $(CONFIGFILE)

report: $(READY)
	@$(SNAKEMAKE) --report $(REPORT)
	@echo "The report is $(REPORT)"

figure: $(READY)
	@test -n "$(FIG)" || { echo "error: name a figure, for example: make figure FIG=last_token_detection"; exit 1; }
	@test -f "workflow/scripts/$(FIG).py" || { \
	  echo "error: there is no figure '$(FIG)'; there are: $(basename $(notdir $(wildcard workflow/scripts/*.py)))"; exit 1; }
	@$(SNAKEMAKE) $(FIG)

smoke: $(READY)
	@test -f results/tiny/model/config.json || $(BIN)/python tests/tiny.py results/tiny
	@$(RUN) snakemake --cores $(CORES) --configfile config/smoke.yaml

test: $(READY) lint
	@$(RUN) python -m pytest

lint: $(READY)
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .
	@$(RUN) snakefmt --check Snakefile workflow
	@$(RUN) mypy
	@$(RUN) snakemake --lint

docs: $(READY)
	@$(RUN) python docs/fill.py

lock:
	@rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	@.venv-lock/bin/python -m pip install --quiet --disable-pip-version-check setuptools --editable '.[dev]'
	@.venv-lock/bin/python -m pip freeze --all --exclude-editable --exclude pip | sed 's/+cpu$$//' > envs/requirements.lock
	@rm -rf .venv-lock
