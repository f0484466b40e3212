# make reproduce   every figure and number of the embedded default
# make test        linters, type checker, test suite and a smoke run of the DAG
# make help        the rest
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help env demo reproduce beyond figure report explore lab release smoke test test-faults test-slurm lint docs site bench speed lock verify-artefacts check-config

PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name))))
CORES ?= all
MEM_MB ?=
CONFIGFILE ?= config/config.yaml
PORT ?= 8000
TEST_PROCESSES ?= 2
ROUNDS ?= 10
PROCESS_ROUNDS ?= 3
QUALITY_SEEDS ?= 1
BIN := .venv/bin
RESULTS = results/$(shell sed -n "s/^profile: *['\"]*\([A-Za-z0-9._-]*\).*/\1/p" "$(CONFIGFILE)")
REPORT = $(RESULTS)/report.html
FIGURES = $(basename $(notdir $(shell grep -l '^NEEDS' tsae/figures/*.py)))
READY := .venv/ready
BENCH := results/bench
PEERS := .venv-bench/bin
PEERS_READY := .venv-bench/ready
# The workflow's environment of every job. Steps are timed on all cores with each tool's own way of waiting: sleeping threads
# make the step of dictionary_learning, whose einsums are thousands of tiny products, seven times slower.
JOB_ENVIRONMENT = $(shell sed -n 's/^ *"export \(.*\); "$$/\1/p' workflow/rules/common.smk)
STEP_ENVIRONMENT = $(filter-out OMP_WAIT_POLICY=%,$(JOB_ENVIRONMENT))
RUN := PATH="$(CURDIR)/$(BIN):$$PATH"
# --configfile and --resources take every word up to the next option, so a target must not follow them.
SNAKEMAKE = $(RUN) snakemake --configfile "$(CONFIGFILE)" $(if $(MEM_MB),--resources mem_mb=$(MEM_MB)) --cores $(CORES)
# After Ctrl-C the last line is this one, not make's own with a line of this file.
STOPPABLE = trap 'echo "stopped; run make $@ again to go on"; kill -INT $$PPID; exit 0' INT;

help:
	@echo "make demo                 two SAEs of one layer, three figures and the feature explorer, in a few minutes"
	@echo "make reproduce            every figure and number of a profile (CONFIGFILE=$(CONFIGFILE), CORES=$(CORES), MEM_MB=all jobs' memory)"
	@echo "make beyond               what the paper leaves open: other tables, more text, the SAEs of today, and random weights"
	@echo "make figure FIG=name      one figure and what it needs"
	@echo "make report               one HTML file with figures, claims, notebooks and run times of a finished run"
	@echo "make explore              the page to explore the features of a finished run (SERVE=1 serves it on localhost, LAYER=6 another layer)"
	@echo "make lab                  the notebooks in JupyterLab, which it installs in .venv"
	@echo "make release              a finished run as a folder and an archive to publish (TEXT, LICENSE: see docs/release.md)"
	@echo "make smoke                a tiny random model through the whole DAG, in a few minutes"
	@echo "make test                 linters, type checker, test suite, smoke run (TEST_PROCESSES=$(TEST_PROCESSES) at a time)"
	@echo "make test-faults          kill, damage and starve runs of the smoke profile, and print the outcomes (up to 25 minutes)"
	@echo "make verify-artefacts     compare every file of a profile with its recorded sha256 (REMOVE=1 removes damaged ones)"
	@echo "make test-slurm           the smoke run on one SLURM node, which it starts and, as root on Debian, installs"
	@echo "make docs                 fill README.md and docs/ from the last run"
	@echo "make site                 the documents, the API and the notebooks of a finished run as pages, in site/"
	@echo "make bench                time, memory and quality of training against other tools, and of stages (ROUNDS=$(ROUNDS))"
	@echo "make speed                training steps beside those on record in docs/speed.csv, in a minute (KEEP=1 adds them)"
	@echo "make env                  only the environment, in .venv"
	@echo "make lock                 write envs/*.lock from pyproject.toml and envs/*.txt (UPGRADE=1 for newer versions)"

# The environment is made again when the lock or the package's metadata changes. A second make waits, if the disk has locks.
# If PYTHON is .venv's own, which is removed, its base Python makes the environment.
$(READY): envs/requirements.lock envs/torch.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no python3 found; install Python 3.11 or newer, or run: make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
	  echo "error: $(PYTHON) is $$($(PYTHON) -V), and 3.11, 3.12 or 3.13 is needed; run: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || { \
	  echo "error: $(PYTHON) has no venv module; install it (Debian and Ubuntu: python3-venv)"; exit 1; }
	@echo "Setting up the environment in .venv (a few minutes, once)"
	@exec 9>> .venv.lock; $(PYTHON) -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)' 2> /dev/null || true; \
	if test -z "$$(find $^ -newer $@ 2>&1)"; then exit 0; fi; \
	base=$$($(PYTHON) -c 'import sys; print(sys._base_executable)') && rm -rf .venv && "$$base" -m venv .venv && \
	envs/install.sh $(BIN)/python && \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable . && \
	touch $@

env: $(READY)

# Snakemake reads a configuration before the workflow does, and would run its templates and expand its anchors.
check-config: $(READY)
	@$(BIN)/python -m tsae check-config $(if $(filter check-config,$(MAKECMDGOALS)),,--quiet) --configfile "$(CONFIGFILE)"

reproduce: check-config
	@$(STOPPABLE) status=0; $(SNAKEMAKE) || status=$$?; \
	if test -f $(RESULTS)/claims.csv; then \
	  test $$status = 0 || echo "The run is not complete, see above. The claims as last measured:"; \
	  $(BIN)/python -m tsae show-claims --configfile "$(CONFIGFILE)"; \
	fi; \
	exit $$status

beyond:
	@$(MAKE) --no-print-directory reproduce CONFIGFILE=config/beyond.yaml
	@$(MAKE) --no-print-directory reproduce CONFIGFILE=config/random.yaml

report: check-config
	@$(STOPPABLE) $(SNAKEMAKE) --report $(REPORT)
	@echo "The report is $(REPORT)"

# Of the middle layer by the workflow; of another layer beside it.
EXPLORER = $(RESULTS)/explorer$(if $(LAYER),-layer$(LAYER)).html
explore: check-config
	@$(STOPPABLE) $(if $(LAYER),$(BIN)/python -m tsae explore --results $(RESULTS) --layer $(LAYER) --page $(EXPLORER) > /dev/null,$(SNAKEMAKE) $(EXPLORER))
	@if test "$(SERVE)" = 1; then \
	  echo "The page is at http://127.0.0.1:$(PORT)/$(notdir $(EXPLORER)); Ctrl-C ends it"; \
	  trap 'exit 0' INT; $(BIN)/python -m http.server --bind 127.0.0.1 --directory $(RESULTS) $(PORT); \
	else echo "The page is $(EXPLORER); open it in a browser"; fi

lab: $(READY)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary :all: \
	  --requirement envs/lab.lock
	@$(STOPPABLE) TSAE_RESULTS="$(CURDIR)/$(RESULTS)" $(BIN)/python -m jupyter lab notebooks

release: check-config
	@$(RUN) python -m tsae release --configfile "$(CONFIGFILE)" $(foreach name,$(TEXT),--text "$(name)") \
	  $(if $(LICENSE),--license "$(LICENSE)")

DEMO = reconstruction_by_layer lookup_geometry last_token_detection results/demo/explorer.html
demo: CONFIGFILE = config/demo.yaml
demo: check-config
	@$(STOPPABLE) $(SNAKEMAKE) $(DEMO)
	@echo "The figures are figures/demo/*.png; the page to explore features is results/demo/explorer.html: open it in a browser"

figure: check-config
	@test -n "$(FIG)" || { echo "error: name a figure, for example: make figure FIG=last_token_detection"; exit 1; }
	@test -n "$(filter $(FIG),$(FIGURES))" || { echo "error: there is no figure '$(FIG)'; there are: $(FIGURES)"; exit 1; }
	@$(STOPPABLE) $(SNAKEMAKE) $(FIG)

smoke: $(READY)
	@test -f results/tiny/model/config.json || $(BIN)/python tests/fixtures/tiny.py results/tiny
	@$(STOPPABLE) $(RUN) snakemake --cores $(CORES) --configfile config/smoke.yaml

# A file's tests stay together, with what they share.
test: $(READY) lint
	@$(RUN) python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile

test-faults: $(READY)
	@status=0; $(RUN) python -m pytest -m "faults or refused" || status=$$?; $(BIN)/python tests/fixtures/faults.py; exit $$status

test-slurm: $(READY)
	@$(BIN)/python tests/slurm/cluster.py
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement envs/slurm.lock
	@$(RUN) python -m pytest tests/slurm/smoke.py

lint: $(READY)
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .
	@$(RUN) snakefmt --check Snakefile workflow
	@$(RUN) mypy
	@$(RUN) snakemake --lint

verify-artefacts: $(READY)
	@$(RUN) python -m tsae verify-artefacts --configfile "$(CONFIGFILE)" $(if $(REMOVE),--remove)

docs: $(READY)
	@$(RUN) python docs/fill.py

site: $(READY)
	@rm -rf site
	@$(RUN) python -m sphinx -W --keep-going -q -c docs/site -d site/.doctrees -D results=$(RESULTS) . site
	@rm -r site/.doctrees
	@echo "The start page is site/index.html"

# Other tools need other versions of shared packages, so they have their own environment.
$(PEERS_READY): envs/bench.lock envs/torch.txt
	@echo "Setting up the environment of other tools in .venv-bench (a few minutes, once)"
	@rm -rf .venv-bench && $(PYTHON) -m venv .venv-bench
	@envs/install.sh $(PEERS)/python $<
	@touch $@

bench: $(READY) $(PEERS_READY)
	@test -n "$(JOB_ENVIRONMENT)" || { echo "error: workflow/rules/common.smk exports no settings"; exit 1; }
	@env $(STEP_ENVIRONMENT) PYTHONPATH="$(CURDIR)" $(PEERS)/python benchmarks/training_step.py --rounds $(ROUNDS) --output $(BENCH)
	@if test -f $(RESULTS)/residuals/index.json -a -d $(RESULTS)/unigrams; then \
	  env $(STEP_ENVIRONMENT) PYTHONPATH="$(CURDIR)" $(PEERS)/python benchmarks/quality.py --config "$(CONFIGFILE)" --results $(RESULTS) \
	    --seeds $(QUALITY_SEEDS) --output $(BENCH); \
	else \
	  echo "$(RESULTS)/residuals: there are no residuals, so the quality of reconstructions is not compared; run: make reproduce"; \
	fi
	@if test -f results/beyond/residuals/index.json -a -d results/beyond/unigrams; then \
	  env $(STEP_ENVIRONMENT) PYTHONPATH="$(CURDIR)" $(PEERS)/python benchmarks/quality.py --config config/beyond.yaml --results results/beyond \
	    --seeds $(QUALITY_SEEDS) --output $(BENCH)/beyond; \
	fi
	@env $(STEP_ENVIRONMENT) $(BIN)/python benchmarks/kernels.py --rounds $(ROUNDS) --output $(BENCH)
	@env $(STEP_ENVIRONMENT) PYTHONPATH="$(CURDIR)" $(PEERS)/python benchmarks/growth.py --rounds $(ROUNDS) --output $(BENCH)
	@$(BIN)/python benchmarks/pictures.py --output $(BENCH)
	@$(BIN)/python benchmarks/stages.py --results $(RESULTS) --output $(BENCH)
	@env $(JOB_ENVIRONMENT) $(BIN)/python benchmarks/processes.py --config "$(CONFIGFILE)" --results $(RESULTS) --rounds $(PROCESS_ROUNDS) \
	  --output $(BENCH)
	@if test -f $(RESULTS)/model/config.json; then \
	  env $(JOB_ENVIRONMENT) $(BIN)/python benchmarks/residual_caching.py \
	    --model $(RESULTS)/model --rounds $(ROUNDS) --output $(BENCH)/residual_caching.json; \
	else \
	  echo "$(RESULTS)/model: there is no model, so residual caching is not measured; run: make reproduce"; \
	fi
	@env $(JOB_ENVIRONMENT) $(BIN)/python benchmarks/rounding.py --config "$(CONFIGFILE)" --results $(RESULTS) --output $(BENCH)
	@$(RUN) python -m pytest -m peers

speed: $(READY)
	@env $(STEP_ENVIRONMENT) $(BIN)/python benchmarks/speed.py $(if $(KEEP),--keep)

lock:
	@UPGRADE=$(UPGRADE) envs/lock.sh $(PYTHON)
