"""What happens in one training step, in order; pure."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vqjax import health, metrics, ops, quantizers
from vqjax.nn import COLLECTION
from vqjax.trainer.masks import clean, mean_norm, reconstruction_errors
from vqjax.trainer.models import Classifier, Output, quantizer_variables

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
    codebook: where steps are recorded, that of the step before, float32 [K, D]; else ()
    """

    step: jax.Array
    key: jax.Array
    params: Any
    stats: Any
    opt_state: Any
    ema_params: Any
    healthy: jax.Array
    codebook: Any = ()


@dataclasses.dataclass(frozen=True)
class Task:
    """What is trained and how: the static part of every step.

    Attributes:
      model: the classifier; its axis_name is the axis of the replicas, or None for one.
      optimizer: any optax transformation.
      label_smoothing: share of the target spread evenly over the classes, 0 to 1.
      accumulate: micro-batches a step. The codebook is updated once a step, from all of them.
      ema_decay: of the running average of params that evaluation reads; 0 = off.
      steps_per_epoch: what schedules over epochs count in.
      quantizer_weight: of the quantizer's loss, a number or a schedule of the epoch.
      classification_weight: of the cross-entropy.
      reconstruction_weight: of the decoder's mean squared error.
      continuous: the first of two stages, in which nothing is quantized.
      frozen: the encoder is as in evaluation; its gradient is the optimizer's to stop.
      record: every step tells all that `health.diagnose` reads.
    """

    model: Classifier
    optimizer: optax.GradientTransformation
    label_smoothing: float = 0.0
    accumulate: int = 1
    ema_decay: float = 0.0
    steps_per_epoch: int = 1
    quantizer_weight: float | ops.Schedule = 1.0
    classification_weight: float = 1.0
    reconstruction_weight: float = 0.0
    continuous: bool = False
    frozen: bool = False
    record: bool = False

    @property
    def axis(self) -> str | None:
        """Name of the axis of the replicas."""
        return self.model.axis_name

    @property
    def windows(self) -> bool:
        """Whether images are windows of recordings, in which NaN stands for missing steps."""
        return self.model.encoder == 'sensor'

    def real_places(self, images: jax.Array, mask: jax.Array) -> jax.Array | None:
        """The places of windows that count, bool [B, h, w]; None for images, all of whose do."""
        return self.model.real_places(images, mask) if self.windows else None

    @property
    def quantizer(self) -> Any:
        """What quantizes in this stage, or None."""
        return None if self.continuous else self.model.quantizer


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
        if callable(weight):
            weight = weight(step / task.steps_per_epoch)
        loss += weight * parts['quantizer_loss']
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
            'input_norm': mean_norm(output.z, mask, total, real),
            'code_norm': mean_norm(z_q, mask, total, real),
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
        measured |= measure_codes(task, state, stats, quantized.codes)
    rest = ('task_loss', 'quantizer_loss', 'gradient_norm')
    rest = jnp.stack([jnp.isfinite(measured[name]) for name in rest])
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


def measure_codes(
    task: Task, state: TrainState, stats: Any, codes: jax.Array
) -> dict[str, jax.Array]:
    """What a step did to the codes and with them; of all replicas. codes int32 [B, h, w, ...].

    Of a leaf with a codebook `revived`, the codes that moved without a vector. Where steps are
    recorded also the rest of `health.codebook_events`, batch_perplexity and batch_tokens.
    """
    quantizer, found = task.model.quantizer, {}
    leaf = isinstance(quantizer, quantizers.Codebook)
    if not (leaf or task.record):
        return found
    counts = ops.psum(count_codes(codes, quantizer), task.axis)
    if leaf:
        old, new = (read_codebook(task, state.params, held) for held in (state.stats, stats))
        found = health.codebook_events(state.codebook if task.record else old, old, new, counts)
    if not task.record:
        return {'revived': found['revived']}
    by_stage = counts.reshape(-1, quantizer.num_codes)
    found['batch_perplexity'] = jnp.mean(metrics.perplexity(by_stage))
    found['batch_tokens'] = jnp.sum(by_stage[0])
    return found


def read_codebook(task: Task, params: Any, stats: Any) -> Any:
    """The codebook float32 [K, D] of a leaf that has one, else ()."""
    quantizer = task.model.quantizer
    if not isinstance(quantizer, quantizers.Codebook):
        return ()
    return quantizer.read_codebook(*quantizer_variables({'params': params, **stats}))


def count_codes(codes: jax.Array, quantizer: Any) -> jax.Array:
    """Uses of each code: int32 [..., *code_shape] -> float32 [..., K], see `by_codebook`."""
    rows = quantizer.by_codebook(codes)
    flat = rows.reshape(-1, rows.shape[-1])
    counts = jax.vmap(lambda row: ops.code_counts(row, quantizer.num_codes))(flat)
    return counts.reshape(*rows.shape[:-1], quantizer.num_codes)


def finite(x: jax.Array) -> jax.Array:
    """Whether all of x is finite, bool []."""
    return jnp.all(jnp.isfinite(x))


# Of functions of a task that run once or between epochs: quick to compile rather than quick.
quick_jit = functools.partial(
    jax.jit, static_argnums=0, compiler_options={'xla_backend_optimization_level': 0}
)


@quick_jit
def gradient_flow(
    task: Task, params: Any, stats: Any, batch: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    """How the gradient passes the quantizer on one batch: `health.gradient_flow`, on one device."""
    model = task.model.clone(axis_name=None)
    variables = {'params': params, **stats}
    images, _ = clean(batch, task.windows)
    z = model.apply(variables, images, method='represent')

    real = model.real_places(images)

    def quantize(z: jax.Array) -> Any:
        # Read only: what a faulty bridge moves in evaluation is not kept.
        how = {'train': False, 'real': real, 'method': 'requantize'}
        return model.apply(variables, z, **how, mutable=[COLLECTION])[0]

    def task_loss(z_q: jax.Array) -> jax.Array:
        if not task.classification_weight:
            decoded = model.apply(variables, z_q, method='decode')
            return jnp.mean(reconstruction_errors(decoded, images, task.windows))
        logits = model.apply(variables, z_q, train=False, real=real, method='classify')
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, batch['label'])
        return jnp.mean(entropy)

    return health.gradient_flow(quantize, task_loss, z)
