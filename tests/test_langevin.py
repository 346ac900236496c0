"""Eqs 15-19: the values of the physics, both ways round, in exact fractions, floats and arrays."""

import math
import re
from fractions import Fraction as F  # noqa: N817  # stands in every other expression

import numpy as np
import pytest
from exact import U32, U64
from hypothesis import example, given
from hypothesis import strategies as st
from libraries import NUMPY, libraries

from coolmomentum import (
    adam_mass,
    adiabaticity,
    effective_learning_rate,
    friction_from_rho,
    learning_rate_from_adam,
    learning_rate_from_sgd,
    matched_sgd_learning_rate,
    next_displacement,
    noise_temperature,
    noise_variance,
    noise_variance_at,
    reduced_temperature,
    rho_from_friction,
    rho_from_reduced_temperature,
    step_size,
    temperature,
    temperature_from_noise,
    three_point_temperature,
)

# --- values: the functions are rational, so fractions in give the exact value ---------------------

# rho, dt, friction, step size, T at <R**2> = 1; learning rate = dt**2
SETTINGS = [
    (F(9, 10), F(1, 10), F(20, 19), F(19, 2000), F(19, 400)),
    (F(99, 100), F(1, 10), F(20, 199), F(199, 20000), F(199, 400)),
    (F(1, 2), F(1, 5), F(10, 3), F(3, 100), F(3, 100)),
    (F(0), F(1, 10), F(20), F(1, 200), F(1, 400)),
]


@pytest.mark.eq(15, 16, 17, 18, 19)
@pytest.mark.parametrize(("rho", "dt", "friction", "eta", "heat"), SETTINGS)
def test_friction_momentum_step_size_and_temperature_are_exact(rho, dt, friction, eta, heat):
    """Eqs 15, 16, 17, 18 and 19 hold exactly at four settings, and each inverse undoes them."""
    assert friction_from_rho(rho, dt) == friction
    assert rho_from_friction(friction, dt) == rho
    assert step_size(dt**2, rho) == eta
    assert noise_temperature(F(1), dt**2, rho) == heat
    assert noise_variance_at(heat, dt**2, rho) == 1
    assert noise_variance(heat, friction, dt) == 1
    assert temperature_from_noise(F(1), friction, dt) == heat


# Printed to 16 digits or more; roundings in units of u: operations, then the arguments' own
# rounding through the condition number, which is rho / (1 - rho) for what has 1 - rho in it.
@pytest.mark.parametrize(
    ("value", "printed", "roundings"),
    [
        (lambda: friction_from_rho(0.9, 0.1), 1.052631578947368421053, 5 + 1 + 9 + 1),
        (lambda: friction_from_rho(0.99, 0.1), 0.1005025125628140703518, 5 + 1 + 99 + 1),
        (lambda: friction_from_rho(0.99, math.sqrt(0.6)), 0.01297481858025935304918, 5 + 2 + 100),
        (lambda: friction_from_rho(0.5, 0.2), 10 / 3, 5 + 1),
        (lambda: step_size(0.6, 0.99), 0.597, 2 + 2),
        (lambda: noise_temperature(1.0, 0.6, 0.99), 29.85, 5 + 1 + 100),
        (lambda: noise_temperature(1.0, 0.01, 0.99), 0.4975, 5 + 1 + 100),
        (lambda: reduced_temperature(0.99), 199.0, 3 + 100),
        (lambda: rho_from_reduced_temperature(10), 9 / 11, 2),
        (lambda: rho_from_reduced_temperature(1 / 3), -1 / 2, 4 + 1),
        (lambda: effective_learning_rate(1.0, 0.99), 99.5, 4 + 100),
        (lambda: effective_learning_rate(1.0, 0.9), 9.5, 4 + 10),
        (lambda: learning_rate_from_sgd(0.1, 0.9), 0.10526315789473684211, 2 + 2),
        (lambda: learning_rate_from_sgd(1e-3, 0.9), 1.0526315789473684211e-3, 2 + 2),
    ],
)
def test_float_values(value, printed, roundings):
    """Floats give the printed values to the digits that the rounding of the arguments leaves."""
    assert value() == pytest.approx(printed, rel=roundings * U64, abs=0)


