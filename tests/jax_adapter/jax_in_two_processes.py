"""One of two processes that share a run, started by test_jax_sharding.py: its number, a port."""

import os
import sys

import jax

rank, port = int(sys.argv[1]), sys.argv[2]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=rank)

import numpy as np  # noqa: E402
import optax  # noqa: E402
import pytest  # noqa: E402
from jax.experimental import multihost_utils  # noqa: E402
from jax.sharding import AxisType, NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

from coolmomentum import CoolingSchedule  # noqa: E402
from coolmomentum.jax import (  # noqa: E402
    cool_momentum,
    export_state,
    import_state,
    read,
    rho,
    temperature,
    thermometer,
)

COOLING = CoolingSchedule(20, 0.75)
tx = cool_momentum(0.25, schedule=COOLING)
mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,))
split, whole = NamedSharding(mesh, P("x")), NamedSharding(mesh, P())
w = np.array([1.0, 2.0, 3.0, 4.0], "float32")
params = {"b": jax.device_put(w, whole), "w": jax.device_put(w, split)}
_, state = jax.jit(tx.update)(params, jax.jit(tx.init)(params), params)
assert not state.displacement["w"].is_fully_addressable

if rank == 0:  # it needs nobody else
    assert abs(float(rho(state, COOLING)) - COOLING(1)) < 1e-6
heat = 0.21875**2 * 7.5 / 0.25  # every displacement is -0.21875 times the parameter
assert abs(float(temperature(state, 0.25)) / heat - 1) < 1e-6  # every process has to call it

measured = optax.chain(tx, thermometer(0.25, COOLING))
_, seen = jax.jit(measured.update)(params, jax.jit(measured.init)(params), params)
if rank == 0:  # every process has its sums
    assert abs(read(seen)["temperature"] / heat - 1) < 1e-6
    assert read(seen, "parameter").keys() == {"b", "w"}

with pytest.raises(ValueError, match=r"of 'w' must be whole on this process: .*process_allgather"):
    export_state(state, 0.25, COOLING)
gathered = multihost_utils.process_allgather(state, tiled=True)
saved = export_state(gathered, 0.25, COOLING)
assert saved.clock == 1
for values in saved.displacements.values():
    np.testing.assert_array_equal(values, np.float32(-0.21875) * w)

abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
)
for old in (jax.jit(tx.init)(params), abstract):
    new = import_state(old, saved)
    assert all(
        x.sharding == y.sharding for x, y in zip(*map(jax.tree.leaves, (new, old)), strict=True)
    )
    _, after = jax.jit(tx.update)(params, new, params)
    _, exact = jax.jit(tx.update)(params, state, params)
    for ours, theirs in zip(jax.tree.leaves(after), jax.tree.leaves(exact), strict=True):
        assert ours.sharding.is_equivalent_to(theirs.sharding, ours.ndim)
        for one, other in zip(ours.addressable_shards, theirs.addressable_shards, strict=True):
            np.testing.assert_array_equal(one.data, other.data)
print("done")
sys.stdout.flush()
multihost_utils.sync_global_devices("end")
os._exit(0)  # no teardown, which a slow partner may make wait
