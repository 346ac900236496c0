"""The thermometer on optimizers of torch: the displacements it sees, and what it makes of them."""

import math

import numpy as np
import pytest
import torch
from torch_meter_tools import ADAM, DECAYS, OPTIMIZERS, SGD, SHAPES
from torch_tools import gradients, parameters

from coolmomentum.thermometer import READINGS, Dynamics, Layout, Sampling, Window, report
from coolmomentum.torch import CoolMomentum, Thermometer

MOTION = {  # rho, dt**2 and mass as each optimizer's documentation has its update
    "cool": ("schedule", 0.05, None),
    "cool, decoupled decay": ("schedule", 0.05, None),
    "cool, capturable": ("schedule", 0.05, None),
    "sgd": (0.0, 0.1, None),
    "sgd, momentum": (0.9, 2 * 0.05 * 0.7 / 1.9, None),
    "sgd, maximize": (0.9, 0.1 / 1.9, None),
    "sgd, fused": (0.9, 0.1 / 1.9, None),
    "sgd, foreach": (0.9, 0.1 / 1.9, None),
    "sgd, tensor lr": (0.9, 0.1 / 1.9, None),
    "adam": (0.9, 2 * 0.05 * 0.1 / 1.9, "adam"),
    "adam, amsgrad": (0.9, 2 * 0.05 * 0.1 / 1.9, "amsgrad"),
    "adamw": (0.9, 2 * 0.05 * 0.1 / 1.9, "adam"),
    "rmsprop": (0.0, 0.1, "rmsprop"),
    "rmsprop, centered": (0.5, 0.1 / 1.5, "centered"),
    "adagrad": (0.0, 0.1, "adagrad"),
}


class Masses:
    """Second moments of the gradients, from the formulas of the papers, in float64."""

    def __init__(self, kind):
        self.kind, self.step = kind, 0
        self.square, self.mean, self.largest = {}, {}, {}

    def update(self, key, g, step):
        """The masses after a gradient."""
        if self.kind == "adagrad":
            self.square[key] = self.square.get(key, 0) + g * g
            return np.sqrt(self.square[key]) + 1e-10
        decay = 0.999 if self.kind in ("adam", "amsgrad") else 0.99
        self.square[key] = decay * self.square.get(key, 0) + (1 - decay) * g * g
        self.mean[key] = decay * self.mean.get(key, 0) + (1 - decay) * g
        v = self.square[key]
        if self.kind == "amsgrad":
            v = self.largest[key] = np.maximum(self.largest.get(key, 0), v)
        if self.kind in ("adam", "amsgrad"):
            v = v / (1 - decay**step)
        if self.kind == "centered":
            v = v - self.mean[key] ** 2
        return np.sqrt(v) + 1e-8


def expected_readings(name, make, every, span, steps):
    """Readings from the trajectory that a twin without a thermometer leaves, in NumPy."""
    params = parameters(*SHAPES)
    optimizer = make(params)
    rho, dt2, kind = MOTION.get(name, (math.nan, math.nan, None))
    masses = Masses(kind)
    layout = Layout.from_groups([(0, [(i, p.numel()) for i, p in enumerate(params)])])
    window, sampling = Window.empty(np.zeros(len(layout))), Sampling(every, span)
    xs = [p.detach().numpy().copy() for p in params]
    before, start = [np.zeros_like(x) for x in xs], xs
    for n, grads in enumerate(gradients(params, steps), 1):
        used = float(optimizer.param_groups[0]["cooling_rho"]) if rho == "schedule" else rho
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        optimizer.step()
        new = [p.detach().numpy().copy() for p in params]
        shrunk = 1 - 0.05 * DECAYS.get(name, 0)
        now = [a - shrunk * b for a, b in zip(new, xs, strict=True)]
        m = [
            masses.update(i, g.numpy(), n) if kind else np.ones(g.shape)
            for i, g in enumerate(grads)
        ]
        xs, window, how = new, window.step(), Dynamics(used, dt2)
        ys = [a - b for a, b in zip(xs, start, strict=True)]
        table = sums_of(before, now, ys, m)
        if n <= 10 or n % every == 0:
            weight = sampling.weight(n)
            window = window.add(table, layout, how, weight=weight, paired=n > 1)
        if n % span == 0:
            window, start = window.end_span(table, layout, used), xs
        before = now
    by_parameter, by_group = (report(window, layout, by) for by in ("parameter", "group"))
    return [*by_parameter.values(), *by_group.values(), report(window, layout)], params


