"""The numbers that `Recorder` takes on the device: pure functions, compiled once a quantizer."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vqjax import metrics, ops
from vqjax.health import facts
from vqjax.health.probes import codebook_events, flow_of, gradients_at, jumps

# Vectors of a closer look: half of them fit a reference codebook, half of them measure it.
SAMPLE = 1024


class Setup(NamedTuple):
    """What the programs are compiled for: the quantizer, and what follows it (or None)."""

    quantizer: Any
    task_loss: Callable[..., jax.Array] | None


class Carry(NamedTuple):
    """What one step leaves for the next.

    older, old: codebooks float32 [S, K, D] before the last step and after it; () without them.
    recent: float32 [S, K], uses of each code, of which a step keeps 0.98.
    window: float32 [S, K], uses since the last closer look; steps: float32 [], how many those were.
    """

    older: Any
    old: Any
    recent: jax.Array
    window: jax.Array
    steps: jax.Array


class Evaluation(NamedTuple):
    """Sums over the batches of an evaluation."""

    counts: jax.Array
    batches: jax.Array
    loss: jax.Array
    squared_error: jax.Array
    vectors: jax.Array
    total: jax.Array
    squared: jax.Array
    drift: jax.Array


def codebooks(quantizer: Any, params: Any, state: Any) -> Any:
    """Codebooks float32 [S, K, D] of a leaf (S = 1) or of equal stages or groups; () of others."""
    if hasattr(quantizer, 'read_codebook'):
        return quantizer.read_codebook(params, state)[None]
    inner = getattr(quantizer, 'inner', None)
    if not hasattr(inner, 'read_codebook') or len(quantizer.code_shape) != 1:
        return ()
    if getattr(quantizer, 'shared', False):
        return inner.read_codebook(params, state)[None]
    return jax.vmap(inner.read_codebook)(params, state)


def _rows(quantizer, z, mask):
    """Vectors as they are compared with codes, float32 [N, D], and which count, bool [N]."""
    leaf = quantizer
    x = leaf.prepare(z) if hasattr(leaf, 'prepare') else z.astype(jnp.float32)
    rows = x.reshape(-1, x.shape[-1])
    valid = jnp.ones(len(rows), bool) if mask is None else jnp.broadcast_to(mask, z.shape[:-1])
    return rows, valid.reshape(-1) & jnp.isfinite(rows).all(-1)


def _counts(quantizer, codes):
    """Uses of each code, float32 [S, K]; S = 1 where stages share a codebook."""
    return quantizer.code_counts(codes).reshape(-1, quantizer.num_codes)


def _shape(quantizer):
    codes = jnp.zeros((1, *quantizer.code_shape))
    rows = quantizer.by_codebook(codes)
    return math.prod(rows.shape[:-1]), quantizer.num_codes


def start(setup: Setup, params: Any, state: Any) -> Carry:
    """The carry before the first step."""
    return _start(setup, params, state)


@functools.partial(jax.jit, static_argnums=0)
def _start(setup, params, state):
    tables = codebooks(setup.quantizer, params, state)
    zeros = jnp.zeros(_shape(setup.quantizer), jnp.float32)
    return Carry(tables, tables, zeros, zeros, jnp.zeros(()))


def _mean(x, valid):
    return jnp.sum(jnp.where(valid, x, 0.0)) / jnp.sum(valid)


def _spread(rows, valid):
    """Mean vector [D] and mean squared distance from it, []."""
    centre = jnp.sum(jnp.where(valid[:, None], rows, 0.0), 0) / jnp.maximum(jnp.sum(valid), 1)
    return centre, _mean(jnp.sum((rows - centre) ** 2, -1), valid)


@functools.partial(jax.jit, static_argnums=0)
def step(
    setup: Setup, carry: Carry, params: Any, state: Any, z: Any, out: Any, mask: Any
) -> tuple[Carry, dict[str, jax.Array]]:
    """The next carry, and the record of a step; arguments as in `Recorder.step`."""
    quantizer = setup.quantizer
    counts = _counts(quantizer, out.codes)
    rows, valid = _rows(quantizer, z, mask)
    centre, variance = _spread(rows, valid)
    z_q = out.z_q.astype(jnp.float32).reshape(-1, out.z_q.shape[-1])
    coded = jnp.any(out.codes.reshape(len(rows), -1) >= 0, -1)
    wanted = jnp.ones(len(rows), bool) if mask is None else mask.reshape(-1)
    found = {
        'quantizer_loss': out.loss,
        'input_norm': _mean(jnp.linalg.norm(rows, axis=-1), valid),
        'code_norm': _mean(jnp.linalg.norm(z_q, axis=-1), valid),
        'input_offset': jnp.linalg.norm(centre),
        'input_spread': jnp.sqrt(variance),
        'input_scale': jnp.sqrt(variance / rows.shape[-1]),
        'batch_tokens': jnp.max(jnp.sum(counts, -1)),
        'batch_perplexity': jnp.mean(metrics.perplexity(counts)),
        'rejected': jnp.sum(wanted & ~coded, dtype=jnp.float32),
    }
    if facts.approximates(quantizer):
        found['relative_error'] = _mean(jnp.sum((rows - z_q) ** 2, -1), valid) / variance
    recent, old = 0.98 * carry.recent + counts, carry.old
    tables = codebooks(quantizer, params, state)
    if not isinstance(tables, tuple):
        used = counts if len(tables) == len(counts) else jnp.sum(counts, 0, keepdims=True)
        events = jax.vmap(codebook_events)(carry.older, old, tables, used)
        for name in ('revived', 'reverted'):
            found[name] = jnp.sum(events[name])
        found['codebook_norm'] = jnp.mean(events['codebook_norm'])
        found['max_code_norm'] = jnp.max(events['max_code_norm'])
        moved = jnp.linalg.norm((tables - old).reshape(-1))
        found['codebook_change'] = moved / jnp.linalg.norm(old.reshape(-1))
        if used is counts:
            jumped, back = jax.vmap(jumps)(carry.older, old, tables, used)
            jumped &= ~back
            before = carry.recent / jnp.mean(carry.recent, -1, keepdims=True)
            found['revived_in_use'] = jnp.sum(jumped & (before > 0.5), dtype=jnp.float32)
            recent = jnp.where(jumped, 0.0, recent)
        old, tables = tables, old
    new = Carry(tables, old, recent, carry.window + counts, carry.steps + 1)
    return new, found


@functools.partial(jax.jit, static_argnums=0)
def read_window(setup: Setup, carry: Carry) -> tuple[Carry, dict[str, jax.Array]]:
    """A carry with a new window, and how the codes were used in the one before."""
    found = _use(setup.quantizer, carry.window) | {'window': carry.steps}
    zeros = jnp.zeros_like(carry.window)
    return carry._replace(window=zeros, steps=jnp.zeros_like(carry.steps)), found


def _use(quantizer, counts):
    """Mean figures of the codebooks' use, those of the least used one, and of FSQ's levels."""
    perplexity = metrics.perplexity(counts)
    active = metrics.active_codes(counts).astype(jnp.float32)
    total = jnp.sum(counts, -1)
    found = {
        'perplexity': jnp.mean(perplexity),
        'active_codes': jnp.mean(active),
        'perplexity_least': jnp.min(perplexity),
        'active_codes_least': jnp.min(active),
        'max_share': jnp.max(jnp.max(counts, -1) / jnp.maximum(total, 1)),
        'tokens': jnp.max(total),
    }
    if getattr(quantizer, 'shared', False):
        share = counts / jnp.maximum(total, 1)[:, None]
        found['position_overlap'] = jnp.sum(jnp.min(share, 0))
    levels = facts.grid_levels(quantizer)
    if levels:
        codes, edge = jnp.arange(math.prod(levels)), 0.0
        for size, stride in zip(levels, _strides(levels), strict=True):
            digit = codes // stride % size
            edge += jnp.sum(counts[0] * ((digit == 0) | (digit == size - 1)))
        found['edge_share'] = edge / jnp.maximum(total[0], 1) / len(levels)
    return found


def _strides(levels):
    return [math.prod(levels[:i]) for i in range(len(levels))]


@functools.partial(jax.jit, static_argnums=0)
def look(
    setup: Setup,
    params: Any,
    state: Any,
    z: jax.Array,
    out: Any,
    mask: Any,
    task: Any,
    z_gradient: Any,
) -> dict[str, jax.Array]:
    """A closer look at one step: gradients at z, the task with other codes, other codebooks."""
    quantizer, task_loss = setup
    found: dict[str, jax.Array] = {}
    if getattr(quantizer, 'targets_only', False):
        return found
    z_q = out.z_q

    def quantize(x):
        return quantizer.quantize(params, state, x, None, mask)

    def follows(x):
        if task_loss is not None:
            return task_loss(x, *task)
        # Any direction tells whether a gradient passes.
        return jnp.sum(x * jnp.sin(1.0 + jnp.arange(x.size)).reshape(x.shape).astype(x.dtype))

    at_z = gradients_at(quantize, follows, z)
    found |= flow_of(z, *at_z)
    # Not that of the step: these codes may have learned from these vectors.
    found['quantizer_loss_looked'] = found.pop('quantizer_loss')
    if task_loss is None:
        found['gradient_passed'] = found.pop('gradient_at_input') / found.pop('gradient_at_codes')
    else:
        # The vectors of other examples: a task that does not notice does not read them.
        axis = 0 if z.shape[0] > 1 or z.ndim == 2 else 1
        other = jnp.roll(z_q, max(z_q.shape[axis] // 2, 1), axis)
        found['task_loss_looked'] = follows(z_q)
        found['task_loss_shuffled'] = follows(other)
        if z_gradient is not None:
            found |= _shares(z_gradient, at_z.at_input, at_z.own)
    if facts.approximates(quantizer):
        found |= _reference(quantizer, params, state, z, mask, quantize)
    return found


def _shares(given, of_task, own):
    """How much of each gradient the given one holds, by least squares."""
    basis = jnp.stack([of_task.reshape(-1), own.reshape(-1)], -1).astype(jnp.float32)
    scale = jnp.maximum(jnp.linalg.norm(basis, axis=0), 1e-30)
    unit = basis / scale
    gram = unit.T @ unit + 1e-6 * jnp.eye(2)
    shares = jnp.linalg.solve(gram, unit.T @ given.reshape(-1).astype(jnp.float32)) / scale
    return {'share_of_task_gradient': shares[0], 'share_of_quantizer_gradient': shares[1]}


def _reference(quantizer, params, state, z, mask, quantize):
    """Relative squared error of the codebook, and of one fitted to other vectors of the batch."""
    rows, valid = _rows(quantizer, z, mask)
    z_q = quantize(z).z_q.astype(jnp.float32).reshape(rows.shape)
    error = jnp.sum((rows - z_q) ** 2, -1)
    order = jax.random.permutation(jax.random.key(0), len(rows))[:SAMPLE]
    rows, valid, error = rows[order], valid[order], error[order]
    half = len(rows) // 2
    if half < 2:
        return {}
    fitted, tested = slice(0, half), slice(half, None)
    num = min(quantizer.num_codes, half)
    centroids = ops.kmeans(jax.random.key(1), rows[fitted], num, 4, valid[fitted]).centroids
    nearest = ops.nearest_codes(rows[tested], centroids)
    reference = jnp.sum((rows[tested] - centroids[nearest]) ** 2, -1)
    _, variance = _spread(rows[tested], valid[tested])
    return {
        'nearest_error': _mean(error[tested], valid[tested]) / variance,
        'reference_error': _mean(reference, valid[tested]) / variance,
    }


def start_evaluation(setup: Setup) -> Evaluation:
    """Before the first batch."""
    zero = jnp.zeros(())
    return Evaluation(jnp.zeros(_shape(setup.quantizer)), *(zero,) * 7)


@functools.partial(jax.jit, static_argnums=0)
def evaluate(
    setup: Setup,
    evaluation: Evaluation,
    carry: Carry,
    params: Any,
    state: Any,
    z: Any,
    out: Any,
    mask: Any,
    task: Any,
    loss: Any,
) -> Evaluation:
    """The sums with one batch more; arguments as in `Recorder.evaluate`."""
    quantizer, task_loss = setup
    rows, valid = _rows(quantizer, z, mask)
    if loss is None:
        loss = jnp.nan if task_loss is None else task_loss(out.z_q, *task)
    if facts.approximates(quantizer):
        z_q = out.z_q.astype(jnp.float32).reshape(rows.shape)
        error = jnp.sum(jnp.where(valid, jnp.sum((rows - z_q) ** 2, -1), 0.0))
    else:
        error = jnp.nan
    tables, drift = codebooks(quantizer, params, state), jnp.zeros(())
    if not isinstance(tables, tuple):
        old = carry.old
        drift = jnp.linalg.norm((tables - old).reshape(-1)) / jnp.linalg.norm(old.reshape(-1))
    held = jnp.where(valid[:, None], rows, 0.0)
    return Evaluation(
        evaluation.counts + _counts(quantizer, out.codes),
        evaluation.batches + 1,
        evaluation.loss + loss,
        evaluation.squared_error + error,
        evaluation.vectors + jnp.sum(valid),
        evaluation.total + jnp.sum(held, 0),
        evaluation.squared + jnp.sum(held**2),
        jnp.maximum(evaluation.drift, drift),
    )


@functools.partial(jax.jit, static_argnums=0)
def read_evaluation(setup: Setup, evaluation: Evaluation) -> dict[str, jax.Array]:
    """The record of an evaluation."""
    vectors = jnp.maximum(evaluation.vectors, 1)
    variance = evaluation.squared / vectors - jnp.sum((evaluation.total / vectors) ** 2)
    found = {
        'evaluation_loss': evaluation.loss / evaluation.batches,
        'evaluation_error': evaluation.squared_error / vectors / variance,
        'evaluation_drift': evaluation.drift,
    }
    return _use(setup.quantizer, evaluation.counts) | found


stack = jax.jit(lambda values: jnp.stack([jnp.asarray(x, jnp.float32) for x in values]))
