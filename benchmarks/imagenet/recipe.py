"""The numbers of the recipe and the arithmetic of its steps; no framework.

They are those of Google's ``tensorflow/tpu``, ``models/official/efficientnet``, at commit 6277b72
of 2019-10-03, of which the authors' ``borbysh/coolmomentum/main_cool.py`` is a copy with eight
lines changed. "Authors" marks what only that one has.
"""

from dataclasses import dataclass

from coolmomentum import CoolingSchedule

__all__ = [
    "AUTHORS_STEPS",
    "AVERAGE_DECAY",
    "BATCH",
    "EPOCHS",
    "EPOCH_STEPS",
    "EVALUATION_BATCH",
    "EVALUATION_EPOCHS",
    "LEARNING_RATE",
    "RHO0",
    "TRAINING_IMAGES",
    "VALIDATION_IMAGES",
    "RmspropRate",
    "Timing",
    "average_decay",
    "cooling",
    "evaluated_images",
    "peak_rate",
]

TRAINING_IMAGES = 1_281_167
VALIDATION_IMAGES = 50_000
BATCH = 2048
EVALUATION_BATCH = 1024
AUTHORS_STEPS = 218_948  # authors; the flag's default is one more
EPOCHS = 350
EPOCH_STEPS = TRAINING_IMAGES / BATCH  # 625.5698..., kept as a float by utils.py
WARMUP_EPOCHS = 5
DECAY_EPOCHS = 2.4
EVALUATION_EPOCHS = 10  # 6,255 steps
RATE_OF_256 = 0.016  # RMSProp's learning rate for each 256 images of a batch
DECAY = 0.97
LEARNING_RATE = 0.6  # authors: of CoolMomentum, not scaled by the batch
RHO0 = 0.99  # authors
AVERAGE_DECAY = 0.9999


@dataclass(frozen=True)
class Timing:
    """What happens at which step.

    A small run keeps the recipe's proportions: its epoch is the 350th part of its steps, and not a
    pass over its images. In the full run the two are one, but for the authors' last step.
    """

    total_steps: int
    epoch_steps: float

    evaluation_epochs: float = EVALUATION_EPOCHS  # of these, from an evaluation to the next

    @classmethod
    def of(cls, total_steps: int, epoch_steps: float | None = None) -> "Timing":
        """That of a run, whose epoch is given or the 350th part of it.

        Examples
        --------
        >>> full = Timing.of(AUTHORS_STEPS, EPOCH_STEPS)
        >>> full.warmup_steps, full.evaluation_steps, len(full.evaluations)
        (3127, 6255, 36)
        >>> small = Timing.of(240)
        >>> small.warmup_steps, small.decay_steps, small.evaluations[:2]
        (3, 1.645..., (6, 12))
        """
        return cls(total_steps, total_steps / EPOCHS if epoch_steps is None else epoch_steps)

    @property
    def warmup_steps(self) -> int:
        """Steps of RMSProp's linear warm-up, and (authors) of rho = 0."""
        return int(WARMUP_EPOCHS * self.epoch_steps)

    @property
    def decay_steps(self) -> float:
        """Steps from one decay of RMSProp's learning rate to the next; no whole number."""
        return DECAY_EPOCHS * self.epoch_steps

    @property
    def evaluation_steps(self) -> int:
        """Steps from one evaluation to the next, at least one."""
        return max(int(self.evaluation_epochs * self.epoch_steps), 1)

    @property
    def evaluations(self) -> tuple[int, ...]:
        """The steps after which the network is evaluated; the last step is one of them."""
        every = range(self.evaluation_steps, self.total_steps, self.evaluation_steps)
        return (*every, self.total_steps)


@dataclass(frozen=True)
class RmspropRate:
    """RMSProp's learning rate: linear from 0, then a staircase that is counted from step 0.

    Examples
    --------
    >>> rate = RmspropRate(peak_rate(BATCH), Timing.of(AUTHORS_STEPS, EPOCH_STEPS))
    >>> rate(0), round(rate(3126), 6), round(rate(3127), 6), round(rate(218_947), 8)
    (0.0, 0.127959, 0.120435, 0.00154565)
    """

    peak: float
    timing: Timing

    def __call__(self, step: int) -> float:
        """The learning rate of the step after ``step`` others."""
        if step < self.timing.warmup_steps:
            return self.peak * step / self.timing.warmup_steps
        return self.peak * DECAY ** int(step / self.timing.decay_steps)


def peak_rate(batch: int) -> float:
    """RMSProp's learning rate before it decays, for a batch of that size: .128 for 2,048."""
    return RATE_OF_256 * batch / 256


def cooling(timing: Timing, rho0: float = RHO0) -> CoolingSchedule:
    """The authors' rho: 0 in the warm-up, through which the clock runs, then the paper's law.

    Examples
    --------
    >>> rho = cooling(Timing.of(AUTHORS_STEPS, EPOCH_STEPS))
    >>> float(rho(3126)), round(float(rho(3127)), 12), round(float(rho(109_474)), 6)
    (0.0, 0.989320181799, 0.9)
    """
    return CoolingSchedule(
        timing.total_steps, rho0, warmup_steps=timing.warmup_steps, warmup_clock="run"
    )


def average_decay(steps_taken: int) -> float:
    """The decay of the averaged weights after that many steps, which is ramped up to .9999.

    Examples
    --------
    >>> average_decay(0), average_decay(8), average_decay(89_990)
    (0.1, 0.5, 0.9999)
    """
    return min(AVERAGE_DECAY, (1 + steps_taken) / (10 + steps_taken))


def evaluated_images(images: int, batch: int) -> int:
    """The images in whole batches: 49,152 of the 50,000 in batches of 1,024."""
    return images // batch * batch
