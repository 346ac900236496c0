"""The PyTorch adapter on every kind of tensor: layouts, dtypes, complex, sparse, meta, graphs."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch_tools import (
    assert_rounded,
    clock,
    displacements,
    draw,
    exact,
    follow,
    gradients,
    parameters,
    path,
    unfused_path,
)

from coolmomentum.torch import CoolMomentum

COOLING = {"total_steps": 3, "rho0": 0.5, "lr": 0.125}  # rho is 0 in the steps after the third
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
dtypes = pytest.mark.parametrize("dtype", DTYPES)
decays = pytest.mark.parametrize(
    "decay", [{}, {"weight_decay": 0.25}, {"weight_decay": 0.25, "maximize": True}]
)


def last(tensor):
    """The same in channels-last layout."""
    return tensor.contiguous(memory_format=torch.channels_last)


def strided(tensor):
    """The same as every second element of a larger tensor of sevens."""
    return torch.stack([tensor, torch.full_like(tensor, 7)], dim=-1)[..., 0]


IMAGE = (2, 4, 3, 5)
LAYOUTS = {  # shape, layout of the parameter, layout of the gradient
    "plain": (IMAGE, None, None),
    "channels last": (IMAGE, last, last),
    "channels last, gradient not": (IMAGE, last, None),
    "gradient channels last": (IMAGE, None, last),
    "transposed": ((8, 6), torch.Tensor.t, torch.Tensor.t),
    "transposed, gradient not": ((6, 6), torch.Tensor.t, None),
    "strided": (IMAGE, strided, None),
    "gradient strided": (IMAGE, None, strided),
    "both strided": (IMAGE, strided, strided),
    "gradient expanded": ((3, 5), None, lambda g: g[:, :1].expand(3, 5)),
    "scalar": ((), None, None),
    "one": ((1,), None, None),
    "empty": ((0, 3), None, None),
    "one less than a vector of half": ((15,), None, None),
    "a vector of half": ((16,), None, None),
    "one more than a vector of half": ((17,), None, None),
    "many": ((1000,), None, None),
}


def laid_out(name, dtype, steps):
    """A parameter in a layout, and gradients in theirs."""
    shape, of_param, of_grad = LAYOUTS[name]
    of_param, of_grad = of_param or torch.clone, of_grad or torch.clone
    param = of_param(draw(*shape, dtype=dtype)).detach().requires_grad_()
    return param, [of_grad(draw(*shape, dtype=dtype, seed=n + 1)) for n in range(steps)]


@path
@dtypes
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(path, dtype, layout):
    """Whatever the layouts of parameter and gradient, a step is the oracle's."""
    param, grads = laid_out(layout, dtype, 5)
    grads = [[g] for g in grads]
    xs, dxs = exact([param], grads, **COOLING)
    optimizer = CoolMomentum([param], **COOLING, **path)
    strides = param.stride()
    follow([param], optimizer, grads)
    assert_rounded([param], xs, 5)
    assert_rounded(displacements([param], optimizer), dxs, 5)
    assert param.stride() == strides
    assert param.dtype == optimizer.state[param]["displacement"].dtype == dtype


@path
def test_a_strided_parameter_leaves_its_neighbours_alone(path):
    """A parameter that is every second element of a tensor does not move the others."""
    whole = torch.full((40,), 7.0)
    param = whole[::2].requires_grad_(False).detach().requires_grad_()
    optimizer = CoolMomentum([param], **COOLING, **path)
    follow([param], optimizer, [[torch.ones(20)]] * 4)
    assert whole[1::2].tolist() == [7.0] * 20
    assert set(whole[::2].tolist()) != {7.0}


@path
@decays
def test_mixed_layouts_and_dtypes_in_one_group(path, decay):
    """All layouts and dtypes in one parameter group each move as if they were alone."""
    laid = [laid_out(name, dtype, 5) for name in LAYOUTS for dtype in DTYPES]
    params = [param for param, _ in laid]
    grads = [[gs[n] for _, gs in laid] for n in range(5)]
    xs, dxs = exact(params, grads, **COOLING, **decay)
    optimizer = CoolMomentum(params, **COOLING, **decay, **path)
    follow(params, optimizer, grads)
    assert_rounded(params, xs, 5)
    assert_rounded(displacements(params, optimizer), dxs, 5)


