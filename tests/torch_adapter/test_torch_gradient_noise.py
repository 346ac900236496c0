"""The gradient noise in PyTorch: what its optimizers do, what is not known, and what it costs."""

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.utils._python_dispatch import TorchDispatchMode

from coolmomentum import CoolingSchedule, lr_for_batch
from coolmomentum.thermometer import NOISE_READINGS, GradientNoise, Layout, noise_moments
from coolmomentum.torch import CoolMomentum, ThermalNoise, Thermometer

NOISE = {"gradient_noise": True, "batch_size": 64, "every": 4, "span": 4}
HOT = CoolingSchedule(10**6, 0.9, "constant")


def parameter(value=0.0, dtype=torch.float32):
    """Of two coordinates."""
    return torch.full((2,), value, dtype=dtype, requires_grad=True)


def trained(optimizer, params, steps=40, noise=0.1, hook=None, **settings):
    """A thermometer after steps with gradients near 1, and those."""
    random, given = np.random.default_rng(0), []
    thermometer = Thermometer(optimizer, **NOISE | settings)
    for n in range(1, steps + 1):
        given.append([1 + random.normal(0, noise, x.shape) for x in params])
        for x, g in zip(params, given[-1], strict=True):
            x.grad = torch.tensor(g, dtype=x.dtype)
        if hook:
            hook(n)
        optimizer.step()
    return thermometer, given


def expected(given, rho=0.9, every=4, begin=0):
    """All readings of all parameters after step ``begin``, from the gradients."""
    shapes = [x.shape for x in given[0]]
    layout = Layout.of(range(len(shapes)), [math.prod(shape) for shape in shapes])
    noise, mean = GradientNoise.empty(np.zeros(len(layout)), 64), [0 * x for x in given[0]]
    for n, now in enumerate(given, 1):
        if n > begin and (n - begin) % every == 0:
            triples = zip(now, given[n - 2], given[n - 3], strict=True)
            noise = noise.add(noise_moments(triples, mean), layout, rho)
        mean = [rho * m + (1 - rho) * g for m, g in zip(mean, now, strict=True)]
    return {name: float(x[-1]) for name, x in noise.readings().items()}


def near(exact):
    """Within the roundings of tests/contract/test_gradient_noise.py, where noise is 1/100."""
    return pytest.approx(exact, rel=2e-3)


def of_noise(thermometer):
    """Those readings alone."""
    return {name: thermometer.read()[name] for name in NOISE_READINGS}


# --- the optimizers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda x: CoolMomentum([x], 0.1, schedule=HOT, fused=True),
        lambda x: CoolMomentum([x], 0.1, schedule=HOT, capturable=True),
        lambda x: CoolMomentum([x], 0.1, schedule=HOT, maximize=True),
        lambda x: CoolMomentum(
            [x], 0.1, schedule=HOT, weight_decay=0.1, decoupled_weight_decay=True
        ),
        lambda x: torch.optim.SGD([x], 0.1, momentum=0.9, dampening=0.5),
        lambda x: torch.optim.SGD([x], torch.tensor(0.1), momentum=0.9, maximize=True),
        lambda x: torch.optim.Adam([x], 0.1, amsgrad=True),
        lambda x: torch.optim.AdamW([x], 0.1, fused=True),
    ],
)
def test_it_reads_what_the_gradients_say(make):
    """However the optimizer takes its steps; dampening spares the first gradient of PyTorch."""
    x = parameter()
    optimizer = make(x)
    thermometer, given = trained(optimizer, [x])
    given[0] = [given[0][0] / (1 - optimizer.defaults.get("dampening", 0))]
    assert of_noise(thermometer) == near(expected(given))


def test_a_learning_rate_that_changes_in_a_block_does_not_matter():
    """The buffer of SGD does not know it; the first and the last step of a block have others."""
    x = parameter()
    optimizer = torch.optim.SGD([x], 0.1, momentum=0.9)

    def change(n):
        optimizer.param_groups[0]["lr"] = 0.1 / n

    thermometer, given = trained(optimizer, [x], hook=change)
    assert of_noise(thermometer) == near(expected(given))


def test_the_decay_that_is_added_to_the_gradient_is_part_of_it():
    """With a decay of 0.1 a parameter that stays at 10 has the gradient 2."""
    x = parameter(10.0)
    optimizer = torch.optim.SGD([x], 1e-9, momentum=0.9, weight_decay=0.1)
    thermometer, given = trained(optimizer, [x], noise=0.0)
    twice = expected([[2 * g for g in step] for step in given])
    assert thermometer.read()["gradient_norm"] == pytest.approx(twice["gradient_norm"], rel=1e-5)


