"""The protocol every quantizer follows, what they share, and their form as plain data."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from vqjax import ops
from vqjax.ops import AxisName

PyTree = Any
MAX_CODES = 2**31 - 1


class Quantized(NamedTuple):
    """What a quantizer makes of z.

    z_q: [..., D] in z's dtype: `decode(codes)` to the bit (in float32), carrying the gradient.
    codes: int32 [..., *code_shape]; -1 where masked, dropped or not finite.
    loss: float32 [], weighted, ready to add to the task loss.
    losses: the same terms unweighted, by name.
    """

    z_q: jax.Array
    codes: jax.Array
    loss: jax.Array
    losses: dict[str, jax.Array]


@runtime_checkable
class Quantizer(Protocol):
    """A frozen dataclass whose methods are pure functions; params and state are pytrees."""

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
    ) -> PyTree:
        """The state after a training step that gave z [..., D] these codes."""

    def decode(self, params: PyTree, state: PyTree, codes: jax.Array) -> jax.Array:
        """Vectors float32 [..., D] of codes [..., *code_shape]; zeros for -1."""


def stages(quantizer: Quantizer) -> int:
    """Codes of one vector: 1 of a leaf, S of stages, G of groups, their product when nested."""
    return math.prod(quantizer.code_shape)


def compiled_once(method: Callable) -> Callable:
    """A method with control flow, which outside jit would be compiled anew at every call."""
    static = {'self', 'axis_name'} & inspect.signature(method).parameters.keys()
    return jax.jit(method, static_argnames=tuple(static), inline=True)


class Base:
    """What quantizers share: a repr that reads as the call, and the defaults of one untracked."""

    code_shape: tuple[int, ...] = ()
    # What a further stage of `Residual` scales its grid by. A learned codebook finds its own
    # scale; a fixed grid needs one below 1, and a power of two, so that scaling is exact.
    stage_scale: float | tuple[float, ...] = 1.0
    # Whether init reads the values of z, so that a batch of zeros would be a mistake.
    starts_from_data: bool = False
    # Whether z_q lives in another space than z and has no gradient.
    targets_only: bool = False

    @property
    def bits(self) -> float:
        """Bits that one code takes: log2 K."""
        return math.log2(self.num_codes)

    def unbound(self, z: jax.Array) -> jax.Array:
        """What to quantize instead of z so that a fixed grid meets it without its bound.

        `Residual` asks for it: a stage's error would otherwise hold the curve of the bound, which
        no further stage can make good. z [..., D] -> [..., D].
        """
        return z

    def update(self, params, state, z, codes, key=None, mask=None, axis_name=None):
        """The state itself: nothing is tracked."""
        del params, z, codes, key, mask, axis_name
        return state

    def __repr__(self):
        shown = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.default is dataclasses.MISSING or value != field.default:
                text = value.__name__ if hasattr(value, '__name__') else repr(value)
                shown.append(f'{_ARGUMENTS.get(field.name, field.name)}={text}')
        return f'{type(self).__name__}({", ".join(shown)})'


# The field `start` is given as `init`, a name the method of the protocol already has.
_ARGUMENTS = {'start': 'init'}
# Fields that hold functions, and the names a spec may use for them.
_FUNCTIONS = {'start': ops.STARTS, 'gradient': ops.ESTIMATORS, 'source': ops.SOURCES}


def check(ok: bool, field: str, value: Any, need: str) -> None:
    """Raise ValueError naming the field and its value where `ok` is false."""
    if not ok:
        raise ValueError(f'{field} must be {need}, got {value!r}')


def check_count(field: str, value: Any, least: int = 1, most: int = MAX_CODES) -> None:
    """Raise ValueError unless `value` is an integer within [least, most]."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    check(whole and least <= value <= most, field, value, f'an integer from {least} to {most}')


def check_weight(field: str, value: Any) -> None:
    """Raise ValueError unless `value` is a finite number, not negative."""
    check(math.isfinite(value) and value >= 0, field, value, 'finite and not negative')


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
    if outer == 'Residual' and not getattr(inner, 'hard', True):
        raise ValueError(
            f'inner={inner!r} cannot stand in Residual: with hard=False z_q is no code, so the '
            'next stage would not see what decode leaves; use hard=True'
        )


