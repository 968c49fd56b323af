"""Recordings of sensors to feature maps: convolutions that know which steps are missing.

A recording is [T, C], steps x sensors, and a window of it an image [1, T, C]. What is missing (lost
by the sensor, or beyond the end of the recording) is NaN, so a mask needs no array of its own.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vqjax import ops

# Of each convolution along time: its length and stride. A length minus its stride is even, so that
# what a place sees lies evenly on both sides of it.
LENGTHS, STRIDES = (5, 4, 4), (1, 2, 2)
STRIDE = 4  # steps of a recording that one place stands for
REACH = 5  # steps that it sees on either side of them


def count_windows(steps: int, window: int, hop: int, pad: bool) -> int:
    """Windows of a recording of so many steps, the first at its first one, every `hop` steps.

    None reaches beyond the end; padded, the last one does where steps are left.
    """
    if not pad:
        return max(steps - window + hop, 0) // hop if steps >= window else 0
    covering = 1 - (window - steps) // hop if steps > window else 1
    return min(covering, -(-steps // hop))


def real_steps(images: jax.Array) -> jax.Array:
    """Which steps of windows [B, 1, T, C] are there: bool [B, T], every sensor finite."""
    return jnp.all(jnp.isfinite(images), axis=(1, 3))


def real_places(
    kind: str, bottleneck: str, images: jax.Array, mask: jax.Array | None = None
) -> jax.Array | None:
    """Which places of z count: bool [B, h, w] (h and w may be 1 for all), or None for all.

    A place of a recording counts where any of its steps is there, a vector where any place does.

    Args:
      kind, bottleneck: of the encoder.
      images: what it is given, [B, H, W, C].
      mask: bool [B], True = real.
    """
    mask = None if mask is None else mask[:, None, None]
    if kind != 'sensor':
        return mask
    real = _coarser(_whole(real_steps(images)), STRIDE)[:, None]
    if bottleneck == 'vector':
        real = jnp.any(real, axis=(1, 2), keepdims=True)
    return real if mask is None else real & mask


def pool(x: jax.Array, real: jax.Array | None, keepdims: bool = False) -> jax.Array:
    """Mean over the places that count: [B, h, w, D], bool [B, h, w] or None for all -> [B, D]."""
    if real is None:
        return jnp.mean(x, axis=(1, 2), keepdims=keepdims)
    weight = real[..., None].astype(x.dtype)
    total = jnp.sum(x * weight, axis=(1, 2), keepdims=keepdims)
    return total / jnp.maximum(jnp.sum(weight, axis=(1, 2), keepdims=keepdims), 1)


def _whole(real: jax.Array) -> jax.Array:
    """bool [B, T] -> [B, 4 * ceil(T / 4)], False at the end."""
    return jnp.pad(real, ((0, 0), (0, -real.shape[1] % STRIDE)))


def _coarser(real: jax.Array, stride: int) -> jax.Array:
    """bool [B, n] -> [B, n / stride], True where any of `stride` neighbours is."""
    return jnp.any(real.reshape(len(real), -1, stride), axis=-1)


class SensorTrunk(nn.Module):
    """Filters along time for every sensor, then over all sensors: [B, 1, T, C] -> [B, 1, t, F].

    A window is seen as a picture of one channel, sensors x time. The first convolution filters
    every sensor alike along time, the second one mixes all sensors, in the order of the first block
    of Schirrmeister et al. 2017 (arXiv:1703.05051) for electrodes; each of the last two halves the
    steps, so t = ceil(T / 4) and F = 4 * width. Place j stands for steps 4j to 4j + 3 and sees five
    more on either side.

    Missing steps are zeros (the mean, since windows are standardised), and so is every feature
    that stands for missing steps alone: padding changes nothing that is not padding.

    Attributes:
      width: features of the first convolution.
      dtype: of the computation; parameters are float32.
    """

    width: int = 32
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        del train  # nothing here differs between training and evaluation
        if x.ndim != 4 or x.shape[1] != 1:
            raise ValueError(
                f'images have shape {x.shape}: the encoder sensor takes windows [B, 1, T, C]'
            )
        real = _whole(real_steps(x))
        x = jnp.pad(x[:, 0], ((0, 0), (0, real.shape[1] - x.shape[2]), (0, 0)))
        x = jnp.where(real[..., None], x, 0).swapaxes(1, 2)[..., None]
        heights = (1, x.shape[1], 1)
        for factor, height, length, stride in zip(
            (1, 2, 4), heights, LENGTHS, STRIDES, strict=True
        ):
            side = (length - stride) // 2
            x = nn.Conv(
                factor * self.width,
                (height, length),
                strides=(1, stride),
                padding=((0, 0), (side, side)),
                dtype=self.dtype,
                # On a CPU XLA's own is slow in a loop, where the trainer takes its steps; and on no
                # device may a place depend, in its last bits, on what it does not see.
                conv_general_dilated=ops.convolve,
            )(x)
            real = _coarser(real, stride)
            x = jnp.where(real[:, None, :, None], nn.relu(x), 0)
        return x
