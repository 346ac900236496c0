"""Which way the PyTorch adapter computes a step: the fast one where it is right, and only there."""

from functools import wraps

import pytest
import torch
from torch_tools import PATHS, assert_rounded, draw, exact, follow, gradients, parameters, path

from coolmomentum.torch import CoolMomentum, _dispatch, _kernels

COOLING = {"total_steps": 3, "rho0": 0.5, "lr": 0.125}


@pytest.fixture
def calls(monkeypatch):
    """How long the lists were in each call of the fused kernel and of one foreach function."""

    def counting(kernel, lengths):
        @wraps(kernel)
        def counted_kernel(tensors, *args, **kwargs):
            lengths.append(len(tensors))
            return kernel(tensors, *args, **kwargs)

        return counted_kernel

    counted = {"_fused_sgd_": [], "_foreach_mul_": []}
    for name, lengths in counted.items():
        monkeypatch.setattr(torch, name, counting(getattr(torch, name), lengths))
    return counted


@pytest.mark.parametrize(
    ("path", "fused", "foreach"),
    [
        ("default", [5], []),
        ("fused", [5], []),
        ("foreach", [], [5]),
        ("one by one", [], [1] * 5),
        ("capturable", [], [5]),
    ],
)
def test_float32_on_the_cpu(calls, path, fused, foreach):
    """One call of the fused kernel by default, one of each foreach function, or one a tensor."""
    params = parameters(*[(3, 4)] * 5, dtype=torch.float32)
    follow(params, CoolMomentum(params, **COOLING, **PATHS[path]), gradients(params, 1))
    assert calls == {"_fused_sgd_": fused, "_foreach_mul_": foreach}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64])
def test_the_kernel_is_not_for_every_dtype(calls, dtype):
    """Half precision is broken in the kernel on the CPU (pytorch#191763), complex is not in it."""
    params = [draw(20).to(dtype).requires_grad_()]
    follow(params, CoolMomentum(params, **COOLING), [[draw(20).to(dtype)]])
    assert calls == {"_fused_sgd_": [], "_foreach_mul_": [1]}


def test_float32_displacements_of_half_precision_are_not_for_the_kernel(calls):
    """The kernel wants one dtype."""
    params = parameters((20,), dtype=torch.bfloat16)
    wide = CoolMomentum(params, **COOLING, displacement_dtype=torch.float32)
    follow(params, wide, gradients(params, 1))
    assert calls == {"_fused_sgd_": [], "_foreach_mul_": [1]}


def test_channels_last_is_for_the_kernel(calls):
    """Displacements are laid out as their parameters, so that the kernel can be used."""
    image = draw(2, 3, 4, 5, dtype=torch.float32).contiguous(memory_format=torch.channels_last)
    param = image.requires_grad_()
    optimizer = CoolMomentum([param], **COOLING)
    follow([param], optimizer, [[torch.ones_like(param)]])
    assert optimizer.state[param]["displacement"].stride() == param.stride()
    assert calls["_fused_sgd_"] == [1]


def test_kinds_of_tensors_are_sorted_out(calls):
    """In a mixed group each kind goes its own way, half precision on the CPU one by one."""
    params = parameters(*[(4,)] * 3, dtype=torch.float32)
    params += parameters(*[(4,)] * 2, dtype=torch.bfloat16)
    follow(params, CoolMomentum(params, **COOLING), gradients(params, 1))
    assert calls == {"_fused_sgd_": [3], "_foreach_mul_": [1, 1]}


@path
def test_a_strided_displacement_from_elsewhere(path):
    """Equal strides are not enough for the kernel: a loaded displacement may have gaps as well."""

    def every_second(x):
        return torch.stack([x, torch.full_like(x, 7)], dim=-1)[..., 0]

    params = parameters((4, 8), dtype=torch.float32)
    grads = gradients(params, 3)
    xs, _ = exact(params, grads, **COOLING)
    param = every_second(params[0].detach()).requires_grad_()
    optimizer = CoolMomentum([param], **COOLING, **path)
    follow([param], optimizer, [[every_second(g[0])] for g in grads[:1]])
    saved = optimizer.state_dict()
    saved["state"][0]["displacement"] = every_second(saved["state"][0]["displacement"])
    optimizer.load_state_dict(saved)
    assert optimizer.state[param]["displacement"].stride() == param.stride() == (16, 2)
    follow([param], optimizer, [[every_second(g[0])] for g in grads[1:]])
    assert_rounded([param], xs, 3)


