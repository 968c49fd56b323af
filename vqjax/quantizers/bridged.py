"""A codebook seen through a learned map, which moves all codes at every step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vqjax import ops
from vqjax.ops import AxisName
from vqjax.ops.bridges import PyTree
from vqjax.ops.serialization import exported
from vqjax.quantizers.base import (
    Quantized,
    array_shape,
    blank,
    check,
    check_count,
    check_flag,
    check_positive,
    check_start,
    check_weight,
    checked,
    hide,
    look_up,
)
from vqjax.quantizers.codebook import Codebook, check_assignment


@exported
class BridgedParams(NamedTuple):
    """What the bridge learns, and the codes float32 [K, D] where they are learned too, else ()."""

    bridge: PyTree
    codes: jax.Array | tuple[()]


class BridgedCodebook(Codebook):
    """What `Bridged` and `SimVQ` share: codes, drawn at random, read through `bridge`.

    Subclasses have the fields num_codes, commitment, codebook, gradient, assignment and length, a
    bridge, and give `init` and `_parts`.
    """

    num_codes: int
    commitment: float
    codebook: float
    length: float | None
    bridge: Any

    @property
    def starts_from_data(self) -> bool:  # type: ignore[override]
        """Always: the codes' length is that of z."""
        return True

    def __post_init__(self) -> None:
        check_count('num_codes', self.num_codes)
        check_weight('commitment', self.commitment)
        check_weight('codebook', self.codebook)
        if self.length is not None:
            check_positive('length', self.length)
        gradient = ops.named_function('gradient', self.gradient, ops.ESTIMATORS)
        object.__setattr__(self, 'gradient', gradient)
        check_assignment(self)

    def _parts(self, params, state) -> tuple[PyTree, jax.Array]:
        """(params of the bridge, codes float32 [K, D])."""
        raise NotImplementedError

    def _start(self, key, z, mask, axis_name):
        """Codes float32 [K, D] in random directions, `length` times as long as z [..., D]."""
        check_start(self, z, mask)
        dim = z.shape[-1]
        ops.check_room(self.num_codes, dim)
        rows, valid = ops.flat_rows(z, mask)
        power = ops.masked_mean(jnp.sum(rows**2, axis=-1), valid, axis_name)
        scale = jnp.sqrt(ops.pmean(power, axis_name))
        length = self.length
        if length is None:
            # The largest of K cosines ~ N(0, 1/D). At this length the code of the largest cosine is
            # the nearest one; codes as long as z are farther from it than 0 is, and those that
            # happen to be short are everybody's nearest.
            length = min(1.0, np.sqrt(2 * np.log(self.num_codes) / dim)) or 1.0
        codes = jax.random.normal(key, (self.num_codes, dim), jnp.float32)
        codes *= np.float32(length / np.sqrt(dim))
        return codes * jnp.where(scale > 0, scale, 1.0)

    def read_codebook(self, params: PyTree, state: PyTree) -> jax.Array:
        """The codes through the bridge, float32 [K, D]; differentiable in params.

        Raises:
          ValueError: for a bridge that returns another shape.
        """
        bridge_params, codes = self._parts(params, state)
        codebook = self.bridge.apply(bridge_params, codes)
        if jnp.shape(codebook) != codes.shape:
            raise ValueError(
                f'bridge={self.bridge!r} must keep the shape of the codes, [K, D] = {codes.shape}, '
                f'got {jnp.shape(codebook)}'
            )
        return codebook.astype(jnp.float32)

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
        """Nearest code of z [..., D], with a key the assignment's; the bridge is taken once."""
        codebook = self.read_codebook(params, state)
        codes = hide(self.choose(codebook, z, key, mask, axis_name), mask)
        return self._read(codebook, z, codes, mask, axis_name, key)

    def read(
        self,
        params: PyTree,
        state: PyTree,
        z: jax.Array,
        codes: jax.Array,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
        key: jax.Array | None = None,
    ) -> Quantized:
        """z_q, loss and losses of z [..., D] for chosen codes [...]."""
        return self._read(self.read_codebook(params, state), z, codes, mask, axis_name, key)

    def _read(self, codebook, z, codes, mask, axis_name, key):
        x = self.prepare(z)
        vectors = look_up(codebook, codes)
        losses = {
            'commitment': ops.squared_error(x, lax.stop_gradient(vectors), mask, axis_name),
            'codebook': ops.squared_error(lax.stop_gradient(x), vectors, mask, axis_name),
        }
        loss = self.commitment * losses['commitment'] + self.codebook * losses['codebook']
        z_q = ops.estimated(self.gradient, x, vectors, key, mask, axis_name)
        return Quantized(blank(z_q, codes).astype(z.dtype), codes, loss, losses)


