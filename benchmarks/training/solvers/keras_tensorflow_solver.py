"""Training in Keras on TensorFlow."""

from benchmarks.training._solver import TrainingSolver


class Solver(TrainingSolver):
    """Keras on TensorFlow."""

    name = "keras_tensorflow"
