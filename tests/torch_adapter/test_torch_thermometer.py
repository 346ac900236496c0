"""The thermometer on optimizers of torch: the displacements it sees, and what it makes of them."""

import copy
import math
import weakref

import numpy as np
import pytest
import torch
from distributed_tools import batches, make_model, run_distributed, sharded
from test_torch_sync import host_reads
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch_tools import draw, gradients, parameters

from coolmomentum.thermometer import READINGS, Dynamics, Layout, Sampling, Window, report
from coolmomentum.torch import CoolMomentum, Thermometer

SHAPES = [(3, 4), (5,), ()]
SGD, ADAM = torch.optim.SGD, torch.optim.Adam

# What each moves by apart from its displacement: the factor of decoupled weight decay.
OPTIMIZERS = {
    "cool": lambda p: CoolMomentum(p, lr=0.05, total_steps=30, rho0=0.9),
    "cool, decoupled decay": lambda p: CoolMomentum(
        p, lr=0.05, total_steps=30, weight_decay=0.1, decoupled_weight_decay=True
    ),
    "cool, capturable": lambda p: CoolMomentum(p, lr=0.05, total_steps=30, capturable=True),
    "sgd": lambda p: SGD(p, lr=0.05),
    "sgd, momentum": lambda p: SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1, dampening=0.3),
    "sgd, maximize": lambda p: SGD(p, lr=0.05, momentum=0.9, maximize=True),
    "sgd, fused": lambda p: SGD(p, lr=0.05, momentum=0.9, fused=True),
    "sgd, foreach": lambda p: SGD(p, lr=0.05, momentum=0.9, foreach=True),
    "sgd, nesterov": lambda p: SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "sgd, tensor lr": lambda p: SGD(p, lr=torch.tensor(0.05), momentum=0.9),
    "adam": lambda p: ADAM(p, lr=0.05),
    "adam, amsgrad": lambda p: ADAM(p, lr=0.05, amsgrad=True, foreach=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.5),
    "nadam, decoupled": lambda p: torch.optim.NAdam(
        p, lr=0.05, weight_decay=0.5, decoupled_weight_decay=True
    ),
    "radam, decoupled": lambda p: torch.optim.RAdam(
        p, lr=0.05, weight_decay=0.5, decoupled_weight_decay=True
    ),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.05, weight_decay=0.5),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.05),
    "rmsprop, centered": lambda p: torch.optim.RMSprop(p, lr=0.05, centered=True, momentum=0.5),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.05),
}
DECAYS = {
    "cool, decoupled decay": 0.1,
    "adamw": 0.5,
    "nadam, decoupled": 0.5,
    "radam, decoupled": 0.5,
    "adafactor": 0.5,
}
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


# --- what it follows ------------------------------------------------------------------------------


def at_rest(optimizer):
    """Mean squares of each parameter, after another step in which only the last has a gradient."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    thermometer = Thermometer(optimizer, every=1, span=10)
    optimizer.step()
    thermometer.reset()
    optimizer.param_groups[0]["params"][0].grad = None
    optimizer.step()
    return [row["rescaled_temperature"] for row in thermometer.read("parameter").values()]


@pytest.mark.parametrize("name", ["cool", "sgd, momentum", "adamw", "rmsprop"])
def test_a_parameter_without_a_gradient_is_at_rest(name):
    """Whatever its buffer says: it was not moved, nor shrunk."""
    first, *others = at_rest(OPTIMIZERS[name](parameters((3,), (4,))))
    assert first == 0
    assert all(other > 0 for other in others)


def test_the_learning_rate_of_each_step():
    """Under a scheduler a displacement is that of its own step's learning rate."""
    (x,) = parameters((3,))
    optimizer = SGD([x], lr=1.0, momentum=0.5)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    thermometer = Thermometer(optimizer, every=1, span=1)
    for lr, buffer in [(1.0, 1.0), (0.5, 1.5), (0.25, 1.75)]:
        x.grad = torch.ones_like(x)
        optimizer.step()
        scheduler.step()
        reading = thermometer.read(reset=True)
        assert reading["rescaled_temperature"] == (lr * buffer) ** 2
        assert reading["temperature"] == pytest.approx((lr * buffer) ** 2 / (2 * lr / 1.5))


