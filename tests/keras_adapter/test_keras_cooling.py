"""The cooling is state: it changes in mid-run, is saved and loaded, and may run past its end."""

import copy
import json
import re
import warnings

import keras
import numpy as np
import pytest
from exact import LAWS
from keras_tools import BACKEND, follow, gradients, numpy, variables

from coolmomentum import CoolingSchedule
from coolmomentum.keras import CoolMomentum, export_state, import_state

X = np.random.default_rng(0).standard_normal((32, 3)).astype("float32")
Y = X[:, :1] - X[:, 1:2]
RHO0 = 1 / 3 + 0.6  # 53 digits of it are needed


def network(optimizer, **options):
    """A small network, always of the same weights."""
    keras.utils.set_random_seed(1)
    layers = [keras.Input((3,)), keras.layers.Dense(4, "tanh"), keras.layers.Dense(1)]
    model = keras.Sequential(layers)
    model.compile(optimizer, "mse", **options)
    return model


def train(model, epochs, callbacks=()):
    """Some more epochs of the same four batches."""
    model.fit(X, Y, batch_size=8, epochs=epochs, shuffle=False, verbose=0, callbacks=[*callbacks])


def arrays(model):
    """Weights, and variables of the optimizer."""
    return [numpy(x).copy() for x in model.weights + model.optimizer.variables]


def assert_same(one, other):
    """Bit for bit."""
    for x, y in zip(one, other, strict=True):
        np.testing.assert_array_equal(x, y)


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


# --- what is saved --------------------------------------------------------------------------------


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("how", ["file", "pickle", "deepcopy"])
def test_an_extended_run_is_saved_as_it_cools(tmp_path, law, how):
    """Config and variables say the same: the new total, and rho0 to its last digit."""
    model = network(CoolMomentum(0.1, 8, RHO0, law=law, hold_steps=2))
    train(model, 1)
    model.optimizer.extend(40)
    train(model, 1)
    if how == "file":
        model.save(tmp_path / "model.keras")
        again = keras.models.load_model(tmp_path / "model.keras")
    else:
        again = copy.deepcopy(model)
    assert again.optimizer.get_config() == model.optimizer.get_config()
    assert again.optimizer.schedule == CoolingSchedule(40, RHO0, law, hold_steps=2)
    for each in (again, model):
        train(each, 1)
    assert_same(arrays(again), arrays(model))


@pytest.mark.parametrize("dtypes", [("float32", "float64"), ("float64", "float32")])
def test_rho0_is_saved_whole(dtypes, request):
    """Whatever the dtype of the variables is, and another optimizer was made with."""
    if BACKEND == "jax":
        request.getfixturevalue("jax_x64")
    one, other = (CoolMomentum(0.1, total, rho0) for total, rho0 in ((20, RHO0), (30, 0.5)))
    for optimizer, dtype in zip((one, other), dtypes, strict=True):
        optimizer.build(variables([np.ones(2)], dtype))
    store = {}
    one.save_own_variables(store)
    message = "total_steps is 20, not 30, rho0 is 0.9333333333333333, not 0.5; .*extend\\(30\\)"
    with pytest.warns(UserWarning, match=message):
        other.load_own_variables(store)
    assert other.schedule == CoolingSchedule(20, RHO0)
    third = CoolMomentum(0.1, 20, RHO0)
    third.build(variables([np.ones(2)], dtypes[1]))
    np.testing.assert_array_equal(numpy(other._rho0), numpy(third._rho0))


def test_a_longer_total_is_not_lost_in_silence(tmp_path):
    """A run restored by an optimizer with another total cools on as it was saved, with one warning.

    The way out that it names, extend, is that of the run itself.
    """
    model = network(CoolMomentum(0.1, 8, 0.9))
    train(model, 1)
    model.save_weights(tmp_path / "run.weights.h5")
    again = network(CoolMomentum(0.1, 16, 0.9))
    again.optimizer.build(again.trainable_variables)
    with pytest.warns(UserWarning, match="cools on as it was saved") as caught:
        again.load_weights(tmp_path / "run.weights.h5")
    assert [str(w.message) for w in caught if w.category is UserWarning] == [
        "the optimizer cools on as it was saved: total_steps is 8, not 16; to train longer call "
        "optimizer.extend(16)"
    ]
    assert again.optimizer.schedule == model.optimizer.schedule
    assert again.optimizer.get_config()["total_steps"] == 8
    assert_same(arrays(again), arrays(model))
    for each in (model, again):
        each.optimizer.extend(16)
        train(each, 2)
    assert_same(arrays(again), arrays(model))
    assert again.optimizer.rho == CoolingSchedule(16, 0.9)(12)


