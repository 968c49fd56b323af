"""The network of every run: encoder -> z -> quantizer (or none) -> pool -> head, and a decoder."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vqjax import nn as vq_nn
from vqjax import sensors
from vqjax.encoders import Decoder, Encoder, Size, Standardize, TwoLevelEncoder
from vqjax.quantizers import base
from vqjax.runfiles import ENCODER, HEAD, QUANTIZER
from vqjax.trainer.step import two_level


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
      grids: (height, width) of top and bottom, where the bottleneck is `two_level`. Both are then
        packed in one: z is [B, 1, L, D], and the quantizer a `Levels`; see `levels.pack`.
      statistics_decay: as in Encoder, of the head's input too.
      encoded: images are z already, see `features`; the encoder is not called.
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
    grids: tuple[Size, ...] = ()
    statistics_decay: float = 0.9
    encoded: bool = False

    def setup(self) -> None:
        # Named as those who read checkpoints know them, whatever the attributes are called.
        normalize, hidden, logits = HEAD
        common = (self.axis_name, self.dtype, self.width, self.standardize, self.statistics_decay)
        self.encode: Any = (
            TwoLevelEncoder(self.encoder, self.features, *common, name=ENCODER)
            if self.grids
            else Encoder(self.encoder, self.features, self.bottleneck, *common, name=ENCODER)
        )
        if self.quantizer is not None:
            bridge = two_level.QuantizeLevels if self.grids else self.bridge
            self.quantize = bridge(self.quantizer, self.axis_name, name=QUANTIZER)
        if self.standardize:
            self.normalize = Standardize(self.axis_name, self.statistics_decay, name=normalize)
        self.hidden = nn.Dense(self.features, dtype=self.dtype, name=hidden)
        self.logits = nn.Dense(self.num_classes, name=logits)
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

        Windows of recordings are images [B, 1, T, C], in which NaN stands for missing steps.

        Args:
          train: batch statistics come from this batch and are updated.
          update: codebook statistics are updated; None means as `train`.
          mask: bool [B], True = real; other images count in no statistics.
          continuous: head and decoder read z; nothing is quantized.
          frozen: the encoder is as in evaluation, its batch statistics stand still.
        """
        quantizes = self.quantizer is not None and not continuous
        update = train if update is None else update
        quantized, real = None, self.real_places(images, mask)
        if self.grids:
            z, quantized = self._two_levels(
                images, train=train, update=update, mask=mask, quantizes=quantizes, frozen=frozen
            )
        else:
            z = images
            if not self.encoded:
                z = self.encode(images, train=train and not frozen, mask=mask)
            if frozen:
                z = jax.lax.stop_gradient(z)
            if quantizes:
                quantized = self.requantize(z, train=update, real=real)
        read = z if quantized is None else quantized.z_q
        logits = self.classify(read, train=train, real=real)
        decoded = None if self.decoded_shape is None else self.decode(read)
        return Output(logits, z=z, quantized=quantized, decoded=decoded)

    def _two_levels(self, images, train, update, mask, quantizes, frozen):
        """z and Quantized (or None) of top and bottom, packed."""
        stop = jax.lax.stop_gradient if frozen else lambda x: x
        how = {'train': train and not frozen, 'mask': mask}
        x, top = self.encode(images, **how)

        def bottom(read: jax.Array) -> jax.Array:
            return stop(self.encode.bottom(x, read, **how))

        if quantizes:
            return self.quantize.in_order(stop(top), bottom=bottom, train=update, mask=mask)
        return two_level.pack([stop(top), bottom(top)]), None

    def real_places(self, images: jax.Array, mask: jax.Array | None = None) -> jax.Array | None:
        """Which places of z count, see `sensors.real_places`; images [B, H, W, C], mask [B]."""
        return sensors.real_places(self.encoder, self.bottleneck, images, mask)

    def classify(self, z_q: jax.Array, *, train: bool, real: jax.Array | None = None) -> jax.Array:
        """Logits float32 [B, classes] of quantized vectors [B, h, w, D]; real: see `real_places`.

        Of an image every place is read, of a recording those that count.
        """
        if self.grids:
            z_q = two_level.side_by_side(z_q, self.grids)
        pooled = sensors.pool(z_q, real if self.encoder == 'sensor' else None)
        if self.standardize:
            # Quantizers differ in the scale of what they return, and a head learns at that scale.
            mask = None if real is None else jnp.any(real, axis=(1, 2))
            pooled = self.normalize(pooled, train=train, mask=mask)
        return self.logits(nn.relu(self.hidden(pooled)).astype(jnp.float32))

    def decode(self, z_q: jax.Array) -> jax.Array:
        """Images float32 [B, H, W, C], standardised as the input is, of vectors [B, h, w, D]."""
        if self.grids:
            z_q = two_level.side_by_side(z_q, self.grids)
        return self.decoder(z_q)

    def represent(self, images: jax.Array) -> jax.Array:
        """Vectors z [B, h, w, D] of images [B, H, W, C], as in evaluation."""
        if self.grids:
            return self._two_levels(
                images, train=False, update=False, mask=None, quantizes=False, frozen=False
            )[0]
        return images if self.encoded else self.encode(images, train=False)

    def requantize(
        self, z: jax.Array, *, train: bool, real: jax.Array | None = None
    ) -> base.Quantized:
        """Quantizes z [B, h, w, D] alone; with `train`, updates the codebook statistics from it.

        real: which places count, see `real_places`.
        """
        if real is not None:
            real = jnp.broadcast_to(real, z.shape[:-1])
        return self.quantize(z, train=train, mask=real)
