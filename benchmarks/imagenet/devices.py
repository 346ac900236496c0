"""Which engine trains on which devices: a choice among those of Keras, and nothing of our own.

======================  ==========================================================  ==============
machine                 engine                                                      BN statistics
======================  ==========================================================  ==============
CPU                     TensorFlow without XLA, which is 22 times slower there      the batch
one GPU                 TensorFlow with XLA or JAX, accumulating microbatches       a microbatch
GPUs of a host          TensorFlow, ``tf.distribute.MirroredStrategy``              a GPU's share
GPUs, TPUs, hosts       JAX, ``keras.distribution.DataParallel``                    the batch
======================  ==========================================================  ==============
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import keras
import tensorflow as tf

from benchmarks.imagenet.config import ConfigError
from benchmarks.imagenet.images import WHOLE, Share

__all__ = ["PAPERS_GROUP", "Engine", "choose"]

PAPERS_GROUP = 256  # images whose statistics a core of a TPU v2-8 took together: 2,048 / 8

DType = Literal["float32", "mixed_bfloat16"]


@dataclass(frozen=True)
class Engine:
    """How one run is computed."""

    device: str  # in words
    scope: Any  # a tf.distribute strategy, or None
    accumulated: int  # minibatches whose gradients make a step
    bn_group: int  # images whose statistics batch normalisation takes together
    jit_compile: bool | Literal["auto"]
    dtype: DType
    share: Share = WHOLE  # of each batch, which this host reads

    def building(self) -> AbstractContextManager[Any]:
        """Where a model is made, and its variables are assigned."""
        if self.scope is None:
            return nullcontext()
        context: AbstractContextManager[Any] = self.scope.scope()
        return context

    def departures(self) -> list[str]:
        """Where it computes something else than the paper's TPU."""
        found = []
        if self.bn_group != PAPERS_GROUP:
            found.append(f"batch statistics of {self.bn_group} images in place of {PAPERS_GROUP}")
        if self.accumulated > 1:
            found.append(f"moving statistics move {self.accumulated} times a step, each less")
        if self.dtype != "float32":
            found.append(f"{self.dtype} in place of float32")
        return found


def choose(
    batch: int,
    evaluation_batch: int = 0,
    *,
    devices: int | None = None,
    microbatch: int | None = None,
    dtype: DType = "float32",
    hosts: bool = False,
) -> Engine:
    """The engine for a batch, set up; before any other use of the backend.

    Parameters
    ----------
    batch, evaluation_batch : images of a step, over all devices and hosts, and of a minibatch that
        is evaluated.
    devices : how many; None takes all that are of the fastest kind. CPUs are made by splitting one.
    microbatch : images whose gradients are computed at once, a divisor of batch; None: all.
    dtype : the dtype policy of Keras.
    hosts : this process is one of several that are started alike; on JAX only.

    Raises
    ------
    ConfigError
        If these do not go together.
    """
    microbatch = batch if microbatch is None else microbatch
    if microbatch < 1 or batch % microbatch:
        raise ConfigError(f"--microbatch must divide the batch of {batch}: {microbatch}")
    accumulated = batch // microbatch
    if devices is not None and devices < 1:
        raise ConfigError(f"--devices must be at least 1: {devices}")
    backend = keras.backend.backend()
    if backend not in ("tensorflow", "jax"):
        raise ConfigError(f"KERAS_BACKEND must be tensorflow or jax: {backend}")
    if hosts and backend != "jax":
        raise ConfigError(f"--hosts needs KERAS_BACKEND=jax: {backend}")
    keras.config.set_dtype_policy(dtype)
    found = _on_tensorflow(devices) if backend == "tensorflow" else _on_jax(devices, hosts)
    device, scope, count = found
    if count > 1 and accumulated > 1:
        raise ConfigError(f"--microbatch is for one device, as Keras has it: {count} devices")
    for name, images in (("batch", batch), ("evaluation_batch", evaluation_batch)):
        if images % count:
            raise ConfigError(f"{name} must be a multiple of the {count} devices: {images}")
    shared = backend == "jax"  # DataParallel: statistics of the global batch
    group = microbatch // (1 if shared else count)
    # XLA: 22 times slower on a CPU; under MirroredStrategy Keras fails with it.
    compiled = backend == "jax" or ("GPU" in device and count == 1)
    share = WHOLE
    if hosts:
        import jax

        share = Share(jax.process_index(), jax.process_count())
    return Engine(device, scope, accumulated, group, "auto" if compiled else False, dtype, share)


def _on_tensorflow(devices: int | None) -> tuple[str, Any, int]:
    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    there = tf.config.list_physical_devices(kind)
    count = devices or len(there)
    if kind == "CPU" and count > 1:
        parts = [tf.config.LogicalDeviceConfiguration()] * count
        tf.config.set_logical_device_configuration(there[0], parts)
    elif count > len(there):
        raise ConfigError(f"--devices must be at most {len(there)}, the {kind}s here: {count}")
    name = f"{count} {kind}{'s' * (count > 1)}, TensorFlow"
    if count == 1:
        return name, None, 1
    strategy = tf.distribute.MirroredStrategy([f"{kind}:{i}" for i in range(count)])
    return f"{name}, MirroredStrategy", strategy, count


def _on_jax(devices: int | None, hosts: bool) -> tuple[str, Any, int]:
    import jax

    tf.config.set_visible_devices([], "GPU")  # it only reads images here
    if devices and not hosts:
        jax.config.update("jax_num_cpu_devices", devices)  # type: ignore[no-untyped-call]  # of JAX
    if hosts:
        keras.distribution.initialize()
    there = keras.distribution.list_devices()
    count = devices or len(there)
    if count > len(there):
        raise ConfigError(f"--devices must be at most {len(there)}, what is here: {count}")
    kind = jax.devices()[0].device_kind
    name = f"{count} {kind}{'s' * (count > 1)}, JAX"
    if count > 1:
        keras.distribution.set_distribution(
            # Each host reads its own share; Keras would have it decode all and drop the rest.
            keras.distribution.DataParallel(devices=there[:count], auto_shard_dataset=False)
        )
        name += ", DataParallel"
    return name, None, count
