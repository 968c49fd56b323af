"""The weak-limit prior, and what a step of EM makes of expected counts.

Every vector of probabilities p has a Dirichlet prior of concentrations c0 and, after counts n, the
concentrations c = c0 + n.

'map': p = c / sum(c), the mode of the density over log p (MacKay 1998), which is inside for every
c0 > 0; that over p itself has none where c0 < 1, and a weak limit is all c0 < 1.
'variational': p stands for its whole Dirichlet, by its geometric mean exp(E log p), which sums to
less than 1, the less the fewer the counts: a state that the sessions do not need loses what it has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import digamma, gammaln

from vqjax.hsmm.chain import Weights, others, safe_log
from vqjax.ops.serialization import exported

ESTIMATES = ('variational', 'map')
# Steps towards the fixed point of the base weights: the first that is best, or none.
_LENGTHS = (1.0, 0.5, 0.25, 0.1, 0.02, 0.0)
_ROUNDS = 3


@exported
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


def _tables(c: Concentrations) -> list[jax.Array]:
    return [c.start, c.stay, c.move, *c.emit]


def _allowed(c: Concentrations) -> list[jax.Array | bool]:
    return [True, True, others(len(c.start)), *[True] * len(c.emit)]


def _at_once(function, arrays):
    """`function` of every entry: one call, since XLA takes a third of a second to compile each."""
    flat = function(jnp.concatenate([jnp.ravel(x) for x in arrays]))
    ends = np.cumsum([x.size for x in arrays])[:-1]
    return [part.reshape(x.shape) for part, x in zip(jnp.split(flat, ends), arrays, strict=True)]


def log_betas(tables: Sequence[jax.Array], allowed: Sequence[jax.Array | bool]) -> list[jax.Array]:
    """log of the normalizers of Dirichlets [..., K] each, over what of their entries is allowed."""
    entries = [jnp.where(keep, c, 1.0) for keep, c in zip(allowed, tables, strict=True)]
    totals = [jnp.sum(jnp.where(k, c, 0), -1) for k, c in zip(allowed, tables, strict=True)]
    found = _at_once(gammaln, entries + totals)
    terms, of_totals = found[: len(tables)], found[len(tables) :]
    terms = [jnp.sum(jnp.where(k, x, 0), -1) for k, x in zip(allowed, terms, strict=True)]
    return [x - total for x, total in zip(terms, of_totals, strict=True)]


def _mean_logs(tables, estimate):
    """log of what stands for p in the recursions."""
    totals = [jnp.sum(c, -1, keepdims=True) for c in tables]
    if estimate == 'map':
        return [safe_log(c / total) for c, total in zip(tables, totals, strict=True)]
    least = jnp.finfo(tables[0].dtype).tiny
    found = _at_once(digamma, [jnp.maximum(c, least) for c in tables] + totals)
    pairs = zip(found[: len(tables)], found[len(tables) :], strict=True)
    return [jnp.maximum(x - total, jnp.log(least)) for x, total in pairs]


def weights_of(c: Concentrations, estimate: str) -> Weights:
    """What the recursions take."""
    start, stay, move, *emit = _mean_logs(_tables(c), estimate)
    stay, leave = jnp.moveaxis(stay, -1, 0)
    return Weights(start, stay, leave, move, tuple(emit))


def counts_of(found: Weights) -> Concentrations:
    """Expected counts as gradients give them."""
    stay = jnp.stack([found.stay, found.leave], -1)
    return Concentrations(found.start, stay, found.move, found.emit)


def log_prior(model, c: Concentrations, base: jax.Array) -> jax.Array:
    """What is added to the log likelihood [] so that EM never lowers the sum.

    'map': the log prior of the estimate; 'variational': minus the divergence of its Dirichlets
    from their priors, which makes the sum a lower bound of the log evidence.
    """

    before = prior(model, base)
    allowed, tables, priors = _allowed(c), _tables(c), _tables(before)
    logs = _mean_logs(tables, model.estimate)
    logs = [jnp.where(keep, x, 0) for keep, x in zip(allowed, logs, strict=True)]
    if model.estimate == 'map':
        terms = [jnp.sum(c0 * log_p) for c0, log_p in zip(priors, logs, strict=True)]
        betas = [-jnp.sum(x) for x in log_betas(priors, allowed)]
    else:
        parts = zip(tables, priors, logs, strict=True)
        terms = [jnp.sum((c0 - c) * log_p) for c, c0, log_p in parts]
        betas = _gains(tables, priors, allowed)
    return sum(terms) + sum(betas) + _log_base(model, base)


def _gains(tables, priors, allowed):
    """log normalizer of each table less that of its prior, rows added up."""
    found = log_betas([*tables, *priors], [*allowed, *allowed])
    pairs = zip(found[: len(tables)], found[len(tables) :], strict=True)
    return [jnp.sum(x) - jnp.sum(x0) for x, x0 in pairs]


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
        before = prior(model, base)
        allowed, priors = _allowed(before), _tables(before)
        tables = [c0 + n for c0, n in zip(priors, _tables(counts), strict=True)]
        if model.estimate != 'map':
            return sum(_gains(tables, priors, allowed)) + _log_base(model, base)
        best = [-jnp.sum(x) for x in log_betas(priors, allowed)]
        for keep, c in zip(allowed, tables, strict=True):
            total = jnp.sum(jnp.where(keep, c, 0), -1, keepdims=True)
            best.append(jnp.sum(jnp.where(keep, c * safe_log(c / total), 0)))
        return sum(best) + _log_base(model, base)

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
