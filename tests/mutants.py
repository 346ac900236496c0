"""Show that the tests see mistakes: each is put into a copy of the package, and has to be caught.

Run as ``python tests/mutants.py``, or with words that the mistakes to try must contain. It prints a
table, and fails if a mistake is not caught, cannot be made any more, or the package as it is fails.
A mistake is a text that stands in the sources exactly once, and what stands there instead.
"""

import gc
import importlib
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest
from rich.console import Console
from rich.markup import escape
from rich.table import Table

ROOT = Path(__file__).parent.parent
FORK = multiprocessing.get_context("fork")
KERAS_BACKEND = "torch"
# What the tests import is imported once, and children of this process have it: frameworks, which
# have not started threads yet (a child would lack them), but not the package.
IMPORTED = (
    "triton_interpreter",
    "array_api_strict",
    "flax",
    "optax",
    "sybil",
    "torch._dynamo",
    "keras",
)


@dataclass(frozen=True)
class Selection:
    """Some tests of a file, as ``-k`` chooses them; few, because each mistake runs them."""

    file: str
    chosen: str
    keras: bool = False  # in a process whose Keras is on PyTorch


@dataclass(frozen=True)
class Mutant:
    """A mistake, and the tests that have to catch it."""

    mistake: str
    file: str
    old: str
    new: str
    tests: Selection


def contract(test: str, path: str) -> Selection:
    """Selection of the contract suite for the paths whose names have these words."""
    words = " and ".join([test, *path.split()])
    return Selection("contract/test_contract.py", words, keras=path.startswith("keras"))


def read_keras(test: str) -> Selection:
    """Selection of a test of the Keras thermometer."""
    return Selection("keras_adapter/test_keras_thermometer.py", test, keras=True)


EXACT, LAWS, ANY_ORDER, RELOADED, END = (
    "test_exact_trajectories",
    "test_every_law_warm_up",
    "test_anything_in_any_order",
    "test_a_reloaded_run",
    "test_rho_falls_to_exactly_zero",
)
TORCH, JAX, KERAS = "torch default float64", "jax jitted float64", "keras eager float64"
OPTIONS = Selection("test_update.py", "test_options")
READ_TORCH = "torch_adapter/test_torch_thermometer.py"
READ_JAX = Selection("test_jax_thermometer.py", "test_it_reads_what and 5")
LIST = Selection("test_thermometer.py", "test_the_list and numpy and float64")
MOVED = "    moved = next_displacement(velocity, slope, rho=rho, step_size=step_size("

