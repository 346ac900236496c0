"""The state of a run in no framework's terms: one adapter writes it and another reads it.

Each adapter has ``export_state``, which makes a :class:`PortableState` of its own state, and
``import_state``, which does the opposite. Files are safetensors files.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from coolmomentum import _check
from coolmomentum.schedules import CoolingSchedule, Schedule

__all__ = ["PortableState", "load_file", "save_file"]

FORMAT, VERSION = "coolmomentum", 1


@dataclass(frozen=True, eq=False)
class PortableState:
    """What a run needs to go on: its clock, how it cools, its learning rate, its displacements.

    The parameters are not in it: they are the model's, and saved as the framework saves them.

    Parameters
    ----------
    clock : n, the steps taken; an integer >= 0.
    cooling : how rho cools. A function of the step cannot be carried.
    learning_rate : of the next step, the squared time step ``dt**2``; finite and >= 0. A schedule
        of learning rates is not carried, only where it stands.
    last_learning_rate : of the last step, in whose unit the temperature is read.
    displacements : the last change of each parameter, by its name and in its layout; real floating
        arrays of any shape. They are copied, in C order. float16 and bfloat16 become float32, which
        is exact, and readable where NumPy has no bfloat16. Any text may be a name but for
        ``__metadata__``, which safetensors keeps for itself.

    Raises
    ------
    TypeError, ValueError
        If one of these is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from coolmomentum import CoolingSchedule
    >>> cooling = CoolingSchedule(total_steps=100, rho0=0.9)
    >>> state = PortableState(3, cooling, 0.1, 0.1, {"w": np.zeros((2, 3), np.float16)})
    >>> state.displacements["w"].dtype
    dtype('float32')
    """

    clock: int
    cooling: CoolingSchedule
    learning_rate: float
    last_learning_rate: float
    displacements: Mapping[str, np.ndarray]

    def __post_init__(self) -> None:
        if not isinstance(self.displacements, Mapping):
            raise TypeError(f"displacements must be a dict of arrays: {self.displacements!r}")
        checked = {
            "clock": _check.integer("clock", self.clock, 0),
            # Once more, because a schedule may be made of arrays.
            "cooling": CoolingSchedule(
                **{k: _plain(v) for k, v in asdict(require_serialisable(self.cooling)).items()}
            ),
            "learning_rate": _check.non_negative("learning_rate", self.learning_rate),
            "last_learning_rate": _check.non_negative(
                "last_learning_rate", self.last_learning_rate
            ),
            "displacements": {
                _checked_name(name): _stored(name, x) for name, x in self.displacements.items()
            },
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def displacements_for(
        self, shapes: Mapping[str, tuple[int, ...]], cooling: Any = None
    ) -> dict[str, np.ndarray]:
        """The displacements for an optimizer with these parameters; what an adapter loads.

        Parameters
        ----------
        shapes : of the parameters, by name.
        cooling : schedule of the optimizer, where it is known.

        Returns
        -------
        the displacements in the order of ``shapes``

        Raises
        ------
        ValueError
            If the names or a shape differ, or the optimizer cools in another way.

        Examples
        --------
        >>> state = PortableState(3, CoolingSchedule(100), 0.1, 0.1, {"w": np.zeros(3)})
        >>> state.displacements_for({"weight": (3,)})
        Traceback (most recent call last):
            ...
        ValueError: displacements must be those of the parameters: none of 'weight', unknown 'w'
        """
        if cooling not in (None, self.cooling):
            raise ValueError(
                f"the optimizer must cool as the run did, by {self.cooling}: {cooling!r}"
            )
        ours, theirs = self.displacements.keys(), shapes.keys()
        differences = [
            f"{what} {_some(sorted(names))}"
            for what, names in (("none of", theirs - ours), ("unknown", ours - theirs))
            if names
        ]
        if differences:
            raise ValueError(
                f"displacements must be those of the parameters: {', '.join(differences)}"
            )
        for name, shape in shapes.items():
            if self.displacements[name].shape != tuple(shape):
                raise ValueError(
                    f"the displacement of {name!r} must have the shape of the parameter, "
                    f"{tuple(shape)}: {self.displacements[name].shape}"
                )
        return {name: self.displacements[name] for name in shapes}


def save_file(state: PortableState, path: str | PathLike[str]) -> None:
    """Write a state to a safetensors file: the displacements as tensors, the rest as metadata.

    Parameters
    ----------
    state : from ``export_state`` of an adapter.
    path : of the file, which is overwritten.

    Raises
    ------
    ImportError
        If safetensors is not installed.
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> state = PortableState(3, CoolingSchedule(100), 0.1, 0.1, {"w": np.arange(3.0)})
    >>> save_file(state, getfixture("tmp_path") / "state.safetensors")
    >>> load_file(getfixture("tmp_path") / "state.safetensors").clock
    3
    """
    error_of_file = _import_safetensors().SafetensorError
    from safetensors import numpy

    rest = {field.name: getattr(state, field.name) for field in fields(state)}
    del rest["displacements"]
    rest["cooling"] = asdict(state.cooling)
    metadata = {name: json.dumps(value) for name, value in rest.items()}
    header = {"format": FORMAT, "version": str(VERSION)}
    try:
        numpy.save_file(dict(state.displacements), str(Path(path)), header | metadata)
    except error_of_file as error:
        raise OSError(f"{str(path)!r} cannot be written: {error}") from None


def load_file(path: str | PathLike[str]) -> PortableState:
    """Read a state that :func:`save_file` wrote, bit for bit; float16 and bfloat16 as float32.

    Parameters
    ----------
    path : of the file.

    Returns
    -------
    the state

    Raises
    ------
    ImportError
        If safetensors is not installed.
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is another one, or of a later version, or damaged.

    Examples
    --------
    >>> path = getfixture("tmp_path") / "state.safetensors"
    >>> save_file(PortableState(3, CoolingSchedule(100), 0.1, 0.1, {"w": np.arange(3.0)}), path)
    >>> load_file(path).displacements
    {'w': array([0., 1., 2.])}
    """
    safetensors, path = _import_safetensors(), str(Path(path))
    if Path(path).is_dir():
        raise ValueError(f"path must be of a file that save_file wrote: {path!r}")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            _check_format(metadata)
            displacements = _tensors(file, path)
        return PortableState(**_header(metadata), displacements=displacements)
    except (safetensors.SafetensorError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path!r} cannot be read: {error}") from error


def _check_format(metadata: Mapping[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise ValueError("path must be of a file that save_file wrote")
    if metadata.get("version") != str(VERSION):
        raise ValueError(f"version of the file must be {VERSION}: {metadata.get('version')}")


def _header(metadata: Mapping[str, str]) -> dict[str, Any]:
    """All arguments of :class:`PortableState` but for the displacements."""
    names = {field.name for field in fields(PortableState)} - {"displacements"}
    if differing := sorted(names ^ (metadata.keys() - {"format", "version"})):
        raise ValueError(f"the header must have just its own entries: {', '.join(differing)}")
    values = {name: json.loads(metadata[name]) for name in names}
    return values | {"cooling": CoolingSchedule(**values["cooling"])}


def _tensors(file: Any, path: str) -> dict[str, np.ndarray]:
    """The tensors of an open file; NumPy has no bfloat16, the upper half of a float32."""
    dtypes = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118  # not a dict
    for name, dtype in dtypes.items():
        if dtype not in ("F64", "F32", "F16", "BF16"):
            raise ValueError(f"the displacement of {name!r} must be real floating: {dtype}")
    whole = "BF16" in dtypes.values() and _import_safetensors().deserialize(Path(path).read_bytes())
    upper = {name: (np.frombuffer(x["data"], "<u2"), x["shape"]) for name, x in whole or ()}
    return {
        name: (upper[name][0].astype("<u4") << 16).view("<f4").reshape(upper[name][1])
        if dtype == "BF16"
        else file.get_tensor(name)
        for name, dtype in dtypes.items()
    }


def require_serialisable(schedule: Schedule) -> CoolingSchedule:
    """``schedule`` if a file can hold it, else ``TypeError``; for the adapters."""
    if not isinstance(schedule, CoolingSchedule):
        raise TypeError(
            "schedule must be a CoolingSchedule to be exported, not a function of the step: "
            f"{schedule!r}"
        )
    return schedule


def unique(names: list[str]) -> list[str]:
    """``names`` if no two are the same, else ``ValueError``; for the adapters."""
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise ValueError(f"names of parameters must differ: {_some(twice)} twice")
    return names


def _some(names: list[str]) -> str:
    """The first names, and how many more there are: a model may have a hundred thousand."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(map(repr, names[:5])) + more