@pytest.mark.parametrize(
    ("tau", "rho"), [(1, 0), (2, F(1, 3)), (10, F(9, 11)), (199, F(99, 100)), (F(1, 3), F(-1, 2))]
)
def test_rho_of_a_reduced_temperature(tau, rho):
    """Tau = 1, 2, 10, 199 and 1/3 are rho = 0, 1/3, 9/11, 0.99 and -1/2."""
    assert rho_from_reduced_temperature(F(tau)) == rho
    assert reduced_temperature(F(rho)) == tau


@pytest.mark.parametrize(
    ("rho", "ratio"),
    [(F(99, 100), F(199, 2)), (F(9, 10), F(19, 2)), (F(1, 2), F(3, 2)), (0, F(1, 2))],
)
def test_effective_learning_rate(rho, ratio):
    """The effective learning rate is 99.5, 9.5, 1.5 and 0.5 dt**2 at rho = .99, .9, .5 and 0."""
    assert effective_learning_rate(F(1), F(rho)) == ratio


@pytest.mark.parametrize("momentum", [F(0), F(1, 2), F(9, 10)])
def test_effective_learning_rate_is_the_drift_in_a_constant_gradient(momentum):
    """In a constant gradient the displacement settles at the effective learning rate times it.

    So it does for SGD with the matched learning rate at any momentum.
    """
    lr, rho, gradient = F(1, 7), F(3, 5), F(-2, 3)
    drift = -effective_learning_rate(lr, rho) * gradient
    assert next_displacement(drift, gradient, rho=rho, step_size=step_size(lr, rho)) == drift
    sgd = matched_sgd_learning_rate(lr, rho, momentum)
    assert next_displacement(drift, gradient, rho=momentum, step_size=sgd) == drift


def test_torch_sgd_as_langevin_dynamics():
    """torch.optim.SGD(lr=0.1, momentum=0.9) has dt**2 = 2/19 and friction dt = 2/19."""
    dt_squared = learning_rate_from_sgd(F(1, 10), F(9, 10))
    assert dt_squared == F(2, 19)
    assert step_size(dt_squared, F(9, 10)) == F(1, 10)
    assert friction_from_rho(F(9, 10), F(1)) == F(2, 19)


def test_adam_as_langevin_dynamics():
    """Its displacement times its mass is that of Eq. 14, exactly in fractions.

    ``m' = b1 m + (1 - b1) g`` and ``dx = -lr m / mass`` make ``mass dx' = b1 mass dx - eta g``.
    """
    lr, beta1, m, gradient = F(1, 1000), F(9, 10), F(3, 7), F(-2, 3)
    dt_squared = learning_rate_from_adam(lr, beta1)
    assert dt_squared == F(1, 9500)
    after = -lr * (beta1 * m + (1 - beta1) * gradient)
    eta = step_size(dt_squared, beta1)
    assert next_displacement(-lr * m, gradient, rho=beta1, step_size=eta) == after


@pytest.mark.parametrize("steps", [1, 2, 50])
def test_the_mass_of_a_constant_gradient_is_its_size(steps):
    """However few steps; the bias 1 - beta2**n is made of n + 1 rounded operations over 1/4."""
    moment = sum(9 * F(1, 4) * F(3, 4) ** n for n in range(steps))
    mass = adam_mass(float(moment), 0.75, steps, 0.5)
    assert mass == pytest.approx(3.5, rel=(4 * (steps + 1) + 4) * U64)


@pytest.mark.parametrize(
    ("speed", "rho", "number"), [(F(1, 1000), F(0), F(1, 1000)), (1, F(3, 5), F(25, 16))]
)
def test_adiabaticity(speed, rho, number):
    """Adiabaticity is the cooling speed over 1 - rho**2."""
    assert adiabaticity(F(speed), rho) == number


