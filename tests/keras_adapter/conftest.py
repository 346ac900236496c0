"""Settings of the tests that run on one backend of Keras, that of KERAS_BACKEND.

``tests/test_keras_backends.py`` runs them with each. Files called ``test_keras_on_<backend>*`` are
for that backend alone.
"""

import os
from collections.abc import Iterator

import pytest
from frameworks import left_out

BACKEND = os.environ.get("KERAS_BACKEND")

collect_ignore_glob = (
    ["*"]
    if BACKEND is None
    else [f"test_keras_on_{other}*" for other in ("tensorflow", "jax", "torch") if other != BACKEND]
)
# pytest takes the nearest list only, which is not that of tests/conftest.py.
collect_ignore_glob += [path.removeprefix("keras_adapter/") for path in left_out()]


@pytest.fixture
def float64(request: pytest.FixtureRequest) -> Iterator[None]:
    """Keras with float64 as its default dtype; on JAX with 64-bit types."""
    import keras

    if BACKEND == "jax":
        request.getfixturevalue("jax_x64")
    keras.config.set_floatx("float64")
    yield
    keras.config.set_floatx("float32")


@pytest.fixture(params=["float32", "float64"])
def floatx(request: pytest.FixtureRequest) -> str:
    """The default dtype of Keras, one after the other."""
    if request.param == "float64":
        request.getfixturevalue("float64")
    return request.param


@pytest.fixture(scope="session")
def strategy():
    """Two replicas on two logical CPUs; one strategy for all tests, as TensorFlow wants it."""
    import tensorflow as tf

    if len(tf.config.list_logical_devices("CPU")) < 2:  # the replicas would wait for each other
        pytest.fail("KERAS_BACKEND must be tensorflow, by which pytest_configure splits the CPU")
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def pytest_configure(config: pytest.Config) -> None:
    """Runs past their end are meant so here; on TensorFlow, two logical CPUs for tf.distribute.

    These before anything makes TensorFlow look for its devices.
    """
    config.addinivalue_line("filterwarnings", "ignore:.* steps were taken, more than total_steps")
    if BACKEND == "tensorflow":
        import tensorflow as tf

        (cpu,) = tf.config.list_physical_devices("CPU")
        both = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpu, both)
