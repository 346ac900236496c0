"""The torch thermometer in other hands: hooks, subclasses, models that change."""

import inspect
import itertools
import math
import warnings

import pytest
import torch
from torch import nn
from torch_meter_tools import same_readings
from torch_tools import gradients, parameters

from coolmomentum.torch import CoolMomentum, Thermometer

SGD, ADAM, ADAMW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW
OPTIMIZERS = {
    "cool": lambda p: CoolMomentum(p, lr=0.05, total_steps=30, rho0=0.9),
    "cool, foreach": lambda p: CoolMomentum(p, lr=0.05, total_steps=30, fused=False),
    "sgd": lambda p: SGD(p, lr=0.05),
    "sgd, momentum": lambda p: SGD(p, lr=0.05, momentum=0.9),
    "sgd, foreach": lambda p: SGD(p, lr=0.05, momentum=0.9, foreach=True),
    "sgd, fused": lambda p: SGD(p, lr=0.05, momentum=0.9, fused=True),
    "adam": lambda p: ADAM(p, lr=0.05),
    "adamw": lambda p: ADAMW(p, lr=0.05, weight_decay=0.5),
}


def run(optimizer, params, steps, dtype=None):
    """Step through seeded gradients, which do not depend on where the parameters are."""
    for grads in gradients(params, steps):
        for p, g in zip(params, grads, strict=True):
            p.grad = g if dtype is None else g.to(dtype)
        optimizer.step()


def reading_of(make, hook=None, *, first=False, steps=8, register="register_step_post_hook"):
    """Pooled and by parameter, with a hook of the user before or after those of the thermometer."""
    params = parameters((3, 4), (5,))
    optimizer = make(params)
    if hook and first:
        getattr(optimizer, register)(hook)
    thermometer = Thermometer(optimizer, every=1, span=4)
    if hook and not first:
        getattr(optimizer, register)(hook)
    run(optimizer, params, steps)
    return {"all": thermometer.read(), **thermometer.read("parameter")}


# --- gradients that go, and hooks in any order ----------------------------------------------------


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gradients_dropped_by_a_hook(name, first):
    """zero_grad in a hook after the step changes no reading, whichever hook was there first."""
    dropped = reading_of(OPTIMIZERS[name], lambda o, *_: o.zero_grad(), first=first)
    assert same_readings(dropped, reading_of(OPTIMIZERS[name]))


def dropping(kind):
    """A subclass whose step frees the gradients that it has used."""

    class Dropping(kind):
        def step(self, closure=None):
            """The step of the superclass."""
            loss = super().step(closure)
            self.zero_grad()
            return loss

    return Dropping


@pytest.mark.parametrize("kind", [SGD, ADAM, CoolMomentum])
def test_gradients_dropped_in_the_step(kind):
    """It counts, and moved by what the parameters show."""
    settings = {"total_steps": 9} if kind is CoolMomentum else {}
    dropped = reading_of(lambda p: dropping(kind)(p, lr=0.05, **settings))
    kept = reading_of(lambda p: kind(p, lr=0.05, **settings))
    for key in ("steps", "rescaled_temperature", "correlation"):
        assert dropped["all"][key] == pytest.approx(kept["all"][key], rel=1e-9)


