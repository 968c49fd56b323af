"""The most likely segmentation.

It is not the most likely path of the expanded chain, where the phases of one segment compete: a
duration is the sum over them. So every segment that may be under way is a candidate of its own, by
its state and start.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from vqjax.hsmm import chain
from vqjax.hsmm.chain import Weights
from vqjax.hsmm.sessions import Sessions


def _within(weights: Weights, phase: jax.Array) -> jax.Array:
    """log [..., L, r] of the phases of a segment, a step older and still there."""
    came = jnp.concatenate(
        [jnp.full_like(phase[..., :1], -jnp.inf), phase[..., :-1] + weights.leave[:, None]], -1
    )
    return jnp.logaddexp(phase + weights.stay[:, None], came)


def most_likely(weights: Weights, sessions: Sessions, phases: int, longest: int) -> jax.Array:
    """States int32 [T, B] of the best segmentation, -1 outside a session.

    Candidates younger than `longest` steps are all kept. Of the older ones of a state one is
    kept, that with the best score if it ended now, and of these is the session's first segment.
    Memory: 8 L bytes a step, and B L (longest + r) numbers.
    """
    (steps, batch), states = sessions.moves.shape, len(weights.start)
    dtype = weights.start.dtype
    # With one phase what is left of a segment does not depend on its age: one candidate is enough.
    longest = 1 if phases == 1 else min(longest, steps)
    low = jnp.asarray(jnp.finfo(dtype).min / 4, dtype)
    allowed = jnp.where(chain.others(states), weights.move, -jnp.inf)

    fresh = jnp.full((states, phases), -jnp.inf, dtype).at[:, 0].set(0)
    older, phase = lax.scan(lambda p, _: (_within(weights, p), p), fresh, length=longest)
    # Ages are the first axis: maxima over them are taken for all states at once.
    ends = (phase[..., -1] + weights.leave)[:, None]  # of durations 1 to longest
    lasts = jax.nn.logsumexp(phase, -1)[:, None]
    ages = jnp.arange(longest, dtype=jnp.int32)[:, None, None]

    def best(young, old, start, time):
        """The score of the best candidate [B, L], and the step at which it started."""
        top = jnp.max(young, 0)
        age = jnp.min(jnp.where(young == top, ages, longest), 0)
        return jnp.maximum(top, old), jnp.where(old > top, start, time - age)

    def step(carry, now):
        young, score, phase, start = carry
        codes, move, time = now
        # Segments that end at the step before, and those that start with this one.
        old = score + phase[..., -1] + weights.leave
        ended, since = best(young + ends, old, start, time - 1)
        entering = ended[..., None] + allowed
        before = jnp.argmax(entering, -2)
        # The oldest joins the others that are old, or takes their place.
        oldest, joins = young[-1], _within(weights, phase)
        wins = oldest + older[:, -1] > score + joins[..., -1]
        moved = (
            jnp.concatenate([jnp.max(entering, -2)[None], young[:-1]]),
            jnp.where(wins, oldest, score),
            jnp.where(wins[..., None], older, joins),
            jnp.where(wins, time - longest, start),
        )
        places = (move[:, None], move[:, None], move[:, None, None], move[:, None])
        moved = [jnp.where(place, a, b) for place, a, b in zip(places, moved, carry, strict=True)]
        # Numbers stay small: what has the best score if it ends is brought near 0.
        seen = chain.evidence(weights.emit, codes) - jnp.max(ended, -1, keepdims=True)
        young, score = jnp.maximum(moved[0] + seen, low), jnp.maximum(moved[1] + seen, low)
        return (young, score, *moved[2:]), (since, before)

    first = jnp.argmax(sessions.inside, 0).astype(jnp.int32)
    carry = (
        jnp.full((longest, batch, states), low, dtype),
        jnp.broadcast_to(weights.start, (batch, states)),
        jnp.broadcast_to(chain.started(weights, phases) - weights.start[:, None],
                         (batch, states, phases)),
        jnp.broadcast_to(first[:, None], (batch, states)),
    )  # fmt: skip
    time = jnp.arange(steps, dtype=jnp.int32)
    carry, links = lax.scan(step, carry, (sessions.codes, sessions.moves, time))
    young, score, phase, start = carry
    last = (steps - 1 - jnp.argmax(sessions.inside[::-1], 0)).astype(jnp.int32)[:, None]
    old = score + jax.nn.logsumexp(phase, -1)
    ended, since = best(young + lasts, old, start, last)
    state = jnp.argmax(ended, -1)
    rows = jnp.arange(batch)

    def back(carry, now):
        state, start = carry
        since, before, move, time = now
        new = move & (start == time)
        came = before[rows, state]
        following = jnp.where(new, came, state), jnp.where(new, since[rows, came], start)
        return following, state

    links = tuple(x.astype(jnp.int32) for x in links)
    carry = (state.astype(jnp.int32), since[rows, state].astype(jnp.int32))
    _, found = lax.scan(back, carry, (*links, sessions.moves, time), reverse=True)
    return jnp.where(sessions.inside, found, -1)
