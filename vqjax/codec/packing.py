"""Codes as a stream of bits, each code as wide as its number of codes needs."""

from __future__ import annotations

import math

import numpy as np

from vqjax.quantizers import Quantizer

# A multiple of 8, so that every slice of this many vectors ends on a byte.
_SLICE = 2**14


def code_widths(quantizer: Quantizer, masked: bool = False) -> np.ndarray:
    """Bits of each code of a vector in a packed stream: ceil(log2 K), int [*code_shape].

    Their sum is `quantizer.bits` where every K is a power of two, and otherwise up to a bit a code
    above it: FSQ with levels [8, 5, 5, 5] has 1000 codes, 9.97 bits, and takes 10. With `masked`
    there is room for -1 too, ceil(log2(K + 1)).
    """
    return np.vectorize(lambda number: (int(number) - 1 + masked).bit_length(), [np.int64])(
        code_numbers(quantizer)
    )


def code_numbers(quantizer: Quantizer) -> np.ndarray:
    """K of each code of a vector, int64 [*code_shape]: stages may differ."""
    return np.asarray(quantizer.code_sizes, np.int64)


def pack(quantizer: Quantizer, codes: np.ndarray, masked: bool = False) -> np.ndarray:
    """Codes as bits, vector after vector, the most significant bit of each code first.

    Args:
      quantizer: what made the codes.
      codes: integers [..., *code_shape], none of them -1 unless masked.
      masked: whether codes may be -1 (a masked vector, a dropped stage), which is written as K.

    Returns:
      uint8 [ceil(vectors * sum(code_widths) / 8)]; the last byte is filled up with zeros.

    Raises:
      ValueError: for codes of another shape or out of range (-1 has no bits without `masked`).
    """
    codes = check_codes(quantizer, codes, lowest=-1 if masked else 0)
    widths = code_widths(quantizer, masked).reshape(-1)
    rows = codes.reshape(-1, len(widths))
    rows = np.where(rows < 0, code_numbers(quantizer).reshape(-1), rows).astype(np.uint32)
    # Column j of the bits of a vector is bit `places[j]` of its code number `owners[j]`.
    owners = np.repeat(np.arange(len(widths)), widths)
    places = _places(widths)
    parts = [
        np.packbits((rows[first : first + _SLICE, owners] >> places & 1).astype(np.uint8))
        for first in range(0, len(rows), _SLICE)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, np.uint8)


def unpack(
    quantizer: Quantizer,
    packed: np.ndarray,
    shape: int | tuple[int, ...],
    masked: bool = False,
) -> np.ndarray:
    """The codes that `pack` made a stream of.

    Args:
      quantizer: what made the codes.
      packed: uint8 [n], or bytes.
      shape: leading axes of the codes, or how many vectors; the bytes alone do not tell.
      masked: what `pack` was told.

    Returns:
      int32 [*shape, *code_shape].

    Raises:
      ValueError: for a shape that is none, a stream of another length, or one that holds a code
        out of range or a bit after the last code.
    """
    shape = tuple(shape) if isinstance(shape, tuple | list) else (shape,)
    if not all(_is_count(size) for size in shape):
        raise ValueError(f'shape must be a number of vectors, or several, got {shape}')
    widths = code_widths(quantizer, masked).reshape(-1)
    number, bits = math.prod(shape), int(widths.sum())
    if isinstance(packed, bytes | bytearray | memoryview):
        packed = np.frombuffer(packed, np.uint8)
    packed = np.asarray(packed)
    expected = -(-number * bits // 8)
    if packed.dtype != np.uint8 or packed.shape != (expected,):
        raise ValueError(
            f'packed must be {expected} bytes (uint8) for {number} vectors of {bits} bits, '
            f'got {packed.dtype} of shape {packed.shape}'
        )
    if expected and int(packed[-1]) & ((1 << 8 * expected - number * bits) - 1):
        raise ValueError('packed has bits after its last code: it is cut, shifted or changed')
    owners, places = np.repeat(np.arange(len(widths)), widths), _places(widths)
    codes = np.zeros((number, len(widths)), np.int32)
    for first in range(0, number, _SLICE):
        rows = codes[first : first + _SLICE]
        start = first * bits // 8
        piece = packed[start : start - (-len(rows) * bits // 8)]
        flags = np.unpackbits(piece, count=len(rows) * bits).reshape(len(rows), bits)
        for column in range(len(widths)):
            own = owners == column
            rows[:, column] = flags[:, own].astype(np.int32) @ (1 << places[own])
    if masked:
        codes = np.where(codes == code_numbers(quantizer).reshape(-1), -1, codes)
    codes = codes.reshape(*shape, *quantizer.code_shape)
    return check_codes(quantizer, codes, lowest=-1 if masked else 0)


def check_codes(quantizer: Quantizer, codes: np.ndarray, lowest: int = -1) -> np.ndarray:
    """`codes` as int32, if they are integers [..., *code_shape] within [lowest, K).

    An empty list is no codes: int32 [0, *code_shape].

    Raises:
      ValueError: otherwise.
    """
    shape = quantizer.code_shape
    if isinstance(codes, list | tuple) and not codes:
        codes = np.zeros((0, *shape), np.int32)
    if isinstance(codes, np.ma.MaskedArray) and np.issubdtype(codes.dtype, np.integer):
        codes = codes.astype(np.int64).filled(-1)
    codes = np.asarray(codes)
    if (
        not np.issubdtype(codes.dtype, np.integer)
        or codes.shape[codes.ndim - len(shape) :] != shape
    ):
        raise ValueError(
            f'codes must be integers of shape [..., {", ".join(map(str, shape))}], '
            f'got {codes.dtype} of shape {codes.shape}'
        )
    numbers = code_numbers(quantizer)
    wrong = (codes < lowest) | (codes >= numbers)
    if wrong.any():
        most = np.unique(numbers) - 1
        raise ValueError(
            f'codes must be from {lowest} to {" or ".join(map(str, most))}'
            f'{"" if len(most) == 1 else ", by stage"}, got {codes.min()} to {codes.max()}'
        )
    return codes.astype(np.int32)


def _is_count(size):
    return isinstance(size, int | np.integer) and not isinstance(size, bool) and size >= 0


def _places(widths):
    """Of every bit of a vector its place in its code, most significant first: int32 [bits]."""
    return np.concatenate([np.arange(width)[::-1] for width in widths]).astype(np.int32)