# --- stationary states: each closed form must be a fixed point of the covariance recursion --------


def covariance_after_a_step(covariance, *, rho, eta, k, variance):
    """Covariance (xx, xv, vv) after a step of Eq. 14 in U = k x**2 / 2 with white noise."""

    def moved(x, v, noise):
        v = next_displacement(v, k * x - noise, rho=rho, step_size=eta)
        return x + v, v

    (a, c), (b, d), (e, f) = (
        moved(F(1), F(0), F(0)),
        moved(F(0), F(1), F(0)),
        moved(F(0), F(0), F(1)),
    )
    xx, xv, vv = covariance
    return (
        a * a * xx + 2 * a * b * xv + b * b * vv + e * e * variance,
        a * c * xx + (a * d + b * c) * xv + b * d * vv + e * f * variance,
        c * c * xx + 2 * c * d * xv + d * d * vv + f * f * variance,
    )


@pytest.mark.eq(19)
@pytest.mark.parametrize(
    ("rho", "eta", "k", "variance", "var_x", "var_v", "correlation"),
    [
        (F(9, 10), F(19, 200), 1, F(1), F(19, 39), F(19, 390), F(19, 20)),
        (F(1, 2), F(3, 4), 1, F(4, 3), F(4, 3), F(4, 3), F(1, 2)),
        (F(0), F(1, 10), 2, F(1), F(1, 36), F(1, 90), F(4, 5)),
        (F(99, 100), F(199, 20000), 3, F(1, 2), F(199, 2382), F(199, 79400), F(197, 200)),
    ],
)
def test_stationary_variances(rho, eta, k, variance, var_x, var_v, correlation):
    """The closed forms of Var x, Var dx and corr(x_n, x_n+1) are a stationary state, exactly.

    In a stationary state <x_n dx_n> = <dx**2> / 2, and <x_n x_n+1> = <x**2> - <dx**2> / 2.
    """
    state = (var_x, var_v / 2, var_v)
    assert covariance_after_a_step(state, rho=rho, eta=eta, k=k, variance=variance) == state
    assert (var_x - var_v / 2) / var_x == correlation


WHITE = [  # rho, dt**2, k, T, then k <x**2> = T of Eq. 22, correlation of displacements
    (F(1, 2), F(1), 1, F(1), F(4, 3), F(1, 8)),
    (F(9, 10), F(1, 4), 2, F(3, 2), F(12, 7), F(53, 80)),
    (F(0), F(1, 10), 3, F(1), F(40, 37), F(-3, 40)),
    (F(99, 100), F(1, 100), 5, F(1), F(80, 79), F(7721, 8000)),
]


def white_noise_state(rho, lr, k, heat, measured):
    """Stationary covariance under the white noise that Eq. 19 asks for at a temperature."""
    state = (measured / k, measured * lr / 2, measured * lr)
    noise = noise_variance_at(heat, lr, rho)
    after = covariance_after_a_step(state, rho=rho, eta=step_size(lr, rho), k=k, variance=noise)
    return state, after


@pytest.mark.eq(22)
@pytest.mark.parametrize(("rho", "lr", "k", "heat", "measured", "correlation"), WHITE)
def test_eq_22_is_the_virial_temperature(rho, lr, k, heat, measured, correlation):
    """<dx**2> / dt**2 = <x dU/dx> = T / (1 - k dt**2 / 4) in a stationary state, exactly."""
    state, after = white_noise_state(rho, lr, k, heat, measured)
    assert after == state
    assert measured == heat / (1 - k * lr / 4)


def pair_with_moments(square, product):
    """Displacements of two steps, over two coordinates, whose mean moments are the given ones."""
    a, b = math.sqrt(2 * square), product / square
    return [a, 0.0], [a * b, a * math.sqrt(1 - b * b)]


