"""Portable states: what they hold, what they refuse, and what each adapter knows of its own."""

import json
import math
import re
import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from frameworks import framework

from coolmomentum import CoolingSchedule
from coolmomentum import numpy as cool_numpy
from coolmomentum.portable import PortableState, load_file, save_file, unique

torch, cool_torch = framework("torch"), framework("coolmomentum.torch")
jax, jnp, optax = framework("jax"), framework("jax.numpy"), framework("optax")
cool_jax = framework("coolmomentum.jax")
safetensors_torch = framework("safetensors.torch")

COOLING = CoolingSchedule(total_steps=9, rho0=0.9, law="linear", warmup_steps=2)


def state(**changes):
    """A good one but for the changes."""
    good = {"clock": 3, "cooling": COOLING, "learning_rate": 0.1, "last_learning_rate": 0.3}
    return PortableState(**good | {"displacements": {"w": np.arange(6.0).reshape(2, 3)}} | changes)


# --- the state and its file ---------------------------------------------------------------------


def test_a_file_gives_back_what_was_saved(tmp_path):
    """Numbers and arrays come back to the last bit, with their dtypes; and so from any order."""
    displacements = {
        "float64": np.asarray([np.pi, 5e-324, np.finfo(np.float64).max]),
        "float32": np.asarray([np.pi, 1e-45], np.float32),
        "transposed": np.arange(6.0).reshape(2, 3).T,
        "0-d": np.asarray(1.5),
        "empty": np.zeros((0, 3)),
    }
    saved = state(learning_rate=0.1 + 0.2, displacements=displacements)
    save_file(saved, tmp_path / "state")
    loaded = load_file(tmp_path / "state")
    for name in ("clock", "cooling", "learning_rate", "last_learning_rate"):
        assert getattr(loaded, name) == getattr(saved, name)
    for name, dx in displacements.items():
        assert loaded.displacements[name].dtype == dx.dtype
        np.testing.assert_array_equal(loaded.displacements[name], dx)


def test_other_programs_can_read_the_file(tmp_path):
    """It is a safetensors file whose metadata are JSON."""
    save_file(state(), tmp_path / "state")
    with safetensors.safe_open(tmp_path / "state", framework="numpy") as file:
        metadata = file.metadata()
    assert metadata.pop("format") == "coolmomentum"
    assert {name: json.loads(value) for name, value in metadata.items()} == {
        "version": 1,
        "clock": 3,
        "learning_rate": 0.1,
        "last_learning_rate": 0.3,
        "cooling": {
            "total_steps": 9,
            "rho0": 0.9,
            "law": "linear",
            "warmup_steps": 2,
            "warmup_clock": "run",
            "hold_steps": 0,
        },
    }
    np.testing.assert_array_equal(
        safetensors.numpy.load_file(tmp_path / "state")["w"], np.arange(6.0).reshape(2, 3)
    )


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_kept_exactly_in_float32(dtype):
    """Every finite number of the two formats, subnormals too, is one of float32."""
    every = np.arange(2**16, dtype=np.uint16).view(dtype)
    with np.errstate(invalid="ignore"):  # NaNs that signal
        every = every[np.isfinite(every.astype(np.float64))]
    kept = state(displacements={"w": every}).displacements["w"]
    assert kept.dtype == np.float32
    np.testing.assert_array_equal(kept.astype(np.float64), every.astype(np.float64))


