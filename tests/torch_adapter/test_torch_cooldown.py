"""Cooldown: held, branched, stopped; what it counts; in Accelerate, the Trainer and Lightning."""

import copy
import io
import itertools

import pytest
import torch
from distributed_tools import run_distributed
from exact import COOLING_LAWS, ONE_OF_COOLING_LAWS
from torch_tools import wrapped

from coolmomentum import HELD, cooled_rho, learning_rate_share
from coolmomentum.torch import Cooldown, CoolMomentum

OPTIMIZERS = {
    "CoolMomentum": lambda p: CoolMomentum(p, lr=0.05, law="constant", rho0=0.9),
    "CoolMomentum held": lambda p: CoolMomentum(p, lr=0.05, law="paper", rho0=0.9, **HELD),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.05),
    "SGD, a tensor": lambda p: torch.optim.SGD(p, lr=torch.tensor(0.05), momentum=0.9),
}
every = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
ours = pytest.mark.parametrize("kind", ["CoolMomentum", "CoolMomentum held"])


class Run:
    """A run of a few parameters on a noisy bowl, whose noise depends on the step alone."""

    def __init__(self, make, **options):
        self.x = torch.linspace(-1, 1, 7).requires_grad_()
        self.optimizer = make([self.x])
        self.cooldown = Cooldown(self.optimizer, **options)
        self.n = 0

    def train(self, steps):
        """Train, and give back the rate of each step: the learning rate, and rho."""
        rates = []
        for _ in range(steps):
            generator = torch.Generator().manual_seed(self.n)
            self.x.grad = self.x.detach() + torch.randn(7, generator=generator)
            group = self.optimizer.param_groups[0]
            rates.append((float(group["lr"]), group.get("cooling_rho", 0.0)))
            self.optimizer.step()
            self.cooldown.step()
            self.n += 1
        return rates

    def saved(self):
        """A checkpoint, through a file that holds plain things."""
        parts = {"x": self.x.detach(), "n": self.n, "optimizer": self.optimizer.state_dict()}
        file = io.BytesIO()
        torch.save(parts | {"cooldown": self.cooldown.state_dict()}, file)
        return file

    @classmethod
    def loaded(cls, make, file):
        """A new run that goes on from a checkpoint."""
        file.seek(0)
        parts, run = torch.load(file, weights_only=True), cls(make)
        run.x.data.copy_(parts["x"])
        run.optimizer.load_state_dict(parts["optimizer"])
        run.cooldown.load_state_dict(parts["cooldown"])
        run.n = parts["n"]
        return run


@every
def test_branches_of_a_held_checkpoint_are_the_uninterrupted_runs(make):
    """Held, saved, branched at 5 % and at 20 % of 200 steps: the same to the last bit."""
    held = Run(make)
    held.train(200)
    file = held.saved()
    for fraction in (0.05, 0.2):
        whole, branch = Run(make), Run.loaded(make, file)
        whole.train(200)
        runs = whole, branch
        assert [run.cooldown.start(fraction=fraction) for run in runs] == [200 * fraction] * 2
        rates = [run.train(int(200 * fraction)) for run in runs]
        assert rates[0] == rates[1]
        assert torch.equal(whole.x, branch.x)
        assert branch.cooldown.steps_left == 0


@every
def test_a_cooling_checkpoint_goes_on(make):
    """Saved in the middle of cooling: the same to the last bit, without a warning."""
    whole = Run(make)
    whole.train(20)
    whole.cooldown.start(steps=10)
    whole.train(4)
    branch = Run.loaded(make, whole.saved())
    assert branch.train(8) == whole.train(8)
    assert torch.equal(whole.x, branch.x)


def test_a_checkpoint_of_another_rho0_warns():
    """What was told is no change of plan, but another temperature is."""
    hotter = Run(lambda p: CoolMomentum(p, lr=0.05, law="constant", rho0=0.95))
    hotter.train(2)
    with pytest.warns(UserWarning, match="rho0=0.95 replaces 0.9;"):
        Run.loaded(OPTIMIZERS["CoolMomentum"], hotter.saved())


@every
def test_a_run_that_is_held_is_the_run_without(make):
    """To the last bit, at every step."""
    run, x = Run(make), torch.linspace(-1, 1, 7).requires_grad_()
    alone = make([x])
    for n in range(20):
        run.train(1)
        generator = torch.Generator().manual_seed(n)
        x.grad = x.detach() + torch.randn(7, generator=generator)
        alone.step()
    assert torch.equal(run.x, x)


