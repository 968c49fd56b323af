"""One training step, in order: loss, gradient, new codebook statistics, optimizer; pure."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vqjax import ops, quantizers
from vqjax.trainer.step import measures
from vqjax.trainer.step.measures import (
    clean,
    finite,
    mean_norm,
    measure_codes,
    reconstruction_errors,
)
from vqjax.trainer.step.network import Output
from vqjax.trainer.step.task import Task, TrainState


def losses(
    task: Task,
    output: Output,
    batch: tuple[jax.Array, jax.Array, jax.Array],
    total: jax.Array,
    step: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The weighted sum that is trained, and its parts: task, reconstruction and quantizer loss.

    Args:
      batch: images, labels, mask.
      total: what the sums over real images of cross-entropy and squared error are divided by.
    """
    images, labels, mask = batch
    targets = jax.nn.one_hot(labels, task.model.num_classes)
    targets = optax.smooth_labels(targets, task.label_smoothing)
    entropy = optax.softmax_cross_entropy(output.logits, targets)
    parts = {'task_loss': jnp.sum(entropy * mask) / total}
    loss = task.classification_weight * parts['task_loss']
    if output.decoded is not None:
        error = reconstruction_errors(output.decoded, images, task.windows)
        parts['reconstruction_loss'] = jnp.sum(error * mask) / total
        loss += task.reconstruction_weight * parts['reconstruction_loss']
    parts['quantizer_loss'] = jnp.zeros(())
    if output.quantized is not None:
        # A mean over its own micro-batch, where the others are divided by the whole batch.
        parts['quantizer_loss'] = output.quantized.loss / task.accumulate
        weight = task.quantizer_weight
        now = weight(step / task.steps_per_epoch) if callable(weight) else weight
        loss += now * parts['quantizer_loss']
    return loss, parts


def gradients(
    task: Task, state: TrainState, batch: dict[str, jax.Array]
) -> tuple[Any, Any, dict[str, jax.Array]]:
    """Gradient, new statistics and metrics of one batch of this replica, averaged over replicas."""
    images, mask = clean(batch, task.windows)
    # Every replica divides by the mean number of real images of all, so pmean is the global mean.
    real = jnp.sum(mask, dtype=jnp.float32)
    total = jnp.maximum(ops.pmean(real, task.axis), 1.0 / mask.size)
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)

    def loss_fn(params: Any, stats: Any, images: Any, labels: Any, mask: Any, update: bool) -> Any:
        output, stats = task.model.apply(
            {'params': params, **stats},
            images,
            train=True,
            update=update,
            mask=mask,
            continuous=task.continuous,
            frozen=task.frozen,
            mutable=list(stats),
            rngs={'quantizer': key},
        )
        loss, parts = losses(task, output, (images, labels, mask), total, state.step)
        z_q = output.z if output.quantized is None else output.quantized.z_q
        real = task.real_places(images, mask)
        hits = (jnp.argmax(output.logits, -1) == labels) & mask
        measured = {
            'loss': loss,
            **parts,
            'accuracy': jnp.sum(hits) / total,
            'input_norm': mean_norm(output.z, mask=mask, total=total, real=real),
            'code_norm': mean_norm(z_q, mask=mask, total=total, real=real),
            'finite': jnp.stack([finite(output.z), finite(z_q), finite(output.logits)]),
        }
        return loss, (stats, measured, output)

    params = state.params
    if task.axis is not None:
        # Each replica's own gradient is wanted, under a shard_map that tracks what is replicated
        # too: there that of params equal everywhere would be the sum over replicas already.
        params = jax.lax.pcast(params, task.axis, to='varying')
    grad_fn = jax.grad(loss_fn, has_aux=True)
    if task.accumulate == 1:
        grads, (stats, measured, output) = grad_fn(
            params, state.stats, images, batch['label'], mask, True
        )
        quantized = output.quantized
    else:
        grads, stats, measured, quantized = accumulate(
            task, state, params, grad_fn, (images, batch['label'], mask), key
        )
    all_finite = measured.pop('finite')
    if task.axis is not None:
        all_finite = jax.lax.pmin(all_finite.astype(jnp.int32), task.axis)
    measured = ops.pmean(measured, task.axis)
    grads = ops.pmean(grads, task.axis)
    measured['corrupt'] = ops.psum(jnp.sum(~mask), task.axis)
    measured['stop'] = ops.psum(jnp.sum(batch['stop']), task.axis)
    measured['gradient_norm'] = optax.tree.norm(grads)
    measured['refits'] = quantizers.count_refits(stats)
    if quantized is not None:
        measured |= measure_codes(task, state=state, stats=stats, codes=quantized.codes)
    names = ('task_loss', 'quantizer_loss', 'gradient_norm')
    rest = jnp.stack([jnp.isfinite(measured[name]) for name in names])
    measured['finite'] = jnp.concatenate([all_finite.astype(bool), rest])
    return grads, stats, measured


