"""The options of Keras' base class, each against what it is said to do or against Keras' SGD."""

import keras
import numpy as np
import pytest
from exact import U32
from keras import ops
from keras_tools import bound, follow, gradients, numpy, oracle_run, variables

from coolmomentum.keras import CoolMomentum

SHAPES = [(3, 4), (5,)]
COOLING = {"total_steps": 6, "rho0": 0.9}
OPTIONS = {
    "clipnorm": {"clipnorm": 0.5},
    "clipvalue": {"clipvalue": 0.25},
    "global_clipnorm": {"global_clipnorm": 0.5},
    "use_ema": {"use_ema": True, "ema_momentum": 0.75},
    "ema_overwrite": {"use_ema": True, "ema_momentum": 0.75, "ema_overwrite_frequency": 3},
    "loss_scale_factor": {"loss_scale_factor": 1024.0},
    "gradient_accumulation": {"gradient_accumulation_steps": 3},
    "all of them": {
        "clipnorm": 0.5,
        "use_ema": True,
        "ema_overwrite_frequency": 2,
        "loss_scale_factor": 8.0,
        "gradient_accumulation_steps": 3,
    },
}


def pair(learning_rate, momentum, **options):
    """Our optimizer with the constant law, and the SGD that it is."""
    cool = CoolMomentum(learning_rate, 9, momentum, law="constant", **options)
    factor = (1 + momentum) / 2
    return cool, keras.optimizers.SGD(learning_rate * factor, momentum=momentum, **options)


def close_to_sgd(steps, learning_rate, momentum):
    """Gradients are below 500 where they are not clipped, and parameters below 1000."""
    return 2 * bound(steps, 1000, 500 * learning_rate / (1 - momentum), momentum, U32)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_every_option_does_what_it_does_for_sgd(options):
    """With the constant law the variables are those of SGD, after each call and at the end."""
    starts, grads = gradients(1, SHAPES, seed=1)[0], gradients(9, SHAPES)
    ours, theirs = variables(starts), variables(starts)
    cool, sgd = pair(0.01, 0.875, **options)
    for step_grads in grads:
        follow(cool, ours, [step_grads])
        follow(sgd, theirs, [step_grads])
        for our, their in zip(ours, theirs, strict=True):
            close = close_to_sgd(9, 0.01, 0.875)
            np.testing.assert_allclose(numpy(our), numpy(their), rtol=0, atol=close)
    assert int(cool._iterations) == int(sgd._iterations) == 9
    if options.get("use_ema"):
        cool.finalize_variable_values(ours)
        sgd.finalize_variable_values(theirs)
        for our, their in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(numpy(our), numpy(their), rtol=0, atol=close)


@pytest.mark.parametrize("weight_decay", [None, 0.125])
def test_accumulated_gradients_are_one_step_of_the_clock(weight_decay):
    """Three microbatches make one step with their mean: rho follows the steps, not the batches."""
    starts, grads = gradients(1, SHAPES, seed=1)[0], gradients(24, SHAPES)
    params = variables(starts)
    optimizer = CoolMomentum(
        0.01, **COOLING, weight_decay=weight_decay, gradient_accumulation_steps=3
    )
    rhos = []
    for step_grads in grads:
        rhos.append(optimizer.rho)
        follow(optimizer, params, [step_grads])
    means = [[np.mean(g, 0) for g in zip(*grads[i : i + 3], strict=True)] for i in range(0, 24, 3)]
    decay = {"weight_decay": weight_decay or 0.0, "decoupled_weight_decay": True}
    xs, _ = oracle_run(starts, means, learning_rate=0.01, **COOLING, **decay)
    for param, x in zip(params, xs, strict=True):
        close = bound(8, 1000, 0.01 * 500 / 0.1, 0.9, U32)
        np.testing.assert_allclose(numpy(param), x, rtol=0, atol=close)
    assert rhos == [optimizer.schedule(n // 3) for n in range(24)]
    assert int(optimizer.iterations) == 8


def test_exclude_from_weight_decay():
    """By name or by variable, as in Keras; the others shrink by 1 - lr wd."""
    params = [keras.Variable(np.ones(2, "float32"), name=name) for name in ("kernel", "bias", "c")]
    optimizer = CoolMomentum(0.5, 10, weight_decay=0.25)
    optimizer.exclude_from_weight_decay(var_list=[params[2]], var_names=["bias"])
    follow(optimizer, params, [[np.zeros(2)] * 3])
    assert [float(numpy(x)[0]) for x in params] == [0.875, 1.0, 1.0]


def test_constraints_are_applied():
    """After the step, as for every optimizer."""
    (x,) = variables([np.full(2, 0.125)])
    x.constraint = keras.constraints.NonNeg()
    follow(CoolMomentum(1.0, 10), [x], [[np.array([1.0, 0.0])]])
    assert numpy(x).tolist() == [0.0, 0.125]


def schedule_run(learning_rate):
    """The parameter after 5 steps of gradient 1 with rho = 0: minus half the sum of rates."""
    (x,) = variables([np.zeros(())])
    follow(CoolMomentum(learning_rate, 10, 0.0), [x], [[np.ones(())]] * 5)
    return float(numpy(x))


def test_learning_rate_schedules_and_callables():
    """A schedule of Keras sees the clock; a callable is asked at every step."""
    decay = keras.optimizers.schedules.PiecewiseConstantDecay([1, 3], [1.0, 0.5, 0.25])
    assert schedule_run(decay) == -(1 + 1 + 0.5 + 0.5 + 0.25) / 2
    assert schedule_run(lambda: ops.convert_to_tensor(0.5)) == -5 * 0.25
    assert schedule_run(lambda: 0.5) == -5 * 0.25


def test_the_learning_rate_acts_inside_the_displacement():
    """Under a schedule too it is the oracle's recursion: dx = rho dx - lr_n (1 + rho) / 2 g."""
    rates = [0.5, 0.25, 0.125]
    decay = keras.optimizers.schedules.PiecewiseConstantDecay([0, 1], rates)
    (x,) = variables([np.zeros(())])
    optimizer = CoolMomentum(decay, 4, 0.5, law="constant")
    follow(optimizer, [x], [[np.ones(())]] * 3)
    dx, expected = 0.0, 0.0
    for rate in rates:
        dx = 0.5 * dx - rate * 0.75
        expected += dx
    assert float(numpy(x)) == expected


def model():
    """One weight, from 1, with the loss (w - 0)**2 for the input 1 and the target 0."""
    layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")
    return keras.Sequential([keras.Input((1,)), layer])


@pytest.mark.parametrize(
    "callback",
    [
        keras.callbacks.LearningRateScheduler(lambda epoch, lr: 0.25 * 0.5**epoch),
        keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=10),
    ],
    ids=["LearningRateScheduler", "ReduceLROnPlateau"],
)
def test_callbacks_set_the_learning_rate(callback):
    """In fit they change the optimizer's learning rate: here to an eighth in four epochs."""
    network = model()
    network.compile(CoolMomentum(0.25, 10), "mse")
    network.fit(np.ones((4, 1)), np.zeros((4, 1)), epochs=4, verbose=0, callbacks=[callback])
    assert float(network.optimizer.learning_rate) == 0.25 / 8
