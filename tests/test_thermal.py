"""The heat bath: exact temperatures by moment recursions, and the reference's draws."""

import math

import numpy as np
import pytest
from ensembles import AVERAGED, WHITE, two_points
from libraries import LIBRARIES

from coolmomentum import (
    CoolingSchedule,
    noise_variance_at,
    random_force,
    random_force_scale,
)
from coolmomentum.audit import audit
from coolmomentum.numpy import CoolMomentum, ThermalNoise, Thermometer
from coolmomentum.numpy._optimizer import State
from coolmomentum.thermal import draw_key
from coolmomentum.thermometer import (
    Bath,
    Dynamics,
    Layout,
    Window,
    known,
    moments,
    report,
    why_hotter,
)

# --- the scale ------------------------------------------------------------------------------------


@pytest.mark.eq(17)
@pytest.mark.parametrize("rho", [-0.5, 0.0, 0.5, 0.9, 0.99])
def test_the_scale_is_the_root_of_eq_17(rho):
    """At a constant learning rate, in the form of Eq. 19 for the temperature."""
    scale = random_force_scale(0.7, 0.2, rho)
    assert scale**2 == pytest.approx(noise_variance_at(0.7, 0.2, rho), rel=1e-14)


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.name)
def test_scale_and_force_of_every_library(library):
    """They are those of numbers, in the dtype of the arrays; at a rate of 0 there is none."""
    rates = library.array([0.25, 0.0], dtype="float32")
    scale = library.compile(random_force_scale)(1.0, rates, 0.6)
    assert library.owns(scale)
    assert library.dtype_name(scale) == "float32"
    assert [float(x) for x in scale] == [2.0, 0.0]
    force = library.compile(random_force)(rates, 2 * rates, 3.0)
    assert [float(x) for x in force] == [1.125, 0.0]


def test_a_learning_rate_that_falls_takes_the_heat_of_the_last_step_off():
    """Of what the displacement brings along nothing is left where it falls faster than friction."""
    assert random_force_scale(1.0, 0.1, 0.5, 0.2) ** 2 == pytest.approx(
        0.1 * (1 - 0.25 * 2) / (0.1 * 0.75) ** 2, rel=1e-14
    )
    assert random_force_scale(1.0, 0.01, 0.9, 1.0) == 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1.0, 0.1, 0.5), "temperature must be finite and >= 0: -1.0"),
        ((1.0, -0.1, 0.5), "learning_rate must be finite and >= 0: -0.1"),
        ((1.0, 0.1, 1.0), r"rho must be in \(-1, 1\): 1.0"),
        ((1.0, 0.1, -1.0), r"rho must be in \(-1, 1\): -1.0"),
        ((1.0, 0.1, 0.5, math.inf), "last_learning_rate must be finite and >= 0: inf"),
    ],
)
def test_bad_numbers(arguments, message):
    """They are refused by name, rule and value."""
    with pytest.raises(ValueError, match=message):
        random_force_scale(*arguments)


def test_another_noise_is_refused():
    """It is one of two."""
    with pytest.raises(ValueError, match="noise must be one of averaged, white: 'pink'"):
        random_force(0.0, 0.0, 1.0, noise="pink")


# --- exact moments --------------------------------------------------------------------------------


def configurational(rates, rhos, temperatures, k, noise, corrected=True):
    """``k <x**2>`` after each step on ``k x**2 / 2``, begun in equilibrium at rest.

    The moments of (x, dx, xi), which the step and a fresh normal number take from step to step.
    """
    second = np.diag([temperatures[0] / k, 0.0, 0.0])
    result = []
    for n, (lr, rho, temperature) in enumerate(zip(rates, rhos, temperatures, strict=True)):
        last = rates[max(n - 1, 0)] if corrected else None
        eta = lr * (1 + rho) / 2
        kick = eta * random_force_scale(temperature, lr, rho, last)
        old, new = (0.5 * kick, 0.5 * kick) if noise == "averaged" else (0.0, kick)
        step = np.array([[1 - eta * k, rho, old], [-eta * k, rho, old], [0, 0, 0]])
        fresh = np.array([new, new, 1.0])
        second = step @ second @ step.T + np.outer(fresh, fresh)
        result.append(k * second[0, 0])
    return np.array(result)


