"""EM, and the merging of states that the bound is better without.

EM alone keeps two states that share one behaviour: neither of them is any worse than the other.
Where the number of states is to be found, pairs are merged once EM stands still, the most alike
first, and a merger stays if a few steps of EM bring the objective above what it was
(Hughes and Sudderth 2013). One loop does both, so that the recursions are compiled once.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vqjax.hsmm import chain, priors
from vqjax.hsmm.chain import Weights
from vqjax.hsmm.priors import Concentrations
from vqjax.hsmm.sessions import Sessions
from vqjax.ops.serialization import exported

_TRIAL = 8  # steps that a merger has to prove itself
_PATIENCE = 6  # mergers refused in a row
_SETTLED = 1e-5  # as tol, before a merger is tried


@exported
class Kept(NamedTuple):
    """The estimate to go back to: counts given it, concentrations, base weights, objective."""

    counts: Concentrations
    c: Concentrations
    base: jax.Array
    value: jax.Array


class Loop(NamedTuple):
    """What goes round: a step, weights for its recursion, the estimate they are of, and the rest.

    refused: bool [L, L], mergers tried on what is kept. trial: steps left of one, -1 without.
    """

    i: jax.Array
    weights: Weights
    c: Concentrations
    base: jax.Array
    kept: Kept
    refused: jax.Array
    trial: jax.Array
    merging: jax.Array
    done: jax.Array
    trace: jax.Array


def merged(counts: Concentrations, a: jax.Array, b: jax.Array, phases: int) -> Concentrations:
    """Counts of b given to a; what moved between the two has stayed instead."""
    between = counts.move[a, b] + counts.move[b, a]

    def joined(x):
        return x.at[a].add(x[b]).at[b].set(0)

    stay = joined(counts.stay)
    gone = jnp.minimum(phases * between, stay[a, 1])
    stay = stay.at[a].add(jnp.stack([gone, -gone]))
    move = joined(joined(counts.move).T).T.at[a, a].set(0)
    return Concentrations(joined(counts.start), stay, move, tuple(map(joined, counts.emit)))


def likeness(model, counts: Concentrations, base: jax.Array) -> jax.Array:
    """[L, L] above the diagonal: what the evidence of emissions and stays gains by a merger.

    -inf for pairs of which one has less than half a step.
    """
    c0 = priors.prior(model, base)
    pairs = jax.vmap(jax.vmap(jnp.add, (None, 0)), (0, None))

    tables = [*zip(counts.emit, c0.emit, strict=True), (counts.stay, c0.stay)]
    parts = [[c + n, c, c[0] + pairs(n, n), c[0]] for n, c in tables]
    found = priors.log_betas(sum(parts, []), [True] * (4 * len(parts)))
    gains = []
    for i in range(0, len(found), 4):
        with_counts, alone, joint, one = found[i : i + 4]
        gain = with_counts - alone
        gains.append(joint - one - gain[:, None] - gain)
    lives = jnp.sum(counts.stay, -1) >= 0.5
    allowed = jnp.triu(lives[:, None] & lives, 1)
    return jnp.where(allowed, sum(gains), -jnp.inf)


def fit(model, sessions: Sessions, params, iters: int, tol, merge: bool):
    """(concentrations, base weights, trace [iters]) from weights and base of `params`."""
    states = model.num_states
    weights, base = params
    dtype = base.dtype

    def step(loop: Loop) -> Loop:
        value, found = chain.expected(loop.weights, sessions, model.phases)
        counts = priors.counts_of(found)
        # The weights of the first step are no estimate's, and nothing is compared with it.
        value = value + priors.log_prior(model, loop.c, loop.base)
        value = jnp.where(loop.i == 0, -jnp.inf, value)
        now, kept = Kept(counts, loop.c, loop.base, value), loop.kept
        trying = loop.trial >= 0
        better = value > kept.value
        least = jnp.where(loop.merging, jnp.maximum(_SETTLED, tol), tol) * jnp.abs(value)
        settled = ~trying & (loop.i > 1) & (value - kept.value <= least)
        failed = trying & ~better & (loop.trial == 0)
        kept = _select(~trying | better, now, kept)
        refused = loop.refused & ~(~trying | better)
        trial = jnp.where(better | failed, -1, loop.trial - trying)

        # The next merger, where it is time for one and there is one.
        scores = jnp.where(refused, -jnp.inf, likeness(model, kept.counts, kept.base))
        a, b = jnp.unravel_index(jnp.argmax(scores), scores.shape)
        free = jnp.isfinite(scores[a, b]) & (jnp.sum(refused) < _PATIENCE)
        due = loop.merging & (settled | failed)
        merges = due & free
        merging = loop.merging & ~(due & ~free)
        going_on = _select(failed, kept, now)
        counts = _select(merges, merged(kept.counts, a, b, model.phases), going_on.counts)
        c, base = priors.maximized(model, counts, _select(merges, kept.base, going_on.base))
        return Loop(
            loop.i + 1,
            priors.weights_of(c, model.estimate),
            c,
            base,
            kept,
            jnp.where(merges, refused.at[a, b].set(True), refused),
            jnp.where(merges, _TRIAL, trial),
            merging,
            settled & ~loop.merging,
            loop.trace.at[loop.i].set(kept.value),
        )

    zeros = jax.tree.map(jnp.zeros_like, priors.prior(model, base))
    first = priors.prior(model, base)
    kept = Kept(zeros, first, base, jnp.asarray(-jnp.inf, dtype))
    none = jnp.zeros((states, states), bool)
    loop = Loop(
        jnp.zeros((), jnp.int32), weights, first, base, kept, none, jnp.asarray(-1, jnp.int32),
        jnp.asarray(merge), jnp.asarray(False), jnp.zeros(iters + 1, dtype),
    )  # fmt: skip
    loop = lax.while_loop(lambda x: (x.i <= iters) & ~x.done, step, loop)
    trace = jnp.where(jnp.arange(iters + 1) < loop.i, loop.trace, loop.kept.value)
    return loop.kept.c, loop.kept.base, trace[1:]


def _select(which, a, b):
    return jax.tree.map(lambda x, y: jnp.where(which, x, y), a, b)
