"""Evaluation of a split: one batch, all batches, and the figures that are kept of them."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vqjax import calibration, metrics, ops, quantizers
from vqjax.nn import COLLECTION
from vqjax.trainer.step import measures, task
from vqjax.trainer.step.parallel import Pmap
from vqjax.trainer.step.task import Task, TrainState


class Evaluation(NamedTuple):
    """A whole split, padding removed.

    probs: float32 [N, classes]
    labels: int32 [N]
    counts: float64 [..., K], see `Base.code_counts`, or None without a quantizer
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
    sums: dict[str, Any] = {
        name: sum(x[name].astype(np.float64) for x in outputs)
        for name in _SUMS
        if name in outputs[0]
    }
    counts = sums.pop('counts', None)
    error, power = sums.pop('squared_error', None), sums.pop('squared_norm', None)
    means = {name: float(total) / max(int(mask.sum()), 1) for name, total in sums.items()}
    if error is not None:
        least = float(np.finfo(np.float32).tiny)
        means['quantization_error'] = float(error) / max(float(power), least)
    if 'max_code_norm' in outputs[0]:
        means['max_code_norm'] = float(outputs[-1]['max_code_norm'])
    return state, Evaluation(
        probs=np.concatenate([x['probs'] for x in outputs])[mask],
        labels=np.concatenate([x['label'] for x in outputs])[mask],
        counts=counts,
        means=means,
        corrupt=int(sum(x['corrupt'].sum() for x in outputs)),
    )


def eval_step(
    task: Task, state: TrainState, batch: dict[str, jax.Array]
) -> tuple[Any, dict[str, jax.Array]]:
    """Predictions for one padded batch on one replica of `task.axis`.

    Args:
      batch: image [b, H, W, C], label int32 [b], mask bool [b].

    Returns:
      The codebook statistics that evaluation leaves, where steps are recorded (a faulty model
      moves them), else (). And of all replicas together: probs [B, classes], label and mask [B],
      counts float32 [..., K] (no entry where nothing is quantized), and sums over real
      images of nll, quantizer_loss, input_norm, code_norm, reconstruction_error, squared_error
      (of z_q) and squared_norm (of z); max_code_norm, length of the longest code.
    """
    params = state.ema_params if task.ema_decay else state.params
    images, mask = measures.clean(batch, task.windows)
    places = task.real_places(images, mask)
    moving = [COLLECTION] if task.record and COLLECTION in state.stats else []
    output, moved = task.model.apply(
        {'params': params, **state.stats},
        images,
        train=False,
        mask=mask,
        continuous=task.continuous,
        mutable=moving,
    )
    nll = optax.softmax_cross_entropy_with_integer_labels(output.logits, batch['label'])
    sums = {
        'nll': jnp.sum(nll * mask),
        'input_norm': measures.mean_norm(output.z, mask=mask, total=1.0, real=places),
    }
    if output.decoded is not None:
        errors = measures.reconstruction_errors(output.decoded, images, task.windows)
        sums['reconstruction_error'] = jnp.sum(errors * mask)
    longest: dict[str, jax.Array] = {}
    quantizer: Any = task.model.quantizer
    if output.quantized is not None:
        z_q = output.quantized.z_q
        sums['code_norm'] = measures.mean_norm(z_q, mask=mask, total=1.0, real=places)
        # The loss of a replica is its sum over the mean number of real images of all replicas.
        real_images = ops.pmean(jnp.sum(mask, dtype=jnp.float32), task.axis)
        sums['quantizer_loss'] = output.quantized.loss * real_images
        sums['counts'] = quantizer.code_counts(output.quantized.codes)
        if z_q.shape == output.z.shape:
            real = (mask[:, None, None] if places is None else places)[..., None]
            sums['squared_error'] = jnp.sum(jnp.square(z_q - output.z) * real)
            sums['squared_norm'] = jnp.sum(jnp.square(output.z) * real)
        if isinstance(quantizer, quantizers.Codebook):
            codebook = measures.read_codebook(task, params, state.stats)
            longest['max_code_norm'] = jnp.max(jnp.linalg.norm(codebook, axis=-1))
    gathered = {
        'probs': jax.nn.softmax(output.logits),
        'label': batch['label'],
        'mask': mask,
        'corrupt': batch['mask'] & ~mask,
    }
    if task.axis is not None:
        gathered = jax.lax.all_gather(gathered, task.axis, tiled=True)
    return dict(moved) or (), ops.psum(sums, task.axis) | longest | gathered


def measure(evaluation: Evaluation, quantizer: Any = None) -> dict[str, Any]:
    """Every figure of one split, from its predictions and its summed counts.

    accuracy, nll, brier, ece; with a quantizer perplexity, active_codes and usage (means over
    stages), perplexity_per_stage, max_share (of the most used code of any stage), tokens (a stage)
    and, where groups or stages share a codebook, position_overlap (of their uses of it, 0 to 1);
    the means of the evaluation; reliability is a table over 15 confidence bins.
    """
    # Any: the metrics name the arrays of JAX alone, and take those of NumPy too.
    probs: Any = evaluation.probs
    labels: Any = evaluation.labels
    bins = metrics.reliability(probs, labels)
    record: dict[str, Any] = {
        'accuracy': float(metrics.accuracy(probs, labels)),
        'brier': float(metrics.brier_score(probs, labels)),
        'ece': float(metrics.expected_calibration_error(probs, labels)),
        'corrupt': evaluation.corrupt,
        'reliability': {
            name: np.asarray(getattr(bins, name)).tolist()
            for name in ('confidence', 'accuracy', 'count')
        },
    } | evaluation.means
    if evaluation.counts is not None:
        counts: Any = evaluation.counts.reshape(-1, evaluation.counts.shape[-1])
        per_stage = np.asarray(metrics.perplexity(counts))
        record |= {
            'perplexity': float(per_stage.mean()),
            'perplexity_per_stage': per_stage.tolist(),
            'active_codes': float(np.mean(metrics.active_codes(counts))),
            'usage': float(np.mean(metrics.usage(counts))),
            'tokens': float(counts.sum(-1).max()),
            'max_share': float(np.max(counts.max(-1) / np.maximum(counts.sum(-1), 1.0))),
        }
        if getattr(quantizer, 'shared', False):
            share = counts / np.maximum(counts.sum(-1, keepdims=True), 1.0)
            record['position_overlap'] = float(share.min(0).sum())
    return record


def recalibrate(test: Evaluation, validation: Evaluation) -> dict[str, float]:
    """temperature, fitted on validation, and scaled_nll and scaled_ece of the test split with it.

    See `calibration.fit_temperature`. {} where the split has one class.
    """
    if test.probs.shape[-1] < 2:
        return {}
    fitted: Any = validation  # as above
    told: Any = test
    temperature = calibration.fit_temperature(fitted.probs, fitted.labels)
    probs: Any = calibration.at_temperature(told.probs, temperature)
    return {
        'temperature': temperature,
        'scaled_nll': float(metrics.negative_log_likelihood(probs, told.labels)),
        'scaled_ece': float(metrics.expected_calibration_error(probs, told.labels)),
    }


def count_params(state: task.TrainState) -> int:
    """Numbers a model holds: parameters and, since they are learned too, codebook statistics."""
    learned = (state.params, state.stats.get(COLLECTION, {}))
    return sum(int(np.prod(x.shape, dtype=int)) for x in jax.tree.leaves(learned))
