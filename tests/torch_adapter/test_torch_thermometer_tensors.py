"""The thermometer on tensors of all dtypes and layouts."""

import numpy as np
import pytest
import torch
from torch import nn
from torch_meter_tools import DECAYS, OPTIMIZERS, SGD
from torch_tools import draw, parameters

from coolmomentum.torch import Thermometer


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
    # In float32 a square and up to 300 sums, in whatever order, each to 2**-24; and the product
    # with the decay, of weights of at most 3 beside displacements of some 0.05, twice in a square.
    roundings = 1 + 300 + (2 * 3 / 0.05 if name in DECAYS else 0)
    near = pytest.approx(squares / 300 / 4, rel=roundings * 2**-24)
    assert reading["rescaled_temperature"] == near


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