def _checked_name(name: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"names of displacements must be strings: {name!r}")
    try:
        name.encode()
    except UnicodeEncodeError:  # a lone surrogate
        raise ValueError(f"names of displacements must be Unicode text: {name!r}") from None
    if name == "__metadata__":
        raise ValueError(f"names of displacements must not be that of a header: {name!r}")
    return str(name)  # of np.str_, too


def _stored(name: str, displacement: Any) -> np.ndarray:
    if isinstance(displacement, np.ma.MaskedArray):
        raise TypeError(f"the displacement of {name!r} must not be masked")
    values = np.asarray(displacement)
    # To NumPy, bfloat16 is of no kind. It is cast to float32 as float16 is.
    if values.dtype.kind != "f" and values.dtype.name != "bfloat16":
        raise ValueError(f"the displacement of {name!r} must be real floating: {values.dtype}")
    dtype = np.float64 if values.dtype.itemsize >= 8 else np.float32
    # In C order, because safetensors would write another order as if it were that one.
    return np.array(values, dtype, order="C")


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _import_safetensors() -> Any:
    try:
        import safetensors
    except ModuleNotFoundError as error:
        if error.name != "safetensors":
            raise
        raise ImportError(
            'portable states are saved by safetensors: pip install "coolmomentum[safetensors]"'
        ) from None
    return safetensors