@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
def test_heavyball_frees_its_gradients(kind, monkeypatch):
    """A real package that does; its steps count, and their mean square is read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        heavyball = pytest.importorskip("heavyball")
        monkeypatch.setattr(heavyball.utils, "compile_mode", None)
        (x,) = params = parameters((3, 4), dtype=torch.float32)
        optimizer = getattr(heavyball, kind)(params, lr=0.05)
        thermometer = Thermometer(optimizer, every=1, span=2)
        squares = []
        for grads in gradients(params, 3):
            before = x.detach().clone()
            x.grad = grads[0]
            optimizer.step()
            squares.append(float((x.detach() - before).double().square().mean()))
    assert x.grad is None
    reading = thermometer.read()
    assert reading["steps"] == 3
    assert reading["rescaled_temperature"] == pytest.approx(sum(squares) / 3, rel=1e-6)
    assert reading["rescaled_temperature"] > 0


@pytest.mark.parametrize("name", ["sgd, momentum", "sgd, foreach", "adamw"])
def test_a_gradient_taken_away_before_the_step(name):
    """A later hook before the step that freezes a parameter leaves it at rest."""

    def freeze(optimizer, *_):
        optimizer.param_groups[0]["params"][0].grad = None

    reading = reading_of(OPTIMIZERS[name], freeze, register="register_step_pre_hook")
    assert reading[0]["rescaled_temperature"] == 0
    assert reading[1]["rescaled_temperature"] > 0


@pytest.mark.parametrize("name", ["cool", "sgd, momentum", "adam"])
def test_gradients_that_come_and_go_in_a_closure(name):
    """The steps read as those whose gradients are there before and after."""
    params = parameters((3, 4), (5,))
    optimizer = OPTIMIZERS[name](params)
    optimizer.register_step_post_hook(lambda o, *_: o.zero_grad())
    thermometer = Thermometer(optimizer, every=1, span=4)
    for grads in gradients(params, 8):

        def closure(grads=grads):
            for p, g in zip(params, grads, strict=True):
                p.grad = g
            return torch.zeros(())

        optimizer.step(closure)
    got = {"all": thermometer.read(), **thermometer.read("parameter")}
    expected = reading_of(OPTIMIZERS[name])
    for key, reading in got.items():  # the first step of SGD is read from copies
        assert reading == pytest.approx(expected[key], rel=1e-9, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_learning_rate_of_the_step_itself(name, first):
    """A scheduler in a hook after the step divides no temperature by the next rate."""

    def halve(optimizer, *_):
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] / 2

    expected = reading_of(OPTIMIZERS[name], halve, first=False)
    assert same_readings(reading_of(OPTIMIZERS[name], halve, first=first), expected)
    (x,) = parameters((3,))
    optimizer = SGD([x], lr=torch.tensor(0.5), momentum=0.5)
    optimizer.register_step_post_hook(lambda o, *_: o.param_groups[0]["lr"].mul_(0.1))
    thermometer = Thermometer(optimizer, every=1, span=1)
    x.grad = torch.ones_like(x)
    optimizer.step()
    assert thermometer.read()["rescaled_temperature"] == 0.25
    assert thermometer.read()["temperature"] == pytest.approx(0.25 / (2 * 0.5 / 1.5))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_hooks_before_the_step_in_any_order(name):
    """One that sets the learning rate, or takes a gradient away, does so before it is looked at."""

    def warm_up(optimizer, *_):
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * 1.5
        optimizer.param_groups[0]["params"][1].grad = None

    readings = []
    for first in (True, False):
        params = parameters((3, 4), (5,))
        optimizer = OPTIMIZERS[name](params)
        if first:
            optimizer.register_step_pre_hook(warm_up)
        thermometer = Thermometer(optimizer, every=1, span=4)
        if not first:
            optimizer.register_step_pre_hook(warm_up)
        for n in range(9):
            if n == 4:  # the step in which the order is new is not measured
                thermometer.reset()
            for p, g in zip(params, next(iter(gradients(params, 1))), strict=True):
                p.grad = g
            optimizer.step()
        readings.append({"all": thermometer.read(), **thermometer.read("parameter")})
    assert same_readings(*readings)
    assert readings[0][1]["rescaled_temperature"] == 0


def test_steps_whose_gradients_a_hook_takes_away():
    """They are no steps, as where a hook drops gradients that are not finite."""

    def skip(optimizer, *_):
        if not torch.isfinite(x.grad).all():
            optimizer.zero_grad()

    (x,) = parameters((3,))
    optimizer = SGD([x], lr=0.1, momentum=0.5)
    thermometer = Thermometer(optimizer, every=1, span=1)
    optimizer.register_step_pre_hook(skip)
    for value in (1.0, math.nan, 1.0, math.inf):
        x.grad = torch.full_like(x, value)
        optimizer.step()
    assert thermometer.read()["steps"] == 2
    assert thermometer.read()["temperature"] > 0


def test_a_hook_that_edits_the_groups_after_the_step():
    """A new window begins, and the training goes on."""
    a, b = parameters((2,), (3,))
    optimizer = SGD([{"params": [("a", a), ("b", b)]}], lr=0.1, momentum=0.5)
    optimizer.register_step_post_hook(lambda o, *_: o.param_groups[0].update(params=[b]))
    thermometer = Thermometer(optimizer, every=1, span=1)
    run(optimizer, [a, b], 2)
    assert [*thermometer.read("parameter")] == [0]
    assert thermometer.read()["steps"] == 1


# --- subclasses -----------------------------------------------------------------------------------


@pytest.fixture(params=["parent first", "subclass first"])
def fresh(request, monkeypatch):
    """A process in which torch has put its hooks into the step of no class, or of the parent."""
    for kind in (SGD, ADAM, CoolMomentum):
        monkeypatch.setattr(kind, "step", inspect.unwrap(kind.step, stop=unhooked))
        if request.param == "parent first":
            kind(parameters((1,)), lr=0.1, **({"total_steps": 9} if kind is CoolMomentum else {}))


def unhooked(step):
    """Whether torch's own wrapper of a step has been taken off."""
    return not getattr(step, "hooked", False)


