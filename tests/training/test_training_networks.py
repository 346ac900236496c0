"""The networks of the training benchmark: the same in every framework."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from training_tools import SGD, first_weights, short_problem, small_problem

from benchmarks.training import _jax
from benchmarks.training._frameworks import trainer as new_trainer
from benchmarks.training._jax import JaxTrainer
from benchmarks.training._jax_networks import variables
from benchmarks.training._networks import layers
from benchmarks.training._problem import Batch, epoch_of
from benchmarks.training._rules import Settings, learning_rates, momenta
from benchmarks.training._torch import TorchTrainer

NETWORKS = ["mlp", "convnet", "resnet20"]


def test_resnet20_has_the_parameters_of_the_paper() -> None:
    """274,442 numbers, 273,066 of them trained, in PyTorch and in JAX."""
    problem = small_problem("resnet20", 32)
    model = TorchTrainer(problem, SGD)._model
    trained = sum(p.numel() for p in model.parameters())
    moving = sum(b.numel() for b in model.buffers() if b.is_floating_point())
    assert (trained, trained + moving) == (273_066, 274_442)
    sizes = [
        sum(x.size for x in jax.tree.leaves(tree)) for tree in variables(first_weights(problem))
    ]
    assert (sizes[0], sum(sizes)) == (273_066, 274_442)


@pytest.mark.parametrize("network", NETWORKS)
def test_networks_give_the_same_logits(network: str) -> None:
    """PyTorch and JAX, from the same weights and images, to 1e-5 of the largest logit."""
    problem = small_problem(network)
    theirs = TorchTrainer(problem, SGD)
    theirs.start(first_weights(problem))
    with torch.no_grad():
        logits = theirs._model.eval()(torch.from_numpy(problem.training.pixels)).numpy()
    parameters, statistics = variables(first_weights(problem))
    ours = JaxTrainer(problem, SGD)._static.network.apply(
        {"params": parameters, "batch_stats": statistics}, problem.training.pixels, False
    )
    np.testing.assert_allclose(ours, logits, rtol=0, atol=1e-5 * np.abs(logits).max())


@pytest.mark.parametrize("network", NETWORKS)
def test_options_for_speed_change_logits_by_roundings_only(network: str) -> None:
    """channels_last by 1e-5 of the largest logit; autocast, to bfloat16, by 2**-8 for each layer.

    bfloat16 has 8 bits. The gradients are of float32 all the same, and so is what is measured.
    """
    problem = small_problem(network)
    logits, losses, measured = [], [], []
    for options in ({}, {"channels_last": True}, {"autocast": True}):
        trainer = TorchTrainer(problem, SGD, **options)
        trainer.start(first_weights(problem))
        measured.append(trainer.measure())
        trainer._model.train().register_forward_hook(lambda *call: logits.append(call[-1]))
        (batch,) = trainer._split(epoch_of(problem, 0, 0).batches)
        losses.append(float(trainer._backward(*batch)))
        assert trainer._gradient().dtype == torch.float32
    exact, in_another_order, rough = (x.detach() for x in logits)
    kinds = [layer.kind for layer in layers(network, problem.shape, problem.classes)]
    bound = len([kind for kind in kinds if kind != "norm"]) * 2**-8
    unit = float(exact.abs().max())
    torch.testing.assert_close(in_another_order, exact, rtol=0, atol=1e-5 * unit)
    torch.testing.assert_close(rough.float(), exact, rtol=0, atol=bound * unit)
    assert [x.dtype for x in (exact, rough)] == [torch.float32, torch.bfloat16]
    assert losses[1:] == [pytest.approx(losses[0], rel=rel) for rel in (1e-5, bound)]
    assert measured[2] == measured[0]


@pytest.mark.parametrize("option", ["channels_last", "autocast"])
def test_options_reach_the_network_and_go_on_from_a_checkpoint(option: str) -> None:
    """A run with them goes on to the bit, and is not that without them."""
    problem, settings = (
        replace(short_problem("convnet"), epochs=3),
        Settings("coolmomentum", 1, 0.9),
    )
    numbers = [of(settings, 3, problem.steps) for of in (learning_rates, momenta)]

    def trained(trainer: TorchTrainer, *epochs: int) -> str:
        return repr(
            [trainer.train(epoch_of(problem, 0, i), *(x[i] for x in numbers)) for i in epochs]
        )

    whole, resumed = (new_trainer("torch", problem, settings, **{option: True}) for _ in range(2))
    for each in (whole, resumed):
        each.start(first_weights(problem))
    kernels = [x for x in whole._parameters if x.ndim == 4]
    last = [x.is_contiguous(memory_format=torch.channels_last) for x in kernels[1:]]
    assert all(last) == (option == "channels_last")
    trained(whole, 0)
    resumed.restore(whole.state())
    assert trained(resumed, 1, 2) == trained(whole, 1, 2)


def test_resnet20_has_the_same_gradient_in_torch_and_jax() -> None:
    """In float64, penalty and statistics of the batch included: nothing but rounding differs.

    In float32, batch normalisation makes of roundings a difference in the third decimal of the
    loss after a dozen steps.
    """
    problem = small_problem("resnet20")
    weights, (batches, _) = first_weights(problem), epoch_of(problem, 0, 0)
    batch = Batch(batches.indices[0], batches.shifts[0].astype(np.float64), batches.flips[0])
    theirs = TorchTrainer(problem, SGD)
    theirs.start(weights)
    theirs._model.double().train()
    theirs._training = tuple(torch.from_numpy(x) for x in problem.training)
    theirs._training = theirs._training[0].double(), theirs._training[1].long()
    loss = theirs._backward(*map(torch.from_numpy, batch))
    with jax.enable_x64(True):
        double = jax.tree.map(lambda x: jnp.asarray(x, "float64"), variables(weights))
        images = problem.training.pixels.astype(np.float64), problem.training.labels
        static = JaxTrainer(problem, SGD)._static
        value_and_gradient = jax.jit(
            lambda p, s: jax.value_and_grad(_jax._loss, has_aux=True)(
                p, s, jax.tree.map(jnp.asarray, images), batch, static
            )
        )
        (ours, (_, after)), gradient = value_and_gradient(*double)
    # Sums of at most some 1e4 products, through 40 layers: 1e-10 is far from that and from a bug.
    assert float(loss) == pytest.approx(float(ours), rel=1e-12)
    for name, layer in theirs._model.layers.items():
        for parameter, expected in zip(
            layer.parameters(), reversed(gradient[name].values()), strict=True
        ):
            axes = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[parameter.ndim]
            found = parameter.grad.numpy().transpose(axes)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)
        if name in after:
            means = layer.running_mean, layer.running_var
            for found, expected in zip(means, after[name].values(), strict=True):
                np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