def test_a_loss_scaler_does_not_hide_it(tmp_path):
    """The warning comes under mixed precision too, where Keras loads the variables twice."""
    for total, call in ((8, "save_weights"), (16, "load_weights")):
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.LossScaleOptimizer(CoolMomentum(0.1, total)), "mse")
        model.optimizer.build(model.trainable_variables)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            getattr(model, call)(tmp_path / "run.weights.h5")
        told = [str(w.message) for w in caught if "cools on" in str(w.message)]
        assert len(told) == (total == 16)
    assert "total_steps is 8, not 16" in told[0]
    assert model.optimizer.inner_optimizer.schedule == CoolingSchedule(8)


def test_a_file_of_before_the_first_fit(tmp_path):
    """Keras finds no variables in it, and says so; the optimizer cools as its config says."""
    network(CoolMomentum(0.1, 8, RHO0, hold_steps=3)).save(tmp_path / "model.keras")
    with pytest.warns(UserWarning, match="Skipping variable loading for optimizer"):
        model = keras.models.load_model(tmp_path / "model.keras")
    assert model.optimizer.schedule == CoolingSchedule(8, RHO0, hold_steps=3)
    train(model, 1)
    assert model.optimizer.rho == model.optimizer.schedule(4)


def test_a_held_run_is_branched_bit_for_bit(tmp_path):
    """A run of the constant law has no end: what loads it cools as it was made to, without a word.

    To its own law it brings rho0.
    """
    held = network(CoolMomentum(0.1, None, 0.9, law="constant"))
    train(held, 2)
    held.save_weights(tmp_path / "held.weights.h5")
    whole = network(CoolMomentum(0.1, 16, 0.9, law="linear", hold_steps=8))
    train(whole, 4)
    branch = network(CoolMomentum(0.1, 16, 0.9, law="linear", hold_steps=8))
    branch.optimizer.build(branch.trainable_variables)
    branch.load_weights(tmp_path / "held.weights.h5")
    train(branch, 2)
    assert_same(arrays(branch), arrays(whole))
    constant = network(CoolMomentum(0.1, None, 0.5, law="constant"))
    constant.optimizer.build(constant.trainable_variables)
    with pytest.warns(UserWarning, match="rho0 is 0.9, not 0.5$"):
        constant.load_weights(tmp_path / "held.weights.h5")
    assert constant.optimizer.rho == 0.9


@keras.saving.register_keras_serializable(package="test")
def zero(step):
    """A schedule of one's own."""
    return 0.0 * step


@pytest.mark.parametrize("law", LAWS)
def test_a_function_and_a_law_may_be_exchanged(law):
    """One has no numbers for the other: each keeps its own, both ways."""
    (x,) = variables([np.ones(2)])
    one, other = CoolMomentum(0.1, schedule=zero), CoolMomentum(0.1, 9, 0.5, law=law)
    for optimizer in (one, other):
        optimizer.build([x])
    for saved, loaded in ((one, other), (other, one)):
        store, schedule = {}, loaded.schedule
        saved.save_own_variables(store)
        loaded.load_own_variables(store)
        assert loaded.schedule == schedule
        follow(loaded, [x], [[np.ones(2)]])
        assert np.all(np.isfinite(numpy(x)))


