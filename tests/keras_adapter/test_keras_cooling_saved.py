"""The cooling is saved, loaded and copied with the optimizer."""

import copy
import json
import warnings

import keras
import numpy as np
import pytest
from cooling_tools import RHO0, arrays, assert_same, network, train, zero
from exact import LAWS
from keras_tools import BACKEND, follow, gradients, numpy, variables

from coolmomentum import CoolingSchedule
from coolmomentum.keras import CoolMomentum, export_state, import_state

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