def test_groups_have_their_own_motion():
    """Rho and dt**2 by group, and names where the optimizer has them."""
    a, b = parameters((2,), (3,))
    groups = [{"params": [("a", a)], "lr": 0.5}, {"params": [("b", b)], "momentum": 0.5, "lr": 0.1}]
    optimizer = SGD(groups, lr=0.1)
    with Thermometer(optimizer, every=1, span=1) as thermometer:
        for x in (a, b):
            x.grad = torch.ones_like(x)
        optimizer.step()
    by_parameter = thermometer.read("parameter")
    assert [*by_parameter] == ["a", "b"]
    assert by_parameter["a"]["temperature"] == pytest.approx(0.25)
    assert by_parameter["b"]["temperature"] == pytest.approx(0.01 / (0.2 / 1.5))
    by_group = thermometer.read("group")
    assert [*by_group] == [0, 1]
    assert [row["rho"] for row in by_group.values()] == [0, 0.5]
    pooled = (2 * 0.25 + 3 * 0.01 / (0.2 / 1.5)) / 5
    assert thermometer.read()["temperature"] == pytest.approx(pooled)


def test_names_of_a_model():
    """Names may be told; otherwise parameters are counted as in a state_dict."""
    model = nn.Linear(2, 1)
    optimizer = SGD(model.parameters(), lr=0.1)
    model.weight.requires_grad_(False)
    assert [*Thermometer(optimizer).read("parameter")] == [1]
    named = Thermometer(optimizer, named_parameters=model.named_parameters())
    assert [*named.read("parameter")] == ["bias"]


def test_rho_and_dt2_may_be_told():
    """As numbers or as functions of a group, over what is known and what is not."""
    (x,) = parameters((3,))
    optimizer = torch.optim.Adamax([x], lr=0.1)
    told = Thermometer(optimizer, every=1, span=1, rho=0.9, dt2=lambda g: 2 * g["lr"])
    untold = Thermometer(optimizer, every=1, span=1)
    x.grad = torch.ones_like(x)
    optimizer.step()
    reading = told.read()
    assert reading["rho"] == 0.9
    assert reading["temperature"] == pytest.approx(reading["rescaled_temperature"] / 0.2)
    assert math.isnan(untold.read()["temperature"])


def test_a_subclass_with_a_step_of_its_own_is_not_taken_for_its_parent():
    """Its motion is unknown, its displacements are seen, and no step counts twice."""

    class Halved(SGD):
        def step(self, closure=None):
            """A step along half of the gradient."""
            for group in self.param_groups:
                for x in group["params"]:
                    x.grad = x.grad / 2
            return super().step(closure)

    SGD(parameters((1,)))  # torch puts hooks into the parent's step when it meets one
    (x,) = parameters((3,))
    optimizer = Halved([x], lr=0.1, momentum=0.5)
    thermometer = Thermometer(optimizer, every=1, span=1)
    x.grad = torch.ones_like(x)
    before = x.detach().clone()
    optimizer.step()
    reading = thermometer.read()
    assert math.isnan(reading["temperature"])
    moved = float((x.detach() - before).square().mean())
    assert (reading["steps"], reading["rescaled_temperature"]) == (1, pytest.approx(moved))


def test_lbfgs():
    """A closure that evaluates often is one step; the displacement is all of it."""
    (x,) = parameters((3,))
    optimizer = torch.optim.LBFGS([x], lr=0.5, max_iter=4)

    def closure():
        optimizer.zero_grad()
        loss = (x**4).sum()
        loss.backward()
        return loss

    before = x.detach().clone()
    with Thermometer(optimizer, every=1, span=1) as thermometer:
        optimizer.step(closure)
    reading = thermometer.read()
    moved = float((x.detach() - before).square().mean())
    assert (reading["steps"], reading["rescaled_temperature"]) == (1, pytest.approx(moved))


