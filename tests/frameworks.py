"""The packages that the tests find here: without one of them, only its own tests are left out.

``COOLMOMENTUM_REQUIRED`` names those that must be there, so that none goes untested unnoticed: all
in ``make test``, and those of each environment in ``make test-lowest``.
"""

import importlib
import importlib.util
import os
from typing import Any

import pytest

# Files and folders of tests, and what they cannot be collected without.
NEEDS = {
    "contract/test_state_transfer.py": ("safetensors",),
    "contract/adapters/jax.py": ("jax", "optax"),
    "contract/adapters/keras.py": ("keras",),
    "contract/adapters/torch.py": ("torch",),
    "mutants.py": ("rich",),
    "test_portable.py": ("safetensors",),
    "test_docstrings.py": ("numpydoc", "matplotlib", "safetensors"),
    "test_figures.py": ("torch", "matplotlib", "pandas", "rich"),
    "test_from_sgd.py": ("scipy", "sklearn"),
    "test_frameworks.py": ("torch", "jax", "optax"),
    "test_gpu_command.py": ("torch", "jax", "optax", "sklearn", "psutil"),
    "test_gpu.py": ("torch", "jax", "optax"),
    "test_imagenet.py": ("keras", "tensorflow", "benchopt", "matplotlib", "rich"),
    "jax_adapter": ("jax", "optax"),
    "jax_adapter/test_jax_checkpoints.py": ("flax", "orbax"),
    "jax_adapter/test_jax_optax_suites.py": ("sklearn",),
    "test_keras_backends.py": ("keras", "tensorflow", "torch", "jax", "optax"),
    "test_logging_recipes.py": ("torch", "pytorch_lightning", "tensorboard", "transformers"),
    "test_mutants.py": ("torch", "jax", "optax", "keras", "flax", "rich"),
    "test_noise_networks.py": ("torch", "jax", "optax", "scipy", "sklearn"),
    "test_packaging.py": ("pyproject_hooks",),  # of build: a folder of that name may lie here
    "test_plot.py": ("matplotlib", "pandas"),
    "test_site.py": ("torch", "optax", "schedulefree", "pytorch_optimizer"),
    "test_sampling.py": ("scipy", "sklearn", "matplotlib"),
    "torch_adapter": ("torch",),
    "torch_adapter/test_torch_counting.py": ("accelerate", "transformers", "pytorch_lightning"),
    "torch_adapter/test_torch_gradient_noise.py": ("sklearn",),
    "training": ("torch", "jax", "optax", "flax", "benchopt"),
    "keras_adapter/test_keras_on_tensorflow_logging.py": ("tensorboard",),
    "keras_adapter/imagenet_*.py": ("keras", "tensorflow", "benchopt"),
    "keras_adapter/test_keras_on_jax_imagenet.py": ("keras", "tensorflow", "jax", "benchopt"),
    "keras_adapter/test_keras_on_tensorflow_imagenet*.py": ("keras", "tensorflow", "benchopt"),
    "keras_adapter/test_keras_training.py": ("keras", "torch", "benchopt"),
}
# What a module needs, if that is not the package of its name.
OF_MODULES = {
    "coolmomentum.torch": ("torch",),
    "coolmomentum.jax": ("jax", "optax"),
    "safetensors.torch": ("torch",),
}


def installed(*packages: str) -> bool:
    """Whether all these can be imported; one that is there but broken can."""
    return all(importlib.util.find_spec(package) for package in packages)


class Missing:
    """Stands for a module that is not installed, and skips the test that uses it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("_"):  # pytest and doctest look for some
            raise AttributeError(attribute)
        pytest.skip(f"{self._name} is not installed")


def framework(name: str) -> Any:
    """The module of that name, or where it is not installed what skips the test that uses it."""
    if installed(*OF_MODULES.get(name, (name.partition(".")[0],))):
        return importlib.import_module(name)
    return Missing(name)


def left_out() -> list[str]:
    """The files and folders of NEEDS that cannot be collected here."""
    return [path for path, needs in NEEDS.items() if not installed(*needs)]


REQUIRED = os.environ.get("COOLMOMENTUM_REQUIRED", "").split()
if REQUIRED == ["all"]:
    optional = {"tensorflow", "scipy", "pandas", "pytorch_optimizer", "torchao"}
    REQUIRED = sorted(optional.union(*NEEDS.values()))
absent = [name for name in REQUIRED if not installed(name)]
if absent:
    raise ModuleNotFoundError(f"COOLMOMENTUM_REQUIRED names {', '.join(absent)}: not installed")