@pytest.mark.parametrize(("rho", "lr", "k", "heat", "measured", "correlation"), WHITE)
def test_three_point_thermometer_is_exact(rho, lr, k, heat, measured, correlation):
    """Where Eq. 22 reads T / (1 - k dt**2 / 4), the three-point thermometer reads T of Eq. 19."""
    state, _ = white_noise_state(rho, lr, k, heat, measured)
    # <dx_n dx_n+1> = rho <dx**2> - eta k <x dx>, and <x dx> = <dx**2> / 2
    product = next_displacement(state[2], k * state[1], rho=rho, step_size=step_size(lr, rho))
    assert product / state[2] == correlation
    previous, last = pair_with_moments(float(state[2]), float(product))
    # Some 20 roundings; cancellation only in 1 - b**2, whose error reaches the sum undamped: the
    # sum has a**2 (1 - b**2) + (a + a b)**2 = 2 a**2 (1 + b), at most 1 / (1 + b) < 2 of its size.
    close = {"rel": 40 * U64, "abs": 0}
    assert temperature(last, float(lr)) == pytest.approx(float(measured), **close)
    three = three_point_temperature(previous, last, float(lr), float(rho))
    assert three == pytest.approx(float(heat), **close)


@pytest.mark.parametrize(
    ("steps", "printed"),
    [(1, 9.025e-5), (2, 1.633525e-4), (5, 3.093777409525e-4), (20, 4.6797908060281856864e-4)],
)
def test_free_diffusion(steps, printed):
    """Without a force <v_n**2> = eta**2 sigma**2 (1 - rho**(2 n)) / (1 - rho**2)."""
    eta, square = step_size(0.01, 0.9), 0.0
    for _ in range(steps):
        square = next_displacement(1, 0, rho=0.9, step_size=eta) ** 2 * square + eta**2
    # Each step: 3 roundings of its own, and rho's float is off by u, 2 u in the square; they are
    # forgotten as rho**2, so at most 1 / (1 - 0.81) < 6 steps of them count. eta: 3 u, twice.
    assert square == pytest.approx(printed, rel=(6 * 5 + 8) * U64, abs=0)


# --- inverses -------------------------------------------------------------------------------------

numbers = st.floats(1e-6, 1e6)
rhos = st.floats(-0.999, 0.999)
steps_of_time = st.floats(1e-4, 10)


@pytest.mark.eq(15, 18)
@given(rho=rhos, dt=steps_of_time)
@example(rho=1.0, dt=0.1)
def test_momentum_to_friction_and_back(rho, dt):
    """Eq. 15 undoes Eq. 18.

    friction dt / 2 = h has 6 roundings; drho = (1 - rho**2) / 2 dh / h, and 3 in (1 - h) / (1 + h).
    """
    error = 3 * (1 - rho * rho) + 3 * abs(rho)
    back = rho_from_friction(friction_from_rho(rho, dt), dt)
    assert back == pytest.approx(rho, rel=0, abs=1.01 * error * U64)


@given(half=st.floats(1e-6, 1e6), dt=steps_of_time)
def test_friction_to_momentum_and_back(half, dt):
    """Eq. 18 undoes Eq. 15, as well as rho, rounded beside 1, remembers the friction."""
    friction = 2 * half / dt
    rho, spread = rho_from_friction(friction, dt), 4 * half / (1 + half) ** 2  # spread: 1 - rho**2
    rho_error = spread / 2 + 3 * abs(rho)
    back = friction_from_rho(rho, dt)
    assert back == pytest.approx(friction, rel=1.01 * (2 * rho_error / spread + 5) * U64, abs=0)


@given(rho=rhos)
def test_momentum_to_reduced_temperature_and_back(rho):
    """Tau has 3 roundings; drho = (1 - rho**2) / 2 dtau / tau, and 3 on the way back."""
    error = 1.5 * (1 - rho * rho) + 3 * abs(rho)
    back = rho_from_reduced_temperature(reduced_temperature(rho))
    assert back == pytest.approx(rho, rel=0, abs=1.01 * error * U64)


