"""Codes of sessions as the recursions take them, and what of them is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from vqjax.ops.serialization import exported

# Codes of sessions as a caller may have them: arrays, masked arrays of NumPy, or nested lists.
Codes = ArrayLike | Sequence[Any]


@exported
class Sessions(NamedTuple):
    """B sessions of T steps, time first.

    codes: int32 [T, B, C]; -1 where there is no evidence.
    moves: bool [T, B], whether the state may change from the step before to this one: from the
      second step of a session to its last. A session lasts from its first code to its last one.
    inside: bool [T, B], the steps of the session, gaps among them.
    """

    codes: jax.Array
    moves: jax.Array
    inside: jax.Array


def as_codes(codes: Codes) -> jax.Array | np.ndarray:
    """Codes as an array; entries that an array of NumPy masks are missing."""
    if isinstance(codes, np.ma.MaskedArray) and np.issubdtype(codes.dtype, np.integer):
        return np.ma.filled(codes.astype(np.int64), -1)
    return codes if isinstance(codes, jax.Array) else np.asarray(codes)


def check_codes(
    codes: jax.Array, mask: jax.Array | None, sizes: tuple[int, ...], single: bool
) -> None:
    """Raise ValueError unless these are sessions of codes; see `HSMM`."""
    shape = '[..., T]' if single else f'[..., T, {len(sizes)}]'
    if not jnp.issubdtype(codes.dtype, jnp.integer):
        raise ValueError(f'codes must be integers {shape}, got {codes.dtype}: encode vectors first')
    least = 1 if single else 2
    if codes.ndim < least or not (single or codes.shape[-1] == len(sizes)):
        raise ValueError(
            f'codes must be {shape}, as num_codes says, got codes of shape {codes.shape}'
        )
    steps = codes.shape if single else codes.shape[:-1]
    if not all(steps):
        raise ValueError(f'codes of shape {codes.shape} hold no step: leave empty sessions out')
    if mask is not None and (mask.dtype != bool or mask.shape != steps):
        raise ValueError(
            f'mask must be bool {steps}, True where a step is real, got {mask.dtype} {mask.shape}'
        )


def check_values(codes, mask, sizes: tuple[int, ...], single: bool, whole: bool = True) -> None:
    """Raise ValueError for codes beyond K and sessions without any; where values are known.

    whole: whether these are all steps of the sessions, of which one at least has a code.
    """
    if any(isinstance(x, jax.core.Tracer) for x in (codes, mask)):
        return
    codes = np.asarray(codes)[..., None] if single else np.asarray(codes)
    real = codes >= 0 if mask is None else (codes >= 0) & np.asarray(mask)[..., None]
    beyond = real & (codes >= np.asarray(sizes))
    if beyond.any():
        place = tuple(int(i) for i in np.argwhere(beyond)[0])
        raise ValueError(
            f'codes holds {codes[place]} at {place[:-1] if single else place}, and num_codes is '
            f'{sizes[place[-1]]}: codes lie in [0, num_codes), -1 where one is missing'
        )
    empty = ~real.any((-2, -1))
    if whole and empty.any():
        which = tuple(int(i) for i in np.argwhere(empty)[0])
        raise ValueError(
            f'codes hold no real step in {int(empty.sum())} of {empty.size} sessions'
            + (f', the first at {which}' if which else '')
            + ': every one is masked or -1; leave such sessions out'
        )


def arranged(codes, mask, sizes: tuple[int, ...], single: bool) -> tuple[Sessions, tuple[int, ...]]:
    """Sessions of codes [..., T] or [..., T, C], and their leading axes."""
    codes = codes[..., None] if single else codes
    real = (codes >= 0) & (codes < jnp.asarray(sizes))
    if mask is not None:
        real &= mask[..., None]
    leading, (steps, axes) = codes.shape[:-2], codes.shape[-2:]
    # int32 first: of an unsigned dtype -1 would be the largest number.
    codes = jnp.where(real, codes.astype(jnp.int32), -1).reshape(-1, steps, axes)
    codes = jnp.moveaxis(codes, 1, 0)
    seen = jnp.any(codes >= 0, -1)
    begun = jnp.cumsum(seen, 0) > 0
    inside = begun & (jnp.cumsum(seen[::-1], 0)[::-1] > 0)
    moves = inside & jnp.roll(begun, 1, 0).at[0].set(False)
    return Sessions(codes, moves, inside), leading


def restored(values: jax.Array, leading: tuple[int, ...]) -> jax.Array:
    """[T, B, ...] -> [*leading, T, ...]."""
    values = jnp.moveaxis(values, 0, 1)
    return values.reshape(*leading, *values.shape[1:])