def test_a_torch_without_the_kernel(monkeypatch):
    """The probe then says so, and the steps go another way."""
    monkeypatch.delattr(torch, "_fused_sgd_")
    assert not _kernels.kernel_works()
    monkeypatch.setattr(_kernels, "FUSED_DTYPES", {"cpu": (), "cuda": ()})
    params = parameters((4,), dtype=torch.float32)
    grads = gradients(params, 3)
    xs, _ = exact(params, grads, **COOLING)
    follow(params, CoolMomentum(params, **COOLING, fused=True), grads)
    assert_rounded(params, xs, 3)


def test_the_probe_notices_a_kernel_that_computes_something_else(monkeypatch):
    """As PyTorch 2.13 does in half precision, where it leaves the parameters as they are."""
    monkeypatch.setattr(torch, "_fused_sgd_", lambda *args, **settings: None)
    assert not _kernels.kernel_works()


@pytest.mark.parametrize(("odd", "foreach"), [("layout", [1]), ("class", [])])
def test_the_odd_one_out_goes_its_own_way(calls, odd, foreach):
    """What is right for the first tensor is asked of the last as well."""
    params = parameters(*[(2, 3, 4, 5)] * 2, dtype=torch.float32)
    grads = gradients(params, 1)
    xs, _ = exact(params, grads, **COOLING)
    if odd == "layout":
        grads[0][1] = grads[0][1].contiguous(memory_format=torch.channels_last)
    else:
        params[1] = params[1].detach().as_subclass(Subclass).requires_grad_()
    follow(params, CoolMomentum(params, **COOLING), grads)
    assert calls == {"_fused_sgd_": [1], "_foreach_mul_": foreach}
    assert_rounded([param.as_subclass(torch.Tensor) for param in params], xs, 1)


class Subclass(torch.Tensor):
    """Of which nothing is known."""


def test_a_parameter_that_is_laid_out_anew_between_steps(calls):
    """The path is chosen anew in each step: here the parameter's memory changes order."""
    params = parameters(*[(2, 3, 4, 5)] * 2, dtype=torch.float32)
    grads = gradients(params, 3)
    xs, _ = exact(params, grads, **COOLING)
    optimizer = CoolMomentum(params, **COOLING)
    follow(params, optimizer, grads[:1])
    params[1].data = params[1].data.contiguous(memory_format=torch.channels_last)
    follow(params, optimizer, grads[1:])
    assert calls == {"_fused_sgd_": [2, 1, 1], "_foreach_mul_": [1, 1]}
    assert_rounded(params, xs, 3)


@pytest.fixture
def asked(monkeypatch):
    """One entry for each parameter whose kernel was selected."""
    entries = []
    select_kernel = _dispatch.select_kernel

    def counting(*arguments):
        entries.append(1)
        return select_kernel(*arguments)

    monkeypatch.setattr(_dispatch, "select_kernel", counting)
    return entries


MIXED = {
    "alike": lambda params: None,
    "channels last": lambda params: params[1].data.resize_(
        params[1].shape, memory_format=torch.channels_last
    ),
}


@pytest.mark.parametrize("kinds", MIXED.values(), ids=MIXED.keys())
def test_tensors_are_sorted_out_once(asked, kinds):
    """With many small tensors that takes longer than the step; new gradients make no difference."""
    params = parameters(*[(2, 3, 4, 5)] * 3, dtype=torch.float32)
    kinds(params)
    optimizer = CoolMomentum(params, **COOLING)
    follow(params, optimizer, [[torch.ones_like(param) for param in params] for _ in range(4)])
    assert len(asked) == 3


