# Needs python3 (3.11 or newer), its venv module and make; everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE := 1
# Idle threads sleep instead of spinning: two jobs on two cores do not stall each other.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: install demo test lint figures backbones fullsize clean

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
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

figures: install  ## every figure of docs/ and README but those of backbones.md (about 2 hours on 2 cores; goes on where it was)
	$(BIN)/python -m benchmarks.main_job --out runs/main_job
	$(BIN)/python -m benchmarks.sweep --out runs/sweep
	$(BIN)/python -m benchmarks.implicit_shares
	$(BIN)/python -m benchmarks.measuring

backbones: install  ## every pipeline with every feature, on tiny models; fills docs/backbones.md
	$(BIN)/python -m benchmarks.backbones

fullsize: install  ## models of the sizes of SD 1.4 and SDXL with random weights: shapes, seconds, memory (needs 10 GiB)
	$(BIN)/python -m benchmarks.fullsize

clean:
	rm -rf $(VENV) demo build dist
