"""The protocol every quantizer follows, and what they share."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from vqjax import ops
from vqjax.ops import AxisName

# The checks of fields, for the files of quantizers to take from here.
from vqjax.ops.fields import MAX_CODES as MAX_CODES
from vqjax.ops.fields import check as check
from vqjax.ops.fields import check_count as check_count
from vqjax.ops.fields import check_flag as check_flag
from vqjax.ops.fields import check_positive as check_positive
from vqjax.ops.fields import check_weight as check_weight
from vqjax.ops.fields import is_number as is_number
from vqjax.ops.fields import make_plain
from vqjax.quantizers.calls import checked

PyTree = Any


class Quantized(NamedTuple):
    """What a quantizer makes of z.

    z_q: [..., D] in z's dtype: `decode(codes)` to the bit (in float32), carrying the gradient.
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

    Of `Base`, these raise ValueError when a call is traced: for a z that is not floating point or
    holds no vector, a mask that is not bool [...], codes that are no integers [..., *code_shape],
    an `axis_name` that is no mapped axis, and params and state that `init` would not have made for
    this quantizer and D. Params may be of any floating dtype (computed with in float32),
    statistics only of their own. What a mask hides reaches nothing, NaN included.

    Squares are float32: right where vectors and codes are of lengths from about 1e-16 to 1e16.
    Above 1e19 a vector has an infinite loss where one measures it, and code -1 where it is brought
    to unit length; codes that are all below 1e-19 are not told apart.
    """

    @property
    def num_codes(self) -> int:
        """K, the codes of one entry of `codes`."""

    @property
    def code_shape(self) -> tuple[int, ...]:
        """Trailing axes of codes: () for a leaf."""

    @property
    def bits(self) -> float:
        """Bits that the codes of one vector take."""

    def init(
        self,
        key: jax.Array,
        z: jax.Array,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> tuple[PyTree, PyTree]:
        """(params, state) from a real batch z [..., D], which a data-driven start reads."""

    def quantize(
        self,
        params: PyTree,
        state: PyTree,
        z: jax.Array,
        key: jax.Array | None = None,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> Quantized:
        """Codes and vectors for z [..., D]; changes nothing."""

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

    def decode(self, params: PyTree, state: PyTree, codes: jax.Array) -> jax.Array:
        """Vectors float32 [..., D] of codes [..., *code_shape].

        Zeros for -1 and whatever else is outside [0, num_codes), whose values no trace knows.
        """


def stages(quantizer: Quantizer) -> int:
    """Codes of one vector (or one grid): 1 of a leaf, S of stages, G of groups, products nested."""
    return math.prod(quantizer.code_shape)


def compiled_once(method: Callable) -> Callable:
    """A method with control flow, which outside jit would be compiled anew at every call."""
    static = {'self', 'axis_name'} & inspect.signature(method).parameters.keys()
    return jax.jit(method, static_argnames=tuple(static), inline=True)


def _quantized_specs(quantizer, params, state, z, *_):
    rows = ops.spec_of(z)[: z.ndim - 1 - len(quantizer.grid)]
    trailing = [None] * len(quantizer.code_shape)
    z_q = ops.rows_spec(z, None) if quantizer.targets_only else ops.spec_of(z)
    return Quantized(z_q, P(*rows, *trailing), P(), P())


def _decoded_specs(quantizer, params, state, codes, *_):
    rows = ops.spec_of(codes)
    trailing = [None] * (len(quantizer.grid) + 1)
    return P(*rows[: codes.ndim - len(quantizer.code_shape)], *trailing)


# How what the methods return is sharded over Explicit axes: codes and z_q as z is, statistics as
# those that came in. (Over Auto axes the compiler finds that out.)
_OUT_SPECS = {
    'init': P(),
    'quantize': _quantized_specs,
    'update': lambda quantizer, params, state, *_: jax.tree.map(ops.spec_of, state),
    'decode': _decoded_specs,
    # Of some quantizers only.
    'logits': lambda quantizer, params, state, z: ops.rows_spec(z, None),
    'stage_vectors': lambda *args: P(None, *_decoded_specs(*args)),
}


def _of_plain_fields(post_init):
    @functools.wraps(post_init)
    def call(self, *args, **kwargs):
        make_plain(self)
        post_init(self, *args, **kwargs)

    return call


class Base:
    """What quantizers share: a repr that reads as the call, and the defaults of one untracked."""

    code_shape: tuple[int, ...] = ()
    # (H, W) where z [..., H, W, D] is quantized grid by grid; codes and `bits` are then a grid's.
    grid: tuple[int, ...] = ()
    # What a further stage of `Residual` scales its grid by. A learned codebook finds its own
    # scale; a fixed grid needs one below 1, and a power of two, so that scaling is exact.
    stage_scale: float | tuple[float, ...] = 1.0
    # Whether init reads the values of z, so that a batch of zeros would be a mistake.
    starts_from_data: bool = False
    # Whether z_q lives in another space than z and has no gradient.
    targets_only: bool = False

    def __init_subclass__(cls, **kwargs):
        """Check what the protocol's methods are called with, and let them run over any mesh."""
        super().__init_subclass__(**kwargs)
        if '__post_init__' in vars(cls):
            cls.__post_init__ = _of_plain_fields(cls.__post_init__)
        for name, specs in _OUT_SPECS.items():
            if name in vars(cls):
                setattr(cls, name, checked(name, vars(cls)[name], specs))

    def __post_init__(self):
        """Put Python scalars where NumPy or JAX ones were given; subclasses need not call it."""
        make_plain(self)

    @property
    def bits(self) -> float:
        """Bits that one code takes: log2 K."""
        return math.log2(self.num_codes)

    def by_codebook(self, codes: jax.Array) -> jax.Array:
        """Codes [..., *code_shape] in rows [..., N] of those that are counted together.

        A row for each entry of `code_shape`, but one for all places of a grid that share a
        codebook; short rows are filled up with -1.
        """
        columns = codes.reshape(-1, math.prod(self.code_shape))
        return jnp.moveaxis(columns, 1, 0).reshape(*self.code_shape, -1)

    @property
    def code_sizes(self) -> np.ndarray:
        """K of each code of a vector (or grid), int32 [*code_shape]."""
        return np.full(self.code_shape, self.num_codes, np.int32)

    def coded(self, codes: jax.Array) -> jax.Array:
        """Which vectors have a code: codes int32 [..., *code_shape] -> bool [..., *grid]."""
        return jnp.any(codes >= 0, axis=tuple(range(-len(self.code_shape), 0)))

    def code_shape_of(self, codes: jax.Array) -> tuple[int, ...]:
        """The trailing axes that codes must have: `code_shape`, where no length is left open."""
        del codes
        return self.code_shape

    def completed(self, codes: jax.Array) -> jax.Array:
        """Codes with -1 for the last stages that they lack: what `decode` does with codes."""
        return codes

    def first_stages(
        self, num: int, params: PyTree, state: PyTree
    ) -> tuple[Quantizer, PyTree, PyTree]:
        """(quantizer, params, state) of the first `num` stages alone, trained ones included.

        Its codes are the first `num` of each vector, and cost no search of the stages left out.

        Raises:
          ValueError: for a number out of range, and of a quantizer without stages.
        """
        del num, params, state
        raise ValueError(f'{self!r} has no stages of which some could be left out')

    def unbound(self, z: jax.Array) -> jax.Array:
        """What to quantize instead of z so that a fixed grid meets it without its bound.

        `Residual` asks for it: a stage's error would otherwise hold the curve of the bound, which
        no further stage can make good. z [..., D] -> [..., D].
        """
        return z

    def update(self, params, state, z, codes, key=None, mask=None, axis_name=None, weights=None):
        """The state itself: nothing is tracked."""
        del params, z, codes, key, mask, axis_name, weights
        return state

    def __repr__(self):
        shown = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.default is dataclasses.MISSING or value != field.default:
                text = value.__name__ if hasattr(value, '__name__') else repr(value)
                shown.append(f'{ARGUMENTS.get(field.name, field.name)}={text}')
        return f'{type(self).__name__}({", ".join(shown)})'


