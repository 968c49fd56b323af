"""The encoder of a training run: images to the vectors that its quantizer sees."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from vqjax.codec.structure import structure
from vqjax.encoders import Encoder
from vqjax.quantizers import Quantizer, guard_codebooks, make

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
        lists = {name: tuple(fields[name]) for name in ('image_shape', 'mean', 'std')}
        encoder = cls(
            **(fields | lists), variables=traverse_util.unflatten_dict(variables, sep='/')
        )
        encoder._check()
        return encoder

    def _check(self):
        """Raise ValueError unless the variables are those of such an encoder, and finite."""
        whole = [self.features, self.width, *self.image_shape]
        if len(self.image_shape) != 3 or not all(
            type(size) is int and 0 < size < 2**16 for size in whole
        ):
            raise ValueError(f"an encoder's sizes must be integers above 0, got {whole}")
        pixels = np.asarray([self.mean, self.std], np.float64)
        if pixels.shape != (2, self.image_shape[2]) or not (pixels[1] > 0).all():
            raise ValueError(f'mean and std must be numbers by channel, got {pixels}')
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


def read_run(
    workdir: str | os.PathLike, method: str, seed: int
) -> tuple[ImageEncoder, Quantizer, Any, Any, dict[str, Any]]:
    """(encoder, quantizer, params, state, info) of a finished run; see `Codec.from_workdir`."""
    workdir = pathlib.Path(workdir)
    if not (workdir / 'config.json').is_file():
        raise ValueError(f'{workdir} is no workdir of train.py: it has no config.json')
    config = json.loads((workdir / 'config.json').read_text())
    quantized = sorted(name for name, spec in config['quantizers'].items() if spec is not None)
    if method not in quantized:
        raise ValueError(f'method must be one with a quantizer, {quantized}, got {method!r}')
    record = workdir / 'finished' / method / f'seed_{seed}.json'
    if not record.is_file():
        done = sorted(
            str(p.relative_to(workdir / 'finished')) for p in workdir.glob('finished/*/*')
        )
        raise ValueError(
            f'{method} with seed {seed} is not finished in {workdir}; finished: {done}'
        )
    raw = read_checkpoint(workdir / 'checkpoints' / method / f'seed_{seed}')
    config |= config['overrides'].get(method, {})
    if config['bottleneck'] == 'two_level':
        raise ValueError(
            f'{method} has bottleneck two_level: its bottom codes depend on the top ones, which a '
            'codec of one quantizer cannot follow; use a method with bottleneck vector or grid'
        )
    finished = json.loads(record.read_text())
    images = finished['images']
    params = raw['ema_params'] if config['ema_decay'] else raw['params']
    variables = {
        'params': params['encode'],
        'batch_stats': raw['stats'].get('batch_stats', {}).get('encode', {}),
    }
    encoder = ImageEncoder(
        config['encoder'],
        config['features'],
        config['bottleneck'],
        config['dtype'],
        tuple(images['shape']),
        tuple(images['mean']),
        tuple(images['std']),
        variables,
        config['width'],
        config['standardize'],
    )
    quantizer = make(config['quantizers'][method])
    if config['guard']:
        quantizer = guard_codebooks(quantizer, least=float(images['num_classes']))
    like = structure(quantizer, config['features'])
    parts = (
        params.get('quantize', {}).get('quantizer', ()),
        raw['stats'].get('codebook_stats', {}).get('quantize', {}).get('state', ()),
    )
    params, state = (filled(*pair) for pair in zip(like, parts, strict=True))
    result = finished['result']
    info = {'dataset': config['dataset'], 'method': method, 'seed': seed}
    return encoder, quantizer, params, state, info | {'test_accuracy': result['accuracy']}


def read_checkpoint(directory: pathlib.Path) -> dict[str, Any]:
    """The state in the newest checkpoint as nested dicts, whatever it was made of."""
    import orbax.checkpoint as ocp

    steps = [int(p.name) for p in directory.glob('*') if p.name.isdigit()]
    if not steps:
        raise ValueError(f'{directory} has no checkpoint')
    path = (directory / str(max(steps)) / 'state').absolute()
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            return checkpointer.restore(path)
        except Exception as error:  # whatever a damaged file makes orbax raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f'checkpoint {path} cannot be read ({reason[:200]}): run train.py there again'
            ) from error


def filled(like: Any, raw: Any) -> Any:
    """The tree `like` with the arrays that stand at its paths in nested dicts and lists."""

    def pick(path, _):
        value = raw
        for part in path:
            name = getattr(part, 'name', getattr(part, 'idx', getattr(part, 'key', None)))
            value = value[name] if isinstance(value, list) else value[str(name)]
        return value

    return jax.tree_util.tree_map_with_path(pick, like)