def check_start(quantizer: Quantizer, z: jax.Array, mask: jax.Array | None) -> None:
    """Refuse a batch that cannot start a codebook, where its values are known.

    Under jit they are not: call `vqjax.ops.check_distinct` on the batch before.
    """
    known = not isinstance(z, jax.core.Tracer) and not isinstance(mask, jax.core.Tracer)
    if known and quantizer.starts_from_data:
        ops.check_distinct(z, mask)


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
    """Rows of the codebook [K, D] for codes [...], zeros for -1."""
    return blank(codebook[jnp.maximum(codes, 0)], codes)


def make(spec: Mapping[str, Any]) -> Quantizer:
    """The quantizer that plain data describes; the inverse of `to_spec`.

    `make({'name': 'residual', 'num_stages': 4, 'inner': {'name': 'vq_ema', 'num_codes': 256}})`.

    Args:
      spec: 'name', the quantizer's file name, and its fields; functions by name, `inner` as a
        spec (or a list of them), `revival` as a mapping of its fields or None.

    Raises:
      ValueError: for an unknown name or field, or what the quantizer itself refuses.
    """
    from vqjax.quantizers import REGISTRY

    if not isinstance(spec, Mapping) or 'name' not in spec:
        raise ValueError(f"a quantizer's spec must be a mapping with a 'name', got {spec!r}")
    fields = dict(spec)
    name = fields.pop('name')
    if name not in REGISTRY:
        raise ValueError(f'name must be one of {sorted(REGISTRY)}, got {name!r}')
    known = [_ARGUMENTS.get(f.name, f.name) for f in dataclasses.fields(REGISTRY[name])]
    return _build(REGISTRY[name], known, {k: _from_plain(k, v) for k, v in fields.items()})


def _build(kind, known, fields):
    for field in fields:
        if field not in known:
            raise ValueError(f'{kind.__name__} has no field {field!r}; it has {sorted(known)}')
    try:
        return kind(**fields)
    except TypeError as error:
        raise ValueError(f'{kind.__name__}: {error}') from None


def _from_plain(field, value):
    if field == 'inner':
        return tuple(map(make, value)) if isinstance(value, list | tuple) else make(value)
    if field == 'revival' and isinstance(value, Mapping):
        return _build(ops.Revival, [f.name for f in dataclasses.fields(ops.Revival)], dict(value))
    if isinstance(value, Mapping) and 'schedule' in value:
        arguments = {k: v for k, v in value.items() if k != 'schedule'}
        return ops.Schedule(value['schedule'], **arguments)
    return tuple(value) if isinstance(value, list) else value


def to_spec(quantizer: Quantizer) -> dict[str, Any]:
    """The quantizer as plain data (JSON can hold it), every field included; see `make`.

    Raises:
      ValueError: for a field that holds a function of your own.
    """
    from vqjax.quantizers import REGISTRY

    names = {kind: name for name, kind in REGISTRY.items()}
    if type(quantizer) not in names:
        raise ValueError(f'{type(quantizer).__name__} is not one of {sorted(REGISTRY)}')
    return {'name': names[type(quantizer)], **_fields_as_data(quantizer)}


def _fields_as_data(value):
    fields = dataclasses.fields(value)
    return {
        _ARGUMENTS.get(f.name, f.name): _to_plain(f.name, getattr(value, f.name)) for f in fields
    }


def _to_plain(field, value):
    if field in _FUNCTIONS:
        return ops.function_name(_ARGUMENTS.get(field, field), value, _FUNCTIONS[field])
    if isinstance(value, Base):
        return to_spec(value)
    if isinstance(value, ops.Revival):
        return _fields_as_data(value)
    if isinstance(value, ops.Schedule):
        return value.spec()
    if isinstance(value, tuple):
        return [_to_plain('', item) for item in value]
    if callable(value):
        raise ValueError(f'{field}={value!r} has no spec: give a vqjax.ops.Schedule')
    return value
