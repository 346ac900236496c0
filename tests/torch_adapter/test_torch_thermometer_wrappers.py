"""The thermometer on optimizers in wrappers, in trainers and of other packages."""

import math
import warnings

import pytest
import torch
from torch import nn
from torch_meter_tools import same_readings
from torch_tools import draw, gradients, parameters

from coolmomentum.torch import Thermometer

SGD = torch.optim.SGD


def trained(make_thermometer, model, optimizer, step, dtype=torch.float32):
    """Readings of eight steps."""
    thermometer = make_thermometer(optimizer)
    for n in range(8):
        optimizer.zero_grad()
        step(model(draw(8, 3, dtype=dtype, seed=n)).square().mean())
        optimizer.step()
    return {"all": thermometer.read(), **thermometer.read("parameter")}


def small(dtype=torch.float32):
    """A model and its optimizer, the same each time."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2).to(dtype)
    return model, SGD(model.parameters(), lr=0.05, momentum=0.9)


def plain(dtype=torch.float32):
    """The readings without any wrapper."""
    model, optimizer = small(dtype)
    return trained(meter, model, optimizer, lambda loss: loss.backward(), dtype)


def meter(optimizer):
    """A thermometer of every step."""
    return Thermometer(optimizer, every=1, span=4)


def test_accelerate():
    """The wrapper that prepare gives back reads as the optimizer in it."""
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(*small())
    assert same_readings(trained(meter, model, optimizer, accelerator.backward), plain())


def test_made_before_accelerate_prepares():
    """And so does one that was made before."""
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model, optimizer = small()
    thermometer = meter(optimizer)
    model, optimizer = accelerator.prepare(model, optimizer)
    got = trained(lambda _: thermometer, model, optimizer, accelerator.backward)
    assert same_readings(got, plain())


def test_fabric():
    """Fabric's optimizer poses as an SGD whose hooks do not run."""
    fabric_module = pytest.importorskip("lightning_fabric")
    fabric = fabric_module.Fabric(accelerator="cpu", devices=1)
    model, optimizer = fabric.setup(*small())
    assert isinstance(optimizer, SGD)
    assert same_readings(trained(meter, model, optimizer, fabric.backward), plain())


def test_lightning():
    """Those of a Trainer and of a module, whose gradients come in a closure, read the same."""
    lightning = pytest.importorskip("pytorch_lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model, self.optimizer = small(torch.float64)

        def on_train_start(self):
            """Of the wrapper and of what it wraps."""
            self.thermometers = [meter(self.optimizers()), meter(self.trainer.optimizers[0])]

        def training_step(self, batch, _):
            """The loss."""
            return self.model(batch).square().mean()

        def configure_optimizers(self):
            """The optimizer."""
            return self.optimizer

    module = Module()
    data = torch.cat([draw(8, 3, seed=n) for n in range(8)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lightning.Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(module, torch.utils.data.DataLoader(data, batch_size=8))
    for thermometer in module.thermometers:
        got = {"all": thermometer.read(), **thermometer.read("parameter")}
        # The first step of a closure is read from copies: a difference of weights of about 1,
        # which float64 rounds as little as this asks for.
        assert same_readings(got, plain(torch.float64))


class Wrapper:
    """What has an optimizer, and a step of its own."""

    def __init__(self, **attributes):
        vars(self).update(attributes)

    def step(self):
        """That of the optimizer."""


def test_wrappers_in_wrappers():
    """They are followed to the end."""
    model, optimizer = small()
    outer = Wrapper(optimizer=Wrapper(optimizer=optimizer))
    assert Thermometer(outer)._optimizer is optimizer
    del model


@pytest.mark.parametrize(
    ("attributes", "message"),
    [({}, "Wrapper$"), ({"inner": None}, r"Wrapper; give its \.inner$")],
)
def test_what_to_give_instead(attributes, message):
    """An error names the optimizer that steps, if there is one."""
    wrapper = Wrapper(**dict.fromkeys(attributes, small()[1]))
    start = r"^optimizer must be a torch\.optim\.Optimizer whose step calls its hooks: "
    with pytest.raises(TypeError, match=start + message):
        Thermometer(wrapper)


class Unready(torch.optim.Optimizer):
    """One whose constructor does not call that of torch."""

    def __init__(self, params):
        self.param_groups = [{"params": params}]

    def step(self):
        """Nothing."""


def test_an_optimizer_without_hooks():
    """It is refused at the start."""
    with pytest.raises(TypeError, match="whose step calls its hooks: Unready"):
        Thermometer(Unready(parameters((1,))))


# --- real packages --------------------------------------------------------------------------------


# --- real packages --------------------------------------------------------------------------------


def made_by_packages():
    """Optimizers of other packages, which torch's hooks reach."""
    pytorch_optimizer = pytest.importorskip("pytorch_optimizer")
    schedulefree = pytest.importorskip("schedulefree")
    return {
        "lookahead": lambda p: pytorch_optimizer.Lookahead(SGD(p, lr=0.05, momentum=0.9), k=2),
        "lion": lambda p: pytorch_optimizer.Lion(p, lr=0.05, weight_decay=0.0),
        "schedule-free": lambda p: schedulefree.SGDScheduleFree(p, lr=0.05),
    }


@pytest.mark.parametrize("name", ["lookahead", "lion", "schedule-free"])
def test_other_packages(name):
    """The mean square is of all that the parameters did in the step; temperatures are not known."""
    (x,) = params = parameters((4, 3))
    optimizer = made_by_packages()[name](params)
    if hasattr(optimizer, "train"):
        optimizer.train()
    thermometer = Thermometer(optimizer, every=1, span=2)
    squares = []
    for grads in gradients(params, 6):
        before = x.detach().clone()
        x.grad = grads[0]
        optimizer.step()
        squares.append(float((x.detach() - before).square().mean()))
    reading = thermometer.read()
    assert reading["steps"] == 6
    assert reading["rescaled_temperature"] == pytest.approx(sum(squares) / 6, rel=1e-9)
    assert math.isnan(reading["temperature"])
