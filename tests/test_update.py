"""Eqs 14 and 16 for one array: exact trajectories, the options, and the dtypes of the results."""

import math
from decimal import Decimal, localcontext
from fractions import Fraction as F  # noqa: N817  # stands in every other expression

import exact
import numpy as np
import pytest
from exact import U32, U64
from frameworks import framework
from libraries import libraries
from trajectories import AUTHORS, RATIONAL

from coolmomentum import langevin_step, next_displacement

jnp = framework("jax.numpy")


@pytest.mark.eq(14, 16)
@pytest.mark.parametrize("run", RATIONAL, ids=lambda run: run.name)
def test_rational_trajectories_are_exact(run):
    """In fractions the update gives every x of trajectories A, B, B' and C, with no tolerance."""
    x, v, xs = F(1), F(0), []
    for rho in run.rhos:
        settings = {"learning_rate": run.learning_rate, "weight_decay": run.weight_decay}
        before = x
        x, v = langevin_step(x, v, x, rho=rho, xp=math, **settings)
        assert x - before == v
        xs.append(x)
    assert xs == list(run.xs)


@pytest.mark.eq(14, 16, 20)
@pytest.mark.parametrize("run", AUTHORS, ids=lambda run: run.name)
def test_the_authors_code_gives_the_same_positions(run):
    """The update in 50 digits with the exact rho agrees with what the authors' code put out.

    Theirs ran in float64: the tolerance is the running bound of a float64 run, and their printing.
    """
    with localcontext(exact.DIGITS):
        x, v, xs = Decimal(1), Decimal(0), [Decimal(1)]
        rhos = [exact.rho(run.law, n, run.total_steps, run.rho0) for n in range(len(run.printed))]
        for rho in rhos:
            x, v = langevin_step(x, v, x, learning_rate=Decimal("0.1"), rho=rho, xp=math)
            xs.append(x)
    # Their formulas for rho: 10 u, and the rounding of rho0 = 0.9 at condition 1 / (1 - rho0) = 10.
    bounds = exact.trajectory_bounds(
        rhos, xs, learning_rate=0.1, slope=1.0, rho_errors=[20 * U64] * len(rhos), u=U64
    )
    for x, printed, bound in zip(xs[1:], run.printed, bounds, strict=True):
        assert float(x) == pytest.approx(printed, rel=0, abs=bound + 1e-16)


OPTIONS = [
    {},
    {"weight_decay": F(1, 2)},
    {"weight_decay": F(1, 2), "decoupled_weight_decay": True},
    {"maximize": True},
    {"maximize": True, "weight_decay": F(1, 2)},
    {"maximize": True, "weight_decay": F(1, 2), "decoupled_weight_decay": True},
]
# At x = 2, v = 1/4, g = 3, rho = 1/2, lr = 1/3, so eta = 1/4 and v' = 1/8 - g'/4.
BY_HAND = [  # what x is before the displacement, and g'
    (F(2), F(3)),
    (F(2), F(3) + 1),
    (F(5, 3), F(3)),  # 2 (1 - 1/6)
    (F(2), F(-3)),
    (F(2), F(-3) + 1),
    (F(5, 3), F(-3)),
]


@pytest.mark.parametrize(
    ("options", "start", "slope"),
    [(options, *by_hand) for options, by_hand in zip(OPTIONS, BY_HAND, strict=True)],
)
def test_options(options, start, slope):
    """Weight decay of either kind and maximize, worked out by hand."""
    settings = {"learning_rate": F(1, 3), "rho": F(1, 2), "xp": math} | options
    moved = F(1, 8) - slope / 4
    assert langevin_step(F(2), F(1, 4), F(3), **settings) == (start + moved, moved)


