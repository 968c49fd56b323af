"""The properties that follow from what a kind of quantizer claims: see `claims`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from vqjax import ops
from vqjax.quantizers.codebook import Codebook
from vqjax.quantizers.guarded import count_refits
from vqjax.quantizers.levels import Levels
from vqjax.quantizers.multi_scale import MultiScale
from vqjax.quantizers.residual import Residual
from vqjax.testing import claims
from vqjax.testing.parts import Leaf, leaf_vectors, prefixes, take_apart, unit
from vqjax.testing.trial import KEY, OTHER_KEY, Taken, Trial

# Float32 rounding of a score, in units of its typical size.
ROUNDING = 1e-5


def codes_are_the_nearest(trial: Trial) -> None:
    """By brute force in float64, at every stage and in every group, and without a key."""
    z = trial.batch(6, trial.many)
    leaves, _ = _apart(trial, z, trial.plain(z).codes)
    if isinstance(trial.q, Residual) and trial.q.beam != 1:
        _check_beam(trial.q, leaves, z)
    if claims.samples(trial.q) is False:  # under a mask as well: what is hidden chooses nothing
        few = trial.batch(1)
        leaves += _apart(trial, few, trial.run(few, _some(trial)).out.codes)[0]
    for leaf in leaves:
        regret = claims.regret(leaf.q, leaf)
        if leaf.greedy and regret is not None:
            regret = np.where(np.any(leaf.codes.reshape(len(regret), -1) >= 0, axis=-1), regret, 0)
            worst = int(np.argmax(regret))
            assert regret[worst] < ROUNDING, (
                f'{int((regret > ROUNDING).sum())} of {len(regret)} vectors have another code than '
                f'the nearest, first vector {worst}: code {leaf.codes[worst]} of {leaf.q!r}'
            )


def _some(trial):
    """A mask that shows 3 of 5 vectors."""
    return np.random.default_rng(2).random(trial.rows) < 0.6


def _check_beam(q, leaves, z):
    """The sum that is left when each stage keeps the `beam` best partial sums of all.

    They are judged by what they leave, or by that after every stage, weighted.
    """
    rows = np.asarray(z, np.float64).reshape(-1, z.shape[-1])
    weighted = isinstance(q.beam, ops.Beam)
    size, weights = (q.beam.size, q.beam.weights) if weighted else (q.beam, [1.0] * len(leaves))
    best, score = rows[:, None], np.zeros((len(rows), 1))
    scales = np.asarray(1.0 if q.scale is None else q.scale) ** np.arange(len(leaves))
    for leaf, weight, scale in zip(leaves, weights, scales, strict=True):
        every = np.arange(leaf.q.num_codes)
        codebook = scale * leaf_vectors(leaf._replace(codes=every))
        left = (best[:, :, None] - codebook).reshape(len(rows), -1, rows.shape[-1])
        before = np.repeat(score * weighted, len(every), axis=-1)
        total = before + weight * np.sum(left**2, axis=-1)
        order = np.argsort(total, axis=-1)[:, :size]
        best = np.take_along_axis(left, order[..., None], axis=1)
        score = np.take_along_axis(total, order, axis=-1)
    got, reached = rows, 0.0
    for leaf, weight, scale in zip(leaves, weights, scales, strict=True):
        got = got - scale * leaf_vectors(leaf)
        reached = reached * weighted + weight * np.sum(got**2, axis=-1)
    np.testing.assert_allclose(reached, score[:, 0], rtol=1e-4, atol=1e-4)


def vectors_are_those_of_the_parts(trial: Trial) -> None:
    """A Residual's sum of stages, a Product's groups in order, a Projected's way back."""
    z = trial.batch(1)
    for real in (None, _some(trial)):
        out = trial.run(z, real).out
        _, vectors = _apart(trial, z, out.codes, KEY)
        if real is not None:
            vectors = vectors * real.reshape(*vectors.shape[:-1], 1)
        got = np.asarray(out.z_q).reshape(vectors.shape)
        np.testing.assert_allclose(got, vectors, rtol=1e-4, atol=1e-4)


