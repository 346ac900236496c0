"""The thermometer, Eq. 22: values, pooling, accumulation and what leaves the reading unchanged."""

import math
import re
from fractions import Fraction as F  # noqa: N817  # stands in every other expression

import numpy as np
import pytest
from exact import U32, U64
from frameworks import framework
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from libraries import libraries

from coolmomentum import (
    DisplacementSum,
    coordinates,
    inner_product,
    rescaled_temperature,
    squared_norm,
    temperature,
    three_point_temperature,
)

jax, jnp = framework("jax"), framework("jax.numpy")

# --- the reference values -------------------------------------------------------------------------

FIRST, SECOND = [0.1, -0.2, 0.3], [0.0, 0.1, -0.1]


@pytest.mark.eq(22)
def test_temperature_of_a_list(library, dtype):
    """Two steps of three coordinates: mean square 2/75, T = 8/3, and 2/3 by the three-point form.

    Roundings: 2 of each number, squared, and the square; 5 sums; 2 quotients and lr: below 16.
    """
    close = 16 * (U32 if dtype == "float32" else U64)
    first, second = library.array(FIRST, dtype=dtype), library.array(SECOND, dtype=dtype)

    def reading(first, second):
        total = DisplacementSum().add(first).add([second])
        three = three_point_temperature(first, second, 0.01, 0.5)
        return total.read(), total.read() / 0.01, three

    both = library.compile(reading)(first, second)
    assert [float(x) for x in both] == pytest.approx([2 / 75, 8 / 3, 2 / 3], rel=close, abs=0)
    assert all(library.owns(x) and library.dtype_name(x) == dtype for x in both)
    assert all(tuple(x.shape) == () for x in both)


@pytest.mark.eq(22)
def test_temperature_of_a_single_step(library):
    """(.1, -.2, .3, 0) at dt**2 = 1/100 has T = 7/2, and needs no list around it."""
    step = library.array([0.1, -0.2, 0.3, 0.0], dtype="float32")
    reading = library.compile(lambda x: temperature(x, 0.01))(step)
    assert float(reading) == pytest.approx(3.5, rel=16 * U32, abs=0)


def test_python_numbers_give_a_float():
    """Displacements may be Python numbers; the reading is a Python float."""
    assert temperature([*FIRST, 0.0], 0.01) == pytest.approx(3.5, rel=12 * U64, abs=0)
    assert type(temperature(FIRST, 0.01)) is float
    assert type(rescaled_temperature(0.5)) is float


B_DISPLACEMENTS = [F(-7, 32), F(-131, 512), F(-269, 4096), F(-1883, 32768), F(-13181, 262144)]
B_TEMPERATURES = [
    F(49, 256),
    F(29705, 131072),
    F(657827, 4194304),
    F(129848473, 1073741824),
    F(8484041033, 85899345920),
]


@pytest.mark.parametrize("name", ["numbers", "arrays"])
def test_cumulative_temperature_of_trajectory_b(name):
    """Eq. 22 over the first 1 to 5 steps of trajectory B at dt**2 = 1/4.

    The squares and their sum fit in 53 bits; only the division by the number of steps rounds.
    """
    total = DisplacementSum()
    for steps, (dx, expected) in enumerate(zip(B_DISPLACEMENTS, B_TEMPERATURES, strict=True), 1):
        total = total.add(float(dx) if name == "numbers" else np.asarray([float(dx)]))
        assert float(total.read()) / 0.25 == float(expected)
        assert (total.steps, total.coordinates) == (steps, 1)


# --- invariances ----------------------------------------------------------------------------------

shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)
entries = st.floats(-1e3, 1e3).filter(lambda x: x == 0 or abs(x) > 1e-100)  # no square underflows
displacements = hnp.arrays(np.float64, shapes, elements=entries)


def close_to(expected, count, *, u=U64):
    """``expected`` to the roundings of a sum of ``count`` squares in any order, and a quotient."""
    return pytest.approx(float(expected), rel=2 * (count + 4) * u, abs=0)


@given(x=displacements)
def test_it_is_the_mean_square(x):
    """The rescaled temperature is the exact mean of the squares; of nothing it is 0."""
    squares = [F(float(value)) ** 2 for value in x.flat]
    assert float(rescaled_temperature(x)) == close_to(sum(squares) / max(x.size, 1), x.size)


