"""What all runs of an experiment share."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from vqjax.trainer.config.settings import Settings
from vqjax.trainer.files.display import Display
from vqjax.trainer.files.workdir import Workdir
from vqjax.trainer.run.stopping import StopRequest
from vqjax.trainer.step.task import Task


@dataclasses.dataclass(frozen=True)
class Context:
    """What all runs of an experiment share.

    Fields beyond what their types say:
      dataset: of all seeds, or of the first one where folds are in turn.
      workdir: None on processes that write nothing.
      folds: seed -> data of its fold; None where all seeds have the same.
    """

    settings: Settings
    dataset: Any
    workdir: Workdir | None
    display: Display
    stop: StopRequest
    form: Any
    folds: Callable[[int], Any] | None = None

    def of(self, seed: int) -> 'Context':
        """The same with the data of this seed: another fold, where folds are in turn."""
        return self if self.folds is None else dataclasses.replace(self, dataset=self.folds(seed))


class Stage(NamedTuple):
    """A task and its compiled programs: the continuous stage of a method, or its last one."""

    task: Task
    train_fn: Callable
    eval_fn: Callable