@pytest.mark.parametrize("kind", [SGD, ADAM, CoolMomentum])
@pytest.mark.usefixtures("fresh")
def test_a_plain_subclass_moves_as_its_parent(kind):
    """Its temperature is known, whichever class was made first in the process."""
    settings = {"total_steps": 9} if kind is CoolMomentum else {}
    subclass = type("Plain", (kind,), {})
    got = reading_of(lambda p: subclass(p, lr=0.05, **settings))
    assert not math.isnan(got["all"]["temperature"])
    assert same_readings(got, reading_of(lambda p: kind(p, lr=0.05, **settings)))


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.usefixtures("fresh")
def test_what_a_subclass_does_around_the_step_of_its_parent_counts(fails):
    """All that moved in its step is in the displacement; also after a step that raised."""

    class Kicked(SGD):
        def step(self, closure=None):
            """The step of SGD and a kick of 1."""
            loss = super().step(closure)
            with torch.no_grad():
                self.param_groups[0]["params"][0].add_(1.0)
            return loss

    (x,) = parameters((3,))
    optimizer = Kicked([x], lr=0.1, momentum=0.5)
    thermometer = Thermometer(optimizer, every=1, span=1)
    if fails:
        with pytest.raises(ZeroDivisionError):
            optimizer.step(lambda: 1 / 0)
    x.grad = torch.ones_like(x)
    optimizer.step()
    reading = thermometer.read()
    assert (reading["steps"], reading["rescaled_temperature"]) == (1, pytest.approx(0.9**2))


# --- models that change ---------------------------------------------------------------------------


