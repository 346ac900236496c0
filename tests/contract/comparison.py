"""A run and the float64 reference side by side, and the bound on their distance."""

from typing import Any

import numpy as np
from bounds import FORMATS, Precision, RunningBound, rounded
from drivers import Oracle

from coolmomentum import rescaled_temperature

# A palindrome, so that parameters can be permuted where each set of shapes is compiled anew; 129 is
# more than a vector register, with something left over.
SHAPES = ((3, 43), (), (0,), (), (3, 43))
KINDS = ("moderate", "wide", "zeros", "subnormal", "huge")


def unit_roundoff(dtype):
    """Half the distance from 1 to the next number."""
    return FORMATS[dtype].u


def draw(seed, dtype, shapes=SHAPES, kind="moderate", layouts=("C",)):
    """Numbers for all parameters that the dtype holds exactly, as float64 arrays.

    They are of four decades ("moderate"), of the whole range of the dtype with zeros among them
    ("wide"), zero, subnormal, or as large as 14 steps with a learning rate <= 1 can take without
    overflow ("huge": displacements then grow by at most 14, parameters by 14**2 / 2, weight decay
    at most doubles each, and that is below 2**10).
    """
    random, form = np.random.default_rng(seed), FORMATS[dtype]
    arrays = []
    for shape in shapes:
        if kind == "moderate":
            x = 10.0 ** random.integers(-2, 2) * random.standard_normal(shape)
        elif kind == "wide":
            exponents = random.uniform(form.low - form.digits + 2, form.high - 11, shape)
            x = np.ldexp(random.choice([-1.0, 0.0, 1.0, 1.0], shape) * 2 ** (exponents % 1),
                         np.floor(exponents).astype(int))  # fmt: skip
        elif kind == "zeros":
            x = np.zeros(shape)
        elif kind == "subnormal":
            whole = random.integers(-(2 ** (form.digits - 1)) + 1, 2 ** (form.digits - 1), shape)
            x = whole * form.subnormal
        else:
            x = random.choice([-1.0, 1.0], shape) * random.uniform(0.5, 1, shape)
            x = x * 2.0 ** (form.high - 11)
        arrays.append(laid_out(rounded(x, dtype), str(random.choice(layouts))))
    return arrays


def laid_out(x, layout):
    """The same numbers in C or Fortran order, or with gaps between them."""
    if layout == "F":
        return np.array(x, order="F")
    if layout == "gaps" and x.ndim:
        return np.repeat(x, 2, axis=-1)[..., ::2]
    return np.asarray(x)


def assert_within(ours: Any, expected: Any, bound: Any, what: str, step: Any = None) -> None:
    """Fail unless ``|ours - expected| <= bound`` everywhere, and say where it is worst.

    The message names array, coordinate, step, deviation and bound. NaN is within no bound; where
    the bound is 0, equal infinities and NaN at the same place are equal.
    """
    ours, expected = np.asarray(ours), np.asarray(expected)
    when = "" if step is None else f" after step {step}"
    assert ours.shape == expected.shape, f"{what}{when}: shape {ours.shape}, not {expected.shape}"
    bound = np.broadcast_to(bound, ours.shape)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        error = np.abs(ours - expected)
        same = (ours == expected) | (np.isnan(ours) & np.isnan(expected))
        wrong = ~((error <= bound) | (same & (bound == 0)))
        if not wrong.any():
            return
        excess = np.where(np.isnan(error / bound), np.inf, error / bound)
    at = np.unravel_index(np.argmax(np.where(wrong, excess, -1.0)), ours.shape)
    place = f"[{', '.join(map(str, map(int, at)))}]" if at else ""
    raise AssertionError(
        f"{what}{place}{when}: {ours[at]!r}, not {expected[at]!r}; deviation "
        f"{error[at]:.3g}, bound {bound[at]:.3g} ({int(wrong.sum())} of {wrong.size} are wrong)"
    )