@dataclass(frozen=True, repr=False)
class Bridged(BridgedCodebook):
    """SimVQ's linear map as any pure function of the codebook (arXiv:2411.02038, 2509.10140).

    Codes ~ N(0, 1/D), scaled as `length` says, are read through a bridge; a step moves its
    parameters and with them every code, used or not. The codebook that is searched is made once
    a step, at the cost of the bridge on K codes.

    Fields:
      num_codes: K.
      bridge: `ops.Linear()`, `ops.LowRank(rank)`, FVQ's `ops.VQBridge(...)`, a Linen module, or
        any functions as `ops.Bridge(init, apply)`.
      learned: whether the codes behind the bridge are learned as well (FVQ) or stay as drawn.
      commitment: weight of |z - sg(z_q)|^2.
      codebook: weight of |sg(z) - z_q|^2.
      gradient: estimator, (z, z_q) -> z_q with a gradient.
      assignment: with a key, how codes are chosen: the nearest, or evenly by `ops.Sinkhorn()`.
      length: typical length of the codes at the start, in that of z; None = that at which the
        nearest of K random ones is nearest, sqrt(2 ln K / D) and 1 at most.

    Params `BridgedParams`, state the codes float32 [K, D] unless learned, then (). Raises
    ValueError for a field out of range, and at trace time for a bridge that changes K or D.
    """

    num_codes: int
    bridge: ops.BridgeLike = ops.VQBridge()
    learned: bool = False
    commitment: float = 0.25
    codebook: float = 1.0
    gradient: Callable[[jax.Array, jax.Array], jax.Array] = ops.straight_through
    assignment: Callable[..., jax.Array] = ops.nearest_assignment
    length: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag('learned', self.learned)
        ok = all(callable(getattr(self.bridge, name, None)) for name in ('init', 'apply'))
        check(ok, 'bridge', self.bridge, 'an object with functions init and apply')

    def shapes(self, dim: int) -> tuple[BridgedParams, PyTree]:
        """What the bridge makes of the codes' shape, and the codes."""
        codes = array_shape(self.num_codes, dim)
        learned = jax.eval_shape(lambda codes: self.bridge.init(jax.random.key(0), codes), codes)
        return BridgedParams(learned, codes if self.learned else ()), () if self.learned else codes

    @checked
    def init(
        self,
        key: jax.Array,
        z: jax.Array,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> tuple[PyTree, PyTree]:
        """(BridgedParams, codes); of z [..., D] the root mean square is read.

        Raises:
          ValueError: for a batch of identical, zero or non-finite vectors (outside jit), and for
            a bridge that changes K or D.
        """
        codes = self._start(key, z, mask, axis_name)
        learned = self.bridge.init(jax.random.fold_in(key, 1), codes)
        params, state = (BridgedParams(learned, codes), ())
        if not self.learned:
            params, state = BridgedParams(learned, ()), codes
        jax.eval_shape(self.read_codebook, params, state)
        return params, state

    def _parts(self, params, state):
        return params.bridge, params.codes if self.learned else lax.stop_gradient(state)
