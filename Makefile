# Two commands: `make lab` opens the course, `make test` proves it. Both set up what they need; the second time that takes seconds.
PYTHON ?= python3
BIN := .venv/bin
NOTEBOOKS := $(wildcard notebooks/*.ipynb)
LONG := $(wildcard $(foreach subject,real_model fine_tune why_low_rank,notebooks/*_$(subject).ipynb))  # first, so that no core waits for the last
CONSTRAINED := --quiet --constraint constraints.txt
# uv installs what pip would, in a fraction of the time; where it cannot be had, or does not get through, pip does it
course = $(CONSTRAINED) --editable '.[$(extras)]'
install = $(BIN)/uv pip install --python $(BIN)/python $(course) || $(BIN)/pip install $(course)
# a test file or notebook at a time for each core, with one thread each; WORKERS=0 is one after the other
WORKERS ?= auto
PYTEST := python -m pytest --numprocesses=$(WORKERS) --dist=loadfile
# PyTorch's threads wait for each other by turning in circles: quickest on a quiet machine, and very slow where other
# programs want the same cores. Here they sleep while they wait.
test lint unit notebooks browser test-colab test-floors: export OMP_WAIT_POLICY ?= PASSIVE
unit notebooks browser test-floors: export OMP_NUM_THREADS ?= 1

.PHONY: help setup real lab colab site site-serve bundle test lint unit notebooks browser test-colab test-floors gpu refresh bench growth clean

help:
	@echo "make lab        set up, then open the course in JupyterLab"
	@echo "make real       add what a real model needs: transformers, peft, gguf, and its weights (98 MB)"
	@echo "make colab      pack the course into one file for Colab"
	@echo "make site       write the page that trains in a browser tab, and the notebooks to read, into build/site"
	@echo "make site-serve the same, and show it on this machine"
	@echo "make bundle     build the instruments of the notebooks from their JavaScript (needs Node.js)"
	@echo "make test       set up all of it, then lint, unit tests, every notebook under nbval and in a browser"
	@echo "make test-colab every notebook alone, on the versions that Colab has"
	@echo "make test-floors the unit tests on the lowest versions that the course admits"
	@echo "make gpu        on a machine with a GPU: its own tests, time and memory"
	@echo "make refresh    run every notebook from the top and store its outputs"
	@echo "make bench      time LoRA against full fine-tuning, ours against transformers + PEFT"
	@echo "make growth     time and memory of a step as rank, width and the rest grow"
	@echo "make clean      remove what is made again in minutes: .venv, build/colab, build/floors, cached corpora; models and runs stay"

.venv/.lab: extras = lab
.venv/.real: extras = lab,real
.venv/.test: extras = lab,real,data,test

.venv/.lab: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v >= (3, 11) else f"Python {v[0]}.{v[1]} is too old: call make with PYTHON=python3.11 or newer")'
	$(PYTHON) -m venv .venv
	-$(BIN)/pip install --quiet uv
	$(BIN)/pip install $(CONSTRAINED) torch
	$(install)
	@touch $@

.venv/.real: .venv/.lab
	$(install)
	@touch $@

# the tests compare with transformers and PEFT; a learner of the first notebooks installs neither. They start a hundred
# processes, and uv leaves it to the first of them to compile what they import
.venv/.test: .venv/.real
	$(install)
	$(BIN)/python -m compileall -qq -j 0 .venv/lib || true  # templates of other packages are no Python
	@touch $@

setup: .venv/.lab
	@$(BIN)/python -m llm fetch

real: setup .venv/.real
	@$(BIN)/python -m llm fetch --real

colab: setup
	@$(BIN)/python -m llm pack

site: setup
	@$(BIN)/python -m llm site

site-serve: site
	@echo "the site is at http://127.0.0.1:8000 until you press Ctrl-C"
	@$(BIN)/python -m http.server --bind 127.0.0.1 --directory build/site 8000

# what browsers run is committed as built; this builds it again after a change of its sources, and needs Node.js
bundle:
	cd llm/course/widgets/browser && npm ci --no-audit --no-fund --silent && npm run --silent build
	cd llm/course/page && npm ci --no-audit --no-fund --silent && npm run --silent build

# trusted, because the explorers that are stored in them are scripts
lab: setup
	@$(BIN)/jupyter trust notebooks/*.ipynb > /dev/null
	$(BIN)/jupyter lab notebooks/00_one_page.ipynb

test: lint unit notebooks browser

lint: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/lint-imports

unit: .venv/.test real
	$(BIN)/$(PYTEST) tests --ignore tests/browser

# in processes of their own: playwright keeps an event loop running, in which no other test could start one
browser: .venv/.test real
	$(BIN)/python -m pytest --numprocesses=$(WORKERS) tests/browser

# a limit is for hangs, 20 minutes: slowness is no failure
# strict: stored outputs must come out again, but for cells tagged nbval-ignore-output, whose claims are asserts
notebooks: .venv/.test real
	$(if $(NOTEBOOKS),$(BIN)/$(PYTEST) --nbval --nbval-current-env --nbval-sanitize-with tests/nbval.cfg --nbval-cell-timeout=1200 --nbval-kernel-startup-timeout=1200 --durations=10 --no-loadscope-reorder $(LONG) $(filter-out $(LONG),$(NOTEBOOKS)))

# torch first, by its pin: asked for by another package it would bring CUDA along
build/colab/.done: tests/colab/pins.txt constraints.txt
	$(PYTHON) -m venv --clear build/colab
	build/colab/bin/pip install $(CONSTRAINED) torch
	build/colab/bin/pip install --quiet --requirement tests/colab/pins.txt
	@touch $@

test-colab: build/colab/.done
	build/colab/bin/python tests/colab/run.py

# the lowest version of everything that pyproject.toml admits, but torch
build/floors/.done: tests/floors/pins.py pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear build/floors
	build/floors/bin/pip install $(CONSTRAINED) torch
	$(PYTHON) tests/floors/pins.py > build/floors/pins.txt
	build/floors/bin/pip install --quiet --requirement build/floors/pins.txt
	@touch $@

# torch is the same there: what needs torch alone, recorded runs included, is not proved twice
TORCH_ALONE := contents distributed four_bits loss movements notebooks patience spectra start subspaces toy_matrices training
test-floors: build/floors/.done real
	build/floors/bin/lint-imports --no-cache
	build/floors/bin/$(PYTEST) tests --ignore tests/browser $(TORCH_ALONE:%=--ignore tests/test_%.py) -k 'not done_again'

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
