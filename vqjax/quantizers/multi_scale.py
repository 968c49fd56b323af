"""Residual quantization over resolutions: coarse codes of a whole grid first, then finer ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vqjax import ops
from vqjax.ops import AxisName, StageDropout
from vqjax.ops.evolution import mutate
from vqjax.ops.serialization import exported
from vqjax.quantizers import phi as phis
from vqjax.quantizers.base import (
    Base,
    PyTree,
    Quantized,
    Quantizer,
    array_shape,
    check,
    check_count,
    check_inner,
    check_start,
    check_weight,
    checked,
    part_of,
    shapes_of,
)
from vqjax.quantizers.inner_quantizers import (
    dropout_of,
    merge_losses,
    quantize_detached,
    stack_rows,
)
from vqjax.quantizers.scales import (
    Size,
    axes_of,
    growing,
    one_after_another,
    real_by_codes,
    real_vectors,
    size_of,
    with_codes,
)
from vqjax.quantizers.sums_of_stages import Sums, estimator_of, noise_key, vectors_of


@exported
class MultiScaleParams(NamedTuple):
    """Kernels float32 [P, 3, 3, D, D] (3-D grids: [P, 3, 3, 3, D, D]), biases float32 [P, D].

    And the inner quantizer's params.
    """

    kernels: jax.Array
    biases: jax.Array
    inner: PyTree


@dataclass(frozen=True, repr=False)
class MultiScale(Base):
    """The multi-scale quantizer of VAR (arXiv:2404.02905, algorithms 1 and 2).

    z [..., H, W, D] is quantized as a whole, scale by scale: codes of the means of what is left
    (area), whose vectors, made larger (bicubic, a = -0.75) and passed through a convolution phi,
    are added to the sum and taken from what is left. All scales share one codebook, updated once a
    step with the vectors of all of them, or each has its own. phi(h) = (1 - r) h + r (h * kernel +
    bias); here it starts as the identity. Which scale has which phi is as in FoundationVision/VAR.

    `loss` is the mean over scales of the inner's, each on the means it quantizes, and with phi of
    |f_k - sg(z)|^2 (the term `phi`), f_k being the sum so far: it trains phi and what the inner's
    params make of codes. With `commitment` also of commitment |sg(f_k) - z|^2; VAR's loss is these
    two alone: MultiScale(VQ(K, commitment=0, codebook=0), scales, phi, commitment=0.25). Gradients
    are those of `Residual`: one estimator around the whole (the inner's, else straight-through), so
    dz_q/dz is 1; z_q's reaches phi, and the inner's params where the inner's estimator hands them
    one. A fixed grid (FSQ, LFQ) takes its input unbounded and is as wide at every scale.

    A vector is real where mask [..., H, W] is True and it is finite. A coarse place is real if any
    of its area is, and its mean is that of the real ones; other codes are -1 and add nothing.

    Fields:
      inner: the quantizer of every scale, of vectors; or a tuple with one for each.
      scales: sizes of the grids, s for (s, s) or (h, w), growing; the last is (H, W). Where one is
        a triple (t, h, w), s is (s, s, s) and z [..., T, H, W, D]; grids are then made larger
        trilinearly.
      phi: the mixing ratio r in (0, 1] of each convolution, the coarse ones first; VAR's are
        (0.5, 0.5, 0.5, 0.5), () is none.
      dropout: with a key, only the first n scales are used, as `Residual` does it (ImageFolder,
        arXiv:2410.01756): the codes of the others are -1. They decode to a coarse picture, also
        of the vectors that a mask hides from z_q. 'sample' draws n for each entry of z's first
        axis, of a single grid z [H, W, D] once.
      commitment: weight of |sg(f_k) - z|^2 (the term `sum_commitment`); where it is not 0, the term
        `phi` is there without phi too.

    Params are `MultiScaleParams`, the inner's own without phi; the state is the inner's; of a tuple
    they are tuples. Codes are [..., L], the scales one after the other, row by row: L is the sum of
    their h w. (An inner with code axes of its own puts them before L.) `bits` are those of a grid.
    Losses get a leading axis [S].

    Raises:
      ValueError: for a field out of range, scales that do not grow, or an inner that quantizes
        whole grids or whose z_q is no code; at trace time for a grid that is not the last scale.
    """

    inner: Quantizer | tuple[Quantizer, ...]
    scales: tuple[int | Size, ...]
    phi: tuple[float, ...] = ()
    dropout: StageDropout | str | None = None
    commitment: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, 'scales', growing(self.scales))
        number = len(self.scales)
        if isinstance(self.inner, list):
            object.__setattr__(self, 'inner', tuple(self.inner))
        for inner in self._inners:
            check_inner(type(self).__name__, inner)
        if isinstance(self.inner, tuple):
            check(len(self.inner) == number, 'inner', self.inner, f'one quantizer, or {number}')
            shapes = [inner.code_shape for inner in self.inner]
            check(len(set(shapes)) == 1, 'inner', self.inner, f'of one code_shape, not {shapes}')
        object.__setattr__(self, 'phi', phis.ratios_of(self.phi, number))
        object.__setattr__(self, 'dropout', dropout_of(self.dropout, number))
        check_weight('commitment', self.commitment)

    @property
    def _inners(self) -> tuple[Quantizer, ...]:
        return self.inner if isinstance(self.inner, tuple) else (self.inner,)

    @property
    def _by_scale(self) -> tuple[Quantizer, ...]:
        inners = self._inners
        return inners if isinstance(self.inner, tuple) else inners * len(self.scales)

    @property
    def sizes(self) -> tuple[Size, ...]:
        """(h, w) or (t, h, w) of every scale."""
        axes = axes_of(self.scales)
        return tuple(size_of(scale, axes) for scale in self.scales)

    @property
    def places(self) -> tuple[int, ...]:
        """How many places the grid of each scale has."""
        return tuple(math.prod(size) for size in self.sizes)

    @property
    def grid(self) -> Size:  # type: ignore[override]
        """(H, W) or (T, H, W), the last scale."""
        return self.sizes[-1]

    @property
    def _axes(self) -> int:
        return len(self.grid)

    @property
    def num_codes(self) -> int:  # type: ignore[override]
        """K of a scale (the largest where they differ)."""
        return max(inner.num_codes for inner in self._inners)

    @property
    def code_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """The inner's, and L, the places of all scales."""
        return (*self._inners[0].code_shape, sum(self.places))

    def by_codebook(self, codes: jax.Array) -> jax.Array:
        """The inner's, whose codebook all places share; of a tuple a row for each scale."""
        if isinstance(self.inner, tuple):
            pairs = zip(self.inner, self._cut(codes), strict=True)
            return stack_rows([inner.by_codebook(grid) for inner, grid in pairs])
        return self.inner.by_codebook(jnp.moveaxis(codes, -1, 0))

    @property
    def code_sizes(self) -> np.ndarray:
        """The inner's at every place, int32 [*inner, L]."""
        sizes = [inner.code_sizes for inner in self._by_scale]
        return np.repeat(np.stack(sizes, axis=-1), self.places, axis=-1)

    def coded(self, codes: jax.Array) -> jax.Array:
        """Which vectors are real by the finest scale that has a code, bool [..., H, W]."""
        return self._alive(self._cut(codes))

    @property
    def bits(self) -> float:
        """Bits that the codes of one grid take."""
        pairs = zip(self.places, self._by_scale, strict=True)
        return sum(number * inner.bits for number, inner in pairs)

    @property
    def starts_from_data(self) -> bool:  # type: ignore[override]
        """Whether any inner's init reads the values of z."""
        return any(inner.starts_from_data for inner in self._inners)

    def to_grids(self, codes: jax.Array) -> tuple[jax.Array, ...]:
        """The codes of each scale as a grid: [..., L] -> S arrays [..., h, w] (or t, h, w).

        Raises:
          ValueError: for another L.
        """
        places = self.code_shape[-1]
        if codes.shape[-1:] != (places,):
            raise ValueError(
                f'codes must end in an axis of {places}, the places of scales={self.scales}, got '
                f'codes of shape {codes.shape}'
            )
        ends = np.cumsum(self.places)
        return tuple(
            part.reshape(*codes.shape[:-1], *size)
            for part, size in zip(jnp.split(codes, ends[:-1], axis=-1), self.sizes, strict=True)
        )

    def from_grids(self, grids: Sequence[jax.Array]) -> jax.Array:
        """The inverse of `to_grids`: arrays [..., h, w] -> [..., L].

        Fewer than S are the coarse ones; the codes of the others are -1.

        Raises:
          ValueError: for grids of other sizes.
        """
        sizes = tuple(tuple(grid.shape[-self._axes :]) for grid in grids)
        if not sizes or sizes != self.sizes[: len(sizes)]:
            raise ValueError(f'grids must be those of scales={self.scales}, got sizes {sizes}')
        flat = [grid.reshape(*grid.shape[: -self._axes], -1) for grid in grids]
        missing = self.code_shape[-1] - sum(part.shape[-1] for part in flat)
        flat.append(jnp.full((*flat[0].shape[:-1], missing), -1, flat[0].dtype))
        return jnp.concatenate(flat, axis=-1)

    def shapes(self, dim: int) -> tuple[PyTree, PyTree]:
        """The inner's, with the convolutions phi where there are any."""
        if isinstance(self.inner, tuple):
            params, state = shapes_of(self.inner, dim)
        else:
            params, state = self.inner.shapes(dim)
        if self.phi:
            kernels = array_shape(len(self.phi), *(3,) * self._axes, dim, dim)
            params = MultiScaleParams(kernels, array_shape(len(self.phi), dim), params)
        return params, state

    @checked
    def init(
        self,
        key: jax.Array,
        z: jax.Array,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> tuple[PyTree, PyTree]:
        """(params, inner state): a shared codebook starts from what exact vectors would leave.

        One for each scale starts from what the codes of the scales before leave.

        Raises:
          ValueError: for a z [..., H, W, D] of another grid; for a batch of identical, zero or
            non-finite vectors (outside jit).
        """
        self._check_grid(z)
        check_start(self, z, mask)
        left = z.astype(jnp.float32)
        real = real_vectors(left, mask)
        if isinstance(self.inner, tuple):
            params, state = self._started(key, left, real, axis_name)
        else:
            means_of, some_of = [], []
            for size in self.sizes:
                means, some = ops.area_means(left, real, size)
                left -= self._enlarged(means)
                means_of.append(means)
                some_of.append(some[..., None])
            rows, masks = self._flat(means_of), self._flat(some_of)[..., 0]
            params, state = self.inner.init(key, rows, masks, axis_name)
        if self.phi:
            kernels, biases = phis.start(len(self.phi), self._axes, z.shape[-1])
            params = MultiScaleParams(kernels, biases, params)
        return params, state

    def _started(self, key, left, real, axis_name):
        """(params, state) of each scale's own quantizer."""
        params, state = [], []
        keys = jax.random.split(key, len(self.scales))
        for inner, size, key in zip(self._by_scale, self.sizes, keys, strict=True):
            means, some = ops.area_means(left, real, size)
            means = inner.unbound(means)
            own = inner.init(key, means, some, axis_name)
            codes = inner.quantize(*own, means, None, some, axis_name).codes
            left -= self._enlarged(inner.decode(*own, codes))
            params.append(own[0])
            state.append(own[1])
        return tuple(params), tuple(state)

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
        """Codes [..., L] and the summed vectors of z [..., H, W, D]."""
        self._check_grid(z)
        x = z.astype(jnp.float32)
        real = real_vectors(x, mask)
        clean = jnp.where(real[..., None], x, 0.0)
        keys: Any = [None] * len(self.scales)
        if key is not None:
            keys = jax.random.split(key, len(self.scales))
        used = self._used(key, x, mask, axis_name)
        sums = Sums.nothing(clean, learns=bool(jax.tree.leaves(params)), ahead=False)
        estimator = estimator_of(self._inners[0])
        grids: list[jax.Array] = []
        loss: Any = 0.0
        losses: Any = []
        # What each scale adds as a function of the inner's params, too: an estimator hands the
        # codebook no gradient.
        trained: list[jax.Array] = []
        places: list[jax.Array] = []
        for k, size in enumerate(self.sizes):
            inner, own, held = self._scale(k, params, state)
            here = real if used is None else real & used[k][(..., *(None,) * self._axes)]
            means, some = ops.area_means(sums.residual, here, size)
            rows = inner.unbound(means)
            out = quantize_detached(inner, own, held, rows, keys[k], some, axis_name)
            vectors = inner.decode(own, held, out.codes)
            value = self._grown(params, k, lax.stop_gradient(vectors), out.codes)
            added = vectors_of(estimator, inner, own, held, out)
            sums = sums.with_stage(self._learning(params, k, value, added, out.codes), None)
            grids.append(out.codes)
            losses.append(out.losses)
            loss += out.loss
            if self.phi or self.commitment:
                trained.append(self._learning(params, k, value, vectors, out.codes))
                places.append(here)
        terms = merge_losses(losses)
        if trained:
            errors = self._errors_of_sums(clean, trained, places, axis_name)
            loss += jnp.sum(errors['phi'])
            if self.commitment:
                loss += self.commitment * jnp.sum(errors['sum_commitment'])
            terms |= errors
        # As a leaf's, the loss is not finite where z is not.
        bad = ~real if mask is None else ~real & mask
        loss = loss / len(self.scales) + jnp.where(jnp.any(bad), jnp.nan, 0.0)
        z_q = sums.z_q(x, estimator, noise_key(key, len(self.scales)), mask, axis_name)
        alive = real & self._alive(grids)
        z_q = jnp.where(alive[..., None], z_q, 0).astype(z.dtype)
        return Quantized(z_q, self._joined(grids), loss, terms)

    def _errors_of_sums(self, clean, trained, places, axis_name):
        """The terms `phi` and `sum_commitment` of every scale, [S] each.

        trained: what each scale adds, S arrays [..., H, W, D]; places: which vectors count there.
        """
        # Summed by one product, whose gradient is one: XLA would compute sums of sums anew for
        # every scale.
        until = np.tri(len(trained), dtype=np.float32)
        sums = jnp.tensordot(until, jnp.stack(trained), 1, precision=lax.Precision.HIGHEST)
        goal = lax.stop_gradient(clean)
        error = jax.vmap(lambda total, here: ops.squared_error(total, goal, here, axis_name))
        terms = {'phi': error(sums, jnp.stack(places))}
        if self.commitment:
            pairs = zip(lax.stop_gradient(sums), places, strict=True)
            each = [ops.squared_error(clean, total, here, axis_name) for total, here in pairs]
            terms['sum_commitment'] = jnp.stack(each)
        return terms

    def _used(self, key, x, mask, axis_name):
        """Which scales each grid of x uses, bool [S, ...], or None where all do."""
        if key is None or self.dropout is None:
            return None
        key = jax.random.fold_in(key, len(self.scales))
        axes = tuple(range(-self._axes, 0))
        some = None if mask is None else jnp.any(mask, axis=axes)
        dropout = dropout_of(self.dropout, len(self.scales))
        assert dropout is not None
        return dropout.used(key, x.shape[: -1 - self._axes], len(self.scales), some, axis_name)

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
        """The inner's state after the vectors of all scales, in one update: z [..., H, W, D].

        Of a tuple the state of each after those of its own scale. weights [..., H, W]: a coarse
        vector counts as the mean of the real ones of its area.
        """
        self._check_grid(z)
        left = lax.stop_gradient(z).astype(jnp.float32)
        real = real_vectors(left, mask)
        left = jnp.where(real[..., None], left, 0.0)
        means_of, some_of, heavy = [], [], []
        cut = self._cut(codes)
        for k, grid in enumerate(cut):
            means, some = ops.area_means(left, real, self.sizes[k])
            means_of.append(self._by_scale[k].unbound(means))
            some_of.append(some[..., None])
            if weights is not None:
                heavy.append(ops.area_means(weights[..., None], real, self.sizes[k])[0])
            left -= self._vectors(params, state, k, grid)
        if isinstance(self.inner, tuple):
            return self._updated(params, state, means_of, cut, key, some_of, axis_name, heavy)
        rows, masks = self._flat(means_of), self._flat(some_of)[..., 0]
        codes = jnp.moveaxis(codes, -1, rows.ndim - 2)
        weights = None if weights is None else self._flat(heavy)[..., 0]
        inner = self._inner(params)
        return self.inner.update(inner, state, rows, codes, key, masks, axis_name, weights)

    def _updated(self, params, state, means_of, cut, key, some_of, axis_name, heavy):
        """The state of each scale's own quantizer."""
        keys: Any = [None] * len(cut) if key is None else jax.random.split(key, len(cut))
        after = []
        for k, (means, grid, some) in enumerate(zip(means_of, cut, some_of, strict=True)):
            inner, own, held = self._scale(k, params, state)
            weights = heavy[k][..., 0] if heavy else None
            after.append(
                inner.update(own, held, means, grid, keys[k], some[..., 0], axis_name, weights)
            )
        return tuple(after)

    @checked
    def decode(self, params: PyTree, state: PyTree, codes: jax.Array) -> jax.Array:
        """The sum of the scales' vectors, float32 [..., H, W, D], of codes [..., L].

        A code of -1 stands for the zero vector, and a scale without any code adds nothing. Which
        vectors are real, the finest scale with a code says: the others are zero. Codes cut off
        after a scale so decode to a coarse picture.
        """
        grids = self._cut(codes)
        return jnp.where(self._alive(grids)[..., None], self._sums(params, state, grids)[-1], 0)

    def decode_scales(
        self, params: PyTree, state: PyTree, codes: jax.Array, num_scales: int
    ) -> jax.Array:
        """`decode` with the first scales alone: a coarse picture.

        Args:
          codes: int32 [..., L]; those of finer scales are not used.
          num_scales: how many, from 1 to S.

        Returns:
          float32 [..., H, W, D].

        Raises:
          ValueError: for a number out of range.
        """
        check_count('num_scales', num_scales, most=len(self.scales))
        return self.decode(params, state, self.from_grids(self.to_grids(codes)[:num_scales]))

    @checked
    def next_inputs(self, params: PyTree, state: PyTree, codes: jax.Array) -> jax.Array:
        """What a model of the next scale's codes reads, from the codes before (VAR section 3.1).

        For each scale but the first, the sum after the scale before it, made as small as it is.

        codes int32 [..., L] -> float32 [..., L - h_1 w_1, D].
        """
        grids = self._cut(codes)
        sums, real = self._sums(params, state, grids), self._alive(grids)
        means = [
            ops.area_means(total, real, size)[0]
            for total, size in zip(sums[:-1], self.sizes[1:], strict=True)
        ]
        return self._flat(means)

    @checked
    def self_correction(
        self,
        params: PyTree,
        state: PyTree,
        z: jax.Array,
        key: jax.Array,
        share: float | jax.Array,
        mask: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Codes to predict and codes with mistakes, for a model that learns to correct its own.

        A share of each scale's codes is replaced by any other one, and finer scales quantize what
        these leave (bitwise self-correction, Infinity, arXiv:2412.04431, algorithm 2). The model
        reads `next_inputs` of the codes with mistakes. Bits are the codes of
        `LFQ(bits_per_code=1)`; Infinity draws the share for each image.

        Args:
          z: [..., H, W, D].
          key: for the mistakes.
          share: from 0 to 1, a number or one for each grid [...].
          mask: bool [..., H, W].

        Returns:
          int32 [..., L] twice: the codes to predict, and those with mistakes.

        Raises:
          ValueError: for what is no share, or another number of them than grids.
        """
        self._check_grid(z)
        left = z.astype(jnp.float32)
        real = real_vectors(left, mask)
        left = jnp.where(real[..., None], left, 0.0)
        goals, given = [], []
        for k, size in enumerate(self.sizes):
            inner, own, held = self._scale(k, params, state)
            means, some = ops.area_means(left, real, size)
            codes = inner.quantize(own, held, inner.unbound(means), None, some).codes
            first, second = jax.random.split(jax.random.fold_in(key, k))
            shares = jnp.asarray(share)[(..., *(None,) * (self._axes + self._inner_axes))]
            wrong = mutate((first, second), codes, inner.code_sizes, shares)
            goals.append(codes)
            given.append(wrong)
            left -= self._vectors(params, state, k, wrong)
        return self._joined(goals), self._joined(given)

    def _check_grid(self, z):
        axes = self._axes
        if z.ndim <= axes or z.shape[-1 - axes : -1] != self.grid:
            form = '[..., H, W, D]' if axes == 2 else '[..., T, H, W, D]'
            raise ValueError(
                f'z must be {form} with the grid {self.grid}, the last of '
                f'scales={self.scales}, got z of shape {z.shape}'
            )

    def _inner(self, params):
        return params.inner if self.phi else params

    def _scale(self, k, params, state):
        """The quantizer of scale k, its params and its state."""
        inner, params = self._by_scale[k], self._inner(params)
        if isinstance(self.inner, tuple):
            return inner, part_of(params, k), part_of(state, k)
        return inner, params, state

    def _flat(self, grids):
        """Grids [..., *size, D] one after the other: [..., L, D]."""
        return one_after_another(grids, self._axes)

    def _enlarged(self, vectors):
        """Vectors [..., *size, D] of a scale at full size: [..., *grid, D]."""
        return self._enlarge(vectors, self.grid)

    @property
    def _enlarge(self):
        return ops.bicubic if self._axes == 2 else ops.multilinear

    def _cut(self, codes):
        """Grids as the inner has them: [..., *inner, L] -> S arrays [..., h, w, *inner]."""
        last, before = self._places_of_axes()
        return [jnp.moveaxis(grid, last, before) for grid in self.to_grids(codes)]

    def _joined(self, grids):
        """The inverse of `_cut`."""
        last, before = self._places_of_axes()
        return self.from_grids([jnp.moveaxis(grid, before, last) for grid in grids])

    def _places_of_axes(self):
        """The grid's axes where they are last, and before the inner's."""
        last = tuple(range(-self._axes, 0))
        return last, tuple(axis - self._inner_axes for axis in last)

    @property
    def _inner_axes(self) -> int:
        return len(self._inners[0].code_shape)

    def _alive(self, grids):
        """Which vectors are real by the finest scale that has a code, bool [..., H, W]."""
        return real_by_codes(grids, self._inner_axes, self.grid)

    def _vectors(self, params, state, k, grid):
        """What scale k's codes [..., h, w, *inner] add: float32 [..., H, W, D]."""
        inner, own, held = self._scale(k, params, state)
        return self._grown(params, k, inner.decode(own, held, grid), grid)

    def _grown(self, params, k, vectors, grid):
        """Vectors [..., h, w, D] of scale k at full size, through phi: [..., H, W, D]."""
        if self.phi:
            p = phis.at_scale(k, len(self.scales), len(self.phi))
            # All of them first, then one: XLA so sees that quantize and update do the same.
            kernels, biases = phis.mixed(params.kernels, params.biases, self.phi)
            vectors = ops.convolve_enlarged(self._enlarge, vectors, kernels[p], self.grid)
            vectors += ops.rounded(biases)[p]
        else:
            vectors = self._enlarged(vectors)
        axes = tuple(range(-self._axes, 0))
        used = jnp.any(with_codes(grid, self._inner_axes), axis=axes, keepdims=True)
        return jnp.where(used[..., None], vectors, 0.0)

    def _learning(self, params, k, value, vectors, grid):
        """`value`, which scale k adds, with the gradient that phi and these vectors give it.

        To phi it has one already. Made of the same codes twice, it would cost phi's convolution
        twice, and its gradients; of an inner without params vectors have none to hand on.
        """
        if not jax.tree.leaves(self._scale(k, params, ())[1]):
            return value
        carrier = self._grown(lax.stop_gradient(params), k, vectors, grid)
        return ops.graft(value, value + carrier)

    def _sums(self, params, state, grids):
        """The sum after each scale, S arrays float32 [..., H, W, D]."""
        sums = []
        for k, grid in enumerate(grids):
            vectors = self._vectors(params, state, k, grid)
            sums.append(sums[-1] + vectors if sums else vectors)
        return sums