@pytest.mark.parametrize("law", COOLING_LAWS)
def test_the_learning_rate_follows_the_law(law):
    """In float64 as the core has it; the first step after start has the full rate."""
    run = Run(lambda p: torch.optim.SGD(p, lr=0.25), law=law)
    rates = run.train(10)
    run.cooldown.start(steps=20)
    rates += run.train(22)
    shares = [learning_rate_share(n, 10, 30, law) for n in range(32)]
    assert [lr for lr, _ in rates] == [0.25 * share for share in shares]
    assert rates[9] == rates[10] == (0.25, 0.0)


@ours
@pytest.mark.parametrize("law", COOLING_LAWS)
def test_rho_follows_the_law(kind, law):
    """And the learning rate of CoolMomentum stays."""
    run = Run(OPTIMIZERS[kind], law=law)
    rates = run.train(10)
    run.cooldown.start(steps=20)
    rates += run.train(22)
    rhos = [cooled_rho(n, 30, 0.9, law, hold_steps=10) for n in range(32)]
    assert rates == [(0.05, rho) for rho in rhos]
    assert rates[-1] == (0.05, 0.0)


@every
def test_extended_and_stopped_it_goes_on_from_where_it_is(make):
    """No jump: at each command the next rate is the one that was to come."""
    run = Run(make)
    run.train(10)
    run.cooldown.start(steps=10)
    run.train(5)
    copies = [Run.loaded(make, run.saved()) for _ in range(3)]
    untouched, extended, stopped = copies
    extended.cooldown.start(steps=100)
    stopped.cooldown.stop()
    first = untouched.train(1)[0]
    slowly = extended.train(4)
    assert slowly[0] == pytest.approx(first, rel=1e-6)  # the tensor is a float32
    for now, then in itertools.pairwise(slowly):  # over 100 steps in place of 5
        assert then == pytest.approx(now, rel=0.02)
        assert then < now
    assert stopped.train(3) == [pytest.approx(first, rel=1e-6)] * 3
    assert (extended.cooldown.steps_left, stopped.cooldown.steps_left) == (96, None)
    stopped.cooldown.start(steps=2)
    rates = stopped.train(4)
    assert rates[0] == pytest.approx(first, rel=1e-6)
    assert rates[3] == untouched.train(10)[-1]


@every
def test_what_has_cooled_cannot_cool_again(make):
    """It raises, rather than to heat; and changes nothing."""
    run = Run(make)
    run.train(4)
    run.cooldown.start(steps=3)
    run.train(5)
    before = copy.deepcopy(run.cooldown.state_dict())
    with pytest.raises(ValueError, match="cooled already"):
        run.cooldown.start(steps=3)
    assert run.cooldown.state_dict() == before


@every
def test_the_learning_rate_warms_up(make):
    """Linearly to its full value, with every optimizer; then it cools from there."""
    run = Run(make, warmup_steps=4)
    rates = [lr for lr, _ in run.train(6)]
    assert rates == pytest.approx([0.0125, 0.025, 0.0375, 0.05, 0.05, 0.05], rel=1e-6)


def test_a_learning_rate_in_a_tensor_stays_in_it():
    """A captured or compiled step, and whoever else has the tensor, sees what it cools to."""
    run = Run(OPTIMIZERS["SGD, a tensor"])
    lr = run.optimizer.param_groups[0]["lr"]
    run.train(1)
    run.cooldown.start(steps=3)
    run.train(3)
    assert run.optimizer.param_groups[0]["lr"] is lr
    assert float(lr) == pytest.approx(0.05 / 199, rel=1e-6)


# --- what it counts -----------------------------------------------------------------------------


