"""coolmomentum.keras in the contract suite, on the backend of this process."""

import contextlib
import math
import warnings
from dataclasses import dataclass, field
from typing import Any, ClassVar

import keras
import numpy as np
from bounds import numpy_dtype
from drivers import Driver, Pool
from exact import U32
from keras import ops
from roles import BATH_SHAPES, BathRun, BathWalk, Transfer, names_of, renamed

from coolmomentum import keras as cool_keras
from coolmomentum.keras import CoolMomentum, Langevin, Thermometer
from coolmomentum.keras._langevin import _normals
from coolmomentum.thermal import draw_key

UNIT = U32  # of the thermometer

BACKEND = keras.backend.backend()
if BACKEND == "tensorflow":
    import tensorflow as tf
if BACKEND == "jax":
    import jax


@dataclass
class Keras(Driver):
    """A path of the Keras adapter: eager, or compiled by the backend."""

    dtype: str
    compiled: str = ""  # how: "graph" or "xla" with TensorFlow, "jit" with JAX
    pool: Pool = field(default_factory=Pool)
    flushes: ClassVar = BACKEND != "torch"
    maximize: ClassVar = False

    def __post_init__(self):
        if self.compiled:
            self.max_compilations, self.cost = 2, 4
        elif BACKEND != "torch":
            self.cost = 2

    @property
    def decay_dtype(self):
        # By Keras, which on PyTorch forms 1 - lr w from its learning rate, and that is float32.
        return "float32" if BACKEND == "torch" and self.dtype == "float64" else self.dtype

    @property
    def unsupported(self):
        unsupported = {"add": "Keras' optimizers are built for their variables once"}
        if BACKEND == "jax" and not self.compiled:
            unsupported["skip"] = "Keras' loss scaler does not run there outside a stateless step"
        return unsupported

    def x64(self):
        """Keras has float64 on JAX where JAX has it."""
        return jax.enable_x64(self.dtype == "float64") if BACKEND == "jax" else _as_it_is

    def make(self, params, lr, cooling, decay, decoupled=False, maximize=False):
        assert not maximize
        return KerasRun(self, params, lr, cooling, decay, decoupled)

    def momentum_sgd(self, params, gradients, lr, momentum, decay):
        with self.x64():
            variables = [_variable(x, self.dtype) for x in params]
            sgd = keras.optimizers.SGD(lr, momentum)
            for step in gradients:
                values = [ops.convert_to_numpy(v) for v in variables]
                step = [g + decay * x for g, x in zip(step, values, strict=True)]
                sgd.apply([_tensor(g, self.dtype) for g in step], variables)
            return [ops.convert_to_numpy(v).astype(np.float64) for v in variables]


_as_it_is = contextlib.nullcontext()


