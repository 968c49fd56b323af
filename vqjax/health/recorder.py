"""One call a step that gathers what `diagnose` reads, without the host waiting for the device."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from vqjax.health import measures, weights
from vqjax.health.diagnosis import diagnose
from vqjax.health.history import Finding


class Recorder:
    """Gathers the records of a training loop for `diagnose`.

    `step` starts a small program on the device and returns at once. Its results are copied to the
    host in the background, and read `lag` calls later, when they have long arrived. Nothing is
    added to the training step, so it serves a loop in Linen, NNX or plain JAX alike.

    Args:
      quantizer: the quantizer that is trained.
      params, state: its params and state before the first step; `linen_quantizer` and
        `vqjax.nnx.Quantize.read` give them.
      task_loss: (z_q, *task) -> [], the loss of what follows the quantizer, without the
        quantizer's own; compiled once, so a function of its arguments alone. Without it the rules
        that compare the quantizer with the task stay silent.
      model: the pytree of all parameters that the optimizer moves, before the first step. Without
        it the rules about the learning rate have less to go by.
      num_classes: of a task in which every vector has to name a class, see `diagnose`.
      every: steps between two closer looks, which run `task_loss` four times, its gradient once
        and a k-means on at most 1,024 vectors.
      lag: calls until the results of a call are read.
    """

    def __init__(
        self,
        quantizer: Any,
        params: Any,
        state: Any,
        *,
        task_loss: Callable[..., jax.Array] | None = None,
        model: Any = None,
        num_classes: float | None = None,
        every: int = 50,
        lag: int = 16,
    ):
        for name, value in (('every', every), ('lag', lag)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f'{name} must be an integer of at least 1, got {value!r}')
        self.quantizer, self.num_classes = quantizer, num_classes
        self._setup = measures.Setup(quantizer, task_loss)
        self._every, self._lag = every, lag
        self._step = 0
        self._carry = measures.start(self._setup, params, state)
        self._model = None if model is None else weights.copy(model)
        self._has_model = model is not None
        self._evaluation: Any = None
        self._records: list[dict[str, float]] = []
        self._waiting: collections.deque[tuple[dict[str, Any], Any]] = collections.deque()

    def step(
        self,
        params: Any,
        state: Any,
        z: jax.Array,
        out: Any,
        *,
        loss: jax.Array | None = None,
        task: tuple[Any, ...] = (),
        model: Any = None,
        mask: jax.Array | None = None,
        z_gradient: jax.Array | None = None,
        **more: jax.Array | float,
    ) -> None:
        """Records a training step.

        Args:
          params, state: of the quantizer, after the step.
          z: [..., D], what the step quantized.
          out: the step's Quantized.
          loss: [], what the step minimised.
          task: what `task_loss` takes after z_q, e.g. the decoder's parameters and the batch.
          model: as given at the start, after the step.
          mask: bool [...], True = real.
          z_gradient: [..., D], the gradient at z of what the step minimised, for whoever writes
            the path from z to the decoder anew: it shows whether the task's gradient passes.
          more: numbers to record besides, such as gradient_norm or accuracy.

        Raises:
          ValueError: for a model where none was given at the start, or the other way round.
        """
        if (model is not None) != self._has_model:
            raise ValueError(
                'model was given to only one of Recorder(...) and step(...): give it to both or '
                'to neither'
            )
        self._close_evaluation()
        self._step += 1
        plain = {'step': self._step} | more
        if loss is not None:
            plain['loss'] = loss
        look = self._step == 1 or self._step % self._every == 0
        self._carry, found = measures.step(self._setup, self._carry, params, state, z, out, mask)
        if look:
            self._carry, window = measures.read_window(self._setup, self._carry)
            found = found | window
            found |= measures.look(self._setup, params, state, z, out, mask, task, z_gradient)
        if self._model is not None and look:
            found |= weights.compare(self._model, model)
            self._model = None
        if self._has_model and (self._step + 1) % self._every == 0:
            self._model = weights.copy(model)
        self._push(plain, found)

    def evaluate(
        self,
        params: Any,
        state: Any,
        z: jax.Array,
        out: Any,
        *,
        loss: jax.Array | None = None,
        task: tuple[Any, ...] = (),
        mask: jax.Array | None = None,
    ) -> None:
        """Records a batch of held-out data; the batches between two steps are one evaluation.

        Args:
          params, state: of the quantizer, after this batch: evaluation must not move them.
          z, out, task, mask: as in `step`.
          loss: [], the task's loss on this batch, without the quantizer's own; of `task_loss`
            where that is known and this is not given.
        """
        if self._evaluation is None:
            self._evaluation = measures.start_evaluation(self._setup)
        self._evaluation = measures.evaluate(
            self._setup, self._evaluation, self._carry, params, state, z, out, mask, task, loss
        )

    def records(self) -> list[dict[str, float]]:
        """All records until now, as `diagnose` reads them; waits for those under way."""
        self._close_evaluation()
        while self._waiting:
            self._read()
        return list(self._records)

    def diagnose(self) -> list[Finding]:
        """What is wrong with the run until now, see `vqjax.health.diagnose`."""
        return diagnose(
            self.records(), getattr(self.quantizer, 'num_codes', None), self.num_classes,
            self.quantizer,
        )  # fmt: skip

    def _close_evaluation(self):
        if self._evaluation is not None:
            found = measures.read_evaluation(self._setup, self._evaluation)
            self._push({'step': self._step}, found)
            self._evaluation = None

    def _push(self, plain, found):
        # One array a call: as many transfers as calls.
        names, values = tuple(found), measures.stack(tuple(found.values()))
        del found
        for value in (values, *plain.values()):
            if isinstance(value, jax.Array):
                value.copy_to_host_async()
        self._waiting.append((plain | {'names': names}, values))
        while len(self._waiting) > self._lag:
            self._read()

    def _read(self):
        plain, values = self._waiting.popleft()
        names = plain.pop('names')
        record = {name: float(x) for name, x in plain.items()} | {'step': int(plain['step'])}
        read = zip(names, np.asarray(values, np.float64).tolist(), strict=True)
        self._records.append(record | dict(read))