def test_parameters_that_come_and_go():
    """Adding, freezing or unfreezing parameters begins a new window with those that walk."""
    a, b = parameters((2,), (3,))
    optimizer = SGD([a], lr=1.0)
    thermometer = Thermometer(optimizer, every=1, span=2)

    def step():
        for x in (a, b):
            x.grad = torch.ones_like(x) if x.requires_grad else None
        optimizer.step()
        return {name: row["steps"] for name, row in thermometer.read("parameter").items()}

    assert [step(), step()] == [{0: 1}, {0: 2}]
    optimizer.add_param_group({"params": [b]})
    assert [step(), step()] == [{0: 1, 1: 1}, {0: 2, 1: 2}]
    a.requires_grad_(False)
    assert step() == {1: 1}
    assert thermometer.read()["rescaled_temperature"] == pytest.approx(1)
    a.requires_grad_(True)
    assert step() == {0: 1, 1: 1}


def test_nothing_to_follow():
    """With every parameter frozen all is NaN, and steps are steps that were applied."""
    (x,) = parameters((3,))
    x.requires_grad_(False)
    optimizer = SGD([x], lr=0.1)
    thermometer = Thermometer(optimizer, every=1, span=1)
    optimizer.step()
    reading = thermometer.read()
    assert reading.pop("steps") == 0
    assert all(map(math.isnan, reading.values()))


# --- the paper's variant --------------------------------------------------------------------------