def test_a_state_is_a_copy():
    """What the run does afterwards is not in it."""
    dx = np.zeros(2)
    kept = state(displacements={"w": dx})
    dx += 1
    np.testing.assert_array_equal(kept.displacements["w"], [0, 0])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"clock": -1}, ValueError, "clock must be >= 0: -1"),
        ({"clock": 1.0}, TypeError, "clock must be an integer: 1.0"),
        ({"learning_rate": float("nan")}, ValueError, "learning_rate must be finite and >= 0: nan"),
        ({"last_learning_rate": -1}, ValueError, "last_learning_rate must be finite and >= 0: -1"),
        ({"cooling": lambda step: 0.5}, TypeError, "schedule must be a CoolingSchedule to be expo"),
        ({"displacements": {"w": np.zeros(2, complex)}}, ValueError, "of 'w' must be real floatin"),
        ({"displacements": {"w": np.zeros(2, int)}}, ValueError, "must be real floating: int64"),
        ({"displacements": {1: np.zeros(2)}}, TypeError, "names of displacements must be strings"),
        ({"displacements": {"__metadata__": np.zeros(2)}}, ValueError, "a header: '__metadata__'"),
        ({"displacements": {"\ud800": np.zeros(2)}}, ValueError, r"Unicode text: '\ud800'"),
    ],
)
def test_bad_values_are_refused(changes, error, message):
    """At construction, with name, rule and value."""
    with pytest.raises(error) as caught:
        state(**changes)
    assert message in str(caught.value)


def test_plain_numbers_and_strings_are_kept():
    """NumPy's scalars and 0-d arrays become Python's, so that JSON and torch.load take them."""
    cooling = CoolingSchedule(np.array(9), np.array(0.5, np.float32), hold_steps=np.array(2))
    kept = state(
        clock=np.int64(3),
        learning_rate=np.float32(0.5),
        last_learning_rate=np.float64(0.1),
        cooling=cooling,
        displacements={np.str_("w"): np.zeros(2)},
    )
    assert type(kept.clock) is int
    assert [type(x) for x in (kept.learning_rate, kept.last_learning_rate)] == [float, float]
    assert [type(name) for name in kept.displacements] == [str]
    assert kept.cooling == CoolingSchedule(9, 0.5, hold_steps=2)
    assert [type(x) for x in (kept.cooling.total_steps, kept.cooling.rho0)] == [int, float]


@pytest.mark.parametrize(
    "cooling",
    [CoolingSchedule(None, 0.9, "constant"), CoolingSchedule(90, 0.9, "linear", 2, "hold", 30)],
    ids=lambda cooling: cooling.law,
)
def test_every_schedule_comes_back(tmp_path, cooling):
    """One without an end, and one that holds."""
    save_file(state(cooling=cooling), tmp_path / "state")
    assert load_file(tmp_path / "state").cooling == cooling


@pytest.mark.parametrize("name", ["", "ü", "a\0b", "\U0001f600", "a.b/c", "format", "x" * 1000])
def test_any_text_is_a_name(tmp_path, name):
    """Whatever the names of parameters are, the file gives them back."""
    save_file(state(displacements={name: np.ones(2)}), tmp_path / "state")
    assert list(load_file(tmp_path / "state").displacements) == [name]


class Compared(str):
    """A name that counts how often it is compared."""

    comparisons = 0

    def __eq__(self, other):
        Compared.comparisons += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def test_names_are_compared_in_one_pass():
    """As many names as a large model has tensors; by pairs it would be 2e10 comparisons."""
    names = [Compared(f"layer.{i}.weight") for i in range(200_000)]
    Compared.comparisons = 0
    assert unique(names) is names
    assert Compared.comparisons < 3 * len(names)
    with pytest.raises(ValueError, match=r"^names of parameters must differ: 'a', 'b' twice$"):
        unique(["b", "a", "c", "a", "b", "a"])


@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (2, 3)])
def test_a_file_may_hold_half_precision(tmp_path, shape):
    """float16 and bfloat16 of another program's file are read as float32, exactly."""
    values = torch.linspace(-3, 3, 7).repeat(2)[: int(np.prod(shape))].reshape(shape)
    save_file(state(), tmp_path / "state")
    with safetensors.safe_open(tmp_path / "state", framework="numpy") as file:
        metadata = file.metadata()
    tensors = {
        "b": values.bfloat16(),
        "h": values.half(),
        "f": values.clone(),
        "c": values.bfloat16() + 1,
    }
    safetensors_torch.save_file(tensors, tmp_path / "state", metadata)
    loaded = load_file(tmp_path / "state").displacements
    assert loaded.keys() == tensors.keys()
    for name, values in tensors.items():
        assert loaded[name].dtype == np.float32
        np.testing.assert_array_equal(loaded[name], values.float().numpy())


