"""Networks between images and vectors: encoders with standardised output, and a decoder.

A window of a recording is an image too, [1, T, C]; see `vqjax.sensors`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from vqjax import ops, sensors
from vqjax.trunks import ConvTrunk, ResNet9, ResNet18, are_small, convolution

__all__ = [
    'BOTTLENECKS',
    'ENCODERS',
    'ConvTrunk',
    'Decoder',
    'Encoder',
    'ResNet9',
    'ResNet18',
    'Standardize',
    'TwoLevelEncoder',
    'are_small',
    'convolution',
    'repeat_to',
    'two_level_grids',
]

ENCODERS = ('conv', 'resnet9', 'resnet18', 'sensor')
BOTTLENECKS = ('vector', 'grid', 'two_level')


class Standardize(nn.Module):
    """Batch normalisation without scale or offset: every feature of z has mean 0 and variance 1.

    It stands before the bottleneck of every method. Normalising a vector over its own features is
    not enough: a direction shared by all images survives it, a projection turns that direction
    into a constant, and a bounded quantizer such as FSQ rounds every image to the same code.

    Attributes:
      axis_name: replicas whose batches are normalised together; None for one device.
      decay: of the running averages, in [0, 1). While the network learns fast, those of ten steps
        (.9) are of an older one; where a bound follows, as in FSQ, evaluation then lags behind.
    """

    axis_name: str | None = None
    decay: float = 0.9

    @nn.compact
    def __call__(self, z: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Standardises z [..., D] -> float32 [..., D]; mask [...] bool, True = counts.

        In training by the mean and variance of the batch of all replicas, otherwise by their
        running averages.
        """
        shape, dtype = z.shape[-1:], jnp.float32
        mean = self.variable('batch_stats', 'mean', jnp.zeros, shape, dtype)
        variance = self.variable('batch_stats', 'variance', jnp.ones, shape, dtype)
        z = z.astype(dtype)
        if not train:
            return (z - mean.value) * jax.lax.rsqrt(variance.value + 1e-5)
        axis_name = None if self.is_initializing() else self.axis_name
        weight = jnp.ones(z.shape[:-1], dtype) if mask is None else mask.astype(dtype)
        axes = tuple(range(z.ndim - 1))
        total = _sum(weight, axes, axis_name)
        # Two passes: the difference of two large numbers would drown a small variance.
        batch_mean = _sum(z * weight[..., None], axes, axis_name) / jnp.maximum(total, 1.0)
        centred = z - batch_mean
        batch_variance = _sum(centred**2 * weight[..., None], axes, axis_name) / jnp.maximum(
            total, 1.0
        )
        # The averages start from the init batch, so that they hold from the first step on.
        keep = 0.0 if self.is_initializing() else jnp.where(total > 0, self.decay, 1.0)
        mean.value = keep * mean.value + (1 - keep) * batch_mean
        variance.value = keep * variance.value + (1 - keep) * batch_variance
        return centred * jax.lax.rsqrt(batch_variance + 1e-5)


def _sum(x: jax.Array, axes: tuple[int, ...], axis_name: str | None) -> jax.Array:
    """Sum over axes and, where an axis_name is given, over replicas."""
    return ops.psum(jnp.sum(x, axis=axes), axis_name)


class Encoder(nn.Module):
    """Images to vectors: [B, H, W, C] -> z float32 [B, 1, 1, D] or [B, h, w, D].

    Attributes:
      kind: 'conv', 'resnet9' or 'resnet18', or 'sensor' for windows [B, 1, T, C] in which NaN is
        missing.
      features: D.
      bottleneck: 'vector' (one vector an image) or 'grid' (one a place of the feature map).
      axis_name: replicas that share batch statistics; None for one device.
      dtype: of the computation; parameters are float32.
      width: channels of the first convolution of 'conv', 'resnet9' and 'sensor'.
      standardize: every feature of z has mean 0 and variance 1; without, z is what comes.
      statistics_decay: of the running averages of mean and variance, see `Standardize`.
    """

    kind: str = 'conv'
    features: int = 128
    bottleneck: str = 'vector'
    axis_name: str | None = None
    dtype: Any = jnp.float32
    width: int = 32
    standardize: bool = True
    statistics_decay: float = 0.9

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, mask: jax.Array | None = None
    ) -> jax.Array:
        x = _trunk(self)(images, train=train)
        if self.bottleneck == 'vector':
            x = sensors.pool(x, sensors.real_places(self.kind, 'grid', images), keepdims=True)
        elif self.bottleneck != 'grid':
            raise ValueError(
                f'bottleneck is {self.bottleneck!r}: choose one of {", ".join(BOTTLENECKS)}; '
                'two_level is TwoLevelEncoder'
            )
        # No bias before the mean is taken off: noise is all that such a bias would follow.
        z = nn.Dense(self.features, use_bias=not self.standardize, dtype=self.dtype)(x)
        normalize = None
        if self.standardize:
            normalize = Standardize(self.axis_name, self.statistics_decay, name='standardize')
        real = sensors.real_places(self.kind, self.bottleneck, images, mask)
        return _standardized(normalize, z, train, real)


def _trunk(encoder: Any) -> nn.Module:
    """The convolutions of an encoder: images to a feature map."""
    if encoder.kind == 'conv':
        return ConvTrunk(encoder.width, encoder.dtype)
    if encoder.kind == 'resnet9':
        return ResNet9(encoder.width, encoder.axis_name, encoder.dtype)
    if encoder.kind == 'resnet18':
        return ResNet18(axis_name=encoder.axis_name, dtype=encoder.dtype)
    if encoder.kind == 'sensor':
        return sensors.SensorTrunk(encoder.width, encoder.dtype)
    raise ValueError(f'encoder is {encoder.kind!r}: choose one of {", ".join(ENCODERS)}')