def test_a_parameter_without_a_gradient_has_none():
    """In the middle of a block a gradient that does not come counts as 0."""
    x, other = parameter(), parameter()
    optimizer = torch.optim.SGD([x, other], 0.1, momentum=0.9)

    def drop(n):
        if n % 4 == 3:
            other.grad = None

    thermometer, given = trained(optimizer, [x, other], hook=drop)
    rows = thermometer.read("parameter")
    # C1 = 0 in each block: what is left is less than nothing.
    assert math.isnan(rows[1]["critical_batch_size"])
    alone = expected([[g[0]] for g in given])
    assert {name: rows[0][name] for name in NOISE_READINGS} == near(alone)


def test_groups_have_their_own_momentum():
    """A rho for each, and readings of each group."""
    x, other = parameter(), parameter()
    groups = [{"params": [x], "momentum": 0.9}, {"params": [other], "momentum": 0.6}]
    thermometer, given = trained(torch.optim.SGD(groups, 0.1), [x, other])
    for i, rho in enumerate((0.9, 0.6)):
        found = thermometer.read("group")[i]
        exact = expected([[g[i]] for g in given], rho)
        assert {name: found[name] for name in NOISE_READINGS} == near(exact)


def test_skipped_steps_are_no_part_of_a_block():
    """A GradScaler skips a step with an infinite gradient, and the block goes on after it."""
    x = parameter()
    optimizer = torch.optim.SGD([x], 0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0, growth_interval=1000)
    thermometer, random, given = Thermometer(optimizer, **NOISE), np.random.default_rng(0), []
    for n in range(60):
        g = 1 + random.normal(0, 0.1, 2)
        scaler.scale(torch.zeros(1))
        x.grad = torch.tensor(g, dtype=torch.float32) * scaler.get_scale()
        if n % 7 == 3:
            x.grad[0] = math.inf
        else:
            given.append([g])
        scaler.step(optimizer)
        scaler.update(1.0)
    assert thermometer.read()["steps"] == len(given)
    assert of_noise(thermometer) == near(expected(given))


# --- what is not known ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda x: torch.optim.SGD([x], 0.1, momentum=0.9, nesterov=True), "as Nesterov's"),
        (lambda x: torch.optim.NAdam([x], 0.1), "as Nesterov's"),
        (lambda x: torch.optim.Adadelta([x], 0.1), r"of Adadelta; tell its rho, Thermometer\(rho"),
        (lambda x: torch.optim.SGD([x], 0.1), "below 0.5"),
        (lambda x: torch.optim.RMSprop([x], 0.1), "below 0.5"),
    ],
)
def test_it_says_what_is_not_known(make, reason):
    """One warning, with the reason; all other readings are as ever."""
    x = parameter()
    thermometer, _ = trained(make(x), [x])
    with pytest.warns(UserWarning, match=rf"^no critical_batch_size: .*{reason}"):
        reading = thermometer.read()
    assert reading["steps"] == 40
    assert all(math.isnan(reading[name]) for name in NOISE_READINGS)
    assert math.isnan(thermometer.read()["critical_batch_size"])  # without a second one


def test_momenta_of_16_bits_are_not_read():
    """What they round away would count as noise."""
    x = parameter(dtype=torch.bfloat16)
    thermometer, _ = trained(torch.optim.SGD([x], 0.1, momentum=0.9), [x])
    with pytest.warns(UserWarning, match="not known, in 16 bits"):
        assert math.isnan(thermometer.read()["gradient_noise"])


def test_a_heat_bath_is_not_read():
    """Its force is no noise of the batches."""
    x = parameter()
    optimizer = CoolMomentum([x], 0.1, schedule=HOT)
    ThermalNoise(optimizer, 0.1)
    thermometer, _ = trained(optimizer, [x])
    with pytest.warns(UserWarning, match="not known, in a heat bath"):
        assert math.isnan(thermometer.read()["gradient_noise"])


def test_gradients_of_a_closure_are_not_seen_but_momenta_are():
    """LBFGS and its like have them inside the step; SGD has a buffer."""
    for make, known in (
        (lambda x: torch.optim.SGD([x], 0.1, momentum=0.9), True),
        (lambda x: torch.optim.Adadelta([x], 0.1), False),
    ):
        x = parameter()
        optimizer = make(x)
        told = {} if known else {"rho": 0.9}
        thermometer = Thermometer(optimizer, **NOISE, **told)

        def closure(x=x):
            x.grad = torch.ones_like(x)

        for _ in range(40):
            optimizer.step(closure)
        if known:
            exact = expected([[np.ones(2)]] * 40)["gradient_norm"]
            assert thermometer.read()["gradient_norm"] == pytest.approx(exact, rel=1e-5)
        else:
            with pytest.warns(UserWarning, match="as gradients come in the closure"):
                assert math.isnan(thermometer.read()["gradient_norm"])


