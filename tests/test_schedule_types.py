"""What the schedules take and give: numbers and arrays of any dtype and library."""

import itertools
import math
import pickle
import re

import numpy as np
import pytest
from exact import LAWS, U32, U64
from laws import in_float64
from libraries import LIBRARIES, NUMPY, libraries

from coolmomentum import (
    CoolingSchedule,
    cooled_rho,
    cooling_rate,
    rho0_for_cooling_rate,
    rho_at,
    steps_for_cooling_rate,
)

# --- types ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("step", [0, 3, 3.0, 10, 11])
def test_a_number_gives_a_python_float(law, step):
    """Python numbers in, a Python float out; with a warm-up too."""
    for warmup_steps in (0, 4):
        assert type(CoolingSchedule(10, 0.5, law, warmup_steps)(step)) is float


DEFAULT_FLOAT = {"numpy": "float64", "array_api_strict": "float64"}  # the others: float32


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("shape", [(), (0,), (6,), (2, 3)])
@pytest.mark.parametrize("kind", ["int32", "uint8", "float32"])
def test_an_array_gives_an_array_of_its_kind(library, law, shape, kind):
    """Integers give the library's default float, floats their own dtype; the shape stays."""
    numbers = np.arange(math.prod(shape)).reshape(shape)
    schedule = CoolingSchedule(5, 0.9, law, warmup_steps=1)
    rho = library.compile(schedule)(library.array(numbers, dtype=kind))
    assert library.owns(rho)
    default = DEFAULT_FLOAT.get(library.name, "float32")
    assert library.dtype_name(rho) == ("float32" if kind == "float32" else default)
    assert tuple(rho.shape) == shape
    by_numbers = [schedule(int(n)) for n in numbers.flat]
    np.testing.assert_allclose(np.ravel(np.asarray(rho)), by_numbers, rtol=0, atol=8 * U32)


def test_a_dtype_may_be_asked_for(library, dtype):
    """An array of integers gives the floating dtype that is asked for."""
    wanted = getattr(library.xp, dtype)
    steps = library.array([0, 5], dtype="int32")
    rho = library.compile(lambda n: CoolingSchedule(10, 0.5)(n, dtype=wanted))(steps)
    assert library.dtype_name(rho) == dtype


ARRAYS = [c for c in itertools.product([False, True], repeat=3) if any(c)]


@pytest.mark.parametrize("arrays", ARRAYS, ids=str)
@pytest.mark.parametrize(
    ("law", "warmup_steps", "clock"),
    [(law, 0, "run") for law in LAWS] + [("paper", 3, "run"), ("linear", 3, "hold")],
)
def test_step_total_steps_and_rho0_may_be_arrays(library, law, arrays, warmup_steps, clock):
    """Any of the three may be a 0-d array, traced or not, and gives what the numbers give."""
    numbers = (5, 20, 0.75)
    dtypes = ("int32", "int32", "float32")
    mixed = [
        library.array(x, dtype=d) if is_array else x
        for x, d, is_array in zip(numbers, dtypes, arrays, strict=True)
    ]

    def rho(*chosen):
        given = iter(chosen)
        step, total_steps, rho0 = (
            next(given) if is_array else x for x, is_array in zip(numbers, arrays, strict=True)
        )
        return CoolingSchedule(total_steps, rho0, law, warmup_steps, clock)(step)

    result = library.compile(rho)(
        *[x for x, is_array in zip(mixed, arrays, strict=True) if is_array]
    )
    assert library.owns(result)
    expected = CoolingSchedule(20, 0.75, law, warmup_steps, clock)(5)
    # rho0 = 3/4 is exact in float32; log1p and the coefficient are float32 now: 4 u more
    assert float(result) == pytest.approx(expected, rel=12 * U32, abs=0)


def test_the_alpha_solver_takes_arrays(library):
    """Eq. 21 and its inverses give arrays of the library for arrays."""
    rho0, steps = library.array(0.96875, dtype="float32"), library.array(5.0, dtype="float32")
    alpha = library.compile(cooling_rate)(rho0, steps)
    assert float(alpha) == pytest.approx(0.5, rel=12 * U32)
    for result, expected in [
        (library.compile(steps_for_cooling_rate)(alpha, rho0), 5.0),
        (library.compile(rho0_for_cooling_rate)(alpha, steps), 0.96875),
        (library.compile(rho_at)(steps, rho0, alpha), 0.0),
    ]:
        assert library.owns(result)
        assert float(result) == pytest.approx(expected, rel=60 * U32, abs=60 * U32)