@pytest.fixture
def rewrite(tmp_path):
    """A good file with another header, or with tensors of another dtype."""

    def rewritten(dtype="float32", **changes):
        path = tmp_path / "state"
        save_file(state(), path)
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() | changes
        metadata = {name: value for name, value in metadata.items() if value is not None}
        tensors = {"w": torch.zeros(2).to(getattr(torch, dtype))}
        safetensors_torch.save_file(tensors, path, metadata)
        return path

    return rewritten


def test_a_file_from_before_hold_steps_holds_none(rewrite):
    """Its cooling has five entries."""
    before = {"total_steps": 9, "rho0": 0.9, "law": "linear", "warmup_steps": 2}
    path = rewrite(cooling=json.dumps(before | {"warmup_clock": "run"}))
    assert load_file(path).cooling == COOLING


LATER = json.dumps({"total_steps": 9, "rho0": 0.9, "cosine": 1})
NO_END = json.dumps({"total_steps": None, "law": "paper"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clock": None}, "the header must have just its own entries: clock"),
        ({"cooling": None, "clock": None}, "the header must have just its own entries: clock, coo"),
        ({"version": None}, "version of the file must be 1: None"),
        ({"unheard_of": "1"}, "the header must have just its own entries: unheard_of"),
        ({"clock": "{"}, "Expecting property name"),
        ({"clock": "-1"}, "clock must be >= 0: -1"),
        ({"clock": "1.5"}, "clock must be an integer: 1.5"),
        ({"clock": "true"}, "clock must be an integer: True"),
        ({"learning_rate": "NaN"}, "learning_rate must be finite and >= 0: nan"),
        ({"learning_rate": "Infinity"}, "learning_rate must be finite and >= 0: inf"),
        ({"last_learning_rate": "-0.1"}, "last_learning_rate must be finite and >= 0: -0.1"),
        ({"learning_rate": "null"}, "learning_rate must be a real number: None"),
        ({"learning_rate": '"0.1"'}, "learning_rate must be a real number: '0.1'"),
        ({"cooling": "3"}, "'int' object|argument after"),
        ({"cooling": "{}"}, "total_steps"),
        ({"cooling": LATER}, "unexpected keyword argument 'cosine'"),
        ({"cooling": NO_END}, "total_steps is required"),
        (
            {"cooling": json.dumps({"total_steps": 9, "rho0": math.nan})},
            "rho0 must be in [0, 1): n",
        ),
        ({"dtype": "int64"}, "must be real floating: I64"),
        ({"dtype": "float8_e4m3fn"}, "must be real floating: F8_E"),
    ],
)
def test_a_damaged_header_is_refused(rewrite, changes, message):
    """By a ValueError that names the file and what is wrong with it."""
    path = rewrite(**changes)
    with pytest.raises(
        ValueError, match=f"^{re.escape(repr(str(path)))} cannot be read: "
    ) as caught:
        load_file(path)
    assert message in str(caught.value) or re.search(message, str(caught.value))


def test_a_broken_file_is_refused(tmp_path):
    """Empty, cut at any place, or no such file at all: ValueError with the path."""
    path = tmp_path / "state"
    save_file(state(), path)
    whole = path.read_bytes()
    for broken in (b"", b"x" * 100, whole[:7], whole[:20], whole[:-1], whole + b"x"):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=f"^{re.escape(repr(str(path)))} cannot be read: "):
            load_file(path)


