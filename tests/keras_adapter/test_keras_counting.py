"""How many steps Keras takes: the rows of docs/logging.md, against weights that move."""

import keras
import numpy as np
import pytest
from keras_tools import numpy
from recipes import steps_by_the_page

from coolmomentum import CoolingSchedule
from coolmomentum.keras import CoolMomentum

EPOCHS, BATCHES = 2, 7


class Batches(keras.utils.PyDataset):
    """Seven batches of 4 examples."""

    def __len__(self):
        """How many there are."""
        return BATCHES

    def __getitem__(self, index):
        """Inputs and targets."""
        return np.full((4, 3), 1.0 + index, "float32"), np.ones((4, 1), "float32")


class Moves(keras.callbacks.Callback):
    """Counts the batches after which the weights are others, and notes rho before and after."""

    def __init__(self):
        """Nothing has moved yet."""
        super().__init__()
        self.rhos = []

    def on_train_begin(self, logs=None):
        """Note where the weights begin."""
        self.last = [numpy(w) for w in self.model.trainable_variables]

    def on_train_batch_end(self, batch, logs=None):
        """Look whether they have moved."""
        now = [numpy(w) for w in self.model.trainable_variables]
        if any((a != b).any() for a, b in zip(now, self.last, strict=True)):
            self.rhos.append(float(self.model.optimizer.rho))
        self.last = now


@pytest.mark.parametrize("accumulation", [1, 3, 4])
def test_the_steps_of_a_fit(accumulation):
    """Microbatches count on over the epochs; what is left at the very end takes no step."""
    steps = steps_by_the_page("Keras", EPOCHS, BATCHES, accumulation)
    many = None if accumulation == 1 else accumulation
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    optimizer = CoolMomentum(1e-3, total_steps=steps, rho0=0.9, gradient_accumulation_steps=many)
    model.compile(optimizer, "mse", run_eagerly=True)
    moves = Moves()
    model.fit(Batches(), epochs=EPOCHS, verbose=0, shuffle=False, callbacks=[moves])
    rho = CoolingSchedule(steps, 0.9)
    wanted = [rho(n + 1) for n in range(steps)]
    # rho is made in float32, by a closed form of a few operations on numbers below 3.
    assert moves.rhos == pytest.approx(wanted, abs=20 * 2**-24)
    assert moves.rhos[-1] == 0.0