CORE = [
    Mutant(
        "factor (1 + rho) / 2 dropped (Eq. 16)",
        "langevin.py",
        "    return learning_rate * ((1 + rho) / 2)",
        "    return learning_rate",
        contract(EXACT, TORCH),
    ),
    Mutant(
        "clock off by one",
        "schedules.py",
        "    n = _clamp(step - start, span, xp)",
        "    n = _clamp(step - start + 1, span, xp)",
        contract(EXACT, TORCH),
    ),
    Mutant(
        "no clamp after the last step",
        "schedules.py",
        "    return min(max(n, 0), span) if xp is math else xp.clip(n, 0, span)",
        "    return n",
        contract(EXACT, TORCH),
    ),
    Mutant(
        "rho by a float32 power of alpha (Eq. 20)",
        "schedules.py",
        "    return -xp.expm1(remaining / span * _log_complement(rho0, xp))",
        "    return 1 - (1 - rho0) / float(np.float32((1 - rho0) ** (1 / span))) ** n",
        contract(END, TORCH),
    ),
    Mutant(
        "warm-up clocks exchanged",
        "schedules.py",
        '    start = warmup_steps if warmup_clock == "hold" else 0',
        '    start = warmup_steps if warmup_clock == "run" else 0',
        Selection("test_schedules.py", "test_the_clock_may_hold or test_the_clock_runs_on"),
    ),
    Mutant(
        "hold_steps do not shorten the cooling",
        "schedules.py",
        "    span = total_steps - start",
        "    span = total_steps - (0 if holds else start)",
        Selection("test_schedules.py", "test_rho_is_held_and_then_cools and numpy"),
    ),
    Mutant(
        "half precision computed in half precision",
        "schedules.py",
        "    work = wide_dtype(dtype, xp)",
        "    work = dtype",
        Selection("test_schedules.py", "test_a_half_precision_rho and numpy"),
    ),
    Mutant(
        "learning rate outside the displacement",
        "update.py",
        f"{MOVED}learning_rate, rho))\n    return _stored(position + moved, x, xp)",
        f"{MOVED}1.0, rho))\n    return _stored(position + learning_rate * moved, x, xp)",
        contract(LAWS, TORCH),
    ),
    Mutant(
        "weight decay after the update",
        "update.py",
        f"        slope = slope + weight_decay * position\n{MOVED}learning_rate, rho))\n",
        f"        pass\n{MOVED}learning_rate, rho))\n    position = position * (\n"
        "        1 - weight_decay * step_size(learning_rate, rho) * (not decoupled_weight_decay)\n"
        "    )\n",
        contract(LAWS, TORCH),
    ),
    Mutant(
        "decoupled weight decay counted as displacement",
        "update.py",
        "_stored(moved, displacement, xp)",
        "_stored(position + moved - upcast(x, xp), displacement, xp)",
        OPTIONS,
    ),
    Mutant(
        "sign of maximize",
        "update.py",
        "    slope = -slope if maximize else slope",
        "    slope = slope if maximize else -slope",
        OPTIONS,
    ),
    Mutant(
        "sum of the displacements squared, not of their squares",
        "temperature.py",
        "    return xp.sum(x * x)",
        "    return xp.sum(x) ** 2",
        contract(LAWS, TORCH),
    ),
    Mutant(
        "thermometer: sign of the product of successive displacements",
        "thermometer/window.py",
        "    both = mass_now + mass_before + 2 * mass_product",
        "    both = mass_now + mass_before - 2 * mass_product",
        LIST,
    ),
    Mutant(
        "thermometer: energies not divided by dt**2",
        "thermometer/window.py",
        "    step = xp.stack([now, mass_now / dt2, rho, no_rho, no_dt2])",
        "    step = xp.stack([now, mass_now, rho, no_rho, no_dt2])",
        LIST,
    ),
    Mutant(
        "thermometer: three points without 2 / (1 + rho)",
        "temperature.py",
        "    return 2 * learning_rate * (1 + rho)",
        "    return 4 * learning_rate",
        LIST,
    ),
    Mutant(
        "thermometer: the squares of a span are carried into the next",
        "thermometer/window.py",
        "xp.stack(list(meter)), zero]",
        "xp.stack(list(meter)), self.sums[-1:, :]]",
        Selection("test_numpy_thermometer.py", "test_a_span_begins_anew"),
    ),
]
NUMPY = [
    Mutant(
        "thermometer: measures the step after the one in every",
        "numpy/_thermometer.py",
        "        if now is not None and self.measures(n):",
        "        if now is not None and self.precedes(n):",
        Selection("test_numpy_thermometer.py", "test_it_reads_the_displacements"),
    ),
    Mutant(
        "clock advances without gradients",
        "numpy/_optimizer.py",
        "State(state.step + applied, ",
        "State(state.step + 1, ",
        Selection("test_numpy_optimizer.py", "test_the_clock_counts_applied_steps"),
    ),
    Mutant(
        "clock not carried in a portable state",
        "numpy/_portable.py",
        "        saved.clock,\n",
        "        state.step,\n",
        Selection(
            "contract/test_state_transfer.py",
            "test_a_run_moves and torch and numpy and float64 and not float32",
        ),
    ),
]
TORCH_MUTANTS = [
    Mutant(
        "learning rate outside the displacement",
        "torch/_paths.py",
        "        torch._foreach_add_(displacements, grads, alpha=-sign * step.eta)\n"
        "    torch._foreach_add_(params, displacements)",
        "        torch._foreach_add_(displacements, grads, alpha=-sign * step.eta / step.lr)\n"
        "    torch._foreach_add_(params, displacements, alpha=step.lr)",
        contract(LAWS, "torch foreach float64"),
    ),
    Mutant(
        "factor (1 + rho) / 2 dropped",
        "torch/_clock.py",
        "        step_size(lr, rho),\n",
        "        lr,\n",
        contract(EXACT, TORCH),
    ),
    Mutant(
        "weight decay after the update",
        "torch/_paths.py",
        "        grads = list(torch._foreach_add(grads, params, alpha=sign * step.weight_decay))\n",
        "        torch._foreach_mul_(params, 1 - step.eta * step.weight_decay)\n",
        contract(LAWS, "torch foreach float64"),
    ),
    Mutant(
        "decoupled weight decay after the displacement",
        "torch/_optimizer.py",
        "            if tick(group, step.lr):\n",
        "            for x, dx in zip(tensors.params, tensors.displacements, strict=True):\n"
        "                if step.decoupled_weight_decay:\n"
        "                    dx.sub_(step.lr * step.weight_decay * x)\n"
        "            if tick(group, step.lr):\n",
        Selection("torch_adapter/test_torch_update.py", "test_decoupled_weight_decay"),
    ),
    Mutant(
        "the paths of the first step kept for good",
        "torch/_paths.py",
        "            and bool(self._guards.check(*every))\n",
        "",
        Selection("torch_adapter/test_torch_choice.py", "laid_out_anew"),
    ),
    Mutant(
        "sign of maximize",
        "torch/_paths.py",
        "    sign = -1.0 if step.maximize else 1.0\n",
        "    sign = 1.0 if step.maximize else -1.0\n",
        contract(EXACT, "torch foreach float64"),
    ),
    Mutant(
        "one pass: displacements summed, not their squares",
        "torch/_one_pass.py",
        "tl.sum(stored.to(tl.float32) * stored.to(tl.float32))",
        "tl.sum(stored.to(tl.float32))",
        Selection("torch_adapter/test_torch_one_pass.py", "there_after_a_step"),
    ),
    Mutant(
        "one pass: the sum kept when the displacement has changed",
        "torch/_thermometry.py",
        "        return known is not None and known[0] == tensor._version\n",
        "        return known is not None\n",
        Selection("torch_adapter/test_torch_one_pass.py", "summed_anew"),
    ),
    Mutant(
        "one pass: sums written to new memory in every step",
        "torch/_thermometry.py",
        "            return known\n",
        "            return known.clone()\n",
        Selection("torch_adapter/test_torch_one_pass.py", "where_the_last_one_did"),
    ),
    Mutant(
        "one pass: the sum kept when another kernel moves the displacement",
        "torch/_optimizer.py",
        "                known_squares.forget(here.displacements)\n",
        "",
        Selection("torch_adapter/test_torch_one_pass.py", "summed_anew"),
    ),
    Mutant(
        "one pass: autograd not told of the step",
        "torch/_one_pass.py",
        "                torch.autograd.graph.increment_version(written)\n",
        "                pass\n",
        Selection("torch_adapter/test_torch_one_pass.py", "autograd_notices"),
    ),
    Mutant(
        "warm-up clock ignored",
        "torch/_clock.py",
        "            return _cooled_rho(step, *cooling)",
        '            return _cooled_rho(step, *cooling[:-1], "run")',
        contract(LAWS, TORCH),
    ),
    Mutant(
        "clock advances in a skipped step",
        "torch/_optimizer.py",
        "            if not self._is_dry_run() and not self._is_skipped():\n",
        "            if self._is_skipped():\n"
        "                for group in self.param_groups:\n"
        '                    tick(group, group["lr"])\n'
        "            elif not self._is_dry_run():\n",
        contract(ANY_ORDER, "torch fused float64"),
    ),
    Mutant(
        "displacement not saved",
        "torch/_optimizer.py",
        '            packed["state"] = plain(packed["state"])\n',
        '            packed["state"] = {}\n',
        contract(RELOADED, TORCH),
    ),
    Mutant(
        "clock not loaded",
        "torch/_optimizer.py",
        '    clock = clock_of(saved["cooling_step"])\n',
        '    clock = clock_of(own["cooling_step"])\n',
        contract(RELOADED, TORCH),
    ),
    Mutant(
        "temperature with the learning rate of now, not of the last step",
        "torch/_optimizer.py",
        '            scalar(group["cooling_lr"]) if in_units_of_lr',
        '            scalar(group["lr"]) if in_units_of_lr',
        Selection("torch_adapter/test_torch_update.py", "test_temperature_divides"),
    ),
    Mutant(
        "temperature of the parameters, not of their displacements",
        "torch/_optimizer.py",
        "            groups.append(([p for p, _ in pairs], [dx for _, dx in pairs]))",
        "            groups.append(([p for p, _ in pairs], [p for p, _ in pairs]))",
        contract(LAWS, TORCH),
    ),
    Mutant(
        "temperature over frozen parameters too",
        "torch/_optimizer.py",
        " if p.requires_grad or dx is not at_rest]",
        "]",
        Selection("torch_adapter/test_torch_update.py", "test_temperature_leaves_out"),
    ),
    Mutant(
        "rho in float32 in a capturable step",
        "torch/_clock.py",
        '    dtype = _dtype(group["cooling_step"].device)',
        "    dtype = torch.float32",
        contract(LAWS, "torch capturable float64"),
    ),
    Mutant(
        "thermometer: frozen parameters counted",
        "torch/_thermometer.py",
        "    return param.requires_grad and not is_lazy(param) and not param.is_meta",
        "    return not is_lazy(param) and not param.is_meta",
        Selection(READ_TORCH, "test_names_of_a_model or test_nothing_to_follow"),
    ),
    Mutant(
        "thermometer: skipped steps counted",
        "torch/_thermometer.py",
        "        if not dynamics.was_applied(self._optimizer, self._clock, self._gradient):",
        "        if False:",
        Selection(READ_TORCH, "test_steps_that_the_optimizer_skips"),
    ),
    Mutant(
        "thermometer: decoupled weight decay counted as displacement",
        "torch/_dynamics.py",
        "        shrunk = known.settings.decay if moved else None\n",
        "        shrunk = None\n",
        Selection(READ_TORCH, "test_it_reads_what and adamw"),
    ),
    Mutant(
        "thermometer: rho of the next step",
        "torch/_thermometer.py",
        "            if self._params and self._sampling.measures(self._n):\n",
        "            groups = self._optimizer.param_groups\n"
        "            self._settings = [\n"
        "                dynamics.settings_of(self._optimizer, x, None, None) for x in groups\n"
        "            ]\n"
        "            if self._params and self._sampling.measures(self._n):\n",
        Selection(READ_TORCH, "test_it_reads_what and cool"),
    ),
    Mutant(
        "thermometer: a reading with reset begins no window",
        "torch/_thermometer.py",
        "        if reset:\n            self.reset()\n",
        "",
        Selection(READ_TORCH, "test_a_window_ends"),
    ),
]
JAX_MUTANTS = [
    Mutant(
        "thermometer: rho and learning rate of the next step",
        "jax/_thermometer.py",
        "        last = state.count - 1\n",
        "        last = state.count\n",
        READ_JAX,
    ),
    Mutant(
        "thermometer: measures the step before the one in every",
        "jax/_thermometer.py",
        "            (n % self.every == 0) & done,",
        "            ((n + 1) % self.every == 0) & done,",
        READ_JAX,
    ),
    Mutant(
        "thermometer: a span begins where it ends",
        "jax/_thermometer.py",
        "            begins, ends = n % self.span == 1 % self.span, n % self.span == 0",
        "            begins, ends = n % self.span == 0, n % self.span == 0",
        READ_JAX,
    ),
    Mutant(
        "thermometer: masses without their root",
        "jax/_thermometer.py",
        "            roots = [jnp.sqrt(x) for x in layout.ordered(masses())]",
        "            roots = layout.ordered(masses())",
        Selection("test_jax_thermometer.py", "test_the_masses_of_the_first_steps"),
    ),
    Mutant(
        "thermometer: a reset does not close the window",
        "jax/_thermometer.py",
        "_packed(_unpacked(node.sums, node.counts).closed(), node)",
        "_packed(_unpacked(node.sums, node.counts), node)",
        Selection("test_jax_thermometer.py", "test_it_reads_the_same and inject"),
    ),
    Mutant(
        "clock off by one",
        "jax/_transform.py",
        "            rho = rho_at(cooling, state.count, dtype)",
        "            rho = rho_at(cooling, state.count + 1, dtype)",
        contract(EXACT, JAX),
    ),
    Mutant(
        "factor (1 + rho) / 2 dropped",
        "jax/_transform.py",
        "            return rho, step_size_of(value_at(learning_rate, state.count, dtype), rho)",
        "            return rho, value_at(learning_rate, state.count, dtype)",
        contract(EXACT, JAX),
    ),
    Mutant(
        "rho in float32 in a float64 run",
        "jax/_transform.py",
        "        return jnp.asarray(schedule(count, dtype=dtype, xp=jnp), dtype)",
        "        return jnp.asarray(schedule(count, dtype=jnp.float32, xp=jnp), dtype)",
        contract(LAWS, JAX),
    ),
    Mutant(
        "the update is the state that was, not the one that is",
        "jax/_transform.py",
        "            moved,\n            like,\n",
        "            state.displacement,\n            like,\n",
        contract(EXACT, JAX),
    ),
    Mutant(
        "temperature with the learning rate of the next step",
        "jax/_readings.py",
        "        last = jnp.maximum(state.count - 1, 0)",
        "        last = state.count",
        Selection("test_jax_readings.py", "test_a_learning_rate_schedule_is_read"),
    ),
]
KERAS_MUTANTS = [
    Mutant(
        "thermometer: microbatches counted",
        "keras/_thermometer.py",
        "        n, inside = divmod(self.batches, self._accumulated)",
        "        n, inside = self.batches, 0",
        read_keras("test_accumulated_batches"),
    ),
    Mutant(
        "thermometer: skipped steps counted",
        "keras/_thermometer.py",
        "ops.equal(now.iterations - before.iterations, 1)",
        "ops.equal(now.iterations, now.iterations)",
        read_keras("test_skipped_steps"),
    ),
    Mutant(
        "thermometer: decoupled weight decay counted as displacement",
        "keras/_thermometer.py",
        "        shrink = 1 - (self._optimizer.weight_decay or 0) * before.rate",
        "        shrink = 1 - 0 * before.rate",
        read_keras("test_decoupled_weight_decay"),
    ),
    Mutant(
        "thermometer: moving statistics counted",
        "keras/_thermometer.py",
        " if id(x) not in key] if self._all_weights else []",
        " if id(x) not in key]",
        read_keras("test_all_weights"),
    ),
    Mutant(
        "thermometer: rho of the next step",
        "keras/_dynamics.py",
        "optimizer._rho_at(optimizer.iterations - 1, dtype)",
        "optimizer._rho_at(optimizer.iterations, dtype)",
        read_keras("test_it_reads_what"),
    ),
    Mutant(
        "thermometer: rate that is set after the step",
        "keras/_thermometer.py",
        "        now = self._now(before.rate)",
        "        before = before._replace(rate=self._optimizer.learning_rate + 0.0)\n"
        "        now = self._now(before.rate)",
        Selection("keras_adapter/test_keras_thermometer_habits.py", "rate_is_that", keras=True),
    ),
    Mutant(
        "clock off by one",
        "keras/_optimizer.py",
        "        return float(schedule(steps))",
        "        return float(schedule(steps + 1))",
        contract(EXACT, KERAS),
    ),
    Mutant(
        "factor (1 + rho) / 2 dropped",
        "keras/_optimizer.py",
        "            step = _Step(rho, step_size(rate, rho))",
        "            step = _Step(rho, rate)",
        contract(EXACT, KERAS),
    ),
    Mutant(
        "the displacement that moves is a copy",
        "keras/_optimizer.py",
        "            [self._displacements[i].value for i in index],\n",
        "            [self._displacements[i].value + 0 for i in index],\n",
        contract(EXACT, KERAS),
    ),
    Mutant(
        "sign of the step",
        "keras/_foreach.py",
        "        torch._foreach_add_(dxs, gs, alpha=-step_size)",
        "        torch._foreach_add_(dxs, gs, alpha=step_size)",
        contract(EXACT, KERAS),
    ),
    Mutant(
        "clock counts microbatches",
        "keras/_optimizer.py",
        "        schedule, steps = self.schedule, int(_on_host(self.iterations))",
        "        schedule, steps = self.schedule, int(_on_host(self._iterations))",
        Selection("keras_adapter/test_keras_options.py", "accumul", keras=True),
    ),
    Mutant(
        "a checkpoint's total_steps are not followed",
        "keras/_optimizer.py",
        "        self._cool_by(loaded)\n",
        "        self._cool_by(own)\n",
        Selection("keras_adapter/test_keras_cooling.py", "longer_total", keras=True),
    ),
    Mutant(
        "temperature over a learning rate that was set after the step",
        "keras/_optimizer.py",
        "        rate = ops.cast(self._last_learning_rate, reading.dtype)",
        "        rate = ops.cast(self.learning_rate, reading.dtype)",
        Selection("keras_adapter/test_keras_cooling.py", "set_after_the_step", keras=True),
    ),
]
MUTANTS = {
    "core": CORE,
    "numpy": NUMPY,
    "torch": TORCH_MUTANTS,
    "jax": JAX_MUTANTS,
    "keras": KERAS_MUTANTS,
}