def test_further_tensors():
    """With buffers the mean square is over all of them; the parameters' own is in their group.

    Buffers move between the steps, in the forward pass; what is not floating is left out.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    thermometer = Thermometer(optimizer, every=1, span=2, also=model.buffers())
    floating = [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]
    squares = 0.0
    for n in range(4):
        before = [x.detach().clone() for x in floating]
        optimizer.zero_grad()
        model(draw(8, 2, dtype=torch.float32, seed=n)).square().mean().backward()
        optimizer.step()
        moved = [a.detach() - b for a, b in zip(floating, before, strict=True)]
        squares += sum(float(dx.double().square().sum()) for dx in moved)
    size = sum(x.numel() for x in floating)
    by_group = thermometer.read("group")
    reading = thermometer.read()
    # float32 differences of numbers near 1
    assert reading["rescaled_temperature"] == pytest.approx(squares / size / 4, rel=1e-4)
    assert [*by_group] == [0, "also"]
    assert math.isnan(reading["temperature"])
    assert by_group[0]["temperature"] > 0
    assert by_group[0]["rescaled_temperature"] != reading["rescaled_temperature"]


# --- dtypes, layouts ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cool", "sgd, momentum", "adam", "rmsprop, centered", "adagrad"])
def test_complex_parameters(name):
    """A complex parameter reads as its real view does."""
    (z,) = parameters((4,), dtype=torch.complex128)
    real = torch.view_as_real(z.detach()).clone().requires_grad_()
    readings = []
    for x in (z, real):
        optimizer = OPTIMIZERS[name]([x])
        thermometer = Thermometer(optimizer, every=1, span=3)
        for n in range(6):
            g = draw(4, dtype=torch.complex128, seed=n)
            x.grad = g if x is z else torch.view_as_real(g)
            optimizer.step()
        readings.append(thermometer.read())
    assert readings[0] == pytest.approx(readings[1], rel=1e-9, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("cool", torch.float16),
        ("cool", torch.bfloat16),
        ("sgd, momentum", torch.float16),
        ("adamw", torch.bfloat16),
    ],
)
def test_half_precision(name, dtype):
    """Sums are those of the half-precision displacements, in float64."""
    (x,) = parameters((300,), dtype=dtype)
    optimizer = OPTIMIZERS[name]([x])
    thermometer = Thermometer(optimizer, every=1, span=2)
    squares = 0.0
    for n in range(4):
        before = x.detach().double()
        x.grad = draw(300, dtype=dtype, seed=n)
        optimizer.step()
        if name == "cool":
            moved = optimizer.state[x]["displacement"].double()
        else:
            moved = x.detach().double() - before * (1 - 0.05 * DECAYS.get(name, 0))
        squares += float(moved.square().sum())
    reading = thermometer.read()
    # The decay, 0.975 x, is a float32 product near 1 beside displacements of some 1e-2.
    assert reading["rescaled_temperature"] == pytest.approx(squares / 300 / 4, rel=1e-4)


def test_layouts():
    """Channels-last parameters with contiguous gradients: products pair the same coordinates."""
    readings = []
    for layout in (torch.contiguous_format, torch.channels_last):
        x = draw(2, 3, 4, 5).to(memory_format=layout).requires_grad_()
        optimizer = SGD([x], lr=0.1, momentum=0.5)
        thermometer = Thermometer(optimizer, every=1, span=2)
        for n in range(4):
            x.grad = draw(2, 3, 4, 5, seed=n)
            optimizer.step()
        readings.append(thermometer.read())
    assert readings[0] == pytest.approx(readings[1], rel=1e-12, abs=1e-12, nan_ok=True)


def test_sparse_gradients():
    """An embedding with sparse gradients moves where it was looked up."""
    embedding = nn.Embedding(5, 2, sparse=True)
    optimizer = SGD(embedding.parameters(), lr=1.0, momentum=0.5)
    thermometer = Thermometer(optimizer, every=1, span=1)
    embedding(torch.tensor([1, 3])).sum().backward()
    optimizer.step()
    assert thermometer.read()["rescaled_temperature"] == pytest.approx(4 / 10, rel=1e-6)


def test_a_long_float32_sum_of_products():
    """Over 2e7 float32 coordinates the correlation of x and 2 x is 1 to 1e-6; the mean square."""
    random = np.random.default_rng(0).uniform(0.5, 1.5, 20_000_000).astype(np.float32)
    x = torch.zeros(20_000_000, requires_grad=True)
    optimizer = SGD([x], lr=1.0, momentum=0.5)
    thermometer = Thermometer(optimizer, every=2, span=2)
    x.grad = torch.from_numpy(random)
    optimizer.step()
    thermometer.reset()
    x.grad = x.grad * 1.5  # and momentum: twice the first displacement
    optimizer.step()
    reading = thermometer.read()
    square = 4 * float(np.mean(np.square(random, dtype=np.float64)))
    assert reading["rescaled_temperature"] == pytest.approx(square, rel=1e-6)
    assert reading["correlation"] == pytest.approx(1, rel=1e-6)


# --- what it must not do --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cool, capturable", "sgd, momentum", "adam", "rmsprop", "adamax"])
def test_no_step_waits(name):
    """Neither measured steps nor the others read a value of a tensor on the device.

    Adam's own step reads the counts of its steps, on the host, and so does torch's RMSprop.
    """
    params = parameters(*SHAPES)
    reads = []
    for with_thermometer in (False, True):
        optimizer = OPTIMIZERS[name](params)
        for p in params:
            p.grad = torch.ones_like(p)
        if with_thermometer:
            Thermometer(optimizer, every=2, span=4)
        reads.append(host_reads(lambda step=optimizer.step: [step() for _ in range(8)]))
    clock = optimizer.param_groups[0].get("cooling_step")
    extra = [x for x in reads[1] if clock is None or x.data_ptr() != clock.data_ptr()]
    assert len(extra) == len(reads[0])


def test_state_dict_and_copies_know_nothing_of_it():
    """A checkpoint is what it was, and a deep copy of the optimizer is not followed."""
    params = parameters((3,))
    optimizer = SGD(params, lr=0.1, momentum=0.5)
    keys = [*optimizer.param_groups[0]]
    thermometer = Thermometer(optimizer, every=1, span=1)
    params[0].grad = torch.ones_like(params[0])
    optimizer.step()
    assert [*optimizer.param_groups[0]] == keys
    assert [*optimizer.state_dict()["state"][0]] == ["momentum_buffer"]
    copy.deepcopy(optimizer).step()
    assert thermometer.read()["steps"] == 1


def test_leaving_it():
    """Hooks and copies are gone after the end of the context, and what was seen can be read."""
    (x,) = parameters((3,))
    optimizer = ADAM([x], lr=0.1)
    with Thermometer(optimizer, every=1, span=2) as thermometer:
        x.grad = torch.ones_like(x)
        optimizer.step()
        copies = [weakref.ref(thermometer._previous[0]), weakref.ref(thermometer._start[0])]
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert [copy() for copy in copies] == [None, None]
    optimizer.step()
    assert thermometer.read()["steps"] == 1


def test_a_window_ends_where_it_is_told():
    """Reading leaves it open; reset=True and reset() begin another, with its own means."""
    (x,) = parameters((3,))
    optimizer = SGD([x], lr=1.0)
    thermometer = Thermometer(optimizer, every=1, span=4)
    for size in (1.0, 2.0, 3.0):
        x.grad = torch.full_like(x, size)
        optimizer.step()
        assert thermometer.read()["steps"] == 1
        reading = thermometer.read(reset=size < 3)
        assert reading["rescaled_temperature"] == pytest.approx(size**2)
    thermometer.reset()
    assert thermometer.read()["steps"] == 0
    with pytest.raises(TypeError, match="reset must be True or False: 1"):
        thermometer.read(reset=1)


def test_a_step_that_raises_is_none():
    """The next one is seen as if it had not been tried."""
    (x,) = parameters((3,))
    optimizer = SGD([x], lr=1.0, momentum=0.5)
    thermometer = Thermometer(optimizer, every=1, span=1)

    def broken():
        raise RuntimeError("no loss")

    with pytest.raises(RuntimeError, match="no loss"):
        optimizer.step(broken)
    x.grad = torch.ones_like(x)
    optimizer.step()
    reading = thermometer.read()
    assert (reading["steps"], reading["rescaled_temperature"]) == (1, 1.0)


class Scaler:
    """What torch.amp.GradScaler does to an optimizer that unscales for itself, on the CPU."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    def step(self, skipped):
        """A step in which a gradient was not finite, or one as usual."""
        self.optimizer.grad_scale = torch.tensor(1.0)
        self.optimizer.found_inf = torch.tensor(float(skipped))
        try:
            self.optimizer.step()
        finally:
            del self.optimizer.grad_scale, self.optimizer.found_inf