@given(heat=numbers, friction=numbers, dt=steps_of_time)
def test_temperature_to_noise_and_back(heat, friction, dt):
    """Eq. 17 and its inverse: two roundings each (a factor of 2 has none)."""
    back = temperature_from_noise(noise_variance(heat, friction, dt), friction, dt)
    assert back == pytest.approx(heat, rel=1.01 * 4 * U64, abs=0)


@given(heat=numbers, lr=numbers, rho=rhos)
def test_temperature_to_balancing_noise_and_back(heat, lr, rho):
    """Eq. 19 and its inverse: three roundings each, and twice two in (1 + rho) / (1 - rho)."""
    back = noise_temperature(noise_variance_at(heat, lr, rho), lr, rho)
    assert back == pytest.approx(heat, rel=1.01 * 10 * U64, abs=0)


@pytest.mark.eq(17, 18, 19)
@given(heat=numbers, lr=numbers, rho=rhos)
def test_eq_17_with_eq_18_is_eq_19(heat, lr, rho):
    """The noise of a temperature is the same by the friction (Eq. 17) and by rho (Eq. 19).

    Roundings: 5 in the friction and 2 in dt = sqrt(lr), twice, and 2 here; 5 there.
    """
    dt = math.sqrt(lr)
    by_friction = noise_variance(heat, friction_from_rho(rho, dt), dt)
    assert by_friction == pytest.approx(noise_variance_at(heat, lr, rho), rel=16 * U64, abs=0)


# --- arrays ---------------------------------------------------------------------------------------

ARRAY_FUNCTIONS = [  # function, arguments, roundings of one evaluation
    (rho_from_friction, (3.0, 0.25), 6),
    (friction_from_rho, (0.75, 0.25), 5),
    (step_size, (0.25, 0.7), 3),
    (noise_variance, (0.7, 3.0, 0.3), 3),
    (temperature_from_noise, (0.7, 3.0, 0.3), 3),
    (noise_temperature, (0.7, 0.3, 0.6), 6),
    (noise_variance_at, (0.7, 0.3, 0.6), 6),
    (reduced_temperature, (0.7,), 4),
    (rho_from_reduced_temperature, (3.7,), 4),
    (effective_learning_rate, (0.3, 0.6), 5),
    (learning_rate_from_sgd, (0.3, 0.6), 3),
    (learning_rate_from_adam, (0.3, 0.6), 5),
    (adam_mass, (0.3, 0.6, 2.0, 0.1), 9),
    (matched_sgd_learning_rate, (0.3, 0.6, 0.5), 7),
    (adiabaticity, (0.3, 0.6), 5),
]


@pytest.mark.parametrize(("function", "arguments", "roundings"), ARRAY_FUNCTIONS)
def test_arrays_in_the_same_arrays_out(library, function, arguments, roundings, dtype):
    """Arrays of a library give its arrays, of the same dtype and shape, with the float's value."""
    expected = function(*arguments)
    result = library.compile(function)(
        *(library.array([[a, a, a]], dtype=dtype) for a in arguments)
    )
    assert library.owns(result)
    assert (library.dtype_name(result), tuple(result.shape)) == (dtype, (1, 3))
    # The arguments' rounding to float32 (3 of them, condition < 4) and the function's own.
    u = U32 if dtype == "float32" else U64
    np.testing.assert_allclose(np.asarray(result), expected, rtol=(roundings + 12) * u, atol=0)


@pytest.mark.parametrize(("function", "arguments", "_"), ARRAY_FUNCTIONS)
def test_one_array_among_numbers(library, function, arguments, _):
    """Python numbers beside an array do not change its dtype."""
    first = library.array(arguments[0], dtype="float32")
    result = library.compile(lambda x: function(x, *arguments[1:]))(first)
    assert library.owns(result)
    assert library.dtype_name(result) == "float32"


