"""Product quantization: groups of features, each with its own codes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vqjax.ops import AxisName
from vqjax.ops.compiling import compiled_once
from vqjax.quantizers.base import (
    Base,
    PyTree,
    Quantized,
    Quantizer,
    check_count,
    check_flag,
    check_inner,
    check_start,
    checked,
    stacked,
)


@dataclass(frozen=True, repr=False)
class Product(Base):
    """Product quantization (Jegou et al. 2011, doi:10.1109/TPAMI.2010.57).

    z [..., D] is cut into G groups of D / G features; `loss` is the mean over groups, so that a
    squared error stays one over all features.

    Fields:
      inner: the quantizer of every group.
      num_groups: G, which must divide D.
      shared: one codebook for all groups (multi-head), updated once with the vectors of all.

    Params and state are the inner's with leading axis [G], or the inner's own if shared. Codes get
    a trailing axis [G], losses a leading one. Raises ValueError for a field out of range, and at
    trace time for a D that G does not divide.
    """

    inner: Quantizer
    num_groups: int
    shared: bool = False

    def __post_init__(self) -> None:
        check_inner(type(self).__name__, self.inner)
        check_count('num_groups', self.num_groups)
        check_flag('shared', self.shared)

    @property
    def num_codes(self) -> int:  # type: ignore[override]
        """K of a group."""
        return self.inner.num_codes

    @property
    def code_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """The inner's, and G."""
        return (*self.inner.code_shape, self.num_groups)

    @property
    def bits(self) -> float:
        """The groups' bits together."""
        return self.num_groups * self.inner.bits

    @property
    def code_sizes(self) -> np.ndarray:
        """The inner's in every group, int32 [*inner, G]."""
        return np.stack([self.inner.code_sizes] * self.num_groups, axis=-1)

    def completed(self, codes: jax.Array) -> jax.Array:
        """Codes [..., *shorter, G] whose groups are completed as the inner does it."""
        whole = codes.shape[-len(self.code_shape) :] == self.code_shape
        if whole or codes.ndim < len(self.code_shape) or codes.shape[-1] != self.num_groups:
            return codes
        groups = jnp.moveaxis(codes, -1, 0)
        return jnp.moveaxis(self.inner.completed(groups), 0, -1)

    def first_stages(
        self, num: int, params: PyTree, state: PyTree
    ) -> tuple[Quantizer, PyTree, PyTree]:
        """The first stages of every group, see `Base.first_stages`."""
        if self.shared:
            inner, params, state = self.inner.first_stages(num, params, state)
            return dataclasses.replace(self, inner=inner), params, state

        def cut(params, state):
            return self.inner.first_stages(num, params, state)[1:]

        first = jax.tree.map(lambda x: x[0], (params, state))
        inner = self.inner.first_stages(num, *first)[0]
        return dataclasses.replace(self, inner=inner), *jax.vmap(cut)(params, state)

    @property
    def stage_scale(self) -> float | tuple[float, ...]:  # type: ignore[override]
        """The inner's, for each group."""
        scale = np.asarray(self.inner.stage_scale)
        return tuple(np.tile(scale, self.num_groups).tolist()) if scale.ndim else float(scale)

    def unbound(self, z: jax.Array) -> jax.Array:
        """The inner's, for each group of z [..., D]."""
        return self.inner.unbound(self._grouped(z)).reshape(z.shape)

    @property
    def starts_from_data(self) -> bool:  # type: ignore[override]
        """The inner's."""
        return self.inner.starts_from_data

    @property
    def coded_in_training(self) -> bool:  # type: ignore[override]
        """The inner's."""
        return self.inner.coded_in_training

    @property
    def targets_only(self) -> bool:  # type: ignore[override]
        """The inner's."""
        return self.inner.targets_only

    @property
    def _axis(self):
        return None if self.shared else 0

    def _grouped(self, z):
        """[..., D] -> [..., G, D / G]."""
        if z.shape[-1] % self.num_groups:
            raise ValueError(
                f'num_groups={self.num_groups} must divide the features of z, '
                f'got z of shape {z.shape}'
            )
        return z.reshape(*z.shape[:-1], self.num_groups, -1)

    def _per_group(self, mask):
        """The mask, or the weights, [..., G] of grouped vectors."""
        return None if mask is None else jnp.stack([mask] * self.num_groups, axis=-1)

    def _codes_first(self, codes):
        """[..., *inner, G] -> [..., G, *inner], as the inner takes grouped vectors."""
        return jnp.moveaxis(codes, -1, -1 - len(self.inner.code_shape))

    def shapes(self, dim: int) -> tuple[PyTree, PyTree]:
        """The inner's for a group, stacked unless shared."""
        if dim % self.num_groups:
            raise ValueError(f'num_groups={self.num_groups} must divide the {dim} features')
        trees = self.inner.shapes(dim // self.num_groups)
        return trees if self.shared else stacked(self.num_groups, trees)

    @checked
    def init(
        self,
        key: jax.Array,
        z: jax.Array,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> tuple[PyTree, PyTree]:
        """(params, state): each group starts from its part of z [..., D].

        Raises:
          ValueError: for a D that G does not divide; for a group of identical, zero or
            non-finite vectors (outside jit).
        """
        z = self._grouped(z.astype(jnp.float32))
        if self.shared:
            return self.inner.init(key, z, self._per_group(mask), axis_name)
        for group in range(self.num_groups):
            check_start(self, z[..., group, :], mask)
        return self._start(jax.random.split(key, self.num_groups), z, mask, axis_name)

    @compiled_once
    def _start(self, keys, z, mask, axis_name):
        """The groups [..., G, D / G] started one after the other."""
        groups = jnp.moveaxis(z, -2, 0)
        return lax.map(
            lambda args: self.inner.init(args[0], args[1], mask, axis_name), (keys, groups)
        )

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
        """Codes [..., G] and vectors of z [..., D], the groups side by side (`vmap`)."""
        groups = self._grouped(z)
        keys = None if key is None else jax.random.split(key, self.num_groups)

        def quantize(params, state, z, key):
            return self.inner.quantize(params, state, z, key, mask, axis_name)

        axes: Any = -2, -1, 0, 0
        out = jax.vmap(
            quantize,
            in_axes=(self._axis, self._axis, -2, 0),
            out_axes=Quantized(*axes),
        )(params, state, groups, keys)
        z_q = out.z_q.reshape(*z.shape[:-1], -1)
        return Quantized(z_q, out.codes, jnp.mean(out.loss), out.losses)

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
        """Each group's state after its part of z [..., D]."""
        groups = self._grouped(z)
        if self.shared:
            codes = self._codes_first(codes)
            mask, weights = self._per_group(mask), self._per_group(weights)
            return self.inner.update(params, state, groups, codes, key, mask, axis_name, weights)
        keys = None if key is None else jax.random.split(key, self.num_groups)

        # One group after the other: under vmap the condition in front of revival would become a
        # selection, and its work be done at every step.
        def update(args):
            params, state, z, codes, key = args
            return self.inner.update(params, state, z, codes, key, mask, axis_name, weights)

        parts = (params, state, jnp.moveaxis(groups, -2, 0), jnp.moveaxis(codes, -1, 0), keys)
        return lax.map(update, parts)

    @checked
    def decode(self, params: PyTree, state: PyTree, codes: jax.Array) -> jax.Array:
        """Vectors float32 [..., D] of codes [..., G], the groups side by side."""
        vectors = jax.vmap(self.inner.decode, in_axes=(self._axis, self._axis, -1), out_axes=-2)(
            params, state, codes
        )
        return vectors.reshape(*vectors.shape[:-2], -1)
