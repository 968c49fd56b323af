"""Several quantizers side by side: each for its own places of z."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vqjax.ops import AxisName
from vqjax.quantizers.base import (
    Base,
    Quantized,
    Quantizer,
    check,
    check_count,
    check_inner,
    check_start,
    checked,
    part_of,
    shapes_of,
)
from vqjax.quantizers.inner_quantizers import merge_losses, stack_rows
from vqjax.quantizers.protocol import PyTree


@dataclass(frozen=True, repr=False)
class Levels(Base):
    """The levels of a hierarchy, laid one after the other: z [..., L, D].

    The first n_1 vectors are the first quantizer's, the next n_2 the second's, and so on. The two
    levels of VQ-VAE-2 (arXiv:1906.00446) are that, the top one first; what a level is conditioned
    on is the model's business. `loss` is the sum over levels.

    Fields:
      inner: a quantizer for each level, of one code_shape.
      sizes: how many vectors each level has; L is their sum.

    Params and state are tuples of the levels'. Codes are [..., L] (with code axes of the inner
    before L), `bits` those of all L vectors; losses get a leading axis, one entry a level.

    Raises:
      ValueError: for a field out of range, levels of different code_shape, or an inner that
        quantizes whole grids or whose z_q is not in the space of z; at trace time for another L.
    """

    inner: tuple[Quantizer, ...]
    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ('inner', 'sizes'):
            value = getattr(self, name)
            check(isinstance(value, tuple | list) and len(value) > 0, name, value, 'a tuple')
            object.__setattr__(self, name, tuple(value))
        for inner in self.inner:
            check_inner(type(self).__name__, inner)
        shapes = [inner.code_shape for inner in self.inner]
        check(len(set(shapes)) == 1, 'inner', self.inner, f'of one code_shape, not {shapes}')
        need = f'one number for each of {len(self.inner)} levels'
        check(len(self.sizes) == len(self.inner), 'sizes', self.sizes, need)
        for size in self.sizes:
            check_count('sizes', size)

    @property
    def grid(self) -> tuple[int, ...]:  # type: ignore[override]
        """(L,), the vectors of all levels."""
        return (sum(self.sizes),)

    @property
    def num_codes(self) -> int:  # type: ignore[override]
        """K of the largest level."""
        return max(inner.num_codes for inner in self.inner)

    @property
    def code_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """The inner's, and L."""
        return (*self.inner[0].code_shape, *self.grid)

    @property
    def code_sizes(self) -> np.ndarray:
        """The levels', int32 [*inner, L]."""
        levels = zip(self.inner, self.sizes, strict=True)
        return np.stack([inner.code_sizes for inner, size in levels for _ in range(size)], axis=-1)

    def coded(self, codes: jax.Array) -> jax.Array:
        """Which vectors have a code: codes int32 [..., *inner, L] -> bool [..., L]."""
        return jnp.any(codes >= 0, axis=tuple(range(-len(self.code_shape), -1)))

    @property
    def bits(self) -> float:
        """Bits that the codes of all L vectors take."""
        levels = zip(self.sizes, self.inner, strict=True)
        return sum(size * inner.bits for size, inner in levels)

    @property
    def coded_in_training(self) -> bool:  # type: ignore[override]
        """Whether every level is."""
        return all(inner.coded_in_training for inner in self.inner)

    @property
    def starts_from_data(self) -> bool:  # type: ignore[override]
        """Whether any level's init reads the values of z."""
        return any(inner.starts_from_data for inner in self.inner)

    def by_codebook(self, codes: jax.Array) -> jax.Array:
        """A row for each level, see `Base.by_codebook`."""
        rows = [
            inner.by_codebook(jnp.moveaxis(part, -1, 0))
            for inner, part in zip(self.inner, self.cut(codes, -1), strict=True)
        ]
        return stack_rows(rows)

    def cut(self, x: jax.Array | None, axis: int) -> list[Any]:
        """The parts of each level along an axis of length L; of None, None."""
        if x is None:
            return [None] * len(self.sizes)
        return jnp.split(x, np.cumsum(self.sizes)[:-1], axis)

    def level(self, tree: PyTree, i: int) -> Any:
        """Params or state of level i (a tree without leaves may arrive as ())."""
        return part_of(tree, i)

    def join(self, outs: Sequence[Quantized]) -> Quantized:
        """What `quantize` returns, from what each level's did."""
        codes = [self._codes_last(out.codes) for out in outs]
        return Quantized(
            jnp.concatenate([out.z_q for out in outs], axis=-2),
            jnp.concatenate(codes, axis=-1),
            sum((out.loss for out in outs[1:]), outs[0].loss),
            merge_losses([out.losses for out in outs]),
        )

    def shapes(self, dim: int) -> tuple[PyTree, PyTree]:
        """The levels' ones, as tuples."""
        return shapes_of(self.inner, dim)

    @checked
    def init(
        self,
        key: jax.Array,
        z: jax.Array,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> tuple[PyTree, PyTree]:
        """(params, state), tuples: each level starts from its part of z [..., L, D].

        Raises:
          ValueError: for another L; for a level of identical, zero or non-finite vectors (outside
            jit).
        """
        self._check_places(z)
        keys = jax.random.split(key, len(self.inner))
        parts = zip(self.inner, keys, self.cut(z, -2), self.cut(mask, -1), strict=True)
        started = []
        for inner, key, z, mask in parts:
            check_start(inner, z, mask)
            started.append(inner.init(key, z, mask, axis_name))
        return tuple(p for p, _ in started), tuple(s for _, s in started)

    @checked
    def quantize(
        self,
        params: PyTree,
        state: PyTree,
        z: jax.Array,
        key: jax.Array | None = None,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> Quantized:
        """Codes [..., L] and vectors of z [..., L, D], each level by its own quantizer."""
        self._check_places(z)
        keys = [None] * len(self.inner) if key is None else jax.random.split(key, len(self.inner))
        parts: Any = zip(self.inner, self.cut(z, -2), keys, self.cut(mask, -1), strict=True)
        return self.join(
            [
                inner.quantize(self.level(params, i), self.level(state, i), *part, axis_name)
                for i, (inner, *part) in enumerate(parts)
            ]
        )

    @checked
    def update(
        self,
        params: PyTree,
        state: PyTree,
        z: jax.Array,
        codes: jax.Array,
        key: jax.Array | None = None,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
        weights: jax.Array | None = None,
    ) -> PyTree:
        """Each level's state after its part of z [..., L, D]."""
        self._check_places(z)
        keys = [None] * len(self.inner) if key is None else jax.random.split(key, len(self.inner))
        by_level = [self._codes_first(part) for part in self.cut(codes, -1)]
        vectors, masks, heavy = self.cut(z, -2), self.cut(mask, -1), self.cut(weights, -1)
        return tuple(
            inner.update(
                self.level(params, i), self.level(state, i),
                vectors[i], by_level[i], keys[i], masks[i], axis_name, heavy[i],
            )
            for i, inner in enumerate(self.inner)
        )  # fmt: skip

    @checked
    def decode(self, params: PyTree, state: PyTree, codes: jax.Array) -> jax.Array:
        """Vectors float32 [..., L, D] of codes [..., L]; zeros for -1."""
        vectors = [
            inner.decode(self.level(params, i), self.level(state, i), self._codes_first(part))
            for i, (inner, part) in enumerate(zip(self.inner, self.cut(codes, -1), strict=True))
        ]
        return jnp.concatenate(vectors, axis=-2)

    def _codes_first(self, codes):
        """[..., *inner, n] -> [..., n, *inner], as the inner has them."""
        return jnp.moveaxis(codes, -1, -1 - len(self.inner[0].code_shape))

    def _codes_last(self, codes):
        """The inverse of `_codes_first`."""
        return jnp.moveaxis(codes, -1 - len(self.inner[0].code_shape), -1)

    def _check_places(self, z):
        if z.ndim < 2 or z.shape[-2] != self.grid[0]:
            raise ValueError(
                f'z must be [..., L, D] with L={self.grid[0]} vectors (sizes={self.sizes}), '
                f'got z of shape {z.shape}'
            )
