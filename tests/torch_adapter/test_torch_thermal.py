"""What PyTorch alone has of a heat bath: every path of the step, closures, AMP, copies, resumes."""

import collections
import copy
import io
import math
import warnings

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch_tools import PATHS, draw, gradients, parameters, same, wrapped

from coolmomentum import random_force, random_force_scale
from coolmomentum.torch import CoolMomentum, ThermalNoise, Thermometer

SHAPES = [(17,), (3, 4), ()]
HOT = {"lr": 0.125, "law": "constant", "rho0": 0.9}
EAGER = {name: path for name, path in PATHS.items() if name != "capturable"}


def walked(params, grads, temperature=1.5, seed=3, before=lambda optimizer: None, **settings):
    """The optimizer after steps in a bath through given gradients."""
    optimizer = CoolMomentum(params, **{**HOT, **settings})
    ThermalNoise(optimizer, temperature, seed=seed)
    before(optimizer)
    for given in grads:
        for param, grad in zip(params, given, strict=True):
            param.grad = grad.clone()
        optimizer.step()
        # What the user sees is what he gave.
        assert same([p.grad for p in params], given)
    return optimizer


@pytest.mark.parametrize("path", EAGER.values(), ids=EAGER.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_path_draws_the_same(path, dtype):
    """The walk on a path is that of the tensors one by one, but for the last digits of a step."""
    ours, theirs = parameters(*SHAPES, dtype=dtype), parameters(*SHAPES, dtype=dtype)
    grads = gradients(ours, 5)
    walked(ours, grads, **path)
    walked(theirs, grads, **PATHS["one by one"])
    for x, y in zip(ours, theirs, strict=True):
        # 5 steps, each with some 8 roundings of numbers below 8
        torch.testing.assert_close(x, y, rtol=0, atol=5 * 8 * 8 * torch.finfo(dtype).eps)
    still = parameters(*SHAPES, dtype=dtype)
    assert not any((x == y).all() for x, y in zip(ours, still, strict=True))


def test_the_force_goes_before_weight_decay_and_maximize():
    """It is subtracted from the gradient that the closure gives, by the numbers of the core."""
    (x,) = parameters((1000,))
    start, g = x.detach().clone(), draw(1000)
    optimizer = CoolMomentum([x], **HOT, weight_decay=0.25, maximize=True)
    ThermalNoise(optimizer, 1.5, noise="white", seed=3)

    def closure():
        x.grad = g.clone()
        return torch.tensor(0.0)

    optimizer.step(closure)
    eta = 0.125 * 1.9 / 2
    force = g - (0.25 * start - (x.detach() - start) / -eta)
    assert force.std().item() == pytest.approx(random_force_scale(1.5, 0.125, 0.9), rel=0.1)
    assert same([x.grad], [g])


@pytest.mark.parametrize("cut", [1, 2, 5])
def test_a_resumed_run_draws_the_same_numbers(cut):
    """A new optimizer with a new bath goes on from the checkpoint bit for bit."""
    params = parameters(*SHAPES)
    grads = gradients(params, 8)
    whole = [p.detach().clone().requires_grad_() for p in params]
    walked(whole, grads, lambda n: 2.0 / (1 + n))
    optimizer = walked(params, grads[:cut], lambda n: 2.0 / (1 + n))
    file = io.BytesIO()
    torch.save([optimizer.state_dict(), [p.detach() for p in params]], file)
    file.seek(0)
    state, saved = torch.load(file, weights_only=True)
    assert set(state["state"][0]) == {"displacement"}
    again = [p.clone().requires_grad_() for p in saved]
    walked(again, grads[cut:], lambda n: 2.0 / (1 + n), before=lambda o: o.load_state_dict(state))
    assert same(again, whole)


def test_a_copy_of_the_optimizer_has_the_bath():
    """As deepcopy and pickles of optimizers bring all that a step needs."""
    (x,) = parameters((5,))
    optimizer = walked([x], gradients([x], 2))
    x2, twin = copy.deepcopy((x, optimizer))
    for param, o in ((x, optimizer), (x2, twin)):
        param.grad = torch.zeros(5, dtype=torch.float64)
        o.step()
    assert same([x], [x2])
    assert twin._bath is not optimizer._bath


def test_a_skipped_step_draws_nothing():
    """GradScaler unscales first, and after an overflow the next step has the same numbers."""
    for path in ({}, {"fused": True}):
        params, plain = parameters(*SHAPES), parameters(*SHAPES)
        grads = gradients(params, 3)
        optimizer = CoolMomentum(params, **HOT, **path)
        ThermalNoise(optimizer, 1.5, seed=3)
        scaler = torch.amp.GradScaler(device="cpu", init_scale=2.0**10, growth_interval=1000)
        for n, given in enumerate([grads[0], grads[1], grads[1], grads[2]]):
            optimizer.zero_grad()
            loss = sum((p * g).sum() for p, g in zip(params, given, strict=True))
            scaler.scale(loss * math.inf if n == 1 else loss).backward()
            scaler.step(optimizer)
            scaler.update()
        walked(plain, grads, **path)
        assert same(params, plain)
        assert same([p.grad for p in params], grads[2])


def test_a_parameter_has_the_numbers_of_its_place():
    """Whether others have gradients or not, and in whatever group it is."""
    (x, y), (x2, y2) = parameters((4,), (4,)), parameters((4,), (4,))
    grads = gradients([x, y], 1)
    walked([x, y], grads)
    optimizer = CoolMomentum([{"params": [x2]}, {"params": [y2]}], **HOT)
    ThermalNoise(optimizer, 1.5, seed=3)
    y2.grad = grads[0][1]
    optimizer.step()
    assert same([y], [y2])
    assert same([x2], parameters((4,)))


def test_a_bath_that_is_removed_is_gone():
    """``remove``, or the end of ``with``: the step is that without one, bit for bit."""
    (x,), (y,) = parameters((6,)), parameters((6,))
    ours, theirs = CoolMomentum([x], **HOT), CoolMomentum([y], **HOT)
    with ThermalNoise(ours, 1.0):
        pass
    for param, optimizer in ((x, ours), (y, theirs)):
        param.grad = draw(6, seed=9)
        optimizer.step()
    assert same([x], [y])
    ThermalNoise(ours, 1.0)
    with pytest.raises(ValueError, match="no other ThermalNoise"):
        ThermalNoise(ours, 1.0)


def test_the_learning_rate_of_the_last_step_counts():
    """A rate that falls takes off what the displacement brings along."""
    x = torch.zeros(50_000, requires_grad=True)
    optimizer = CoolMomentum([x], lr=0.2, law="constant", rho0=0.5)
    ThermalNoise(optimizer, 1.0, noise="white")
    for lr in (0.2, 0.1):
        optimizer.param_groups[0]["lr"] = lr
        before, x.grad = x.detach().clone(), torch.zeros_like(x)
        last = 0 if lr == 0.2 else optimizer.state[x]["displacement"].clone()
        optimizer.step()
    kick = x.detach() - before - 0.5 * last
    expected = 0.1 - 0.25 * 0.2  # T (lr - rho**2 last)
    assert kick.var().item() == pytest.approx(expected, rel=5 * (2 / 50_000) ** 0.5)


# PyTorch 2.11 warns of list.extend where it goes on after the graph's break.
@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace:UserWarning")
def test_a_compiled_step_draws_as_the_eager_one():
    """Each step draws numbers of its own, outside of the compiled graphs, and compiles no more."""
    ours, theirs = (
        parameters(*SHAPES, dtype=torch.float32),
        parameters(*SHAPES, dtype=torch.float32),
    )
    grads = gradients(ours, 6)
    optimizer = CoolMomentum(ours, **HOT)
    ThermalNoise(optimizer, 1.5, seed=3)
    step = torch.compile(optimizer.step, backend="aot_eager")
    torch._dynamo.utils.counters.clear()
    seen = []
    for given in grads:
        for param, grad in zip(ours, given, strict=True):
            param.grad = grad.clone()
        step()
        seen.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    walked(theirs, grads)
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=6 * 8 * 8 * torch.finfo(x.dtype).eps)
    assert seen[2:] == seen[2:3] * 4


