"""The protocol every quantizer follows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

from vqjax.ops import AxisName
from vqjax.ops.serialization import exported

PyTree = Any


@exported
class Quantized(NamedTuple):
    """What a quantizer makes of z.

    z_q: [..., D] in z's dtype: `decode(codes)` to the bit (in float32), carrying the gradient. With
      a key something else where `coded_in_training` is False.
    codes: int32 [..., *code_shape]; -1 where masked, dropped or not finite.
    loss: float32 [], weighted, ready to add to the task loss. A vector that is not finite and not
      masked shows in it wherever a term measures it, and spoils the gradient to itself alone.
    losses: the same terms unweighted, by name.
    """

    z_q: jax.Array
    codes: jax.Array
    loss: jax.Array
    losses: dict[str, jax.Array]


@runtime_checkable
class Quantizer(Protocol):
    """A frozen dataclass whose methods are pure functions; params and state are pytrees.

    The quantizers of this package raise ValueError when a call is traced with a z that is not
    floating point or has no vector, a mask that is not bool [...], codes that are not integers
    [..., *code_shape], an `axis_name` that is not a mapped axis, or params and state that do not
    have the structure and shapes that `init` gives for this quantizer and D.

    Params may have any floating dtype and are converted to float32; statistics must have their own
    dtype. Masked vectors have no effect, not even NaN. To filter a batch under jit, keep its shape
    and give a mask.

    Squares are computed in float32, which is accurate for vectors and codes with lengths from
    about 1e-16 to 1e16. A vector longer than 1e19 has an infinite loss, and the code -1 if it is
    scaled to unit length. Codes that are all shorter than 1e-19 cannot be distinguished.
    """

    @property
    def num_codes(self) -> int:
        """K, the number of codes that one entry of `codes` chooses from."""
        ...

    @property
    def code_shape(self) -> tuple[int, ...]:
        """Trailing axes of codes: () for a leaf."""
        ...

    @property
    def bits(self) -> float:
        """Bits per vector, before entropy coding."""
        ...

    def init(
        self,
        key: jax.Array,
        z: jax.Array,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> tuple[PyTree, PyTree]:
        """(params, state); codebooks that start from data are fitted to the batch z [..., D]."""
        ...

    def quantize(
        self,
        params: PyTree,
        state: PyTree,
        z: jax.Array,
        key: jax.Array | None = None,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> Quantized:
        """Codes, vectors and losses for z [..., D]; params and state stay as they are."""
        ...

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
        """The state after a training step that gave z [..., D] these codes.

        Codes outside [0, num_codes) count nowhere. weights, float [...], say how much each vector
        counts for in counts and sums (None: 1): one of weight 2 as itself twice, one of weight 0
        as a masked one, and so do those below 0 or not finite, whose values no trace knows. A
        revival may take any vector of a weight above 0.
        """
        ...

    def decode(self, params: PyTree, state: PyTree, codes: jax.Array) -> jax.Array:
        """Vectors float32 [..., D] of codes [..., *code_shape].

        Zeros for -1 and whatever else is outside [0, num_codes), whose values no trace knows.
        """
        ...

    # What `Base` gives to all, and combinators ask of what is in them. Not looked for at run time.
    if TYPE_CHECKING:

        @property
        def grid(self) -> tuple[int, ...]: ...

        @property
        def stage_scale(self) -> float | tuple[float, ...]: ...

        @property
        def starts_from_data(self) -> bool: ...

        @property
        def targets_only(self) -> bool: ...

        @property
        def coded_in_training(self) -> bool: ...

        @property
        def code_sizes(self) -> np.ndarray: ...

        def by_codebook(self, codes: jax.Array) -> jax.Array: ...

        def code_counts(
            self, codes: jax.Array | np.ndarray, axis_name: AxisName = None
        ) -> jax.Array: ...

        def unbound(self, z: jax.Array) -> jax.Array: ...

        def shapes(self, dim: int) -> tuple[PyTree, PyTree]: ...

        def coded(self, codes: jax.Array) -> jax.Array: ...

        def code_shape_of(self, codes: jax.Array) -> tuple[int, ...]: ...

        def completed(self, codes: jax.Array) -> jax.Array: ...

        def first_stages(
            self, num: int, params: PyTree, state: PyTree
        ) -> tuple[Quantizer, PyTree, PyTree]: ...
