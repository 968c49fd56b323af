"""Random search for settings: a space as plain data, the trials drawn from it, and their choice.

Pure functions of a configuration. A trial is a method like any other, with another spec and other
overrides. Every value is drawn for itself, from the names of method and field and the number of the
trial, so that it depends neither on other methods or fields nor on how many trials there are.
"""

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vqjax import quantizers
from vqjax.trainer.config.fields import OWN
from vqjax.trainer.errors import RunError
from vqjax.trainer.wording import shorten

EVERY = 'every'  # of the space: fields that all methods vary
QUANTIZER = 'quantizer'  # of a method's space: its spec, or fields of it
DISTRIBUTIONS = ('uniform', 'log_uniform', 'choice')

Path = tuple[str, ...]  # of a field: ('learning_rate',) or ('quantizer', 'inner', 'decay')


@dataclasses.dataclass(frozen=True)
class Trial:
    """One setting of a method.

    settings: dotted path -> value, such as {'quantizer.inner.decay': 0.97}
    spec, overrides: the method's, with these values in place
    """

    method: str
    index: int
    settings: dict[str, Any]
    spec: Any
    overrides: dict[str, Any]

    @property
    def name(self) -> str:
        """As a method of the search."""
        return f'{self.method}-{self.index:02d}'


def make_trials(config: Mapping[str, Any], methods: Iterable[str]) -> dict[str, list[Trial]]:
    """The trials of every method, equally many.

    Args:
      config: a checked configuration, complete.
      methods: names of those that run.

    Raises:
      RunError: the space is none: an unknown method, field or distribution, or wrong bounds.
    """
    _check_methods(config)
    spaces = {name: _space(config, name) for name in methods}
    return {
        name: [
            _trial(config, method=name, space=space, index=index)
            for index in range(config['trials'])
        ]
        for name, space in spaces.items()
    }


def draw(distribution: Mapping[str, Any], u: float) -> Any:
    """The value of a distribution below which the share u of it lies, 0 <= u < 1.

    Numbers have three digits, so that what is told of a trial is what was run.
    """
    ((kind, given),) = distribution.items()
    if kind == 'choice':
        return given[int(u * len(given))]
    low, high = given
    if kind == 'log_uniform':
        value = math.exp(math.log(low) + u * (math.log(high) - math.log(low)))
    else:
        value = low + u * (high - low)
    return min(max(float(f'{value:.3g}'), low), high)


def best(accuracy: Sequence[float | None], nll: Sequence[float | None]) -> int | None:
    """The trial of the highest validation accuracy, of equal ones that of the lowest NLL.

    None stands for a trial that diverged, and is the answer where all did.
    """
    alive = [i for i, x in enumerate(accuracy) if x is not None and math.isfinite(x)]
    # An NLL that is NaN is the worst.
    nats = [math.inf if x is None or math.isnan(x) else x for x in nll]
    return max(alive, key=lambda i: (accuracy[i] or 0.0, -nats[i], -i), default=None)