def in_double(params, optimizer):
    """As ``module.double()`` and a loaded state do it, behind the optimizer's back."""
    for param in params:
        param.grad = None
        param.data = param.data.double()
        state = optimizer.state[param]
        state["displacement"] = state["displacement"].double()


def another_class(params, optimizer):
    """The parameter is replaced, its state kept."""
    params[1] = params[1].detach().as_subclass(Subclass).requires_grad_()
    optimizer.state[params[1]] = optimizer.state.pop(optimizer.param_groups[0]["params"][1])
    optimizer.param_groups[0]["params"][1] = params[1]


def a_strided_displacement(params, optimizer):
    """With gaps in its memory."""
    state = optimizer.state[params[1]]
    state["displacement"] = torch.stack([state["displacement"]] * 2, dim=-1)[..., 0]


def a_setting(params, optimizer):
    """Of the parameter group."""
    optimizer.param_groups[0]["foreach"] = True


def a_frozen_parameter(params, optimizer):
    """It gets no gradients any more."""
    params[1].grad = None
    del params[1]


CHANGES = {
    change.__name__: (change, fused, foreach)
    for change, fused, foreach in [
        (in_double, [2], [2, 2]),
        (another_class, [2, 1, 1], []),
        (a_strided_displacement, [2, 1, 1], [1, 1]),
        (a_setting, [2], [2, 2]),
        (a_frozen_parameter, [2, 1, 1], []),
    ]
}


@pytest.mark.parametrize(("change", "fused", "foreach"), CHANGES.values(), ids=CHANGES.keys())
def test_what_changes_between_steps_is_noticed(calls, asked, change, fused, foreach):
    """The step after the change selects kernels anew, and the one after that knows them again."""
    params = parameters(*[(2, 3)] * 2, dtype=torch.float32)
    grads = gradients(params, 3)
    xs, _ = exact(params, grads, **COOLING)
    optimizer = CoolMomentum(params, **COOLING)
    follow(params, optimizer, grads[:1])
    change(params, optimizer)
    left = len(params)
    for step in grads[1:]:
        follow(params, optimizer, [[g.to(params[0].dtype) for g in step[:left]]])
    assert calls == {"_fused_sgd_": fused, "_foreach_mul_": foreach}
    single = [param.detach().as_subclass(torch.Tensor).float() for param in params]
    assert_rounded(single, xs[:left], 3)
    assert len(asked) == 2 + left


def transposed(x):
    """The same numbers in the other order of memory."""
    return x.t().contiguous().t()


def lazily_negated(x):
    """The same numbers, whose memory holds the negative."""
    return torch._neg_view(-x)


GRADIENTS = {
    "layout": transposed,
    "negative bit": lazily_negated,
    "expanded": lambda x: x[0, 0].expand(x.shape),
}


@pytest.mark.parametrize("other", GRADIENTS.values(), ids=GRADIENTS.keys())
def test_a_gradient_of_another_kind_is_noticed(other):
    """Only its bits or strides tell; the kernel of the step before would read its memory."""
    params = parameters(*[(3, 3)] * 2, dtype=torch.float32)
    grads = gradients(params, 4)
    grads = [[first, other(second) if n % 2 else second] for n, (first, second) in enumerate(grads)]
    xs, _ = exact(params, grads, **COOLING)
    follow(params, CoolMomentum(params, **COOLING), grads)
    assert_rounded(params, xs, 4)


def test_a_displacement_whose_memory_is_replaced_is_noticed():
    """The tensor in the state stays, its ``data`` has another order."""
    params = parameters(*[(3, 3)] * 2, dtype=torch.float32)
    grads = gradients(params, 4)
    xs, _ = exact(params, grads, **COOLING)
    optimizer = CoolMomentum(params, **COOLING)
    follow(params, optimizer, grads[:2])
    moved = optimizer.state[params[1]]["displacement"]
    moved.data = transposed(moved)
    follow(params, optimizer, grads[2:])
    assert_rounded(params, xs, 4)
