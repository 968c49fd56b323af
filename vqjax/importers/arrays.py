"""What arrays of another library must be, and the codebook that they give."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from vqjax import ops
from vqjax.quantizers import VQEMAState


class Book:
    """Counts [..., K] and sums [..., K, D] that give an imported codebook."""

    def __init__(self, counts, sums):
        self.counts, self.sums = counts, sums

    @classmethod
    def checked(cls, entries, metric, eps, floor=None):
        """From imported counts [..., K], codebook and sums [..., K, D], in this order by key.

        A count below `floor` (eps where None is given) and not above 0 is that.
        """
        check_shapes(entries)
        of_counts, of_codebook, _ = entries
        counts, codebook, sums = (finite(key, value) for key, value in entries.items())
        if (counts < 0).any():
            raise ValueError(f'{of_counts} holds {counts.min()}: it counts, and is never below 0')
        # What the codebook is derived from must be within float32 too.
        total = np.max(np.sum(counts, axis=-1, dtype=np.float64))
        if total * max(1.0, np.abs(codebook).max()) * 4 > np.finfo(np.float32).max:
            raise ValueError(
                f'{of_counts} sums to {total:.3g}: with {of_codebook} beyond float32. Scale '
                'counts and sums of all codes down alike'
            )
        # A code without any weight would be carried off by the next step's eps.
        counts = np.where(counts > 0, counts, np.float32(eps if floor is None else floor))
        smoothed = jnp.vectorize(lambda c: ops.smoothed(c, eps), signature='(k)->(k)')(counts)
        inverse = np.asarray(1 / smoothed)[..., None]
        if metric == 'cosine':
            # The length of a sum says how closely its vectors agree: only the direction is given.
            lengths = np.linalg.norm(sums, axis=-1, keepdims=True)
            agree = np.sum(sums * codebook, -1, keepdims=True) > (1 - 1e-5) * lengths
            sums = codebook * np.where(
                agree & (lengths > 0), lengths, np.asarray(smoothed)[..., None]
            )
            return cls(counts, sums)
        # The float32 whose product with 1 / count comes nearest to the code imported.
        best = codebook / inverse
        for towards in (-np.inf, np.inf):
            other = np.nextafter(best, np.float32(towards))
            nearer = np.abs(other * inverse - codebook) < np.abs(best * inverse - codebook)
            best = np.where(nearer, other, best)
        return cls(counts, best)

    def each(self, head):
        """The book of one of several heads."""
        return Book(self.counts[head], self.sums[head])

    def state(self):
        """VQEMAState, with as many steps as leading axes have entries."""
        step = jnp.zeros(self.counts.shape[:-1], jnp.int32)
        return VQEMAState(jnp.asarray(self.counts), jnp.asarray(self.sums), step)


def check_shapes(entries: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError unless counts, codebook and sums, in this order by key, fit together."""
    of_counts, of_codebook, of_sums = entries
    counts, codebook, sums = (value.shape for value in entries.values())
    if len(codebook) < 2 or codebook != sums or counts != sums[:-1]:
        raise ValueError(
            f'{of_counts} {counts}, {of_codebook} {codebook} and {of_sums} {sums} do not fit '
            'together: need [..., K] and twice [..., K, D]'
        )
    if 0 in codebook:
        raise ValueError(f'{of_codebook} is empty: its shape is {codebook}')


def numbers(key: str, value: Any) -> np.ndarray:
    """The value as an array, if it is one of numbers or truths; torch's tensors are taken too."""
    try:
        if hasattr(value, 'detach'):  # a tensor, of which NumPy knows no bfloat16
            value = value.detach().cpu()
            value = value.float() if value.is_floating_point() else value
        array = np.asarray(value)
    except Exception as error:  # whatever an object that is no array raises
        raise ValueError(f'{key} must be an array of numbers: {error}') from None
    if not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool):
        raise ValueError(f'{key} must be an array of numbers, got {type(value).__name__}')
    return array


def finite(key: str, value: np.ndarray) -> np.ndarray:
    """The value as float32, if all of it is finite there."""
    with np.errstate(over='ignore'):
        array = np.asarray(value, np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f'{key} holds values that are not finite in float32: it cannot be used')
    return array


def listed(keys: Collection[str]) -> str:
    """The first of many keys, as text."""
    return f'{list(keys)[:12]}' + (f' and {len(keys) - 12} more' if len(keys) > 12 else '')
