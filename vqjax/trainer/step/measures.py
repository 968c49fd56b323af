"""What a step measures: which images count, norms and errors, use of codes, gradient flow."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from vqjax import health, metrics, quantizers, sensors
from vqjax.nn import COLLECTION
from vqjax.runfiles import quantizer_variables
from vqjax.trainer.step.task import Task, TrainState, quick_jit


def measure_codes(
    task: Task, state: TrainState, stats: Any, codes: jax.Array
) -> dict[str, jax.Array]:
    """What a step did to the codes and with them; of all replicas. codes int32 [B, h, w, ...].

    Of a leaf with a codebook `revived`, the codes that moved without a vector. Where steps are
    recorded also the rest of `health.codebook_events`, batch_perplexity and batch_tokens.
    """
    quantizer: Any = task.model.quantizer
    found: dict[str, jax.Array] = {}
    leaf = isinstance(quantizer, quantizers.Codebook)
    if not (leaf or task.record):
        return found
    counts = quantizer.code_counts(codes, task.axis)
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


def finite(x: jax.Array) -> jax.Array:
    """Whether all of x is finite, bool []."""
    return jnp.all(jnp.isfinite(x))


@quick_jit
def gradient_flow(
    task: Task, params: Any, stats: Any, batch: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    """How the gradient passes the quantizer on one batch: `health.gradient_flow`, on one device."""
    model = task.model.clone(axis_name=None)
    variables = {'params': params, **stats}
    images, _ = clean(batch, task.windows)
    z: Any = model.apply(variables, images, method='represent')
    real = model.real_places(images)

    def quantize(z: jax.Array) -> Any:
        # Read only: what a faulty bridge moves in evaluation is not kept.
        return model.apply(
            variables, z, train=False, real=real, method='requantize', mutable=[COLLECTION]
        )[0]

    def task_loss(z_q: jax.Array) -> jax.Array:
        if not task.classification_weight:
            decoded: Any = model.apply(variables, z_q, method='decode')
            return jnp.mean(reconstruction_errors(decoded, images, task.windows))
        logits = model.apply(variables, z_q, train=False, real=real, method='classify')
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, batch['label'])
        return jnp.mean(entropy)

    return health.gradient_flow(quantize, task_loss, z)


def clean(batch: dict[str, jax.Array], windows: bool) -> tuple[jax.Array, jax.Array]:
    """Images with corrupt ones (NaN, inf) zeroed, and the mask of those that count, bool [B].

    Windows of recordings stay as they are, and count where a step of them is there.
    """
    images = batch['image']
    if windows:
        finite = jnp.any(sensors.real_steps(images), axis=-1)
    else:
        finite = jnp.all(jnp.isfinite(images), axis=(1, 2, 3))
        images = jnp.where(finite[:, None, None, None], images, 0.0)
    return images, finite & batch['mask'] if 'mask' in batch else finite


def reconstruction_errors(
    decoded: jax.Array, images: jax.Array, windows: bool = False
) -> jax.Array:
    """Mean squared error of every image, float32 [B]; both [B, H, W, C].

    windows: they are of recordings, and their missing steps count nowhere.
    """
    if not windows:
        return jnp.mean(jnp.square(decoded - images), axis=(1, 2, 3))
    real = sensors.real_steps(images)[:, None]
    errors = jnp.mean(jnp.square(decoded - jnp.where(real[..., None], images, 0.0)), axis=-1)
    return jnp.sum(errors * real, axis=(1, 2)) / jnp.maximum(jnp.sum(real, axis=(1, 2)), 1)


def mean_norm(
    x: jax.Array, mask: jax.Array, total: Any, real: jax.Array | None = None
) -> jax.Array:
    """Norms of x [B, h, w, D] averaged over places, summed over real images, divided by total.

    real: the places that count, see `Task.real_places`.
    """
    norms = jnp.linalg.norm(jax.lax.stop_gradient(x).astype(jnp.float32), axis=-1)
    if real is None:
        return jnp.sum(jnp.mean(norms, axis=(1, 2)) * mask) / total
    return jnp.sum(sensors.pool(norms[..., None], real)[:, 0] * mask) / total