@pytest.mark.eq(14)
def test_next_displacement_is_eq_14(library, dtype):
    """Rho dx - eta g, in the dtype of the arrays, Python coefficients or not."""
    dx, g = library.array([[0.5, -1.0]], dtype=dtype), library.array([[2.0, 4.0]], dtype=dtype)
    moved = library.compile(lambda dx, g: next_displacement(dx, g, rho=0.5, step_size=0.25))(dx, g)
    assert library.owns(moved)
    assert library.dtype_name(moved) == dtype
    np.testing.assert_array_equal(np.asarray(moved), [[-0.25, -1.5]])


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3)])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_step_keeps_library_dtype_and_shape(library, dtype, shape, options):
    """Results are arrays of the library, of the dtype and shape that came in, with right values."""
    rng = np.random.default_rng(7)
    numbers = [rng.standard_normal(shape) for _ in range(3)]
    settings = {"learning_rate": 0.3, "rho": 0.7} | {
        key: float(value) if key == "weight_decay" else value for key, value in options.items()
    }
    arrays = [library.array(x, dtype=dtype) for x in numbers]
    results = library.compile(lambda *a: langevin_step(*a, **settings))(*arrays)
    in_float64 = [np.asarray(x).astype(np.float64) for x in arrays]
    # All terms are below 4 in size, with fewer than 12 roundings here and in the oracle.
    tolerance = 4 * 12 * 2 * (U32 if dtype == "float32" else U64)
    for result, expected in zip(results, langevin_step(*in_float64, **settings), strict=True):
        assert library.owns(result)
        assert library.dtype_name(result) == dtype
        assert tuple(result.shape) == shape
        np.testing.assert_allclose(np.asarray(result), expected, rtol=0, atol=tolerance)


def test_complex_parameters_move_as_their_parts():
    """The real and the imaginary part of a complex step are the steps of the parts."""
    x, v, g = np.asarray([1 + 2j]), np.asarray([0.5 - 1j]), np.asarray([-3 + 0.25j])
    settings = {"learning_rate": 0.3, "rho": 0.7, "weight_decay": 0.1}
    whole = langevin_step(x, v, g, **settings)
    for part in (np.real, np.imag):
        for result, expected in zip(
            whole, langevin_step(part(x), part(v), part(g), **settings), strict=True
        ):
            np.testing.assert_array_equal(part(result), expected)


HALF = [
    (library, dtype)
    for library in libraries("torch", "jax", "jax-jit")
    for dtype in ("float16", "bfloat16")
]


@pytest.mark.parametrize(
    ("library", "dtype"), HALF, ids=[f"{library.name}-{dtype}" for library, dtype in HALF]
)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_half_precision_is_computed_in_float32_and_rounded_once(library, dtype, options):
    """A step in half precision is the float32 step, rounded once to the dtype of each result.

    Bit for bit where the float32 arithmetic is the same; XLA may contract a multiplication and an
    addition, so under jit a result may be the half-precision neighbour.
    """
    rng = np.random.default_rng(3)
    settings = {"learning_rate": 0.3, "rho": 0.7} | {
        key: float(value) if key == "weight_decay" else value for key, value in options.items()
    }
    half = [library.array(rng.standard_normal(500), dtype=dtype) for _ in range(3)]
    wide = [library.array(x, dtype="float32") for x in half]
    results = library.compile(lambda *a: langevin_step(*a, **settings))(*half)
    for result, expected in zip(results, langevin_step(*wide, **settings), strict=True):
        assert library.dtype_name(result) == dtype
        rounded = library.array(library.array(expected, dtype=dtype), dtype="float32")
        wrong = np.asarray(library.array(result, dtype="float32")) != np.asarray(rounded)
        # A float32 sum moved by a few u32 rounds to another float16 with a chance of a few 2**-13.
        assert np.mean(wrong) <= (0.01 if library.name == "jax-jit" else 0)


def test_a_float32_displacement_of_a_half_precision_parameter():
    """Each result keeps its own dtype: a float32 displacement stays float32."""
    x, g = jnp.ones(3, jnp.bfloat16), jnp.full(3, 1e-3, jnp.bfloat16)
    x, v = langevin_step(x, jnp.zeros(3, jnp.float32), g, learning_rate=0.1, rho=0.9)
    assert (x.dtype, v.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(v, -0.095 * float(g[0]), rtol=6 * U32)


@pytest.mark.parametrize("kind", ["int32", "uint8"])
def test_integers_cannot_hold_a_step(library, kind):
    """Neither a parameter nor a displacement is rounded to integers; a gradient may be of them."""
    whole = library.array([2], dtype=kind)
    real = library.array([2.0], dtype="float32")
    step = library.compile(lambda *a: langevin_step(*a, learning_rate=0.5, rho=0.0))
    for arrays in ((whole, real, real), (real, whole, real)):
        with pytest.raises(TypeError, match=r"^parameters and displacements must be floating: "):
            step(*arrays)
    x, dx = step(real, real, whole)
    assert (float(x[0]), float(dx[0])) == (1.5, -0.5)


def test_masked_parameters_are_refused():
    """Their mask would be lost in the step."""
    x = np.ma.array([1.0, 2.0], mask=[False, True])
    with pytest.raises(TypeError, match=r"^masked arrays lose their mask here"):
        langevin_step(x, np.zeros(2), np.ones(2), learning_rate=0.1, rho=0.5)
