"""The weak-limit prior, and what a step of EM makes of expected counts.

Every vector of probabilities p has a Dirichlet prior of concentrations c0 and, after counts n, the
concentrations c = c0 + n.

'map': p = c / sum(c), the mode of the density over log p (MacKay 1998), which is inside for every
c0 > 0; that over p itself has none where c0 < 1, and a weak limit is all c0 < 1.
'variational': p stands for its whole Dirichlet, by its geometric mean exp(E log p), which sums to
less than 1, the less the fewer the counts: a state that the sessions do not need loses what it has.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import digamma, gammaln

from vqjax.hsmm.chain import Weights, others, safe_log

ESTIMATES = ('variational', 'map')
# Steps towards the fixed point of the base weights: the first that is best, or none.
_LENGTHS = (1.0, 0.5, 0.25, 0.1, 0.02, 0.0)
_ROUNDS = 3


class Concentrations(NamedTuple):
    """Of start [L], stay [L, 2] (a phase kept, or left), move [L, L], emit [L, K] for each axis."""

    start: jax.Array
    stay: jax.Array
    move: jax.Array
    emit: tuple[jax.Array, ...]


def prior(model, base: jax.Array) -> Concentrations:
    """c0 of a model for base weights [L]: start and rows of moves are alpha base."""
    share = model.concentration * base
    allowed = others(model.num_states)
    if model.duration is None:
        # A row [L] of moves with itself is its stay and the rest, which are independent.
        stay = jnp.stack([share, jnp.sum(jnp.where(allowed, share, 0), 1)], -1)
    else:
        left = model.phases * model.duration_weight
        kept = (model.duration - model.phases) * model.duration_weight
        stay = jnp.broadcast_to(jnp.asarray([kept, left], base.dtype), (model.num_states, 2))
    emit = tuple(
        jnp.full((model.num_states, size), model.emission / size, base.dtype)
        for size in model.sizes
    )
    return Concentrations(share, stay, jnp.where(allowed, share, 0), emit)


def _entries(num_states: int) -> Concentrations:
    return Concentrations(True, True, others(num_states), True)


def _each(function, *parts):
    """`function` of (where, *vectors) summed over all vectors of concentrations."""
    where = _entries(len(parts[0].start))
    found = [
        function(allowed, *vectors)
        for allowed, *vectors in zip(where[:3], *[part[:3] for part in parts], strict=True)
    ]
    found += [function(True, *vectors) for vectors in zip(*[p.emit for p in parts], strict=True)]
    return sum(jnp.sum(x) for x in found)


def log_beta(c: jax.Array, allowed: jax.Array | bool) -> jax.Array:
    """log of the normalizer of Dirichlets [..., K], over what of their entries is allowed."""
    terms = jnp.where(allowed, gammaln(jnp.where(allowed, c, 1.0)), 0)
    return jnp.sum(terms, -1) - gammaln(jnp.sum(jnp.where(allowed, c, 0), -1))


def _mean_log(c, estimate):
    """log of what stands for p in the recursions."""
    total = jnp.sum(c, -1, keepdims=True)
    if estimate == 'map':
        return safe_log(c / total)
    lowest = jnp.log(jnp.finfo(c.dtype).tiny)
    return jnp.maximum(digamma(jnp.maximum(c, jnp.finfo(c.dtype).tiny)) - digamma(total), lowest)


def weights_of(c: Concentrations, estimate: str) -> Weights:
    """What the recursions take."""
    stay, leave = jnp.moveaxis(_mean_log(c.stay, estimate), -1, 0)
    emit = tuple(_mean_log(table, estimate) for table in c.emit)
    return Weights(_mean_log(c.start, estimate), stay, leave, _mean_log(c.move, estimate), emit)


def counts_of(found: Weights) -> Concentrations:
    """Expected counts as gradients give them."""
    stay = jnp.stack([found.stay, found.leave], -1)
    return Concentrations(found.start, stay, found.move, found.emit)


def log_prior(model, c: Concentrations, base: jax.Array) -> jax.Array:
    """What is added to the log likelihood [] so that EM never lowers the sum.

    'map': the log prior of the estimate; 'variational': minus the divergence of its Dirichlets
    from their priors, which makes the sum a lower bound of the log evidence.
    """

    def term(allowed, c, c0):
        log_p = jnp.where(allowed, _mean_log(c, model.estimate), 0)
        if model.estimate == 'map':
            return jnp.sum(c0 * log_p, -1) - log_beta(c0, allowed)
        return log_beta(c, allowed) - log_beta(c0, allowed) + jnp.sum((c0 - c) * log_p, -1)

    return _each(term, c, prior(model, base)) + _log_base(model, base)


def _log_base(model, base):
    """log Dirichlet(gamma / L) of the base weights, over their logarithms."""
    if model.gamma is None:
        return jnp.zeros((), base.dtype)
    return model.gamma / model.num_states * jnp.sum(jnp.log(base))


def maximized(model, counts: Concentrations, base: jax.Array):
    """(concentrations, base weights) of the next step: those that are best given expected counts.

    What base weights are worth is `value`, the prior's concentrations being filled up with the
    counts at once. Its stationary points have base proportional to d value / d log base: a step
    goes towards there, as far as the value does not fall (Minka 2000 for the fixed point).
    """

    def value(base):
        def term(allowed, c0, n):
            c = c0 + n
            if model.estimate == 'map':
                total = jnp.sum(jnp.where(allowed, c, 0), -1, keepdims=True)
                best = jnp.sum(jnp.where(allowed, c * safe_log(c / total), 0), -1)
            else:
                best = log_beta(c, allowed)
            return best - log_beta(c0, allowed)

        return _each(term, prior(model, base), counts) + _log_base(model, base)

    def towards(_, base):
        slope = base * jax.grad(value)(base)
        target = jnp.log(jnp.maximum(slope, 1e-8 * jnp.max(jnp.abs(slope))))
        lengths = jnp.asarray(_LENGTHS, base.dtype)[:, None]
        logits = jnp.log(base) * (1 - lengths) + target * lengths
        tried = jax.nn.softmax(logits, -1).at[-1].set(base)
        values = jax.vmap(value)(tried)
        return tried[jnp.argmax(jnp.where(jnp.isnan(values), -jnp.inf, values))]

    if model.gamma is not None:
        base = lax.fori_loop(0, _ROUNDS, towards, base)
    return jax.tree.map(jnp.add, prior(model, base), counts), base