@pytest.mark.parametrize("stiffness", [0.1, 1.0, 3.0])  # k dt**2, stable below 4
@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9, 0.99])
def test_averaged_noise_is_exact_for_every_step_size(rho, stiffness):
    """``k <x**2> = T`` once the start is forgotten, after 45 relaxation times."""
    steps = [[x] * 9_000 for x in (0.2, rho, 1.7)]
    last = configurational(*steps, stiffness / 0.2, "averaged")[-1]
    assert last == pytest.approx(1.7, rel=1e-10)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9, 0.99])
def test_white_noise_has_the_bias_of_verlet(rho):
    """``k <x**2> = T / (1 - k dt**2 / 4)``, 4/3 at ``k dt**2 = 1``."""
    steps = [[x] * 9_000 for x in (0.2, rho, 1.7)]
    assert configurational(*steps, 1 / 0.2, "white")[-1] == pytest.approx(1.7 * 4 / 3, rel=1e-10)


@pytest.mark.parametrize("stiffness", [0.1, 1.0, 3.0])
@pytest.mark.parametrize(("law", "least", "most"), [("paper", 1e-4, 1e-4), ("linear", 4e-4, 9e-4)])
def test_it_stays_exact_while_rho_cools(law, least, most, stiffness):
    """To 1e-4 at the end of the paper's law over 2,000 steps, to 9e-4 of the linear one.

    The amplitude of the step before would end at .998 and .962, that of the next at 1.002 and 1.03.
    """
    schedule = CoolingSchedule(2000, 0.99, law)
    rhos = [schedule(n) for n in range(2000)]
    last = configurational([0.2] * 2000, rhos, [1.0] * 2000, stiffness / 0.2, "averaged")[-1]
    assert 1 - least <= last <= 1 + most


@pytest.mark.parametrize(
    ("rates", "rho", "corrected", "uncorrected"),
    [
        (np.geomspace(1, 0.01, 2000), 0.9, 1.0015, 1.01),
        (np.linspace(1, 0.01, 2000), 0.99, 1.15, 2.2),
    ],
    ids=["exponential", "linear"],
)
def test_a_falling_learning_rate(rates, rho, corrected, uncorrected):
    """``k <x**2> / T`` at its last step: above the second number without the quotient."""
    steps = rates, [rho] * 2000, [1.0] * 2000, 1.0, "averaged"
    assert 1 < configurational(*steps)[-1] < corrected
    assert configurational(*steps, corrected=False)[-1] > uncorrected


def test_annealing_lags_behind_the_bath_by_ten_steps():
    """T linear from 1 to 0 over 2,000 steps, rho 0.9 and ``k dt**2 = 1``: ``k <x**2> / T``."""
    temperatures = 1 - np.arange(2000) / 2000
    found = configurational([0.2] * 2000, [0.9] * 2000, temperatures, 1 / 0.2, "averaged")
    at = np.array([100, 500, 1000, 1500, 1800, 1900])
    expected = [1.005, 1.006, 1.010, 1.019, 1.048, 1.096]
    np.testing.assert_allclose(found[at - 1] / temperatures[at], expected, rtol=0, atol=6e-4)


# --- the reference --------------------------------------------------------------------------------


def positions(optimizer, bath, gradient, start, steps, state=None):
    """The positions of a walk, with the state after it."""
    params, xs = [np.asarray(start)], []
    state = state or optimizer.init(params)
    for _ in range(steps):
        gradients = bath.add([gradient(x) for x in params], state, optimizer)
        params, state = optimizer.step(params, gradients, state)
        xs.append(params[0])
    return np.array(xs), state


def baoa(gradient, x, dt, friction, temperature, normals, steps):
    """Positions of the splitting B A O A of Langevin dynamics (Leimkuhler and Matthews, 2013).

    Written with momenta: a kick, half a drift, friction and noise, half a drift.
    """
    p, decay, xs = np.zeros_like(x), math.exp(-friction * dt), []
    for n in range(steps):
        p = p - dt * gradient(x)
        x = x + dt / 2 * p
        p = decay * p + math.sqrt(temperature * (1 - decay**2)) * normals[n + 1]
        x = x + dt / 2 * p
        xs.append(x)
    return np.array(xs)


