"""The fields every configuration has, and the check that they make sense together."""

import pathlib
import re
import types
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from vqjax import data, models, quantizers

# Name -> type. What each means is said once, beside its value, in configs/digits.py.
FIELDS: dict[str, type] = {
    'dataset': str,
    'data_dir': str,
    'augment': bool,
    'bottleneck': str,
    'encoder': str,
    'features': int,
    'dtype': str,
    'quantizers': dict,
    'guard': bool,
    'methods': str,
    'seeds': int,
    'epochs': int,
    'batch_size': int,
    'accumulate': int,
    'init_batch_size': int,
    'learning_rate': float,
    'warmup_epochs': float,
    'weight_decay': float,
    'label_smoothing': float,
    'clip_norm': float,
    'ema_decay': float,
    'eval_every': int,
    'checkpoint_every': int,
    'keep_checkpoints': int,
    'log_every': int,
}
_CHOICES = {
    'bottleneck': models.BOTTLENECKS,
    'encoder': models.ENCODERS,
    'dtype': ('float32', 'bfloat16'),
}
_AT_LEAST = {
    "features": 1, "seeds": 1, "epochs": 1, "batch_size": 1, "accumulate": 1,
    "init_batch_size": 1, "eval_every": 1, "checkpoint_every": 1, "keep_checkpoints": 1,
    "log_every": 1, "warmup_epochs": 0, "weight_decay": 0, "label_smoothing": 0, "clip_norm": 0,
    "ema_decay": 0,
}  # fmt: skip


class Settings(types.SimpleNamespace):
    """A checked configuration: its fields as attributes.

    `methods` maps each name to its quantizer (None for no quantizer); `config` is the plain data.
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
        if isinstance(value, bool) != (kind is bool) or not isinstance(
            value, (int, float) if kind is float else kind
        ):
            raise RunError(f'{name} is {value!r}: give a value of type {kind.__name__}')


def choose(text: str, known: Iterable[str], what: str) -> list[str]:
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
            raise RunError(f"unknown {what} {name!r}: give 'all' or some of {', '.join(known)}")
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


def check(config: dict[str, Any]) -> Settings:
    """Checks plain data against FIELDS and the devices there are.

    Raises:
      RunError: naming the field, its value and the remedy.
    """
    check_fields(config, FIELDS)
    for name, choices in _CHOICES.items():
        if config[name] not in choices:
            raise RunError(f'{name} is {config[name]!r}: choose one of {", ".join(choices)}')
    for name, least in _AT_LEAST.items():
        if config[name] < least:
            raise RunError(f'{name} is {config[name]}: give at least {least}')
    for name in ('label_smoothing', 'ema_decay'):
        if config[name] >= 1:
            raise RunError(f'{name} is {config[name]}: give less than 1')
    if not config['learning_rate'] > 0:
        raise RunError(f'learning_rate is {config["learning_rate"]}: give more than 0')
    shares = jax.device_count() * config['accumulate']
    if config['batch_size'] % shares:
        raise RunError(
            f'batch_size {config["batch_size"]} is not divisible by {shares} '
            f'({jax.device_count()} devices x accumulate {config["accumulate"]}): '
            f'try {max(config["batch_size"] // shares, 1) * shares}'
        )
    return Settings(**(config | {'methods': _methods(config), 'config': config}))


def _methods(config: dict[str, Any]) -> dict[str, Any]:
    methods = {}
    for name in (part.strip() for part in config['methods'].split(',')):
        if name not in config['quantizers']:
            known = ', '.join(config['quantizers'])
            raise RunError(f'unknown method {name!r}: config.quantizers has {known}')
        if name in methods:
            raise RunError(f'method {name!r} is named twice in methods: name it once')
        spec = config['quantizers'][name]
        try:
            methods[name] = None if spec is None else quantizers.make(spec)
        except (ValueError, TypeError, KeyError) as error:
            raise RunError(f'quantizers.{name}: {error}') from error
    return methods


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
