"""What the optimizer and the thermometer share."""

from typing import Any

import keras

Tensor = Any  # a tensor of the backend
Variable = Any  # a keras.Variable; within TensorFlow's step, a tf.Variable


def wide_dtype(variables: list[Variable]) -> str:
    """The dtype to compute in: float64 if a variable has it, else float32."""
    dtypes = {keras.backend.standardize_dtype(variable.dtype) for variable in variables}
    return "float64" if "float64" in dtypes else "float32"


def path_of(variable: Variable) -> str:
    """Its path; a tf.Variable has a name only."""
    return str(getattr(variable, "path", variable.name))
