"""The cooling is state: it changes in mid-run, and may run past its end."""

import json
import re
import warnings

import keras
import numpy as np
import pytest
from cooling_tools import RHO0, X, Y, arrays, assert_same, network, train, zero
from exact import LAWS
from keras_tools import BACKEND, follow, gradients, numpy, variables

from coolmomentum import CoolingSchedule
from coolmomentum.keras import CoolMomentum, export_state, import_state


def with_state_of(model, optimizer, **options):
    """A fresh model whose weights, clock and displacements are those of another."""
    again = network(optimizer, **options)
    again.set_weights(model.get_weights())
    optimizer.build(again.trainable_variables)
    own, others = optimizer, model.optimizer
    own._iterations.assign(numpy(others._iterations))
    for mine, theirs in zip(own._displacements, others._displacements, strict=True):
        mine.assign(numpy(theirs))
    return again


# --- extend ---------------------------------------------------------------------------------------

MODES = {"default": {}, "eager": {"run_eagerly": True}, "jit": {"jit_compile": True}}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("mode", MODES)
def test_an_extended_run_goes_on_as_the_longer_one(mode, law):
    """After fit and extend, fit steps as an optimizer that was made with the new total would."""
    if BACKEND == "torch" and mode == "jit" and law != "linear":
        pytest.skip("PyTorch takes seconds to compile")
    model = network(CoolMomentum(0.1, 8, RHO0, law=law), **MODES[mode])
    train(model, 2)
    model.optimizer.extend(40)
    longer = CoolingSchedule(40, RHO0, law)
    assert model.optimizer.schedule == longer
    assert model.optimizer.rho == longer(8)
    other = with_state_of(model, CoolMomentum(0.1, schedule=longer), **MODES[mode])
    before = arrays(model)
    for each in (model, other):
        train(each, 2)
    assert np.abs(arrays(model)[0] - before[0]).max() > 1e-3
    assert_same(arrays(model), arrays(other))


class Counting(keras.layers.Layer):
    """The identity, which counts how often it is traced."""

    calls = 0

    def call(self, inputs):
        """Count."""
        self.calls += 1
        return inputs


@pytest.mark.skipif(BACKEND == "torch", reason="it calls the layer in every step")
@pytest.mark.parametrize("jit", [True, False] if BACKEND == "tensorflow" else [True])
def test_nothing_is_traced_again(jit):
    """Extending, and another learning rate, are numbers that the compiled step reads."""
    counting = Counting()
    model = keras.Sequential([keras.Input((3,)), counting, keras.layers.Dense(1)])
    model.compile(CoolMomentum(0.01, 8), "mse", jit_compile=jit)
    train(model, 2)
    traced = counting.calls
    for total in (40, 80):
        model.optimizer.extend(total)
        model.optimizer.learning_rate = 1 / total
        train(model, 1)
    assert counting.calls == traced > 0
    assert model.optimizer.rho == CoolingSchedule(80)(16)


@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize(
    ("total", "error", "message"),
    [
        (20.0, TypeError, "total_steps must be an integer: 20.0"),
        (True, TypeError, "total_steps must be an integer: True"),
        ("20", TypeError, "total_steps must be an integer: '20'"),
        (None, TypeError, "total_steps must be an integer: None"),
        (0, ValueError, "total_steps must be >= 1: 0"),
        (4, ValueError, "warmup_steps must be < total_steps = 4: 5"),
        (5, ValueError, "warmup_steps must be < total_steps = 5: 5"),
    ],
)
def test_bad_totals(built, total, error, message):
    """They are refused in one line, before and after build, and nothing changes."""
    (x,) = variables([np.ones(2)])
    optimizer = CoolMomentum(0.1, 10, warmup_steps=5, hold_steps=4)
    if built:
        optimizer.build([x])
    before = optimizer.schedule
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        optimizer.extend(total)
    assert optimizer.schedule == before


def test_a_total_must_not_be_over():
    """Fewer than the steps taken is no end; as many is one, where rho is 0."""
    (x,) = variables([np.ones(2)])
    optimizer = CoolMomentum(0.1, 10, gradient_accumulation_steps=2)
    follow(optimizer, [x], gradients(12, [(2,)]))
    with pytest.raises(ValueError, match=r"^total_steps must be >= 6, the steps already taken: 5$"):
        optimizer.extend(5)
    assert optimizer.rho > 0
    optimizer.extend(6)
    assert optimizer.rho == 0


def test_a_function_of_the_step_is_not_extended():
    """It has no total."""
    optimizer = CoolMomentum(0.1, 10, schedule=zero)
    for _ in range(2):
        with pytest.raises(TypeError, match="schedule must be a CoolingSchedule to be extended"):
            optimizer.extend(20)
        optimizer.build(variables([np.ones(2)]))


