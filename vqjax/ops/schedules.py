"""Optax schedules that can be compared, hashed and written down."""

from __future__ import annotations

import inspect
import math
from typing import Any

import optax

from vqjax.ops.fields import check, check_flag, is_number, plain

# Those whose arguments are numbers; optax has optimizers and losses too under its names.
SCHEDULES = {
    f.__name__: f
    for f in (
        optax.constant_schedule,
        optax.cosine_decay_schedule,
        optax.cosine_onecycle_schedule,
        optax.exponential_decay,
        optax.linear_onecycle_schedule,
        optax.linear_schedule,
        optax.polynomial_schedule,
        optax.warmup_constant_schedule,
        optax.warmup_cosine_decay_schedule,
        optax.warmup_exponential_decay_schedule,
    )
}


class Schedule:
    """An optax schedule by name: a function of the step that is also plain data.

    `Schedule('exponential_decay', init_value=2.0, transition_steps=1, decay_rate=0.999995,
    end_value=0.5)` calls `optax.exponential_decay`. Optax's own schedules are closures: two made
    alike are not equal, so a field holding one would recompile and could not be saved.

    Raises:
      ValueError: for a name not in `SCHEDULES`, an argument that the schedule does not take, that
        is missing or no finite number, steps that are not above 0, and what optax refuses.
    """

    def __init__(self, name: str, **arguments):
        if not isinstance(name, str) or name not in SCHEDULES:
            raise ValueError(
                f'schedule must be the name of an optax schedule, got {name!r}; choose one of '
                f'{sorted(SCHEDULES)}, or give a function of the step'
            )
        self.name = name
        self.arguments = {field: plain(value) for field, value in arguments.items()}
        try:
            inspect.signature(SCHEDULES[name]).bind(**self.arguments)
        except TypeError as error:
            raise ValueError(f'schedule {name!r} does not take {arguments}: {error}') from None
        for field, value in self.arguments.items():
            _check_argument(field, value)
        try:
            self._schedule = SCHEDULES[name](**self.arguments)
        except ValueError as error:
            raise ValueError(f'schedule {name!r} refuses {self.arguments}: {error}') from None

    def __call__(self, step: Any) -> Any:
        """step int32 [] -> float32 []."""
        return self._schedule(step)

    def least(self) -> float:
        """The smallest value it takes at its ends and where one part of it passes into another."""
        steps = [v for k, v in self.arguments.items() if k.endswith(('_steps', '_begin'))]
        turns = {0, 1, 2**30, sum(steps), *steps, *(step + 1 for step in steps)}
        return min(float(self(math.ceil(turn))) for turn in turns)

    def spec(self) -> dict[str, Any]:
        """Plain data: {'schedule': name, argument: value, ...}."""
        return {'schedule': self.name, **self.arguments}

    def __repr__(self) -> str:
        arguments = ''.join(f', {name}={value!r}' for name, value in self.arguments.items())
        return f'Schedule({self.name!r}{arguments})'

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Schedule) and self.spec() == other.spec()

    def __hash__(self) -> int:
        # Not of the repr: equal ones may name their arguments in another order, or 1 and 1.0.
        return hash((self.name, frozenset(self.arguments.items())))

    def __reduce__(self) -> Any:
        return _rebuild, (self.name, self.arguments)


def _check_argument(field: str, value: Any) -> None:
    if field == 'staircase':
        check_flag(field, value)
    elif not (field == 'end_value' and value is None):
        check(is_number(value), field, value, 'a finite number')
    if field in ('transition_begin', 'warmup_steps'):
        check(value is not None and value >= 0, field, value, 'not negative')
    elif field.endswith('_steps'):
        check(value is not None and value > 0, field, value, 'above 0, in steps')


def _rebuild(name, arguments):
    return Schedule(name, **arguments)
