"""Quantizers as plain data, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

from vqjax import ops
from vqjax.quantizers.base import ARGUMENTS, Base, Quantizer

# Far more than any quantizer is nested.
MAX_DEPTH = 32
# Fields that hold functions, and the names a spec may use for them.
_FUNCTIONS = {
    'start': ops.STARTS,
    'gradient': ops.ESTIMATORS,
    'source': ops.SOURCES,
    'assignment': ops.ASSIGNMENTS,
    'bound': ops.BOUNDS,
}
# Fields that may hold a frozen dataclass, and a spec then a mapping of its fields.
_PARTS = {
    'revival': ops.Revival,
    'assignment': ops.Sinkhorn,
    'beam': ops.Beam,
    'dropout': ops.StageDropout,
    'gradient': ops.DiVeQ,
}
_BRIDGE_NAMES = {kind: name for name, kind in ops.BRIDGES.items()}


def make(spec: Mapping[str, Any]) -> Quantizer:
    """The quantizer that plain data describes; the inverse of `to_spec`.

    `make({'name': 'residual', 'num_stages': 4, 'inner': {'name': 'vq_ema', 'num_codes': 256}})`.

    Args:
      spec: 'name', the quantizer's file name, and its fields; functions by name, `inner` as a
        spec (or a list of them), `revival`, `dropout` and `beam` as mappings of their fields (or
        None, a number), a balanced `assignment` as a mapping of the fields of `ops.Sinkhorn`, a
        `gradient` with noise as one of those of `ops.DiVeQ`, a `bridge` as one of its name
        (`ops.BRIDGES`) and fields.

    Raises:
      ValueError: for an unknown name or field, or what the quantizer itself refuses.
    """
    from vqjax.quantizers import REGISTRY

    _check_depth(spec)
    if not isinstance(spec, Mapping) or 'name' not in spec:
        raise ValueError(f"a quantizer's spec must be a mapping with a 'name', got {spec!r}")
    fields = dict(spec)
    name = fields.pop('name')
    if not isinstance(name, str) or name not in REGISTRY:
        raise ValueError(f'name must be one of {sorted(REGISTRY)}, got {name!r}')
    known = [ARGUMENTS.get(f.name, f.name) for f in dataclasses.fields(REGISTRY[name])]
    return _build(REGISTRY[name], known, {k: _from_plain(k, v) for k, v in fields.items()})


def _check_depth(spec):
    """Refuse what is nested deeper than Python could follow."""
    level, depth = [spec], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(
                f'a spec may be nested {MAX_DEPTH} deep, through inner, lists and mappings; this '
                'one is deeper'
            )
        inside = [x.values() if isinstance(x, Mapping) else x for x in level]
        level = [x for values in inside for x in values if isinstance(x, Mapping | list | tuple)]


def _build(kind, known, fields):
    for field in fields:
        if field not in known:
            raise ValueError(f'{kind.__name__} has no field {field!r}; it has {sorted(known)}')
    try:
        made = kind(**fields)
        hash(made)  # which jit will ask for
    except TypeError as error:
        raise ValueError(f'{kind.__name__}: {error}') from None
    return made


def _part(kind, fields):
    return _build(kind, [f.name for f in dataclasses.fields(kind)], fields)


def _from_plain(field, value):
    if field == 'inner':
        return tuple(map(make, value)) if isinstance(value, list | tuple) else make(value)
    if field in _PARTS and isinstance(value, Mapping):
        return _part(_PARTS[field], dict(value))
    if field == 'bridge' and isinstance(value, Mapping):
        fields = dict(value)
        name = fields.pop('name', None)
        if name not in ops.BRIDGES:
            raise ValueError(f'bridge must name one of {sorted(ops.BRIDGES)}, got {value!r}')
        return _part(ops.BRIDGES[name], fields)
    if isinstance(value, Mapping) and 'schedule' in value:
        arguments = {k: v for k, v in value.items() if k != 'schedule'}
        return ops.Schedule(value['schedule'], **arguments)
    return _hashable(value)


def _hashable(value):
    """Lists, and lists in them, as tuples."""
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value


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
        ARGUMENTS.get(f.name, f.name): _to_plain(f.name, getattr(value, f.name)) for f in fields
    }


def _to_plain(field, value):
    if field in _PARTS and isinstance(value, _PARTS[field]):
        return _fields_as_data(value)
    if field == 'bridge':
        if type(value) not in _BRIDGE_NAMES:
            raise ValueError(f'bridge={value!r} is none of {sorted(ops.BRIDGES)}: it has no spec')
        return {'name': _BRIDGE_NAMES[type(value)], **_fields_as_data(value)}
    if field in _FUNCTIONS:
        return ops.function_name(ARGUMENTS.get(field) or field, value, _FUNCTIONS[field])
    if isinstance(value, Base):
        return to_spec(cast(Quantizer, value))
    if isinstance(value, ops.Schedule):
        return value.spec()
    if isinstance(value, tuple):
        return [_to_plain('', item) for item in value]
    if callable(value):
        raise ValueError(f'{field}={value!r} has no spec: give a vqjax.ops.Schedule')
    return value