HALF = [(NUMPY, "float16")] + [
    (library, dtype)
    for library in libraries("torch", "jax", "jax-jit")
    for dtype in ("float16", "bfloat16")
]
COMPUTED = [entry for entry in ARRAY_FUNCTIONS if entry[0] is not step_size]


@pytest.mark.parametrize(("library", "half"), HALF, ids=[f"{a.name}-{b}" for a, b in HALF])
@pytest.mark.parametrize(("function", "arguments", "roundings"), COMPUTED)
def test_half_precision_is_computed_in_float32(library, half, function, arguments, roundings):
    """The value of the rounded arguments, rounded once to half precision."""
    arrays = [library.array([x], dtype=half) for x in arguments]
    result = library.compile(function)(*arrays)
    assert library.dtype_name(result) == half
    expected = function(*(float(x[0]) for x in arrays))
    # All conditions are below 4, so 3 more of float32 will do for each rounding.
    close = (2.0**-11 if half == "float16" else 2.0**-8) + 4 * roundings * U32
    value = float(library.array(result, dtype="float32")[0])
    assert value == pytest.approx(expected, rel=close, abs=2.0**-25)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (noise_variance, (100, 2, 3)),
        (temperature_from_noise, (100, 100, 2)),
        (noise_temperature, (100, 100, 0)),
        (noise_variance_at, (100, 3, 0)),
        (rho_from_friction, (100, 100)),
        (friction_from_rho, (0, 3)),
        (reduced_temperature, (0,)),
        (rho_from_reduced_temperature, (127,)),
        (rho_from_reduced_temperature, (0,)),
        (effective_learning_rate, (3, 0)),
        (learning_rate_from_sgd, (100, 0)),
        (learning_rate_from_adam, (100, 0)),
        (adam_mass, (100, 0, 3, 127)),
        (matched_sgd_learning_rate, (100, 0, 0)),
        (adiabaticity, (100, 0)),
    ],
)
@pytest.mark.parametrize("kind", ["int8", "uint8", "int32"])
def test_integers_give_floats(library, kind, function, arguments):
    """What short integers would wrap, signed or not, is the number's value in the default float."""
    result = library.compile(function)(*(library.array([x], dtype=kind) for x in arguments))
    assert library.owns(result)
    wide = library.name in ("numpy", "array_api_strict")
    assert library.dtype_name(result) == ("float64" if wide else "float32")
    expected = function(*(float(x) for x in arguments))
    assert float(result[0]) == pytest.approx(expected, rel=8 * U32, abs=0)


def test_half_precision_beside_more(library):
    """Beside a float32 array the result is float32; an integer beside it changes nothing."""
    narrow = library.array(0.5, dtype="float32")
    whole = library.array(3, dtype="int8")
    result = library.compile(lambda a, b: noise_variance(a, 2.0, b))(narrow, whole)
    assert library.dtype_name(result) == "float32"
    assert float(result) == pytest.approx(2 / 3, rel=4 * U32)


def test_numpy_scalars_keep_their_dtype():
    """And are checked as numbers are."""
    assert type(reduced_temperature(np.float16(0.5))) is np.float16
    assert type(reduced_temperature(np.float32(0.5))) is np.float32
    assert rho_from_reduced_temperature(np.uint8(0)) == -1
    with pytest.raises(ValueError, match=r"^rho must be in \[-1, 1\): np\.float64\(1\.0\)$"):
        reduced_temperature(np.float64(1.0))
    with pytest.raises(ValueError, match=r"^dt must be finite and > 0: np\.int64\(0\)$"):
        noise_variance(1.0, 1.0, np.int64(0))


@pytest.mark.parametrize("value", [True, None, "0.5", [0.5]], ids=str)
def test_what_is_no_number_is_refused(value):
    """A boolean, nothing, a string and a list: TypeError with the argument's name."""
    for function, name in [
        (reduced_temperature, "rho"),
        (rho_from_reduced_temperature, "tau"),
        (lambda x: noise_variance_at(1.0, 0.1, x), "rho"),
        (lambda x: friction_from_rho(x, 0.1), "rho"),
        (lambda x: adiabaticity(x, 0.5), "cooling_speed"),
        (lambda x: learning_rate_from_sgd(0.1, x), "momentum"),
    ]:
        with pytest.raises(TypeError, match=f"^{name} must be a real number: "):
            function(value)


