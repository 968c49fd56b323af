"""When a run does what."""

import dataclasses

import jax

from vqjax import encoders
from vqjax.trainer.config.settings import Method
from vqjax.trainer.data import batches, records
from vqjax.trainer.run import encoded


@dataclasses.dataclass(frozen=True)
class Plan:
    """When a run does what, all in optimizer steps; 0 = never.

    Attributes:
      warmup: the learning rate has reached its peak.
      frozen: the encoder begins to move; -1 = it never does.
      switch: the continuous stage ends.
      every_eval, every_checkpoint: periods; both happen at the end as well, if at all.
      steps_per_call: steps of one dispatch.
    """

    num_steps: int
    per_epoch: int
    warmup: int
    frozen: int
    switch: int
    every_eval: int
    every_checkpoint: int
    steps_per_call: int

    def next_stop(self, step: int) -> int:
        """The next step after which the loop does anything but train."""
        periods = [p for p in (self.every_eval, self.every_checkpoint) if p]
        stops = [(step // period + 1) * period for period in periods] + [self.num_steps]
        return min(stops + [self.switch] * (step < self.switch))

    def evaluates(self, step: int) -> bool:
        """Whether the validation split is measured after this step."""
        return step == self.num_steps or step % self.every_eval == 0

    def saves(self, step: int) -> bool:
        """Whether a checkpoint is written after this step."""
        period = self.every_checkpoint
        return bool(period) and (step == self.num_steps or step % period == 0)

    def epoch(self, step: int) -> float:
        """Epochs taken, a whole number where it is one."""
        whole, rest = divmod(step, self.per_epoch)
        return step / self.per_epoch if rest else whole


def plan(settings: Method, dataset: records.Dataset) -> Plan:
    """The plan of a method's run on this dataset.

    Raises:
      ValueError: the batch is larger than the training split, or the run longer than can be, or
        shorter than its continuous stage.
    """
    per_epoch = batches.steps_per_epoch(dataset, settings.batch_size)
    epochs = max(settings.epochs, -(-settings.steps // per_epoch))
    num_steps = epochs * per_epoch
    if num_steps >= 2**31:
        raise ValueError(
            f'epochs is {epochs}: {num_steps} steps of {per_epoch} an epoch, more than a '
            'counter of steps holds (2147483647)'
        )

    if settings.continuous_epochs > epochs:
        raise ValueError(
            f'continuous_epochs is {settings.continuous_epochs}, longer than the run of {epochs} '
            'epochs: give at most that, which fits the codes after training'
        )

    def steps(part: float) -> int:
        # What lies beyond the end is at the end, however far.
        return round(min(part, epochs) * per_epoch)

    switch = steps(settings.continuous_epochs) if settings.quantizer else 0
    # XLA differentiates convolutions in a loop on a CPU tens of times slower (jax-ml/jax#12868);
    # those of small images and of recordings are none, see `ops.convolve`, and features need none.
    small = settings.encoder == 'conv' and encoders.are_small(dataset.info.image_shape)
    small |= settings.encoder == 'sensor' and not settings.reconstruction_weight
    small |= encoded.may_stand_in(settings, dataset)
    alone = jax.default_backend() == 'cpu' and not small
    return Plan(
        num_steps=num_steps,
        per_epoch=per_epoch,
        warmup=steps(settings.warmup_epochs),
        frozen=-1 if settings.frozen_epochs < 0 else steps(settings.frozen_epochs),
        switch=switch,
        every_eval=max(steps(settings.eval_every), 1),
        every_checkpoint=settings.checkpoint_every * per_epoch,
        steps_per_call=1 if alone else min(settings.steps_per_call, num_steps),
    )
