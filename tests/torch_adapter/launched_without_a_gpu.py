"""Compiles the kernel of a step for a GPU that is not there, and prints what would be launched.

A process of its own, because Triton must not interpret here. Everything is Triton's own, down to
the assembler of the GPU, but for the last call, which would load the code and run it.
"""

import json
import re
import subprocess
import tempfile
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from coolmomentum.torch import CoolMomentum, _one_pass

WARP = 32  # threads
SIZES = (1, 1000, 4096, 5000)


class NoGPU:
    """What Triton asks a GPU for."""

    def __init__(self, capability):
        self.launches = []
        self.target = GPUTarget("cuda", capability, WARP)
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": 2**16},
            load_binary=lambda *code: (None, None, 0, 0, 1024),
        )

    def get_current_target(self):
        """Which code to make."""
        return self.target

    def get_current_device(self):
        """The only one."""
        return 0

    def get_current_stream(self, device):
        """The default."""
        return 0

    def launcher_cls(self, source, metadata):
        """What would run the code."""
        return lambda *args: self.launches.append(args)


def bytes_a_parameter(kernel):
    """What one thread loads and stores of its elements, all of which is once in the code."""
    code = kernel.asm["ptx"]
    assert not re.search(r"\bbra\b", code), "a branch"
    moves = re.findall(r"(?:ld|st)\.global\.v(\d)\.b(\d+)", code)
    moved = sum(int(vector) * int(bits) // 8 for vector, bits in moves)
    return moved * kernel.metadata.num_warps * WARP / _one_pass.BLOCK


def stack_bytes(code):
    """Memory of each thread, where registers did not do."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(code)
        usage = subprocess.run(
            [tool, "-res-usage", file.name], check=True, capture_output=True, text=True
        )
    return sum(map(int, re.findall(r"(?:STACK|LOCAL):(\d+)", usage.stdout)))


def run(capability, dtype, displacement_dtype, capturable, **settings):
    """Steps whose rho, learning rate and gradients change."""
    gpu = NoGPU(capability)
    driver.set_active(gpu)
    _one_pass.cool_momentum_step.device_caches.clear()
    params = [torch.zeros(size, dtype=dtype).requires_grad_() for size in SIZES]
    optimizer = CoolMomentum(
        params,
        lr=0.5,
        total_steps=9,
        displacement_dtype=displacement_dtype,
        capturable=capturable,
        track_temperature=True,
        **settings,
    )
    compiled = []
    for n in range(4):
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.param_groups[0]["lr"] = 0.5 / (n + 1)
        optimizer.step()
        kernels = list(_one_pass.cool_momentum_step.device_caches[0][0].values())
        compiled.append(len(kernels))
    (aligned,) = (k for k in kernels if ".global.v" in k.asm["ptx"])  # 4096 can be divided by 16
    return {
        "kernels compiled after each step": compiled,
        "launches": [launch[0] for launch in gpu.launches],  # of how many programs
        "bytes a parameter": bytes_a_parameter(aligned),
        "rounds to nearest": "cvt.rn.bf16" in aligned.asm["ptx"],
        "stack bytes": max(stack_bytes(k.asm["cubin"]) for k in kernels),
    }


def main():
    """Every kind of displacement on two kinds of GPU."""
    # The tensors are on the CPU, which the step has to overlook.
    _one_pass.INTERPRETED = True
    kinds = [(torch.float32, None), (torch.bfloat16, None), (torch.bfloat16, torch.float32)]
    with tempfile.TemporaryDirectory() as cache:
        triton.knobs.cache.dir = cache
        runs = [
            {"dtype": str(dtype), "displacements": str(wide or dtype)}
            | run(capability, dtype, wide, capturable, weight_decay=0.1)
            for capability, (dtype, wide), capturable in product((80, 90), kinds, (False, True))
        ]
    print(json.dumps(runs, indent=1))


if __name__ == "__main__":
    main()
