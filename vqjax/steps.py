"""What happens in one training step, in order; pure, and inside a pmap over AXIS."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vqjax import health, ops, quantizers
from vqjax.models import Classifier, Output, quantizer_variables

AXIS = 'batch'

# What can turn NaN or infinite in a step, in the order in which it is computed.
PROBES = (
    'encoder output',
    'quantized vectors',
    'logits',
    'task loss',
    'quantizer loss',
    'gradient',
)


class TrainState(NamedTuple):
    """Everything a run carries from step to step; replicated over devices.

    step: int32 [], optimizer steps taken
    key: uint32 [2], raw key data of the run's random key
    params: what gradients move
    stats: the other collections of the model (codebook_stats, batch_stats)
    opt_state: the optimizer's
    ema_params: running average of params, or () where it is off
    healthy: bool [], False from the first non-finite step on; such a state no longer moves
    """

    step: jax.Array
    key: jax.Array
    params: Any
    stats: Any
    opt_state: Any
    ema_params: Any
    healthy: jax.Array


@dataclasses.dataclass(frozen=True)
class Task:
    """What is trained and how: the static part of every step.

    Attributes:
      model: the classifier; its axis_name is the axis of the pmap, or None on a single replica.
      optimizer: any optax transformation.
      label_smoothing: share of the target spread evenly over the classes, 0 to 1.
      accumulate: micro-batches a step. The codebook is updated once a step, from all of them.
      ema_decay: of the running average of params that evaluation reads; 0 = off.
    """

    model: Classifier
    optimizer: optax.GradientTransformation
    label_smoothing: float = 0.0
    accumulate: int = 1
    ema_decay: float = 0.0


def clean(batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Images with corrupt ones (NaN, inf) zeroed, and the mask of those that count, bool [B]."""
    images = batch['image']
    finite = jnp.all(jnp.isfinite(images), axis=(1, 2, 3))
    images = jnp.where(finite[:, None, None, None], images, 0.0)
    return images, finite & batch['mask'] if 'mask' in batch else finite


def losses(
    task: Task, output: Output, labels: jax.Array, mask: jax.Array, total: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Losses (task + quantizer, task, quantizer); the task's is a sum divided by total."""
    targets = jax.nn.one_hot(labels, task.model.num_classes)
    targets = optax.smooth_labels(targets, task.label_smoothing)
    entropy = optax.softmax_cross_entropy(output.logits, targets)
    task_loss = jnp.sum(entropy * mask) / total
    quantizer_loss = jnp.zeros(())
    if output.quantized is not None:
        # A mean over its own micro-batch, where task_loss is divided by the whole batch.
        quantizer_loss = output.quantized.loss / task.accumulate
    return task_loss + quantizer_loss, task_loss, quantizer_loss


def gradients(
    task: Task, state: TrainState, batch: dict[str, jax.Array]
) -> tuple[Any, Any, dict[str, jax.Array]]:
    """Gradient, new statistics and metrics of one batch of this replica, averaged over replicas."""
    images, mask = clean(batch)
    # Every replica divides by the mean number of real images of all, so pmean is the global mean.
    real = jnp.sum(mask, dtype=jnp.float32)
    everywhere = jax.lax.pmean(real, AXIS)
    total = jnp.maximum(everywhere, 1.0 / mask.size)
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)

    def loss_fn(params: Any, stats: Any, images: Any, labels: Any, mask: Any, update: bool) -> Any:
        output, stats = task.model.apply(
            {'params': params, **stats},
            images,
            train=True,
            update=update,
            mask=mask,
            mutable=list(stats),
            rngs={'quantizer': key},
        )
        loss, task_loss, quantizer_loss = losses(task, output, labels, mask, total)
        z_q = output.z if output.quantized is None else output.quantized.z_q
        hits = (jnp.argmax(output.logits, -1) == labels) & mask
        measured = {
            'loss': loss,
            'task_loss': task_loss,
            'quantizer_loss': quantizer_loss,
            'accuracy': jnp.sum(hits) / total,
            'input_norm': mean_norm(output.z, mask, total),
            'code_norm': mean_norm(z_q, mask, total),
            'finite': jnp.stack([finite(output.z), finite(z_q), finite(output.logits)]),
        }
        return loss, (stats, measured, output)

    grad_fn = jax.grad(loss_fn, has_aux=True)
    if task.accumulate == 1:
        grads, (stats, measured, output) = grad_fn(
            state.params, state.stats, images, batch['label'], mask, True
        )
        quantized = output.quantized
    else:
        grads, stats, measured, quantized = accumulate(
            task, state, grad_fn, images, batch['label'], mask, key
        )
    all_finite = jax.lax.pmin(measured.pop('finite').astype(jnp.int32), AXIS)
    measured = jax.lax.pmean(measured, AXIS)
    if jax.typeof(real) != jax.typeof(everywhere):
        # A shard_map that tracks what is replicated has summed the gradients already.
        grads = jax.tree.map(lambda g: g / jax.lax.axis_size(AXIS), grads)
    else:
        grads = jax.lax.pmean(grads, AXIS)
    measured['corrupt'] = jax.lax.psum(jnp.sum(~mask), AXIS)
    measured['stop'] = jax.lax.psum(jnp.sum(batch['stop']), AXIS)
    measured['gradient_norm'] = optax.tree.norm(grads)
    measured['refits'] = quantizers.count_refits(stats)
    if isinstance(task.model.quantizer, quantizers.Codebook):
        measured['revived'] = count_revived(task, state, stats, quantized.codes)
    rest = ('task_loss', 'quantizer_loss', 'gradient_norm')
    rest = jnp.stack([jnp.isfinite(measured[name]) for name in rest])
    measured['finite'] = jnp.concatenate([all_finite.astype(bool), rest])
    return grads, stats, measured


