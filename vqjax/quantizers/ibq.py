"""Index backpropagation: a codebook all of whose codes a step moves, through their scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from vqjax import ops
from vqjax.ops import AxisName
from vqjax.quantizers.arguments import argument, frozen
from vqjax.quantizers.base import (
    Quantized,
    array_shape,
    blank,
    check,
    check_count,
    check_start,
    check_weight,
    checked,
    is_number,
    look_up,
)
from vqjax.quantizers.codebook import Codebook, check_assignment, given_start
from vqjax.quantizers.protocol import PyTree

_METRICS = ('dot', 'euclidean')


@frozen
class IBQ(Codebook):
    """Index backpropagation quantization (arXiv:2412.02692 section 3.2).

    z_q = (onehot - sg(p) + p) codebook with p = softmax(scores): forward the code of the largest
    score, backward z and every code move with p, not the chosen code alone. Neither direction
    holds an N x K matrix (see `ops.soft_index`).

    loss = index |z - z_q|^2 + commitment |z - sg(c)|^2 + codebook |sg(z) - c|^2 with c the chosen
    code (the first term too reaches all of them: the double quantization loss), and
    entropy (E[H(p)] - gamma H(E[p])) with p at inv_temperature. Its authors' code has these
    weights, with the entropy term as an option.

    Fields:
      num_codes: K.
      index, commitment, codebook: weights of the three squared errors (mean over features).
      entropy: weight of the two entropy terms; their gradient takes another pass over all scores.
      gamma: weight of the batch's entropy against that of single vectors.
      inv_temperature: what scores are multiplied by in those two terms.
      metric: scores are z.c ('dot', as in the paper) or minus the squared distance ('euclidean').
      init: start of the codebook; the paper's is `ops.normal`.
      assignment: with a key, how codes are chosen: the nearest, or evenly by `ops.Sinkhorn()`.

    Its gradient is written by hand (`ops.soft_index`), so there is reverse mode only: `jax.jvp`,
    `jax.jacfwd` and second derivatives raise JAX's TypeError.

    Params codebook float32 [K, D], state (). Raises ValueError for a field out of range.
    """

    num_codes: int
    commitment: float = 1.0
    codebook: float = 0.25
    index: float = 1.0
    entropy: float = 0.0
    gamma: float = 1.0
    inv_temperature: float = 100.0
    metric: str = 'dot'
    start: Any = argument(default=ops.kmeans, alias='init')
    assignment: Callable[..., jax.Array] = ops.nearest_assignment

    def __post_init__(self, init: Any = None) -> None:
        check_count('num_codes', self.num_codes)
        for name in ('commitment', 'codebook', 'index', 'entropy', 'gamma'):
            check_weight(name, getattr(self, name))
        # Beyond it the gradient of the entropies, and its square in an optimizer, leave float32.
        known = is_number(self.inv_temperature) and 0 < self.inv_temperature <= 1e6
        check(known, 'inv_temperature', self.inv_temperature, 'above 0 and at most 1e6')
        check(self.metric in _METRICS, 'metric', self.metric, f'one of {_METRICS}')
        check_assignment(self)
        object.__setattr__(self, 'start', given_start(self, init))

    def shapes(self, dim: int) -> tuple[jax.ShapeDtypeStruct, tuple[()]]:
        """A codebook and ()."""
        return array_shape(self.num_codes, dim), ()

    @checked
    def init(
        self,
        key: jax.Array,
        z: jax.Array,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> tuple[PyTree, PyTree]:
        """(codebook, ()) from what `start` makes of z [..., D].

        Raises:
          ValueError: for a batch of identical, zero or non-finite vectors (outside jit).
        """
        check_start(self, z, mask)
        x = self.prepare(z)
        return self.start(key, x, self.num_codes, mask=mask, axis_name=axis_name)[0], ()

    def read_codebook(self, params: PyTree, state: PyTree) -> jax.Array:
        """Params, float32 [K, D]."""
        del state
        return params

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
        vectors = look_up(params, codes)
        z_q = ops.graft(vectors, vectors + blank(ops.soft_index(x, params, self.metric), codes))
        losses = {
            'index': ops.squared_error(x, z_q, mask, axis_name),
            'commitment': ops.squared_error(x, lax.stop_gradient(vectors), mask, axis_name),
            'codebook': ops.squared_error(lax.stop_gradient(x), vectors, mask, axis_name),
        }
        loss: Any = sum(getattr(self, name) * term for name, term in losses.items())
        if self.entropy:
            soft = ops.soft_assignments(
                x, params, 1 / self.inv_temperature, self.metric, mask, axis_name
            )
            losses['per_sample_entropy'] = soft.entropy
            losses['batch_entropy'] = ops.entropy(soft.mean)
            loss += self.entropy * (soft.entropy - self.gamma * losses['batch_entropy'])
        return Quantized(blank(z_q, codes).astype(z.dtype), codes, loss, losses)
