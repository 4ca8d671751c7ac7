# make setup | demo | demo-segment | demo-generate | test | test-all | test-crash | test-cluster | test-browser | test-app |
# test-oldest | test-peft | bench | gpu-check | lint
# Everything happens in $(VENV) (test-oldest: in $(OLDEST), test-app: in $(APP)); nothing else is touched.

PYTHON ?= python3
VENV ?= .venv
# The pair that is tested; others from torch 2.6 on work: make setup TORCH="torch torchvision"
TORCH ?= torch==2.14.1 torchvision==0.29.1
# The oldest Python; where it does not run, $(PYTHON) takes its place
OLDEST_PYTHON ?= python3.10
OLDEST ?= .venv-oldest
APP ?= .venv-app
DOCS ?= .venv-docs
RUN ?= runs/demo
SEGMENT ?= runs/segment
GENERATE ?= runs/generate
WORKERS ?= 2

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo demo-segment demo-generate test test-all test-crash test-cluster test-browser test-app test-oldest test-peft bench gpu-check lint \
  docs clean

setup: $(STAMP)

# torch and torchvision are named together with all that needs them, or pip may change them afterwards.
$(STAMP): pyproject.toml requirements/demo.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile $(TORCH) -e ".[test,lint]"
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements/demo.txt
	touch $@

demo: $(STAMP)
	$(BIN)/snella train --recipe demo --out $(RUN) --resume
	$(BIN)/snella evaluate $(RUN)
	$(BIN)/snella predict $(RUN)
	$(BIN)/snella report $(RUN)

# Each method at the best of a few learning rates on val; the tables of the four stand one below the other.
demo-segment: $(STAMP)
	set -e; for run in snella:1e-2 lora:1e-3 linear:3e-3 full:3e-4; do \
	  $(BIN)/snella train --recipe segment-demo --method $${run%:*} --lr $${run#*:} \
	    --out $(SEGMENT)/$${run%:*} --resume; \
	done
	$(BIN)/snella predict $(SEGMENT)/snella

# A small UNet learns six kinds of photographs, then three others by each method at its best learning rate on val.
demo-generate: $(STAMP)
	$(BIN)/snella train --recipe generate-pretrain --out $(GENERATE)/first --resume
	test -d $(GENERATE)/base || $(BIN)/snella merge $(GENERATE)/first --out $(GENERATE)/base
	set -e; for run in snella:5e-2 lora:1e-2 full:3e-3; do \
	  $(BIN)/snella train --recipe generate-demo --backbone $(GENERATE)/base --method $${run%:*} --lr $${run#*:} \
	    --out $(GENERATE)/$${run%:*} --resume; \
	done
	$(BIN)/snella predict $(GENERATE)/snella --prompt tissue
	$(BIN)/python -m benchmarks.generated $(GENERATE)/snella $(GENERATE)/lora $(GENERATE)/full \
	  --out $(GENERATE)/methods.png

# One thread a process: two processes of two threads each are slower on two cores. Each worker starts with a part of the
# tests in their order, so that fixtures are built once, and takes what another has left when it is done.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --dist worksteal

# Before each change of a file in a short run of each task: killed, or the disk full; then resumed, to the same bits.
test-crash: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/crash

# Several processes as torchrun, two agents, kills at random times; minutes long.
test-cluster: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/distributed

# A report in a headless Chromium: the system's, or playwright's own; skipped, with the reason, where there is none.
test-browser: $(STAMP)
	$(BIN)/python -m pip install --quiet "playwright>=1.49"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs tests/pages/test_browser.py

# The page of snella app, in a headless Chromium too; in an environment of its own, since Gradio is large and wants an
# older Pillow than the others have.
test-app: $(APP)/.installed
	OMP_NUM_THREADS=1 $(APP)/bin/python -m pytest -rs tests/app

$(APP)/.installed: pyproject.toml
	$(PYTHON) -m venv $(APP)
	$(APP)/bin/python -m pip install --quiet $(TORCH) -e ".[test,app,browser]"
	touch $@

test-all: $(STAMP)
	$(BIN)/python -m pytest

# With both environments, so that adapters are made in the one and loaded in the other.
test-oldest: $(OLDEST)/.installed $(STAMP)
	SNELLA_OTHER_PYTHON=$(abspath $(BIN)/python) $(OLDEST)/bin/python -m pytest -m "not slow"

# PEFT's own tests with SNELLA in their matrices, from the source of the installed version; fifteen minutes.
test-peft: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tests/peft_suite/run.py build/peft -n $(WORKERS) -W ignore

# uv takes the lowest releases that pyproject.toml allows (of what it names itself), so that they stand in one place.
$(OLDEST)/.installed: pyproject.toml requirements/demo.txt
	if $(OLDEST_PYTHON) -c "" 2> /dev/null; then $(OLDEST_PYTHON) -m venv --clear $(OLDEST); else \
	  echo "$(OLDEST_PYTHON) does not run here: $(PYTHON) with the oldest releases that it can have"; \
	  $(PYTHON) -m venv --clear $(OLDEST); \
	fi
	$(OLDEST)/bin/python -m pip install --quiet "uv>=0.6"
	$(OLDEST)/bin/uv pip install --quiet --python $(OLDEST)/bin/python --resolution lowest-direct -e ".[test-base]"
	$(OLDEST)/bin/python -m pip install --quiet --no-deps --require-hashes -r requirements/demo.txt
	touch $@

# Minutes long; BENCH="--methods full,snella --batches 1,2,4,8" and the like choose another comparison.
bench: $(STAMP)
	$(BIN)/python -m benchmarks.run $(BENCH)

# Twelve minutes beside a CUDA device; GPU="--sections correct,speed" and the like choose a part, GPU=--dry tries the script.
gpu-check: $(STAMP)
	$(BIN)/python -m benchmarks.gpu_check $(GPU)

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python

# The site, in build/site; a dead link stops it. Its environment has no torch: the reference is read from the source.
docs: $(DOCS)/.installed
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build

$(DOCS)/.installed: requirements/docs.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet -r requirements/docs.txt
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) $(APP) $(DOCS) build dist runs/demo runs/segment runs/generate
