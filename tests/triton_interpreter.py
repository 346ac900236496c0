"""Triton's interpreter, as the hardware: it rounds to bfloat16, and overflows without a word.

Imported by conftest.py, before anything makes a kernel. Where there is no Triton it does nothing.
"""

import importlib.util
import os

os.environ["TRITON_INTERPRET"] = "1"  # read where a kernel is made

import ml_dtypes
import numpy as np

TRITON = importlib.util.find_spec("triton") is not None

if TRITON:
    from triton import language as tl
    from triton.runtime import interpreter

    convert_float = interpreter._convert_float

    def rounded(data, source, target, rounding):
        """Instead of _convert_float."""
        if (source, target) == (tl.float32, tl.bfloat16):
            return data.astype(ml_dtypes.bfloat16).view(np.uint16)
        if (source, target) == (tl.bfloat16, tl.float32):
            return data.view(ml_dtypes.bfloat16).astype(np.float32).view(np.uint32)
        return convert_float(data, source, target, rounding)

    interpreter._convert_float = rounded
    interpret = interpreter.GridExecutor.__call__

    def quietly(self, *args, **settings):
        """Instead of __call__."""
        with np.errstate(all="ignore"):
            return interpret(self, *args, **settings)

    interpreter.GridExecutor.__call__ = quietly
