"""Cooldown in Keras: held, branched and told in fit; it compiles nothing again."""

import itertools

import keras
import numpy as np
import pytest
from exact import COOLING_LAWS
from keras_tools import BACKEND, numpy

from coolmomentum import HELD, cooled_rho, learning_rate_share
from coolmomentum.keras import Cooldown, CoolMomentum

RATE = 0.0625
OPTIMIZERS = {
    "CoolMomentum": lambda: CoolMomentum(RATE, rho0=0.9, law="linear", **HELD),
    "SGD": lambda: keras.optimizers.SGD(RATE, momentum=0.5),
    "Adam": lambda: keras.optimizers.Adam(RATE),
    "RMSprop": lambda: keras.optimizers.RMSprop(RATE, rho=0.8),
}
every = pytest.mark.parametrize("kind", OPTIMIZERS)


class Rates(keras.callbacks.Callback):
    """What each step used, read after it; and what is told before a step."""

    def __init__(self, tell=None):
        super().__init__()
        self.rates, self.tell = [], tell or {}

    def on_train_batch_begin(self, batch, logs=None):
        """Told before the step that many steps were taken."""
        n = len(self.rates)
        if n in self.tell:
            self.tell[n]()

    def on_train_batch_end(self, batch, logs=None):
        """The learning rate, and rho of the next step."""
        optimizer = self.model.optimizer
        self.rates.append((float(numpy(optimizer.learning_rate)), getattr(optimizer, "rho", 0.0)))