@pytest.mark.parametrize(
    ("gradient", "bound"),
    [(lambda x: 2 * x, 1e-13), (lambda x: 4 * x * (x * x - 1), 1e-11)],
    ids=["quadratic", "double well"],
)
def test_it_is_baoab_step_by_step(gradient, bound):
    """With the same numbers the walk is that of BAOA, whose friction is ``-log(rho) / dt``.

    200 steps from rest; the bounds are those of two float64 orders of operations in a stable walk
    and in one that is chaotic at times.
    """
    dt, friction, temperature, steps = 0.3, 1.0, 0.4, 200
    rho = math.exp(-friction * dt)
    normals = np.random.default_rng(1).standard_normal((steps + 1, 8))
    normals[0] = 0
    start = np.linspace(-1, 1, 8)
    optimizer = CoolMomentum(learning_rate=dt**2, law="constant", rho0=rho)
    bath = ThermalNoise(temperature, normals=lambda i, n, shape: normals[n])
    xs, _ = positions(optimizer, bath, gradient, start, steps)
    others = baoa(gradient, start, dt, friction, temperature, normals, steps)
    np.testing.assert_allclose(xs, others, rtol=0, atol=bound)


@pytest.mark.parametrize(
    ("noise", "virial", "energy"), [("averaged", 0.4017, 0.2296), ("white", 0.477, 0.2702)]
)
def test_the_double_well(noise, virial, energy):
    """``<x U'>`` and ``<U>`` of ``(x**2 - 1)**2`` at T = 0.4, where exactly .4 and .2286.

    The values are those of a hundred times longer runs; four standard errors of independent walkers
    are allowed beside their last digits.
    """
    dt, walkers = 0.3, 3000
    rho = (1 - dt / 2) / (1 + dt / 2)  # Eq. 15 with a friction of 1
    optimizer = CoolMomentum(learning_rate=dt**2, law="constant", rho0=rho)
    bath = ThermalNoise(0.4, noise=noise)
    start = np.random.default_rng(2).choice([-1.0, 1.0], walkers)
    xs, _ = positions(optimizer, bath, lambda x: 4 * x * (x * x - 1), start, 1000)
    x = xs[200:]
    for values, expected in ((4 * x * x * (x * x - 1), virial), ((x * x - 1) ** 2, energy)):
        each = values.mean(axis=0)
        error = each.std() / math.sqrt(walkers)
        assert each.mean() == pytest.approx(expected, abs=4 * error + 5e-4)
        assert error < 0.002


def test_a_run_that_goes_on_draws_the_same_numbers():
    """Twice ten steps are twenty, bit for bit: nothing but the optimizer's state is saved."""
    optimizer = CoolMomentum(learning_rate=0.1, total_steps=20, rho0=0.9)
    start = np.zeros(5)
    whole, _ = positions(optimizer, ThermalNoise(1.0, seed=3), lambda x: x, start, 20)
    first, state = positions(optimizer, ThermalNoise(1.0, seed=3), lambda x: x, start, 10)
    rest, _ = positions(optimizer, ThermalNoise(1.0, seed=3), lambda x: x, first[-1], 10, state)
    np.testing.assert_array_equal(np.concatenate([first, rest]), whole)


def forces(seed, parameters=1, steps=2, noise="white"):
    """The forces on parameters of 1,000 coordinates, of shape (steps, parameters, 1000)."""
    optimizer = CoolMomentum(learning_rate=0.1, law="constant", rho0=0.5)
    bath = ThermalNoise(1.0, noise=noise, seed=seed)
    zeros = [np.zeros(1000)] * parameters
    return np.array([bath.add(zeros, State(n, tuple(zeros)), optimizer) for n in range(steps)])


def test_every_parameter_step_and_seed_has_numbers_of_its_own():
    """No two of them correlate by more than five standard errors, one shifted by a step either."""
    each = np.concatenate([forces(seed, 3, 4) for seed in (0, 1)], axis=1).reshape(-1, 1000)
    correlations = np.corrcoef(each) - np.eye(len(each))
    assert np.abs(correlations).max() < 5 / math.sqrt(1000)
    keys = {draw_key(s, p, n) for s in range(20) for p in range(20) for n in range(20)}
    assert len(keys) == 20**3
    assert all(0 <= key < 2**63 for key in keys)