def test_learning_rate_from_sgd_says_where_it_holds():
    """The first line of its help is the warning that a user of another law needs."""
    first = learning_rate_from_sgd.__doc__.splitlines()[0]
    assert first.startswith("For the constant law only")


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rho_from_friction(-1.0, 0.1), "friction must be finite and >= 0: -1.0"),
        (lambda: rho_from_friction(1.0, 0), "dt must be finite and > 0: 0"),
        (lambda: rho_from_friction(1.0, -0.1), "dt must be finite and > 0: -0.1"),
        (lambda: rho_from_friction(math.inf, 0.1), "friction must be finite and >= 0: inf"),
        (lambda: friction_from_rho(-1, 0.1), "rho must be in (-1, 1]: -1"),
        (lambda: friction_from_rho(1.5, 0.1), "rho must be in (-1, 1]: 1.5"),
        (lambda: friction_from_rho(0.5, math.nan), "dt must be finite and > 0: nan"),
        (lambda: noise_variance(-0.5, 1.0, 0.1), "temperature must be finite and >= 0: -0.5"),
        (lambda: noise_variance(0.5, -1.0, 0.1), "friction must be finite and >= 0: -1.0"),
        (lambda: temperature_from_noise(-1.0, 1.0, 0.1), "variance must be finite and >= 0: -1.0"),
        (lambda: temperature_from_noise(1.0, 0.0, 0.1), "friction must be finite and > 0: 0.0"),
        (lambda: noise_temperature(-1.0, 0.1, 0.5), "variance must be finite and >= 0: -1.0"),
        (lambda: noise_temperature(1.0, 0.1, 1.0), "rho must be in [-1, 1): 1.0"),
        (lambda: noise_variance_at(1.0, 0.0, 0.5), "learning_rate must be finite and > 0: 0.0"),
        (lambda: noise_variance_at(-1, 0.1, 0.5), "temperature must be finite and >= 0: -1"),
        (lambda: noise_variance_at(1.0, 0.1, -1.0), "rho must be in (-1, 1): -1.0"),
        (lambda: reduced_temperature(1), "rho must be in [-1, 1): 1"),
        (lambda: rho_from_reduced_temperature(-0.1), "tau must be finite and >= 0: -0.1"),
        (lambda: effective_learning_rate(0.1, 1.0), "rho must be in [-1, 1): 1.0"),
        (lambda: learning_rate_from_sgd(0.1, 1.0), "momentum must be in [0, 1): 1.0"),
        (lambda: learning_rate_from_adam(0.1, 1.0), "beta1 must be in [0, 1): 1.0"),
        (lambda: adam_mass(-1.0, 0.5, 1, 0.1), "second_moment must be finite and >= 0: -1.0"),
        (lambda: adam_mass(1.0, 1.0, 1, 0.1), "beta2 must be in [0, 1): 1.0"),
        (lambda: adam_mass(1.0, 0.5, 0, 0.1), "steps must be finite and > 0: 0"),
        (lambda: adam_mass(1.0, 0.5, 1, -0.1), "epsilon must be finite and >= 0: -0.1"),
        (lambda: matched_sgd_learning_rate(0.1, 0.5, -0.1), "momentum must be in [0, 1): -0.1"),
        (lambda: matched_sgd_learning_rate(0.1, 2.0), "rho must be in [-1, 1): 2.0"),
        (lambda: adiabaticity(-1.0, 0.5), "cooling_speed must be finite and >= 0: -1.0"),
        (lambda: adiabaticity(1.0, 1.0), "rho must be in (-1, 1): 1.0"),
    ],
)
def test_a_number_out_of_range_is_refused(call, message):
    """The message has the argument, the rule and the value."""
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call()
