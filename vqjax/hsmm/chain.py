"""The expanded chain: L states of r phases each, a phase kept with probability `stay`.

A duration is then the sum of r geometric ones, a negative binomial that is at least r. Nothing of
the model is normalized in here, so that a variational step can hand in its geometric means.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vqjax.hsmm.sessions import Sessions
from vqjax.ops.serialization import exported


@exported
class Weights(NamedTuple):
    """Logarithms: start, stay and leave [L], move [L, L], emit a table [L, K] for each axis.

    `move` counts off its diagonal only (where there are two states or more).
    """

    start: jax.Array
    stay: jax.Array
    leave: jax.Array
    move: jax.Array
    emit: tuple[jax.Array, ...]


def others(num_states: int) -> jax.Array:
    """bool [L, L], True where a segment may be followed by one: off the diagonal."""
    return ~jnp.eye(num_states, dtype=bool) if num_states > 1 else jnp.ones((1, 1), bool)


def safe_log(p: jax.Array) -> jax.Array:
    """log p, a zero counting as the smallest normal number: nothing is impossible."""
    return jnp.log(jnp.maximum(p, jnp.finfo(p.dtype).tiny))


def moving(weights: Weights) -> jax.Array:
    """exp(move) [L, L], zero on the diagonal."""
    return jnp.where(others(len(weights.start)), jnp.exp(weights.move), 0)


def mixed(values: jax.Array, table: jax.Array) -> jax.Array:
    """log(exp(values) @ table) over the last axis, of logarithms [..., L]."""
    top = lax.stop_gradient(jnp.max(values, -1, keepdims=True))
    product = jnp.matmul(jnp.exp(values - top), table, precision=lax.Precision.HIGHEST)
    return safe_log(product) + top


def started(weights: Weights, phases: int) -> jax.Array:
    """log [L, r] of the first step: a session is cut out of a longer life, so any phase."""
    first = weights.start - math.log(phases)
    return jnp.broadcast_to(first[:, None], (len(first), phases))


def advanced(weights: Weights, alpha: jax.Array, table: jax.Array) -> jax.Array:
    """One step of time for log [..., L, r]; table: `moving`."""
    leaving = alpha + weights.leave[:, None]
    entering = mixed(leaving[..., -1], table)
    came = jnp.concatenate([entering[..., None], leaving[..., :-1]], -1)
    return jnp.logaddexp(alpha + weights.stay[:, None], came)


def returned(weights: Weights, beta: jax.Array, table: jax.Array) -> jax.Array:
    """The transpose of `advanced`: what follows, seen from a step before."""
    onward = mixed(beta[..., 0], table.T)
    onward = jnp.concatenate([beta[..., 1:], onward[..., None]], -1)
    return jnp.logaddexp(beta + weights.stay[:, None], onward + weights.leave[:, None])


def evidence(emit: tuple[jax.Array, ...], codes: jax.Array) -> jax.Array:
    """log likelihood [..., L] of codes [..., C] under each state; 0 for -1."""
    return sum(
        jnp.where((code >= 0)[..., None], table.T[jnp.maximum(code, 0)], 0)
        for table, code in zip(emit, jnp.moveaxis(codes, -1, 0), strict=True)
    )


def log_normalizer(
    weights: Weights, sessions: Sessions, phases: int, nudge: jax.Array | None = None
) -> jax.Array:
    """log of the sum over all paths [B], the forward recursion.

    Blocks of sqrt(T) steps are recomputed when differentiated, so that forward and backward hold
    O(sqrt(T) B L r) at once. Its gradients are the posterior: to `nudge` [T, B, L], which is
    added to the evidence, the states'; to the weights, expected counts.
    """
    steps, batch = sessions.moves.shape
    size = math.isqrt(max(steps - 1, 0)) + 1
    table, dtype = moving(weights), weights.start.dtype

    def blocks(x, fill):
        widths = [(0, -steps % size)] + [(0, 0)] * (x.ndim - 1)
        return jnp.pad(x, widths, constant_values=fill).reshape(-1, size, *x.shape[1:])

    def step(carry, now):
        alpha, total = carry
        seen, move = now
        alpha = jnp.where(move[:, None, None], advanced(weights, alpha, table), alpha)
        alpha = alpha + seen[..., None]
        top = lax.stop_gradient(jnp.max(alpha, (-2, -1)))
        return (alpha - top[:, None, None], total + top), None

    @jax.checkpoint
    def block(alpha, part):
        codes, move, nudged = part
        seen = evidence(weights.emit, codes)
        seen = seen if nudged is None else seen + nudged
        (alpha, total), _ = lax.scan(step, (alpha, jnp.zeros(batch, dtype)), (seen, move))
        return alpha, total

    alpha = jnp.broadcast_to(started(weights, phases), (batch, len(weights.start), phases))
    parts = (blocks(sessions.codes, -1), blocks(sessions.moves, False))
    parts += (None if nudge is None else blocks(nudge, 0),)
    alpha, totals = lax.scan(block, alpha, parts)
    return jnp.sum(totals, 0) + jax.nn.logsumexp(alpha, (-2, -1))


def expected(weights: Weights, sessions: Sessions, phases: int) -> tuple[jax.Array, Weights]:
    """(log normalizer summed over sessions, expected counts of every weight)."""
    return jax.value_and_grad(lambda w: jnp.sum(log_normalizer(w, sessions, phases)))(weights)


def posterior(weights: Weights, sessions: Sessions, phases: int) -> jax.Array:
    """[T, B, L]: probabilities of the states given all codes; zeros outside a session."""
    steps, batch = sessions.moves.shape
    nudge = jnp.zeros((steps, batch, len(weights.start)), weights.start.dtype)
    found = jax.grad(lambda n: jnp.sum(log_normalizer(weights, sessions, phases, n)))(nudge)
    return jnp.where(sessions.inside[..., None], found, 0)