def sums_of(before, now, ways, masses):
    """Sums over squares and products, times the masses and of the ways."""
    one = [np.ones_like(a) for a in now]
    squares = [
        [np.sum(m * x * y) for x, y, m in zip(xs, ys, ms, strict=True)]
        for ms in (one, masses)
        for xs, ys in ((now, now), (before, before), (now, before))
    ]
    paths = [[np.sum(x * y) for x, y in zip(ways, ys, strict=True)] for ys in (ways, now)]
    return np.array([*squares, *paths])


def run(params, optimizer, steps):
    """Step through the gradients of ``expected_readings``."""
    for grads in gradients(params, steps):
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        optimizer.step()


@pytest.mark.parametrize(("every", "span"), [(1, 4), (3, 6)])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_reads_what_the_parameters_did(name, every, span):
    """Every reading, of each row, is that of the displacements of a twin's trajectory in float64.

    And the twin's parameters are bit for bit those of the optimizer with the thermometer.
    A displacement is a difference of parameters near 1, so exact to 2**-53 / 0.01 beside what the
    state has; the readings subtract like numbers at worst a hundredfold.
    """
    expected, twins = expected_readings(name, OPTIMIZERS[name], every, span, 14)
    params = parameters(*SHAPES)
    optimizer = OPTIMIZERS[name](params)
    with Thermometer(optimizer, every=every, span=span) as thermometer:
        run(params, optimizer, 14)
    assert all(torch.equal(a, b) for a, b in zip(params, twins, strict=True))
    rows = [*thermometer.read("parameter").values(), *thermometer.read("group").values()]
    rows.append(thermometer.read())
    tolerance = 1e-6 if "tensor" in name else 1e-9  # a float32 lr
    for row, wanted in zip(rows, expected, strict=True):
        assert list(row) == ["steps", *READINGS]
        assert row == pytest.approx(wanted, rel=tolerance, abs=tolerance, nan_ok=True)
        assert row["steps"] == 14
    if name in MOTION:
        assert not math.isnan(rows[-1]["temperature"])


def noisy(make, *, k=1.0, sigma=1.0, steps=1000, size=2000, **settings):
    """Reading and optimizer after walks in ``k x**2 / 2`` under white noise, at rest from half."""
    x = torch.zeros(size, requires_grad=True)
    optimizer = make([x])
    noise = torch.Generator().manual_seed(0)
    with Thermometer(optimizer, **settings) as thermometer:
        for n in range(2 * steps):
            if n == steps:
                thermometer.reset()
            x.grad = k * x.detach() + sigma * torch.randn(size, generator=noise)
            optimizer.step()
    return thermometer.read()


def test_the_stationary_temperature_of_sgd():
    """(rho, eta, k, sigma**2) = (1/2, 3/4, 1, 4/3), dt**2 = 1: T = 4/3, 1 by three points.

    100 steps of 2000 coordinates: a relative standard error of sqrt(2/2e5), and four of these.
    """
    reading = noisy(lambda p: SGD(p, lr=0.75, momentum=0.5), sigma=math.sqrt(4 / 3))
    four = 4 * math.sqrt(2 / 2e5)
    assert reading["temperature"] == pytest.approx(4 / 3, rel=four)
    assert reading["three_point_temperature"] == pytest.approx(1, rel=2 * four)
    assert reading["curvature"] == pytest.approx(1, abs=4 * four)
    assert reading["correlation"] == pytest.approx(1 / 8, abs=four)
    assert reading["drift"] == 0
    assert reading["freeze_out"] == pytest.approx(1, abs=0.03)  # ends of a span: (2 + 1)/(1.5 100)