def test_further_tensors_have_no_gradients():
    """So they cannot be pooled in."""
    x = parameter()
    with pytest.raises(ValueError, match=r"^also must be empty with gradient_noise=True:"):
        Thermometer(torch.optim.SGD([x], 0.1), also=[torch.zeros(2)], **NOISE)


# --- windows --------------------------------------------------------------------------------------


def test_a_window_begins_anew():
    """With reset, and when parameters change; what was seen can be read after remove."""
    x = parameter()
    optimizer = torch.optim.SGD([x], 0.1, momentum=0.9)
    thermometer, before = trained(optimizer, [x], steps=42)
    first = of_noise(thermometer)
    thermometer.remove()
    assert of_noise(thermometer) == first
    thermometer.reset()
    assert not thermometer._noise.noise.sums.any()
    other = parameter()
    optimizer.add_param_group({"params": [other]})
    thermometer, given = trained(optimizer, [x, other])
    # The buffer of x remembers what was before; the other one begins.
    before = [[*g, np.zeros(2)] for g in before]
    assert of_noise(thermometer) == near(expected([*before, *given], begin=42))


# --- what it costs --------------------------------------------------------------------------------


class Passes(TorchDispatchMode):
    """Counts the operators that go through tensors of many numbers, and values read by the host."""

    def __init__(self):
        super().__init__()
        self.count, self.reads = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """One more, if there is such a tensor."""
        self.reads += function is torch.ops.aten._local_scalar_dense.default
        tensors = [a for a in args if isinstance(a, torch.Tensor)]
        self.count += any(t.numel() > 1000 for t in tensors) and not function.is_view
        return function(*args, **(kwargs or {}))


def passes(optimizer_of, **settings):
    """Over memory in each of the steps 21 to 40, and whether the host reads a value."""
    x = torch.zeros(2000, requires_grad=True)
    optimizer, counts = optimizer_of(x), []
    x.grad = torch.ones_like(x)
    Thermometer(optimizer, span=20, **settings)
    for _ in range(40):
        with Passes() as seen:
            optimizer.step()
        counts.append(seen.count)
        assert seen.reads == 0
    return np.array(counts[20:])


def test_without_it_no_pass_is_made_and_with_it_only_around_a_measured_step():
    """Three copies before, and in the measured step three gradients, their mean and 7 products."""

    def make(x):
        return torch.optim.SGD([x], 0.1, momentum=0.9, foreach=False)

    plain, off, on = (
        passes(make, every=10, **told)
        for told in ({}, {"gradient_noise": False}, {"gradient_noise": True, "batch_size": 8})
    )
    assert plain.tolist() == off.tolist()
    more = (on - plain).reshape(2, 10)
    assert not more[:, :6].any()
    assert more[:, 6:9].max() <= 1
    assert more[:, 9].max() <= 20


# --- learning rates -------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["sgd", "adam"])
def test_lr_for_batch_keeps_the_temperature_on_digits(rule):
    """A softmax regression at rest, from batches of 16 to 64: within 10 %; else it would fall."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    make, rate = {"adam": (torch.optim.Adam, 0.002), "sgd": (torch.optim.SGD, 0.02)}[rule]
    how = {"betas": (0.9, 0.99)} if rule == "adam" else {"momentum": 0.9}
    torch.manual_seed(0)
    model = torch.nn.Linear(64, 10)
    optimizer = make(model.parameters(), rate, weight_decay=0.05, **how)
    thermometer, temperatures = Thermometer(optimizer, every=5, span=50), []
    for batch, new_rate in ((16, rate), (64, lr_for_batch(rate, 16, 64, rule)), (64, rate)):
        optimizer.param_groups[0]["lr"] = new_rate
        for n in range(1500):
            if n == 500:
                thermometer.reset()
            chosen = torch.randint(len(x), (batch,))
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[chosen]), y[chosen]).backward()
            optimizer.step()
        temperatures.append(thermometer.read()["three_point_temperature"])
    before, after, cold = temperatures
    assert after == pytest.approx(before, rel=0.1)
    assert cold < 0.6 * before
