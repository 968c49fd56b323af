"""The fields every configuration has, and the check that they make sense together."""

import math
import pathlib
import re
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax

from vqjax import encoders, nn, ops, quantizers
from vqjax.trainer import data

# Name -> type. What each means is said once, beside its value, in configs/digits.py.
FIELDS: dict[str, Any] = {
    'study': str,
    'parallel': str,
    'mesh_shape': tuple | list,
    'dataset': str,
    'data_dir': str,
    'augment': bool,
    'bottleneck': str,
    'encoder': str,
    'width': int,
    'features': int,
    'standardize': bool,
    'dtype': str,
    'quantizers': dict,
    'guard': bool,
    'methods': str,
    'overrides': dict,
    'seeds': int,
    'classification_weight': float,
    'reconstruction_weight': float,
    'quantizer_weight': float | dict,
    'continuous_epochs': float,
    'frozen_epochs': float,
    'init_from': str,
    'epochs': int,
    'batch_size': int,
    'accumulate': int,
    'init_batch_size': int,
    'learning_rate': float,
    'learning_rate_schedule': str,
    'warmup_epochs': float,
    'weight_decay': float,
    'label_smoothing': float,
    'clip_norm': float,
    'ema_decay': float,
    'eval_every': float,
    'checkpoint_every': int,
    'keep_checkpoints': int,
    'log_every': int,
    'record': bool,
    'steps_per_call': int,
}
# What all methods of a run share; every other field may be overridden for a method.
_SHARED = {
    "study", "parallel", "mesh_shape", "dataset", "data_dir", "quantizers", "methods", "overrides",
    "seeds",
}  # fmt: skip
_CHOICES = {
    'bottleneck': encoders.BOTTLENECKS,
    'encoder': encoders.ENCODERS,
    'dtype': ('float32', 'bfloat16'),
    'learning_rate_schedule': ('cosine', 'constant'),
    'parallel': ('pmap', 'jit'),
}
_AT_LEAST = {
    "width": 1, "features": 1, "seeds": 1, "epochs": 1, "batch_size": 1, "accumulate": 1,
    "init_batch_size": 1, "checkpoint_every": 0, "keep_checkpoints": 1, "log_every": 1,
    "steps_per_call": 1, "warmup_epochs": 0, "weight_decay": 0, "label_smoothing": 0,
    "clip_norm": 0, "ema_decay": 0, "classification_weight": 0, "reconstruction_weight": 0,
    "continuous_epochs": 0, "frozen_epochs": -1,
}  # fmt: skip


class Parts(NamedTuple):
    """What a study may put in place of the library's own parts.

    make: spec -> quantizer.
    spec: its inverse, as results.json and the diagnosis see it.
    bridge: quantizer -> the Linen module class around it.
    """

    make: Callable[[Any], Any] = quantizers.make
    spec: Callable[[Any], Any] = quantizers.to_spec
    bridge: Callable[[Any], Any] = lambda quantizer: nn.Quantize


class Settings(types.SimpleNamespace):
    """A checked configuration: its fields as attributes.

    `config` is the plain data. `methods` maps the name of each to its own Settings, with its
    overrides applied, and `quantizer` (None for no quantizer) and `bridge` in place of `methods`.
    """


class RunError(Exception):
    """Something for the user to put right, said in one line."""


def check_fields(config: Mapping[str, Any], fields: Mapping[str, type]) -> None:
    """Checks that plain data has exactly these fields, each of its type (an int may be a float).

    Raises:
      RunError: naming the field, its value and the remedy.
    """
    known = ', '.join(fields)
    for name in sorted(config.keys() - fields.keys()):
        raise RunError(f'unknown config field {name!r}: the fields are {known}')
    for name in sorted(fields.keys() - config.keys()):
        raise RunError(f'config field {name!r} is missing: the fields are {known}')
    for name, kind in fields.items():
        value = config[name]
        wanted = int | kind if isinstance(0.5, kind) else kind
        if isinstance(value, bool) != (kind is bool) or not isinstance(value, wanted):
            said = getattr(kind, '__name__', kind)
            raise RunError(f'{name} is {value!r}: give a value of type {said}')
        if isinstance(value, float) and not math.isfinite(value):
            raise RunError(f'{name} is {value}: give a finite number')


def choose(text: str, known: Iterable[str], what: str, where: str = 'there are') -> list[str]:
    """The names that a comma-separated list or 'all' means, in the order given.

    Raises:
      RunError: for a name that is not known.
    """
    known = list(known)
    if text == 'all':
        return known
    names = [part.strip() for part in text.split(',')]
    for name in names:
        if name not in known:
            raise RunError(f"unknown {what} {name!r}: {where} {', '.join(known)}; or give 'all'")
    return names


def load_dataset(name: str, data_dir: str) -> data.Dataset:
    """`data.load` for a run: data_dir '' is TFDS's own default.

    Raises:
      RunError: where the set is unknown, not prepared or unreadable, in one line.
    """
    try:
        return data.load(name, data_dir or None)
    except (ValueError, OSError) as error:
        raise RunError(f'dataset {name}: {" ".join(str(error).split())}') from error