# --- one run ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What the tests said of a copy."""

    status: int  # of pytest: 0 if they passed, 1 if one failed, else something is wrong
    passed: list[str]
    failed: str  # the first that failed
    output: str


def verdict_on(tests: Selection, mutant: Mutant | None) -> Verdict:
    """Run tests against a copy of the package, with the mistake in it, in a child."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "coolmomentum"
        shutil.copytree(ROOT / "coolmomentum", copy, ignore=shutil.ignore_patterns("__pycache__"))
        if mutant:
            source = copy / mutant.file
            text = source.read_text(encoding="utf-8")
            if (count := text.count(mutant.old)) != 1:
                return Verdict(-1, [], "", f"it stands there {count} times: {mutant.old!r}")
            source.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
        child = FORK.Process(target=_run, args=(tests, copy))
        child.start()
        child.join()
        output, result = Path(folder) / "output", Path(folder) / "result"
        said = output.read_text(encoding="utf-8", errors="replace")
        if not result.exists():
            return Verdict(child.exitcode or -1, [], "", said)
        return Verdict(**json.loads(result.read_text(encoding="utf-8")), output=said)


def _run(tests: Selection, copy: Path) -> None:
    """In the child: the copy is imported first, so that the tests cannot meet the checkout."""
    output = os.open(copy.with_name("output"), os.O_CREAT | os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if tests.keras:
        os.environ["KERAS_BACKEND"] = KERAS_BACKEND
    sys.path.insert(0, str(copy.parent))
    os.environ["HYPOTHESIS_PROFILE"] = "mutants"
    phases = hypothesis.Phase.explicit, hypothesis.Phase.generate  # a small example is of no use
    hypothesis.settings.register_profile("mutants", derandomize=True, deadline=None, phases=phases)
    coolmomentum = importlib.import_module("coolmomentum")
    assert Path(str(coolmomentum.__file__)).parent == copy
    seen = Seen()
    # Plain, because modules that are imported already cannot be rewritten, and pytest says so.
    without = ("cacheprovider", "unraisableexception")  # the latter collects all garbage, twice
    options = ["-x", "-q", "--assert=plain", *(f"-pno:{plugin}" for plugin in without)]
    where = str(ROOT / "tests" / tests.file)
    status = pytest.main([where, *options, "-k", tests.chosen], plugins=[seen])
    result = {"status": int(status), "passed": seen.passed, "failed": seen.failed}
    copy.with_name("result").write_text(json.dumps(result), encoding="utf-8")
    os._exit(0)  # what the frameworks do at the end takes time


class Seen:
    """A plugin that notes what passes and the first test that fails."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self.failed = ""

    def pytest_runtest_logreport(self, report):
        """A report of one phase of one test."""
        name = report.nodeid.rpartition("::")[2]
        if report.when == "call" and report.passed:
            self.passed.append(name)
        elif report.failed and not self.failed:
            self.failed = name