def test_cooled_rho_is_the_schedule():
    """The pure function and the dataclass are one."""
    schedule = CoolingSchedule(9, 0.7, "linear", 2, "hold")
    for n in range(12):
        assert cooled_rho(n, 9, 0.7, "linear", 2, "hold") == schedule(n)


def test_a_schedule_survives_pickling():
    """A schedule is data: equal, hashable and picklable, with whole numbers as they were given."""
    schedule = CoolingSchedule(
        np.int64(9), np.float32(0.5), np.str_("linear"), np.uint8(2), np.str_("hold"), np.int8(0)
    )
    fields = (schedule.total_steps, schedule.rho0, schedule.law, schedule.warmup_steps)
    assert [type(value) for value in fields] == [int, float, str, int]
    assert [type(value) for value in (schedule.warmup_clock, schedule.hold_steps)] == [str, int]
    copy = pickle.loads(pickle.dumps(schedule))
    assert copy == schedule == CoolingSchedule(9, 0.5, "linear", 2, "hold")
    assert hash(copy) == hash(schedule)


# --- half precision, short integers and other arrays ----------------------------------------------

HALF = [(NUMPY, "float16")] + [
    (library, dtype)
    for library in libraries("torch", "jax", "jax-jit")
    for dtype in ("float16", "bfloat16")
]
halves = pytest.mark.parametrize(
    ("library", "half"), HALF, ids=[f"{library.name}-{half}" for library, half in HALF]
)


def assert_rounded_once(library, value, expected, half):
    """``value`` is ``expected`` in half precision, of which float32 kept 8 roundings more."""
    assert library.dtype_name(value) == half
    u = 2.0**-11 if half == "float16" else 2.0**-8
    value = np.asarray(library.array(value, dtype="float32"))
    np.testing.assert_allclose(value, expected, rtol=u + 8 * U32, atol=2.0**-25)


@halves
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("total_steps", [1000, 100_000, 10**7])
def test_a_half_precision_rho_is_computed_in_float32(library, half, law, total_steps):
    """Past 65,504 steps, which float16 does not count, too; rounded once, and 0 at the end."""
    steps = np.asarray([0, total_steps // 3, total_steps // 2, total_steps - 1, total_steps])
    dtype = getattr(library.xp, half)
    schedule = CoolingSchedule(total_steps, 0.99, law)
    rho = library.compile(lambda n: schedule(n, dtype=dtype))(library.array(steps, dtype="int32"))
    assert_rounded_once(library, rho, in_float64(law, steps, total_steps, 0.99), half)
    if law != "constant":
        assert float(rho[-1]) == 0.0


@halves
@pytest.mark.parametrize("hold_steps", [0, 70_000])
def test_steps_in_half_precision(library, half, hold_steps):
    """An array of float16 steps beside a total_steps beyond its range; its own dtype comes back."""
    steps = library.array([0.0, 1024.0, 61440.0], dtype=half)
    schedule = CoolingSchedule(100_000, 0.99, "linear", hold_steps=hold_steps)
    rho = library.compile(schedule)(steps)
    assert_rounded_once(library, rho, [schedule(n) for n in (0, 1024, 61440)], half)


@halves
def test_rho0_in_half_precision(library, half):
    """A 0-d rho0 does not make the law one of half precision: 1 - rho0 has all its digits."""
    rho0 = library.array(0.96875, dtype=half)
    for law in LAWS:
        rho = library.compile(
            lambda rho0, law=law: cooled_rho(70_000, 100_000, rho0, law, dtype=library.xp.float32)
        )(rho0)
        expected = CoolingSchedule(100_000, 0.96875, law)(70_000)
        assert float(rho) == pytest.approx(expected, rel=20 * U32, abs=0)


SHORT = [(library, kind) for library in LIBRARIES for kind in ("int8", "uint8", "int16", "uint16")]


@pytest.mark.parametrize(
    ("library", "kind"), SHORT, ids=[f"{library.name}-{kind}" for library, kind in SHORT]
)
@pytest.mark.parametrize("total_steps", [100, 1000, 100_000, 10**10])
@pytest.mark.parametrize("setting", [(0, 0), (30, 0), (0, 40), (30, 40)], ids=str)
def test_steps_in_short_integers(library, kind, total_steps, setting):
    """No count wraps: neither ``step - start`` of unsigned integers nor a long total_steps."""
    warmup_steps, hold_steps = setting
    schedule = CoolingSchedule(total_steps, 0.9, "paper", warmup_steps, "hold", hold_steps)
    steps = [0, 3, 35, 41, 99, 100, 127]
    rho = library.compile(schedule)(library.array(steps, dtype=kind))
    expected = [schedule(n) for n in steps]
    np.testing.assert_allclose(np.asarray(rho), expected, rtol=14 * U32, atol=1e-30)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int64, np.uint64, np.float16, np.float64])