def accumulate(
    task: Task, state: TrainState, grad_fn: Callable, images: Any, labels: Any, mask: Any, key: Any
) -> tuple[Any, Any, dict[str, jax.Array], Any]:
    """Gradient of task.accumulate micro-batches; the codebook moves once, from all their vectors.

    Averages updated at every micro-batch would forget accumulate times faster than those of the
    whole batch, and revival would count the use of a part of the batch. Gradient, new statistics,
    metrics, and the Quantized of the whole batch (or None).
    """
    micro = jax.tree.map(
        lambda x: x.reshape(task.accumulate, -1, *x.shape[1:]), (images, labels, mask)
    )

    def body(carry: Any, batch: Any) -> Any:
        stats, grads = carry
        more, (stats, measured, output) = grad_fn(state.params, stats, *batch, False)
        return (stats, jax.tree.map(jnp.add, grads, more)), (measured, output.z)

    zeros = jax.tree.map(jnp.zeros_like, state.params)
    (stats, grads), (measured, z) = jax.lax.scan(body, (state.stats, zeros), micro)
    measured = {
        name: jnp.all(x, 0) if name == 'finite' else jnp.sum(x, 0) for name, x in measured.items()
    }
    quantized = None
    if task.model.quantizer is not None:
        quantized, stats = task.model.apply(
            {'params': state.params, **stats},
            z.reshape(-1, *z.shape[2:]),
            train=True,
            mask=mask,
            mutable=list(stats),
            rngs={'quantizer': key},
            method='requantize',
        )
    return grads, stats, measured, quantized


def count_revived(task: Task, state: TrainState, stats: Any, codes: jax.Array) -> jax.Array:
    """Codes that this step revived, float32 []: moved without a vector. codes int32 [B, h, w]."""
    quantizer = task.model.quantizer
    old, new = (
        quantizer.read_codebook(*quantizer_variables({'params': state.params, **held}))
        for held in (state.stats, stats)
    )
    counts = jax.lax.psum(count_codes(codes, quantizer), AXIS)
    return health.codebook_events(old, old, new, counts)['revived']


def count_codes(codes: jax.Array, quantizer: Any) -> jax.Array:
    """Uses of each code: int32 [..., *code_shape] -> float32 [*code_shape, K]."""
    columns = codes.reshape(-1, quantizers.stages(quantizer)).T
    counts = jax.vmap(lambda column: ops.code_counts(column, quantizer.num_codes))(columns)
    return counts.reshape(*quantizer.code_shape, quantizer.num_codes)


def mean_norm(x: jax.Array, mask: jax.Array, total: Any) -> jax.Array:
    """Norms of x [B, h, w, D] averaged over places, summed over real images, divided by total."""
    norms = jnp.linalg.norm(jax.lax.stop_gradient(x).astype(jnp.float32), axis=-1)
    return jnp.sum(jnp.mean(norms, axis=(1, 2)) * mask) / total


def finite(x: jax.Array) -> jax.Array:
    """Whether all of x is finite, bool []."""
    return jnp.all(jnp.isfinite(x))


@functools.partial(
    jax.jit, static_argnums=0, compiler_options={'xla_backend_optimization_level': 0}
)
def gradient_flow(
    task: Task, params: Any, stats: Any, batch: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    """How the gradient passes the quantizer on one batch: `health.gradient_flow`, on one device.

    Called between epochs, so it is quick to compile rather than quick.
    """
    model = task.model.clone(axis_name=None)
    variables = {'params': params, **stats}
    images, _ = clean(batch)
    z = model.apply(variables, images, method='represent')

    def task_loss(z_q: jax.Array) -> jax.Array:
        logits = model.apply(variables, z_q, train=False, method='classify')
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, batch['label'])
        return jnp.mean(entropy)

    return health.gradient_flow(
        lambda z: model.apply(variables, z, train=False, method='requantize'), task_loss, z
    )