# --- all of them --------------------------------------------------------------------------------


def main(words: list[str]) -> int:
    """Try the mistakes that have these words, print the table, and give back the exit status."""
    began = time.perf_counter()
    import_once()
    mutants = [
        (where, mutant)
        for where, of_adapter in MUTANTS.items()
        for mutant in of_adapter
        if all(word in f"{where} {mutant.mistake}" for word in words)
    ]
    console = Console(width=max(Console().width, 120))
    progress = Console(stderr=True)
    table = Table("", "where", "mistake", "caught by", title="Mistakes in copies of the package")
    sound = without_mistakes([mutant.tests for _, mutant in mutants])
    survived = 0
    for where, mutant in mutants:
        progress.print(f"{time.perf_counter() - began:4.0f} s  {where}: {mutant.mistake}")
        before, after = (
            sound[mutant.tests.file, mutant.tests.keras],
            verdict_on(mutant.tests, mutant),
        )
        if after.status == 1 and after.failed in before.passed:
            table.add_row("[green]✓", where, mutant.mistake, escape(after.failed))
            continue
        survived += 1
        table.add_row("[red]✗", where, mutant.mistake, "[red]nothing")
        for verdict in (before, after)[before.status == 0 :]:
            console.print(f"{where}, {mutant.mistake}:", verdict.output[-4000:], markup=False)
    console.print(table)
    seconds = time.perf_counter() - began
    console.print(f"{len(mutants) - survived} of {len(mutants)} caught in {seconds:.0f} s")
    return 1 if survived or not mutants else 0


def import_once() -> None:
    """Make this a process to fork from. It must not be one that runs tests."""
    os.environ |= {"OMP_NUM_THREADS": "1", "KERAS_BACKEND": KERAS_BACKEND}
    for name in IMPORTED:
        importlib.import_module(name)
    del os.environ["KERAS_BACKEND"]  # by it tests know that they are to run on Keras
    gc.freeze()  # what children inherit is not theirs to collect


def without_mistakes(every: list[Selection]) -> dict[tuple[str, bool], Verdict]:
    """What all the tests of a file that will be used say of the package as it is."""
    chosen: dict[tuple[str, bool], set[str]] = {}
    for tests in every:
        chosen.setdefault((tests.file, tests.keras), set()).add(f"({tests.chosen})")
    return {
        (file, on_keras): verdict_on(Selection(file, " or ".join(sorted(words)), on_keras), None)
        for (file, on_keras), words in chosen.items()
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
