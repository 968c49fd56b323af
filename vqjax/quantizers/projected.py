"""Quantization in another space: learned maps in and out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vqjax import ops
from vqjax.ops import AxisName
from vqjax.ops.fields import is_number
from vqjax.ops.serialization import exported
from vqjax.quantizers.base import (
    PyTree,
    Quantized,
    Quantizer,
    array_shape,
    check,
    check_count,
    check_flag,
    check_inner,
    check_start,
    checked,
)
from vqjax.quantizers.inner_quantizers import Around


@exported
class ProjectedParams(NamedTuple):
    """Kernels float32 [D, dim] and [dim, D], and the inner quantizer's params.

    With `bias` also bias_in [dim] and bias_out [D]; with `layer_norm` scale and offset [dim]; with
    `hidden` kernel_hidden [D, hidden] and bias_hidden [hidden], and kernel_in is [hidden, dim].
    What is not used is ().
    """

    kernel_in: jax.Array
    kernel_out: jax.Array
    inner: PyTree
    bias_in: jax.Array | tuple[()] = ()
    bias_out: jax.Array | tuple[()] = ()
    scale: jax.Array | tuple[()] = ()
    offset: jax.Array | tuple[()] = ()
    kernel_hidden: jax.Array | tuple[()] = ()
    bias_hidden: jax.Array | tuple[()] = ()


# As in torch.nn.LayerNorm.
_VARIANCE_EPS = 1e-5


@dataclass(frozen=True, repr=False)
class Projected(Around):
    """A quantizer behind a learned projection D -> dim and before one back.

    With normalize, vectors have unit length between the two: with a cosine codebook the
    factorized, l2-normalized codes of ViT-VQGAN (arXiv:2110.04627 section 3.2). The kernels start
    as an orthonormal one and its transpose (behind `hidden` as two orthonormal ones), biases as
    zeros. A vector without any code is the zero
    vector, whatever the biases are.

    Fields:
      inner: the quantizer of the projected vectors.
      dim: features between the projections.
      normalize: whether they are scaled to unit length.
      bias: whether a bias follows each projection.
      layer_norm: whether a layer norm (arXiv:1607.06450) with learned scale and offset follows the
        first projection.
      hidden: units of a ReLU layer, with a bias, in front of the first projection; 0 = none.
      dropout: share of these units that are left out, and the others scaled up, where `quantize`
        is given a key; the statistics of `update` see all of them.

    Params `ProjectedParams`, state the inner's; the projections learn from z_q's gradient and the
    inner's losses. Raises ValueError for a field out of range.
    """

    inner: Quantizer
    dim: int
    normalize: bool = False
    bias: bool = False
    layer_norm: bool = False
    hidden: int = 0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_inner(type(self).__name__, self.inner)
        check_count('dim', self.dim)
        check_flag('normalize', self.normalize)
        check_flag('bias', self.bias)
        check_flag('layer_norm', self.layer_norm)
        check_count('hidden', self.hidden, least=0)
        share = is_number(self.dropout) and 0 <= self.dropout < 1
        check(share, 'dropout', self.dropout, 'at least 0 and below 1')
        need = '0 without hidden units, which it leaves out: set hidden'
        check(self.hidden or not self.dropout, 'dropout', self.dropout, need)

    def first_stages(
        self, num: int, params: PyTree, state: PyTree
    ) -> tuple[Quantizer, PyTree, PyTree]:
        """The inner's first stages between the same projections, see `Base.first_stages`."""
        inner, inner_params, state = self.inner.first_stages(num, params.inner, state)
        return dataclasses.replace(self, inner=inner), params._replace(inner=inner_params), state

    def _project(self, params, z, key=None, places: Any = None):
        """z [..., D] in the space of the inner; with a key and each row's place units drop out."""
        x = z.astype(jnp.float32)
        finite = jnp.all(jnp.isfinite(x), axis=-1, keepdims=True)
        # Out of the product, whose gradient to the kernel it would spoil, and bad again behind it.
        x = jnp.where(finite, x, 0.0)
        if self.hidden:
            x = jnp.matmul(x, params.kernel_hidden, precision=lax.Precision.HIGHEST)
            x = jax.nn.relu(x + params.bias_hidden)
            if key is not None:
                kept = ops.uniform_noise(key, places, self.hidden) >= self.dropout
                x = jnp.where(kept.reshape(x.shape), x / (1 - self.dropout), 0.0)
        x = jnp.matmul(x, params.kernel_in, precision=lax.Precision.HIGHEST)
        if self.bias:
            x = x + params.bias_in
        if self.layer_norm:
            mean = jnp.mean(x, axis=-1, keepdims=True)
            variance = jnp.mean((x - mean) ** 2, axis=-1, keepdims=True)
            x = (x - mean) * lax.rsqrt(variance + _VARIANCE_EPS) * params.scale + params.offset
        x = jnp.where(finite, x, jnp.nan)
        return ops.normalize(x) if self.normalize else x

    def shapes(self, dim: int) -> tuple[ProjectedParams, PyTree]:
        """The kernels, what stands beside them, and the inner's."""
        params, state = self.inner.shapes(self.dim)
        into = array_shape(self.hidden or dim, self.dim)
        found = ProjectedParams(into, array_shape(self.dim, dim), params)
        if self.bias:
            found = found._replace(bias_in=array_shape(self.dim), bias_out=array_shape(dim))
        if self.layer_norm:
            found = found._replace(scale=array_shape(self.dim), offset=array_shape(self.dim))
        if self.hidden:
            found = found._replace(
                kernel_hidden=array_shape(dim, self.hidden), bias_hidden=array_shape(self.hidden)
            )
        return found, state

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
        dim = z.shape[-1]
        orthogonal = jax.nn.initializers.orthogonal()
        he_normal = jax.nn.initializers.he_normal()
        if self.hidden:
            into, out, layer = jax.random.split(first, 3)
            params = ProjectedParams(
                kernel_in=orthogonal(into, (self.hidden, self.dim), jnp.float32),
                kernel_out=orthogonal(out, (self.dim, dim), jnp.float32),
                inner=(),
                kernel_hidden=he_normal(layer, (dim, self.hidden), jnp.float32),
                bias_hidden=jnp.zeros(self.hidden, jnp.float32),
            )
        else:
            kernel = orthogonal(first, (dim, self.dim), jnp.float32)
            params = ProjectedParams(kernel, kernel.T, ())
        if self.bias:
            biases = (jnp.zeros(size, jnp.float32) for size in (self.dim, dim))
            params = params._replace(**dict(zip(('bias_in', 'bias_out'), biases, strict=True)))
        if self.layer_norm:
            ones = jnp.ones(self.dim, jnp.float32)
            params = params._replace(scale=ones, offset=jnp.zeros_like(ones))
        inner, state = self.inner.init(second, self._project(params, z), mask, axis_name)
        return params._replace(inner=inner), state

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
        drop, places = None, None
        if key is not None and self.dropout:
            key, drop = jax.random.split(key)
            places = ops.row_places(ops.flat_rows(z, mask)[1], axis_name)
        x = self._project(params, z, drop, places)
        out = self.inner.quantize(params.inner, state, x, key, mask, axis_name)
        return out._replace(z_q=self._back(params, out.z_q, out.codes).astype(z.dtype))

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
        x = self._project(params, lax.stop_gradient(z))
        return self.inner.update(params.inner, state, x, codes, key, mask, axis_name, weights)

    @checked
    def decode(self, params: PyTree, state: PyTree, codes: jax.Array) -> jax.Array:
        """The inner's vectors of codes, projected back: float32 [..., D]."""
        return self._back(params, self.inner.decode(params.inner, state, codes), codes)

    def _back(self, params, vectors, codes):
        x = jnp.matmul(vectors, params.kernel_out, precision=lax.Precision.HIGHEST)
        if not self.bias:
            return x
        x = ops.rounded(x) + params.bias_out
        return jnp.where(self.inner.coded(codes)[..., None], x, 0.0)
