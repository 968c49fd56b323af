"""Vector quantization with a codebook moved by gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vqjax import ops
from vqjax.ops import AxisName, Revival
from vqjax.ops.serialization import exported
from vqjax.quantizers.arguments import argument, frozen
from vqjax.quantizers.base import (
    STEP,
    PyTree,
    Quantized,
    array_shape,
    blank,
    check,
    check_flag,
    check_start,
    check_weight,
    checked,
    look_up,
)
from vqjax.quantizers.codebook import Codebook, check_codebook_fields


@exported
class VQState(NamedTuple):
    """Revival's part of the codebook [K, D], moving counts [K], training steps int32 []."""

    shift: jax.Array
    counts: jax.Array
    step: jax.Array


@exported
class Affine(NamedTuple):
    """Params with `affine`: codebook [K, D], and scale and offset [D] shared by all codes."""

    codebook: jax.Array
    scale: jax.Array
    offset: jax.Array


@frozen
class VQ(Codebook):
    """VQ-VAE's codebook as a parameter (arXiv:1711.00937 eq. 3).

    loss = codebook |sg(z) - z_q|^2 + commitment |z - sg(z_q)|^2, and the terms below. The
    codebook read is params + shift: revival moves the shift, which the optimizer does not know,
    so its moments never fight a revived code.

    Fields (those of VQEMA, and):
      codebook: weight of the codebook loss.
      decay: of the moving counts that revival looks at.
      orthogonality: weight of `ops.orthogonality` (arXiv:2112.00384).
      diversity: weight of `ops.diversity` of softmax(-squared distance).
      balance: weight of `ops.code_balance` (ERVQ, arXiv:2410.12359), which reaches unused codes.
      sync_nu: share of z_q's gradient that the codebook receives too (arXiv:2305.08842 sec. 4.2).
      affine: all codes share a learned scale and offset, so unused ones move along
        (arXiv:2305.08842 sec. 4.1).
      unit_values: False with the cosine metric: vectors and codes have unit length in the search
        alone, and their own in z_q and the losses (DAC, arXiv:2306.06546).

    Params codebook float32 [K, D] (or `Affine`), state `VQState`. Raises ValueError for a field
    out of range.
    """

    num_codes: int
    decay: float = 0.99
    commitment: float = 0.25
    codebook: float = 1.0
    metric: str = 'euclidean'
    start: Any = argument(default=ops.kmeans, alias='init')
    revival: Revival | None = Revival()
    gradient: Callable[[jax.Array, jax.Array], jax.Array] = ops.straight_through
    temperature: float = 0.0
    orthogonality: float = 0.0
    diversity: float = 0.0
    balance: float = 0.0
    sync_nu: float = 0.0
    affine: bool = False
    assignment: Callable[..., jax.Array] = ops.nearest_assignment
    unit_values: bool = True

    def __post_init__(self, init: Any = None) -> None:
        check_codebook_fields(self, init)
        for name in ('commitment', 'codebook', 'orthogonality', 'diversity', 'balance', 'sync_nu'):
            check_weight(name, getattr(self, name))
        check_flag('affine', self.affine)
        check_flag('unit_values', self.unit_values)
        need = "True unless metric='cosine', the only one that brings vectors to unit length"
        check(self.unit_values or self.metric == 'cosine', 'unit_values', self.unit_values, need)

    def shapes(self, dim: int) -> tuple[PyTree, VQState]:
        """A codebook, or Affine, and VQState."""
        codebook = array_shape(self.num_codes, dim)
        params = Affine(codebook, array_shape(dim), array_shape(dim)) if self.affine else codebook
        return params, VQState(codebook, array_shape(self.num_codes), STEP)

    @checked
    def init(
        self,
        key: jax.Array,
        z: jax.Array,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> tuple[PyTree, PyTree]:
        """(codebook or Affine, VQState) from what `start` makes of z [..., D].

        Raises:
          ValueError: for a batch of identical, zero or non-finite vectors (outside jit).
        """
        check_start(self, z, mask)
        x = self.prepare(z)
        params, counts = self.start(key, x, self.num_codes, mask=mask, axis_name=axis_name)[:2]
        state = VQState(jnp.zeros_like(params), jnp.maximum(counts, 1e-5), jnp.zeros((), jnp.int32))
        if self.affine:
            dim = params.shape[-1:]
            params = Affine(params, jnp.ones(dim, jnp.float32), jnp.zeros(dim, jnp.float32))
        return params, state

    def read_codebook(self, params: PyTree, state: PyTree) -> jax.Array:
        """Params + shift, float32 [K, D], differentiable in params.

        Scaled and moved if affine; of unit length for the cosine metric, but for `unit_values`.
        """
        shift = lax.stop_gradient(state.shift)
        if self.affine:
            vectors = ops.rounded((params.codebook + shift) * params.scale) + params.offset
        else:
            vectors = params + shift
        return ops.unit_rows(vectors) if self.unit_length else vectors

    def read(
        self,
        params: PyTree,
        state: PyTree,
        z: jax.Array,
        codes: jax.Array,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> Quantized:
        """z_q, loss and losses of z [..., D] for chosen codes [...]."""
        x = self.prepare(z)
        codebook = self.read_codebook(params, state)
        vectors = look_up(codebook, codes)
        fixed = lax.stop_gradient(vectors)
        losses = {
            'commitment': ops.squared_error(x, fixed, mask, axis_name),
            'codebook': ops.squared_error(lax.stop_gradient(x), vectors, mask, axis_name),
        }
        losses |= self.balance_losses(x, codebook, mask, axis_name)
        if self.orthogonality:
            losses['orthogonality'] = ops.orthogonality(codebook)
        if self.diversity:
            mean = ops.mean_assignment(x, codebook, 1.0, self.metric, mask, axis_name)
            losses['diversity'] = ops.imbalance(mean)
        z_q = self.gradient(x, vectors)
        if self.sync_nu:
            z_q = ops.graft(z_q, z_q + self.sync_nu * vectors)
        loss: Any = sum(getattr(self, name) * term for name, term in losses.items())
        return Quantized(blank(z_q, codes).astype(z.dtype), codes, loss, losses)

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
    ) -> VQState:
        """Move the counts towards this batch's, then revive through the shift.

        z [..., D], codes int32 [...]. Read with the params of the step, before or after the
        optimizer's: the shift is a difference and holds for both.
        """
        params = lax.stop_gradient(params)
        rows, codes, valid, _, counts = self.observe(
            state.counts, z, codes, mask, axis_name, weights
        )
        step = state.step + 1
        if self.revival is None:
            return VQState(state.shift, counts, step)
        codebook = self.read_codebook(params, state)
        batch = ops.Batch(rows, codes, valid, codebook)
        revived = self.revival(key, batch, codebook, counts, step, axis_name)
        target = self.shift_to(params, revived.codebook)
        shift = jnp.where(revived.changed[:, None], target, state.shift)
        return VQState(shift, revived.counts, step)

    def shift_to(self, params: PyTree, codebook: jax.Array) -> jax.Array:
        """The shift [K, D] with which `read_codebook` gives this codebook [K, D]."""
        params = lax.stop_gradient(params)
        if not self.affine:
            return codebook - params
        scale = jnp.where(jnp.abs(params.scale) > 1e-6, params.scale, 1.0)
        return (codebook - params.offset) / scale - params.codebook
