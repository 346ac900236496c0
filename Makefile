# Two commands do all set-up on a fresh machine with Python 3.11 or newer: make demo, make test.
PYTHON ?= python3
# Of torch jax keras_tensorflow keras_jax keras_torch; the first of them tunes. None: as in the config.
FRAMEWORKS ?=
CONFIG ?= laptop-digits
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo benchmark docs figures imagenet-smoke agreement mutants speed test test-lowest test-pythons lint gpu-luggage clean

demo: $(VENV)/demo.stamp
	$(BIN)/python -m benchmarks.training demo $(if $(FRAMEWORKS),--frameworks $(FRAMEWORKS))

# CONFIG=laptop-digits, laptop-cifar10, laptop-resnet20, gpu, paper, or ci (for tests): see benchmarks/README.md.
benchmark: $(VENV)/demo.stamp
	$(BIN)/python -m benchmarks.training $(CONFIG) $(if $(FRAMEWORKS),--frameworks $(FRAMEWORKS))

# Whole runs of benchmarks/imagenet in miniature: on TensorFlow, on two logical CPUs, on four JAX
# devices, and one that is interrupted; eight minutes at most of two quiet cores.
imagenet-smoke: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -v tests/imagenet_smoke.py

# What a machine with a GPU and without a network needs for `python -m benchmarks.gpu`.
gpu-luggage: $(VENV)/demo.stamp
	$(BIN)/python -m benchmarks.gpu.luggage

# Those of README and docs; they are committed.
figures: $(VENV)/demo.stamp
	$(BIN)/python -m benchmarks.figures
	for page in torch jax keras numpy; do \
	  KERAS_BACKEND=jax $(BIN)/python -m benchmarks.page_figures start_$$page || exit 1; done

# The site, in site/html: every warning is an error, and nothing comes from the network. The notebooks
# are executed.
docs: $(VENV)/docs.stamp
	rm -rf site
	$(BIN)/python -m sphinx -q -W --keep-going -d site/doctrees docs site/html

# Half an hour's quiet on the machine is worth more than more rounds. Keras has one backend a process.
SPEED = OMP_NUM_THREADS=1 TF_NUM_INTRAOP_THREADS=1 TF_NUM_INTEROP_THREADS=1 \
  XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1" \
  $(BIN)/python -m pytest -q --benchmark-columns=median --benchmark-json=results/speed
speed: $(VENV)/bench.stamp
	mkdir -p results/speed
	$(SPEED)/torch.json benchmarks/speed/bench_torch.py
	$(SPEED)/jax.json benchmarks/speed/bench_jax.py
	for backend in tensorflow jax torch; do \
	  KERAS_BACKEND=$$backend $(SPEED)/keras-$$backend.json benchmarks/speed/bench_keras.py || exit 1; done
	$(BIN)/python -m benchmarks.speed results/speed

# Each file in one of two processes, with a thread each: a compiler's threads only wait for others.
# Files are begun in the order of tests/conftest.py, not that of how many tests they have. Something
# that is not installed fails here, and elsewhere leaves its tests out: see tests/frameworks.py.
test: lint docs
	COOLMOMENTUM_REQUIRED=all OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/pre-commit validate-config
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-symlinks coolmomentum/*

# The tests with the lowest versions that pyproject.toml claims, and with those of constraints.txt on
# Pythons that `make test` is not run with: each framework apart, in environments that are removed.
# ENVIRONMENTS: of core torch jax keras-tensorflow keras-jax keras-torch; none: all.
ENVIRONMENTS ?=
PYTHONS ?= python3.12 python3.13
test-lowest:
	$(PYTHON) tests/versions.py lowest $(ENVIRONMENTS)

test-pythons:
	for python in $(PYTHONS); do $$python tests/versions.py today $(ENVIRONMENTS) || exit 1; done

# Measures every path against the float64 reference and writes docs/agreement.md.
agreement: $(VENV)/dev.stamp
	PYTHONPATH=tests $(BIN)/python tests/contract/agreement.py

# Puts mistakes into copies of the package and shows that the tests catch each; a part of `make test`.
mutants: $(VENV)/dev.stamp
	$(BIN)/python tests/mutants.py

clean:
	rm -rf $(VENV) $(VENV)-* results luggage site

# One stamp for each set of extras: a change of the requirements installs anew.
$(VENV)/%.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else \
	  f'Python 3.11 or newer is needed, this is {v.major}.{v.minor}: make PYTHON=python3.12 ...')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'
	touch $@
