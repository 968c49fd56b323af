"""How far a run is: what its checkpoints hold beside the arrays."""

import dataclasses
import time
from typing import Any

# Means over the steps since the last evaluation that no evaluation measures itself.
_OF_TRAINING = ('loss', 'task_loss', 'reconstruction_loss', 'train_accuracy', 'clipped')


@dataclasses.dataclass
class Progress:
    """Steps, evaluations and time of a run so far, in all processes that worked on it.

    Fields:
      step: optimizer steps taken.
      history: the records of its evaluations.
      tally: sums over the steps since the last of them.
      seconds: of the processes before this one.
      refits: of a guarded codebook.
      begun: time.monotonic() when this process took the run up.
    """

    step: int = 0
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    tally: dict[str, float] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    refits: int = 0
    begun: float = dataclasses.field(default_factory=time.monotonic)

    def save(self) -> dict[str, Any]:
        """Plain data for a checkpoint; step and refits stand in its arrays."""
        return {'history': self.history, 'tally': self.tally, 'seconds': self.elapsed()}

    def restore(self, extra: dict[str, Any], step: int, refits: int) -> None:
        """The inverse of `save`."""
        self.history, self.tally, self.seconds = extra['history'], extra['tally'], extra['seconds']
        self.step, self.refits = step, refits

    def elapsed(self) -> float:
        """Seconds that the run took so far."""
        return self.seconds + time.monotonic() - self.begun

    def count(self, scalars: dict[str, float], clip_norm: float) -> None:
        """Takes one more step and what it measured into account."""
        self.step += 1
        if clip_norm:  # the share of steps that it changed
            scalars = scalars | {'clipped': float(scalars['gradient_norm'] > clip_norm)}
        for name, value in (scalars | {'steps': 1}).items():
            self.tally[name] = self.tally.get(name, 0) + value

    def take_means(self, recorded: bool) -> tuple[dict[str, float], int]:
        """Means over the steps since the last evaluation, and the corrupt images in them.

        Args:
          recorded: the steps themselves tell what no evaluation needs.
        """
        taken = self.tally.pop('steps')
        means = {name: total / taken for name, total in self.tally.items()}
        self.tally = {}
        means['train_accuracy'] = means.pop('accuracy')
        corrupt = round(means.pop('corrupt') * taken)
        if recorded:
            means = {name: x for name, x in means.items() if name in _OF_TRAINING}
        if 'revived' in means:
            means['revived'] *= taken  # codes since the last evaluation
        if self.refits:
            means['refits'] = float(self.refits)  # since the start
        return means, corrupt