def test_a_path_of_no_file(tmp_path):
    """One that is missing is not found, a folder is no file, and neither can be written to."""
    with pytest.raises(FileNotFoundError):
        load_file(tmp_path / "missing")
    with pytest.raises(ValueError, match=f"save_file wrote: {re.escape(repr(str(tmp_path)))}$"):
        load_file(tmp_path)
    for path in (tmp_path, tmp_path / "missing" / "state"):
        with pytest.raises(OSError, match=f"^{re.escape(repr(str(path)))} cannot be written: "):
            save_file(state(), path)


def test_files_of_others_and_of_later_versions_are_refused(tmp_path):
    """A file is told by its metadata."""
    path = tmp_path / "file"
    for metadata in (None, {"format": "pt"}):
        safetensors.numpy.save_file({"w": np.zeros(2)}, path, metadata)
        with pytest.raises(ValueError, match="path must be of a file that save_file wrote"):
            load_file(path)
    safetensors.numpy.save_file(
        {"w": np.zeros(2)}, path, {"format": "coolmomentum", "version": "2"}
    )
    with pytest.raises(ValueError, match=r"version of .* must be 1: 2"):
        load_file(path)


def test_without_safetensors_the_extra_is_named(monkeypatch, tmp_path):
    """The core imports without it; only files need it."""
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r'pip install "coolmomentum\[safetensors\]"'):
        save_file(state(), tmp_path / "file")
    with pytest.raises(ImportError, match=r'pip install "coolmomentum\[safetensors\]"'):
        load_file(tmp_path / "file")


# --- NumPy --------------------------------------------------------------------------------------


def test_numpy_wants_a_name_for_each_parameter():
    """Too few names, or the same twice, are refused."""
    optimizer = cool_numpy.CoolMomentum(schedule=COOLING)
    at_rest = optimizer.init([np.zeros(2), np.zeros(3)])
    with pytest.raises(ValueError, match="names must be one for each of 2"):
        cool_numpy.export_state(optimizer, at_rest, ["w"])
    with pytest.raises(ValueError, match="names of parameters must differ: 'w' twice"):
        cool_numpy.export_state(optimizer, at_rest, ["w", "w"])


# --- PyTorch ------------------------------------------------------------------------------------


def torch_optimizer(params, **settings):
    """An optimizer whose parameters have moved, or some of them."""
    optimizer = cool_torch.CoolMomentum(params, **{"schedule": COOLING} | settings)
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = torch.full_like(param, 0.75) if param.requires_grad else None
    optimizer.step()
    return optimizer


@pytest.mark.parametrize(
    ("one", "message"),
    [
        ({"lr": 0.5}, r"lr must be that of all parameter groups to be exported: \[0.01, 0.5\]"),
        ({"total_steps": 20}, "the cooling must be that of all parameter groups to be exported"),
    ],
)
def test_torch_groups_that_differ_are_refused(one, message):
    """One learning rate and one cooling can be exported."""
    w, b = (torch.zeros(2, requires_grad=True) for _ in "wb")
    optimizer = torch_optimizer([{"params": [w]}, {"params": [b], **one}])
    with pytest.raises(ValueError, match=message):
        cool_torch.export_state(optimizer, [("w", w), ("b", b)])


def test_torch_parameters_without_a_name_are_refused():
    """Every parameter of the optimizer has one; others may be named beside them."""
    w, b, other = (torch.zeros(2, requires_grad=True) for _ in range(3))
    optimizer = torch_optimizer([w, b])
    with pytest.raises(ValueError, match=r"one of shape \(2,\) has no name"):
        cool_torch.export_state(optimizer, [("w", w), ("other", other)])
    with pytest.raises(ValueError, match="'w' twice"):
        cool_torch.export_state(optimizer, [("w", w), ("w", b)])
    saved = cool_torch.export_state(optimizer, [("w", w), ("b", b), ("other", other)])
    assert set(saved.displacements) == {"w", "b"}