def test_a_capturable_step_is_refused():
    """Its graph would draw the same numbers in every replay; nothing has moved."""
    (x,) = parameters((3,))
    optimizer = CoolMomentum([x], **HOT, capturable=True)
    ThermalNoise(optimizer, 1.0)
    x.grad = torch.ones_like(x)
    with pytest.raises(RuntimeError, match="capturable"):
        optimizer.step()
    assert same([x], parameters((3,)))


def test_a_differentiable_step_keeps_the_derivatives_by_the_gradients():
    """The force is a constant to them, against finite differences; by lr it would not be one."""

    def stepped(start, grad, lr=0.125):
        param = start.clone()
        optimizer = CoolMomentum([param], **HOT | {"lr": lr}, differentiable=True)
        ThermalNoise(optimizer, 1.5)
        for _ in range(2):
            param.grad = grad * (1 + param)
            optimizer.step()
        return param

    inputs = [draw(3, seed=seed).requires_grad_() for seed in (0, 1)]
    assert torch.autograd.gradcheck(stepped, inputs)
    assert torch.autograd.gradgradcheck(stepped, inputs)
    with pytest.raises(RuntimeError, match="lr must not require grad"):
        stepped(*inputs, lr=torch.tensor(0.125, requires_grad=True))


def test_sparse_gradients_are_refused():
    """As without a bath: nothing has moved, and the next step draws as if it were the first."""
    ours, theirs = parameters((3,), (4, 2)), parameters((3,), (4, 2))
    (dense, rows), good = gradients(ours, 1)[0], gradients(ours, 1)
    optimizer = CoolMomentum(ours, **HOT)
    ThermalNoise(optimizer, 1.5, seed=3)
    ours[0].grad, ours[1].grad = dense, rows.to_sparse()
    with pytest.raises(RuntimeError, match="CoolMomentum does not support sparse gradients"):
        optimizer.step()
    assert same(ours, theirs)
    for param, grad in zip(ours, good[0], strict=True):
        param.grad = grad
    optimizer.step()
    walked(theirs, good)
    assert same(ours, theirs)