def mean(values: Sequence[float | None]) -> float | None:
    """The mean over the runs of a trial, None where one of them diverged."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _check_methods(config: Mapping[str, Any]) -> None:
    for name in config['space']:
        if name != EVERY and name not in config['quantizers']:
            raise RunError(
                f'space names a method {name!r}: config.quantizers has '
                f'{", ".join(config["quantizers"])}; {EVERY!r} means all'
            )


def _space(config: Mapping[str, Any], method: str) -> dict[Path, Mapping[str, Any]]:
    """Path -> distribution of one method, checked."""
    found = {}
    for name in (EVERY, method):
        where = f'space.{name}'
        for path, distribution in _flatten(config['space'].get(name, {}), where):
            _check_path(config, method=method, path=path, where=where)
            found[path] = distribution
    if not found:
        raise RunError(
            f'space has nothing for the method {method!r}, so that its trials would all be one: '
            f'give it, or {EVERY!r}, a field'
        )
    clash = next((p for p in found for q in found if p != q and p == q[: len(p)]), None)
    if clash:
        raise RunError(
            f'space draws {".".join(clash)} of the method {method!r} as a whole, and a part of '
            'it: leave one out'
        )
    return found


def _flatten(given: Any, where: str, path: Path = ()) -> list[tuple[Path, Mapping[str, Any]]]:
    """Paths and distributions of a nested mapping: what holds mappings alone is none itself."""
    if not isinstance(given, Mapping) or path and not given:
        said = '.'.join((where, *path))
        raise RunError(f'{said} is {shorten(given)}: give a distribution, one of {_DISTRIBUTIONS}')
    if not path or all(isinstance(x, Mapping) for x in given.values()):
        parts = ((name, inner) for name, inner in given.items())
        return [x for name, inner in parts for x in _flatten(inner, where, (*path, name))]
    _check_distribution('.'.join((where, *path)), given)
    return [(path, given)]


_DISTRIBUTIONS = "{'uniform': (low, high)}, {'log_uniform': (low, high)} or {'choice': (a, b)}"


def _check_distribution(where: str, given: Mapping[str, Any]) -> None:
    kind, *more = given
    if more or kind not in DISTRIBUTIONS:
        near = difflib.get_close_matches(kind, DISTRIBUTIONS, 1)
        hint = f'did you mean {near[0]}?' if near else f'give one of {_DISTRIBUTIONS}'
        raise RunError(f'{where} has the unknown distribution {", ".join(given)}: {hint}')
    values = given[kind]
    if kind == 'choice':
        if not isinstance(values, list | tuple) or not values:
            raise RunError(f'{where}.choice is {shorten(values)}: give a list, not an empty one')
        return
    numbers = isinstance(values, list | tuple) and all(type(x) in (int, float) for x in values)
    if not numbers or len(values) != 2:
        raise RunError(f'{where}.{kind} is {shorten(values)}: give two numbers, (low, high)')
    low, high = values
    if low > high:
        raise RunError(f'{where}.{kind} is from {low} to {high}: give the lower one first')
    if kind == 'log_uniform' and low <= 0:
        raise RunError(f'{where}.log_uniform begins at {low}: give bounds above 0, or uniform')


def _check_path(config: Mapping[str, Any], method: str, path: Path, where: str) -> None:
    first, *rest = path
    if first != QUANTIZER or len(path) == 1:
        known = (*OWN, QUANTIZER)
        if rest or first not in known:
            near = difflib.get_close_matches(first, known, 1)
            hint = f'did you mean {near[0]}?' if near else 'give a field of overrides or quantizer'
            raise RunError(f'{where} names a field {".".join(path)!r} that there is not: {hint}')
        return
    spec = config['quantizers'][method]
    for part in rest:
        fields = _fields(spec)
        if part not in fields:
            there = ', '.join(fields) or 'nothing'
            raise RunError(
                f'{where} names {".".join(path)!r}, and the spec of {method!r} has no {part!r} '
                f'there: it has {there}'
            )
        spec = fields[part]


def _fields(spec: Any) -> dict[str, Any]:
    """What a part of a spec has, with the fields that it leaves at their defaults."""
    if not isinstance(spec, Mapping):
        return {}
    try:
        return quantizers.to_spec(quantizers.make(spec)) | dict(spec)
    except (ValueError, TypeError, KeyError):  # a part that is no quantizer, or is refused later
        return dict(spec)


def _trial(
    config: Mapping[str, Any], method: str, space: Mapping[Path, Mapping[str, Any]], index: int
) -> Trial:
    spec, overrides = config['quantizers'][method], dict(config['overrides'].get(method, {}))
    settings = {}
    for path, distribution in space.items():
        dotted = '.'.join(path)
        seed = [index, *f'{method} {dotted}'.encode()]
        value = draw(distribution, float(np.random.default_rng(seed).random()))
        settings[dotted] = value
        if path[0] == QUANTIZER:
            spec = _put(spec, path[1:], value)
        else:
            overrides[path[0]] = value
    return Trial(method, index, settings, spec, overrides)


def _put(spec: Any, path: Path, value: Any) -> Any:
    """The spec with a value in place of what stands at that path."""
    if not path:
        return value
    return dict(spec) | {path[0]: _put(_fields(spec)[path[0]], path[1:], value)}
