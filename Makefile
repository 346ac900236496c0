# Two commands do all set-up on a fresh machine with Python 3.11 or newer: make demo, make test.
PYTHON ?= python3
FRAMEWORKS ?= torch jax tensorflow
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo figures agreement mutants test lint clean

demo: $(VENV)/demo.stamp
	$(BIN)/python -m benchmarks.demo --frameworks $(FRAMEWORKS) --output results/demo

# Those of README and docs; they are committed.
figures: $(VENV)/demo.stamp
	$(BIN)/python -m benchmarks.figures

test: lint
	$(BIN)/python -m pytest

lint: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pre-commit validate-config
	$(BIN)/check-symlinks coolmomentum/*

# Measures every path against the float64 reference and writes docs/agreement.md.
agreement: $(VENV)/dev.stamp
	$(BIN)/python tests/contract/agreement.py

# Puts mistakes into copies of the package and shows that the tests catch each; a part of `make test`.
mutants: $(VENV)/dev.stamp
	$(BIN)/python tests/mutants.py

clean:
	rm -rf $(VENV) results

# One stamp for each set of extras: a change of the requirements installs anew.
$(VENV)/%.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else \
	  f'Python 3.11 or newer is needed, this is {v.major}.{v.minor}: make PYTHON=python3.12 ...')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'
	touch $@