def test_complex_parameters_feel_it_in_both_parts():
    """Each part of ``|x|**2 / 2`` has the temperature, within 5 standard errors of 20,000."""
    x = torch.zeros(20_000, dtype=torch.complex64, requires_grad=True)
    optimizer = CoolMomentum([x], lr=0.5, law="constant", rho0=0.5)
    ThermalNoise(optimizer, 2.0)
    for _ in range(60):
        x.grad = x.detach().clone()
        optimizer.step()
    for part in (x.detach().real, x.detach().imag):
        assert (part**2).mean().item() == pytest.approx(2.0, rel=5 * (2 / 20_000) ** 0.5)


def test_one_normal_number_for_each_coordinate_of_a_step(monkeypatch):
    """Averaged noise keeps the numbers of the step before; only a resumed run draws them again."""
    drawn = []
    monkeypatch.setattr(torch, "randn", counting(torch.randn, drawn))
    params = parameters((17,), (3, 4))
    grads = gradients(params, 4)
    drawn.clear()
    optimizer = walked(params, grads)
    assert sum(drawn) == 4 * (17 + 12)
    optimizer._bath._kept.clear()
    for param, grad in zip(params, grads[0], strict=True):
        param.grad = grad
    optimizer.step()
    assert sum(drawn) == 6 * (17 + 12)


def counting(randn, drawn):
    """``torch.randn`` that notes how many numbers it gives."""

    def noted(*args, **kwargs):
        result = randn(*args, **kwargs)
        drawn.append(result.numel())
        return result

    return noted


@wrapped
def test_in_a_wrapper_it_heats_the_optimizer_that_steps(wrap):
    """A step does not look at a wrapper, though it may pose as a CoolMomentum."""
    ours, theirs = parameters(*SHAPES), parameters(*SHAPES)
    grads = gradients(ours, 3)
    expected = walked(theirs, grads)
    optimizer = CoolMomentum(ours, **HOT)
    with ThermalNoise(wrap(optimizer), 1.5, seed=3):
        for given in grads:
            for param, grad in zip(ours, given, strict=True):
                param.grad = grad.clone()
            optimizer.step()
    assert same(ours, theirs)
    assert expected._bath is not None
    assert optimizer._bath is None


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"temperature": -1.0}, ValueError, "temperature must be finite and >= 0: -1.0"),
        ({"temperature": "hot"}, TypeError, "temperature must be a real number: 'hot'"),
        ({"temperature": 1, "noise": "pink"}, ValueError, "noise must be one of averaged, white"),
        ({"temperature": 1, "seed": -1}, ValueError, "seed must be >= 0: -1"),
    ],
    ids=str,
)
def test_bad_arguments(settings, error, message):
    """They fail at construction, and leave the optimizer without a bath."""
    (x,) = parameters((3,))
    optimizer = CoolMomentum([x], **HOT)
    with pytest.raises(error, match=message):
        ThermalNoise(optimizer, **settings)
    assert optimizer._bath is None
    with pytest.raises(TypeError, match=r"coolmomentum\.torch\.CoolMomentum: SGD"):
        ThermalNoise(torch.optim.SGD([x]), 1.0)


def test_a_temperature_that_is_none_fails_before_anything_moves():
    """A function of the step that becomes negative."""
    (x,) = parameters((3,))
    optimizer = CoolMomentum([x], **HOT)
    ThermalNoise(optimizer, lambda n: -1.0)
    x.grad = torch.ones_like(x)
    with pytest.raises(ValueError, match=r"temperature\(0\) must be finite and >= 0: -1.0"):
        optimizer.step()
    assert same([x], parameters((3,)))
    assert optimizer.param_groups[0]["cooling_step"] == 0


# --- the thermometer ------------------------------------------------------------------------------


