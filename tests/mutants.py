"""Show that the tests see mistakes: each is put into a copy of the package, and has to be caught.

Run as ``python tests/mutants.py``, or with words that the mistakes to try must contain. It prints a
table, and fails if a mistake is not caught, cannot be made any more, or the package as it is fails.
A mistake is code that stands once in one function, in whatever layout, and what replaces it there.
"""

import ast
import gc
import importlib
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    where: str  # module and function, as "torch._optimizer:CoolMomentum.step"
    old: str  # an expression, or statements; the layout does not matter
    new: str
    tests: Selection


def contract(test: str, path: str) -> Selection:
    """Selection of the contract suite for the paths whose names have these words."""
    words = " and ".join([test, *path.split()])
    return Selection("contract/test_contract.py", words, keras=path.startswith("keras"))


def bath(test: str, words: str, *, keras: bool = False) -> Selection:
    """Selection of the contract suite of heat baths."""
    return Selection("contract/test_thermal_noise.py", f"{test} and {words}", keras)


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
READ_TORCH = "torch_adapter/test_torch_thermometer"
READ_JAX = Selection("jax_adapter/test_jax_thermometer.py", "test_it_reads_what and 5")
LIST = Selection("test_thermometer.py", "test_the_list and numpy and float64")

CORE = [
    Mutant(
        "learning rate outside the displacement",
        "update:langevin_step",
        "moved = next_displacement(velocity, slope, rho=rho, "
        "step_size=step_size(learning_rate, rho))\n"
        "return _stored(position + moved, x, xp), _stored(moved, displacement, xp)",
        "moved = next_displacement(velocity, slope, rho=rho, step_size=step_size(1.0, rho))\n"
        "return (\n"
        "    _stored(position + learning_rate * moved, x, xp),\n"
        "    _stored(moved, displacement, xp),\n"
        ")",
        contract(LAWS, TORCH),
    ),
    Mutant(
        "weight decay after the update",
        "update:langevin_step",
        "moved = next_displacement(velocity, slope, rho=rho, "
        "step_size=step_size(learning_rate, rho))",
        "coupled = 0 if decoupled_weight_decay else weight_decay\n"
        "slope, eta = slope - coupled * position, step_size(learning_rate, rho)\n"
        "moved = next_displacement(velocity, slope, rho=rho, step_size=eta)\n"
        "position = position * (1 - coupled * eta)",
        contract(LAWS, TORCH),
    ),
    Mutant(
        "bath: a factor of two (Eq. 17)",
        "thermal:random_force_scale",
        "temperature * (abs(lost) + lost) / 2",
        "temperature * (abs(lost) + lost)",
        Selection("test_thermal.py", "root_of_eq_17"),
    ),
    Mutant(
        "bath: noise that is not averaged",
        "thermal:random_force",
        "scale / 2 * (upcast(normals, xp) + xi)",
        "scale * xi",
        Selection("test_thermal.py", "baoab"),
    ),
    Mutant(
        "factor (1 + rho) / 2 dropped (Eq. 16)",
        "langevin:step_size",
        "learning_rate * ((1 + rho) / 2)",
        "learning_rate",
        contract(EXACT, TORCH),
    ),
    Mutant(
        "clock off by one",
        "schedules:cooled_rho",
        "step - start",
        "step - start + 1",
        contract(EXACT, TORCH),
    ),
    Mutant(
        "no clamp after the last step",
        "schedules:_clamp",
        "min(max(n, 0), span) if xp is math else xp.clip(n, 0, span)",
        "n",
        contract(EXACT, TORCH),
    ),
    Mutant(
        "rho by a float32 power of alpha (Eq. 20)",
        "schedules:_paper",
        "-xp.expm1(left / span * numbers.log_complement)",
        "1 - numbers.complement / round(numbers.complement ** (1 / span), 7) ** gone",
        contract(END, TORCH),
    ),
    Mutant(
        "warm-up clocks exchanged",
        "schedules:cooled_rho",
        'warmup_clock == "hold"',
        'warmup_clock == "run"',
        Selection("test_schedule_holds.py", "test_the_clock_may_hold or test_the_clock_runs_on"),
    ),
    Mutant(
        "hold_steps do not shorten the cooling",
        "schedules:cooled_rho",
        "total_steps - start",
        "total_steps - (0 if holds else start)",
        Selection("test_schedule_holds.py", "test_rho_is_held_and_then_cools and numpy"),
    ),
    Mutant(
        "half precision computed in half precision",
        "schedules:cooled_rho",
        "wide_dtype(dtype, xp)",
        "dtype",
        Selection("test_schedule_types.py", "test_a_half_precision_rho and numpy"),
    ),
    Mutant(
        "decoupled weight decay counted as displacement",
        "update:langevin_step",
        "_stored(moved, displacement, xp)",
        "_stored(position + moved - upcast(x, xp), displacement, xp)",
        OPTIONS,
    ),
    Mutant(
        "sign of maximize",
        "update:langevin_step",
        "-slope if maximize else slope",
        "slope if maximize else -slope",
        OPTIONS,
    ),
    Mutant(
        "sum of the displacements squared, not of their squares",
        "temperature:squared_norm",
        "xp.sum(x * x)",
        "xp.sum(x) ** 2",
        contract(LAWS, TORCH),
    ),
    Mutant(
        "thermometer: sign of the product of successive displacements",
        "thermometer.window:_step_sums",
        "mass_now + mass_before + 2 * mass_product",
        "mass_now + mass_before - 2 * mass_product",
        LIST,
    ),
    Mutant(
        "thermometer: energies not divided by dt**2",
        "thermometer.window:_step_sums",
        "mass_now * (1 + averaging) / dt2",
        "mass_now * (1 + averaging)",
        LIST,
    ),
    Mutant(
        "thermometer: three points without 2 / (1 + rho)",
        "temperature:three_point_scale",
        "2 * learning_rate * (1 + rho)",
        "4 * learning_rate",
        LIST,
    ),
    Mutant(
        "thermometer: the squares of a span are carried into the next",
        "thermometer.window:Window.end_span",
        "[self.sums[:_STEP, :], xp.stack(list(meter)), zero]",
        "[self.sums[:_STEP, :], xp.stack(list(meter)), self.sums[-1:, :]]",
        Selection("test_numpy_thermometer.py", "test_a_span_begins_anew"),
    ),
    Mutant(
        "gradient noise: what the momentum remembers left out",
        "thermometer.noise:true_square",
        "(lag_one - lag_two) + q * (lag_one - remembered)",
        "(lag_one - lag_two)",
        Selection("test_noise_scale.py", "second_order"),
    ),
    Mutant(
        "gradient noise: a lag taken for the other",
        "thermometer.noise:_moments",
        "[(now, second), (now, next(means))]",
        "[(now, last), (now, next(means))]",
        Selection("test_noise_scale.py", "within_its_error and 0.9"),
    ),
    Mutant(
        "gradient noise: error bars of the sum, not of the mean",
        "thermometer.ratio:Ratio.read",
        "pairs * (pairs - 1)",
        "pairs - 1",
        Selection("test_noise_scale.py", "within_its_error and 0.9"),
    ),
    Mutant(
        "gradient noise: steps that were none are measured",
        "thermometer.noise:GradientNoise.measure",
        "applied & rule.shows()",
        "applied",
        Selection("test_noise_scale.py", "gradients_come_back"),
    ),
]
NUMPY = [
    Mutant(
        "thermometer: measures the step after the one in every",
        "numpy._thermometer:Thermometer.update",
        "now is not None and self.measures(n)",
        "now is not None and self.precedes(n)",
        Selection("test_numpy_thermometer.py", "test_it_reads_the_displacements"),
    ),
    Mutant(
        "clock advances without gradients",
        "numpy._optimizer:CoolMomentum.step",
        "state.step + applied",
        "state.step + 1",
        Selection("test_numpy_optimizer.py", "test_the_clock_counts_applied_steps"),
    ),
    Mutant(
        "clock not carried in a portable state",
        "numpy._portable:import_state",
        "saved.clock",
        "state.step",
        Selection(
            "contract/test_state_transfer.py",
            "test_a_run_moves and torch and numpy and float64 and not float32",
        ),
    ),
]
TORCH_MUTANTS = [
    Mutant(
        "learning rate outside the displacement",
        "torch._kernels:_foreach_in_place",
        "torch._foreach_add_(params, displacements)",
        "torch._foreach_add_(params, displacements, alpha=step.lr)",
        contract(LAWS, "torch foreach float64"),
    ),
    Mutant(
        "bath: the same numbers for every parameter",
        "torch._thermal:ThermalNoise._normals",
        "draw_key(self.seed, place, step)",
        "draw_key(self.seed, 0, step)",
        bath("test_draws_are", "torch"),
    ),
    Mutant(
        "bath: the same numbers in every step",
        "torch._thermal:ThermalNoise._normals",
        "draw_key(self.seed, place, step)",
        "draw_key(self.seed, place, 0)",
        bath("test_draws_are", "torch"),
    ),
    Mutant(
        "thermometer: a reading with reset begins no window",
        "torch._thermometer:Thermometer.read",
        "if reset:\n    self.reset()",
        "pass",
        Selection(f"{READ_TORCH}_steps.py", "test_a_window_ends"),
    ),
    Mutant(
        "factor (1 + rho) / 2 dropped",
        "torch._coefficients:coefficients_for",
        "step_size(lr, rho)",
        "lr",
        contract(EXACT, TORCH),
    ),
    Mutant(
        "weight decay after the update",
        "torch._kernels:_foreach_in_place",
        "grads = list(torch._foreach_add(grads, params, alpha=sign * step.coupled_decay))",
        "torch._foreach_mul_(params, 1 - step.eta * step.coupled_decay)",
        contract(LAWS, "torch foreach float64"),
    ),
    Mutant(
        "decoupled weight decay after the displacement",
        "torch._optimizer:CoolMomentum._step",
        "if coefficients.advance_step(group, step.lr):\n    past_end.append(group)",
        "for x, dx in zip(tensors.params, tensors.displacements, strict=True):\n"
        "    dx.sub_(step.lr * step.decoupled_decay * x)\n"
        "if coefficients.advance_step(group, step.lr):\n"
        "    past_end.append(group)",
        Selection("torch_adapter/test_torch_update.py", "test_decoupled_weight_decay"),
    ),
    Mutant(
        "the kernels of the first step kept for good",
        "torch._dispatch:DispatchCache.matches",
        "return (\n"
        "    len(sizes) == len(self._displacements)\n"
        "    and all(map(is_, displacements, self._displacements))\n"
        "    and sizes == [*map(Tensor.size, grads)]\n"
        "    and sizes == [*map(Tensor.size, displacements)]\n"
        "    and self._key == dispatch_key(tensors, group)\n"
        ")",
        "return (\n"
        "    len(sizes) == len(self._displacements)\n"
        "    and all(map(is_, displacements, self._displacements))\n"
        "    and sizes == [*map(Tensor.size, grads)]\n"
        "    and sizes == [*map(Tensor.size, displacements)]\n"
        ")",
        Selection("torch_adapter/test_torch_choice.py", "laid_out_anew"),
    ),
    Mutant(
        "sign of maximize",
        "torch._kernels:_foreach_in_place",
        "-1.0 if step.maximize else 1.0",
        "1.0 if step.maximize else -1.0",
        contract(EXACT, "torch foreach float64"),
    ),
    Mutant(
        "warm-up clock ignored",
        "torch._coefficients:_rho",
        "_cooled_rho(step, *cooling)",
        '_cooled_rho(step, *cooling[:-1], "run")',
        contract(LAWS, TORCH),
    ),
    Mutant(
        "clock advances in a skipped step",
        "torch._optimizer:CoolMomentum.step",
        "if not self._is_dry_run() and not self._is_skipped():\n    self._step()",
        "if self._is_skipped():\n"
        "    for group in self.param_groups:\n"
        '        coefficients.advance_step(group, group["lr"])\n'
        "elif not self._is_dry_run():\n"
        "    self._step()",
        contract(ANY_ORDER, "torch fused float64"),
    ),
    Mutant(
        "displacement not saved",
        "torch._optimizer:CoolMomentum.state_dict.without_callables",
        'plain(packed["state"])',
        "{}",
        contract(RELOADED, TORCH),
    ),
    Mutant(
        "clock not loaded",
        "torch._checkpoint:continued",
        'saved["cooling_step"]',
        'own["cooling_step"]',
        contract(RELOADED, TORCH),
    ),
    Mutant(
        "temperature with the learning rate of now, not of the last step",
        "torch._temperature:moved",
        'group["cooling_lr"]',
        'group["lr"]',
        Selection("torch_adapter/test_torch_update.py", "test_temperature_divides"),
    ),
    Mutant(
        "temperature of the parameters, not of their displacements",
        "torch._temperature:moved",
        "[dx for _, dx in pairs]",
        "[p for p, _ in pairs]",
        contract(LAWS, TORCH),
    ),
    Mutant(
        "temperature over frozen parameters too",
        "torch._temperature:moved",
        "[(p, dx) for p, dx in pairs if p.requires_grad or dx is not at_rest]",
        "[(p, dx) for p, dx in pairs]",
        Selection("torch_adapter/test_torch_update.py", "test_temperature_leaves_out"),
    ),
    Mutant(
        "rho in float32 in a capturable step",
        "torch._coefficients:_rho",
        "_dtype(step.device)",
        "torch.float32",
        contract(LAWS, "torch capturable float64"),
    ),
    Mutant(
        "thermometer: frozen parameters counted",
        "torch._thermometer:_walks",
        "param.requires_grad and not is_lazy(param) and not param.is_meta",
        "not is_lazy(param) and not param.is_meta",
        Selection(f"{READ_TORCH}_follows.py", "test_names_of_a_model or test_nothing_to_follow"),
    ),
    Mutant(
        "thermometer: skipped steps counted",
        "torch._thermometer:Thermometer._finish",
        "not dynamics.was_applied(self._optimizer, self._clock, self._gradient)",
        "False",
        Selection(f"{READ_TORCH}_steps.py", "test_steps_that_the_optimizer_skips"),
    ),
    Mutant(
        "thermometer: decoupled weight decay counted as displacement",
        "torch._dynamics:displacement",
        "known.settings.decay_factor if has_moved else None",
        "None",
        Selection(f"{READ_TORCH}.py", "test_it_reads_what and adamw"),
    ),
    Mutant(
        "thermometer: rho of the next step",
        "torch._thermometer:Thermometer._record",
        "self._measure(now)",
        "self._settings = [\n"
        "    dynamics.settings_of(self._optimizer, x, None, None)\n"
        "    for x in self._optimizer.param_groups\n"
        "]\n"
        "self._measure(now)",
        Selection(f"{READ_TORCH}.py", "test_it_reads_what and cool"),
    ),
]
JAX_MUTANTS = [
    Mutant(
        "bath: the amplitude of the step before",
        "jax._thermal:add_thermal_noise",
        "common.rho_at(rho, n, dtype)",
        "common.rho_at(rho, n - 1, dtype)",
        bath("test_it_is_the_reference", "jax and cooling"),
    ),
    Mutant(
        "thermometer: rho and learning rate of the next step",
        "jax._meter:Meter._measured",
        "n - 1",
        "n",
        READ_JAX,
    ),
    Mutant(
        "thermometer: measures the step before the one in every",
        "jax._meter:Meter._step",
        "sampling.measures",
        "sampling.precedes",
        READ_JAX,
    ),
    Mutant(
        "thermometer: a span begins where it ends",
        "jax._meter:Meter._follow",
        "sampling.begins_span",
        "sampling.ends_span",
        READ_JAX,
    ),
    Mutant(
        "thermometer: masses squared",
        "jax._thermometer:_adam_masses",
        "jnp.asarray(adam_mass(x, decay, n, epsilon))",
        "jnp.asarray(adam_mass(x, decay, n, epsilon)) ** 2",
        Selection("jax_adapter/test_jax_thermometer.py", "test_the_masses_of_the_first_steps"),
    ),
    Mutant(
        "thermometer: a reset does not close the window",
        "jax._thermometer:reset.begun",
        "next_window(state.window)",
        "state.window",
        Selection("jax_adapter/test_jax_thermometer_trees.py", "test_it_reads_the_same and inject"),
    ),
    Mutant(
        "clock off by one",
        "jax._transform:cool_momentum.update_fn.coefficients",
        "common.rho_at(cooling, state.count, dtype)",
        "common.rho_at(cooling, state.count + 1, dtype)",
        contract(EXACT, JAX),
    ),
    Mutant(
        "factor (1 + rho) / 2 dropped",
        "jax._transform:cool_momentum.update_fn.coefficients",
        "step_size_of(common.value_at(learning_rate, state.count, dtype), rho)",
        "common.value_at(learning_rate, state.count, dtype)",
        contract(EXACT, JAX),
    ),
    Mutant(
        "rho in float32 in a float64 run",
        "jax._common:rho_at",
        "schedule(count, dtype=dtype, xp=jnp)",
        "schedule(count, dtype=jnp.float32, xp=jnp)",
        contract(LAWS, JAX),
    ),
    Mutant(
        "the update is the state that was, not the one that is",
        "jax._transform:_step",
        "with_none(update, gradients, moved, gradients if params is None else params)",
        "with_none(update, gradients, state.displacement, gradients if params is None else params)",
        contract(EXACT, JAX),
    ),
    Mutant(
        "temperature with the learning rate of the next step",
        "jax._state_readings:temperature.read",
        "jnp.maximum(state.count - 1, 0)",
        "state.count",
        Selection("jax_adapter/test_jax_readings.py", "test_a_learning_rate_schedule_is_read"),
    ),
]
KERAS_MUTANTS = [
    Mutant(
        "thermometer: rate that is set after the step",
        "keras._meter:Meter.after",
        "now = self._now(before.rate)",
        "before = before._replace(rate=self._optimizer.learning_rate + 0.0)\n"
        "now = self._now(before.rate)",
        Selection("keras_adapter/test_keras_thermometer_habits.py", "rate_is_that", keras=True),
    ),
    Mutant(
        "bath: the same numbers in every step",
        "keras._langevin:Langevin._forced",
        "_normals(key, self.iterations, shape, dtype)",
        "_normals(key, 0 * self.iterations, shape, dtype)",
        bath("test_it_is_the_reference", "keras and white", keras=True),
    ),
    Mutant(
        "thermometer: microbatches counted",
        "keras._meter:Meter.after",
        "divmod(self.batches, self._accumulated)",
        "self.batches, 0",
        read_keras("test_accumulated_batches"),
    ),
    Mutant(
        "thermometer: skipped steps counted",
        "keras._meter:Meter._step",
        "ops.equal(now.iterations - before.iterations, 1)",
        "ops.equal(now.iterations, now.iterations)",
        read_keras("test_skipped_steps"),
    ),
    Mutant(
        "thermometer: decoupled weight decay counted as displacement",
        "keras._meter:Meter._step",
        "self._optimizer.weight_decay or 0",
        "0",
        read_keras("test_decoupled_weight_decay"),
    ),
    Mutant(
        "thermometer: moving statistics counted",
        "keras._thermometer:Thermometer._follow",
        "[x for x in model.weights if id(x) not in key] if self._all_weights else []",
        "[x for x in model.weights if id(x) not in key]",
        read_keras("test_all_weights"),
    ),
    Mutant(
        "thermometer: rho of the next step",
        "keras._dynamics:_cool_momentum",
        "optimizer._rho_at(optimizer.iterations - 1, dtype)",
        "optimizer._rho_at(optimizer.iterations, dtype)",
        read_keras("test_it_reads_what"),
    ),
    Mutant(
        "clock off by one",
        "keras._optimizer:CoolMomentum.rho",
        "schedule(steps)",
        "schedule(steps + 1)",
        contract(EXACT, KERAS),
    ),
    Mutant(
        "factor (1 + rho) / 2 dropped",
        "keras._optimizer:CoolMomentum._step",
        "step_size(rate, rho)",
        "rate",
        contract(EXACT, KERAS),
    ),
    Mutant(
        "the displacement that moves is a copy",
        "keras._optimizer:CoolMomentum._backend_update_step",
        "self._displacements[i].value",
        "self._displacements[i].value + 0",
        contract(EXACT, KERAS),
    ),
    Mutant(
        "sign of the step",
        "keras._foreach:_in_place",
        "-step_size",
        "step_size",
        contract(EXACT, KERAS),
    ),
    Mutant(
        "clock counts microbatches",
        "keras._optimizer:CoolMomentum.rho",
        "self.iterations",
        "self._iterations",
        Selection("keras_adapter/test_keras_options.py", "accumul", keras=True),
    ),
    Mutant(
        "a checkpoint's total_steps are not followed",
        "keras._optimizer:CoolMomentum.load_own_variables",
        "self._cool_by(loaded)",
        "self._cool_by(own)",
        Selection("keras_adapter/test_keras_cooling_saved.py", "longer_total", keras=True),
    ),
    Mutant(
        "temperature over a learning rate that was set after the step",
        "keras._optimizer:CoolMomentum._over_last_rate",
        "self._last_learning_rate",
        "self.learning_rate",
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


# --- the mistake in the source ------------------------------------------------------------------


def mutated(text: str, mutant: Mutant) -> str:
    """The source with the mistake: in one function what stands there once, in whatever layout."""
    *_, name = mutant.where.partition(":")
    node: ast.AST = ast.parse(text)
    for part in name.split("."):
        found = [x for x in ast.iter_child_nodes(node) if getattr(x, "name", "") == part]
        found = [x for x in found if "overload" not in map(ast.unparse, x.decorator_list)]
        if len(found) != 1:
            raise LookupError(f"{len(found)} of the name {part!r}")
        (node,) = found
    wanted: list[ast.AST] = [*ast.parse(mutant.old).body]
    if _is_expression(mutant.old) and _is_expression(mutant.new):
        wanted = [ast.parse(mutant.old, mode="eval").body]
    places = [*_places(node, wanted)]
    if len(places) != 1:
        raise LookupError(f"it stands there {len(places)} times: {mutant.old!r}")
    (first, last) = places[0]
    lines = text.encode().splitlines(keepends=True)  # columns count bytes
    start = sum(map(len, lines[: first.lineno - 1])) + first.col_offset
    end = sum(map(len, lines[: last.end_lineno - 1])) + last.end_col_offset
    new = f"({mutant.new})"
    if isinstance(first, ast.stmt):
        new = textwrap.indent(mutant.new, " " * first.col_offset).lstrip(" ")
    return (text.encode()[:start] + new.encode() + text.encode()[end:]).decode()


def _is_expression(code: str) -> bool:
    body = ast.parse(code).body
    return len(body) == 1 and isinstance(body[0], ast.Expr)


def _places(node: ast.AST, wanted: list[ast.AST]) -> Iterator[tuple[Any, Any]]:
    """First and last node of everything in a function that is the same code."""
    code = [*map(ast.dump, wanted)]
    for child in ast.walk(node):
        bodies = [getattr(child, name, None) for name in ("body", "orelse", "finalbody")]
        if isinstance(wanted[0], ast.expr):
            bodies = [[child]]
        for body in bodies:
            for i in range(len(body) - len(code) + 1 if isinstance(body, list) else 0):
                part = body[i : i + len(code)]
                if [*map(ast.dump, part)] == code:
                    yield part[0], part[-1]


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
            source = copy / f"{mutant.where.partition(':')[0].replace('.', '/')}.py"
            try:
                text = mutated(source.read_text(encoding="utf-8"), mutant)
            except LookupError as error:
                return Verdict(-1, [], "", f"{mutant.where}: {error}")
            source.write_text(text, encoding="utf-8")
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
