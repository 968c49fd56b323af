"""The encoder of a training run: images to the vectors that its quantizer sees."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from vqjax.encoders import Encoder

# Images that go to the device at once.
_BATCH = 256


@dataclasses.dataclass(frozen=True, eq=False)
class ImageEncoder:
    """Images [n, H, W, C] -> vectors float32 [n, h, w, D] by the encoder of a training run.

    Integer images are raw pixels and are standardised here; floating point ones are taken as
    the trainer's data hands them out, standardised already.

    Fields:
      kind, features, bottleneck, dtype: those of `vqjax.encoders.Encoder`; features is D.
      image_shape: (H, W, C).
      mean, std: of the training pixels, by channel.
      variables: params and batch_stats of the encoder.
      width, standardize: those of `vqjax.encoders.Encoder`.
    """

    kind: str
    features: int
    bottleneck: str
    dtype: str
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    variables: dict[str, Any]
    width: int = 32
    standardize: bool = True

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Vectors float32 [n, h, w, D], at most 256 images on the device at once.

        Raises:
          ValueError: for images of another shape.
        """
        images = np.asarray(images)
        if not any(jnp.issubdtype(images.dtype, kind) for kind in (jnp.integer, jnp.floating)):
            raise ValueError(f'images must be integers or floating point, got {images.dtype}')
        if images.ndim != 4 or images.shape[1:] != tuple(self.image_shape):
            raise ValueError(
                f'images must be [n, {", ".join(map(str, self.image_shape))}], '
                f'got shape {images.shape}'
            )
        parts = []
        for first in range(0, max(len(images), 1), _BATCH):
            part = images[first : first + _BATCH]
            if np.issubdtype(part.dtype, np.integer):
                part = (part - np.float32(self.mean)) / np.float32(self.std)
            padded = np.zeros((_BATCH, *part.shape[1:]), np.float32)
            padded[: len(part)] = part
            parts.append(np.asarray(_apply(self._model, self.variables, padded))[: len(part)])
        return np.concatenate(parts)

    @property
    def _model(self):
        return Encoder(
            self.kind,
            self.features,
            self.bottleneck,
            dtype=jnp.dtype(self.dtype),
            width=self.width,
            standardize=self.standardize,
        )

    def to_plain(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """The fields as plain data, and the variables as arrays by name."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        variables = traverse_util.flatten_dict(fields.pop('variables'), sep='/')
        return fields, {name: np.asarray(value) for name, value in variables.items()}

    @classmethod
    def from_plain(cls, fields: dict[str, Any], variables: dict[str, np.ndarray]) -> ImageEncoder:
        """The inverse of `to_plain`.

        Raises:
          ValueError: for fields or variables that make no encoder.
        """
        names = {f.name for f in dataclasses.fields(cls)} - {'variables'}
        if not isinstance(fields, dict) or fields.keys() != names:
            raise ValueError(f'an encoder must be described by {sorted(names)}, got {fields!r:.99}')
        lists = {'image_shape', 'mean', 'std', 'labels'} & names
        lists = {name: tuple(fields[name]) for name in lists}
        encoder = cls(
            **(fields | lists), variables=traverse_util.unflatten_dict(variables, sep='/')
        )
        encoder.check_fields()
        return encoder

    def check_fields(self) -> None:
        """Raise ValueError unless the variables are those of such an encoder, and finite."""
        whole = [self.features, self.width, *self.image_shape]
        if len(self.image_shape) != 3 or not all(
            type(size) is int and 0 < size < 2**16 for size in whole
        ):
            raise ValueError(f"an encoder's sizes must be integers above 0, got {whole}")
        pixels = np.asarray([self.mean, self.std], np.float64)
        if pixels.shape != (2, self.image_shape[2]) or not (pixels[1] > 0).all():
            raise ValueError(f'mean and std must be numbers by channel, got {pixels.tolist()}')
        image = jax.ShapeDtypeStruct((1, *self.image_shape), jnp.float32)
        like = jax.eval_shape(
            lambda image: self._model.init(jax.random.key(0), image, train=False), image
        )
        given, expected = (
            {k: (v.shape, str(v.dtype)) for k, v in traverse_util.flatten_dict(tree).items()}
            for tree in (self.variables, like)
        )
        if given != expected:
            wrong = ['/'.join(k) for k in given | expected if given.get(k) != expected.get(k)]
            raise ValueError(f'variables of the encoder do not fit it: {sorted(wrong)[:4]}')
        for leaf in (pixels, *jax.tree.leaves(self.variables)):
            if not np.isfinite(np.asarray(leaf, np.float32)).all():
                raise ValueError('the encoder holds values that are not finite')


@functools.partial(jax.jit, static_argnums=0)
def _apply(model, variables, images):
    return model.apply(variables, images, train=False)
