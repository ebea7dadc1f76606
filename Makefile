# Two commands: `make lab` opens the course, `make test` proves it. Both set everything up first; the second time that takes seconds.
PYTHON ?= python3
BIN := .venv/bin
NOTEBOOKS := $(wildcard notebooks/*.ipynb)

.PHONY: help setup lab test lint unit notebooks test-colab refresh bench clean

help:
	@echo "make lab        set up, then open the course in JupyterLab"
	@echo "make test       set up, then lint, unit tests and every notebook under nbval"
	@echo "make test-colab every notebook alone, on the versions that Colab has"
	@echo "make refresh    run every notebook from the top and store its outputs"
	@echo "make bench      time LoRA against full fine-tuning, ours against transformers + PEFT"
	@echo "make clean      remove what the course made (.venv, build, cached corpora)"

.venv/.done: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v >= (3, 11) else f"Python {v[0]}.{v[1]} is too old: call make with PYTHON=python3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

setup: .venv/.done
	@$(BIN)/python -m llm fetch

lab: setup
	$(BIN)/jupyter lab notebooks/01_formula.ipynb

test: setup lint unit notebooks

lint: .venv/.done
	$(BIN)/ruff check .

unit: .venv/.done
	$(BIN)/python -m pytest tests

# strict: stored outputs must come out again, but for cells tagged nbval-ignore-output, whose claims are asserts
notebooks: .venv/.done
	$(if $(NOTEBOOKS),$(BIN)/python -m pytest --nbval --nbval-current-env --nbval-sanitize-with tests/nbval.cfg --nbval-cell-timeout=300 --durations=10 $(NOTEBOOKS))

# torch first, by its pin: asked for by another package it would bring CUDA along
build/colab/.done: tests/colab/pins.txt constraints.txt
	$(PYTHON) -m venv --clear build/colab
	build/colab/bin/pip install --quiet --constraint constraints.txt torch
	build/colab/bin/pip install --quiet --requirement tests/colab/pins.txt
	@touch $@

test-colab: build/colab/.done
	build/colab/bin/python tests/colab/run.py

refresh: setup
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace --NotebookClient.store_widget_state=False --NotebookClient.record_timing=False $(NOTEBOOKS)

# in one run, so that ratios hold on a machine whose speed drifts
bench: setup
	$(BIN)/python tests/bench/bench.py

clean:
	rm -rf .venv build data/cache
