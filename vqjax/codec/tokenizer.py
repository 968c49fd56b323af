"""Codec: a quantizer with its params and state, working on arrays of any length."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vqjax.atomic import replace_file
from vqjax.codec import entropy, files, packing
from vqjax.codec.images import ImageEncoder
from vqjax.codec.runs import read_run
from vqjax.codec.streams import SensorEncoder, Stream
from vqjax.codec.structure import check_like, check_values, describe, leaves, structure
from vqjax.quantizers import Quantizer

# Vectors that go to the device at once.
BATCH = 2**14


@dataclasses.dataclass(frozen=True, eq=False)
class Codec:
    """A trained quantizer as a tokenizer: vectors (or images, or recordings) to codes and back.

    What goes in and out are NumPy arrays of any length; the device sees a batch at a time.

    Fields:
      quantizer: any quantizer.
      params, state: as `init` returns them and training leaves them; placed on the device once.
      dim: D, the features of a vector; by default those that decode gives.
      info: plain data kept in the file, such as what `fit` measured.
      encoder: what turns images or recordings into vectors, where the codec is of a training run.

    Raises ValueError for params or state of another structure, shape or dtype than the
    quantizer's, or with values that no training leaves: not finite, or counts below 0.
    """

    quantizer: Quantizer
    params: Any
    state: Any
    dim: int | None = None
    info: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    encoder: ImageEncoder | None = None

    def __post_init__(self):
        for name in ('params', 'state'):
            object.__setattr__(self, name, jax.tree.map(jnp.asarray, getattr(self, name)))
        if self.dim is None:
            object.__setattr__(self, 'dim', self.decoded_dim)
        like = structure(self.quantizer, self.dim)
        check_like(self.params, self.state, like)
        check_values(self.params, self.state)

    @classmethod
    def from_workdir(cls, workdir: str | os.PathLike[str], method: str, seed: int = 0) -> Codec:
        """The codec of a finished training run: images or recordings -> codes.

        Args:
          workdir: folder that `train.py` wrote.
          method: name of one of its quantized methods.
          seed: which of its runs.

        Raises:
          ValueError: for a folder, method or seed that is not there, or not quantized.
        """
        encoder, quantizer, params, state, info = read_run(workdir, method, seed)
        return cls(quantizer, params, state, encoder.features, info, encoder)

    @property
    def bits(self) -> int:
        """Bits of one vector in a packed stream, see `pack`."""
        return int(packing.code_widths(self.quantizer).sum())

    @property
    def decoded_dim(self) -> int:
        """Features of a decoded vector: D, unless the quantizer is for targets only."""
        codes = jax.ShapeDtypeStruct(self.quantizer.code_shape, jnp.int32)
        try:
            vector = jax.eval_shape(self.quantizer.decode, self.params, self.state, codes)
        except (TypeError, ValueError, AttributeError, IndexError) as error:
            given = {k: describe(v) for k, v in leaves(self.params, self.state).items()}
            raise ValueError(f'params and state do not fit {self.quantizer!r}: {given}') from error
        return vector.shape[-1]

    @property
    def _at_once(self):
        return max(BATCH // math.prod(self.quantizer.grid), 1)

    def encode(self, z: np.ndarray) -> np.ndarray:
        """Codes of vectors: z [..., D] -> int32 [..., *code_shape], -1 where not finite.

        z is floating point of any width and byte order, an array of NumPy (mapped files too) or
        JAX, or lists; of a quantizer of grids z is [..., H, W, D], and so is what decode returns.
        With an encoder it takes images, see `encode_images`, or a recording, `encode_recording`.

        Raises:
          ValueError: for vectors (or images) of another shape, or of integers.
        """
        if isinstance(self.encoder, SensorEncoder):
            return self.encode_recording(z)
        if self.encoder is not None:
            return self.encode_images(z)
        return self._encode_vectors(self._check_vectors(z))

    def encode_images(self, images: np.ndarray) -> np.ndarray:
        """Codes of images [n, H, W, C], pixels as the dataset has them: int32 [n, h, w, ...].

        Raises:
          ValueError: for a codec without an encoder, or images of another shape.
        """
        if self.encoder is None:
            raise ValueError('this codec has no encoder: give vectors, or use Codec.from_workdir')
        if isinstance(self.encoder, SensorEncoder):
            raise ValueError('this codec is of recordings: use encode_recording')
        return self._encode_vectors(self.encoder(images))

    def encode_recording(self, signals: np.ndarray) -> np.ndarray:
        """Codes of a recording of any length, -1 where it is missing.

        Args:
          signals: [T, C], real numbers as the sensors give them; a step at which one of them is not
            finite is missing.

        Returns:
          int32 [n, *code_shape]: one for every 4 steps, n = ceil(T / 4), or with bottleneck
          'vector' one for every window.

        Raises:
          ValueError: for a codec of no recordings, signals of another shape, of fewer steps than a
            window, or all missing.
        """
        return self._tell(self._sensor_encoder().whole(signals), True)[1]

    def stream_init(self) -> Stream:
        """The state of a recording of which nothing has come yet: plain arrays and numbers.

        The three functions are pure: a state may be kept, sent, and gone on from more than once.

        Raises:
          ValueError: for a codec of no recordings.
        """
        return self._sensor_encoder().begin()

    def stream_step(self, stream: Stream, signals: np.ndarray) -> tuple[Stream, np.ndarray]:
        """Takes the next piece [T, C] of a recording, of any length: (new state, codes [n, ...]).

        The codes are those that are known now and were not before: a place is known `encoder.lag`
        steps after its first one. Together they are those of `encode_recording`, to the bit.

        Raises:
          ValueError: as `encode_recording`, for the shape.
        """
        encoder = self._sensor_encoder()
        return self._tell(encoder.take(stream, encoder.check(signals)), False)

    def stream_finish(self, stream: Stream) -> np.ndarray:
        """The codes that are left at the end of the recording, int32 [n, *code_shape]."""
        self._sensor_encoder()
        return self._tell(stream, True)[1]

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Vectors float32 [..., D] of codes [..., *code_shape]; zeros for -1.

        Raises:
          ValueError: for codes of another shape, type or range.
        """
        codes = packing.check_codes(self.quantizer, codes)
        shape, one = self.quantizer.code_shape, (*self.quantizer.grid, self.decoded_dim)
        lead = codes.shape[: codes.ndim - len(shape)]
        run = functools.partial(_decode, self.quantizer, self.params, self.state)
        rows = codes.reshape(math.prod(lead), *shape)
        vectors = _by_batch(run, rows, np.int32, one, np.float32, self._at_once)
        return vectors.reshape((*lead, *one))

    def error(self, z: np.ndarray) -> float:
        """Mean squared error of decode(encode(z)), over vectors and features: z [..., D].

        Vectors that are not finite count nowhere.

        Raises:
          ValueError: for vectors of another shape, or a quantizer that decodes into other spaces.
        """
        z, one = self._check_vectors(z), (*self.quantizer.grid, self.dim)
        rows = z.reshape(math.prod(z.shape[: z.ndim - len(one)]), *one)
        if self.decoded_dim != self.dim:
            raise ValueError(
                f'{self.quantizer!r} decodes to {self.decoded_dim} features, not the {self.dim} '
                'of z: it has no reconstruction error'
            )
        total, number = 0.0, 0
        for part in batches(rows, self._at_once):
            part = np.asarray(part, np.float32)
            finite = np.isfinite(part).all(-1)
            difference = (part - self.decode(self._encode_vectors(part)))[finite]
            total += float(np.sum(difference.astype(np.float64) ** 2))
            number += difference.size
        return total / number if number else float('nan')

    def pack(self, codes: np.ndarray, masked: bool = False) -> np.ndarray:
        """Codes [..., *code_shape] as a stream of `bits` a vector, uint8 [n]; see `codec.pack`."""
        return packing.pack(self.quantizer, codes, masked)

    def unpack(
        self, packed: np.ndarray, shape: int | tuple[int, ...], masked: bool = False
    ) -> np.ndarray:
        """Codes int32 [*shape, *code_shape] of such a stream; see `codec.unpack`."""
        return packing.unpack(self.quantizer, packed, shape, masked)

    def save_codes(
        self,
        path: str | os.PathLike[str],
        codes: np.ndarray,
        model: str | entropy.Logits = 'static',
    ) -> entropy.CodedSize:
        """Write codes [..., *code_shape] to one file, entropy coded, whole or not at all.

        Args:
          path: the file.
          codes: as `encode` gives them; -1 allowed.
          model: 'static', 'adaptive', 'fixed' or logits, see `codec.compress`.

        Returns:
          The size of the file beside the fixed-width one and the entropy; printed it is a sentence.

        Raises:
          ValueError, ImportError: as `codec.compress`.
        """
        coded, size = entropy.compress_and_tell(self.quantizer, codes, model)
        replace_file(path, coded)
        return size

    def load_codes(
        self, path: str | os.PathLike[str], logits: entropy.Logits | None = None
    ) -> np.ndarray:
        """The codes int32 [..., *code_shape] of a file that `save_codes` wrote.

        Args:
          path: the file.
          logits: those that it was written with, if any.

        Raises:
          ValueError: as `codec.decompress`, naming the file.
          FileNotFoundError: for no file.
          ImportError: without constriction (extra `entropy`).
        """
        data = pathlib.Path(path).read_bytes()
        try:
            return entropy.decompress(self.quantizer, data, logits)
        except ValueError as error:
            raise ValueError(f'{path}: {error}') from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the codec to one safetensors file, whole or not at all.

        Raises:
          ValueError: for a quantizer with a function of your own, which has no spec.
          ImportError: without safetensors (extra `codec`).
        """
        files.write(
            path, self.quantizer, self.params, self.state, self.dim, self.info, self.encoder
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Codec:
        """Read a codec that `save` wrote.

        Raises:
          ValueError: for a file that is no codec, is cut short, was changed, is of a newer format,
            or holds what no codec can be made of, naming the file.
          FileNotFoundError: for no file.
          ImportError: without safetensors (extra `codec`).
        """
        return files.read(path, cls)

    def _sensor_encoder(self) -> SensorEncoder:
        if not isinstance(self.encoder, SensorEncoder):
            raise ValueError('this codec is of no recordings: make it of a run with encoder sensor')
        if self.quantizer.grid:
            raise ValueError(
                f'{self.quantizer!r} quantizes whole windows, and recordings have any length: use '
                'a quantizer of vectors'
            )
        return self.encoder

    def _tell(self, stream, ended):
        """(the stream without what is told, codes that were not told before)."""
        encoder, known = self.encoder, self.encoder.known(stream, ended)
        # Every block has the same size, so that codes do not depend on how many are new.
        parts = [self._encode_vectors(z)[new] for z, new in encoder.blocks(stream, known)]
        none = np.zeros((0, *self.quantizer.code_shape), np.int32)
        return encoder.forget(stream, known), np.concatenate([none, *parts])

    def _encode_vectors(self, z):
        first = z.ndim - 1 - len(self.quantizer.grid)
        lead, shape = z.shape[:first], self.quantizer.code_shape
        run = functools.partial(_encode, self.quantizer, self.params, self.state)
        rows = z.reshape(math.prod(lead), *z.shape[first:])
        codes = _by_batch(run, rows, np.float32, shape, np.int32, self._at_once)
        return codes.reshape((*lead, *shape))

    def _check_vectors(self, z):
        z, one = check_floating(z), (*self.quantizer.grid, self.dim)
        if z.shape[max(z.ndim - len(one), 0) :] != one:
            grid = f' on a grid {self.quantizer.grid}' * bool(self.quantizer.grid)
            raise ValueError(
                f'z must have {self.dim} features{grid}, those of this codec, got shape {z.shape}'
            )
        return z


@functools.partial(jax.jit, static_argnums=0)
def _encode(quantizer, params, state, z):
    return quantizer.quantize(params, state, z).codes


@functools.partial(jax.jit, static_argnums=0)
def _decode(quantizer, params, state, codes):
    return quantizer.decode(params, state, codes)


def batches(rows: np.ndarray, most: int = BATCH) -> Iterator[np.ndarray]:
    """Slices of at most so many rows."""
    for first in range(0, len(rows), most):
        yield rows[first : first + most]


def check_floating(z: Any) -> np.ndarray:
    """z as an array of NumPy, if it is of floating point numbers; NaN where NumPy masks an entry.

    Raises:
      ValueError: for anything else: integers are codes or pixels, not vectors.
    """
    try:
        z = z if isinstance(z, np.ma.MaskedArray) else np.asarray(z)
    except ValueError as error:  # lists of different lengths
        raise ValueError(f'z must be vectors [..., D]: {error}') from None
    # bfloat16 is floating point to JAX, not to NumPy.
    if not jnp.issubdtype(z.dtype, jnp.floating):
        raise ValueError(
            f'z must be floating point, got {z.dtype} of shape {z.shape}: codes go to decode, and '
            "whole numbers that are vectors are made so by z.astype('float32')"
        )
    return np.ma.filled(z, np.nan)


def _by_batch(run, rows, given, shape, dtype, most):
    """run(part) of every part of at most `most` rows, of dtype `given`: [n, *shape].

    The device takes bytes as they are, so other byte orders must not reach it.
    """
    result = np.empty((len(rows), *shape), dtype)
    first = 0
    for part in batches(rows, most):
        # Padded to a power of two: few shapes, so few compilations.
        size = min(most, 1 << (len(part) - 1).bit_length())
        padded = np.zeros((size, *part.shape[1:]), given)
        padded[: len(part)] = part
        result[first : first + len(part)] = np.asarray(run(padded))[: len(part)]
        first += len(part)
    return result