def check(config: dict[str, Any], parts: Parts = Parts()) -> Settings:  # noqa: B008
    """Checks plain data against FIELDS and the devices there are.

    Raises:
      RunError: naming the field, its value and the remedy.
    """
    check_fields(config, FIELDS)
    _check_values(config)
    names = choose(config['methods'], config['quantizers'], 'method', 'config.quantizers has')
    _check_overrides(config)
    methods = {}
    for name in names:
        if name in methods:
            raise RunError(f'method {name!r} is named twice in methods: name it once')
        methods[name] = _method(config, name, parts)
    return Settings(**(config | {'methods': methods, 'config': config}))


def _check_values(config: Mapping[str, Any]) -> None:
    for name, choices in _CHOICES.items():
        if config[name] not in choices:
            raise RunError(f'{name} is {config[name]!r}: choose one of {", ".join(choices)}')
    for name, least in _AT_LEAST.items():
        if config[name] < least:
            raise RunError(f'{name} is {config[name]}: give at least {least}')
    shape = config['mesh_shape']
    if len(shape) != 2 or not all(type(n) is int and (n >= 1 or n == -1) for n in shape):
        raise RunError(f'mesh_shape is {shape!r}: give (data, model), each at least 1 or -1')
    for name in ('label_smoothing', 'ema_decay'):
        if config[name] >= 1:
            raise RunError(f'{name} is {config[name]}: give less than 1')
    for name in ('learning_rate', 'eval_every'):
        if not config[name] > 0:
            raise RunError(f'{name} is {config[name]}: give more than 0')
    if config['continuous_epochs'] > config['epochs']:
        raise RunError(
            f'continuous_epochs is {config["continuous_epochs"]}, longer than the run of '
            f'{config["epochs"]} epochs: give at most epochs, which fits the codes after training'
        )
    if not config['classification_weight'] and not config['reconstruction_weight']:
        raise RunError(
            'classification_weight and reconstruction_weight are both 0: give one of them more, '
            'or there is no task'
        )
    shares = jax.device_count() * config['accumulate']
    if config['batch_size'] % shares:
        raise RunError(
            f'batch_size {config["batch_size"]} is not divisible by {shares} '
            f'({jax.device_count()} devices x accumulate {config["accumulate"]}): '
            f'try {max(config["batch_size"] // shares, 1) * shares}'
        )


def _check_overrides(config: Mapping[str, Any]) -> None:
    known = ', '.join(name for name in FIELDS if name not in _SHARED)
    for method, fields in config['overrides'].items():
        if method not in config['quantizers']:
            raise RunError(
                f'overrides names a method {method!r}: config.quantizers has '
                f'{", ".join(config["quantizers"])}'
            )
        if not isinstance(fields, Mapping):
            raise RunError(f'overrides.{method} is {fields!r}: give a mapping of field to value')
        for field in fields:
            if field not in FIELDS or field in _SHARED:
                raise RunError(f'overrides.{method} has no field {field!r}: choose among {known}')


def _method(config: dict[str, Any], name: str, parts: Parts) -> Settings:
    """The settings of one method."""
    spec, changed = config['quantizers'][name], config['overrides'].get(name, {})
    own = config | changed
    try:
        if changed:
            check_fields(own, FIELDS)
            _check_values(own)
        own['quantizer_weight'] = _schedule(own['quantizer_weight'])
    except RunError as error:
        raise RunError(f'overrides.{name}: {error}' if changed else str(error)) from None
    try:
        quantizer = None if spec is None else parts.make(spec)
    except (ValueError, TypeError, KeyError) as error:
        raise RunError(f'quantizers.{name}: {error}') from error
    bridge = None if quantizer is None else parts.bridge(quantizer)
    own = {field: value for field, value in own.items() if field not in ('methods', 'overrides')}
    return Settings(**own, quantizer=quantizer, bridge=bridge)


def _schedule(weight: float | Mapping[str, Any]) -> float | ops.Schedule:
    """The weight of the quantizer's loss: a number, or a function of the epoch."""
    if not isinstance(weight, Mapping):
        if weight < 0:
            raise RunError(f'quantizer_weight is {weight}: give at least 0')
        return float(weight)
    given = dict(weight)
    try:
        return ops.Schedule(given.pop('schedule', None), **given)
    except ValueError as error:
        raise RunError(f'quantizer_weight: {error}') from error


def describe(config_file: str | pathlib.Path) -> str:
    """The fields of a configuration file, a line each: name, default and the comment beside it."""
    lines = []
    for line in pathlib.Path(config_file).read_text().splitlines():
        found = re.match(r'    config\.(\w+) = (.*?)  # (.*)', line)
        if found:
            name, value, meaning = found.groups()
            value = '...' if value == '{' else value
            lines.append(f'  --config.{name}={value}\n      {meaning}')
    return '\n'.join(lines)
