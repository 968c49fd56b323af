"""Residual quantization over resolutions: coarse codes of a whole grid first, then finer ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vqjax import ops
from vqjax.ops import AxisName, StageDropout
from vqjax.ops.serialization import exported
from vqjax.quantizers import phi as phis
from vqjax.quantizers.base import (
    Base,
    PyTree,
    Quantized,
    Quantizer,
    array_shape,
    check_count,
    check_inner,
    check_start,
    check_weight,
    checked,
)
from vqjax.quantizers.inner_quantizers import dropout_of, quantize_detached
from vqjax.quantizers.scales import (
    Size,
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
    """Kernels float32 [P, 3, 3, D, D], biases float32 [P, D], and the inner quantizer's params."""

    kernels: jax.Array
    biases: jax.Array
    inner: PyTree


@dataclass(frozen=True, repr=False)
class MultiScale(Base):
    """The multi-scale quantizer of VAR (arXiv:2404.02905, algorithms 1 and 2).

    z [..., H, W, D] is quantized as a whole, scale by scale: codes of the means of what is left
    (area), whose vectors, made larger (bicubic, a = -0.75) and passed through a convolution phi,
    are added to the sum and taken from what is left. All scales share one codebook, updated once a
    step with the vectors of all of them. phi(h) = (1 - r) h + r (h * kernel + bias); here it
    starts as the identity. Which scale has which phi is as in FoundationVision/VAR.

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
      inner: the quantizer of every scale, of vectors.
      scales: sizes of the grids, s for (s, s) or (h, w), growing; the last is (H, W).
      phi: the mixing ratio r in (0, 1] of each convolution, the coarse ones first; VAR's are
        (0.5, 0.5, 0.5, 0.5), () is none.
      dropout: with a key, only the first n scales are used, as `Residual` does it (ImageFolder,
        arXiv:2410.01756): the codes of the others are -1. They decode to a coarse picture, also
        of the vectors that a mask hides from z_q. 'sample' draws n for each entry of z's first
        axis, of a single grid z [H, W, D] once.
      commitment: weight of |sg(f_k) - z|^2 (the term `sum_commitment`); where it is not 0, the term
        `phi` is there without phi too.

    Params are `MultiScaleParams`, the inner's own without phi; the state is the inner's. Codes are
    [..., L], the scales one after the other, row by row: L = sum h w. (An inner with code axes of
    its own puts them before L.) `bits` are those of a grid. Losses get a leading axis [S].

    Raises:
      ValueError: for a field out of range, scales that do not grow, or an inner that quantizes
        whole grids or whose z_q is no code; at trace time for a grid that is not the last scale.
    """

    inner: Quantizer
    scales: tuple[int | Size, ...]
    phi: tuple[float, ...] = ()
    dropout: StageDropout | str | None = None
    commitment: float = 0.0

    def __post_init__(self) -> None:
        check_inner(type(self).__name__, self.inner)
        object.__setattr__(self, 'scales', growing(self.scales))
        number = len(self.scales)
        object.__setattr__(self, 'phi', phis.ratios_of(self.phi, number))
        object.__setattr__(self, 'dropout', dropout_of(self.dropout, number))
        check_weight('commitment', self.commitment)

    @property
    def sizes(self) -> tuple[Size, ...]:
        """(h, w) of every scale."""
        return tuple(map(size_of, self.scales))

    @property
    def grid(self) -> Size:  # type: ignore[override]
        """(H, W), the last scale."""
        return self.sizes[-1]

    @property
    def num_codes(self) -> int:  # type: ignore[override]
        """The inner's."""
        return self.inner.num_codes

    @property
    def code_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """The inner's, and L, the places of all scales."""
        return (*self.inner.code_shape, sum(h * w for h, w in self.sizes))

    def by_codebook(self, codes: jax.Array) -> jax.Array:
        """The inner's: all places share its codebook."""
        return self.inner.by_codebook(jnp.moveaxis(codes, -1, 0))

    @property
    def code_sizes(self) -> np.ndarray:
        """The inner's at every place, int32 [*inner, L]."""
        return np.stack([self.inner.code_sizes] * self.code_shape[-1], axis=-1)

    def coded(self, codes: jax.Array) -> jax.Array:
        """Which vectors are real by the finest scale that has a code, bool [..., H, W]."""
        return self._alive(self._cut(codes))

    @property
    def bits(self) -> float:
        """Bits that the codes of one grid take."""
        return self.code_shape[-1] * self.inner.bits

    @property
    def starts_from_data(self) -> bool:  # type: ignore[override]
        """The inner's."""
        return self.inner.starts_from_data

    def to_grids(self, codes: jax.Array) -> tuple[jax.Array, ...]:
        """The codes of each scale as a grid: [..., L] -> S arrays [..., h, w].

        Raises:
          ValueError: for another L.
        """
        places = self.code_shape[-1]
        if codes.shape[-1:] != (places,):
            raise ValueError(
                f'codes must end in an axis of {places}, the places of scales={self.scales}, got '
                f'codes of shape {codes.shape}'
            )
        ends = np.cumsum([h * w for h, w in self.sizes])
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
        sizes = tuple(tuple(grid.shape[-2:]) for grid in grids)
        if not sizes or sizes != self.sizes[: len(sizes)]:
            raise ValueError(f'grids must be those of scales={self.scales}, got sizes {sizes}')
        flat = [grid.reshape(*grid.shape[:-2], -1) for grid in grids]
        missing = self.code_shape[-1] - sum(part.shape[-1] for part in flat)
        flat.append(jnp.full((*flat[0].shape[:-1], missing), -1, flat[0].dtype))
        return jnp.concatenate(flat, axis=-1)

    def shapes(self, dim: int) -> tuple[PyTree, PyTree]:
        """The inner's, with the convolutions phi where there are any."""
        params, state = self.inner.shapes(dim)
        if self.phi:
            kernels = array_shape(len(self.phi), 3, 3, dim, dim)
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
        """(params, inner state): the codebook starts from what exact vectors would leave.

        Raises:
          ValueError: for a z [..., H, W, D] of another grid; for a batch of identical, zero or
            non-finite vectors (outside jit).
        """
        self._check_grid(z)
        check_start(self, z, mask)
        means_of, some_of, left = [], [], z.astype(jnp.float32)
        real = real_vectors(left, mask)
        for size in self.sizes:
            means, some = ops.area_means(left, real, size)
            left -= ops.bicubic(means, self.grid)
            means_of.append(means)
            some_of.append(some[..., None])
        rows, masks = one_after_another(means_of), one_after_another(some_of)[..., 0]
        params, state = self.inner.init(key, rows, masks, axis_name)
        if self.phi:
            params = MultiScaleParams(*phis.start(len(self.phi), z.shape[-1]), params)
        return params, state

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
        estimator = estimator_of(self.inner)
        grids: list[jax.Array] = []
        loss: Any = 0.0
        losses: Any = []
        # The same sum as a function of phi and of the inner's params: an estimator hands the
        # codebook no gradient.
        trained = jnp.zeros_like(clean)
        for k, size in enumerate(self.sizes):
            here = real if used is None else real & used[k][..., None, None]
            means, some = ops.area_means(sums.residual, here, size)
            given = (state, self.inner.unbound(means), keys[k], some, axis_name)
            out = quantize_detached(self.inner, self._inner(params), *given)
            added = vectors_of(estimator, self.inner, self._inner(params), state, out)
            sums = sums.with_stage(self._grown(params, k, added, out.codes), None)
            grids.append(out.codes)
            losses.append(out.losses)
            loss += out.loss
            if self.phi or self.commitment:
                vectors = self.inner.decode(self._inner(params), state, out.codes)
                trained += self._grown(params, k, vectors, out.codes)
                goal = lax.stop_gradient(clean)
                own = {'phi': ops.squared_error(trained, goal, here, axis_name)}
                loss += own['phi']
                if self.commitment:
                    error = ops.squared_error(clean, sums.total, here, axis_name)
                    own['sum_commitment'] = error
                    loss += self.commitment * error
                losses[-1] = losses[-1] | own
        # As a leaf's, the loss is not finite where z is not.
        bad = ~real if mask is None else ~real & mask
        loss = loss / len(self.scales) + jnp.where(jnp.any(bad), jnp.nan, 0.0)
        z_q = sums.z_q(x, estimator, noise_key(key, len(self.scales)), mask, axis_name)
        alive = real & self._alive(grids)
        z_q = jnp.where(alive[..., None], z_q, 0).astype(z.dtype)
        losses = jax.tree.map(lambda *terms: jnp.stack(terms), *losses)
        return Quantized(z_q, self._joined(grids), loss, losses)

    def _used(self, key, x, mask, axis_name):
        """Which scales each grid of x uses, bool [S, ...], or None where all do."""
        if key is None or self.dropout is None:
            return None
        key = jax.random.fold_in(key, len(self.scales))
        some = None if mask is None else jnp.any(mask, axis=(-2, -1))
        dropout = dropout_of(self.dropout, len(self.scales))
        assert dropout is not None
        return dropout.used(key, x.shape[:-3], len(self.scales), some, axis_name)

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

        weights [..., H, W]: a coarse vector counts as the mean of the real ones of its area.
        """
        self._check_grid(z)
        left = lax.stop_gradient(z).astype(jnp.float32)
        real = real_vectors(left, mask)
        means_of, some_of, heavy = [], [], []
        for k, grid in enumerate(self._cut(codes)):
            means, some = ops.area_means(left, real, self.sizes[k])
            means_of.append(self.inner.unbound(means))
            some_of.append(some[..., None])
            if weights is not None:
                heavy.append(ops.area_means(weights[..., None], real, self.sizes[k])[0])
            left -= self._vectors(params, state, k, grid)
        rows, masks = one_after_another(means_of), one_after_another(some_of)[..., 0]
        codes = jnp.moveaxis(codes, -1, rows.ndim - 2)
        weights = None if weights is None else one_after_another(heavy)[..., 0]
        inner = self._inner(params)
        return self.inner.update(inner, state, rows, codes, key, masks, axis_name, weights)

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
        return one_after_another(means)

    def _check_grid(self, z):
        if z.ndim < 3 or z.shape[-3:-1] != self.grid:
            raise ValueError(
                f'z must be [..., H, W, D] with the grid {self.grid}, the last of '
                f'scales={self.scales}, got z of shape {z.shape}'
            )

    def _inner(self, params):
        return params.inner if self.phi else params

    def _cut(self, codes):
        """Grids as the inner has them: [..., *inner, L] -> S arrays [..., h, w, *inner]."""
        axes = len(self.inner.code_shape)
        return [
            jnp.moveaxis(grid, (-2, -1), (-2 - axes, -1 - axes)) for grid in self.to_grids(codes)
        ]

    def _joined(self, grids):
        """The inverse of `_cut`."""
        axes = len(self.inner.code_shape)
        return self.from_grids(
            [jnp.moveaxis(grid, (-2 - axes, -1 - axes), (-2, -1)) for grid in grids]
        )

    def _alive(self, grids):
        """Which vectors are real by the finest scale that has a code, bool [..., H, W]."""
        return real_by_codes(grids, len(self.inner.code_shape), self.grid)

    def _vectors(self, params, state, k, grid):
        """What scale k's codes [..., h, w, *inner] add: float32 [..., H, W, D]."""
        vectors = self.inner.decode(self._inner(params), state, grid)
        return self._grown(params, k, vectors, grid)

    def _grown(self, params, k, vectors, grid):
        """Vectors [..., h, w, D] of scale k at full size, through phi: [..., H, W, D]."""
        vectors = ops.bicubic(vectors, self.grid)
        if self.phi:
            p = phis.at_scale(k, len(self.scales), len(self.phi))
            vectors = phis.mix(vectors, params.kernels[p], params.biases[p], self.phi[p])
        used = jnp.any(with_codes(grid, len(self.inner.code_shape)), axis=(-2, -1))
        return jnp.where(used[..., None, None, None], vectors, 0.0)

    def _sums(self, params, state, grids):
        """The sum after each scale, S arrays float32 [..., H, W, D]."""
        sums = []
        for k, grid in enumerate(grids):
            vectors = self._vectors(params, state, k, grid)
            sums.append(sums[-1] + vectors if sums else vectors)
        return sums