@path
def test_gradients_are_left_as_they_were(path):
    """A step reads gradients and does not write them, whatever it adds to them."""
    params = parameters((17,), (3, 4))
    grads = gradients(params, 1)
    before = [g.clone() for g in grads[0]]
    follow(
        params,
        CoolMomentum(params, **COOLING, weight_decay=0.5, maximize=True, **path),
        grads,
    )
    assert all(torch.equal(g, b) for g, b in zip(grads[0], before, strict=True))


@dtypes
@decays
def test_fused_trains_as_the_loop(dtype, decay):
    """A network with a layer frozen for a while, fused and one by one: equal to rounding.

    Half precision is not for the fused kernel on the CPU (pytorch#191763): bit for bit equal.
    """

    def trained(**path):
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Linear(2, 17), torch.nn.Sigmoid(), torch.nn.Linear(17, 1)
        ).to(dtype)
        spare = torch.tensor(0.5, dtype=dtype, requires_grad=True)
        optimizer = CoolMomentum([*model.parameters(), spare], **COOLING, **decay, **path)
        for n in range(7):
            optimizer.zero_grad()
            model[2].requires_grad_(n not in (3, 4))
            if n != 2:  # a step without gradients
                model(torch.ones(3, 2, dtype=dtype)).sum().backward()
            optimizer.step()
        assert clock(optimizer) == 6
        return list(model.parameters())

    for fused, loop in zip(trained(fused=True), trained(foreach=False), strict=True):
        if dtype in (torch.bfloat16, torch.float16):
            assert torch.equal(fused, loop)
        else:
            # Two runs of 6 steps, each within the bound of assert_rounded; the gradient of a sum of
            # 3 sigmoids hands on less than half of an error in the parameters at lr = 1/8.
            size = 1 + float(loop.detach().abs().max())
            atol = 2 * 2 * 6 * 6 * torch.finfo(dtype).eps * size
            torch.testing.assert_close(fused, loop, rtol=0, atol=atol)


def test_fused_with_denormals_flushed_to_zero():
    """The kernel, which refuses momentum 0, takes the steps with rho = 0 in this mode too."""
    (param,) = parameters((20,), dtype=torch.float32)
    grads = gradients([param], 5)
    xs, _ = exact([param], grads, **COOLING)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormal numbers")
    try:
        follow([param], CoolMomentum([param], **COOLING, fused=True), grads)
    finally:
        torch.set_flush_denormal(False)
    assert_rounded([param], xs, 5)


@unfused_path
@decays
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_is_a_pair_of_real_numbers(path, decay, dtype):
    """Complex parameters, beside real ones, move as their real and imaginary parts do."""
    shapes = [(10, 5), (), (17,)]
    pairs = [draw(*shape, 2, seed=i) for i, shape in enumerate(shapes)]
    params = [torch.view_as_complex(pair).to(dtype).requires_grad_() for pair in pairs]
    params.append(draw(3, dtype=dtype.to_real()).requires_grad_())
    grads = [
        [draw(*p.shape, 2, seed=10 * n + i) for i, p in enumerate(params[:-1])] for n in range(5)
    ]
    grads = [[torch.view_as_complex(g).to(dtype) for g in gs] for gs in grads]
    grads = [[*gs, draw(3, dtype=dtype.to_real(), seed=n)] for n, gs in enumerate(grads)]
    real = [torch.view_as_real(p.detach()) if p.is_complex() else p for p in params]
    real_grads = [[torch.view_as_real(g) if g.is_complex() else g for g in gs] for gs in grads]
    xs, _ = exact(real, real_grads, **COOLING, **decay)
    follow(params, CoolMomentum(params, **COOLING, **decay, **path), grads)
    ours = [torch.view_as_real(p.detach()) if p.is_complex() else p for p in params]
    assert_rounded(ours, xs, 5)