def test_variables_may_be_set_by_hand():
    """Values copied by position carry the cooling over; what is read says so."""
    (x,), (y,) = variables([np.ones(3)]), variables([np.ones(3)])
    one, other = CoolMomentum(0.01, 9, RHO0, hold_steps=2), CoolMomentum(0.01, 30, 0.5)
    grads = gradients(6, [(3,)])
    follow(one, [x], grads[:3])
    y.assign(numpy(x))
    other.build([y])
    for mine, theirs in zip(other.variables, one.variables, strict=True):
        mine.assign(numpy(theirs))
    assert other.schedule == one.schedule == CoolingSchedule(9, RHO0, hold_steps=2)
    assert other.get_config()["rho0"] == RHO0
    for optimizer, params in ((one, [x]), (other, [y])):
        follow(optimizer, params, grads[3:])
    np.testing.assert_array_equal(numpy(x), numpy(y))


def test_a_file_that_cannot_be_resumed_changes_nothing():
    """A total below the warm-up of this optimizer is refused, before anything is loaded."""
    (x,) = variables([np.ones(2)])
    one, other = CoolMomentum(0.1, 10), CoolMomentum(0.1, 30, warmup_steps=20)
    for optimizer in (one, other):
        optimizer.build([x])
    follow(one, [x], [[np.ones(2)]])
    store = {}
    one.save_own_variables(store)
    with pytest.raises(ValueError, match="warmup_steps must be < total_steps = 10: 20"):
        other.load_own_variables(store)
    assert int(other.iterations) == 0
    assert other.schedule == CoolingSchedule(30, warmup_steps=20)


def test_configs_of_before_are_read():
    """One without hold_steps, and one without total_steps of the constant law."""
    old = CoolMomentum(0.1, 9, 0.5, law="linear").get_config()
    assert old.pop("hold_steps") == 0
    assert CoolMomentum.from_config(old).schedule == CoolingSchedule(9, 0.5, "linear")
    endless = CoolMomentum(0.1, law="constant").get_config()
    assert endless["total_steps"] is None
    again = CoolMomentum.from_config(json.loads(json.dumps(endless)))
    assert again.get_config() == endless
    again.build(variables([np.ones(2)]))
    assert again.get_config() == endless


@pytest.mark.parametrize("accumulation", [None, 2])
def test_an_extended_run_moves_to_another_optimizer(accumulation):
    """A portable state has the extended cooling, and goes to one that was extended alike."""
    x = keras.Variable(np.ones(3, "float32"), name="x")
    options = {"gradient_accumulation_steps": accumulation}
    one, other = CoolMomentum(0.25, 6, RHO0, **options), CoolMomentum(0.5, 6, RHO0, **options)
    follow(one, [x], gradients(4, [(3,)]))
    one.extend(12)
    saved = export_state(one)
    assert saved.cooling == CoolingSchedule(12, RHO0)
    other.build([x])
    with pytest.raises(ValueError, match="the optimizer must cool as the run did"):
        import_state(other, saved)
    assert int(other.iterations) == 0
    other.extend(12)
    import_state(other, saved)
    assert export_state(other).last_learning_rate == saved.last_learning_rate == 0.25
    assert (other.rho, other.temperature()) == (one.rho, one.temperature())


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


# --- copies and builds ----------------------------------------------------------------------------


def test_unfrozen_layers():
    """Keras builds an optimizer once: what is trainable later asks for a new one, and trains."""
    model = network(CoolMomentum(0.1, 8, 0.9))
    model.layers[0].trainable = False
    model.compile(CoolMomentum(0.1, 8, 0.9), "mse")
    train(model, 1)
    assert len(model.optimizer.temperatures()) == 2
    model.layers[0].trainable = True
    config = model.optimizer.get_config()
    model.compile(CoolMomentum.from_config(config), "mse")
    train(model, 1)
    assert list(model.optimizer.temperatures()) == [x.path for x in model.trainable_variables]


def test_a_clone_has_an_optimizer_of_its_own():
    """From the config of one that was extended; nested models too."""
    inner = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model = keras.Sequential([keras.Input((3,)), inner, keras.layers.Dense(1)])
    model.compile(CoolMomentum(0.1, 8, RHO0), "mse")
    train(model, 1)
    model.optimizer.extend(20)
    clone = keras.models.clone_model(model)
    clone.compile(CoolMomentum.from_config(model.optimizer.get_config()), "mse")
    train(clone, 1)
    assert clone.optimizer.schedule == model.optimizer.schedule == CoolingSchedule(20, RHO0)
    assert len(clone.optimizer.temperatures()) == 4
