"""The most likely state of each step from the codes until a few steps later, as they arrive."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vqjax.hsmm import chain
from vqjax.hsmm.chain import Weights
from vqjax.ops.serialization import exported


@exported
class Window(NamedTuple):
    """The last lag + 1 steps of a stream, the newest last.

    alpha: [lag + 1, ..., L, r], log probabilities of state and phase given the codes until there.
    seen: [lag + 1, ..., L], log likelihood of the codes of each step.
    begun: bool [lag + 1, ...], whether the stream had a code by then.
    """

    alpha: jax.Array
    seen: jax.Array
    begun: jax.Array


def opened(weights: Weights, phases: int, lag: int, shape: tuple[int, ...]) -> Window:
    """Before the first step of streams [*shape]."""
    alpha = chain.started(weights, phases)
    seen = jnp.zeros((lag + 1, *shape, len(weights.start)), alpha.dtype)
    begun = jnp.zeros((lag + 1, *shape), bool)
    return Window(jnp.broadcast_to(alpha, (lag + 1, *shape, *alpha.shape)), seen, begun)


def stepped(weights: Weights, window: Window, codes: jax.Array) -> tuple[Window, jax.Array]:
    """The window after codes [..., C], and states int32 [...] of the step lag steps before it.

    -1 for steps before a stream's first code. Time passes at steps without a code.
    """
    table = chain.moving(weights)
    seen, before = chain.evidence(weights.emit, codes), window.begun[-1]
    moved = chain.advanced(weights, window.alpha[-1], table)
    alpha = jnp.where(before[..., None, None], moved, window.alpha[-1]) + seen[..., None]
    alpha = alpha - jnp.max(alpha, (-2, -1), keepdims=True)
    begun = before | jnp.any(codes >= 0, -1)
    window = Window(
        *(
            jnp.concatenate([old[1:], new[None]])
            for old, new in zip(window, (alpha, seen, begun), strict=True)
        )
    )

    def back(beta, step):
        seen, moves = step
        beta = beta + seen[..., None]
        beta = jnp.where(moves[..., None, None], chain.returned(weights, beta, table), beta)
        return beta - jnp.max(beta, (-2, -1), keepdims=True), None

    steps = (window.seen[1:], window.begun[:-1])
    beta, _ = lax.scan(back, jnp.zeros_like(alpha), steps, reverse=True)
    states = jnp.argmax(jax.nn.logsumexp(window.alpha[0] + beta, -1), -1)
    return window, jnp.where(window.begun[0], states, -1).astype(jnp.int32)


def filtered(weights: Weights, codes: jax.Array, phases: int, lag: int) -> jax.Array:
    """int32 [T, B] for codes [T, B, C]: `stepped` over all of them, and `lag` steps of nothing."""
    steps, batch, _ = codes.shape
    codes = jnp.pad(codes, [(0, lag), (0, 0), (0, 0)], constant_values=-1)
    window = opened(weights, phases, lag, (batch,))
    _, states = lax.scan(lambda w, now: stepped(weights, w, now), window, codes)
    return states[lag:]
