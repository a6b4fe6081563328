# make demo   set up, train on real handwritten digits, say where the results lie
# make test   set up, run every test but the storms (what CI runs)
# make check  lint, types, fast tests (under five minutes)
# make chaos  kill storms and long fuzzing (by hand; figures in docs/reliability.md)
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.kiln-ready
export OMP_NUM_THREADS ?= 2
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test check chaos setup clean
.DEFAULT_GOAL := demo

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Kiln needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12") if sys.version_info < (3, 11) else 0'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

setup: $(STAMP)

demo: setup
	$(BIN)/kiln demo

test: setup
	$(BIN)/python -m pytest -m 'not chaos and not gpu'

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -q -m 'not chaos and not gpu and not slow'

chaos: setup
	$(BIN)/python -m pytest -m chaos --timeout 3600 -s

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