@pytest.mark.skipif(BACKEND == "tensorflow", reason="there integers have 64 bits")
def test_totals_that_int32_does_not_hold_are_refused():
    """Keras counts in int32 on JAX and PyTorch, where longer totals would wrap."""
    message = re.escape(
        f"total_steps must be <= 2147483647, the int32 of Keras' counts on {BACKEND}: "
    )
    with pytest.raises(ValueError, match=f"{message}{2**31}"):
        CoolMomentum(0.1, 2**31)
    optimizer = CoolMomentum(0.1, 2**31 - 1)
    with pytest.raises(ValueError, match=message):
        optimizer.extend(2**31)


def test_extended_before_it_is_built():
    """It is as if it had been made so; NumPy's integers will do."""
    optimizer = CoolMomentum(0.1, 10, RHO0)
    optimizer.extend(np.int64(20))
    assert optimizer.get_config() == CoolMomentum(0.1, 20, RHO0).get_config()
    json.dumps(optimizer.get_config())
    optimizer.build(variables([np.ones(2)]))
    assert optimizer.schedule == CoolingSchedule(20, RHO0)


@pytest.mark.parametrize("options", [{"use_ema": True}, {"gradient_accumulation_steps": 2}, {}])
@pytest.mark.parametrize(
    "settings", [{"warmup_steps": 3, "warmup_clock": "hold"}, {"hold_steps": 3}]
)
def test_options_and_settings_stay(options, settings):
    """Averages, accumulated gradients, warm-up and hold: it is the longer run's step for step.

    The first steps, of the warm-up or the hold, are the same for both totals.
    """
    (x,), (y,) = variables([np.ones(3)]), variables([np.ones(3)])
    one, other = (CoolMomentum(0.01, total, 0.9, **settings, **options) for total in (8, 20))
    grads = gradients(20, [(3,)])
    follow(one, [x], grads[:3])
    one.extend(20)
    follow(one, [x], grads[3:])
    follow(other, [y], grads)
    assert one.schedule == other.schedule
    assert_same(map(numpy, [x, *one.variables]), map(numpy, [y, *other.variables]))


def test_the_inner_optimizer_is_extended():
    """Under a loss scaler, compiled."""
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = network(CoolMomentum(0.01, 4, 0.9))
        train(model, 2)
        inner = model.optimizer.inner_optimizer
        inner.extend(40)
        before = [numpy(x).copy() for x in inner._displacements]
        train(model, 1)
    finally:
        keras.config.set_dtype_policy("float32")
    assert inner.rho == CoolingSchedule(40, 0.9)(int(inner.iterations)) > 0.5
    assert all(np.any(numpy(x) != y) for x, y in zip(inner._displacements, before, strict=True))


def test_an_eager_step_before_fit():
    """It counts, and the compiled steps go on from it."""
    model = network(CoolMomentum(0.1, 8, 0.9))
    model.optimizer.apply(
        [0 * x.value for x in model.trainable_variables], model.trainable_variables
    )
    model.optimizer.extend(10)
    train(model, 1)
    assert int(model.optimizer.iterations) == 5