def test_torch_functions_of_the_step_are_refused():
    """Both ways."""
    w = torch.zeros(2, requires_grad=True)
    optimizer = torch_optimizer([w], schedule=lambda step: 0.5)
    with pytest.raises(TypeError, match="schedule must be a CoolingSchedule to be exported"):
        cool_torch.export_state(optimizer, [("w", w)])
    with pytest.raises(ValueError, match="the optimizer must cool as the run did"):
        cool_torch.import_state(optimizer, [("w", w)], state(displacements={"w": np.zeros(2)}))


def test_torch_sharded_parameters_are_refused():
    """Their names say which."""

    class Sharded(torch.nn.Parameter):
        """As far as an optimizer asks."""

        def to_local(self):
            """The part that is here."""

    w = Sharded(torch.zeros(2))
    optimizer = cool_torch.CoolMomentum([w], schedule=COOLING)
    with pytest.raises(ValueError, match="parameters must be whole, and 'w' is sharded"):
        cool_torch.export_state(optimizer, [("w", w)])


def test_torch_frozen_parameters_are_at_rest():
    """A parameter that has not met a gradient is exported as zeros of its shape."""
    w, frozen = torch.zeros(2, requires_grad=True), torch.zeros(3)
    saved = cool_torch.export_state(torch_optimizer([w, frozen]), [("w", w), ("frozen", frozen)])
    np.testing.assert_array_equal(saved.displacements["frozen"], np.zeros(3))


def test_torch_keeps_the_layout_and_the_last_learning_rate():
    """What is loaded is laid out in memory as the parameter, and read in units of the last step."""
    w = torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last).requires_grad_()
    optimizer = torch_optimizer([w])
    optimizer.param_groups[0]["lr"] = 0.5  # a scheduler does so after the step
    saved = cool_torch.export_state(optimizer, [("w", w)])
    assert (saved.learning_rate, saved.last_learning_rate) == (0.5, 0.01)
    again = cool_torch.CoolMomentum([w], lr=0.5, schedule=COOLING)
    cool_torch.import_state(again, [("w", w)], saved)
    assert again.state[w]["displacement"].stride() == w.stride()
    assert again.temperature() == optimizer.temperature()


def test_torch_and_jax_exchange_bfloat16():
    """Parameters in bfloat16 have the same displacements on both sides, to the last bit."""
    w = torch.linspace(-1, 1, 7).bfloat16().requires_grad_()
    optimizer = torch_optimizer([w])
    saved = cool_torch.export_state(optimizer, [("w", w)])
    tx = cool_jax.cool_momentum(0.01, schedule=COOLING)
    opt_state = cool_jax.import_state(tx.init({"w": jnp.zeros(7, jnp.bfloat16)}), saved)
    assert opt_state.displacement["w"].dtype == jnp.bfloat16
    back = cool_torch.CoolMomentum([w], schedule=COOLING)
    saved = cool_jax.export_state(opt_state, 0.01, COOLING)
    cool_torch.import_state(back, [("w", w)], saved)
    assert back.state[w]["displacement"].dtype == torch.bfloat16
    assert torch.equal(back.state[w]["displacement"], optimizer.state[w]["displacement"])


# --- JAX ----------------------------------------------------------------------------------------


def test_jax_names_are_the_paths_of_the_tree():
    """Through dicts, lists and dataclasses; the same name twice is refused."""
    params = {"a": [jnp.zeros(2), {"b": jnp.zeros(())}], "count": jnp.zeros((), jnp.int32)}
    saved = cool_jax.export_state(cool_jax.cool_momentum(0.1, 9).init(params), 0.1, COOLING)
    assert list(saved.displacements) == ["a.0", "a.1.b"]  # integers do not move
    opt_state = cool_jax.cool_momentum(0.1, 9).init({"a": {"b": 0.0}, "a.b": 0.0})
    with pytest.raises(ValueError, match=r"names of parameters must differ: 'a\.b' twice"):
        cool_jax.export_state(opt_state, 0.1, COOLING)


