"""Optax schedules that can be compared, hashed and written down."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax


class Schedule:
    """An optax schedule by name: a function of the step that is also plain data.

    `Schedule('exponential_decay', init_value=2.0, transition_steps=1, decay_rate=0.999995,
    end_value=0.5)` calls `optax.exponential_decay`. Optax's own schedules are closures: two made
    alike are not equal, so a field holding one would recompile and could not be saved.

    Raises:
      ValueError: for a name optax does not have, or arguments it does not take.
    """

    def __init__(self, name: str, **arguments):
        make = getattr(optax, name, None) if name else None
        if not callable(make):
            raise ValueError(f'schedule must be the name of an optax schedule, got {name!r}')
        try:
            self._schedule = make(**arguments)
        except TypeError as error:
            raise ValueError(f'schedule {name!r} does not take {arguments}: {error}') from None
        try:
            jax.eval_shape(lambda step: jnp.asarray(self._schedule(step), jnp.float32), 0)
        except Exception:  # an optimizer, say: optax has more than schedules under its names
            raise ValueError(
                f'schedule {name!r} is no function of the step: give the name of an optax schedule'
            ) from None
        self.name = name
        self.arguments = arguments

    def __call__(self, step: jax.Array) -> jax.Array:
        """step int32 [] -> float32 []."""
        return self._schedule(step)

    def spec(self) -> dict:
        """Plain data: {'schedule': name, argument: value, ...}."""
        return {'schedule': self.name, **self.arguments}

    def __repr__(self):
        arguments = ''.join(f', {name}={value!r}' for name, value in self.arguments.items())
        return f'Schedule({self.name!r}{arguments})'

    def __eq__(self, other):
        return isinstance(other, Schedule) and self.spec() == other.spec()

    def __hash__(self):
        return hash(repr(self))

    def __reduce__(self):
        return _rebuild, (self.name, self.arguments)


def _rebuild(name, arguments):
    return Schedule(name, **arguments)
