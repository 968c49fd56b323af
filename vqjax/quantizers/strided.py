"""Residual quantization over strides along time: a coarse stage has fewer codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vqjax import ops
from vqjax.ops import AxisName
from vqjax.quantizers.base import (
    Base,
    PyTree,
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
from vqjax.quantizers.inner_quantizers import merge_losses, quantize_detached
from vqjax.quantizers.scales import real_vectors
from vqjax.quantizers.sums_of_stages import Sums


@dataclass(frozen=True, repr=False)
class Strided(Base):
    """Residual quantization whose stages are at strides along time (SNAC, arXiv:2410.14411).

    z [..., T, D] for any T that the largest stride divides. A stage quantizes the means over its
    stride of what the stages before it left; its vectors are repeated over the stride and added.
    Stages are detached as those of `Residual`, with one estimator around the whole, and `loss` is
    the sum over stages, each on the means that it quantizes.

    A vector is real where mask [..., T] is True and it is finite. The mean of a stride is that of
    its real vectors, and its code -1 if it has none.

    Fields:
      inner: the quantizer of every stage, of one code a vector, or a tuple with one for each.
      strides: of the stages, none larger than the one before it, each a divisor of the first; the
        last is 1.

    Params and state are tuples of the stages'. A window of strides[0] vectors has
    sum(strides[0] / stride) codes: those of the first stage, then those of the next. The codes of
    consecutive windows follow each other, [..., T / strides[0] * codes of a window]; `code_shape`
    and `bits` are those of one window. Losses get a leading axis [S].

    Raises:
      ValueError: for a field out of range, an inner with several codes a vector, or one that
        quantizes whole grids or whose z_q is no code; at trace time for another T.
    """

    inner: Quantizer | tuple[Quantizer, ...]
    strides: tuple[int, ...]

    def __post_init__(self):
        strides = self.strides
        check(isinstance(strides, tuple | list) and len(strides) > 0, 'strides', strides, 'a tuple')
        object.__setattr__(self, 'strides', strides := tuple(strides))
        for stride in strides:
            check_count('strides', stride)
        falls = all(a >= b for a, b in zip(strides, strides[1:], strict=False))
        ok = falls and strides[-1] == 1 and not any(strides[0] % stride for stride in strides)
        check(ok, 'strides', strides, 'falling to 1, and each a divisor of the first')
        inner = self.inner if isinstance(self.inner, tuple | list) else [self.inner] * len(strides)
        object.__setattr__(self, 'inner', tuple(inner))
        need = f'one quantizer, or one for each of {len(strides)} strides'
        check(len(self._stages) == len(strides), 'inner', self.inner, need)
        for stage in self._stages:
            check_inner(type(self).__name__, stage)
            check(stage.code_shape == (), 'inner', stage, 'of one code a vector')

    @property
    def _stages(self) -> tuple[Quantizer, ...]:
        """A quantizer for each stride, which `inner` is once the fields are checked."""
        return cast(tuple[Quantizer, ...], self.inner)

    @property
    def grid(self) -> tuple[int, ...]:  # type: ignore[override]
        """(strides[0],): the vectors of a window."""
        return (self.strides[0],)

    @property
    def num_codes(self) -> int:  # type: ignore[override]
        """K of the stage that has most."""
        return max(inner.num_codes for inner in self._stages)

    @property
    def places(self) -> tuple[int, ...]:
        """How many codes each stage has in a window."""
        return tuple(self.strides[0] // stride for stride in self.strides)

    @property
    def code_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """(L,), the codes of a window."""
        return (sum(self.places),)

    def code_shape_of(self, codes: jax.Array) -> tuple[int, ...]:
        """(n L,): the codes of any number n of windows."""
        length = codes.shape[-1] if np.ndim(codes) else 0
        return (length,) if length and length % sum(self.places) == 0 else self.code_shape

    @property
    def code_sizes(self) -> np.ndarray:
        """K of each code of a window, int32 [L]."""
        return np.repeat([inner.num_codes for inner in self._stages], self.places).astype(np.int32)

    @property
    def bits(self) -> float:
        """Bits that the codes of a window take."""
        stages = zip(self.places, self._stages, strict=True)
        return sum(number * inner.bits for number, inner in stages)

    @property
    def starts_from_data(self) -> bool:  # type: ignore[override]
        """Whether any stage's init reads the values of z."""
        return any(inner.starts_from_data for inner in self._stages)

    def by_codebook(self, codes: jax.Array) -> jax.Array:
        """A row for each stage, see `Base.by_codebook`."""
        rows = [stage.reshape(-1) for stage in self.to_stages(codes)]
        longest = max(len(row) for row in rows)
        return jnp.stack(
            [jnp.pad(row, (0, longest - len(row)), constant_values=-1) for row in rows]
        )

    def to_stages(self, codes: jax.Array) -> tuple[jax.Array, ...]:
        """The codes of each stage along time: [..., n L] -> S arrays [..., T / stride].

        Raises:
          ValueError: for codes that do not make whole windows.
        """
        return tuple(part.reshape(*part.shape[:-2], -1) for part in self._cut(codes))

    def from_stages(self, stages: Sequence[jax.Array]) -> jax.Array:
        """The inverse of `to_stages`; fewer than S are the first, the codes of the others are -1.

        Raises:
          ValueError: for stages of other lengths.
        """
        given = [jnp.asarray(stage) for stage in stages]
        windows = given[0].shape[-1] // self.places[0] if given else 0
        fit = [stage.shape[-1] == windows * n for stage, n in zip(given, self.places, strict=False)]
        if not windows or not all(fit) or len(given) > len(self.places):
            raise ValueError(
                f'stages must be the codes at strides={self.strides} of one length, got shapes '
                f'{[stage.shape for stage in given]}'
            )
        cut = [
            stage.reshape(*stage.shape[:-1], windows, n)
            for stage, n in zip(given, self.places, strict=False)
        ]
        missing = sum(self.places[len(cut) :])
        cut.append(jnp.full((*cut[0].shape[:-1], missing), -1, cut[0].dtype))
        return self._joined(cut)

    def coded(self, codes: jax.Array) -> jax.Array:
        """Which vectors are real by the finest stage that has a code in a window: bool [..., T]."""
        real: Any = None
        for part, stride in zip(self._cut(codes), self.strides, strict=True):
            some = part >= 0
            cover = jnp.repeat(some, stride, axis=-1)
            used = jnp.any(some, axis=-1, keepdims=True)
            real = cover if real is None else jnp.where(used, cover, real)
        return real.reshape(*real.shape[:-2], -1)

    def first_stages(
        self, num: int, params: PyTree, state: PyTree
    ) -> tuple[Quantizer, PyTree, PyTree]:
        """Refused: what is left would not say which vectors a mask hides within a stride."""
        raise ValueError(
            f'num={num}: the first stages of {self!r} are no quantizer of single vectors; decode '
            'from_stages(to_stages(codes)[:num]) in their place'
        )

    def stage(self, tree: PyTree, k: int) -> PyTree:
        """The params or the state of one stage: of a tree without arrays ()."""
        return part_of(tree, k)

    def shapes(self, dim: int) -> tuple[PyTree, PyTree]:
        """The stages' ones, as tuples."""
        return shapes_of(self._stages, dim)

    @checked
    def init(
        self,
        key: jax.Array,
        z: jax.Array,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> tuple[PyTree, PyTree]:
        """(params, state), tuples: each stage starts from the means of what is left of z.

        Raises:
          ValueError: for a T that the largest stride does not divide; for a batch of identical,
            zero or non-finite vectors (outside jit).
        """
        check_start(self, z, mask)
        left, real = self._windows(z, mask)
        left = jnp.where(real[..., None], left, 0.0)
        keys = jax.random.split(key, len(self._stages))
        started = []
        for inner, stride, key in zip(self._stages, self.strides, keys, strict=True):
            means, some = _means(left, real, stride)
            means = inner.unbound(means)
            params, state = inner.init(key, means, some, axis_name)
            codes = inner.quantize(params, state, means, None, some, axis_name).codes
            left -= jnp.repeat(inner.decode(params, state, codes), stride, axis=-2)
            started.append((params, state))
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
        """Codes [..., n L] and the summed vectors of z [..., T, D]."""
        x, real = self._windows(z, mask)
        clean = jnp.where(real[..., None], x, 0.0)
        keys = (
            [None] * len(self._stages) if key is None else jax.random.split(key, len(self._stages))
        )
        sums = Sums.nothing(clean, learns=bool(jax.tree.leaves(params)), ahead=False)
        codes, loss, losses = [], jnp.zeros((), jnp.float32), []
        for k, (inner, stride) in enumerate(zip(self._stages, self.strides, strict=True)):
            means, some = _means(sums.residual, real, stride)
            trees = self.stage(params, k), self.stage(state, k)
            rows = inner.unbound(means)
            out = quantize_detached(inner, *trees, rows, keys[k], some, axis_name)
            sums = sums.with_stage(jnp.repeat(out.z_q, stride, axis=-2), None)
            codes.append(out.codes)
            losses.append(out.losses)
            loss += out.loss
        # As a leaf's, the loss is not finite where z is not.
        bad = ~jnp.all(jnp.isfinite(z), axis=-1)
        bad = bad if mask is None else bad & mask
        loss = loss + jnp.where(jnp.any(bad), jnp.nan, 0.0)
        z_q = sums.z_q(x, getattr(self._stages[0], 'gradient', ops.straight_through))
        z_q = jnp.where(real[..., None], z_q, 0.0).astype(z.dtype)
        return Quantized(z_q.reshape(z.shape), self._joined(codes), loss, merge_losses(losses))

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
        """Each stage's state after the means of what was left of z [..., T, D].

        weights [..., T]: a mean counts as the mean of those of its real vectors.
        """
        left, real = self._windows(lax.stop_gradient(z), mask)
        left = jnp.where(real[..., None], left, 0.0)
        cut = self._cut(codes)
        if cut[0].shape[:-1] != left.shape[:-2]:
            raise ValueError(
                f'codes must be of {z.shape[-2] // self.strides[0]} windows, as z of shape '
                f'{z.shape} has, got codes of shape {codes.shape}'
            )
        keys = (
            [None] * len(self._stages) if key is None else jax.random.split(key, len(self._stages))
        )
        heavy = None if weights is None else weights.reshape(*left.shape[:-1], 1)
        moved = []
        for k, (inner, stride) in enumerate(zip(self._stages, self.strides, strict=True)):
            means, some = _means(left, real, stride)
            own = None if heavy is None else _means(heavy, real, stride)[0][..., 0]
            trees = self.stage(params, k), self.stage(state, k)
            rows = inner.unbound(means)
            moved.append(inner.update(*trees, rows, cut[k], keys[k], some, axis_name, own))
            left -= jnp.repeat(inner.decode(*trees, cut[k]), stride, axis=-2)
        return tuple(moved)

    @checked
    def decode(self, params: PyTree, state: PyTree, codes: jax.Array) -> jax.Array:
        """The sum of the stages' vectors, float32 [..., T, D], of codes [..., n L].

        -1 adds nothing. Which vectors are real, the finest stage with a code in a window says: the
        others are zero. Codes of the first stages alone so decode to a coarse sequence.
        """
        total: Any = None
        for k, (inner, stride) in enumerate(zip(self._stages, self.strides, strict=True)):
            vectors = inner.decode(self.stage(params, k), self.stage(state, k), self._cut(codes)[k])
            vectors = jnp.repeat(vectors, stride, axis=-2)
            total = vectors if total is None else total + vectors
        total = total.reshape(*total.shape[:-3], -1, total.shape[-1])
        return jnp.where(self.coded(codes)[..., None], total, 0.0)

    def _keys(self, key):
        """A key for each stage, or None for each."""
        number = len(self._stages)
        return [None] * number if key is None else jax.random.split(key, number)

    def _windows(self, z, mask):
        """(z float32 [..., n, W, D], which vectors count: bool [..., n, W])."""
        width = self.strides[0]
        if z.ndim < 2 or z.shape[-2] % width:
            raise ValueError(
                f'z must be [..., T, D] with a T that {width} divides, the largest of '
                f'strides={self.strides}, got z of shape {z.shape}: pad it, and mask what was added'
            )
        real = real_vectors(z, mask)
        windows = z.astype(jnp.float32).reshape(*z.shape[:-2], -1, width, z.shape[-1])
        return windows, real.reshape(windows.shape[:-1])

    def _cut(self, codes):
        """Codes [..., n L] of each stage: S arrays [..., n, W / stride]."""
        length = sum(self.places)
        if codes.ndim < 1 or codes.shape[-1] % length:
            raise ValueError(
                f'codes must end in an axis of {length} a window (strides={self.strides}), got '
                f'codes of shape {codes.shape}'
            )
        windows = codes.reshape(*codes.shape[:-1], -1, length)
        return jnp.split(windows, np.cumsum(self.places)[:-1], axis=-1)

    def _joined(self, cut):
        """The inverse of `_cut`."""
        windows = jnp.concatenate(cut, axis=-1)
        return windows.reshape(*windows.shape[:-2], -1)


def _means(x, real, stride):
    """Means of the real vectors of each stride, [..., W / stride, D], and whether it has any."""
    x = x.reshape(*x.shape[:-2], -1, stride, x.shape[-1])
    real = real.reshape(*real.shape[:-1], -1, stride)
    number = jnp.sum(real, axis=-1, dtype=jnp.float32)
    total = jnp.sum(jnp.where(real[..., None], x, 0.0), axis=-2)
    return total / jnp.maximum(number, 1.0)[..., None], number > 0
