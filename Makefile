# Needs python3 (3.11 or newer), its venv module and make; everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE := 1
# Idle threads sleep instead of spinning: two jobs on two cores do not stall each other.
export OMP_WAIT_POLICY := PASSIVE

# Where images of benchmarks are kept; of other weights elsewhere, so that runs of two models never mix.
RUNS ?= runs

FIGURES := figure-headline figure-attribute figure-comparison figure-comparison-safety figure-ablation figure-measuring

.PHONY: help install demo check test lowest lint figures $(FIGURES) torture backbones fullsize sizes scaling docs docs-serve notebooks embedded figures-of-these-weights package clean

help:  ## what make can do
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-12s %s\n", $$1, $$2}' Makefile

install: $(VENV)/.installed  ## the library with what tests need, in .venv

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is %d.%d; say which with: make PYTHON=python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade-strategy only-if-needed --editable '.[dev,app]'
	touch $@

demo: install  ## train, steer, measure; writes demo/before_after.png and demo/report.html
	$(BIN)/respodiff demo --out demo

check: install lint  ## what can be had in about a minute: lint, types, import contracts, tests that load no trained model
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

test: install lint  ## the whole suite on two cores, no network
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lowest:  ## the whole suite but the page, with the lowest version of each dependency (torch 2.6 of PyPI takes 5 GB; Python 3.11 or 3.12)
	$(PYTHON) -m venv $(VENV)-lowest
	grep -oE '"[A-Za-z0-9_-]+>=[0-9.]+' pyproject.toml | sed 's/"//; s/>=/==/' > $(VENV)-lowest/constraints.txt
	$(VENV)-lowest/bin/python -m pip install --quiet --constraint $(VENV)-lowest/constraints.txt --editable '.[dev]'
	$(VENV)-lowest/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --ignore=src/respodiff/app

lint: install  ## style, types, import contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

# Two at a time, a thread each: 1.5 times as fast as one by one. What is done is kept, so that a killed run goes on where it was.
figures: install  ## every table of docs/results.md (about 4 hours on 2 cores)
	OMP_NUM_THREADS=1 $(MAKE) -j 2 $(FIGURES)

figure-headline: install  # 60 minutes
	$(BIN)/python -m benchmarks.headline --out $(RUNS)/headline

figure-attribute: install  # 40 minutes
	$(BIN)/python -m benchmarks.attribute --out $(RUNS)/attribute

figure-comparison: install  # 60 minutes
	$(BIN)/python -m benchmarks.comparison fairness --out $(RUNS)/compare

figure-comparison-safety: install  # 77 minutes
	$(BIN)/python -m benchmarks.comparison safety --out $(RUNS)/compare-safety

figure-ablation: install  # 40 minutes
	$(BIN)/python -m benchmarks.ablations --out $(RUNS)/ablation

figure-measuring: install  # 10 minutes
	$(BIN)/python -m benchmarks.measuring

docs: install  ## the documentation site in build/site; a wrong link stops it
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

docs-serve: install  ## the same at http://localhost:8000, built anew at every change
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

notebooks: install  ## runs the notebooks of docs/notebooks (5 minutes); they lie in build/notebooks then, with their output
	$(BIN)/python -m pip install --quiet --editable '.[notebooks]'
	rm -rf build/notebooks && mkdir -p build/notebooks
	cp docs/notebooks/*.py build/notebooks
	$(BIN)/jupytext --quiet --to ipynb build/notebooks/*.py
	$(BIN)/python -m pytest --nbmake --nbmake-timeout=600 --overwrite build/notebooks/*.ipynb

scaling: install  ## one process, shards, workers and Ray on the same run (10 minutes of an idle machine)
	$(BIN)/python -m benchmarks.scaling

torture: install  ## attacks: kills, two writers, damaged files, odd texts (about 10 minutes); fills docs/reliability.md
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.torture

backbones: install  ## every pipeline with every feature, on tiny models; fills docs/backbones.md
	$(BIN)/python -m benchmarks.backbones

fullsize: install  ## models of the sizes of SD 1.4 and SDXL with random weights: shapes, seconds, memory (needs 10 GiB)
	$(BIN)/python -m benchmarks.fullsize

sizes: install  ## the default preset on UNets of three sizes (15 minutes, 14 GiB)
	$(BIN)/python -m benchmarks.sizes

embedded: install  ## other weights for the embedded model: make embedded WEIGHTS=DIR; checks, swaps, card, then every figure (hours)
	@test -n "$(WEIGHTS)" || { echo "say which weights: make embedded WEIGHTS=runs/embedded/weights" >&2; exit 2; }
	$(BIN)/python -m recipes.embedded_model.install "$(WEIGHTS)"
	$(MAKE) figures-of-these-weights

figures-of-these-weights:
	$(eval override DIGEST := $(shell $(BIN)/python -m recipes.embedded_model.install --digest))
	@test -n "$(DIGEST)" || { echo "the package's weights cannot be read" >&2; exit 2; }
	$(eval override RUNS := runs/$(DIGEST))
	$(MAKE) figures RUNS=$(RUNS)
	$(BIN)/respodiff demo --out $(RUNS)/demo
	cp $(RUNS)/demo/before_after.png docs/before_after.png

# Nothing of the repository is at hand: another folder, an environment that holds the wheel and its dependencies alone.
package: install  ## wheel and sdist in dist/; installs the wheel into an empty environment and runs the demo there
	rm -rf dist && $(BIN)/python -m hatchling build
	rm -rf build/empty && $(PYTHON) -m venv build/empty/venv
	build/empty/venv/bin/python -m pip install --quiet dist/*.whl
	cd build/empty && venv/bin/respodiff demo --out demo
	test -s build/empty/demo/report.html

clean:  ## removes the environment and what was built
	rm -rf $(VENV) $(VENV)-lowest demo build dist
