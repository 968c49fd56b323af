"""The loop over steps, and that over the batches of a split."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from vqjax.trainer.parallel import Pmap
from vqjax.trainer.steps import PROBES, TrainState


class Diverged(RuntimeError):
    """A step was not finite. `state` is the last healthy one, `step` the one that failed."""

    def __init__(self, step: int, what: str, state: TrainState):
        super().__init__(f'step {step}: the {what} turned NaN or infinite first')
        self.step, self.what, self.state = step, what, state


def fit(
    steps_fn: Callable,
    state: TrainState,
    batches: Iterator[dict[str, np.ndarray]],
    num_steps: int,
    on_step: Callable[[dict[str, np.ndarray]], None],
    should_stop: Callable[[], bool] = lambda: False,
    steps_per_call: int = 1,
    form: Any = Pmap(),  # noqa: B008  it has no state
) -> tuple[TrainState, bool]:
    """Takes num_steps steps: (the state after them, whether some process is asked to stop).

    Args:
      steps_fn: compiled train_steps(state, batches, count).
      state: placed; donated.
      batches: of this process, each split here over its devices.
      on_step: receives the metrics of every step, while later ones run.
      should_stop: asked before every call; True on any process ends the loop on all, a call later.
        All processes return the same.
      steps_per_call: steps of one dispatch; the last one takes what is left.
      form: of parallelism, see `parallel`.

    Raises:
      Diverged: a step was not finite.
    """
    previous, taken, stopping = None, 0, False
    while taken < num_steps:
        count = min(steps_per_call, num_steps - taken)
        # The wish travels with the batch, so all processes hear of it at the same step.
        stacked = stack([next(batches) for _ in range(count)], steps_per_call)
        stop = np.full((steps_per_call, form.local_replicas), should_stop())
        inputs = form.shard(stacked | {'stop': stop}, axis=1)
        state, measured = steps_fn(state, inputs, form.constant(np.int32(count)))
        taken += count
        if previous is not None:
            stopping = tell(form, *previous, state, on_step)
        previous = measured, count
        if stopping:
            break
    if previous is not None:
        stopping |= tell(form, *previous, state, on_step)
    return state, stopping


def stack(batches: list[dict[str, np.ndarray]], size: int) -> dict[str, np.ndarray]:
    """Batches along a new leading axis of `size`, which repeats the last one where they end."""
    batches = batches + batches[-1:] * (size - len(batches))
    return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}


def tell(form: Any, measured: Any, count: int, state: TrainState, on_step: Callable) -> bool:
    """Hands the metrics of one call to on_step and returns whether some process is to stop.

    Raises:
      Diverged: a step was not finite.
    """
    measured = form.read(measured)
    stopping = False
    for i in range(count):
        step = {name: x[i] for name, x in measured.items()}
        finite = step.pop('finite')
        if not finite.all():
            what = PROBES[int(np.argmin(finite))]
            raise Diverged(int(form.read(state.step)) + 1, what, state)
        stopping |= bool(step.pop('stop'))
        on_step(step)
    return stopping


class Evaluation(NamedTuple):
    """A whole split, padding removed.

    probs: float32 [N, classes]
    labels: int32 [N]
    counts: float64 [..., K], see `steps.count_codes`, or None without a quantizer
    means: of an average image nll, input_norm and, where there are such parts, code_norm,
      quantizer_loss and reconstruction_error; quantization_error, mean |z_q - z|^2 as a share of
      mean |z|^2; max_code_norm
    corrupt: images left out because they held NaN or infinities
    """

    probs: np.ndarray
    labels: np.ndarray
    counts: np.ndarray | None
    means: dict[str, float]
    corrupt: int


_SUMS = (
    'nll', 'input_norm', 'code_norm', 'quantizer_loss', 'reconstruction_error', 'squared_error',
    'squared_norm', 'counts',
)  # fmt: skip


def evaluate(
    eval_fn: Callable,
    state: TrainState,
    batches: Iterable[dict[str, np.ndarray]],
    form: Any = Pmap(),  # noqa: B008
) -> tuple[TrainState, Evaluation]:
    """Runs compiled eval_step over every batch of a split; every process gets the whole result.

    The state comes back as it was, but for the codebook statistics of a faulty model that moves
    them in evaluation.
    """
    outputs = []
    for batch in batches:
        moved, output = eval_fn(state, form.shard(batch))
        state = state._replace(stats=state.stats | dict(moved))
        outputs.append(output)
    outputs = [form.read(x) for x in outputs]
    mask = np.concatenate([x['mask'] for x in outputs])
    sums = {
        name: sum(x[name].astype(np.float64) for x in outputs)
        for name in _SUMS
        if name in outputs[0]
    }
    counts = sums.pop('counts', None)
    error, power = sums.pop('squared_error', None), sums.pop('squared_norm', None)
    means = {name: float(total) / max(int(mask.sum()), 1) for name, total in sums.items()}
    if error is not None:
        means['quantization_error'] = float(error) / max(float(power), np.finfo(np.float32).tiny)
    if 'max_code_norm' in outputs[0]:
        means['max_code_norm'] = float(outputs[-1]['max_code_norm'])
    return state, Evaluation(
        probs=np.concatenate([x['probs'] for x in outputs])[mask],
        labels=np.concatenate([x['label'] for x in outputs])[mask],
        counts=counts,
        means=means,
        corrupt=int(sum(x['corrupt'].sum() for x in outputs)),
    )
