"""The adapters that the suite holds to the reference: one file each, found here.

A file has all the roles of its adapter:

- ``DRIVERS``, its paths by name (see drivers.py);
- ``Moves``, which takes their runs out and in as portable states (see roles.py);
- ``RHO``, by name what gives rho of a new optimizer with some settings;
- ``read_walk(walk)``, which reads a thermometer: all parameters, and a list with each;
- ``UNIT``, the unit roundoff of what the thermometer computes in;
- ``walk_in_bath(run, seed=0)``, a walk in its heat bath; the reference has none to be held to.

What it imports is in ``NEEDS`` of tests/frameworks.py.
"""

import importlib
import os
from pathlib import Path
from types import ModuleType

from drivers import Driver
from frameworks import left_out

_HERE = Path(__file__).parent
_KERAS = "KERAS_BACKEND" in os.environ  # a process has one backend; see test_keras_backends.py


def _found() -> dict[str, ModuleType]:
    absent = {name.rpartition("/")[2] for name in left_out() if "contract/adapters/" in name}
    absent |= set() if _KERAS else {"keras.py"}
    files = sorted(file for file in _HERE.glob("[!_]*.py") if file.name not in absent)
    return {file.stem: importlib.import_module(f"{__name__}.{file.stem}") for file in files}


ALL = _found()
# Those whose turn it is in this process: Keras', or all others.
TESTED = {name: module for name, module in ALL.items() if (name == "keras") == _KERAS}
DRIVERS: dict[str, Driver] = {
    name: driver for module in TESTED.values() for name, driver in module.DRIVERS.items()
}