@pytest.mark.parametrize("law", LAWS)
def test_a_numpy_scalar_is_a_0d_array(kind, law):
    """It gives a 0-d array of NumPy, or a scalar, with the value of the number."""
    schedule = CoolingSchedule(100_000, 0.9, law, hold_steps=2)
    rho = schedule(kind(3))
    assert NUMPY.owns(rho)
    assert rho.shape == ()
    assert rho.dtype == (np.float16 if kind is np.float16 else np.float64)
    u = 2.0**-11 if kind is np.float16 else 8 * U64
    assert float(rho) == pytest.approx(schedule(3), rel=u, abs=0)
    assert CoolingSchedule(200, 0.9, "linear")(np.uint8(255)) == 0.0


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (np.ma.array([0, 5], mask=[False, True]), "masked arrays lose their mask here"),
        (np.asarray([False, True]), "steps must be integers or floats: bool"),
        (np.asarray([0j]), "steps must be integers or floats: complex128"),
        (np.asarray([None]), "steps must be integers or floats: object"),
        ([0, 5], "arguments must be numbers or arrays of one array-API library: list"),
        (True, "arguments must be numbers or arrays of one array-API library: bool"),
        (None, "arguments must be numbers or arrays of one array-API library: NoneType"),
    ],
    ids=lambda case: type(case).__name__,
)
def test_steps_that_are_no_steps_are_refused(steps, message):
    """By one TypeError, never by a number that is wrong."""
    with pytest.raises(TypeError, match=f"^{re.escape(message)}"):
        CoolingSchedule(10)(steps)


@halves
def test_the_alpha_solver_in_half_precision(library, half):
    """Each function is computed in float32 from its half-precision arguments and rounded once."""
    rho0 = library.array(0.96875, dtype=half)  # exact: 1 - rho0 = 2**-5
    alpha = library.compile(lambda rho0: cooling_rate(rho0, 1000))(rho0)
    assert_rounded_once(library, alpha, 2.0 ** (-5 / 1000), half)
    half_alpha = library.array(0.5, dtype=half)
    for function, arguments, expected in (
        (steps_for_cooling_rate, (half_alpha, rho0), 5.0),
        (rho0_for_cooling_rate, (half_alpha, library.array(5, dtype="int32")), 0.96875),
        (rho_at, (library.array(5, dtype="int32"), rho0, half_alpha), 0.0),
    ):
        assert_rounded_once(library, library.compile(function)(*arguments), expected, half)


def test_the_alpha_solver_takes_integers(library):
    """total_steps may be an array of integers, short ones too; NumPy's scalars are checked."""
    for kind in ("int32", "uint8"):
        steps = library.array(5, dtype=kind)
        assert float(library.compile(lambda s: cooling_rate(0.96875, s))(steps)) == pytest.approx(
            0.5, rel=4 * U32
        )
    with pytest.raises(ValueError, match=r"^total_steps must be >= 1: np\.int64\(0\)$"):
        cooling_rate(0.5, np.int64(0))
    with pytest.raises(ValueError, match=r"^rho0 must be in \[0, 1\): np\.float64\(1\.5\)$"):
        cooling_rate(np.float64(1.5), 10)