@every
def test_it_counts_the_steps_of_the_optimizer(make):
    """However often it is stepped itself, as Accelerate steps schedulers once a process."""
    run = Run(make)
    for _ in range(3):
        run.train(1)
        run.cooldown.step()
        run.cooldown.step()
    assert run.cooldown.steps_taken == run.cooldown.last_epoch == 3
    assert not hasattr(run.cooldown, "total_steps")


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_a_loss_scaler_skips_does_not_count(fused):
    """Whether the scaler leaves out the step or the optimizer does."""
    x = torch.ones(3, requires_grad=True)
    optimizer = torch.optim.AdamW([x], lr=0.1, fused=fused)
    cooldown = Cooldown(optimizer)
    scaler = torch.amp.GradScaler(device="cpu", init_scale=2.0**10)
    for factor in (1.0, float("inf"), 1.0):
        optimizer.zero_grad()
        scaler.scale((x * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        cooldown.step()
    assert cooldown.steps_taken == 2


@every
def test_a_compiled_step_is_compiled_once_more_at_most(make):
    """In the first step with other numbers; never where the learning rate is in a tensor."""
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    run, counter = Run(make), CompileCounter()
    run.x.grad = torch.ones(7)
    step = torch.compile(run.optimizer.step, backend=counter)
    compiled = []
    for n in range(14):
        if n == 5:
            run.cooldown.start(steps=10)
        step()
        run.cooldown.step()
        compiled.append(counter.frame_count)
    assert run.cooldown.steps_taken == 14
    again = sum(a < b for a, b in itertools.pairwise(compiled[4:]))
    tensor = isinstance(run.optimizer.param_groups[0]["lr"], torch.Tensor)
    assert again == (0 if tensor else 1)


# --- arguments ----------------------------------------------------------------------------------


def test_an_optimizer_that_cools_by_itself_is_refused():
    """Before anything of it is changed."""
    x = [torch.zeros(1, requires_grad=True)]
    for optimizer, error, words in [
        (CoolMomentum(x, total_steps=10), ValueError, "must be held, by law='constant'"),
        (CoolMomentum(x, schedule=lambda n: 0.5), ValueError, "a schedule of your own"),
        (CoolMomentum(x, law="constant", capturable=True), RuntimeError, "capturable"),
    ]:
        with pytest.raises(error, match=words):
            Cooldown(optimizer)
        assert not optimizer._optimizer_step_post_hooks
        assert not optimizer._cools_when_told


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({}, TypeError, "steps or a fraction"),
        ({"steps": 3, "fraction": 0.5}, TypeError, "steps or a fraction"),
        ({"steps": 0}, ValueError, "steps must be >= 1"),
        ({"steps": 2.0}, TypeError, "steps must be an integer"),
        ({"fraction": 0.0}, ValueError, "fraction must be finite and > 0"),
        ({"fraction": 0.5}, ValueError, "none was taken"),
    ],
)
def test_what_start_refuses(arguments, error, words):
    """In one line, with nothing changed."""
    run = Run(OPTIMIZERS["AdamW"])
    if arguments == {"fraction": 0.0}:
        run.train(2)
    before = run.cooldown.state_dict()
    with pytest.raises(error, match=words):
        run.cooldown.start(**arguments)
    assert run.cooldown.state_dict() == before


def test_what_the_constructor_refuses():
    """A law that does not cool, a warm-up that is no count, and what is no optimizer."""
    optimizer = OPTIMIZERS["AdamW"]([torch.zeros(1, requires_grad=True)])
    with pytest.raises(ValueError, match=ONE_OF_COOLING_LAWS):
        Cooldown(optimizer, law="constant")
    with pytest.raises(ValueError, match="warmup_steps must be >= 0"):
        Cooldown(optimizer, warmup_steps=-1)
    with pytest.raises(TypeError, match="optimizer must be"):
        Cooldown(torch.nn.Linear(1, 1))


@ours
def test_groups_that_are_added_cool_too(kind):
    """A group that comes while it cools has the rho of the others."""
    run = Run(OPTIMIZERS[kind])
    run.train(4)
    run.cooldown.start(steps=8)
    run.train(4)
    run.optimizer.add_param_group({"params": [torch.zeros(2, requires_grad=True)]})
    assert isinstance(run.optimizer.rho, float)


# --- wrappers and frameworks ----------------------------------------------------------------------


@wrapped
@pytest.mark.parametrize("kind", ["CoolMomentum", "AdamW"])
def test_wrappers_are_taken_off(kind, wrap):
    """CoolMomentum in a wrapper is CoolMomentum: its rho cools, not its learning rate."""
    optimizer = OPTIMIZERS[kind]([torch.zeros(1, requires_grad=True)])
    assert Cooldown(wrap(optimizer)).optimizer is optimizer