Base.update = checked('update', Base.update, _OUT_SPECS['update'])
# The field `start` is given as `init`, a name the method of the protocol already has.
ARGUMENTS = {'start': 'init'}


def check_features(z: jax.Array, dim: int, why: str) -> None:
    """Raise ValueError unless the last axis of z has `dim` features."""
    if z.ndim < 1 or z.shape[-1] != dim:
        raise ValueError(f'z must have {dim} features ({why}), got z of shape {z.shape}')


def check_inner(outer: str, inner: Any) -> None:
    """Raise ValueError unless `inner` is a quantizer whose z_q a combinator can work on."""
    check(isinstance(inner, Base), 'inner', inner, f'a quantizer for {outer}')
    if inner.targets_only and outer != 'Product':
        raise ValueError(
            f'inner={inner!r} cannot stand in {outer}: its z_q is not in the space of z; '
            'use it alone, on targets'
        )
    if inner.grid and outer not in ('Projected', 'Clamped'):
        raise ValueError(
            f'inner={inner!r} cannot stand in {outer}: it quantizes whole grids; put {outer} in '
            'its place, around its inner quantizer'
        )
    if outer in ('Residual', 'MultiScale', 'Strided') and not getattr(inner, 'hard', True):
        raise ValueError(
            f'inner={inner!r} cannot stand in {outer}: with hard=False z_q is no code, so the '
            'next stage would not see what decode leaves; use hard=True'
        )


def check_start(quantizer: Quantizer, z: jax.Array, mask: jax.Array | None) -> None:
    """Refuse a batch that cannot start a codebook, where its values are known.

    Under jit they are not: call `vqjax.ops.check_distinct` on the batch before.
    """
    given = [x for x in (z, mask) if x is not None]
    known = all(not isinstance(x, jax.Array) or _readable(x) for x in given)
    if known and quantizer.starts_from_data:
        ops.check_distinct(z, mask)


def _readable(x):
    # Of an array over several hosts each knows only its part.
    return not isinstance(x, jax.core.Tracer) and x.is_fully_addressable


def hide(codes: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Codes with -1 at masked positions: codes [..., *code_shape], mask bool [...]."""
    if mask is None:
        return codes
    extra = codes.ndim - mask.ndim
    return jnp.where(mask.reshape(mask.shape + (1,) * extra), codes, -1)


def blank(vectors: jax.Array, codes: jax.Array) -> jax.Array:
    """Vectors [..., D] with zeros where the code [...] is -1."""
    return jnp.where((codes >= 0)[..., None], vectors, 0)


def look_up(codebook: jax.Array, codes: jax.Array) -> jax.Array:
    """Rows of the codebook [K, D] for codes [...], zeros for what is no code."""
    return blank(codebook[jnp.maximum(codes, 0)], only_codes(codes, codebook.shape[0]))


def only_codes(codes: jax.Array, num_codes: int) -> jax.Array:
    """Codes [...] with -1 for those outside [0, num_codes)."""
    return jnp.where(codes < num_codes, codes, -1)