class Comparison:
    """A run and the reference, which do everything together, and the bound on their distance."""

    def __init__(self, driver, cooling, lr=2.0**-7, decay=0.0, seed=0, **options):
        shapes, kind = options.pop("shapes", SHAPES), options.pop("kind", "moderate")
        self.driver, self.cooling, self.dtype = driver, cooling, driver.dtype
        self.options = {"decoupled": False, "maximize": False} | options
        self.precision = driver.precision
        self.shapes, self.last_lr = list(shapes), None
        start = draw(seed, driver.dtype, shapes, kind, driver.layouts)
        lr = float(np.float32(lr))
        self.run = driver.make(start, lr, cooling, decay, **options)
        self.oracle = Oracle(start, lr, cooling, decay, **self.options)
        self.bounds = []
        self._bound(start)

    def _bound(self, start):
        for x in start:
            self.bounds.append(RunningBound(self.precision))
            self.bounds[-1].start(x)

    def step(self, seed, kind="moderate"):
        """The same gradients for both."""
        gradients = draw(seed, self.dtype, self.shapes, kind, self.driver.layouts)
        oracle = self.oracle
        if oracle.state.step == 0 == oracle.lr and not any(g.any() for g in gradients):
            return  # to PyTorch a dry run by torch.distributed.checkpoint, which it does not count
        rho = float(self.cooling(oracle.state.step))
        error = self.precision.rho_error(self.cooling, rho)
        sign = -1.0 if self.options["maximize"] else 1.0
        for bound, x, dx, g in zip(
            self.bounds, oracle.xs, oracle.state.displacements, gradients, strict=True
        ):
            bound.step(
                x, dx, sign * g, oracle.lr, rho, oracle.decay, error, self.options["decoupled"]
            )
        oracle.step(gradients)
        self.run.step(gradients)
        self.last_lr = oracle.lr

    def set_lr(self, lr):
        """Another learning rate for both, one that every dtype holds."""
        self.oracle.lr = float(np.float32(lr))  # Keras keeps it in float32 whatever the variables
        self.run.set_lr(self.oracle.lr)

    def add(self, seed, shapes):
        """More parameters for both."""
        new = draw(seed, self.dtype, shapes, layouts=self.driver.layouts)
        self.shapes += shapes
        self.run.add(new)
        self.oracle.add(new)
        self._bound(new)

    def skip(self):
        """Gradients that are not finite, for the run; the reference does nothing."""
        self.run.skip()
        for bound in self.bounds:
            bound.skip()

    def reload(self):
        """Go on with a fresh run, from the checkpoint of this one."""
        self.run = self.run.reloaded()

    def check(self):
        """Clock exactly; rho, displacements, parameters and temperature within their bounds."""
        state = self.oracle.state
        assert self.run.clock() == state.step
        rho = float(self.cooling(state.step))
        # It may be read in float32 where it is computed in float64.
        reading = Precision("float32", "float32", flushes=self.precision.flushes)
        error = max(p.rho_error(self.cooling, rho) for p in (self.precision, reading))
        assert_within(self.run.rho(), rho, error, "rho", state.step)
        params, moved = self.run.params(), self.run.displacements()
        lists = params, self.oracle.xs, moved, state.displacements, self.bounds
        for i, (x, exact, dx, exact_dx, bound) in enumerate(zip(*lists, strict=True)):
            assert_within(x, exact, bound.x, f"parameter {i}", state.step)
            assert_within(dx, exact_dx, bound.dx, f"displacement {i}", state.step)
        self._check_temperature(moved)

    def _check_temperature(self, moved):
        """That of the run's own displacements and of the learning rate that made them.

        A sum of N squares makes N roundings, the mean and the division 3, the learning rate one;
        each square and each sum may underflow. Where the squares overflow, so does the reading.
        """
        at_rest = self.last_lr is None
        if (self.oracle.lr if at_rest else self.last_lr) == 0:
            return  # there is none
        reading, form = self.run.temperature(), self.precision.arithmetic
        if at_rest:
            assert reading == 0
            return
        size = sum(dx.size for dx in moved)
        with np.errstate(over="ignore"):
            exact = float(rescaled_temperature([np.ascontiguousarray(dx) for dx in moved]))
        if exact * max(size, 1) / min(self.last_lr, 1.0) >= form.largest / 2:
            assert reading > 0
            return
        # Squares and sum are made in the arithmetic of the step, or better.
        error = self.precision.gamma(size + 4) * exact + 3 * self.precision.absolute
        bound = error / self.last_lr + self.precision.absolute
        assert_within(reading, exact / self.last_lr, bound, "temperature", self.oracle.state.step)