@given(x=displacements, c=st.floats(1e-3, 1e3))
def test_scaling_by_c_scales_by_c_squared(x, c):
    """C x has c**2 the temperature; a power of two exactly so."""
    assert float(temperature(c * x, 0.1)) == close_to(c**2 * float(temperature(x, 0.1)), x.size + 4)
    assert float(temperature(4 * x, 0.1)) == 16 * float(temperature(x, 0.1))


@given(x=displacements, seed=st.integers(0, 2**32 - 1))
def test_permuting_and_flattening_change_nothing(x, seed):
    """Neither order nor shape matters."""
    reading = rescaled_temperature(x)
    shuffled = np.random.default_rng(seed).permutation(np.ravel(x))
    assert float(rescaled_temperature(shuffled)) == close_to(reading, x.size)
    assert float(rescaled_temperature(x.T)) == close_to(reading, x.size)


@given(x=displacements, cuts=st.lists(st.integers(0, 125), max_size=4))
def test_splitting_over_arrays_and_shards_changes_nothing(x, cuts):
    """Parts in a list, and parts read on their own and merged, give the pooled reading."""
    parts = np.split(np.ravel(x), sorted(min(cut, x.size) for cut in cuts))
    pooled = close_to(rescaled_temperature(x), x.size + len(parts))
    assert float(rescaled_temperature(parts)) == pooled
    merged, *others = [DisplacementSum().add(part) for part in parts]
    for other in others:
        merged = merged.merge(other)
    assert float(merged.read()) == pooled
    assert (merged.coordinates, merged.steps) == (x.size, 1)


@given(x=displacements)
def test_a_step_at_a_time_is_all_at_once(x):
    """The mean over steps and coordinates is that over the rows of a matrix."""
    rows = np.stack([x, 2 * x, -x])
    total = DisplacementSum()
    for row in rows:
        total = total.add(row)
    assert float(total.read()) == close_to(rescaled_temperature(rows), rows.size + 3)
    assert total.steps == 3


@given(
    x=hnp.arrays(
        np.complex128, shapes, elements=st.complex_numbers(min_magnitude=1e-100, max_magnitude=1e3)
    )
)
def test_a_complex_number_is_two_coordinates(x):
    """A complex array reads as its real view does."""
    as_real = np.stack([x.real, x.imag])
    assert float(rescaled_temperature(x)) == close_to(rescaled_temperature(as_real), 2 * x.size)


@pytest.mark.parametrize("wide", [False, True], ids=["complex64", "complex128"])
def test_complex_arrays_of_every_library(library, wide, request):
    """(3 + 4i, 0) has mean square 25/4, in the real dtype of its width."""
    if wide and library.name.startswith("jax"):
        request.getfixturevalue("jax_x64")
    x = library.array([3 + 4j, 0], dtype="complex128" if wide else "complex64")
    reading = library.compile(rescaled_temperature)(x)
    assert library.owns(reading)
    assert library.dtype_name(reading) == ("float64" if wide else "float32")
    assert float(reading) == 6.25
    twice = library.compile(lambda x: three_point_temperature(x, x, 1.0, 0.0))(x)
    assert float(twice) == 12.5  # <(2 dx)**2> / 2


@given(x=displacements, lr=st.floats(1e-6, 1e3), rho=st.floats(-0.99, 0.99))
def test_the_three_point_form_of_a_straight_walk(x, lr, rho):
    """If a step repeats, <(2 dx)**2> / (4 dt**2) is T of Eq. 22: the reading is 2 T / (1 + rho)."""
    expected = 2 * float(temperature(x, lr)) / (1 + rho)
    assert float(three_point_temperature([x], [x], lr, rho)) == close_to(expected, x.size + 4)


# --- integers, and what is no number --------------------------------------------------------------


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "int32"])
def test_integers_are_read_as_floats(library, kind):
    """(100, 7, 0) has T = 10049/3 at dt**2 = 1, and no square or sum wraps in a short integer.

    By three points, with the step before (100, 9, 1): 2 <(200, 16, 1)**2> / 4.
    """
    before = library.array([100, 9, 1], dtype=kind)
    x = library.array([100, 7, 0], dtype=kind)
    for function, expected in [
        (lambda before, x: temperature(x, 1.0), 10049 / 3),
        (lambda before, x: rescaled_temperature([x, x]), 10049 / 3),
        (lambda before, x: squared_norm(x), 10049),
        (lambda before, x: inner_product(before, x), 10063),
        (lambda before, x: three_point_temperature(before, x, 1.0, 0.0), 40257 / 6),
        (lambda before, x: DisplacementSum().add(before).add(x).read(), (10082 + 10049) / 6),
    ]:
        reading = library.compile(function)(before, x)
        assert library.owns(reading)
        wide = library.name in ("numpy", "array_api_strict")
        assert library.dtype_name(reading) == ("float64" if wide else "float32")
        assert float(reading) == pytest.approx(expected, rel=8 * (U64 if wide else U32), abs=0)