def _standardized(
    normalize: Standardize | None, z: jax.Array, train: bool, real: jax.Array | None
) -> jax.Array:
    """z [B, h, w, D] as an encoder gives it, float32; see `sensors.real_places`."""
    if normalize is None:
        return z.astype(jnp.float32)
    if real is not None:
        real = jnp.broadcast_to(real, z.shape[:-1])
    return normalize(z, train=train, mask=real)


Size = tuple[int, int]


def two_level_grids(kind: str, image_shape: Sequence[int]) -> tuple[Size, Size]:
    """(height, width) of the top and of the bottom grid of images (H, W, C)."""
    steps = {'conv': 2, 'resnet9': 3, 'resnet18': 3}[kind]
    sizes = [tuple(-(-side // 2**n) for side in image_shape[:2]) for n in (steps + 1, steps)]
    return sizes[0], sizes[1]


def repeat_to(x: jax.Array, size: Size) -> jax.Array:
    """A grid made larger, each vector repeated: [B, h, w, D] -> [B, H, W, D]."""
    return jax.image.resize(x, (x.shape[0], *size, x.shape[3]), 'nearest')


class TwoLevelEncoder(nn.Module):
    """The encoder of VQ-VAE-2 (arXiv:1906.00446 algorithm 1): a bottom grid and a top one.

    The top grid is half as high and wide; the bottom's vectors know the decoded top. So it runs in
    parts: `__call__` gives the feature map and the top, which is quantized, then `bottom`.

    Attributes:
      kind, features, axis_name, dtype, width, standardize, statistics_decay: as in Encoder.
    """

    kind: str = 'conv'
    features: int = 128
    axis_name: str | None = None
    dtype: Any = jnp.float32
    width: int = 32
    standardize: bool = True
    statistics_decay: float = 0.9

    def setup(self) -> None:
        self.trunk = _trunk(self)
        channels, small = 4 * self.width, jax.default_backend() == 'cpu'
        # Feature maps are small: products of patches on a CPU, as `convolution` has it.
        conv = functools.partial(
            nn.Conv,
            channels,
            (3, 3),
            dtype=self.dtype,
            conv_general_dilated=ops.convolve if small else lax.conv_general_dilated,
        )
        head = functools.partial(
            nn.Dense, self.features, use_bias=not self.standardize, dtype=self.dtype
        )
        self.deepen, self.lift = conv(strides=(2, 2)), conv()
        self.top_head, self.bottom_head = head(), head()
        if self.standardize:
            self.normalize_top = Standardize(self.axis_name, self.statistics_decay)
            self.normalize_bottom = Standardize(self.axis_name, self.statistics_decay)

    def __call__(
        self, images: jax.Array, *, train: bool, mask: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Images [B, H, W, C] -> a feature map [B, h, w, F], and z of the top [B, h', w', D]."""
        x = self.trunk(images, train=train)
        z = self.top_head(nn.relu(self.deepen(x)))
        return x, _standardized(self._of('top'), z, train, _by_image(mask))

    def bottom(
        self, x: jax.Array, top: jax.Array, *, train: bool, mask: jax.Array | None = None
    ) -> jax.Array:
        """z of the bottom [B, h, w, D] from the feature map and the top's quantized vectors."""
        lifted = nn.relu(self.lift(repeat_to(top.astype(self.dtype), x.shape[1:3])))
        z = self.bottom_head(jnp.concatenate([x, lifted], axis=-1))
        return _standardized(self._of('bottom'), z, train, _by_image(mask))

    def _of(self, level):
        return getattr(self, f'normalize_{level}') if self.standardize else None


def _by_image(mask: jax.Array | None) -> jax.Array | None:
    """bool [B] -> [B, 1, 1]."""
    return None if mask is None else mask[:, None, None]


class Decoder(nn.Module):
    """Vectors back to images: z [B, h, w, D] (or [B, 1, 1, D]) -> [B, H, W, C].

    Attributes:
      image_shape: (H, W, C) of the result.
      width: channels of the last hidden convolution.
      dtype: of the computation; parameters are float32.
    """

    image_shape: Sequence[int]
    width: int = 32
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        height, width, channels = self.image_shape
        compute = convolution(self.image_shape)
        low = (-(-height // 4), -(-width // 4))
        x = z.astype(self.dtype)
        if x.shape[1:3] == (1, 1):
            x = nn.Dense(low[0] * low[1] * 4 * self.width, dtype=self.dtype)(x)
            x = x.reshape(x.shape[0], *low, 4 * self.width)
        for factor, scale in ((4, 1), (2, 2), (1, 2)):
            # Windows of a recording, of height 1, have nothing to repeat.
            size = (x.shape[1] * scale if height > 1 else 1, x.shape[2] * scale)
            # Nearest-neighbour upsampling: a transposed convolution leaves a chequerboard.
            x = repeat_to(x, size)
            conv = nn.Conv(
                factor * self.width, (3, 3), dtype=self.dtype, conv_general_dilated=compute
            )
            x = nn.relu(conv(x))
        x = repeat_to(x, (height, width))
        return nn.Conv(channels, (3, 3), dtype=jnp.float32, conv_general_dilated=compute)(x)
