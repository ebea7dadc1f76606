# Two commands: `make lab` opens the course, `make test` proves it. Both set up what they need; the second time that takes seconds.
PYTHON ?= python3
BIN := .venv/bin
NOTEBOOKS := $(wildcard notebooks/*.ipynb)
INSTALL := $(BIN)/pip install --quiet --constraint constraints.txt
# PyTorch's threads wait for each other by turning in circles: quickest on a quiet machine, and very slow where other
# programs want the same cores. Here they sleep while they wait.
test lint unit notebooks browser test-colab test-floors: export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help setup real lab test lint unit notebooks browser test-colab test-floors gpu refresh bench growth clean

help:
	@echo "make lab        set up, then open the course in JupyterLab"
	@echo "make real       add what notebook 07 needs: transformers, peft, gguf, and a real model (98 MB)"
	@echo "make test       set up all of it, then lint, unit tests, every notebook under nbval and in a browser"
	@echo "make test-colab every notebook alone, on the versions that Colab has"
	@echo "make test-floors the unit tests on the lowest versions that the course admits"
	@echo "make gpu        on a machine with a GPU: its own tests, time and memory"
	@echo "make refresh    run every notebook from the top and store its outputs"
	@echo "make bench      time LoRA against full fine-tuning, ours against transformers + PEFT"
	@echo "make growth     time and memory of a step as rank, width and the rest grow"
	@echo "make clean      remove what is made again in minutes: .venv, build/colab, build/floors, cached corpora; models and runs stay"

.venv/.lab: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v >= (3, 11) else f"Python {v[0]}.{v[1]} is too old: call make with PYTHON=python3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(INSTALL) torch
	$(INSTALL) --editable '.[lab]'
	@touch $@

.venv/.real: .venv/.lab
	$(INSTALL) --editable '.[lab,real]'
	@touch $@

# the tests compare with transformers and PEFT; a learner of notebooks 01 to 06 installs neither
.venv/.test: .venv/.real
	$(INSTALL) --editable '.[lab,real,test]'
	@touch $@

setup: .venv/.lab
	@$(BIN)/python -m llm fetch

real: setup .venv/.real
	@$(BIN)/python -m llm fetch --real

lab: setup
	$(BIN)/jupyter lab notebooks/01_formula.ipynb

test: lint unit notebooks browser

lint: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/lint-imports

unit: .venv/.test real
	$(BIN)/python -m pytest tests --ignore tests/browser

# a process of its own: playwright keeps an event loop running, in which no other test could start one
browser: .venv/.test real
	$(BIN)/python -m pytest tests/browser

# a limit is for hangs, 20 minutes: slowness is no failure
# strict: stored outputs must come out again, but for cells tagged nbval-ignore-output, whose claims are asserts
notebooks: .venv/.test real
	$(if $(NOTEBOOKS),$(BIN)/python -m pytest --nbval --nbval-current-env --nbval-sanitize-with tests/nbval.cfg --nbval-cell-timeout=1200 --nbval-kernel-startup-timeout=1200 --durations=10 $(NOTEBOOKS))

# torch first, by its pin: asked for by another package it would bring CUDA along
build/colab/.done: tests/colab/pins.txt constraints.txt
	$(PYTHON) -m venv --clear build/colab
	build/colab/bin/pip install --quiet --constraint constraints.txt torch
	build/colab/bin/pip install --quiet --requirement tests/colab/pins.txt
	@touch $@

test-colab: build/colab/.done
	build/colab/bin/python tests/colab/run.py

# the lowest version of everything that pyproject.toml admits, but torch
build/floors/.done: tests/floors/pins.py pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear build/floors
	build/floors/bin/pip install --quiet --constraint constraints.txt torch
	$(PYTHON) tests/floors/pins.py > build/floors/pins.txt
	build/floors/bin/pip install --quiet --requirement build/floors/pins.txt
	@touch $@

# recorded runs are not done again: their numbers are torch's, and its version is the same
test-floors: build/floors/.done real
	build/floors/bin/lint-imports --no-cache
	build/floors/bin/python -m pytest tests --ignore tests/browser --ignore tests/test_start.py -k 'not done_again'

# with the Python that has the GPU's torch, and numpy, safetensors, tiktoken, typer, pytest beside it; makes no environment.
# transformers and peft, nbclient and ipywidgets are used where they are there
gpu:
	$(PYTHON) -m pytest tests/gpu
	$(PYTHON) tests/gpu/figures.py

refresh: real
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace --NotebookClient.store_widget_state=False --NotebookClient.record_timing=False --NotebookClient.startup_timeout=1200 --NotebookClient.iopub_timeout=1200 $(NOTEBOOKS)

# in one run, so that ratios hold on a machine whose speed drifts
bench: .venv/.test real
	$(BIN)/python tests/bench/bench.py

growth: .venv/.test
	$(BIN)/python tests/bench/growth.py

# never build/ as a whole: a merged model or an hour of pretraining may lie there
clean:
	rm -rf .venv build/colab build/floors build/lib build/bdist.* data/cache *.egg-info .pytest_cache .ruff_cache .import_linter_cache
