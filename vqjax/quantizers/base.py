"""What quantizers share: the base class, the checks of fields, and reading codes."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, ClassVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import core

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

# How calls are checked, and the protocol itself.
from vqjax.quantizers.checking import OUT_SPECS, traced_shapes
from vqjax.quantizers.checking import STEP as STEP
from vqjax.quantizers.checking import array_shape as array_shape
from vqjax.quantizers.checking import checked as checked
from vqjax.quantizers.checking import part_of as part_of
from vqjax.quantizers.checking import shapes_of as shapes_of
from vqjax.quantizers.checking import stacked as stacked
from vqjax.quantizers.protocol import PyTree as PyTree
from vqjax.quantizers.protocol import Quantized as Quantized
from vqjax.quantizers.protocol import Quantizer as Quantizer


def stages(quantizer: Quantizer) -> int:
    """Codes of one vector (or one grid): 1 of a leaf, S of stages, G of groups, products nested."""
    return math.prod(quantizer.code_shape)


def _of_plain_fields(post_init):
    @functools.wraps(post_init)
    def call(self, *args, **kwargs):
        make_plain(self)
        post_init(self, *args, **kwargs)

    return call


class Base:
    """What quantizers share: a repr that reads as the call, and the defaults of one untracked."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]
    num_codes: int
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
    # Whether z_q is decode(codes) with a key too, as stages need that quantize what it leaves.
    coded_in_training: bool = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """`checked` for those methods of a quantizer of your own that are written without it."""
        super().__init_subclass__(**kwargs)
        if '__post_init__' in vars(cls):
            setattr(cls, '__post_init__', _of_plain_fields(cls.__post_init__))  # noqa: B010
        for name in OUT_SPECS.keys() & vars(cls).keys():
            setattr(cls, name, checked(vars(cls)[name]))
        if 'init' in vars(cls) and 'shapes' not in vars(cls):
            setattr(cls, 'shapes', Base.shapes)  # noqa: B010 - those of another init are not known

    def __post_init__(self) -> None:
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

    def code_counts(self, codes: jax.Array | np.ndarray, axis_name: AxisName = None) -> jax.Array:
        """How often each code of each codebook is used: what `metrics.perplexity` takes.

        Stages and groups are counted on their own. Pooled counts of several codebooks say little:
        a collapsed stage hides behind the others.

        Args:
          codes: int32 [..., *code_shape]; -1 (masked, dropped) counts nowhere.
          axis_name: mapped axis or axes to sum over.

        Returns:
          float32 [..., K], in the rows of `by_codebook`: [K] of a leaf, [S, K] of `Residual`.

        Raises:
          ValueError: for codes without the trailing axes `code_shape`.
        """
        codes = self.completed(jnp.asarray(codes))
        shape = self.code_shape_of(codes)
        if codes.shape[codes.ndim - len(shape) :] != shape:
            raise ValueError(
                f'codes must be [..., {", ".join(map(str, shape))}], those of {self!r}, got shape '
                f'{codes.shape}'
            )
        rows = self.by_codebook(codes)
        flat = rows.reshape(-1, rows.shape[-1])
        counts = jax.vmap(lambda row: ops.code_counts(row, self.num_codes, None, axis_name))(flat)
        return counts.reshape(*rows.shape[:-1], self.num_codes)

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

    def shapes(self, dim: int) -> tuple[PyTree, PyTree]:
        """What `init` makes of vectors of `dim` features: (params, state) of `ShapeDtypeStruct`.

        Params and state that are handed in must have this form. For a quantizer of your own that
        does not tell it, it is found by tracing `init`.

        Raises:
          ValueError: for a number of features that the quantizer cannot have.
        """
        return traced_shapes(cast(Quantizer, self), dim)

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
        """The state itself: nothing is tracked."""
        del params, z, codes, key, mask, axis_name, weights
        return state

    def __repr__(self) -> str:
        shown = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.default is dataclasses.MISSING or value != field.default:
                text = value.__name__ if hasattr(value, '__name__') else repr(value)
                shown.append(f'{ARGUMENTS.get(field.name, field.name)}={text}')
        return f'{type(self).__name__}({", ".join(shown)})'


# The field `start` is given as `init`, a name the method of the protocol already has.
ARGUMENTS = {'start': 'init'}


def check_features(z: jax.Array, dim: int, why: str) -> None:
    """Raise ValueError unless the last axis of z has `dim` features."""
    if z.ndim < 1 or z.shape[-1] != dim:
        raise ValueError(f'z must have {dim} features ({why}), got z of shape {z.shape}')


def check_inner(outer: str, inner: Any) -> None:
    """Raise ValueError unless `inner` is a quantizer whose z_q a combinator can work on."""
    check(isinstance(inner, Base), 'inner', inner, f'a quantizer for {outer}')
    if inner.targets_only and outer not in ('Product', 'Parallel'):
        raise ValueError(
            f'inner={inner!r} cannot stand in {outer}: its z_q is not in the space of z; '
            'use it alone, on targets'
        )
    if inner.grid and outer not in ('Projected', 'Clamped', 'Rotated'):
        raise ValueError(
            f'inner={inner!r} cannot stand in {outer}: it quantizes whole grids; put {outer} in '
            'its place, around its inner quantizer'
        )
    if outer in ('Residual', 'MultiScale', 'Strided') and not inner.coded_in_training:
        raise ValueError(
            f'inner={inner!r} cannot stand in {outer}: in training its z_q is no code, so the '
            'next stage would not see what decode leaves; use hard=True of GumbelSoftmax, '
            'perturbed=0 of grids'
        )


def check_start(quantizer: Base | Quantizer, z: jax.Array, mask: jax.Array | None) -> None:
    """Refuse a batch that cannot start a codebook, where its values are known.

    Under jit they are not: call `vqjax.ops.check_distinct` on the batch before.
    """
    given = [x for x in (z, mask) if x is not None]
    known = all(not isinstance(x, jax.Array) or _readable(x) for x in given)
    if known and quantizer.starts_from_data:
        ops.check_distinct(z, mask)


def _readable(x):
    # Of an array over several hosts each knows only its part.
    return not isinstance(x, core.Tracer) and x.is_fully_addressable


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
