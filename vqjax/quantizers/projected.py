"""Quantization in another space: learned maps in and out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vqjax import ops
from vqjax.ops import AxisName
from vqjax.ops.serialization import exported
from vqjax.quantizers.base import (
    Base,
    PyTree,
    Quantized,
    Quantizer,
    array_shape,
    check_count,
    check_flag,
    check_inner,
    check_start,
    checked,
)


@exported
class ProjectedParams(NamedTuple):
    """Kernels float32 [D, dim] and [dim, D], and the inner quantizer's params."""

    kernel_in: jax.Array
    kernel_out: jax.Array
    inner: PyTree


@dataclass(frozen=True, repr=False)
class Projected(Base):
    """A quantizer behind a learned projection D -> dim and before one back.

    With normalize, vectors have unit length between the two: with a cosine codebook the
    factorized, l2-normalized codes of ViT-VQGAN (arXiv:2110.04627 section 3.2). The kernels start
    as an orthonormal one and its transpose.

    Fields:
      inner: the quantizer of the projected vectors.
      dim: features between the projections.
      normalize: whether they are scaled to unit length.

    Params `ProjectedParams`, state the inner's; the kernels learn from z_q's gradient and the
    inner's losses. Raises ValueError for a field out of range.
    """

    inner: Quantizer
    dim: int
    normalize: bool = False

    def __post_init__(self) -> None:
        check_inner(type(self).__name__, self.inner)
        check_count('dim', self.dim)
        check_flag('normalize', self.normalize)

    @property
    def num_codes(self) -> int:  # type: ignore[override]
        """The inner's."""
        return self.inner.num_codes

    @property
    def code_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """The inner's."""
        return self.inner.code_shape

    @property
    def grid(self) -> tuple[int, ...]:  # type: ignore[override]
        """The inner's."""
        return self.inner.grid

    def by_codebook(self, codes: jax.Array) -> jax.Array:
        """The inner's."""
        return self.inner.by_codebook(codes)

    @property
    def bits(self) -> float:
        """The inner's."""
        return self.inner.bits

    @property
    def starts_from_data(self) -> bool:  # type: ignore[override]
        """The inner's."""
        return self.inner.starts_from_data

    def _project(self, kernel, z):
        x = z.astype(jnp.float32)
        finite = jnp.all(jnp.isfinite(x), axis=-1, keepdims=True)
        # Out of the product, whose gradient to the kernel it would spoil, and bad again behind it.
        x = jnp.matmul(jnp.where(finite, x, 0.0), kernel, precision=lax.Precision.HIGHEST)
        x = jnp.where(finite, x, jnp.nan)
        return ops.normalize(x) if self.normalize else x

    def shapes(self, dim: int) -> tuple[ProjectedParams, PyTree]:
        """The kernels, and the inner's."""
        params, state = self.inner.shapes(self.dim)
        kernels = array_shape(dim, self.dim), array_shape(self.dim, dim)
        return ProjectedParams(*kernels, params), state

    @checked
    def init(
        self,
        key: jax.Array,
        z: jax.Array,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> tuple[PyTree, PyTree]:
        """(ProjectedParams, inner state); the inner starts from the projected z [..., D]."""
        check_start(self, z, mask)
        first, second = jax.random.split(key)
        kernel = jax.nn.initializers.orthogonal()(first, (z.shape[-1], self.dim), jnp.float32)
        params, state = self.inner.init(second, self._project(kernel, z), mask, axis_name)
        return ProjectedParams(kernel, kernel.T, params), state

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
        """The inner's codes of z [..., D], and its vectors projected back."""
        x = self._project(params.kernel_in, z)
        out = self.inner.quantize(params.inner, state, x, key, mask, axis_name)
        return out._replace(z_q=self._back(params, out.z_q).astype(z.dtype))

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
        """The inner's state after the projected z [..., D]."""
        x = self._project(params.kernel_in, lax.stop_gradient(z))
        return self.inner.update(params.inner, state, x, codes, key, mask, axis_name, weights)

    @checked
    def decode(self, params: PyTree, state: PyTree, codes: jax.Array) -> jax.Array:
        """The inner's vectors of codes, projected back: float32 [..., D]."""
        return self._back(params, self.inner.decode(params.inner, state, codes))

    def _back(self, params, vectors):
        return jnp.matmul(vectors, params.kernel_out, precision=lax.Precision.HIGHEST)
