"""The networks of the comparison: encoder -> z -> quantizer (or none) -> pool -> head."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vqjax import nn as vq_nn
from vqjax.quantizers import base

ENCODERS = ('conv', 'resnet18')
BOTTLENECKS = ('vector', 'grid')


class Standardize(nn.Module):
    """Batch normalisation without scale or offset: every feature of z has mean 0 and variance 1.

    It stands before the bottleneck of every method. Normalising a vector over its own features is
    not enough: a direction shared by all images survives it, a projection turns that direction
    into a constant, and a bounded quantizer such as FSQ rounds every image to the same code.

    Attributes:
      axis_name: replicas whose batches are normalised together; None for one device.
    """

    axis_name: str | None = None

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
        keep = 0.0 if self.is_initializing() else jnp.where(total > 0, 0.9, 1.0)
        mean.value = keep * mean.value + (1 - keep) * batch_mean
        variance.value = keep * variance.value + (1 - keep) * batch_variance
        return centred * jax.lax.rsqrt(batch_variance + 1e-5)


def _sum(x: jax.Array, axes: tuple[int, ...], axis_name: str | None) -> jax.Array:
    """Sum over axes and, where an axis_name is given, over replicas."""
    total = jnp.sum(x, axis=axes)
    return total if axis_name is None else jax.lax.psum(total, axis_name)


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
        for factor, stride in ((1, 1), (2, 2), (4, 2)):
            x = nn.Conv(factor * self.width, (3, 3), strides=stride, dtype=self.dtype)(x)
            x = nn.relu(x)
        return x


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
        def norm(**kwargs: Any) -> nn.BatchNorm:
            return nn.BatchNorm(
                use_running_average=not train,
                momentum=0.9,
                dtype=self.dtype,
                axis_name=self.axis_name,
                **kwargs,
            )

        def conv(features: int, size: int, stride: int = 1) -> nn.Conv:
            return nn.Conv(
                features,
                (size, size),
                strides=stride,
                use_bias=False,
                kernel_init=nn.initializers.he_normal(),
                dtype=self.dtype,
            )

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


class Encoder(nn.Module):
    """Images to standardised vectors: [B, H, W, C] -> z float32 [B, 1, 1, D] or [B, h, w, D].

    Attributes:
      kind: 'conv' or 'resnet18'.
      features: D.
      bottleneck: 'vector' (one vector an image) or 'grid' (one a place of the feature map).
      axis_name: replicas that share batch statistics; None for one device.
      dtype: of the computation; parameters are float32.
    """

    kind: str = 'conv'
    features: int = 128
    bottleneck: str = 'vector'
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images: jax.Array, *, train: bool, mask: jax.Array | None = None
    ) -> jax.Array:
        if self.kind == 'conv':
            x = ConvTrunk(dtype=self.dtype)(images, train=train)
        elif self.kind == 'resnet18':
            x = ResNet18(axis_name=self.axis_name, dtype=self.dtype)(images, train=train)
        else:
            raise ValueError(f'encoder is {self.kind!r}: choose one of {", ".join(ENCODERS)}')
        if self.bottleneck == 'vector':
            x = jnp.mean(x, axis=(1, 2), keepdims=True)
        elif self.bottleneck != 'grid':
            raise ValueError(
                f'bottleneck is {self.bottleneck!r}: choose one of {", ".join(BOTTLENECKS)}'
            )
        # No bias: the mean is taken off next, and noise is all that such a bias would follow.
        z = nn.Dense(self.features, use_bias=False, dtype=self.dtype)(x)
        if mask is not None:
            mask = jnp.broadcast_to(mask[:, None, None], z.shape[:-1])
        return Standardize(self.axis_name, name='standardize')(z, train=train, mask=mask)


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
        low = (-(-height // 4), -(-width // 4))
        x = z.astype(self.dtype)
        if x.shape[1:3] == (1, 1):
            x = nn.Dense(low[0] * low[1] * 4 * self.width, dtype=self.dtype)(x)
            x = x.reshape(x.shape[0], *low, 4 * self.width)
        for factor, scale in ((4, 1), (2, 2), (1, 2)):
            size = (x.shape[1] * scale, x.shape[2] * scale)
            # Nearest-neighbour upsampling: a transposed convolution leaves a chequerboard.
            x = jax.image.resize(x, (x.shape[0], *size, x.shape[3]), 'nearest')
            x = nn.relu(nn.Conv(factor * self.width, (3, 3), dtype=self.dtype)(x))
        x = jax.image.resize(x, (x.shape[0], height, width, x.shape[3]), 'nearest')
        return nn.Conv(channels, (3, 3), dtype=jnp.float32)(x)


def quantizer_variables(variables: Mapping[str, Any]) -> tuple[Any, Any]:
    """(params, state) of the quantizer of a model whose `Quantize` is the attribute `quantize`."""
    params = variables['params'].get('quantize', {}).get('quantizer', ())
    state = variables.get(vq_nn.COLLECTION, {}).get('quantize', {}).get('state', ())
    return params, state


class Output(NamedTuple):
    """What a Classifier returns.

    logits: float32 [B, classes]
    z: float32 [B, h, w, D], the encoder's output
    quantized: vqjax.Quantized of z, or None where there is no quantizer
    """

    logits: jax.Array
    z: jax.Array
    quantized: base.Quantized | None


class Classifier(nn.Module):
    """Encoder -> Quantize (or nothing) -> mean over places -> head with one hidden layer.

    The head is the same for every method and starts by standardising its input.

    Attributes:
      num_classes: length of the logits.
      quantizer: any quantizer, or None for the unquantized baseline.
      encoder, features, bottleneck, axis_name, dtype: as in Encoder.
    """

    num_classes: int
    quantizer: base.Quantizer | None = None
    encoder: str = 'conv'
    features: int = 128
    bottleneck: str = 'vector'
    axis_name: str | None = None
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.encode = Encoder(
            self.encoder, self.features, self.bottleneck, self.axis_name, self.dtype
        )
        if self.quantizer is not None:
            self.quantize = vq_nn.Quantize(self.quantizer, self.axis_name)
        self.standardize = Standardize(self.axis_name)
        self.hidden = nn.Dense(self.features, dtype=self.dtype)
        self.logits = nn.Dense(self.num_classes)

    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool,
        update: bool | None = None,
        mask: jax.Array | None = None,
    ) -> Output:
        """Classifies images [B, H, W, C].

        Args:
          train: batch statistics come from this batch and are updated.
          update: codebook statistics are updated; None means as `train`.
          mask: bool [B], True = real; other images count in no statistics.
        """
        z = self.encode(images, train=train, mask=mask)
        quantized, pooled = None, z
        if self.quantizer is not None:
            quantized = self.requantize(z, train=train if update is None else update, mask=mask)
            pooled = quantized.z_q
        return Output(self.classify(pooled, train=train, mask=mask), z, quantized)

    def classify(self, z_q: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Logits float32 [B, classes] of quantized vectors [B, h, w, D]."""
        # Quantizers differ in the scale of what they return, and a head learns at that scale.
        pooled = self.standardize(jnp.mean(z_q, axis=(1, 2)), train=train, mask=mask)
        return self.logits(nn.relu(self.hidden(pooled)).astype(jnp.float32))

    def represent(self, images: jax.Array) -> jax.Array:
        """Vectors z [B, h, w, D] of images [B, H, W, C], as in evaluation."""
        return self.encode(images, train=False)

    def requantize(
        self, z: jax.Array, *, train: bool, mask: jax.Array | None = None
    ) -> base.Quantized:
        """Quantizes z [B, h, w, D] alone; with `train`, updates the codebook statistics from it."""
        if mask is not None:
            mask = jnp.broadcast_to(mask[:, None, None], z.shape[:-1])
        return self.quantize(z, train=train, mask=mask)