def test_every_number_serves_two_steps():
    """Forces of averaged noise correlate by one half from step to step, and not beyond."""
    first, second, third = forces(0, steps=4, noise="averaged")[1:, 0]
    assert np.corrcoef(first, second)[0, 1] == pytest.approx(0.5, abs=5 / math.sqrt(1000))
    assert np.corrcoef(first, third)[0, 1] == pytest.approx(0.0, abs=5 / math.sqrt(1000))
    assert forces(0, noise="averaged")[0].std() == pytest.approx(
        forces(0)[0].std() / 2, rel=1e-12
    )  # xi_0 is 0


def test_complex_parameters_feel_it_in_both_parts():
    """Each has the temperature of the bath."""
    optimizer = CoolMomentum(learning_rate=0.5, law="constant", rho0=0.5)
    xs, _ = positions(optimizer, ThermalNoise(2.0), lambda x: x, np.zeros(4000, np.complex128), 60)
    for part in (xs[-1].real, xs[-1].imag):
        assert np.mean(part**2) == pytest.approx(2.0, rel=5 * math.sqrt(2 / 4000))


def test_parameters_without_a_gradient_feel_nothing():
    """None stays None."""
    optimizer = CoolMomentum(learning_rate=0.5, law="constant", rho0=0.5)
    state = optimizer.init([np.zeros(2), np.zeros(3)])
    force, none = ThermalNoise(1.0, noise="white").add([np.zeros(2), None], state, optimizer)
    assert force.any()
    assert none is None


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"temperature": -1.0}, ValueError, "temperature must be finite and >= 0: -1.0"),
        ({"temperature": "hot"}, TypeError, "temperature must be a real number: 'hot'"),
        ({"temperature": 1.0, "noise": "pink"}, ValueError, "noise must be one of averaged, white"),
        ({"temperature": 1.0, "seed": -1}, ValueError, "seed must be >= 0: -1"),
        ({"temperature": 1.0, "seed": 0.5}, TypeError, "seed must be an integer: 0.5"),
    ],
    ids=lambda x: str(x),
)
def test_bad_settings(settings, error, message):
    """They fail at construction."""
    with pytest.raises(error, match=message):
        ThermalNoise(**settings)


def test_a_temperature_of_ones_own_is_checked():
    """In the step in which it is not one."""
    bath = ThermalNoise(lambda n: 1 - n)
    assert bath.temperature_at(1) == 0
    with pytest.raises(ValueError, match=r"temperature\(2\) must be finite and >= 0: -1"):
        bath.temperature_at(2)


def test_the_thermometer_of_the_reference_reads_the_bath():
    """On a stiff quadratic, ``k dt**2 = 2``, from 4,000 coordinates and 50 of 100 measured steps.

    Successive squares are all but independent there: 4 standard errors of 2e5 of them.
    """
    optimizer, bath = CoolMomentum(learning_rate=0.5, law="constant", rho0=0.5), ThermalNoise(2.0)
    thermometer, params = Thermometer(every=2, span=10), [np.zeros(4000)]
    state, seen = optimizer.init(params), thermometer.init(params)
    for n in range(120):
        gradients = bath.add([4 * x for x in params], state, optimizer)
        params, state = optimizer.step(params, gradients, state)
        how = {"rho": 0.5, "learning_rate": 0.5, "bath": Bath(2.0)}
        seen = thermometer.update(seen, params, **how) if n >= 20 else thermometer.init(params)
    found = thermometer.read(seen)
    assert found["bath_ratio"] == pytest.approx(1, abs=4 * math.sqrt(2 / 2e5))
    assert found["curvature"] == pytest.approx(2, abs=0.05)


# --- the thermometer in a bath --------------------------------------------------------------------


def reading(rho, dt2, now, before, bath, path=None):
    """Of one measured step of one parameter."""
    layout = Layout.of(["x"], [np.size(now)])
    window = Window.empty(np.zeros(len(layout))).step()
    table = moments([np.asarray(now)], [np.asarray(before)])
    return report(window.add(table, layout, Dynamics(rho, dt2, bath)), layout), layout


