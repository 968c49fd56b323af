"""The check that the fields of a configuration make sense together, and what comes of them."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax

from vqjax import nn, ops, quantizers
from vqjax.trainer.config.fields import (
    FIELDS,
    OWN,
    Fields,
    check_fields,
    check_method_names,
    complete,
    writer_names,
)
from vqjax.trainer.data.recordings import Cutting
from vqjax.trainer.errors import RunError
from vqjax.trainer.step import two_level
from vqjax.trainer.wording import shorten


class Parts(NamedTuple):
    """What a study may put in place of the library's own parts.

    make: spec -> quantizer.
    spec: its inverse, as results.json and the diagnosis see it.
    bridge: quantizer -> the Linen module class around it.
    dataset: in place of the one that the configuration names, see `sets.open_own`.
    """

    make: Callable[[Any], Any] = quantizers.make
    spec: Callable[[Any], Any] = quantizers.to_spec
    bridge: Callable[[Any], Any] = lambda quantizer: nn.Quantize
    dataset: Any = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method(Fields):
    """The fields of one method, its overrides applied.

    Attributes:
      quantizer: what its spec means, None for no quantizer; for `two_level` the quantizers of top
        and bottom, until `fit_quantizers` makes one of them for the grids of a data set.
      bridge: the class of the Linen module around it.
      quantizer_weight: a number, or a function of the epoch.
    """

    quantizer: Any = None
    bridge: Any = None
    quantizer_weight: float | ops.Schedule = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Fields):
    """A checked configuration: its fields as attributes.

    Attributes:
      methods: by name, in the order in which they run.
      config: the same as plain data, complete.
    """

    methods: Mapping[str, Method]
    config: dict[str, Any]


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


def cutting(config: Mapping[str, Any], seed: int = 0) -> Cutting:
    """How a configuration has recordings cut, and any set split for this seed."""
    config = complete(config)
    repeat, fold = fold_of(config, seed) or (0, max(config['fold'], 0))
    how = {name: config[name] for name in ('window', 'hop', 'pad', 'folds')}
    return Cutting(**how, fold=fold, repeat=repeat)


def fold_of(config: Mapping[str, Any], seed: int) -> tuple[int, int] | None:
    """(repeat, fold) that a seed tests where all folds are in turn, else None.

    Seeds 0 to folds - 1 test each example once, so do the next ones, dealt out in another way.
    """
    config = complete(config)
    in_turn = config['folds'] and config['fold'] < 0
    return divmod(seed, config['folds']) if in_turn else None


def check(config: dict[str, Any], parts: Parts = Parts()) -> Settings:  # noqa: B008
    """Checks plain data against FIELDS and the devices there are; what it leaves out is default.

    Raises:
      RunError: naming the field, its value and the remedy.
    """
    config = complete(config)
    check_fields(config, FIELDS)
    _check_together(config)
    check_method_names(config['quantizers'])
    names = choose(config['methods'], config['quantizers'], 'method', 'config.quantizers has')
    if not names:
        raise RunError('quantizers is empty: give at least one method, {"none": None} for example')
    _check_overrides(config)
    writer_names(config['writers'])
    methods = {}
    for name in names:
        if name in methods:
            raise RunError(f'method {name!r} is named twice in methods: name it once')
        methods[name] = _method(config, name, parts)
    fields = {name: value for name, value in config.items() if name != 'methods'}
    return Settings(**fields, methods=methods, config=config)


def _check_together(config: Mapping[str, Any]) -> None:
    """What fields have to be beside each other."""
    shape = config['mesh_shape']
    if len(shape) != 2 or not all(type(n) is int and (n >= 1 or n == -1) for n in shape):
        raise RunError(f'mesh_shape is {shorten(shape)}: give (data, model), each at least 1 or -1')
    if config['continuous_epochs'] > config['epochs'] and not config['steps']:
        raise RunError(
            f'continuous_epochs is {config["continuous_epochs"]}, longer than the run of '
            f'{config["epochs"]} epochs: give at most epochs, which fits the codes after training'
        )
    if not config['classification_weight'] and not config['reconstruction_weight']:
        raise RunError(
            'classification_weight and reconstruction_weight are both 0: give one of them more, '
            'or there is no task'
        )
    folds, fold = config['folds'], config['fold']
    if folds == 1 or fold >= 0 and fold >= folds:
        raise RunError(
            f'fold is {fold} and folds is {folds}: give folds of at least 2 and a fold below '
            'it, or neither'
        )
    if config['encoder'] == 'sensor' and config['bottleneck'] == 'two_level':
        raise RunError(
            'encoder sensor has one grid of places: set bottleneck to vector or grid, not two_level'
        )
    try:
        devices = jax.device_count()
    except RuntimeError as error:  # JAX_PLATFORMS names what is not there, or is in use
        raise RunError(f'JAX finds no device: {" ".join(str(error).split())}') from error
    shares = devices * config['accumulate']
    if config['batch_size'] % shares:
        raise RunError(
            f'batch_size {config["batch_size"]} is not divisible by {shares} '
            f'({devices} devices x accumulate {config["accumulate"]}): '
            f'try {max(config["batch_size"] // shares, 1) * shares}'
        )


def _check_overrides(config: Mapping[str, Any]) -> None:
    for method, fields in config['overrides'].items():
        if method not in config['quantizers']:
            raise RunError(
                f'overrides names a method {method!r}: config.quantizers has '
                f'{", ".join(config["quantizers"])}'
            )
        if not isinstance(fields, Mapping):
            raise RunError(
                f'overrides.{method} is {shorten(fields)}: give a mapping of field to value'
            )
        check_fields(fields, OWN, f'overrides.{method}.')


def _method(config: dict[str, Any], name: str, parts: Parts) -> Method:
    """The settings of one method."""
    spec, changed = config['quantizers'][name], config['overrides'].get(name, {})
    own = config | changed
    try:
        if changed:
            _check_together(own)
        own['quantizer_weight'] = _schedule(own['quantizer_weight'])
    except RunError as error:
        raise RunError(f'overrides.{name}: {error}' if changed else str(error)) from None
    try:
        two = own['bottleneck'] == 'two_level'
        make = functools.partial(two_level.both, make=parts.make) if two else parts.make
        quantizer = None if spec is None else make(spec)
    except (ValueError, TypeError, KeyError) as error:
        raise RunError(f'quantizers.{name}: {error}') from error
    bridge = None if quantizer is None else parts.bridge(quantizer)
    fields = {field: value for field, value in own.items() if field not in ('methods', 'overrides')}
    return Method(**fields, quantizer=quantizer, bridge=bridge)


def _schedule(weight: float | Mapping[str, Any]) -> float | ops.Schedule:
    """The weight of the quantizer's loss: a number, or a function of the epoch."""
    if not isinstance(weight, Mapping):
        if weight < 0:
            raise RunError(f'quantizer_weight is {weight}: give at least 0')
        return float(weight)
    given = dict(weight)
    try:
        schedule = ops.Schedule(given.pop('schedule', None), **given)
    except (ValueError, TypeError) as error:
        raise RunError(f'quantizer_weight: {error}') from error
    if schedule.least() < 0:
        raise RunError(
            f'quantizer_weight is {schedule}, which falls to {schedule.least():g}: give a schedule '
            'that stays at 0 or above'
        )
    return schedule