@pytest.mark.parametrize("when", [0, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_model_that_moves(name, when):
    """After .to() of another dtype (or device), at the start or later, a new window begins."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = OPTIMIZERS[name](model.parameters())
    thermometer = Thermometer(optimizer, every=2, span=4, named_parameters=model.named_parameters())
    params = [*model.parameters()]
    run(optimizer, params, when, torch.float32)
    model.double()
    optimizer.load_state_dict(optimizer.state_dict())  # as torch wants of those that have a state
    run(optimizer, params, 5)
    assert thermometer.read()["steps"] == 5
    assert thermometer.read()["rescaled_temperature"] > 0
    assert [*thermometer.read("parameter")] == ["weight", "bias"]


@pytest.mark.parametrize("in_closure", [False, True])
def test_lazy_modules(in_closure):
    """Their parameters are followed from when they are there."""
    model = nn.Sequential(nn.LazyLinear(2), nn.Linear(2, 1))
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.5)
    thermometer = Thermometer(optimizer, named_parameters=model.named_parameters())
    assert thermometer.read()["steps"] == 0

    def closure():
        loss = model(torch.ones(4, 3)).square().mean()
        loss.backward()
        return loss

    for _ in range(4):
        if in_closure:
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
    assert thermometer.read()["steps"] == 4 - in_closure
    assert [*thermometer.read("parameter")] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert all(x["rescaled_temperature"] > 0 for x in thermometer.read("parameter").values())


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize(
    "edit",
    [
        lambda o, a, b, c: o.param_groups[0]["params"].append(c),
        lambda o, a, b, c: o.param_groups[0].update(params=[a]),
        lambda o, a, b, c: o.param_groups[0].update(params=[b, a]),
        lambda o, a, b, c: o.param_groups.append({**o.param_groups[0], "params": [c]}),
        lambda o, a, b, c: o.param_groups.clear(),
    ],
    ids=["longer", "shorter", "another order", "another group", "no group"],
)
def test_groups_edited_by_hand(edit, named):
    """A new window begins, with parameters and names that fit; nothing raises."""
    a, b, c = params = parameters((2,), (3,), (4,))
    optimizer = SGD([("a", a), ("b", b)] if named else [a, b], lr=0.1, momentum=0.5)
    thermometer = Thermometer(optimizer, every=1, span=2)
    run(optimizer, params, 2)
    edit(optimizer, a, b, c)
    run(optimizer, params, 2)
    there = [x for group in optimizer.param_groups for x in group["params"]]
    assert len(thermometer.read("parameter")) == len(there)
    assert thermometer.read()["steps"] == (2 if there else 0)
    assert len(thermometer.read("group")) == len(optimizer.param_groups)


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["optimizer", "thermometer"])
def test_equal_names_lose_no_rows(how):
    """Two nets in one optimizer have a row for each parameter, and so have groups of one name."""
    nets = nn.Linear(2, 1), nn.Linear(2, 1)
    named = [*itertools.chain.from_iterable(net.named_parameters() for net in nets)]
    groups = [{"params": named[:2], "name": "net"}, {"params": named[2:], "name": "net"}]
    if how == "optimizer":
        thermometer = Thermometer(SGD(groups, lr=0.1))
    else:
        for group in groups:
            group["params"] = [x for _, x in group["params"]]
        thermometer = Thermometer(SGD(groups, lr=0.1), named_parameters=named)
    assert [*thermometer.read("parameter")] == ["weight", "bias", "weight#2", "bias#2"]
    assert [*thermometer.read("group")] == ["net", "net#2"]


# --- sparse gradients, small tensors --------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_sparse_gradients_from_a_closure(momentum):
    """An embedding moves where it was looked up, also where nothing was known before the step."""
    embedding = nn.Embedding(5, 2, sparse=True)
    optimizer = SGD(embedding.parameters(), lr=1.0, momentum=momentum)
    thermometer = Thermometer(optimizer, every=1, span=1)

    def closure():
        optimizer.zero_grad()
        embedding(torch.tensor([1, 3])).sum().backward()

    optimizer.step(closure)
    assert thermometer.read(reset=True)["rescaled_temperature"] == pytest.approx(4 / 10, rel=1e-6)
    optimizer.step(closure)
    moved = 4 / 10 * (1 + momentum) ** 2
    assert thermometer.read()["rescaled_temperature"] == pytest.approx(moved, rel=1e-5)


@pytest.mark.parametrize("name", ["adam", "adamw", "cool", "sgd, momentum"])
def test_a_single_float32_number(name):
    """A 0-d parameter reads as one of a single element."""
    readings = []
    for shape in ((), (1,)):
        x = torch.ones(shape, requires_grad=True)
        optimizer = OPTIMIZERS[name]([x])
        thermometer = Thermometer(optimizer, every=1, span=2)
        for n in range(4):
            x.grad = torch.full(shape, 1.0 + n)
            optimizer.step()
        readings.append(thermometer.read())
    assert readings[0] == pytest.approx(readings[1], rel=1e-6, abs=1e-6, nan_ok=True)


# --- what does not exist, and what goes wrong -----------------------------------------------------


def test_the_first_reading_exists_after_two_steps():
    """By default; freeze_out needs a span, and is not in a log before."""
    from coolmomentum.thermometer import READINGS, known

    (x,) = params = parameters((3,))
    optimizer = SGD([x], lr=0.1, momentum=0.5)
    thermometer = Thermometer(optimizer)
    run(optimizer, params, 2)
    missing = {*READINGS} - known(thermometer.read()).keys()
    assert missing == {"freeze_out", "freeze_out_error", "bath_ratio"}


def test_a_window_in_which_nothing_was_measured():
    """One warning says why; the next window is read as ever."""
    (x,) = params = parameters((3,))
    optimizer = SGD([x], lr=0.1, momentum=0.5)
    thermometer = Thermometer(optimizer)
    run(optimizer, params, 12)
    thermometer.reset()
    run(optimizer, params, 3)
    message = "no reading: none of the 3 steps of this window was measured; after the first 10 "
    with pytest.warns(UserWarning, match=message):
        assert math.isnan(thermometer.read()["rescaled_temperature"])
    thermometer.read()  # no second warning
    run(optimizer, params, 5)
    assert thermometer.read()["rescaled_temperature"] > 0


def test_it_never_stops_the_training():
    """A function of the user that raises is told of at the reading, once; the steps are taken."""
    (x,) = params = parameters((3,))
    twin = parameters((3,))
    optimizer, other = (SGD(p, lr=0.1, momentum=0.5) for p in (params, twin))
    wrong = Thermometer(optimizer, dt2=lambda group: group["learning_rate"])
    right = Thermometer(optimizer, every=1, span=1)
    run(optimizer, params, 3)
    run(other, twin, 3)
    assert torch.equal(x, twin[0])
    with pytest.warns(UserWarning, match="no reading: KeyError: 'learning_rate'"):
        assert math.isnan(wrong.read()["temperature"])
    wrong.read()
    assert right.read()["temperature"] > 0


def test_removed_it_is_gone():
    """It has no hooks in the optimizer, keeps no copy, and reads what it has seen."""
    (x,) = params = parameters((3,))
    optimizer = SGD([x], lr=0.1)
    thermometer = Thermometer(optimizer, every=1, span=2)
    run(optimizer, params, 2)
    thermometer.remove()
    thermometer.remove()
    run(optimizer, params, 2)
    assert thermometer.read()["steps"] == 2
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