def test_lists_of_integers_and_scalars():
    """Python's and NumPy's integers are coordinates, a list may hold both arrays and numbers."""
    assert temperature([1, 2, 3], 0.5) == 28 / 3
    assert temperature((10**20, 0), 1) == 5e39
    assert float(temperature([np.asarray([1, 2]), np.int8(100), 3], 1.0)) == 10014 / 4
    assert float(temperature(np.uint8(200), np.float64(0.5))) == 80000
    assert float(temperature(np.zeros((0, 3), int), 0.1)) == 0.0


NO_DISPLACEMENTS = [
    np.asarray([True, False]),
    np.asarray([None, 1.0]),
    np.asarray(["1"]),
    np.asarray(["2020-01-01"], "datetime64[D]"),
    np.ma.array([1.0, 2.0], mask=[False, True]),
    [[1, 2], [3]],
    [np.ones(2), [1.0]],
    [True],
    [None],
    True,
    None,
    "1",
    {"w": np.ones(2)},
    *[library.array([True]) for library in libraries("torch", "jax")],
    [np.ones(1), np.ma.array([1.0], mask=[True])],
]


@pytest.mark.parametrize("x", NO_DISPLACEMENTS, ids=lambda x: f"{type(x).__name__}")
def test_what_is_no_displacement_is_refused(x):
    """By one TypeError that says what it is, in every function."""
    message = "^(arrays must be of real or complex numbers|masked arrays lose|arguments must be num"
    for function in (
        rescaled_temperature,
        lambda x: temperature(x, 0.1),
        lambda x: three_point_temperature(x, x, 0.1, 0.5),
        DisplacementSum().add,
    ):
        with pytest.raises(TypeError, match=message + ")"):
            function(x)
    if not isinstance(x, list):
        for function in (squared_norm, lambda x: inner_product(x, x)):
            with pytest.raises(TypeError, match=message + ")"):
                function(x)


@pytest.mark.parametrize("x", [[1, 2], (1,), True, None, np.ma.array([1.0], mask=[True])], ids=str)
def test_what_has_no_coordinates_is_refused(x):
    """A list is no array, and what a mask hides would be counted."""
    with pytest.raises(
        TypeError, match=r"^(masked arrays lose|arguments must be numbers or arrays)"
    ):
        coordinates(x)


# --- precision ------------------------------------------------------------------------------------


HALF = [
    (library, dtype)
    for library in libraries("numpy", "torch", "jax", "jax-jit")
    for dtype in ("float16", "bfloat16")
    if hasattr(library.xp, dtype)
]


@pytest.mark.parametrize(("library", "dtype"), HALF, ids=[f"{a.name}-{b}" for a, b in HALF])
def test_half_precision_is_summed_in_float32(library, dtype):
    """Ten thousand times 100 in half precision is 1e8 in float32; float16 ends at 65504."""
    x = library.array(np.full((100, 100), 100.0), dtype=dtype)
    total = library.compile(squared_norm)(x)
    assert library.dtype_name(total) == "float32"
    assert float(total) == 1e8


@pytest.mark.parametrize(("library", "dtype"), HALF, ids=[f"{a.name}-{b}" for a, b in HALF])
def test_half_precision_steps_are_added_in_float32(library, dtype):
    """The three-point thermometer adds 2048 and 1 to 2049, which half precision does not hold."""
    steps = (library.array([x], dtype=dtype) for x in (2048.0, 1.0))
    reading = library.compile(lambda a, b: three_point_temperature(a, b, 1.0, 0.0))(*steps)
    assert float(reading) == 2049**2 / 2


@pytest.mark.parametrize(
    "library", libraries("numpy", "torch", "jax", "jax-jit"), ids=lambda library: library.name
)
def test_a_long_float32_sum_of_squares(library):
    """Over 2e7 float32 entries the sum of squares is right to the roundings of a sum by pairs.

    Of NumPy they are 1 of the square, 18 of a block of 128 in eight sums, and 18 of 2e7 / 128
    blocks; 1.2e-6 is found before NumPy 2.3, less since. One running float32 sum would stop growing
    near 2**24 and be off by 16 per cent here.
    """
    x = np.random.default_rng(0).uniform(0.5, 1.5, 20_000_000).astype(np.float32)
    expected = float(np.sum(np.square(x, dtype=np.float64)))
    total = library.compile(squared_norm)(library.array(x))
    assert library.dtype_name(total) == "float32"
    assert float(total) == pytest.approx(expected, rel=37 * U32, abs=0)


