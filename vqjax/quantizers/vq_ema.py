"""Vector quantization with a codebook moved by exponential moving averages."""

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
    Quantized,
    array_shape,
    blank,
    check_start,
    check_weight,
    checked,
    look_up,
)
from vqjax.quantizers.codebook import Codebook, check_codebook_fields
from vqjax.quantizers.protocol import PyTree


@exported
class VQEMAState(NamedTuple):
    """Moving averages: counts float32 [K], sums float32 [K, D], training steps int32 []."""

    counts: jax.Array
    sums: jax.Array
    step: jax.Array


@frozen
class VQEMA(Codebook):
    """VQ-VAE's codebook with exponential moving averages (arXiv:1711.00937, appendix A.1).

    A training step is: assign to the nearest code; read the old codebook; counts <- g counts +
    (1 - g) c and sums <- g sums + (1 - g) sum z; revive. The codebook is always derived,
    sums / smoothed(counts), so a code, its count and its sum cannot disagree.

    Fields:
      num_codes: K.
      decay: g in [0, 1).
      commitment: weight of the commitment loss |z - sg(z_q)|^2 (mean over features).
      eps: Laplace smoothing of the counts, in counts.
      metric: 'euclidean', or 'cosine': vectors and codes of unit length.
      init: start of the codebook, (key, z, k, mask, axis_name) -> centroids and counts.
      revival: what becomes of dead codes; None leaves them.
      gradient: estimator, (z, z_q) -> z_q with a gradient.
      temperature: with a key, codes are sampled from softmax(-squared distance / temperature).
      assignment: with a key, how codes are chosen: the nearest, or evenly by `ops.Sinkhorn()`.
      balance: weight of `ops.code_balance` (ERVQ, arXiv:2410.12359), which moves z towards codes
        that are little used; the averages follow.

    Params (), state `VQEMAState`. Raises ValueError for a field out of range.
    """

    num_codes: int
    decay: float = 0.99
    commitment: float = 0.25
    eps: float = 1e-5
    metric: str = 'euclidean'
    start: Any = argument(default=ops.kmeans, alias='init')
    revival: Revival | None = Revival()
    gradient: Callable[[jax.Array, jax.Array], jax.Array] = ops.straight_through
    temperature: float = 0.0
    assignment: Callable[..., jax.Array] = ops.nearest_assignment
    balance: float = 0.0

    def __post_init__(self, init: Any = None) -> None:
        check_codebook_fields(self, init)
        check_weight('commitment', self.commitment)
        check_weight('balance', self.balance)
        check_weight('eps', self.eps)

    def shapes(self, dim: int) -> tuple[tuple[()], VQEMAState]:
        """() and an array of each field of VQEMAState."""
        return (), VQEMAState(array_shape(self.num_codes), array_shape(self.num_codes, dim), STEP)

    @checked
    def init(
        self,
        key: jax.Array,
        z: jax.Array,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> tuple[tuple[()], VQEMAState]:
        """() and the state whose codebook is what `start` makes of z [..., D].

        Raises:
          ValueError: for a batch of identical, zero or non-finite vectors (outside jit).
        """
        check_start(self, z, mask)
        x = self.prepare(z)
        centroids, counts = self.start(key, x, self.num_codes, mask=mask, axis_name=axis_name)[:2]
        if self.metric == 'cosine':
            centroids = ops.normalize(centroids)
        # An empty cluster starts as a little used code, not as one of no weight.
        counts = jnp.maximum(counts, self.eps)
        sums = centroids * ops.smoothed(counts, self.eps)[:, None]
        return (), VQEMAState(counts, sums, jnp.zeros((), jnp.int32))

    def read_codebook(self, params: PyTree, state: PyTree) -> jax.Array:
        """sums / smoothed(counts), float32 [K, D]; of unit length for the cosine metric."""
        del params
        vectors = ops.rounded(state.sums * (1 / ops.smoothed(state.counts, self.eps))[:, None])
        return lax.stop_gradient(ops.unit_rows(vectors) if self.metric == 'cosine' else vectors)

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
        losses = {'commitment': ops.squared_error(x, vectors, mask, axis_name)}
        losses |= self.balance_losses(x, codebook, mask, axis_name)
        loss: Any = sum(getattr(self, name) * term for name, term in losses.items())
        z_q = blank(self.gradient(x, vectors), codes).astype(z.dtype)
        return Quantized(z_q, codes, loss, losses)

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
    ) -> VQEMAState:
        """Move the averages towards this batch, then revive.

        z [..., D], codes int32 [...]; vectors that are masked or not finite count nowhere, and a
        batch without any leaves everything but the step as it was. Under `axis_name` the batch is
        that of all replicas.
        """
        rows, codes, valid, keep, counts = self.observe(
            state.counts, z, codes, mask, axis_name, weights
        )
        batch_sums = ops.code_sums(rows, codes, self.num_codes, None, axis_name, weights)
        sums = keep * state.sums + (1 - keep) * batch_sums
        moved = VQEMAState(counts, sums, state.step + 1)
        if self.revival is None:
            return moved
        batch = ops.Batch(rows, codes, valid, self.read_codebook(params, state))
        revived = self.revival(
            key, batch, self.read_codebook(params, moved), counts, moved.step, axis_name
        )
        # Code, count and sum are reset together: the next step cannot bring the old code back.
        reset = revived.codebook * ops.smoothed(revived.counts, self.eps)[:, None]
        return moved._replace(
            counts=revived.counts, sums=jnp.where(revived.changed[:, None], reset, sums)
        )