@pytest.mark.parametrize(("lr", "sigma", "beta1"), [(1e-3, 1.0, 0.9), (1e-4, 3.0, 0.5)])
def test_the_temperature_of_adam(lr, sigma, beta1):
    """Where noise dominates Adam's temperature is lr sigma / 2, whatever beta1.

    v is known to sqrt((1 - beta2) / 2 2) = 3 per cent of each coordinate, whose mean square root is
    sigma (1 - 1/8 of the variance 1e-3 of v / sigma**2): some 1e-4. Four standard errors as above,
    with neighbours correlated by at most beta1.
    """
    reading = noisy(lambda p: ADAM(p, lr=lr, betas=(beta1, 0.999)), k=0.0, sigma=sigma)
    assert reading["temperature"] == pytest.approx(lr * sigma / 2, rel=4 * math.sqrt(4 / 2e5))
    assert reading["rho"] == pytest.approx(beta1, rel=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_the_temperature_of_rmsprop(momentum):
    """Where noise dominates it is lr sigma / (2 (1 - momentum)).

    v is sigma**2, and so v = m v - (lr / sigma) g: <dx**2> = lr**2 / (1 - m**2), of mass sigma, at
    dt**2 = 2 lr / (1 + m). The gradient's own part in v, 1 - alpha = 0.01, is the relative error of
    that. Four standard errors, of neighbours correlated by momentum**10 or less.
    """
    lr, sigma = 1e-3, 3.0
    reading = noisy(lambda p: torch.optim.RMSprop(p, lr=lr, momentum=momentum), k=0.0, sigma=sigma)
    expected = lr * sigma / (2 * (1 - momentum))
    assert reading["temperature"] == pytest.approx(expected, rel=0.01 + 4 * math.sqrt(2.01 / 2e5))
    assert reading["three_point_temperature"] == pytest.approx(
        expected, rel=0.01 + 4 * math.sqrt(4 / 2e5)
    )


def test_the_temperature_of_adagrad():
    """Where noise dominates it is lr sigma / (2 sqrt(n)) in step n: it cools by itself.

    The sum of squares is n sigma**2, which is the square of the mass; the displacement is lr g over
    the mass, at dt**2 = 2 lr. The sum is known to sqrt(2 / n) of each coordinate and shares 1 / n
    with the gradient: a relative error of some 1 / n. Four standard errors as above.
    """
    lr, sigma = 1e-2, 3.0
    reading = noisy(lambda p: torch.optim.Adagrad(p, lr=lr), k=0.0, sigma=sigma)
    measured = np.arange(1010, 2001, 10)
    expected = lr * sigma / 2 * np.mean(1 / np.sqrt(measured))
    assert reading["temperature"] == pytest.approx(expected, rel=1e-3 + 4 * math.sqrt(2 / 2e5))


def test_cooling_follows_the_schedule():
    """With CoolMomentum rho and temperature are those of Eq. 19 at each step's own rho."""
    x = torch.zeros(5000, requires_grad=True)
    optimizer = CoolMomentum([x], lr=0.1, schedule=lambda n: 0.8 if n < 50 else 0.2)
    noise = torch.Generator().manual_seed(0)
    thermometer = Thermometer(optimizer, every=1, span=10)
    for expected in (0.8, 0.2):
        for n in range(50):
            if n == 30:
                thermometer.reset()
            x.grad = torch.randn(5000, generator=noise)
            optimizer.step()
        reading = thermometer.read(reset=True)
        assert reading["rho"] == pytest.approx(expected, rel=1e-6)
        # 20 steps that remember 1 / (1 - rho**2): four standard errors
        error = 4 * math.sqrt(2 * (1 + expected**2) / (1 - expected**2) / 1e5)
        eq19 = 0.1 * (1 + expected) / (4 * (1 - expected))
        assert reading["temperature"] == pytest.approx(eq19, rel=error)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"every": 0}, ValueError, "every must be >= 1: 0"),
        ({"span": 15}, ValueError, "span must be a multiple of every, 10: 15"),
        ({"rho": 1.0}, ValueError, r"rho must be in \[-1, 1\): 1.0"),
        ({"dt2": 0.0}, ValueError, "dt2 must be finite and > 0: 0.0"),
    ],
)
def test_bad_arguments(settings, error, message):
    """Name, rule and value, and no hook is left behind."""
    optimizer = SGD(parameters((1,)), lr=0.1)
    with pytest.raises(error, match=f"^{message}$"):
        Thermometer(optimizer, **settings)
    assert not optimizer._optimizer_step_pre_hooks


def test_it_wants_an_optimizer():
    """A list of parameters is none."""
    with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim\.Optimizer"):
        Thermometer(parameters((1,)))


def test_what_to_read_by():
    """One of three."""
    thermometer = Thermometer(SGD(parameters((1,)), lr=0.1))
    with pytest.raises(ValueError, match="by must be one of all, group, parameter: 'layer'"):
        thermometer.read("layer")
