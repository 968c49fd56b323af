"""The network of every run: encoder -> z -> quantizer (or none) -> pool -> head, and a decoder."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vqjax import nn as vq_nn
from vqjax.encoders import Decoder, Encoder, Standardize
from vqjax.quantizers import base

# Attributes of a Classifier, under whose names its variables stand.
ENCODER, QUANTIZER, HEAD = 'encode', 'quantize', ('normalize', 'hidden', 'logits')


def quantizer_variables(variables: Mapping[str, Any]) -> tuple[Any, Any]:
    """(params, state) of the quantizer among the variables of a Classifier."""
    params = variables['params'].get(QUANTIZER, {}).get('quantizer', ())
    state = variables.get(vq_nn.COLLECTION, {}).get(QUANTIZER, {}).get('state', ())
    return params, state


class Output(NamedTuple):
    """What a Classifier returns.

    logits: float32 [B, classes]
    z: float32 [B, h, w, D], the encoder's output
    quantized: vqjax.Quantized of z, or None where z was not quantized
    decoded: float32 [B, H, W, C], or None without a decoder
    """

    logits: jax.Array
    z: jax.Array
    quantized: base.Quantized | None
    decoded: jax.Array | None


class Classifier(nn.Module):
    """Encoder -> Quantize (or nothing) -> mean over places -> head with one hidden layer.

    The head is the same for every method. A decoder, where there is one, reads what the head reads.

    Attributes:
      num_classes: length of the logits.
      quantizer: any quantizer, or None for the unquantized baseline.
      encoder, features, bottleneck, axis_name, dtype, width: as in Encoder.
      standardize: z, and what the head reads, have mean 0 and variance 1.
      decoded_shape: (H, W, C) of a decoder's images; None for no decoder.
      bridge: the Linen module around the quantizer.
    """

    num_classes: int
    quantizer: base.Quantizer | None = None
    encoder: str = 'conv'
    features: int = 128
    bottleneck: str = 'vector'
    axis_name: str | None = None
    dtype: Any = jnp.float32
    width: int = 32
    standardize: bool = True
    decoded_shape: tuple[int, int, int] | None = None
    bridge: Any = vq_nn.Quantize

    def setup(self) -> None:
        self.encode = Encoder(
            self.encoder,
            self.features,
            self.bottleneck,
            self.axis_name,
            self.dtype,
            self.width,
            self.standardize,
        )
        if self.quantizer is not None:
            self.quantize = self.bridge(self.quantizer, self.axis_name)
        if self.standardize:
            self.normalize = Standardize(self.axis_name)
        self.hidden = nn.Dense(self.features, dtype=self.dtype)
        self.logits = nn.Dense(self.num_classes)
        if self.decoded_shape is not None:
            self.decoder = Decoder(self.decoded_shape, self.width, self.dtype)

    def __call__(
        self,
        images: jax.Array,
        *,
        train: bool,
        update: bool | None = None,
        mask: jax.Array | None = None,
        continuous: bool = False,
        frozen: bool = False,
    ) -> Output:
        """Classifies images [B, H, W, C], and decodes them where there is a decoder.

        Args:
          train: batch statistics come from this batch and are updated.
          update: codebook statistics are updated; None means as `train`.
          mask: bool [B], True = real; other images count in no statistics.
          continuous: head and decoder read z; nothing is quantized.
          frozen: the encoder is as in evaluation, its batch statistics stand still.
        """
        z = self.encode(images, train=train and not frozen, mask=mask)
        if frozen:
            z = jax.lax.stop_gradient(z)
        quantized, read = None, z
        if self.quantizer is not None and not continuous:
            quantized = self.requantize(z, train=train if update is None else update, mask=mask)
            read = quantized.z_q
        logits = self.classify(read, train=train, mask=mask)
        decoded = None if self.decoded_shape is None else self.decode(read)
        return Output(logits, z, quantized, decoded)

    def classify(self, z_q: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Logits float32 [B, classes] of quantized vectors [B, h, w, D]."""
        pooled = jnp.mean(z_q, axis=(1, 2))
        if self.standardize:
            # Quantizers differ in the scale of what they return, and a head learns at that scale.
            pooled = self.normalize(pooled, train=train, mask=mask)
        return self.logits(nn.relu(self.hidden(pooled)).astype(jnp.float32))

    def decode(self, z_q: jax.Array) -> jax.Array:
        """Images float32 [B, H, W, C], standardised as the input is, of vectors [B, h, w, D]."""
        return self.decoder(z_q)

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