@pytest.mark.parametrize(("settings", "t22", "c1", "_"), AVERAGED)
def test_averaged_noise_reads_the_temperature_of_the_bath(settings, t22, c1, _):
    """From displacements with exactly the moments of a walk at rest: T, k dt**2, and no drift."""
    rho, dt2, k, temperature = map(float, settings)
    variance = float(t22) * dt2
    before, now = two_points(variance, float(c1) * variance)
    found, _ = reading(rho, dt2, now, before, Bath(temperature))
    assert found["temperature"] == pytest.approx(temperature, rel=1e-12)
    assert found["bath_ratio"] == pytest.approx(1, rel=1e-12)
    assert math.isnan(found["three_point_temperature"])
    assert found["curvature"] == pytest.approx(k * dt2, rel=1e-10, abs=1e-10)
    assert found["drift"] == 0


@pytest.mark.parametrize(("settings", "t22", "c1"), WHITE)
def test_white_noise_needs_no_correction(settings, t22, c1):
    """The readings are those without a bath, and the ratio is that of Eq. 22."""
    rho, dt2, _, temperature = map(float, settings)
    variance = float(t22) * dt2
    before, now = two_points(variance, float(c1) * variance)
    found, _ = reading(rho, dt2, now, before, Bath(temperature, "white"))
    plain, _ = reading(rho, dt2, now, before, None)
    assert found["bath_ratio"] == pytest.approx(float(t22) / temperature, rel=1e-12)
    assert math.isnan(plain["bath_ratio"])
    assert known(found | {"bath_ratio": 0}) == known(plain | {"bath_ratio": 0})


def free_walks(rho, rows=200, size=20, span=20, spans=50):
    """Readings of many walks that diffuse freely in a bath at 1.5, each a row."""
    random, eta = np.random.default_rng(5), 0.1 * (1 + rho) / 2
    scale = random_force_scale(1.5, 0.1, rho)
    layout, how = Layout.of(range(rows), (size,) * rows), Dynamics(rho, 0.1, Bath(1.5))
    window = Window.empty(np.zeros(rows + 1))
    v, y, xi = np.zeros((rows, size)), np.zeros((rows, size)), np.zeros((rows, size))
    for n in range(-10 * span, spans * span):
        before, old, xi = v, xi, random.standard_normal(v.shape)
        v = rho * v + eta * random_force(old, xi, scale)
        y = v if n % span == 0 else y + v
        if n >= 0:
            now, last, both, path, end = (
                np.sum(part, axis=1) for part in (v * v, before * before, v * before, y * y, y * v)
            )
            table = np.array([now, last, both, now, last, both, path, end])
            ends = (n + 1) % span == 0
            window = window.step().measure(table if ends else table[:6], layout, how)
    return {name: x[:-1] for name, x in window.readings(layout).items()}


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_free_diffusion_in_a_bath(rho):
    """Both temperatures are that of the bath, freeze-out is 0, not -r, and nothing drifts.

    Within four standard errors of 200 walks; that of freeze-out has an end effect of 1 / (2 W) at
    most, and drift is on in three of a thousand.
    """
    found = free_walks(rho)
    expected = {"temperature": 1.5, "predicted_temperature": 1.5, "bath_ratio": 1.0}
    for name, value in (expected | {"freeze_out": 0.0}).items():
        error = 4 * found[name].std() / math.sqrt(200) + (1 / 40 if name == "freeze_out" else 0)
        assert found[name].mean() == pytest.approx(value, abs=error)
    assert found["drift"].sum() <= 3
    assert found["correlation"].mean() == pytest.approx((1 + rho) / 2, abs=0.005)


def test_a_window_knows_the_mean_of_a_bath_that_cools():
    """Each step is corrected with its own rho and compared with its own temperature."""
    layout = Layout.of(["x"], [2])
    window = Window.empty(np.zeros(len(layout)))
    for rho, temperature in ((0.9, 2.0), (0.5, 1.0), (0.0, 0.25)):
        now = np.full(2, math.sqrt(temperature * 0.1 * (1 + rho) / 2))
        how = Dynamics(rho, 0.1, Bath(temperature))
        window = window.step().add(moments([now], [now]), layout, how)
    found = report(window, layout)
    assert found["temperature"] == pytest.approx(3.25 / 3, rel=1e-12)
    assert found["bath_ratio"] == pytest.approx(1, rel=1e-12)