def first_codes_decode_to_partial_sums(trial: Trial) -> None:
    """Codes cut off after a stage or scale: the sum so far; `decode_scales` is that too."""
    whole = _whole(trial, trial.batch(1), trial.run(trial.batch(1)).out.codes)
    shape = trial.codes_of(trial.rows)
    for n, (codes, vectors) in enumerate(prefixes(trial.q, whole), 1):
        decode = trial.on_rows.decode
        got = np.asarray(decode(trial.params, trial.state, codes.reshape(shape)))
        np.testing.assert_allclose(got.reshape(vectors.shape), vectors, rtol=1e-4, atol=1e-4)
        if isinstance(trial.q, MultiScale):
            given = whole.codes.reshape(shape), n
            coarse = trial.q.decode_scales(trial.params, trial.state, *given)
            np.testing.assert_array_equal(np.asarray(coarse).reshape(got.shape), got)


def ties_go_to_the_lowest_index(trial: Trial) -> None:
    """Where the second half of a codebook repeats the first, only the first is used."""
    if not isinstance(trial.q, Codebook) or trial.q.num_codes % 2:
        return
    num_codes = trial.q.num_codes

    def doubled(leaf):
        if leaf.shape[:1] != (num_codes,):
            return leaf
        return jnp.concatenate([leaf[: num_codes // 2]] * 2)

    # With as many features as codes a square map [D, D] looks like a codebook and is left alone.
    trees = (trial.params, trial.state)
    twice = jax.tree.map(doubled, trees)
    codebook = np.asarray(trial.q.decode(*twice, jnp.arange(num_codes)))
    if not np.array_equal(*np.split(codebook, 2)):
        twice = (trial.params, jax.tree.map(doubled, trial.state))
        codebook = np.asarray(trial.q.decode(*twice, jnp.arange(num_codes)))
        if not np.array_equal(*np.split(codebook, 2)):
            return  # no array holds the codes themselves
    codes = trial.plain(trial.batch(6, trial.many), twice).codes
    assert int(codes.max()) < num_codes // 2, 'ties do not go to the lowest index'


def decoded_codes_come_back(trial: Trial) -> None:
    """quantize(decode(c)) is c, where a kind claims it: see `claims.comes_back`."""
    shape = trial.codes_of(trial.many)
    codes = np.random.default_rng(0).integers(2**31, size=shape) % _num_codes(trial.q)
    codes = codes.astype(np.int32)
    vectors = np.asarray(trial.decode(trial.params, trial.state, codes))
    given = claims.comes_back(trial.q, vectors)
    if given is not None:
        np.testing.assert_array_equal(np.asarray(trial.plain(given).codes), codes)


def _num_codes(q):
    """K, or of levels that of each place."""
    if not isinstance(q, Levels):
        return q.num_codes
    return np.repeat([inner.num_codes for inner in q.inner], q.sizes)


def codes_depend_on_the_key_as_claimed(trial: Trial) -> None:
    """A quantizer that samples gives other codes for another key, any other the same for all."""
    claimed = claims.samples(trial.q)
    if claimed is None:
        return
    z = trial.batch(6)
    without = trial.plain(jnp.resize(z, (*trial.many, trial.dim))).codes
    number = z[..., 0].size // trial.places
    without = np.asarray(without).reshape(-1, *trial.q.code_shape)[:number]
    # Several keys: dropout of a whole batch may well draw the same twice.
    found = [trial.run(z, key=jax.random.key(seed)).out.codes for seed in range(8)]
    other = [(np.asarray(codes).reshape(without.shape) != without).any() for codes in found]
    assert any(other) or not claimed, 'codes do not depend on the key'
    assert claimed or not any(other), 'codes depend on the key'


def the_task_s_gradient_is_the_estimator_s(trial: Trial) -> None:
    """Of the task alone: to z what the estimator's formula says, exactly where that is 1."""
    z = trial.batch(1)
    taken = trial.run(z, loss=0.0)
    whole = _whole(trial, z, taken.out.codes, KEY)
    jacobian = claims.jacobian(trial.q, whole)
    if jacobian is None:
        return
    cotangent = trial.cotangent(taken.out.z_q.shape).astype(np.float64)
    cotangent = cotangent.reshape(len(jacobian), -1)
    expected = np.einsum('nij,ni->nj', jacobian, cotangent)
    got = np.asarray(taken.gradients.z).reshape(len(jacobian), -1)
    if np.isin(jacobian, (0.0, 1.0)).all():
        np.testing.assert_array_equal(got, expected)
    else:
        np.testing.assert_allclose(got, expected, rtol=2e-3, atol=1e-4 * np.abs(expected).max())


def each_loss_trains_what_it_claims(trial: Trial) -> None:
    """Every term alone, and the task alone: the gradient reaches what it trains, nothing else."""
    for term in (*trial.terms, 'task'):
        weights = {'task': 0.0, 'loss': 0.0, term: 1.0}
        slopes = trial.run(trial.batch(1), **weights).gradients
        for leaf in slopes.state:
            assert not np.asarray(leaf).any(), f'{term} reaches the state'
        claimed = claims.trains(trial.q, term, trial.params)
        if claimed is None:
            continue
        to_z, tree = claimed
        assert np.asarray(slopes.z).any() == to_z, f'{term} reaches z: {not to_z}'
        reached = jax.tree.map(lambda leaf: bool(np.asarray(leaf).any()), slopes.params)
        assert jax.tree.leaves(reached) == jax.tree.leaves(tree), (
            f'{term} trains {reached}, not {tree}'
        )


def loss_is_the_weighted_sum_of_losses(trial: Trial) -> None:
    """By the fields that are weights: summed over stages, the mean of groups."""
    taken, leaves = _step_apart(trial)
    weights = [claims.weights(leaf.q) for leaf in leaves]
    if None in weights:
        return
    own, total = claims.own_terms(trial.q), 0.0
    assert set(taken.out.losses) == {name for terms in (*weights, own) for name in terms}
    for name, value in taken.out.losses.items():
        assert value.dtype == jnp.float32, (name, value.dtype)
        if name in own:
            total += own[name] * np.mean(np.asarray(value, np.float64))
            continue
        for leaf, terms, part in zip(
            leaves, weights, np.asarray(value, np.float64).ravel(), strict=True
        ):
            total += leaf.share * terms.get(name, 0.0) * part
    np.testing.assert_allclose(taken.out.loss, total, rtol=1e-4, atol=1e-6)


def errors_are_those_of_the_codes(trial: Trial) -> None:
    """Commitment and codebook losses: the mean squared distance to what the codes stand for."""
    taken, leaves = _step_apart(trial)
    for place, leaf in enumerate(leaves):
        for name, expected in claims.squared_errors(leaf).items():
            got = np.asarray(taken.out.losses[name]).ravel()[place]
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6, err_msg=name)


def update_counts_the_codes_it_is_given(trial: Trial) -> None:
    """Averages move towards the codes that update is told, with the old ones' share `decay`."""
    taken, leaves, told = _told(trial, KEY)
    if int(count_refits(taken.after)) > int(count_refits(trial.state)):
        return  # everything was fitted anew
    after, _ = take_apart(*_arguments(trial, trial.batch(1), told, state=taken.after))
    for place in dict.fromkeys(leaf.place for leaf in leaves):
        same = [leaf for leaf in leaves if leaf.place == place]
        new = next(leaf.state for leaf in after if leaf.place == place)
        _check_moved(same, new)


def revival_draws_with_the_key(trial: Trial) -> None:
    """What dead codes become depends on the key where the source draws, and else on none."""
    taken, leaves, _ = _told(trial, KEY)
    other, _, _ = _told(trial, OTHER_KEY)
    moved = any(
        (np.asarray(a) != np.asarray(b)).any()
        for a, b in zip(jax.tree.leaves(taken.after), jax.tree.leaves(other.after), strict=True)
    )
    revivals = [r for leaf in leaves if (r := getattr(leaf.q, 'revival', None)) is not None]
    if not revivals and claims.weights(leaves[0].q) is not None:
        assert not moved, 'update draws without a revival'
    for place in dict.fromkeys(leaf.place for leaf in leaves):
        same = [leaf for leaf in leaves if leaf.place == place]
        revival = getattr(same[0].q, 'revival', None)
        if getattr(revival, 'source', None) in (ops.random_rows, ops.error_rows):
            if revival.every == 1 and _moved_counts(same)[1].any():
                assert moved, 'update ignores its key'


def _told(trial, key) -> tuple[Taken, list[Leaf], jax.Array]:
    """A step whose update is told codes that it would not choose by itself."""
    z = trial.batch(1)
    codes = trial.run(z).out.codes
    told = codes.reshape(-1, *trial.q.code_shape)
    told = told[np.arange(len(told)) // 3 * 3].reshape(codes.shape)
    return trial.run(z, key=key, given=told), _apart(trial, z, told)[0], told


def _moved_counts(leaves: list[Leaf]):
    """Counts [K] after these leaves, which share a state, and which codes are dead then."""
    q, codes = leaves[0].q, np.concatenate([leaf.codes for leaf in leaves])
    decay = _decay(q, codes)
    counts = decay * np.asarray(leaves[0].state.counts, np.float64)
    counts += (1 - decay) * np.bincount(codes[codes >= 0], minlength=q.num_codes)
    dead = np.zeros(q.num_codes, bool)
    if q.revival is not None:
        dead = counts < q.revival.below * counts.mean() * (1 + 1e-4)
    return counts, dead


def _decay(q, codes):
    """The share of its past that an average keeps: all of it where no vector has a code."""
    return q.decay if (codes >= 0).any() else 1.0


def _check_moved(leaves: list[Leaf], new) -> None:
    q, old = leaves[0].q, leaves[0].state
    if not {'counts', 'step'} <= set(getattr(old, '_fields', ())) or not hasattr(q, 'decay'):
        return
    counts, dead = _moved_counts(leaves)
    # `split` takes from live codes too.
    taken_from = dead.any() and q.revival.source is ops.split
    kept = np.zeros_like(dead) if taken_from else ~dead
    np.testing.assert_allclose(np.asarray(new.counts)[kept], counts[kept], rtol=1e-4)
    assert int(new.step) == int(old.step) + 1
    if hasattr(old, 'sums'):
        codes = np.concatenate([leaf.codes for leaf in leaves])
        z = np.concatenate([leaf.z for leaf in leaves])
        x = unit(z) if q.metric == 'cosine' else z
        decay = _decay(q, codes)
        sums = decay * np.asarray(old.sums, np.float64)
        np.add.at(sums, codes[codes >= 0], (1 - decay) * x[codes >= 0])
        np.testing.assert_allclose(np.asarray(new.sums)[kept], sums[kept], rtol=1e-3, atol=1e-4)


def _arguments(trial, z, codes, key=None, state=None):
    rows = np.asarray(z, np.float64).reshape(-1, *getattr(trial.q, 'grid', ()), z.shape[-1])
    codes = np.asarray(codes).reshape(-1, *trial.q.code_shape)
    # As NumPy's: taking a part of a tree is then no program to compile.
    trees = jax.tree.map(np.asarray, (trial.params, trial.state if state is None else state))
    return trial.q, *trees, rows, codes, key


def _whole(trial, z, codes, key=None) -> Leaf:
    return Leaf(*_arguments(trial, z, codes, key), 1.0, (), True)


def _apart(trial, z, codes, key=None):
    return take_apart(*_arguments(trial, z, codes, key))


def _step_apart(trial) -> tuple[Taken, list[Leaf]]:
    z = trial.batch(1)
    taken = trial.run(z)
    return taken, _apart(trial, z, taken.out.codes, KEY)[0]