@path
def test_gradients_that_are_lazily_negated(path):
    """The imaginary part of a conjugate is its memory with a bit that says minus."""
    param = torch.ones(1, requires_grad=True)  # of which this part is dense
    param.grad = torch.complex(torch.zeros(1), torch.ones(1)).conj().imag
    assert param.grad.is_neg()
    CoolMomentum([param], total_steps=9, rho0=0.0, lr=0.5, **path).step()
    assert param.item() == 1.25  # 1 + 0.25, half the learning rate against a gradient of -1


@path
def test_sparse_gradients_are_refused(path):
    """A sparse gradient is an error, and nothing has changed by then, in any group."""
    params = parameters((4,), (4,), (4,))
    optimizer = CoolMomentum(
        [{"params": params[:1]}, {"params": params[1:]}], total_steps=9, lr=0.5, **path
    )
    follow(params, optimizer, gradients(params, 2))
    before = [p.detach().clone() for p in params]
    moved = [dx.clone() for dx in displacements(params, optimizer)]
    params[2].grad = torch.ones(4, dtype=torch.float64).to_sparse()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()
    assert all(torch.equal(p, b) for p, b in zip(params, before, strict=True))
    for now, then in zip(displacements(params, optimizer), moved, strict=True):
        assert torch.equal(now, then)
    assert clock(optimizer) == 2


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@path
def test_sparse_parameters_are_refused(path):
    """So is the gradient of a parameter in compressed rows, which another group may come before."""
    (dense,) = parameters((4,))
    rows = torch.eye(3, dtype=torch.float64).to_sparse_csr().requires_grad_()
    optimizer = CoolMomentum([{"params": [dense]}, {"params": [rows]}], total_steps=9, **path)
    dense.grad, rows.grad = torch.ones_like(dense), torch.eye(3).double().to_sparse_csr()
    before = dense.detach().clone()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()
    assert torch.equal(dense, before)
    assert clock(optimizer) == 0