def test_a_callback_extends_in_mid_run():
    """Between two batches of fit, on every backend."""

    class Extends(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if int(self.model.optimizer.iterations) == 3:
                self.model.optimizer.extend(40)

    model = network(CoolMomentum(0.1, 4, 0.9))
    train(model, 1)
    other = network(CoolMomentum(0.1, 4, 0.9))
    train(other, 1, [Extends()])
    assert other.optimizer.schedule.total_steps == 40
    assert other.optimizer.rho == CoolingSchedule(40, 0.9)(4)
    assert np.abs(arrays(model)[0] - arrays(other)[0]).max() > 1e-4


# --- the learning rate of the last step -----------------------------------------------------------


class SetsTheRate(keras.callbacks.Callback):
    """Sets another rate after the step, as every callback with a schedule does."""

    def on_train_batch_end(self, batch, logs=None):
        """A tenth."""
        self.model.optimizer.learning_rate = 0.01


@pytest.mark.parametrize("mode", MODES)
def test_a_rate_that_is_set_after_the_step_does_not_change_the_reading(mode):
    """The temperature is over the rate that the step used, and so is the exported one."""
    if BACKEND == "torch" and mode == "jit":
        pytest.skip("PyTorch takes seconds to compile")
    model = network(CoolMomentum(0.25, 8, 0.5), **MODES[mode])
    model.fit(X, Y, batch_size=32, epochs=1, verbose=0, callbacks=[SetsTheRate()])
    optimizer = model.optimizer
    assert float(optimizer.learning_rate) == pytest.approx(0.01)
    assert optimizer.temperature() == pytest.approx(optimizer.rescaled_temperature() / 0.25)
    tau, msd = optimizer.temperatures(), optimizer.rescaled_temperatures()
    assert [*tau.values()] == pytest.approx([4 * x for x in msd.values()])
    assert float(optimizer.temperature_tensor()) == pytest.approx(optimizer.temperature())
    saved = export_state(optimizer)
    assert (saved.last_learning_rate, saved.learning_rate) == (0.25, pytest.approx(0.01))


def test_the_rate_of_the_microbatch_that_was_applied():
    """With accumulated gradients a later microbatch that is not applied changes nothing."""
    (x,) = variables([np.zeros(2)])
    optimizer = CoolMomentum(0.5, 10, 0.0, law="constant", gradient_accumulation_steps=2)
    for rate in (0.5, 0.25, 0.125):
        optimizer.learning_rate = rate
        follow(optimizer, [x], [[np.ones(2)]])
    assert numpy(x).tolist() == [-0.125, -0.125]  # lr / 2 of the second
    assert optimizer.temperature() == 0.125**2 / 0.25


def test_no_reading_is_nan():
    """Before the first step the temperature is 0, and after one at the rate 0 of a warm-up."""
    warmup = keras.optimizers.schedules.PolynomialDecay(0.0, 4, 1.0)
    (x,) = variables([np.ones(2)])
    optimizer = CoolMomentum(warmup, 10)
    assert (optimizer.temperature(), float(optimizer.temperature_tensor())) == (0.0, 0.0)
    assert optimizer.temperatures() == {}
    optimizer.build([x])
    for _ in range(2):
        assert optimizer.temperature() == float(optimizer.temperature_tensor()) == 0.0
        assert optimizer.temperatures() == {x.path: 0.0}
        follow(optimizer, [x], [[np.ones(2)]])
    assert optimizer.temperature() > 0  # of the second step, whose rate is 1/4


def test_a_run_that_was_not_stepped_is_exported_with_its_rate():
    """0 would be no unit for a temperature."""
    x = keras.Variable(np.ones(2), name="x")
    optimizer = CoolMomentum(0.25, 10)
    optimizer.build([x])
    assert export_state(optimizer).last_learning_rate == 0.25


def test_a_foreign_optimizer_is_refused():
    """And one around ours, in a line that says which to give."""
    (x,) = variables([np.ones(2)])
    ours = CoolMomentum(0.25, 10)
    for optimizer in (keras.optimizers.SGD(0.1), keras.optimizers.LossScaleOptimizer(ours)):
        optimizer.build([x])
        for call in (export_state, lambda o: import_state(o, None)):
            message = "optimizer must be a coolmomentum.keras.CoolMomentum, .*inner_optimizer: <"
            with pytest.raises(TypeError, match=message):
                call(optimizer)


# --- names ----------------------------------------------------------------------------------------


def test_variables_of_one_path_are_told_apart():
    """Two towers with layers of the same names lose no reading."""
    params = [keras.Variable(np.zeros(2, "float32"), name=name) for name in ("fc", "fc", "b", "fc")]
    optimizer = CoolMomentum(1.0, 10, 0.0)
    follow(optimizer, params, [[np.full(2, 2.0 * i) for i in range(4)]])
    names = ["fc", "fc#2", "b", "fc#3"]
    expected = dict(zip(names, [0.0, 1.0, 4.0, 9.0], strict=True))
    assert optimizer.temperatures() == optimizer.rescaled_temperatures() == expected


# --- past the end ---------------------------------------------------------------------------------


def test_a_run_past_its_end_says_so_once():
    """More than 5 % past total_steps rho is read with one warning, which names the way out."""
    (x,) = variables([np.ones(2)])
    optimizer = CoolMomentum(0.1, 100)
    optimizer.build([x])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        optimizer._iterations.assign(105)
        assert optimizer.rho == 0.0
    optimizer._iterations.assign(106)
    with pytest.warns(UserWarning, match="106 steps were taken") as caught:
        assert [optimizer.rho, optimizer.rho] == [0.0, 0.0]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        follow(optimizer, [x], [[np.ones(2)]])
    assert [str(w.message) for w in caught if w.category is UserWarning] == [
        "106 steps were taken, more than total_steps = 100: rho is 0, plain SGD; to cool over more "
        "steps call optimizer.extend(total_steps)"
    ]


@pytest.mark.skipif(BACKEND != "torch", reason="elsewhere the host does not know the clock")
def test_a_step_past_the_end_says_so():
    """On PyTorch's CPU the step reads the clock."""
    (x,) = variables([np.ones(2)])
    optimizer = CoolMomentum(0.1, 2)
    with pytest.warns(UserWarning, match="3 steps were taken, more than total_steps = 2"):
        follow(optimizer, [x], [[np.ones(2)]] * 4)


@pytest.mark.parametrize("settings", [{"law": "constant"}, {"schedule": zero}])
def test_what_has_no_end_has_no_warning(settings):
    """The constant law, and a function of the step."""
    optimizer = CoolMomentum(0.1, 2, **settings)
    optimizer.build(variables([np.ones(2)]))
    optimizer._iterations.assign(1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert optimizer.rho in (0.0, 0.99)
