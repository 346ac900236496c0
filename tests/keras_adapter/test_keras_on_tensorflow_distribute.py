"""tf.distribute: two replicas walk as one does on the same global batch, with one temperature."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from exact import U32
from keras_tools import near, numpy

from coolmomentum.keras import Thermometer
from coolmomentum.tensorflow import CoolMomentum
from coolmomentum.thermometer import READINGS

X = np.random.default_rng(0).standard_normal((48, 3)).astype("float32")
Y = X[:, :1] - X[:, 1:2] * X[:, 2:3]
COOLING = {"total_steps": 16, "rho0": 0.9}
# 18 steps; gradients below 10 are sums of 8 samples in another order, 20 roundings; displacements
# below 0.3 live for ten steps.
CLOSE = {"rtol": 0, "atol": 18 * 10 * 32 * U32 * 0.3}


def network(**settings):
    """A small network, always of the same weights."""
    keras.utils.set_random_seed(1)
    layers = [keras.Input((3,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(1)]
    model = keras.Sequential(layers)
    model.compile(CoolMomentum(0.05, **COOLING, **settings), "mse")
    return model


def train(model, epochs=3, callbacks=()):
    """Epochs of six batches, past S."""
    fit = {"epochs": epochs, "shuffle": False, "verbose": 0, "callbacks": [*callbacks]}
    model.fit(X, Y, batch_size=8, **fit)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"law": "linear", "warmup_steps": 3},
        {"weight_decay": 0.1},
        {"use_ema": True},
    ],
    ids=["plain", "warm-up", "decay", "average"],
)
def test_two_replicas_are_one(strategy, settings):
    """Weights, rho, temperature and clock of fit are those of one replica, in both replicas."""
    one = network(**settings)
    train(one)
    with strategy.scope():
        two = network(**settings)
    train(two)
    for x, y in zip(one.weights, two.weights, strict=True):
        copies = [component.numpy() for component in y.value.values]
        assert len(copies) == 2
        np.testing.assert_array_equal(*copies)
        np.testing.assert_allclose(numpy(x), copies[0], **CLOSE)
    for displacement in two.optimizer._displacements:
        np.testing.assert_array_equal(*(part.numpy() for part in displacement.value.values))
    assert numpy(two.optimizer.iterations) == numpy(one.optimizer.iterations) == 18
    assert two.optimizer.rho == one.optimizer.rho == 0.0
    assert two.optimizer.temperature() == near(one.optimizer.temperature())
    ours, theirs = (model.optimizer.temperatures().values() for model in (two, one))
    assert [*ours] == [near(t) for t in theirs]


def test_readings_while_it_cools(strategy):
    """Half way rho and temperature are those of one replica, read on the host or in a replica."""
    one = network()
    train(one, 1)
    with strategy.scope():
        two = network()
    train(two, 1)
    assert two.optimizer.rho == one.optimizer.rho > 0
    assert two.optimizer.temperature() == near(one.optimizer.temperature())

    @tf.function
    def read():
        return strategy.run(two.optimizer.temperature_tensor)

    for value in strategy.experimental_local_results(read()):
        assert float(value) == pytest.approx(two.optimizer.temperature(), rel=1e-6)


def test_extended_replicas_go_on_as_the_longer_run(strategy):
    """The numbers of the cooling are the same in both replicas, and their step reads them."""
    with strategy.scope():
        two, longer = network(), network()
        longer.compile(CoolMomentum(0.05, 40, 0.9), "mse")
        longer.optimizer.build(longer.trainable_variables)
    train(two, 1)
    two.optimizer.extend(40)
    assert two.optimizer.rho == two.optimizer.schedule(6) > 0.8
    longer.set_weights(two.get_weights())
    longer.optimizer.set_weights([x.numpy() for x in two.optimizer.variables])
    for model in (two, longer):
        train(model, 1)
    for x, y in zip(two.weights, longer.weights, strict=True):
        np.testing.assert_array_equal(numpy(x), numpy(y))
    for number in (*two.optimizer._cooling(), two.optimizer._last_learning_rate):
        np.testing.assert_array_equal(*(part.numpy() for part in number.value.values))
    assert two.optimizer.temperature() == longer.optimizer.temperature() > 0


def test_the_thermometer_sees_one_walk(strategy):
    """Two replicas are read as one, masses of Adam included, in every row and reading.

    Parameters differ by no more than CLOSE, displacements by twice that; squares and products by
    twice that share of a displacement, and readings subtract like numbers at worst tenfold. That is
    a share of temperatures, of whatever size; the others are of order one.
    """
    readings = []
    for scope in (contextlib.nullcontext(), strategy.scope()):
        with scope:
            model = network()
            model.compile(keras.optimizers.Adam(0.05), "mse")
        thermometer = Thermometer(every=2, span=4)
        train(model, callbacks=[thermometer])
        readings.append([*thermometer.read("parameter").values(), thermometer.read()])
    for one, two in zip(*readings, strict=True):
        assert two["steps"] == one["steps"] == 6
        size = 10 * 4 * CLOSE["atol"] / one["rescaled_temperature"] ** 0.5
        for name in READINGS:
            least = 0 if name.endswith("temperature") else size
            assert two[name] == pytest.approx(one[name], rel=size, abs=least, nan_ok=True), name


def test_a_custom_loop(strategy):
    """apply_gradients in strategy.run sums the gradients of the replicas, as for Keras' SGD."""
    with strategy.scope():
        variables = [tf.Variable([1.0, 2.0]) for _ in "ab"]
        cool = CoolMomentum(0.25, 9, 0.5, law="constant")
        sgd = keras.optimizers.SGD(0.1875, momentum=0.5)
        for optimizer, x in zip((cool, sgd), variables, strict=True):
            optimizer.build([x])

    @tf.function
    def step():
        def replica():
            mine = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.float32)
            for optimizer, x in zip((cool, sgd), variables, strict=True):
                optimizer.apply_gradients([((1 + mine) * tf.ones(2), x)])

        strategy.run(replica)

    for _ in range(4):
        step()
    # dx = -(9/16, 27/32, ...): exact in float32
    moved = [0.0]
    for _ in range(4):
        moved.append(0.5 * moved[-1] - 0.1875 * 3)
    np.testing.assert_array_equal(variables[0].numpy(), [1 + sum(moved), 2 + sum(moved)])
    np.testing.assert_array_equal(*(x.numpy() for x in variables))