# --- the accumulator as a pytree ------------------------------------------------------------------


def test_nothing_added_reads_zero():
    """An empty sum reads 0, and so does a parameter without coordinates."""
    assert DisplacementSum().read() == 0.0
    assert float(DisplacementSum().add(np.zeros((0, 3))).read()) == 0.0
    assert rescaled_temperature([]) == 0.0


def test_the_accumulator_goes_through_jit():
    """add, merge and read work on an accumulator that is itself traced."""
    x = jnp.asarray([3.0, 4.0])
    total = DisplacementSum()
    for _ in range(2):
        total = jax.jit(lambda total, x: total.add([x, x]))(total, x)
    assert [float(part) for part in total] == [100.0, 4, 2]
    assert float(jax.jit(lambda total: total.read())(total)) == 12.5
    merged = jax.jit(lambda one, other: one.merge(other))(total, total)
    assert [float(part) for part in merged] == [200.0, 8, 2]
    assert float(jax.jit(lambda total: total.read())(DisplacementSum(jnp.asarray(0.0)))) == 0.0


def test_the_accumulator_is_a_scan_carry():
    """Steps may be added inside lax.scan."""
    steps = jnp.asarray([[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]])
    total, _ = jax.lax.scan(lambda total, x: (total.add(x), None), DisplacementSum(), steps)
    assert float(total.read()) == 5.0


def test_many_coordinates_and_steps_do_not_overflow():
    """2**31 - 1 coordinates over a million counted steps would overflow a product in int32."""
    total = DisplacementSum(jnp.asarray(1e15), 2**31 - 1, jnp.asarray(1_000_000))
    expected = 1e15 / (2**31 - 1) / 1e6
    for read in (DisplacementSum.read, jax.jit(DisplacementSum.read)):
        assert float(read(total)) == pytest.approx(expected, rel=6 * U32, abs=0)


# --- bad input ------------------------------------------------------------------------------------

ONE = np.ones(3)
LR_NOT_FINITE = "learning_rate must be finite and > 0"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: temperature(ONE, 0.0), "learning_rate must be finite and > 0: 0.0"),
        (lambda: temperature(ONE, -0.1), f"{LR_NOT_FINITE}: -0.1"),
        (lambda: temperature(ONE, math.nan), f"{LR_NOT_FINITE}: nan"),
        (lambda: temperature(ONE, np.float64(0.0)), f"{LR_NOT_FINITE}: np.float64(0.0)"),
        (
            lambda: three_point_temperature(ONE, ONE, 0, 0.5),
            "learning_rate must be finite and > 0: 0",
        ),
        (
            lambda: DisplacementSum().add(ONE).add([ONE, ONE]),
            "displacements must have 3 coordinates as before: 6",
        ),
        (
            lambda: DisplacementSum().add(ONE).merge(DisplacementSum().add(ONE).add(ONE)),
            "steps must be 1 in both sums: 2",
        ),
    ],
)
def test_bad_input_is_refused(call, message):
    """The message has the argument, the rule and the value."""
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call()


def test_the_two_steps_must_match():
    """The three-point thermometer refuses lists of different lengths."""
    with pytest.raises(ValueError, match="shorter"):
        three_point_temperature([ONE, ONE], [ONE], 0.1, 0.5)


@pytest.mark.parametrize("lr", [True, None, "0.1", [0.1]], ids=str)
def test_a_learning_rate_is_a_number(lr):
    """A boolean, nothing, a string and a list are refused."""
    with pytest.raises(TypeError, match=r"^learning_rate must be a real number: "):
        temperature(ONE, lr)


def test_shapes_that_would_be_broadcast_are_refused():
    """Coordinates would count twice."""
    message = r"^the two must have one shape: \(1,\) and \(3,\)$"
    with pytest.raises(ValueError, match=message):
        inner_product(np.ones(1), np.ones(3))
    with pytest.raises(ValueError, match=message):
        three_point_temperature([np.ones(1)], [np.ones(3)], 0.1, 0.5)