def compiled(kind):
    """A small model, the same each time."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(OPTIMIZERS[kind](), "mse")
    return model


def train(model, steps, *callbacks, begin=0, epochs=1):
    """The next batches of an endless sequence, one step each, in order."""
    x = np.random.default_rng(0).standard_normal((400, 2, 3)).astype("float32")
    x = x[begin : begin + steps].reshape(-1, 3)
    model.fit(
        x,
        x[:, :2],
        batch_size=2,
        shuffle=False,
        verbose=0,
        callbacks=list(callbacks),
        epochs=epochs,
    )
    return model


def weights(model):
    """All numbers of the model."""
    return [numpy(x) for x in model.trainable_variables]


@every
def test_branches_of_a_held_checkpoint_are_the_uninterrupted_runs(kind, tmp_path):
    """Held for 100 steps, saved, branched at 5 % and at 20 %: the same to the last bit."""
    train(compiled(kind), 100, Cooldown()).save(tmp_path / "held.keras")
    for steps in (5, 20):
        branch = keras.saving.load_model(tmp_path / "held.keras")
        train(branch, steps, Cooldown(start_at=100, steps=steps), begin=100)
        whole = train(compiled(kind), 100 + steps, Cooldown(start_at=100, steps=steps))
        for a, b in zip(weights(whole), weights(branch), strict=True):
            assert np.array_equal(a, b)


@every
def test_a_cooling_checkpoint_goes_on(kind, tmp_path):
    """CoolMomentum by itself; of another optimizer the held learning rate has to be told."""
    told = {} if kind == "CoolMomentum" else {"learning_rate": RATE}
    whole = train(compiled(kind), 25, Cooldown(start_at=10, steps=20))
    half = train(compiled(kind), 15, Cooldown(start_at=10, steps=20))
    half.save(tmp_path / "half.keras")
    branch = keras.saving.load_model(tmp_path / "half.keras")
    if told:
        with pytest.raises(ValueError, match="learning_rate must say what was held"):
            train(branch, 10, Cooldown(start_at=10, steps=20), begin=15)
    train(branch, 10, Cooldown(start_at=10, steps=20, **told), begin=15)
    for a, b in zip(weights(whole), weights(branch), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("law", COOLING_LAWS)
def test_the_learning_rate_follows_the_law(law, floatx):
    """As the core has it, in float64 too; the first step after start_at has the full rate."""
    rates = Rates()
    train(compiled("SGD"), 32, Cooldown(start_at=10, steps=20, law=law), rates)
    expected = [RATE * learning_rate_share(n, 10, 30, law) for n in range(32)]
    # exp of up to log(199) = 5.3, whose argument is rounded.
    eps = 2.0 ** -(23 if floatx == "float32" else 52)
    np.testing.assert_allclose([lr for lr, _ in rates.rates], expected, rtol=8 * eps)
    assert [lr for lr, _ in rates.rates[:11]] == [RATE] * 11


def test_rho_follows_the_law():
    """And the learning rate of CoolMomentum stays."""
    rates = Rates()
    train(compiled("CoolMomentum"), 32, Cooldown(start_at=10, steps=20), rates)
    rhos = [cooled_rho(n, 30, 0.9, "linear", hold_steps=10) for n in range(1, 33)]
    assert [lr for lr, _ in rates.rates] == [RATE] * 32
    np.testing.assert_allclose([rho for _, rho in rates.rates], rhos, rtol=2**-50)


@every
def test_told_in_training_it_goes_on_from_where_it_is(kind):
    """Started, extended, stopped and started again by a callback: no jump, and then to the end."""
    cooldown = Cooldown()
    tell = {
        10: lambda: cooldown.start(10),
        15: lambda: cooldown.start(40),
        20: cooldown.stop,
        25: lambda: cooldown.start(5),
    }
    rates = Rates(tell)
    train(compiled(kind), 32, rates, cooldown, epochs=1)
    column = 1 if kind == "CoolMomentum" else 0
    got = [rate[column] for rate in rates.rates]
    # A share of the held rate: of CoolMomentum the temperature is.
    if kind == "CoolMomentum":
        got = [0.9, *got[:-1]]
    assert got[:11] == [got[0]] * 11
    plain = [*range(11, 16)]
    if kind == "CoolMomentum":
        expected = [cooled_rho(n, 20, 0.9, "linear", hold_steps=10) for n in plain]
    else:
        expected = [RATE * learning_rate_share(n, 10, 20) for n in plain]
    assert got[11:16] == pytest.approx(expected, rel=2**-20)
    assert all(a > b for a, b in itertools.pairwise(got[15:21]))
    assert got[20:26] == pytest.approx([got[20]] * 6, rel=2**-20)
    assert (
        got[30]
        == got[31]
        == pytest.approx(0.0 if kind == "CoolMomentum" else RATE / 199, rel=2**-20)
    )
    with pytest.raises(ValueError, match="cooled already"):
        cooldown.start(5)


def test_nothing_else_of_an_optimizer_is_touched():
    """RMSprop has a rho that is none of ours."""
    model = train(compiled("RMSprop"), 20, Cooldown(start_at=5, steps=10))
    assert model.optimizer.rho == 0.8


@every
@pytest.mark.skipif(BACKEND == "torch", reason="it compiles nothing")
def test_nothing_is_compiled_again(kind):
    """The step reads variables: one compilation, while held and cooling and over two fits."""
    model, cooldown = compiled(kind), Cooldown()
    told = {4: lambda: cooldown.start(10), 8: lambda: cooldown.start(20), 12: cooldown.stop}
    train(model, 3, cooldown)
    step = model.train_function
    count = "experimental_get_tracing_count" if BACKEND == "tensorflow" else "_cache_size"
    counted = [c.cell_contents for c in step.__closure__ or () if hasattr(c.cell_contents, count)]
    counted = [step] if hasattr(step, count) else counted
    before = [getattr(f, count)() for f in counted]
    assert counted
    train(model, 20, Rates(told), cooldown)
    assert [getattr(f, count)() for f in counted] == before


def test_gradients_are_accumulated():
    """It counts the optimizer's steps, not batches."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(keras.optimizers.SGD(RATE, gradient_accumulation_steps=2), "mse")
    rates = Rates()
    train(model, 20, Cooldown(start_at=4, steps=5), rates)
    expected = [RATE * learning_rate_share(n // 2, 4, 9) for n in range(20)]
    np.testing.assert_allclose([lr for lr, _ in rates.rates], expected, rtol=2**-20)


@pytest.mark.parametrize("wrapped", [False, True])
def test_alone_among_the_callbacks(wrapped):
    """Where nobody else fetches the variables on JAX; also within a loss scaler."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    optimizer = keras.optimizers.SGD(RATE)
    scaled = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=1.0)
    model.compile(scaled if wrapped else optimizer, "mse")
    train(model, 15, Cooldown(start_at=5, steps=20))
    rate = float(numpy(optimizer.learning_rate))
    assert rate == pytest.approx(RATE * learning_rate_share(14, 5, 25), rel=2**-20)
    assert int(numpy(optimizer.iterations)) == 15


def test_over_epochs():
    """Batches count on from one epoch to the next."""
    rates = Rates()
    train(compiled("SGD"), 5, Cooldown(start_at=7, steps=6), rates, epochs=3)
    expected = [RATE * learning_rate_share(n, 7, 13) for n in range(15)]
    np.testing.assert_allclose([lr for lr, _ in rates.rates], expected, rtol=2**-20)


def test_what_is_refused_when_training_begins():
    """A schedule of the learning rate, and a CoolMomentum that is not held or has another law."""
    model = compiled("SGD")
    for optimizer, words in [
        (
            keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)),
            "learning_rate must be a number",
        ),
        (CoolMomentum(0.1, law="constant"), "must have a law to cool by"),
        (CoolMomentum(0.1, total_steps=10), "must be held"),
        (CoolMomentum(0.1, law="paper", **HELD), "law must be that of the CoolMomentum"),
    ]:
        model.compile(optimizer, "mse")
        with pytest.raises(ValueError, match=words):
            train(model, 2, Cooldown(law="linear"))
    with pytest.raises(ValueError, match="start_at = 3 must not have passed"):
        train(train(compiled("CoolMomentum"), 5), 2, Cooldown(start_at=3, steps=4))


def test_what_the_constructor_refuses():
    """Arguments out of range; and to be told before there is a model."""
    for arguments, error, words in [
        ({"start_at": 3}, TypeError, "given together"),
        ({"start_at": 0, "steps": 3}, ValueError, "start_at must be >= 1"),
        ({"start_at": 3, "steps": 0}, ValueError, "steps must be >= 1"),
        ({"law": "constant"}, ValueError, "law must be one of"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate must be finite and > 0"),
        ({"start_at": 3, "steps": 2**31}, ValueError, "steps must end below"),
    ]:
        with pytest.raises(error, match=words):
            Cooldown(**arguments)
    with pytest.raises(RuntimeError, match="a fit that has begun"):
        Cooldown().start(3)
