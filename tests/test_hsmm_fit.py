"""hsmm: what EM raises never falls, padding moves no estimate, and known behaviour is found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from vqjax.hsmm import HSMM, HSMMParams, fitting, priors

KEY = jax.random.key(0)


def world(states=4, codes=24, phases=6, lasting=36.0, sessions=8, steps=300, seed=0):
    """(params, states [B, T], codes [B, T]) of behaviours that emit overlapping codes."""
    rng = np.random.default_rng(seed)
    m = HSMM(states, codes, phases=phases, duration=lasting)
    even = np.full(states, 1 / states)
    move = (1 - np.eye(states)) / (states - 1)
    emit = rng.dirichlet(np.full(codes, 0.3), states)
    stay = np.full(states, 1 - phases / lasting)
    params = HSMMParams(even, stay, move, (emit,), even)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    keys = jax.random.split(jax.random.key(seed), sessions)
    return params, *jax.vmap(lambda key: m.sample(params, key, steps))(keys)


def matched(true, found):
    """Share of steps that agree after the best matching."""
    table = np.zeros((64, 64))
    np.add.at(table, (np.ravel(true), np.ravel(found)), 1)
    return table[scipy.optimize.linear_sum_assignment(-table)].sum() / table.sum()


# Every example compiles a model of its own.
@pytest.mark.parametrize('number', [2, pytest.param(8, marks=pytest.mark.slow)])
def test_no_step_of_em_lowers_the_objective(number):
    settings(max_examples=number, deadline=None)(given(st.data())(check_em))()


def check_em(data):
    estimate = data.draw(st.sampled_from(priors.ESTIMATES))
    phases = data.draw(st.sampled_from([1, 2]))
    positive = st.floats(0.05, 20.0)
    m = HSMM(
        3,
        4,
        phases=phases,
        duration=data.draw(st.sampled_from([None, 6.0] if phases == 1 else [6.0])),
        duration_weight=data.draw(positive),
        gamma=data.draw(st.one_of(st.none(), positive)),
        concentration=data.draw(positive),
        emission=data.draw(positive),
        estimate=estimate,
    )
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    codes = rng.integers(-1, 4, (2, 40))
    with jax.enable_x64(True):
        merge = data.draw(st.booleans())
        trace = m.fit(KEY, codes, iters=25, tol=0.0, merge=merge, dtype=jnp.float64).trace
    assert np.isfinite(trace).all()
    assert np.diff(trace).min() >= -1e-9 * np.abs(trace).max()
    assert trace[-1] > trace[0]


def dirichlet(c, allowed=None):
    """Vectors of one table of concentrations, as 1-D arrays without what is not allowed."""
    c = np.asarray(c, np.float64)
    allowed = np.ones_like(c, bool) if allowed is None else allowed
    return [row[keep] for row, keep in zip(np.atleast_2d(c), np.atleast_2d(allowed), strict=True)]


@pytest.mark.parametrize('duration', [None, 9.0])
def test_the_prior_is_the_sum_of_its_dirichlets(duration):
    # Against scipy: densities for 'map' (over log p: times the product of p), and for
    # 'variational' the divergences, by E log p in closed form.
    phases = 1 if duration is None else 3
    rng = np.random.default_rng(0)
    off = ~np.eye(3, dtype=bool)
    with jax.enable_x64(True):
        for estimate in priors.ESTIMATES:
            m = HSMM(3, 4, phases, duration, 1.5, 2.0, 0.7, 3.0, estimate)
            base = jnp.asarray([0.2, 0.5, 0.3])
            c0 = priors.prior(m, base)
            n = jax.tree.map(lambda x: jnp.asarray(rng.uniform(0.1, 9, x.shape)), c0)
            c = jax.tree.map(jnp.add, c0, n)._replace(move=jnp.where(off, c0.move + n.move, 0))
            expected = 2.0 / 3 * np.log(base).sum()
            for a, b, keep in (
                (c.start, c0.start, None),
                (c.stay, c0.stay, None),
                (c.move, c0.move, off),
                (c.emit[0], c0.emit[0], None),
            ):
                for row, row0 in zip(dirichlet(a, keep), dirichlet(b, keep), strict=True):
                    if estimate == 'map':
                        p = row / row.sum()
                        expected += scipy.stats.dirichlet(row0).logpdf(p) + np.log(p).sum()
                    else:
                        expected += -divergence(row, row0)
            np.testing.assert_allclose(priors.log_prior(m, c, base), expected, rtol=1e-10)


def divergence(c, c0):
    """KL(Dirichlet(c) | Dirichlet(c0))."""
    gammaln, digamma = scipy.special.gammaln, scipy.special.digamma
    mean_log = digamma(c) - digamma(c.sum())
    return (
        gammaln(c.sum()) - gammaln(c).sum() - gammaln(c0.sum()) + gammaln(c0).sum()
        + ((c - c0) * mean_log).sum()
    )  # fmt: skip


def test_without_stickiness_a_row_is_one_dirichlet():
    # Fox's prior with kappa = 0: stay and the moves apart are the row [L] of a plain HMM.
    m = HSMM(3, 4, phases=1, duration=None, concentration=5.0, estimate='map')
    base = jnp.asarray([0.2, 0.5, 0.3])
    c = priors.prior(m, base)
    np.testing.assert_allclose(c.stay.sum(-1), 5.0, rtol=1e-6)
    np.testing.assert_allclose(c.stay[:, 0], 5 * base, rtol=1e-6)
    np.testing.assert_allclose(c.move.sum(-1), c.stay[:, 1], rtol=1e-6)


def test_the_base_weights_are_a_maximum():
    m = HSMM(3, 4, phases=2, duration=9.0, gamma=2.0, concentration=1.5)
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        base = jnp.full(3, 1 / 3)
        counts = jax.tree.map(
            lambda x: jnp.asarray(rng.uniform(0, 5, x.shape)), priors.prior(m, base)
        )
        counts = counts._replace(move=jnp.where(~np.eye(3, dtype=bool), counts.move, 0))

        def value(base):
            c0 = priors.prior(m, base)
            c = jax.tree.map(jnp.add, c0, counts)
            found = 2.0 / 3 * np.log(base).sum()
            rows = [
                (c.start, c0.start),
                *zip(dirichlet(c.move, OFF), dirichlet(c0.move, OFF), strict=True),
            ]
            for a, b in rows:
                a, b = np.asarray(a), np.asarray(b)
                for x, sign in ((a, 1), (b, -1)):
                    gammaln = scipy.special.gammaln
                    found += sign * (gammaln(x).sum() - gammaln(x.sum()))
            return found

        step = jax.jit(lambda base: priors.maximized(m, counts, base)[1])
        for _ in range(60):
            base = step(base)
        best = value(base)
        for _ in range(50):
            other = np.asarray(base) * np.exp(rng.normal(0, 0.05, 3))
            assert value(jnp.asarray(other / other.sum())) < best + 1e-6


OFF = ~np.eye(3, dtype=bool)


@pytest.fixture(scope='module')
def four():
    return world()


@pytest.mark.slow
def test_the_number_of_behaviours_is_found(four):
    _, states, codes = four
    m = HSMM(12, 24, phases=6, duration=30.0)
    params, trace = m.fit(KEY, codes)
    found = m.viterbi(params, codes)
    assert m.num_states_used(found) == 4
    assert matched(states, found) > 0.97
    # What is not needed has next to no weight.
    assert np.sort(params.base)[-4:].sum() > 0.95
    # EM alone keeps several states for one behaviour, and a lower bound.
    alone, lower = m.fit(KEY, codes, merge=False)
    assert m.num_states_used(m.viterbi(alone, codes)) > 6 and lower[-1] < trace[-1] - 50


def test_known_parameters_come_back(four):
    true, states, codes = four
    m = HSMM(4, 24, phases=6, duration=30.0, gamma=None, concentration=4.0, estimate='map')
    params, _ = m.fit(KEY, codes, restarts=2)
    found = m.viterbi(params, codes)
    assert matched(states, found) > 0.97
    order = [
        int(scipy.stats.mode(np.asarray(found)[np.asarray(states) == i]).mode) for i in range(4)
    ]
    np.testing.assert_allclose(params.emit[0][np.array(order)], true.emit[0], atol=0.06)
    mean = m.phases / (1 - params.stay)
    np.testing.assert_allclose(mean[np.array(order)], 36.0, rtol=0.3)


@pytest.mark.slow
def test_it_is_all_of_one_behaviour():
    codes = np.random.default_rng(0).integers(0, 8, (3, 200))
    m = HSMM(6, 8, phases=2, duration=20.0)
    params, _ = m.fit(KEY, codes)
    assert m.num_states_used(m.viterbi(params, codes)) == 1


def test_fit_runs_under_jit():
    _, _, codes = world(sessions=2, steps=60)
    m = HSMM(4, 24, phases=2)
    fit = jax.jit(lambda key, codes: m.fit(key, codes, iters=5))
    np.testing.assert_allclose(fit(KEY, codes).trace, m.fit(KEY, codes, iters=5).trace, rtol=1e-4)


def test_start_and_fit_know_a_key_and_the_data():
    _, _, codes = world(sessions=2, steps=100)
    m = HSMM(4, 24, phases=2)
    a, b, other = m.init(KEY, codes), m.init(KEY, codes), m.init(jax.random.key(1), codes)
    np.testing.assert_array_equal(a.emit[0], b.emit[0])
    assert not np.array_equal(a.emit[0], other.emit[0])
    # Emissions are shares of the codes of the sessions: those of the sum over states.
    np.testing.assert_allclose(a.emit[0].sum(-1), 1, rtol=1e-5)
    best = m.fit(KEY, codes, iters=5, restarts=3, merge=False)
    each = [
        m.fit(None, codes, params=m.init(key, codes), iters=5, merge=False).trace
        for key in jax.random.split(KEY, 3)
    ]
    np.testing.assert_allclose(best.trace, max(each, key=lambda trace: trace[-1]), rtol=1e-5)


@pytest.mark.slow
def test_several_axes_say_more_than_one():
    # Each axis alone tells two of four behaviours apart, both together all of them.
    rng = np.random.default_rng(0)
    states = np.repeat(rng.permutation(np.arange(24) % 4), 30)
    emit = np.array([[0.8, 0.2], [0.2, 0.8]])
    codes = np.stack(
        [
            (rng.random(len(states)) < emit[states // 2, 1]),
            rng.random(len(states)) < emit[states % 2, 1],
        ],
        -1,
    ).astype(int)
    m = HSMM(4, (2, 2), phases=4, duration=30.0, gamma=None, concentration=4.0)
    params, _ = m.fit(KEY, codes, restarts=3)
    assert matched(states, m.viterbi(params, codes)) > 0.85


def test_a_merger_keeps_time_and_codes():
    rng = np.random.default_rng(0)
    m = HSMM(4, 5, phases=3)
    base = jnp.full(4, 0.25)
    n = jax.tree.map(lambda x: jnp.asarray(rng.uniform(1, 9, x.shape)), priors.prior(m, base))
    n = n._replace(move=jnp.where(~np.eye(4, dtype=bool), n.move, 0))
    n = n._replace(stay=n.stay.at[:, 1].set(3 * n.move.sum(1)))
    joined = fitting.merged(n, 1, 3, 3)
    for a, b in ((n.start, joined.start), (n.stay, joined.stay), (n.emit[0], joined.emit[0])):
        np.testing.assert_allclose(a.sum(), b.sum(), rtol=1e-6)
        np.testing.assert_array_equal(b[3], 0)
    # What went from one to the other is no move any more, and its phases are kept.
    between = n.move[1, 3] + n.move[3, 1]
    np.testing.assert_allclose(joined.move.sum(), n.move.sum() - between, rtol=1e-6)
    np.testing.assert_allclose(joined.stay[:, 1], 3 * joined.move.sum(1), rtol=1e-5)
    assert (joined.move[3] == 0).all() and (joined.move[:, 3] == 0).all()
    assert (jnp.diag(joined.move) == 0).all()


def test_two_halves_of_one_behaviour_are_the_most_alike():
    m = HSMM(3, 4, phases=2, duration=10.0)
    base = jnp.full(3, 1 / 3)
    c0 = priors.prior(m, base)
    emit = jnp.asarray([[50.0, 50, 0, 0], [0, 0, 60, 40], [30, 30, 0, 0]])
    n = c0._replace(emit=(emit,), stay=jnp.asarray([[90.0, 10]] * 3))
    scores = np.asarray(fitting.likeness(m, n, base))
    assert np.unravel_index(scores.argmax(), scores.shape) == (0, 2) and scores[0, 2] > 0
    assert scores[0, 1] < -50

    # The gain of the emissions is that of Dirichlet-multinomials.
    def evidence(n):
        gammaln = scipy.special.gammaln
        return gammaln(0.25 + n).sum() - gammaln((0.25 + n).sum()) - 4 * gammaln(0.25)

    stay = np.array([90.0, 10])
    c = np.asarray(c0.stay[0])

    def beta(n):
        return scipy.special.betaln(*(c + n)) - scipy.special.betaln(*c)

    a, b = np.asarray(emit[0]), np.asarray(emit[2])
    gain = evidence(a + b) - evidence(a) - evidence(b) + beta(2 * stay) - 2 * beta(stay)
    np.testing.assert_allclose(scores[0, 2], gain, rtol=1e-3)
