"""What of a batch counts: images and windows, their places, and means over them."""

from typing import Any

import jax
import jax.numpy as jnp

from vqjax import sensors


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