def accelerated(rank, kind):
    """Train under Accelerate in one of two processes, accumulating; the rates of each step."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = torch.nn.Linear(3, 1)
    model, optimizer = accelerator.prepare(model, OPTIMIZERS[kind](model.parameters()))
    cooldown = Cooldown(optimizer)
    scheduler = accelerator.prepare(cooldown)
    rates = []
    for batch in range(2 * 16):
        if batch == 2 * 6:
            cooldown.start(steps=10)
        with accelerator.accumulate(model):
            accelerator.backward(model(torch.ones(2, 3) * (rank + 1)).sum())
            group = optimizer.param_groups[0]
            if accelerator.sync_gradients:
                rates.append((group["lr"], group.get("cooling_rho", 0.0)))
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    return accelerator.num_processes, type(scheduler).__name__, cooldown.steps_taken, rates


@pytest.mark.parametrize("kind", ["CoolMomentum", "AdamW"])
def test_accelerate_in_two_processes(kind, tmp_path):
    """It steps a scheduler twice a step; the law takes 10 steps of the optimizer all the same."""
    pytest.importorskip("accelerate")
    if kind == "AdamW":
        expected = [(0.05 * learning_rate_share(n, 6, 16), 0.0) for n in range(16)]
    else:
        expected = [(0.05, cooled_rho(n, 16, 0.9, "linear", hold_steps=6)) for n in range(16)]
    for result in run_distributed(accelerated, tmp_path, kind):
        assert result == (2, "AcceleratedScheduler", 16, expected)


@pytest.mark.parametrize("kind", ["CoolMomentum", "AdamW"])
def test_the_trainer(kind, tmp_path):
    """A Trainer is told by a callback, interrupted and resumed: the rates are those of the law."""
    transformers = pytest.importorskip("transformers")
    rates: dict[int, list] = {}

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 1)

        def forward(self, x, labels):
            return {"loss": torch.nn.functional.mse_loss(self.layer(x), labels)}

    class Tell(transformers.TrainerCallback):
        def on_step_begin(self, args, state, control, optimizer=None, lr_scheduler=None, **kwargs):
            if state.global_step == 6:
                getattr(lr_scheduler, "scheduler", lr_scheduler).start(steps=10)
            group = optimizer.param_groups[0]
            rates.setdefault(state.global_step, []).append(
                (group["lr"], group.get("cooling_rho", 0.0))
            )

    def train(resume=False):
        model = Model()
        optimizer = OPTIMIZERS[kind](model.parameters())
        trainer = transformers.Trainer(
            model,
            transformers.TrainingArguments(
                str(tmp_path),
                max_steps=16,
                gradient_accumulation_steps=2,
                per_device_train_batch_size=2,
                save_steps=10,
                save_total_limit=1 if resume else None,
                report_to="none",
                use_cpu=True,
            ),
            train_dataset=[{"x": torch.ones(3) * i, "labels": torch.ones(1)} for i in range(64)],
            optimizers=(optimizer, Cooldown(optimizer)),
            callbacks=[Tell()],
        )
        trainer.train(resume_from_checkpoint=resume and str(tmp_path / "checkpoint-10"))
        return [p.detach() for p in model.parameters()]

    torch.manual_seed(0)
    first = train()
    assert all(torch.equal(a, b) for a, b in zip(first, train(resume=True), strict=True))
    if kind == "AdamW":
        expected = [(0.05 * learning_rate_share(n, 6, 16), 0.0) for n in range(16)]
    else:
        expected = [(0.05, cooled_rho(n, 16, 0.9, "linear", hold_steps=6)) for n in range(16)]
    assert [rates[n] for n in range(16)] == [[x] * (1 + (n >= 10)) for n, x in enumerate(expected)]


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*deprecated")
@pytest.mark.parametrize("kind", ["CoolMomentum", "AdamW"])
def test_lightning(kind):
    """With interval "step": the rates are those of the law, with accumulated gradients."""
    pl = pytest.importorskip("pytorch_lightning")
    rates = []

    class Model(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 1)

        def training_step(self, batch, index):
            return self.layer(batch).square().mean()

        def configure_optimizers(self):
            optimizer = OPTIMIZERS[kind](self.parameters())
            scheduler = {"scheduler": Cooldown(optimizer), "interval": "step"}
            return {"optimizer": optimizer, "lr_scheduler": scheduler}

        def on_before_optimizer_step(self, optimizer):
            if self.global_step == 6:
                self.lr_schedulers().start(steps=10)
            group = optimizer.param_groups[0]
            rates.append((group["lr"], group.get("cooling_rho", 0.0)))

    trainer = pl.Trainer(
        max_steps=16,
        accumulate_grad_batches=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Model(), torch.utils.data.DataLoader(torch.ones(64, 3), batch_size=2))
    if kind == "AdamW":
        expected = [(0.05 * learning_rate_share(n, 6, 16), 0.0) for n in range(16)]
    else:
        expected = [(0.05, cooled_rho(n, 16, 0.9, "linear", hold_steps=6)) for n in range(16)]
    assert rates == expected
