"""hsmm: recursions equal sums over all segmentations; masks, batches and streams change nothing."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from vqjax.hsmm import HSMM, HSMMParams, chain

SIZES = (3, 2)
STEPS = 7


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def model(states, phases, sizes=SIZES, **fields):
    return HSMM(states, sizes, phases=phases, duration=phases + 4.0, **fields)


def draw(m, seed=0, dtype=np.float64):
    """Params of no symmetry."""
    rng, states = np.random.default_rng(seed), m.num_states
    move = rng.dirichlet(np.ones(states), states) * (1 - np.eye(states) * (states > 1))
    return HSMMParams(
        *(
            jnp.asarray(x, dtype)
            for x in (
                rng.dirichlet(np.ones(states)),
                rng.uniform(0.2, 0.8, states),
                move / move.sum(1, keepdims=True),
            )
        ),
        tuple(jnp.asarray(rng.dirichlet(np.ones(k), states), dtype) for k in m.sizes),
        jnp.full(states, 1 / states, dtype),
    )


def durations(r, stay, steps):
    """Negative binomial in closed form: pmf and survival P(D >= d) for d = 0 to steps, mean."""
    d = np.arange(1, steps + 1)
    pmf = scipy.special.comb(d - 1, r - 1) * (1 - stay) ** r * stay ** np.maximum(d - r, 0)
    pmf = np.concatenate([[0], np.where(d >= r, pmf, 0)])
    return pmf, 1 - np.concatenate([[0], np.cumsum(pmf)[:-1]]), r / (1 - stay)


def segmentations(steps, states):
    """All [(state, length), ...] of which neighbours differ."""
    for cuts in itertools.product([False, True], repeat=steps - 1):
        ends = [i + 1 for i, cut in enumerate(cuts) if cut] + [steps]
        lengths = np.diff([0, *ends])
        for labels in itertools.product(range(states), repeat=len(lengths)):
            if all(a != b for a, b in zip(labels, labels[1:], strict=False)):
                yield list(zip(labels, lengths, strict=True))


def brute(m, params, codes):
    """States [S, T] of all S, log of their joint probability with codes [T, C], moves [S, L, L]."""
    p = jax.tree.map(np.asarray, params)
    steps, r = len(codes), m.phases
    tables = [durations(r, stay, steps) for stay in p.stay]
    paths, scores, moves = [], [], []
    for segments in segmentations(steps, m.num_states):
        score = math.log(p.start[segments[0][0]])
        count = np.zeros_like(p.move)
        for n, (state, length) in enumerate(segments):
            pmf, survival, mean = tables[state]
            # A session cut out of a longer life: what is left of a first segment has the law
            # P(D >= d) / E[D] of renewals, and the last one lasts at least as long as is seen.
            if n == 0:
                pmf = np.concatenate([[0], survival[1:] / mean])
                survival = 1 - np.concatenate([[0], np.cumsum(pmf)[:-1]])
            last = n == len(segments) - 1
            with np.errstate(divide='ignore'):
                score += np.log((survival if last else pmf)[length])
            if not last:
                following = segments[n + 1][0]
                score += math.log(p.move[state, following])
                count[state, following] += 1
        path = np.repeat([s for s, _ in segments], [n for _, n in segments])
        for table, code in zip(p.emit, codes.T, strict=True):
            score += np.where(code >= 0, np.log(table[path, code]), 0).sum()
        paths.append(path)
        scores.append(score)
        moves.append(count)
    return np.array(paths), np.array(scores), np.array(moves)


def session(seed, missing=True):
    """Codes [T, 2], some missing but at the ends."""
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.integers(0, k, STEPS) for k in SIZES], -1)
    if missing:
        codes[1:-1][rng.random((STEPS - 2, 2)) < 0.3] = -1
        codes[rng.integers(1, STEPS - 1)] = -1
    return codes


CASES = [(2, 1), (3, 2), *(pytest.param(*x, marks=pytest.mark.slow) for x in [(2, 3), (3, 1)])]


@pytest.mark.parametrize('states, phases', CASES)
def test_recursions_are_sums_over_all_segmentations(states, phases):
    m = model(states, phases)
    for seed in range(3):
        params, codes = draw(m, seed), session(seed, missing=seed > 0)
        paths, scores, moves = brute(m, params, codes)
        total = scipy.special.logsumexp(scores)
        np.testing.assert_allclose(m.log_likelihood(params, codes), total, rtol=1e-12)
        weight = np.exp(scores - total)
        expected = np.einsum('s,stl->tl', weight, np.eye(states)[paths])
        np.testing.assert_allclose(m.posterior(params, codes), expected, atol=1e-12)
        sessions, _ = m._arranged(jnp.asarray(codes), None)
        _, found = chain.expected(m._weights(params), sessions, phases)
        counted = np.einsum('s,sij->ij', weight, moves)
        np.testing.assert_allclose(found.move, counted, atol=1e-12)
        for axis, k in enumerate(SIZES):
            seen = np.eye(k + 1)[codes[:, axis]][:, :k]
            np.testing.assert_allclose(found.emit[axis], expected.T @ seen, atol=1e-12)
        # Time in a session: every step but the first keeps a phase or leaves one.
        np.testing.assert_allclose(found.stay.sum() + found.leave.sum(), STEPS - 1, rtol=1e-12)


@pytest.mark.parametrize('states, phases', CASES)
def test_viterbi_is_the_best_of_all_segmentations(states, phases):
    m = model(states, phases)
    for seed in range(6):
        params, codes = draw(m, seed), session(seed, missing=seed > 2)
        paths, scores, _ = brute(m, params, codes)
        np.testing.assert_array_equal(m.viterbi(params, codes), paths[np.argmax(scores)])


def test_viterbi_sums_over_the_phases_of_a_segment():
    # 3 phases over 7 steps are 15 paths of the expanded chain, of which none is likely alone: here
    # the best path of that chain and the best segmentation differ.
    m = model(2, 3)
    differ = 0
    for seed in range(40):
        params, codes = draw(m, seed), session(seed, missing=False)
        paths, scores, _ = brute(m, params, codes)
        best = m.viterbi(params, codes)
        np.testing.assert_array_equal(best, paths[np.argmax(scores)])
        differ += not np.array_equal(best, best_of_chain(m, params, codes))
    assert differ > 0


def best_of_chain(m, params, codes):
    """Viterbi over states and phases, which is not what a segmentation is."""
    w = m._weights(params)
    states, r = m.num_states, m.phases
    seen = np.asarray(chain.evidence(w.emit, jnp.asarray(codes)))
    score = np.repeat(np.asarray(w.start)[:, None], r, 1) + seen[0][:, None]
    links = []
    jump = np.full((states, r, states, r), -np.inf)
    for i, k in itertools.product(range(states), range(r)):
        jump[i, k, i, k] = w.stay[i]
        if k < r - 1:
            jump[i, k, i, k + 1] = w.leave[i]
        else:
            for j in set(range(states)) - {i}:
                jump[i, k, j, 0] = w.leave[i] + w.move[i, j]
    flat = jump.reshape(states * r, states * r)
    score = score.ravel()
    for t in range(1, len(codes)):
        every = score[:, None] + flat
        links.append(every.argmax(0))
        score = every.max(0) + np.repeat(seen[t], r)
    path = [int(score.argmax())]
    for link in links[::-1]:
        path.append(int(link[path[-1]]))
    return np.array(path[::-1]) // r


def score_of(m, params, codes, states):
    """log probability of a segmentation with codes [T], in linear time."""
    p = jax.tree.map(np.asarray, params)
    cuts = np.flatnonzero(np.diff(states)) + 1
    starts, ends = [0, *cuts], [*cuts, len(states)]
    score = math.log(p.start[states[0]]) + np.log(p.emit[0][states, codes]).sum()
    for n, (a, b) in enumerate(zip(starts, ends, strict=True)):
        pmf, survival, mean = durations(m.phases, p.stay[states[a]], b - a)
        if n == 0:
            pmf = np.concatenate([[0], survival[1:] / mean])
            survival = 1 - np.concatenate([[0], np.cumsum(pmf)[:-1]])
        last = b == len(states)
        score += np.log((survival if last else pmf)[b - a])
        score += 0 if last else math.log(p.move[states[a], states[b]])
    return score


def test_one_state_follows_itself():
    m = model(1, 2)
    params, codes = draw(m), session(0)
    p = jax.tree.map(np.asarray, params)
    total = sum(np.log(t[0, c[c >= 0]]).sum() for t, c in zip(p.emit, codes.T, strict=True))
    np.testing.assert_allclose(m.log_likelihood(params, codes), total, rtol=1e-12)
    assert (m.viterbi(params, codes) == 0).all() and (m.posterior(params, codes) > 1 - 1e-12).all()


def test_old_segments_lose_little_where_viterbi_does_not_keep_them_all():
    m = HSMM(3, 5, phases=3, duration=20.0)
    params = draw(m, 4)._replace(stay=jnp.asarray([0.7, 0.9, 0.95]))
    _, codes = m.sample(params, jax.random.key(0), 300)
    exact = score_of(m, params, codes, np.asarray(m.viterbi(params, codes)))
    scores = {
        n: score_of(m, params, codes, np.asarray(m.viterbi(params, codes, longest=n)))
        for n in (4, 16, 64, 300)
    }
    assert all(score <= exact + 1e-9 for score in scores.values())
    assert scores[300] == exact and scores[64] > exact - 1 and scores[16] > exact - 4


@pytest.mark.slow
@pytest.mark.parametrize('phases', [1, 3])
def test_padding_and_other_sessions_change_nothing(phases):
    m = model(3, phases)
    params = draw(m)
    codes, rng = session(1), np.random.default_rng(0)
    padded = rng.integers(0, 2, (4, STEPS + 6, 2))
    mask = np.zeros((4, STEPS + 6), bool)
    for row, start in enumerate((0, 2, 6)):
        padded[row, start : start + STEPS], mask[row, start : start + STEPS] = codes, True
    # The last as a quantizer hands it over, with codes -1 in place of a mask.
    padded[3], mask[3] = -1, True
    padded[3, 3 : 3 + STEPS] = codes
    single = m.log_likelihood(params, codes)
    np.testing.assert_allclose(m.log_likelihood(params, padded, mask), [single] * 4, rtol=1e-13)
    posterior, states = m.posterior(params, padded, mask), m.viterbi(params, padded, mask)
    for row, start in enumerate((0, 2, 6, 3)):
        inside = slice(start, start + STEPS)
        np.testing.assert_allclose(posterior[row, inside], m.posterior(params, codes), atol=1e-13)
        np.testing.assert_array_equal(states[row, inside], m.viterbi(params, codes))
        outside = np.delete(np.arange(STEPS + 6), inside)
        assert (posterior[row, outside] == 0).all() and (states[row, outside] == -1).all()
        np.testing.assert_array_equal(
            m.filter(params, padded, mask, lag=2)[row, inside],
            m.filter(params, codes, lag=2),
        )
    fitted = m.fit(jax.random.key(0), codes, params=params, iters=3)
    again = m.fit(jax.random.key(0), padded[1], mask[1], params=params, iters=3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), fitted, again)


def test_a_permutation_of_the_states_permutes_the_answer():
    m = model(3, 2)
    params, codes, order = draw(m), session(2), np.array([2, 0, 1])
    other = HSMMParams(
        params.start[order],
        params.stay[order],
        params.move[order][:, order],
        tuple(table[order] for table in params.emit),
        params.base[order],
    )
    np.testing.assert_allclose(
        m.log_likelihood(params, codes), m.log_likelihood(other, codes), rtol=1e-13
    )
    found = m.posterior(params, codes)[:, order]
    np.testing.assert_allclose(found, m.posterior(other, codes), atol=1e-13)
    np.testing.assert_array_equal(m.viterbi(params, codes), order[m.viterbi(other, codes)])


@pytest.mark.parametrize('lag', [0, 2])
def test_a_filter_is_the_posterior_of_what_has_come(lag):
    m = model(3, 2)
    params, codes = draw(m, 3), session(3)
    codes[0] = -1  # a stream may begin without a code
    found = np.asarray(m.filter(params, codes, lag=lag))
    assert found[0] == -1
    for t in range(1, STEPS):
        # What is missing at the end of the part is time without evidence, not an end.
        paths, scores, _ = brute(m, params, codes[1 : t + lag + 1])
        weight = np.exp(scores - scores.max())
        states = weight @ np.eye(3)[paths[:, t - 1]]
        assert found[t] == np.argmax(states)


def test_a_stream_is_the_whole():
    m, lag = model(3, 2), 2
    params = draw(m)
    codes = np.stack([session(4), session(5)])
    mask = np.ones((2, STEPS), bool)
    mask[1, 2] = mask[0, 0] = False
    window = m.filter_init(params, lag, (2,))
    found = []
    for t in range(STEPS + lag):
        more = t < STEPS
        now = codes[:, t] if more else np.full((2, 2), -1)
        window, states = m.filter_step(params, window, now, mask[:, t] if more else None)
        found.append(states)
    expected = m.filter(params, codes, mask, lag=lag)
    np.testing.assert_array_equal(np.stack(found[lag:], -1), expected)


def test_one_step_of_a_single_stream_of_single_codes():
    m = HSMM(2, 4, phases=1)
    params = draw(m)
    window = m.filter_init(params)
    codes = np.array([0, 3, 1])
    found = []
    for code in codes:
        window, state = m.filter_step(params, window, code)
        found.append(int(state))
    np.testing.assert_array_equal(found, m.filter(params, codes))


def test_samples_are_of_the_model():
    m = HSMM(3, 6, phases=3, duration=9.0)
    params = draw(m, 1)
    keys = jax.random.split(jax.random.key(0), 50)
    states, codes = jax.vmap(lambda key: m.sample(params, key, 1000))(keys)
    p = jax.tree.map(np.asarray, params)
    for i in range(3):
        share = np.bincount(codes[states == i], minlength=6) / (states == i).sum()
        np.testing.assert_allclose(share, p.emit[0][i], atol=0.02)
    lengths, follows = {0: [], 1: [], 2: []}, np.zeros((3, 3))
    for row in np.asarray(states):
        cuts = np.flatnonzero(np.diff(row)) + 1
        for a, b in itertools.pairwise(cuts):  # whole segments only
            lengths[row[a]].append(b - a)
            follows[row[a], row[b]] += 1
    for i, length in lengths.items():
        pmf, _, mean = durations(3, p.stay[i], 60)
        assert abs(np.mean(length) - mean) < 0.1 * mean
        share = np.bincount(length, minlength=61)[:61] / len(length)
        assert share[:3].sum() == 0
        np.testing.assert_allclose(share, pmf, atol=0.03)
    np.testing.assert_allclose(follows / follows.sum(1, keepdims=True), p.move, atol=0.03)


@pytest.mark.slow
def test_float32_follows_float64_over_a_long_session():
    m = HSMM(6, 16, phases=4, duration=30.0)
    params = draw(m)
    _, codes = m.sample(params, jax.random.key(0), 20_000)
    single = jax.tree.map(lambda x: x.astype(np.float32), params)
    exact = m.log_likelihood(params, codes)
    assert m.log_likelihood(single, codes).dtype == np.float32
    np.testing.assert_allclose(m.log_likelihood(single, codes), exact, rtol=1e-6)
    np.testing.assert_allclose(m.posterior(single, codes), m.posterior(params, codes), atol=1e-3)
    assert (m.viterbi(single, codes) == m.viterbi(params, codes)).mean() > 0.999


@pytest.mark.slow
def test_a_hundred_thousand_steps_fit_in_memory():
    m = HSMM(20, 64, phases=8, duration=50.0)
    params = draw(m, dtype=np.float32)
    _, codes = m.sample(params, jax.random.key(0), 100_000)
    sessions, _ = m._arranged(codes[None], None)
    step = jax.jit(lambda w: chain.expected(w, sessions, m.phases))
    compiled = step.lower(m._weights(params)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4e6
    value, counts = compiled(m._weights(params))
    assert np.isfinite(value) and abs(counts.emit[0].sum() - 1e5) < 10


def test_one_shape_is_traced_once():
    m = model(2, 2)
    params = draw(m)
    before = HSMM._log_likelihood._cache_size()
    for seed in range(3):
        m.log_likelihood(draw(m, seed), session(seed))
    assert HSMM._log_likelihood._cache_size() == before + 1
    inner = jax.jit(jax.vmap(m.log_likelihood, (None, 0)))
    both = np.stack([session(1), session(2)])
    np.testing.assert_allclose(inner(params, both), m.log_likelihood(params, both), rtol=1e-12)


def fine():
    return np.zeros((2, 5), int)


BAD = {
    'num_states must be an integer from 1 .* got 0': lambda: HSMM(0, 4),
    'num_codes must be an integer from 1 .* got 0': lambda: HSMM(2, (4, 0)),
    'num_codes must be a number, or one': lambda: HSMM(2, ()),
    'phases must be an integer from 1': lambda: HSMM(2, 4, phases=0),
    'duration must be steps, above phases=4, got 3.0': lambda: HSMM(2, 4, duration=3.0),
    'duration must be a number of steps above': lambda: HSMM(2, 4, duration=None),
    'duration_weight must be finite and above 0, got -1': lambda: HSMM(2, 4, duration_weight=-1),
    'gamma must be finite and above 0, got -1.0': lambda: HSMM(2, 4, gamma=-1.0),
    'concentration must be finite and above 0, got -0.5': lambda: HSMM(2, 4, concentration=-0.5),
    'emission must be finite and above 0, got nan': lambda: HSMM(2, 4, emission=math.nan),
    'estimate must be one of .* got .gibbs': lambda: HSMM(2, 4, estimate='gibbs'),
    'codes must be integers .*got float64': lambda: HSMM(2, 4).init(KEY(), fine() * 1.0),
    r'codes must be .*T, 3.*shape \(2, 5\)': lambda: HSMM(2, (4, 4, 4)).init(KEY(), fine()),
    'hold no step': lambda: HSMM(2, 4).init(KEY(), fine()[:, :0]),
    'holds 4 at .*1, 3.*num_codes is 4': lambda: HSMM(2, 4).fit(KEY(), beyond()),
    'no real step in 1 of 2 sessions, the first at .0,': lambda: HSMM(2, 4).fit(
        KEY(), fine(), np.array([[False] * 5, [True] * 5])
    ),
    'no real step in 1 of 1 sessions': lambda: HSMM(2, 4).fit(KEY(), np.full(5, -1)),
    r'mask must be bool \(2, 5\)': lambda: HSMM(2, 4).init(KEY(), fine(), np.ones((2, 4), bool)),
    'params must be of shapes': lambda: HSMM(2, 4).viterbi(draw(HSMM(3, 4)), fine()),
    'longest must be an integer from 1': lambda: HSMM(2, 4).viterbi(
        draw(HSMM(2, 4)), fine(), longest=0
    ),
    'lag must be an integer from 0': lambda: HSMM(2, 4).filter(draw(HSMM(2, 4)), fine(), lag=-1),
    'restarts must be an integer from 1': lambda: HSMM(2, 4).fit(KEY(), fine(), restarts=0),
    'num_steps must be an integer from 1': lambda: HSMM(2, 4).sample(
        draw(HSMM(2, 4)), KEY(), 0
    ),
}  # fmt: skip


def KEY():
    return jax.random.key(0)


def beyond():
    codes = fine()
    codes[1, 3] = 4
    return codes


@pytest.mark.parametrize('message', BAD)
def test_what_makes_no_sense_is_named(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()


def test_a_code_beyond_k_is_missing_where_no_value_is_known():
    m = HSMM(2, 4)
    params, codes = draw(m), np.array([0, 1, 9, 2])
    found = jax.jit(m.log_likelihood)(params, jnp.asarray(codes))
    np.testing.assert_allclose(found, m.log_likelihood(params, np.array([0, 1, -1, 2])), rtol=1e-13)