def reading(k, heat=0.0, **told):
    """Of 20,000 walkers on ``k x**2 / 2`` from rest, 180 of 200 steps, perhaps with other noise."""
    x = torch.zeros(20_000, requires_grad=True)
    optimizer = CoolMomentum([x], lr=0.5, law="constant", rho0=0.5)
    ThermalNoise(optimizer, 2.0, **told)
    thermometer = Thermometer(optimizer, every=1, span=20)
    for n in range(200):
        x.grad = k * x.detach() + heat * draw(20_000, dtype=torch.float32, seed=n)
        optimizer.step()
        if n == 19:
            thermometer.reset()
    return thermometer.read()


def test_the_thermometer_reads_the_bath():
    """The ratio is 1, within the scatter of some 1e6 squares; k dt**2 is 2, and nothing warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = reading(4.0)
    assert found["bath_ratio"] == pytest.approx(1, abs=0.005)
    assert found["curvature"] == pytest.approx(2, abs=0.02)
    assert math.isnan(found["three_point_temperature"])


def test_it_warns_of_a_walk_hotter_than_its_bath():
    """Noise of the gradient, or white noise at a large step."""
    with pytest.warns(UserWarning, match="times as hot as its bath: minibatch gradients"):
        assert reading(4.0, heat=2.0)["bath_ratio"] > 1.2
    with pytest.warns(UserWarning, match="the step is too large for the loss"):
        assert reading(4.0, noise="white")["bath_ratio"] == pytest.approx(2, rel=0.01)


class Whole(torch.optim.Optimizer):
    """In place of a ZeroRedundancyOptimizer: all parameters, and the optimizer of some."""

    def __init__(self, params, optim):
        super().__init__(params, {})
        self.optim = optim


def test_a_wrapper_has_the_parameters_that_it_steps():
    """Else nothing is heated, and a step in which one is missing says so and moves nothing."""
    params = parameters((3,), (3,))
    inner = CoolMomentum(params, **HOT)
    message = "^optimizer must have in its param_groups all that its .optim steps: Whole$"
    with pytest.raises(RuntimeError, match=message):
        ThermalNoise(Whole(params[:1], inner), 1.5)
    whole = Whole(params, inner)
    ThermalNoise(whole, 1.5)  # so there is no other
    whole.param_groups[0]["params"] = params[1:]
    before = [param.detach().clone() for param in params]
    for param in params:
        param.grad = torch.ones_like(param)
    with pytest.raises(RuntimeError, match=message):
        inner.step()
    assert same(params, before)


def test_an_attribute_of_that_name_is_the_users_own():
    """An optimizer of ours is heated itself, whatever a subclass calls optim."""

    class Own(CoolMomentum):
        optim = "mine"

    (x,) = parameters((3,))
    optimizer = Own([x], **HOT)
    ThermalNoise(optimizer, 1.5)
    x.grad = torch.zeros_like(x)
    optimizer.step()
    assert x.detach().ne(parameters((3,))[0].detach()).all()


def test_the_force_is_that_of_the_core():
    """From the numbers that the bath keeps, of two successive steps."""
    (x,) = parameters((1000,))
    optimizer = CoolMomentum([x], **HOT)
    bath = ThermalNoise(optimizer, 1.5)
    kept = []
    for _ in range(2):
        x.grad, before = torch.zeros_like(x), x.detach().clone()
        last = optimizer.state[x].get("displacement", torch.zeros(())).clone()
        optimizer.step()
        kept.append(bath._kept[0][1].clone())
    scale, eta = random_force_scale(1.5, 0.125, 0.9), 0.125 * 1.9 / 2
    expected = before + 0.9 * last + eta * random_force(*kept, scale)
    torch.testing.assert_close(x.detach(), expected, rtol=0, atol=1e-14)


def test_a_force_costs_a_draw_and_three_passes():
    """Beside the step: one normal number, a sum, a product and a difference for each coordinate."""
    counts = []
    for noise in (None, "averaged", "white"):
        (x,) = parameters((1000,), dtype=torch.float32)
        optimizer = CoolMomentum([x], **HOT)
        if noise:
            ThermalNoise(optimizer, 1.0, noise=noise)
        for _ in range(3):
            x.grad = torch.ones_like(x)
            with Counted() as counted:
                optimizer.step()
        counts.append(counted.passes)
    bare, averaged, white = counts
    assert sorted(averaged - bare) == ["add.Tensor", "mul.Tensor", "randn.generator", "sub.Tensor"]
    assert sorted(white - bare) == ["mul.Tensor", "randn.generator", "sub.Tensor"]
    assert (averaged - bare).total() == 4


class Counted(TorchDispatchMode):
    """Counts the operations that give a tensor of 1,000 numbers."""

    def __init__(self):
        super().__init__()
        self.passes = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run it."""
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.numel() == 1000:
            self.passes[str(func).removeprefix("aten.")] += 1
        return result