def accumulate(
    task: Task, state: TrainState, params: Any, grad_fn: Callable, batch: tuple[Any, ...], key: Any
) -> tuple[Any, Any, dict[str, jax.Array], Any]:
    """Gradient of task.accumulate micro-batches; the codebook moves once, from all their vectors.

    Averages updated at every micro-batch would forget accumulate times faster than those of the
    whole batch, and revival would count the use of a part of the batch. Gradient of `params`, new
    statistics, metrics, and the Quantized of the whole batch (or None).
    """
    # Each takes one row of every `accumulate`: rows that are split over devices stay there.
    micro = jax.tree.map(
        lambda x: jnp.swapaxes(x.reshape(-1, task.accumulate, *x.shape[1:]), 0, 1),
        batch,
    )

    def body(carry: Any, batch: Any) -> Any:
        stats, grads = carry
        more, (stats, measured, output) = grad_fn(params, stats, *batch, False)
        return (stats, jax.tree.map(jnp.add, grads, more)), (measured, output.z)

    zeros = jax.tree.map(jnp.zeros_like, params)
    (stats, grads), (measured, z) = jax.lax.scan(body, (state.stats, zeros), micro)
    measured = {
        name: jnp.all(x, 0) if name == 'finite' else jnp.sum(x, 0) for name, x in measured.items()
    }
    quantized = None
    if task.quantizer is not None:
        quantized, stats = task.model.apply(
            {'params': state.params, **stats},
            jnp.swapaxes(z, 0, 1).reshape(-1, *z.shape[2:]),
            train=True,
            real=task.model.real_places(batch[0], batch[2]),
            mutable=list(stats),
            rngs={'quantizer': key},
            method='requantize',
        )
    return grads, stats, measured, quantized


def train_step(
    task: Task, state: TrainState, batch: dict[str, jax.Array]
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step, on one replica of the axis `task.axis` (a pmap's or a shard_map's).

    Args:
      batch: this replica's share: image [b, H, W, C], label int32 [b]; stop bool [1], this
        process was asked to stop (the loop adds it).

    Returns:
      The new state, equal on all replicas, and float32 scalars averaged over them; `finite` is
      bool [len(steps.PROBES)]. A step that is not finite leaves the state as it was, for good.
    """
    grads, stats, measured = gradients(task, state, batch)
    updates, opt_state = task.optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema_params = ()
    if task.ema_decay:
        ema_params = optax.incremental_update(params, state.ema_params, 1.0 - task.ema_decay)
    new = state._replace(
        step=state.step + 1, params=params, stats=stats, opt_state=opt_state, ema_params=ema_params
    )
    if task.record:
        new = new._replace(codebook=measures.read_codebook(task, state.params, state.stats))
    healthy = state.healthy & jnp.all(measured['finite'])
    state = jax.tree.map(lambda a, b: jnp.where(healthy, a, b), new, state)
    return state._replace(healthy=healthy), measured


def train_steps(
    task: Task, state: TrainState, batches: dict[str, jax.Array], count: jax.Array
) -> tuple[TrainState, dict[str, jax.Array]]:
    """The first `count` of n steps in one dispatch: `train_step` over batches [n, b, ...].

    One program serves any count up to n, so that the last steps of an epoch compile nothing.

    Returns:
      The state after them, and the metrics of every step, each with a leading axis n; those from
      `count` on are zeros.
    """
    first, size = jax.tree.map(lambda x: x[0], batches), len(batches['label'])
    if size == 1:
        state, measured = train_step(task, state, first)
        return state, jax.tree.map(lambda x: x[None], measured)
    step = jax.jit(functools.partial(train_step, task), inline=True)  # traced once for both uses
    shapes = jax.eval_shape(step, state, first)[1]
    kept = jax.tree.map(lambda x: jnp.zeros((size, *x.shape), x.dtype), shapes)

    def body(i: jax.Array, carry: Any) -> Any:
        state, kept = carry
        state, measured = step(state, jax.tree.map(lambda x: x[i], batches))
        return state, jax.tree.map(lambda all, one: all.at[i].set(one), kept, measured)

    return jax.lax.fori_loop(0, count, body, (state, kept))
