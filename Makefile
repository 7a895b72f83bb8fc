# Needs python3 (3.11 or newer), its venv module and make; everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE := 1
# Idle threads sleep instead of spinning: two jobs on two cores do not stall each other.
export OMP_WAIT_POLICY := PASSIVE

# Where images of benchmarks are kept; of other weights elsewhere, so that runs of two models never mix.
RUNS ?= runs

.PHONY: install demo test lint figures backbones fullsize embedded figures-of-these-weights clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is %d.%d; say which with: make PYTHON=python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade-strategy only-if-needed --editable '.[dev]'
	touch $@

demo: install  ## train, steer, measure; writes demo/before_after.png and demo/report.html
	$(BIN)/respodiff demo --out demo

test: install lint  ## the whole suite on two cores, no network
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --validation-images
	$(BIN)/mypy
	$(BIN)/lint-imports

figures: install  ## every figure of docs/ and README but those of backbones.md (about 10 hours on 2 cores; goes on where it was)
	$(BIN)/python -m benchmarks.main_job --out $(RUNS)/main_job
	$(BIN)/python -m benchmarks.two_judges --out $(RUNS)/main_job
	$(BIN)/python -m benchmarks.sweep --out $(RUNS)/sweep $(AGAIN)
	$(BIN)/python -m benchmarks.axes --out $(RUNS)/axes $(AGAIN)
	$(BIN)/python -m benchmarks.beyond --out $(RUNS)/beyond
	$(BIN)/python -m benchmarks.leaning --runs $(RUNS)/beyond
	$(BIN)/respodiff compare --ablation ablation --scale .5 --scale 1 --out $(RUNS)/ablation
	$(BIN)/respodiff compare --ablation drawing --out $(RUNS)/drawing
	$(BIN)/python -m benchmarks.studies $(RUNS)/ablation $(RUNS)/drawing
	$(BIN)/python -m benchmarks.intersection --out $(RUNS)/intersection --modules $(RUNS)/beyond/modules
	$(BIN)/python -m benchmarks.neutral --out $(RUNS)/neutral
	$(BIN)/python -m benchmarks.methods_sweep --out $(RUNS)/methods-sweep
	$(BIN)/respodiff compare --suite occupations --methods all --cache $(RUNS)/methods-sweep/adapters --out $(RUNS)/compare
	$(BIN)/respodiff compare --suite unsafe --methods all --cache $(RUNS)/methods-sweep/adapters --out $(RUNS)/compare-safety
	$(BIN)/python -m benchmarks.methods_table $(RUNS)/compare $(RUNS)/compare-safety
	$(BIN)/python -m benchmarks.implicit_shares
	$(BIN)/python -m benchmarks.measuring
	$(BIN)/python -m benchmarks.gate
	$(BIN)/python -m benchmarks.gate --images --modules $(RUNS)/beyond/modules --out $(RUNS)/gate
	$(BIN)/python -m benchmarks.shares --images --modules $(RUNS)/beyond/modules --out $(RUNS)/shares
	$(BIN)/python -m benchmarks.strength --modules $(RUNS)/beyond/modules --out $(RUNS)/strength

backbones: install  ## every pipeline with every feature, on tiny models; fills docs/backbones.md
	$(BIN)/python -m benchmarks.backbones

fullsize: install  ## models of the sizes of SD 1.4 and SDXL with random weights: shapes, seconds, memory (needs 10 GiB)
	$(BIN)/python -m benchmarks.fullsize

embedded: install  ## other weights for the embedded model: make embedded WEIGHTS=DIR; checks, swaps, card, then every figure (hours)
	@test -n "$(WEIGHTS)" || { echo "say which weights: make embedded WEIGHTS=runs/embedded/weights" >&2; exit 2; }
	$(BIN)/python -m recipes.embedded_model.install "$(WEIGHTS)"
	$(MAKE) figures-of-these-weights

figures-of-these-weights:
	$(eval override DIGEST := $(shell $(BIN)/python -m recipes.embedded_model.install --digest))
	@test -n "$(DIGEST)" || { echo "the package's weights cannot be read" >&2; exit 2; }
	$(eval override RUNS := runs/$(DIGEST))
	$(MAKE) figures RUNS=$(RUNS) AGAIN=--again
	$(BIN)/python -m benchmarks.fused --out $(RUNS)/fused
	$(BIN)/respodiff demo --out $(RUNS)/demo
	cp $(RUNS)/demo/before_after.png docs/before_after.png

clean:
	rm -rf $(VENV) demo build dist
