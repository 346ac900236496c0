"""Neutral states of the Keras optimizer: what Keras alone has; tests/contract moves runs."""

import keras
import numpy as np
import pytest
from keras import ops

from coolmomentum import CoolingSchedule
from coolmomentum.keras import CoolMomentum, export_state, import_state

COOLING = CoolingSchedule(9, 0.9)


def stepped(steps, x, **settings):
    """An optimizer that has taken some steps, or accumulated some gradients."""
    optimizer = CoolMomentum(**{"learning_rate": 0.25, "schedule": COOLING} | settings)
    optimizer.build([x])
    for _ in range(steps):
        optimizer.apply([ops.ones_like(x.value)], [x])
    return optimizer


def test_the_clock_counts_steps_not_microbatches():
    """With accumulated gradients the saved clock is that of the applied steps, both ways."""
    x = keras.Variable(np.ones(2), name="x")
    optimizer = stepped(4, x, gradient_accumulation_steps=2)
    saved = export_state(optimizer)
    assert saved.clock == 2
    again = stepped(0, x, gradient_accumulation_steps=3)
    import_state(again, saved)
    assert int(again.iterations) == 2
    assert again.rho == optimizer.rho
    with pytest.raises(ValueError, match="accumulating when the state is taken: 1 of 2"):
        export_state(stepped(3, x, gradient_accumulation_steps=2))


def test_a_learning_rate_schedule_is_read_at_the_clock():
    """The learning rate of the next step, and that of the last."""
    x = keras.Variable(np.ones(2), name="x")
    halving = keras.optimizers.schedules.ExponentialDecay(0.5, 1, 0.5)
    saved = export_state(stepped(2, x, learning_rate=halving))
    assert (saved.learning_rate, saved.last_learning_rate) == (1 / 8, 1 / 4)


def test_names_are_the_paths_of_the_model():
    """As in ``model.trainable_variables``; the layout is that of Keras, (inputs, outputs)."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="out")])
    optimizer = CoolMomentum(schedule=COOLING)
    optimizer.build(model.trainable_variables)
    displacements = export_state(optimizer).displacements
    assert list(displacements) == [variable.path for variable in model.trainable_variables]
    assert [dx.shape for dx in displacements.values()] == [(3, 2), (2,)]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_comes_back_bit_for_bit(dtype):
    """As float32, which holds it exactly."""
    x = keras.Variable(np.linspace(-1, 1, 7), dtype=dtype, name="x")
    optimizer = stepped(2, x)
    saved = export_state(optimizer)
    assert saved.displacements["x"].dtype == np.float32
    again = stepped(0, x)
    import_state(again, saved)
    ours, theirs = (
        ops.convert_to_numpy(ops.cast(o._displacements[0], "float32")) for o in (again, optimizer)
    )
    np.testing.assert_array_equal(ours, theirs)


def test_what_cannot_be_carried_is_refused():
    """An optimizer that was not built, a function of the step, two variables of one path."""
    with pytest.raises(ValueError, match=r"the optimizer must be built: optimizer\.build"):
        export_state(CoolMomentum(schedule=COOLING))
    x = keras.Variable(np.ones(2), name="x")
    with pytest.raises(TypeError, match="schedule must be a CoolingSchedule to be exported"):
        export_state(stepped(1, x, schedule=lambda step: 0.5 + 0 * step))
    optimizer = CoolMomentum(schedule=COOLING)
    optimizer.build([x, keras.Variable(np.ones(3), name="x")])
    with pytest.raises(ValueError, match="names of parameters must differ: 'x' twice"):
        export_state(optimizer)
