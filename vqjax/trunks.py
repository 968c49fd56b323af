"""Convolutions that make feature maps of images; an encoder is one of them with a head."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from vqjax import ops

_SMALL = 144  # pixels of an image


def are_small(image_shape: Sequence[int]) -> bool:
    """Whether convolutions of such images (H, W, C) are taken as products of patches: on a CPU."""
    return jax.default_backend() == 'cpu' and image_shape[0] * image_shape[1] <= _SMALL


def convolution(image_shape: Sequence[int]) -> Any:
    """What nn.Conv computes with, in a network for images (H, W, C)."""
    return ops.convolve if are_small(image_shape) else lax.conv_general_dilated


def max_pool(x: jax.Array) -> jax.Array:
    """`nn.max_pool(x, (2, 2), (2, 2), 'SAME')`: float [B, H, W, C] -> [B, ceil(H/2), ceil(W/2), C].

    Its gradient is four to nine times faster on a CPU, where XLA scatters that of a window in one
    thread. Equal maxima of a window share the gradient.
    """
    batch, height, width, channels = x.shape
    odd = ((0, 0), (0, height % 2), (0, width % 2), (0, 0))
    x = jnp.pad(x, odd, constant_values=-jnp.inf)
    return x.reshape(batch, -(-height // 2), 2, -(-width // 2), 2, channels).max((2, 4))


class ConvTrunk(nn.Module):
    """Three 3x3 convolutions, the last two of stride 2: [B, H, W, C] -> [B, H/4, W/4, 4 * width].

    Attributes:
      width: channels of the first convolution.
      dtype: of the computation; parameters are float32.
    """

    width: int = 32
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        del train  # nothing here differs between training and evaluation
        compute = convolution(x.shape[1:])
        for factor, stride in ((1, 1), (2, 2), (4, 2)):
            x = nn.Conv(
                factor * self.width,
                (3, 3),
                strides=stride,
                dtype=self.dtype,
                conv_general_dilated=compute,
            )(x)
            x = nn.relu(x)
        return x


class ResNet9(nn.Module):
    """Eight 3x3 convolutions with two residual blocks: [B, H, W, C] -> [B, H/8, W/8, 8 * width].

    The network that Page 2018, "How to Train Your ResNet", trains on CIFAR-10 in minutes, where
    width is 64: pooled before it is normalised, residual blocks after the first and the last pool.

    Attributes:
      width: channels of the first convolution.
      axis_name: replicas whose batch statistics are averaged; None for one device.
      dtype: of the computation; parameters and statistics are float32.
    """

    width: int = 32
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        def block(x: jax.Array, features: int, pool: bool = False) -> jax.Array:
            x = _conv(features, 3, dtype=self.dtype)(x)
            if pool:
                x = max_pool(x)
            return nn.relu(_norm(train, self.axis_name, self.dtype)(x))

        x = block(x, self.width)
        for factor, residual in ((2, True), (4, False), (8, True)):
            x = block(x, factor * self.width, pool=True)
            if residual:
                x = x + block(block(x, factor * self.width), factor * self.width)
        return x


def _norm(train: bool, axis_name: str | None, dtype: Any, **kwargs: Any) -> nn.BatchNorm:
    return nn.BatchNorm(
        use_running_average=not train, momentum=0.9, dtype=dtype, axis_name=axis_name, **kwargs
    )


def _conv(features: int, size: int, stride: int = 1, dtype: Any = jnp.float32) -> nn.Conv:
    """A convolution before a normalisation, which takes its bias off."""
    return nn.Conv(
        features,
        (size, size),
        strides=stride,
        use_bias=False,
        kernel_init=nn.initializers.he_normal(),
        dtype=dtype,
    )


class ResNet18(nn.Module):
    """ResNet-18 for small images: 3x3 stem, no first pool: [B, H, W, C] -> [B, H/8, W/8, 512].

    He et al. 2015, "Deep Residual Learning for Image Recognition", section 4.2 (the CIFAR stem)
    with the widths and depths of its table 1.

    Attributes:
      axis_name: replicas whose batch statistics are averaged; None for one device.
      dtype: of the computation; parameters and statistics are float32.
    """

    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        norm = functools.partial(_norm, train, self.axis_name, self.dtype)
        conv = functools.partial(_conv, dtype=self.dtype)
        x = nn.relu(norm()(conv(64, 3)(x)))
        for features, first_stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            for stride in (first_stride, 1):
                y = nn.relu(norm()(conv(features, 3, stride)(x)))
                # A zero scale makes each block start as the identity.
                y = norm(scale_init=nn.initializers.zeros)(conv(features, 3)(y))
                if x.shape != y.shape:
                    x = norm()(conv(features, 1, stride)(x))
                x = nn.relu(x + y)
        return x