def test_jax_groups_are_carried_as_one_run():
    """The states of optax.partition are one state, if their clocks agree."""
    params = {"w": jnp.ones(2), "b": jnp.ones(3)}
    tx = optax.partition(
        {name: cool_jax.cool_momentum(0.1, schedule=COOLING) for name in params},
        {name: name for name in params},
    )
    _, opt_state = tx.update(params, tx.init(params), params)
    saved = cool_jax.export_state(opt_state, 0.1, COOLING)
    assert (saved.clock, set(saved.displacements)) == (1, {"w", "b"})
    again = cool_jax.import_state(tx.init(params), saved)
    assert jax.tree.structure(again) == jax.tree.structure(opt_state)
    jax.tree.map(np.testing.assert_array_equal, again, opt_state)
    two_clocks = (opt_state, tx.init(params))
    with pytest.raises(ValueError, match=r"must have one clock: \[0, 1\]"):
        cool_jax.export_state(two_clocks, 0.1, COOLING)


def test_jax_learning_rate_schedules_are_read_at_the_clock():
    """The learning rate of the next step, and that of the last."""
    tx = cool_jax.cool_momentum(lambda count: 1.0 / (count + 1), schedule=COOLING)
    opt_state = tx.init(jnp.zeros(2))
    for _ in range(3):
        _, opt_state = tx.update(jnp.ones(2), opt_state)
    saved = cool_jax.export_state(opt_state, lambda count: 1.0 / (count + 1), COOLING)
    assert (saved.learning_rate, saved.last_learning_rate) == (1 / 4, 1 / 3)


def test_jax_does_not_compile_anew_for_a_loaded_state():
    """It has the dtypes, weak types and placement of the state it stands in for."""
    tx = cool_jax.cool_momentum(0.1, schedule=COOLING)
    compiled = jax.jit(tx.update)
    _, opt_state = compiled(jnp.ones(2), tx.init(jnp.zeros(2)))
    saved = cool_jax.export_state(opt_state, 0.1, COOLING)
    compiled(jnp.ones(2), cool_jax.import_state(tx.init(jnp.zeros(2)), saved))
    assert compiled._cache_size() == 1


def test_jax_functions_of_the_step_are_refused():
    """A file can hold a CoolingSchedule only."""
    opt_state = cool_jax.cool_momentum(0.1, 9).init(jnp.zeros(2))
    with pytest.raises(TypeError, match="schedule must be a CoolingSchedule to be exported"):
        cool_jax.export_state(opt_state, 0.1, lambda step: 0.5)


def test_a_masked_displacement_is_refused():
    """Its mask would be lost."""
    with pytest.raises(TypeError, match=r"^the displacement of 'w' must not be masked$"):
        PortableState(3, COOLING, 0.1, 0.1, {"w": np.ma.array([1.0, 2.0], mask=[0, 1])})


def test_messages_stay_short():
    """Of a hundred thousand names the first are shown, and how many more there are."""
    with pytest.raises(ValueError, match=r"'n100004' and 99995 more twice$") as caught:
        unique([f"n{i}" for i in range(10**5, 2 * 10**5)] * 2)
    assert len(str(caught.value)) < 200


def test_numpy_exports_tensors_of_half_precision():
    """bfloat16 tensors of PyTorch become float32, and a graph is no obstacle."""
    optimizer = cool_numpy.CoolMomentum(schedule=COOLING)
    params = [torch.ones(2, dtype=torch.bfloat16), torch.ones(2, requires_grad=True)]
    state = optimizer.init(params)
    _, state = optimizer.step(params, params, state)
    exported = cool_numpy.export_state(optimizer, state, ["a", "b"])
    assert {dx.dtype for dx in exported.displacements.values()} == {np.dtype("float32")}