@contextlib.contextmanager
def _past_the_end():
    """Of a run that goes on past its end the adapter warns."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* steps were taken, more than total_steps")
        yield


def _tensor(x, dtype):
    return ops.convert_to_tensor(np.asarray(x).astype(numpy_dtype(dtype)), dtype=dtype)


def _variable(x, dtype):
    return keras.Variable(_tensor(x, dtype), dtype=dtype)


class _Program:
    """An optimizer with its variables and the functions that step it."""

    def __init__(self, driver, params, cooling, weight_decay):
        self.variables = [_variable(x, driver.dtype) for x in params]
        self.optimizer = CoolMomentum(0.125, schedule=cooling, weight_decay=weight_decay)
        self.optimizer.build(self.variables)
        # What mixed precision puts around it; here only to skip steps.
        self.scaler = keras.optimizers.LossScaleOptimizer(self.optimizer)
        self.scaler.build(self.variables)
        self.take = self._compiled(self.optimizer, driver.compiled)
        self.skip = self._compiled(self.scaler, "jit" if driver.compiled == "jit" else "")

    def _compiled(self, optimizer, how):
        if how in ("graph", "xla"):
            return tf.function(
                lambda gradients: optimizer.apply(gradients, self.variables),
                jit_compile=how == "xla",
            )
        if how == "jit":
            stateless = jax.jit(optimizer.stateless_apply)

            def apply(gradients):
                own = optimizer.variables
                values = [v.value for v in own], gradients, [v.value for v in self.variables]
                new, state = stateless(*values)
                for variable, value in zip([*self.variables, *own], [*new, *state], strict=True):
                    variable.assign(value)

            return apply
        return lambda gradients: optimizer.apply(gradients, self.variables)

    def start(self, params, lr):
        """As new, but for what is compiled."""
        for variable, x in zip(self.variables, params, strict=True):
            variable.assign(_tensor(x, variable.dtype))
        for variable in [self.optimizer._iterations, *self.optimizer._displacements]:
            variable.assign(ops.zeros(variable.shape, variable.dtype))
        self.optimizer.learning_rate = lr


class KerasRun:
    """A run of CoolMomentum for Keras; coupled weight decay comes in its gradients."""

    def __init__(self, driver, params, lr, cooling, decay, decoupled):
        self.driver, self.lr = driver, lr
        self.cooling, self.decay, self.decoupled = cooling, decay, decoupled
        weight_decay = decay if decay and decoupled else None
        with driver.x64():

            def make():
                return _Program(driver, params, cooling, weight_decay)

            if driver.compiled:
                key = (tuple(x.shape for x in params), cooling, weight_decay)
                self.program = driver.pool.take(self, key, make)
            else:
                self.program = make()
            self.program.start(params, lr)
        self.optimizer = self.program.optimizer

    def step(self, gradients):
        with _past_the_end():
            self._step(gradients)

    def _step(self, gradients):
        decay = 0.0 if self.decoupled else self.decay
        gradients = [g + decay * x for g, x in zip(gradients, self.params(), strict=True)]
        with self.driver.x64():
            self.program.take([_tensor(g, self.driver.dtype) for g in gradients])

    def skip(self):
        with self.driver.x64():
            infinite = [np.full(tuple(v.shape), np.inf) for v in self.program.variables]
            self.program.skip([_tensor(g, self.driver.dtype) for g in infinite])

    def set_lr(self, lr):
        self.lr = lr
        with self.driver.x64():
            self.optimizer.learning_rate = lr

    def params(self):
        return self._read(self.program.variables)

    def displacements(self):
        return self._read(self.optimizer._displacements)

    def _read(self, variables):
        with self.driver.x64():
            return [ops.convert_to_numpy(v).astype(np.float64) for v in variables]

    def clock(self):
        return int(self.optimizer.iterations)

    def rho(self):
        with self.driver.x64(), _past_the_end():
            return self.optimizer.rho

    def temperature(self):
        with self.driver.x64():
            return self.optimizer.temperature()

    def reloaded(self):
        own = (self.lr, self.cooling, self.decay, self.decoupled)
        again = KerasRun(self.driver, self.params(), *own)
        saved: dict[str, Any] = {}
        with self.driver.x64():
            self.optimizer.save_own_variables(saved)
            again.optimizer.load_own_variables(saved)
        return again


_COMPILED = {"tensorflow": ("", "graph", "xla"), "jax": ("", "jit"), "torch": ("",)}
DRIVERS = {
    f"keras on {BACKEND}, {compiled or 'eager'}, {dtype}": Keras(dtype, compiled)
    for dtype in ("float64", "float32", "bfloat16", "float16")
    for compiled in _COMPILED[BACKEND]
}


class Moves(Transfer):
    """Moves runs of a path of the Keras adapter, whose variables have names of their own."""

    def export(self, run):
        """See Transfer."""
        with self.driver.x64():
            saved = cool_keras.export_state(run.optimizer)
        return renamed(saved, dict(zip(self._paths(run), names_of(run.params()), strict=True)))

    def load(self, run, saved):
        """See Transfer."""
        saved = renamed(saved, dict(zip(names_of(run.params()), self._paths(run), strict=True)))
        with self.driver.x64():
            cool_keras.import_state(run.optimizer, saved)

    def _paths(self, run):
        return [variable.path for variable in run.program.variables]


def rho(**settings):
    """Rho of a new optimizer."""
    return CoolMomentum(**settings).rho


RHO = {"keras": rho}


def read_walk(walk):
    """A callback of fit, in which the gradients are the batches."""
    shapes = [x.shape for x in walk.start]
    ends = np.cumsum([math.prod(shape) for shape in shapes]).tolist()

    class Given(keras.layers.Layer):
        def build(self, _):
            self.ws = [self.add_weight(shape=shape, initializer="zeros") for shape in shapes]

        def call(self, x):
            flat = keras.ops.concatenate([keras.ops.reshape(w, (-1,)) for w in self.ws])
            return keras.ops.sum(x * flat, axis=-1)

    model = keras.Sequential([keras.Input((ends[-1],)), Given()])
    thermometer = Thermometer(walk.every, walk.every)
    optimizer = CoolMomentum(walk.dt2, schedule=walk.cooling)
    model.compile(optimizer, lambda _, out: out, jit_compile=keras.backend.backend() == "jax")
    batches = np.array([np.concatenate([x.ravel() for x in step]) for step in walk.gradients])
    model.fit(
        batches.astype("float32"),
        np.zeros(len(batches)),
        batch_size=1,
        shuffle=False,
        verbose=0,
        callbacks=[thermometer],
    )
    return thermometer.read(), list(thermometer.read("parameter").values())


def walk_in_bath(run: BathRun, *, seed: int = 0) -> BathWalk:
    """An optimizer of its own, whose draws are those that it keeps, or makes again if white."""
    variables = [keras.Variable(np.zeros(shape, np.float32)) for shape in BATH_SHAPES]
    how = {"schedule": run.cooling, "temperature": run.temperature, "noise": run.noise}
    optimizer = Langevin(run.learning_rate, seed=seed, **how)
    positions, normals = [], []
    for n, gradients in enumerate(run.gradients):
        step = keras.ops.convert_to_tensor(n, keras.backend.standardize_dtype("int"))
        keys = [(draw_key(seed, i, 0), step, shape) for i, shape in enumerate(BATH_SHAPES)]
        normals.append([keras.ops.convert_to_numpy(_normals(*key, "float32")) for key in keys])
        optimizer.apply([keras.ops.convert_to_tensor(g, "float32") for g in gradients], variables)
        positions.append([x.numpy().copy() for x in variables])
    return BathWalk(positions, normals)