def test_a_model_file_moves_between_strategies(strategy, tmp_path):
    """Saved from two replicas, resumed on one."""
    with strategy.scope():
        two = network()
    train(two, 1)
    two.save(tmp_path / "model.keras")
    one = keras.models.load_model(tmp_path / "model.keras")
    assert one.optimizer.rho == two.optimizer.rho
    train(one, 1)
    train(two, 1)
    for x, y in zip(one.weights, two.weights, strict=True):
        np.testing.assert_allclose(numpy(x), numpy(y), **CLOSE)


# model.fit itself fails under this strategy, in Keras 3.15 and with any optimizer: it wants to turn
# the batches of all workers into one tensor.
WORKER = """
import sys
import numpy as np
import tensorflow as tf
strategy = tf.distribute.MultiWorkerMirroredStrategy()
sys.path[:0] = {path!r}
import test_keras_on_tensorflow_distribute as here
with strategy.scope():
    model = here.network()
    optimizer = model.optimizer
    optimizer.build(model.trainable_variables)
data = tf.data.Dataset.from_tensor_slices((here.X, here.Y)).batch(8)
options = tf.data.Options()
options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
data = strategy.experimental_distribute_dataset(data.with_options(options))

@tf.function
def step(batch):
    def replica(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(model(x, training=True) - y)) / 8
        variables = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))
    strategy.run(replica, args=batch)

for epoch in range(3):
    for batch in data:
        step(batch)
np.savez(
    sys.argv[1],
    *[x.numpy() for x in model.weights],
    readings=[optimizer.rho, optimizer.temperature(), optimizer.iterations.numpy()],
)
"""


def free_ports(count):
    """Ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("localhost", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def test_two_processes_are_one(tmp_path):
    """MultiWorkerMirroredStrategy: both workers end with the weights of one process."""
    workers = [f"localhost:{port}" for port in free_ports(2)]
    path = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    processes = []
    for index in range(2):
        config = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", WORKER.format(path=path), str(tmp_path / f"{index}.npz")],
                env=os.environ | {"TF_CONFIG": json.dumps(config), "CUDA_VISIBLE_DEVICES": "-1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        outputs = [process.communicate(timeout=180)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    one = network()
    train(one)
    results = [np.load(tmp_path / f"{index}.npz") for index in range(2)]
    for i, weight in enumerate(one.weights):
        first, second = (result[f"arr_{i}"] for result in results)
        np.testing.assert_array_equal(first, second)
        np.testing.assert_allclose(first, numpy(weight), **CLOSE)
    for result in results:
        rho, temperature, iterations = result["readings"]
        assert (rho, iterations) == (0.0, 18)
        assert temperature == near(one.optimizer.temperature())
