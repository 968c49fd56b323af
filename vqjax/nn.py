"""Quantizers as Flax modules: statistics in a mutable collection, gradients in params."""

from __future__ import annotations

import flax.linen as nn
import jax

from vqjax.ops import AxisName
from vqjax.ops.fields import check
from vqjax.quantizers import Quantized, Quantizer
from vqjax.quantizers.base import PyTree

COLLECTION = 'codebook_stats'
# Of a quantizer's variables in the collection `params`, and in COLLECTION.
PARAMS, STATE = 'quantizer', 'state'


class Quantize(nn.Module):
    """Any quantizer as a Linen module.

    Its state lives in the collection `codebook_stats`, what gradients train in `params`, and
    randomness comes from the stream `quantizer` where the caller gives one. Initialise the model
    on a large batch of real data: the codebook starts from the z it sees then. Initialising does
    no collective, so give every replica the same batch.

    Attributes:
      quantizer: a quantizer of `vqjax.quantizers`.
      axis_name: mapped axis or axes over which statistics are summed in training.
    """

    quantizer: Quantizer
    axis_name: AxisName = None

    def __post_init__(self) -> None:
        is_quantizer = isinstance(self.quantizer, Quantizer)
        is_quantizer &= not isinstance(self.quantizer, type)
        check(is_quantizer, 'quantizer', self.quantizer, 'a quantizer, such as vqjax.VQEMA(256)')
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        z: jax.Array,
        train: bool,
        mask: jax.Array | None = None,
        weights: jax.Array | None = None,
    ) -> Quantized:
        """Quantize, and with `train` update the statistics afterwards.

        Args:
          z: [..., D].
          train: whether this is a training step; `apply` then needs
            mutable=['codebook_stats'].
          mask: bool [...], True = real.
          weights: float [...], what each vector counts for in the statistics; None = 1.

        Returns:
          Quantized.

        Raises:
          ValueError: where the quantizer does, e.g. for an init batch of identical vectors.
        """
        start = None
        if self.is_initializing():
            start = self.quantizer.init(self.make_rng('params'), z, mask)
        params, state = self.held(start)
        axis_name = None if self.is_initializing() else self.axis_name
        quantize_key, update_key = self.draw_keys()
        out = self.quantizer.quantize(params, state, z, quantize_key, mask, axis_name)
        if train:
            self.learn(z, out.codes, update_key, mask, weights)
        return out

    def held(self, start: tuple[PyTree, PyTree] | None = None) -> tuple[PyTree, PyTree]:
        """(params, state); `start`, where given, is kept as them first."""
        # Without leaves there is nothing to keep: no empty entry in params or statistics.
        return self._kept(start, 'params', PARAMS), self._kept(start, COLLECTION, STATE)

    def draw_keys(self) -> tuple[jax.Array | None, jax.Array | None]:
        """Keys for `quantize` and `update`, from the stream `quantizer` where there is one."""
        if self.is_initializing() or not self.has_rng('quantizer'):
            return None, None
        first, second = jax.random.split(self.make_rng('quantizer'))
        return first, second

    def learn(
        self,
        z: jax.Array,
        codes: jax.Array,
        key: jax.Array | None,
        mask: jax.Array | None,
        weights: jax.Array | None = None,
    ) -> None:
        """Update the statistics, where there are any; not while initialising."""
        if not self.is_initializing() and self.has_variable(COLLECTION, STATE):
            params, state = self.held()
            state = self.quantizer.update(
                params, state, z, codes, key, mask, self.axis_name, weights
            )
            self.put_variable(COLLECTION, STATE, state)

    def _kept(self, start, collection, name):
        if start is not None:
            value = start[0] if collection == 'params' else start[1]
            if jax.tree.leaves(value):
                self.put_variable(collection, name, value)
        return self.get_variable(collection, name, ())
