"""What the thermometer follows: parameters, groups, names, optimizers of other kinds."""

import math

import pytest
import torch
from torch import nn
from torch_meter_tools import OPTIMIZERS, SGD
from torch_tools import draw, parameters

from coolmomentum.torch import Thermometer


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


def test_further_tensors():
    """With buffers the mean square is over all of them; the parameters' own is in their group.

    Buffers move between the steps, in the forward pass; what is not floating is left out.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).double()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    thermometer = Thermometer(optimizer, every=1, span=2, also=model.buffers())
    floating = [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]
    squares = 0.0
    for n in range(4):
        before = [x.detach().clone() for x in floating]
        optimizer.zero_grad()
        model(draw(8, 2, seed=n)).square().mean().backward()
        optimizer.step()
        moved = [a.detach() - b for a, b in zip(floating, before, strict=True)]
        squares += sum(float(dx.square().sum()) for dx in moved)
    size = sum(x.numel() for x in floating)
    by_group = thermometer.read("group")
    reading = thermometer.read()
    # Differences of weights of about 1, rounded to 2**-53, beside displacements of about 0.01.
    near = pytest.approx(squares / size / 4, rel=2 * 2**-53 / 0.01)
    assert reading["rescaled_temperature"] == near
    assert [*by_group] == [0, "also"]
    assert math.isnan(reading["temperature"])
    assert by_group[0]["temperature"] > 0
    assert by_group[0]["rescaled_temperature"] != reading["rescaled_temperature"]