def test_an_unknown_rho_gives_no_temperature_in_averaged_noise():
    """The correction needs it; that of white noise does not."""
    averaged, _ = reading(None, 0.1, [1.0], [1.0], Bath(1.0))
    white, _ = reading(None, 0.1, [1.0], [1.0], Bath(1.0, "white"))
    assert math.isnan(averaged["temperature"])
    assert white["temperature"] == pytest.approx(10)


@pytest.mark.parametrize(("ratio", "warns"), [(1.04, False), (1.06, True), (math.nan, False)])
def test_a_hotter_walk_is_explained(ratio, warns):
    """Above 5 per cent, where the reading is exact enough to say so."""
    found = {"steps": 10_000, "bath_ratio": ratio, "correlation": 0.9}
    text = why_hotter(found, Layout.of(["w"], [1000]))
    assert (text is not None) is warns
    assert why_hotter(found | {"steps": 1}, Layout.of(["w"], [10])) is None
    if warns:
        assert text.startswith("the walk is 1.06 times as hot as its bath: minibatch gradients")


# --- the audit ------------------------------------------------------------------------------------


def langevin(rho, noise="averaged", fraction=0.25):
    """The reference at a fraction of its largest stable step."""

    def sample(problem, x, temperature):
        rate = 4 * fraction / problem.curvature
        optimizer = CoolMomentum(learning_rate=rate, law="constant", rho0=rho)
        bath = ThermalNoise(temperature, noise=noise)
        params, state = [x], optimizer.init([x])
        while True:
            gradients = bath.add([problem.gradient(params[0])], state, optimizer)
            params, state = optimizer.step(params, gradients, state)
            yield params[0]

    return sample


def sgld(problem, x, temperature):
    """Euler's scheme of overdamped dynamics at a quarter of its largest stable step."""
    random, h = np.random.default_rng(3), 0.5 / problem.curvature
    while True:
        x = x - h * problem.gradient(x)
        x = x + math.sqrt(2 * h * temperature) * random.standard_normal(x.shape)
        yield x


MODES = "modes k = 1, 10, 100"


def test_the_audit_of_the_reference():
    """Every coordinate of the modes and of the posterior has the temperature, at rho = 0.8.

    Within four standard errors; the thermometer agrees on the modes, which are harmonic.
    """

    def told(problem):
        return Dynamics(0.8, 1 / problem.curvature, Bath(0.5))

    found = audit(langevin(0.8), 0.5, steps=400, burn_in=200, replicas=500, dynamics=told)
    for name in (MODES, "posterior"):
        deviation = np.abs(found[name].ratio - 1)
        assert (deviation <= 4 * found[name].error + (0.01 if name == "posterior" else 0)).all()
    assert found[MODES].reading["bath_ratio"] == pytest.approx(1, abs=0.01)
    assert (found[MODES].error < [0.06, 0.03, 0.02]).all()


@pytest.mark.parametrize("sampler", [langevin(0.0, "white"), sgld], ids=["white", "SGLD"])
def test_the_audit_finds_a_bias(sampler):
    """1 / (1 - 1/4) on the stiffest mode at a quarter of the limit, and 1 / (1 - 1/40) on the next.

    SGLD is the white walk at rho = 0 with twice the step.
    """
    found = audit(sampler, 0.5, steps=400, burn_in=400, replicas=500)[MODES]
    expected = [1 / (1 - 1 / 400), 1 / (1 - 1 / 40), 4 / 3]
    assert (np.abs(found.ratio - expected) <= 4 * found.error).all()
    assert found.error[2] < 0.01


def test_the_audit_of_a_walk_that_diverges():
    """It reads infinity or NaN, and nothing is raised."""
    found = audit(langevin(0.5, fraction=1.1), steps=600, burn_in=300, replicas=10)[MODES]
    assert not found.ratio[2] < 100