@pytest.fixture
def swapped_params():
    """Parameters keep their identity when a module gives them memory."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(False)


def test_fused_on_meta(swapped_params):
    """fused=True refuses a parameter without memory, and works once it has been given some."""
    with torch.device("meta"):
        model = torch.nn.Linear(3, 2)
    optimizer = CoolMomentum(model.parameters(), total_steps=4, fused=True)
    for p in model.parameters():
        p.grad = torch.empty_like(p)
    message = "`fused=True` requires all the params to be floating point Tensors"
    with pytest.raises(RuntimeError, match=message):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    assert clock(optimizer) == 0
    assert not optimizer.state
    model.to_empty(device="cpu")
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
            p.grad = torch.ones_like(p)
    optimizer.step()
    # eta = 0.01 * 1.99 / 2, and the gradient is 1
    torch.testing.assert_close(model.bias.detach(), torch.full((2,), 1 - 0.00995))


def test_fused_refuses_complex():
    """There is no fused kernel for complex parameters."""
    param = torch.zeros(2, dtype=torch.complex64, requires_grad=True)
    param.grad = torch.ones_like(param)
    with pytest.raises(RuntimeError, match="fused=True"):
        CoolMomentum([param], total_steps=4, fused=True).step()


def test_meta_parameters_step_without_fused():
    """A step on meta tensors computes nothing, but makes state of the right kind."""
    param = torch.empty(3, 2, device="meta", dtype=torch.bfloat16, requires_grad=True)
    param.grad = torch.empty_like(param)
    optimizer = CoolMomentum([param], total_steps=4, displacement_dtype=torch.float32)
    optimizer.step()
    displacement = optimizer.state[param]["displacement"]
    assert (displacement.device.type, displacement.dtype) == ("meta", torch.float32)
    assert clock(optimizer) == 1


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("maximize", [False, True])
def test_differentiable(decoupled, maximize):
    """Two steps have the right first and second derivatives in everything that enters them.

    Parameter, gradients and lr, the latter as a tensor; against finite differences.
    """

    def stepped(start, grad, lr):
        param = start.clone()
        optimizer = CoolMomentum(
            [param],
            lr=lr,
            total_steps=3,
            rho0=0.75,
            weight_decay=0.25,
            decoupled_weight_decay=decoupled,
            maximize=maximize,
            differentiable=True,
        )
        for _ in range(2):
            param.grad = grad * (1 + grad)
            optimizer.step()
        return param, optimizer.state[param]["displacement"]

    start, grad = draw(3), draw(3, seed=1)
    lr = torch.tensor([[0.125]], dtype=torch.float64)
    inputs = [t.requires_grad_() for t in (start, grad, lr)]
    assert torch.autograd.gradcheck(stepped, inputs)
    assert torch.autograd.gradgradcheck(stepped, inputs)


def test_differentiable_is_the_oracle():
    """The differentiable step goes where the others go."""
    starts = parameters((4,), (), (0,))
    params = [s.clone() for s in starts]
    grads = gradients(params, 5)
    xs, dxs = exact(params, grads, **COOLING)
    optimizer = CoolMomentum(params, **COOLING, differentiable=True)
    follow(params, optimizer, grads)
    assert_rounded(params, xs, 5)
    assert_rounded(displacements(params, optimizer), dxs, 5)


@path
def test_zero_gradients_move_nothing(path):
    """At rest and without decay, zeros as gradients leave a parameter bit for bit alone."""
    (param,) = parameters((33,), dtype=torch.float32)
    before = param.detach().clone()
    follow([param], CoolMomentum([param], **COOLING, **path), [[torch.zeros(33)]] * 5)
    assert torch.equal(param.detach(), before)


@path
def test_zero_gradients_let_the_displacement_decay(path):
    """Without a force the displacement of a step is rho times that of the step before."""
    (param,) = parameters((33,))
    constant = {"total_steps": 9, "rho0": 0.5, "law": "constant", "lr": 0.125}
    optimizer = CoolMomentum([param], **constant, **path)
    follow([param], optimizer, gradients([param], 1))
    first = optimizer.state[param]["displacement"].clone()
    for n in range(1, 5):
        follow([param], optimizer, [[torch.zeros(33, dtype=torch.float64)]])
        np.testing.assert_array_equal(optimizer.state[param]["displacement"], first / 2**n)


@path
def test_maximize_is_the_negated_gradient(path):
    """Going up a gradient is going down its opposite, bit for bit."""
    ups, downs = parameters((5, 5), (17,)), parameters((5, 5), (17,))
    grads = gradients(ups, 5)
    follow(ups, CoolMomentum(ups, **COOLING, maximize=True, **path), grads)
    follow(downs, CoolMomentum(downs, **COOLING, **path), [[-g for g in gs] for gs in grads])
    assert all(torch.equal(up, down) for up, down in zip(ups, downs, strict=True))


# --- tensors without values -----------------------------------------------------------------------


def test_made_where_the_default_device_is_meta():
    """As large models are; the clock is a real number all the same."""
    with torch.device("meta"):
        params = [torch.nn.Parameter(torch.zeros(2))]
        optimizer = CoolMomentum(params, total_steps=9)
    assert optimizer.param_groups[0]["cooling_step"].device.type == "cpu"
    assert optimizer.param_groups[0]["cooling_rho"] == 0.99


def test_a_rehearsal_with_fake_tensors():
    """Under FakeTensorMode, as memory estimators use it, a step runs on nothing but shapes."""
    with FakeTensorMode():
        param = torch.nn.Parameter(torch.zeros(2))
        optimizer = CoolMomentum([param], total_steps=9)
        param.grad = torch.ones(2)
        optimizer.step()
        assert optimizer.state[param]["displacement"].shape == (2,)


# --- tensor subclasses --------------------------------------------------------------------------


class InPlaceOnly(torch.Tensor):
    """A weight that holds another tensor and has little arithmetic: add_, copies and products."""

    KNOWN = frozenset(
        {"aten::add_", "aten::mul", "aten::_to_copy", "aten::detach", "aten::zeros_like"}
    )

    @staticmethod
    def __new__(cls, held):
        """Pose as a tensor of this shape and dtype."""
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype)

    def __init__(self, held):
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        """Refuse what is not known; only add_ and detach give back one of these."""
        name = func._schema.name
        if name not in cls.KNOWN:
            raise NotImplementedError(name)
        plain = [x.held if isinstance(x, cls) else x for x in args]
        out = func(*plain, **(kwargs or {}))
        if name == "aten::add_":
            return args[0]
        return cls(out) if name == "aten::detach" else out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"weight_decay": 0.25},
        {"weight_decay": 0.25, "decoupled_weight_decay": True},
        {"maximize": True, "weight_decay": 0.25},
        {"foreach": True},
        {"fused": True},
        {"capturable": True},
        {"displacement_dtype": torch.float32},
    ],
    ids=str,
)
def test_a_subclass_with_in_place_arithmetic_only(dtype, settings):
    """It is moved as a plain tensor is, to the rounding of its dtype."""
    held = draw(4, 3, dtype=dtype)
    weight = torch.nn.Parameter(InPlaceOnly(held))
    twin = held.clone().requires_grad_()
    run = {"lr": 0.5, "total_steps": 6, "rho0": 0.5} | settings
    optimizer, plain = CoolMomentum([weight], **run), CoolMomentum([twin], **run)
    for seed in range(8):
        follow([weight], optimizer, [[draw(4, 3, dtype=dtype, seed=seed + 9)]])
        follow([twin], plain, [[draw(4, 3, dtype=dtype, seed=seed + 9)]])
    assert optimizer.state[weight]["displacement"].dtype == run.get("displacement_dtype", dtype)
    # 8 steps of 6 roundings at most in each of the two, of numbers below 8; rho at most halves.
    bound = 2 * 8 * 6 * torch.finfo(dtype).eps * 8
    torch.testing.assert_close(weight.held, twin.detach(), rtol=0, atol=bound)
    torch.testing.assert_close(
        optimizer.temperature(), plain.temperature(), rtol=8 * 8 * torch.finfo(dtype).eps, atol=0
    )


@pytest.mark.filterwarnings("ignore")  # what importing it says is its own
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "settings",
    [{}, {"weight_decay": 0.01}, {"weight_decay": 0.01, "decoupled_weight_decay": True}],
    ids=str,
)
def test_int8_weights_of_torchao(dtype, settings):
    """A network of its int8 weights trains; each step is w.add_(dx), rounded as torchao rounds."""
    pytest.importorskip("torchao", reason="its weights are what is tested")
    from torchao.prototype.quantized_training import int8_weight_only_quantized_training
    from torchao.quantization import quantize_

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 16))
    quantize_(model.to(dtype), int8_weight_only_quantized_training())
    x = torch.randn(64, 16, dtype=dtype)
    optimizer = CoolMomentum(model.parameters(), lr=0.1, total_steps=60, rho0=0.9, **settings)
    weight, losses = model[0].weight, []
    for n in range(60):
        optimizer.zero_grad()
        loss = (model(x) - x.flip(1)).square().mean()
        loss.backward()
        losses.append(loss.item())
        before = weight.detach().clone()
        torch.manual_seed(
            n
        )  # torchao rounds at random; the first weight is the first to be rounded
        optimizer.step()
        torch.manual_seed(n)
        moved = optimizer.state[weight]["displacement"]
        if not settings and dtype == torch.float32:
            assert torch.equal(before.add_(moved).int_data, weight.int_data)
    assert type(weight).__name__ == "Int8QuantizedTrainingLinearWeight"
    assert losses[-1] < 0.7 * losses[0]
    assert 0 < float(optimizer.temperature()) < 1
    resumed = CoolMomentum(model.parameters(), lr=0.1, total_steps=60, rho0=0.9)
    resumed.load_state_dict(optimizer.state_dict())
    assert float(resumed.temperature()) == float(optimizer.temperature())