@pytest.mark.parametrize(
    "make",
    [
        lambda p: CoolMomentum(p, lr=0.1, total_steps=10, fused=True),
        lambda p: CoolMomentum(p, lr=0.1, total_steps=10, fused=True, capturable=True),
        lambda p: SGD(p, lr=0.1, momentum=0.9, fused=True),
        lambda p: ADAM(p, lr=0.1, fused=True),
    ],
    ids=["cool", "cool, capturable", "sgd", "adam"],
)
def test_steps_that_the_optimizer_skips(make):
    """They do not count, and the step before one is still the one before the next."""
    readings = []
    for skips in ([0, 0, 0, 0], [0, 1, 0, 1, 0, 0]):
        (x,) = parameters((3,), dtype=torch.float32)
        optimizer = make([x])
        thermometer = Thermometer(optimizer, every=2, span=2)
        for skipped in skips:
            x.grad = torch.ones_like(x)
            Scaler(optimizer).step(skipped)
        readings.append(thermometer.read())
    assert readings[0]["steps"] == readings[1]["steps"] == 4
    assert readings[0] == pytest.approx(readings[1], rel=1e-5, abs=1e-5, nan_ok=True)


def test_grad_scaler():
    """Steps that GradScaler does not take are not seen."""
    (x,) = parameters((3,), dtype=torch.float32)
    optimizer = SGD([x], lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    thermometer = Thermometer(optimizer, every=1, span=1)
    for bad in (False, True, False):
        optimizer.zero_grad()
        scaler.scale((x * (math.inf if bad else 1.0)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert thermometer.read()["steps"] == 2


def test_a_compiled_step():
    """Hooks run outside of the graph, and see what they see of a step that is not compiled."""
    readings = []
    for compiled in (False, True):
        params = parameters((3,), (4,))
        optimizer = CoolMomentum(params, lr=0.1, total_steps=20, rho0=0.9)
        thermometer = Thermometer(optimizer, every=2, span=4)
        step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
        for grads in gradients(params, 9):
            for p, g in zip(params, grads, strict=True):
                p.grad = g
            step()
        readings.append(thermometer.read())
    assert readings[0] == pytest.approx(readings[1], rel=1e-6, abs=1e-6, nan_ok=True)
    torch.compiler.reset()


@pytest.mark.parametrize(("name", "lost"), [("cool", 2 * 4**2), ("adam", 2 * 1000)])
def test_a_compiled_model(name, lost):
    """A compiled model, and a compiled step with it, read as they do uncompiled.

    The graphs are those that TorchDynamo captures, run by PyTorch itself, in float64; but a
    compiled step has some coefficients in float32. Ours shows a rho that is rounded to it: a
    relative error of 2**-24, which the readings multiply by at most 2 |y|**2 / |dx|**2 = 2 *
    4**2 (freeze_out). That of Adam has 1 - beta2**n, where 1e-3 is left of 1 at first: 1000
    times as much in a displacement, and twice that in a square.
    """
    readings = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
        optimizer = OPTIMIZERS[name](model.parameters())
        thermometer = Thermometer(
            optimizer, every=2, span=4, named_parameters=model.named_parameters()
        )
        call, step = model, optimizer.step
        if compiled:
            call, step = (torch.compile(f, backend="eager") for f in (model, step))
        for n in range(8):
            optimizer.zero_grad()
            call(draw(8, 3, dtype=torch.float64, seed=n)).square().mean().backward()
            step()
        readings.append(thermometer.read("parameter"))
    torch.compiler.reset()
    assert [*readings[0]] == [*readings[1]] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    for key, expected in readings[0].items():
        assert expected["steps"] == 8
        near = {"rel": lost * 2.0**-24, "abs": lost * 2.0**-24}
        assert readings[1][key] == pytest.approx(expected, **near, nan_ok=True)


DISTRIBUTED = ["sgd, momentum", "adamw"]  # displacements from the state, and from copies


def trained(model, optimizer, data):
    """Readings after the global batches of the distributed tests, pooled and by parameter."""
    names = [(name.removeprefix("module."), p) for name, p in model.named_parameters()]
    with Thermometer(optimizer, every=2, span=4, named_parameters=names) as thermometer:
        for batch in data:
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()
    return {"all": thermometer.read(), **thermometer.read("parameter")}


def distributed_worker(rank):
    """DDP, and fully_shard with uneven and empty shards, against one process."""
    for name in DISTRIBUTED:
        model = make_model()
        alone = trained(model, OPTIMIZERS[name](model.parameters()), batches())
        for wrap in (DistributedDataParallel, sharded):
            model = wrap(make_model())
            readings = trained(model, OPTIMIZERS[name](model.parameters()), batches()[:, rank::2])
            assert readings.keys() == alone.keys()
            for key, expected in alone.items():
                for reading in ("rescaled_temperature", "temperature", "correlation", "freeze_out"):
                    # 12 steps of some 20 float32 roundings, which Adam and RMSprop divide by
                    # gradients a hundred times smaller.
                    close = pytest.approx(expected[reading], rel=0.01, abs=0.01)
                    assert readings[key][reading] == close, (name, key, reading)


def test_two_processes_read_as_one(tmp_path):
    """Replicated or sharded, every process has the reading of one that has it all."""
    run_distributed(distributed_worker, tmp_path)


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
