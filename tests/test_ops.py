"""The parts quantizers are made of, against formulas and brute force."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqjax import ops


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


# --- gradients


def test_estimators_return_z_q_to_the_bit():
    """`z + sg(z_q - z)` would differ in about half of the elements."""
    z, z_q = normal(0, 1000, 8), normal(1, 1000, 8)
    naive = z + jax.lax.stop_gradient(z_q - z)
    assert np.mean(np.asarray(naive) != np.asarray(z_q)) > 0.3
    for estimator in ops.ESTIMATORS.values():
        np.testing.assert_array_equal(np.asarray(estimator(z, z_q)), np.asarray(z_q))


def test_straight_through_hands_the_gradient_on():
    z, z_q, cotangent = normal(0, 5, 3), normal(1, 5, 3), normal(2, 5, 3)
    _, pullback = jax.vjp(ops.straight_through, z, z_q)
    to_z, to_q = pullback(cotangent)
    np.testing.assert_array_equal(np.asarray(to_z), np.asarray(cotangent))
    assert not np.asarray(to_q).any()


def test_rotation_turns_the_gradient_as_z_into_z_q():
    """2410.06424: the Jacobian is a rotation times |q| / |z|, and takes z to z_q."""
    z, z_q = normal(0, 6), normal(1, 6)
    jacobian = np.asarray(jax.jacobian(ops.rotate)(z, z_q), np.float64)
    gain = np.linalg.norm(z_q) / np.linalg.norm(z)
    np.testing.assert_allclose(jacobian @ np.asarray(z), np.asarray(z_q), atol=1e-5)
    np.testing.assert_allclose(jacobian @ jacobian.T, gain**2 * np.eye(6), atol=1e-5)


@pytest.mark.parametrize(
    'z, z_q',
    [
        ([0.0, 0.0], [1.0, 0.0]),
        ([1e-9, 0.0], [1.0, 0.0]),
        ([1.0, 0.0], [0.0, 0.0]),
        ([1.0, 2.0], [-1.0, -2.0]),
        ([1e-30, 1e-30], [1e30, 1e30]),
    ],
)
def test_rotation_falls_back_where_it_has_no_bounded_value(z, z_q):
    """The gradient of the straight-through estimator: finite, gain 1."""
    z, z_q = jnp.array(z), jnp.array(z_q)
    out, pullback = jax.vjp(lambda z: ops.rotate(z, z_q), z)
    np.testing.assert_array_equal(np.asarray(out), np.asarray(z_q))
    cotangent = np.array([0.3, -2.0], np.float32)
    np.testing.assert_array_equal(np.asarray(pullback(jnp.asarray(cotangent))[0]), cotangent)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.floats(-12, 4), st.floats(-4, 4))
def test_rotation_s_gain_is_bounded(seed, z_scale, q_scale):
    z, z_q = 10.0**z_scale * normal(seed, 4), 10.0**q_scale * normal(seed + 1, 4)
    grad = jax.vjp(lambda z: ops.rotate(z, z_q), z)[1](jnp.ones(4))[0]
    assert np.isfinite(grad).all() and np.linalg.norm(grad) <= 2 * 100 * 1.001


def test_directional_follows_the_length_of_the_error():
    """DiVeQ: the gradient of z + |q - z| u with u constant."""
    z, z_q, cotangent = normal(0, 5), normal(1, 5), normal(2, 5)
    u = (z_q - z) / jnp.linalg.norm(z_q - z)
    to_z, to_q = jax.vjp(ops.directional, z, z_q)[1](cotangent)
    along = jnp.vdot(u, cotangent) * u
    np.testing.assert_allclose(np.asarray(to_z), np.asarray(cotangent - along), atol=1e-5)
    np.testing.assert_allclose(np.asarray(to_q), np.asarray(along), atol=1e-5)


# --- statistics


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 9), st.floats(0, 1), st.integers(0, 1000))
def test_counts_and_sums_equal_a_loop(used, real, seed):
    rng = np.random.default_rng(seed)
    n, k = 60, 9
    codes, mask = rng.integers(-1, used + 1, n), rng.random(n) < real
    z = rng.integers(-9, 9, (n, 3)).astype(np.float32)
    counts, sums = np.zeros(k), np.zeros((k, 3))
    for code, real, row in zip(codes, mask, z, strict=True):
        if real and 0 <= code < k:
            counts[code] += 1
            sums[code] += row
    np.testing.assert_array_equal(ops.code_counts(jnp.asarray(codes), k, jnp.asarray(mask)), counts)
    got = ops.code_sums(jnp.asarray(z), jnp.asarray(codes), k, jnp.asarray(mask))
    np.testing.assert_array_equal(got, sums)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1e4, width=32), min_size=7, max_size=7))
def test_smoothed_counts_keep_their_total(counts):
    """The factor that was left out: sum (N + eps) / (n + K eps) n = n."""
    counts = jnp.asarray(counts, jnp.float32)
    smooth = ops.smoothed(counts, 1e-5)
    assert (smooth > 0).all()
    if float(counts.sum()) > 0:
        assert float(smooth.sum()) == pytest.approx(float(counts.sum()), rel=1e-4)


def test_a_mask_spread_unevenly_over_replicas_gives_the_whole_mean():
    values, mask = normal(0, 4, 6), jnp.arange(24).reshape(4, 6) % 7 < jnp.arange(4)[:, None]
    local = jax.vmap(lambda v, m: ops.masked_mean(v, m, 'i'), axis_name='i')(values, mask)
    assert float(local.mean()) == pytest.approx(float(ops.masked_mean(values, mask)), rel=1e-6)


# --- losses


def test_orthogonality_never_holds_the_k_by_k_matrix():
    codebook = normal(0, 300, 4)
    unit = np.float64(codebook) / np.linalg.norm(np.float64(codebook), axis=-1, keepdims=True)
    expected = np.sum((unit @ unit.T) ** 2) / 300**2 - 1 / 300
    assert float(ops.orthogonality(codebook)) == pytest.approx(expected, rel=1e-4)
    shapes = [
        v.aval.shape for e in jax.make_jaxpr(ops.orthogonality)(codebook).eqns for v in e.outvars
    ]
    assert (300, 300) not in shapes


def test_entropy_of_certainty_is_zero_with_a_finite_gradient():
    p = jnp.array([1.0, 0.0, 0.0])
    assert float(ops.entropy(p)) == 0.0
    assert np.isfinite(jax.grad(ops.entropy)(p)).all()
    assert float(ops.imbalance(jnp.ones(8) / 8)) == pytest.approx(0.0, abs=1e-6)
    assert float(ops.imbalance(jnp.eye(8)[0])) == pytest.approx(7 / 8)


def test_mean_assignment_equals_the_full_matrix():
    z, codebook = normal(0, 1500, 4), normal(1, 7, 4)
    mask = jnp.arange(1500) % 3 > 0
    squared = jnp.sum((z[:, None] - codebook) ** 2, axis=-1)
    full = jnp.mean(jax.nn.softmax(-squared)[mask], axis=0)
    got = ops.mean_assignment(z, codebook, 1.0, 'euclidean', mask)
    np.testing.assert_allclose(np.asarray(got), np.asarray(full), rtol=1e-4)


def test_candidates_are_the_nearest_in_order():
    z, codebook = normal(0, 1300, 4), normal(1, 20, 4)
    squared = np.sum((np.float64(z)[:, None] - np.float64(codebook)) ** 2, axis=-1)
    got = np.asarray(ops.nearest_candidates(z, codebook, 5))
    np.testing.assert_array_equal(got, np.argsort(squared, axis=-1)[:, :5])


# --- k-means


def test_kmeans_ends_on_fewer_points_than_centroids():
    """ACCEPTANCE 5: 5 distinct points, k = 10."""
    points = jnp.tile(jnp.arange(10.0).reshape(5, 2), (3, 1))
    result = ops.kmeans(jax.random.key(0), points, 10)
    assert np.isfinite(result.centroids).all() and float(result.inertia) == 0.0
    assert sorted(result.counts.tolist()) == [0.0] * 5 + [3.0] * 5
    assert {tuple(c) for c in result.centroids.tolist()} == {tuple(p) for p in points.tolist()}


def test_kmeans_inertia_never_rises_and_falls_with_k():
    z = normal(0, 600, 6)
    inertia = [float(ops.kmeans(jax.random.key(1), z, 32, i).inertia) for i in (0, 1, 2, 4, 8, 16)]
    assert all(b <= a * (1 + 1e-6) for a, b in zip(inertia, inertia[1:], strict=False))
    assert float(ops.kmeans(jax.random.key(1), z, 64, 16).inertia) < inertia[-1]


@pytest.mark.parametrize('k', [5, 100])
def test_kmeans_finds_well_separated_clusters(k):
    """One centroid a cluster, also where several seeds are drawn at once."""
    centres = 100 * np.random.default_rng(0).standard_normal((k, 8))
    z = np.repeat(centres, 6, axis=0) + 0.01 * np.random.default_rng(1).standard_normal((6 * k, 8))
    result = ops.kmeans(jax.random.key(0), jnp.asarray(z, jnp.float32), k, 20)
    distance = np.linalg.norm(centres[:, None] - np.asarray(result.centroids)[None], axis=-1)
    assert (distance.min(axis=1) < 0.1).all()


def test_kmeans_reports_what_its_centroids_do():
    z = normal(0, 300, 4)
    result = ops.kmeans(jax.random.key(0), z, 8)
    squared = np.sum((np.float64(z)[:, None] - np.float64(result.centroids)) ** 2, axis=-1)
    assert float(result.inertia) == pytest.approx(squared.min(axis=1).sum(), rel=1e-5)
    np.testing.assert_array_equal(result.counts, np.bincount(squared.argmin(axis=1), minlength=8))


def test_kmeans_with_masks_and_shards_is_kmeans_of_the_rest():
    z = jnp.round(8 * normal(0, 4, 50, 3))
    mask = jnp.ones((4, 50), bool).at[1].set(False).at[3, 20:].set(False)
    dirty = jnp.where(mask[..., None], z, jnp.nan)
    run = jax.jit(lambda z: ops.kmeans(jax.random.key(0), z, 8))
    whole = run(z[mask])
    masked = jax.jit(lambda z, m: ops.kmeans(jax.random.key(0), z, 8, mask=m))(dirty, mask)
    sharded = jax.jit(
        jax.vmap(
            lambda z, m: ops.kmeans(jax.random.key(0), z, 8, mask=m, axis_name='i'), axis_name='i'
        )
    )(dirty, mask)
    for other in (masked, jax.tree.map(lambda x: x[2], sharded)):
        np.testing.assert_array_equal(np.asarray(other.counts), np.asarray(whole.counts))
        np.testing.assert_allclose(other.centroids, whole.centroids, rtol=1e-6)


def test_kmeans_of_many_vectors_is_the_same_with_masks_and_shards():
    """Its seeds are drawn from a sample, which must not depend on where the rows are."""
    z = jnp.round(8 * normal(0, 4, 6000, 2))
    mask = jnp.ones((4, 6000), bool).at[1, ::3].set(False).at[3, 2000:5000].set(False)
    whole = ops.kmeans(jax.random.key(0), z[mask], 16, 2)
    sharded = jax.vmap(
        lambda z, m: ops.kmeans(jax.random.key(0), z, 16, 2, mask=m, axis_name='i'), axis_name='i'
    )(z, mask)
    masked = ops.kmeans(jax.random.key(0), z, 16, 2, mask=mask)
    for other in (masked, jax.tree.map(lambda x: x[2], sharded)):
        np.testing.assert_array_equal(np.asarray(other.counts), np.asarray(whole.counts))
        np.testing.assert_allclose(other.centroids, whole.centroids, rtol=1e-5)


def test_seeds_of_many_vectors_are_the_same_with_64_bit_numbers():
    z = normal(0, 20_000, 2)
    plain = ops.kmeans(jax.random.key(0), z, 8, 0).centroids
    with jax.enable_x64(True):
        wide = ops.kmeans(jax.random.key(0), z, 8, 0).centroids
    np.testing.assert_array_equal(np.asarray(plain), np.asarray(wide))


def test_seeds_of_many_vectors_are_of_all_places():
    """Rows of feature maps repeat their columns: every n-th row would be of one column alone."""
    column = jnp.tile(jnp.arange(4), 15_000)
    z = 100.0 * column[:, None] + normal(0, 60_000, 3)
    seeds = ops.kmeans(jax.random.key(0), z, 32, 0).centroids
    seen, found = np.unique(np.round(seeds.mean(axis=1) / 100), return_counts=True)
    assert seen.tolist() == [0, 1, 2, 3] and found.min() >= 4


def test_seeds_from_a_sample_are_as_good(monkeypatch):
    z = normal(0, 40_000, 4)

    def inertia(z):
        return [float(ops.kmeans(jax.random.key(seed), z, 64, 3).inertia) for seed in range(3)]

    sampled = inertia(z)
    monkeypatch.setattr(importlib.import_module('vqjax.ops.kmeans'), '_SAMPLE', 40_001)
    # Of another shape, so that it is compiled anew; what is not finite does not count.
    of_all = inertia(jnp.concatenate([z, jnp.full((1, 4), jnp.nan)]))
    assert np.mean(sampled) == pytest.approx(np.mean(of_all), rel=0.01)
    assert sampled != of_all


def test_seeds_of_kmeans_are_drawn_by_squared_distance():
    """++ (Arthur and Vassilvitskii 2007): two points far from a crowd are both drawn."""
    crowd = 0.01 * normal(0, 500, 2)
    z = jnp.concatenate([crowd, jnp.array([[100.0, 0.0], [0.0, 100.0]])])
    for seed in range(5):
        seeds = ops.kmeans(jax.random.key(seed), z, 3, 0).centroids
        assert sorted(np.round(np.linalg.norm(seeds, axis=-1)).tolist()) == [0.0, 100.0, 100.0]


# --- revival


def used_and_dead(source, key=None, counts=(40.0, 20.0, 0.0, 0.0)):
    """Two codes in use at distance from the batch, two dead ones."""
    rows = normal(0, 64, 2)
    codebook = jnp.array([[0.5, 0.0], [-0.5, 0.0], [90.0, 0.0], [0.0, 90.0]])
    codes = ops.nearest_codes(rows, codebook)
    batch = ops.Batch(rows, codes, jnp.ones(64, bool), codebook)
    revival = ops.Revival(below=0.1, every=1, source=source)
    return rows, codebook, codes, revival(key, batch, codebook, jnp.array(counts), jnp.array(1))


@pytest.mark.parametrize('key', [None, 3])
@pytest.mark.parametrize('source', [ops.random_rows, ops.largest_error, ops.error_rows])
def test_dead_codes_become_vectors_of_the_batch(source, key):
    key = None if key is None else jax.random.key(key)
    rows, codebook, codes, revived = used_and_dead(source, key)
    assert revived.changed.tolist() == [False, False, True, True]
    np.testing.assert_array_equal(revived.codebook[:2], codebook[:2])
    new = {tuple(r) for r in np.asarray(revived.codebook[2:]).tolist()}
    assert len(new) == 2 and new <= {tuple(r) for r in np.asarray(rows).tolist()}
    # The count of uniform use: not dead at the next look.
    assert revived.counts.tolist() == [40.0, 20.0, 15.0, 15.0]
    if key is None or source is ops.largest_error:
        error = np.sum((np.asarray(rows) - np.asarray(codebook)[np.asarray(codes)]) ** 2, axis=-1)
        worst = np.asarray(rows)[np.argsort(-error)[:2]]
        np.testing.assert_array_equal(revived.codebook[2:], worst)


def test_split_halves_the_most_used_codes():
    _, codebook, _, revived = used_and_dead(ops.split)
    assert revived.counts.tolist() == [20.0, 10.0, 20.0, 10.0]
    middle = (revived.codebook[:2] + revived.codebook[2:]) / 2
    np.testing.assert_allclose(middle, codebook[:2], atol=1e-5)
    assert (np.asarray(revived.codebook[:2]) != np.asarray(revived.codebook[2:])).any(axis=-1).all()


def test_dead_codes_move_to_their_closest_anchors():
    """2307.15139 eq. 4 for codes without use; one just below the threshold moves as well.

    With eq. 4's weight for the use of an average that starts at uniform use, and not at 0, a code
    that nothing ever used would stand still for 700 steps.
    """
    counts = (40.0, 20.0, 0.0, 1.4)  # dead below 1.535
    rows, codebook, _, revived = used_and_dead(ops.anchors, counts=counts)
    assert revived.changed.tolist() == [False, False, True, True]
    squared = np.sum((np.asarray(rows)[:, None] - np.asarray(codebook)) ** 2, axis=-1)
    closest = np.asarray(rows)[squared.argmin(axis=0)]
    np.testing.assert_array_equal(revived.codebook[:2], codebook[:2])
    short = (np.asarray(codebook)[2:] - closest[2:]) / 1024
    np.testing.assert_allclose(revived.codebook[2:], closest[2:] + short, rtol=1e-6)
    np.testing.assert_array_equal(revived.counts, np.float32(counts))  # they move on until used


def test_dead_codes_with_one_anchor_stay_apart():
    """Equal codes would share its vectors by the rounding of a product, which N devices do not."""
    rows = jnp.array([[0.0, 0.0], [9.0, 9.0]])
    codebook = jnp.array([[0.0, 0.0], [8.0, 8.0], [7.0, 9.0], [1.0, 5.0]])
    batch = ops.Batch(rows, jnp.array([0, 1]), jnp.ones(2, bool), codebook)
    dead = jnp.array([False, True, True, True])
    revived = ops.anchors(None, batch, codebook, jnp.array([4.0, 0.0, 0.0, 0.0]), dead)
    assert revived.changed.tolist() == dead.tolist()
    np.testing.assert_allclose(revived.codebook, [[0, 0], [9, 9], [9, 9], [0, 0]], atol=0.01)
    assert len({tuple(row) for row in revived.codebook.tolist()}) == 4


def test_anchors_reach_a_code_that_was_never_used_as_soon_as_it_counts_as_dead():
    """Without it `revival_anchors` of the remedies did nothing in 640 steps of any seed."""
    from vqjax import VQEMA

    z = 20 + normal(0, 64, 3)
    found = []
    for source in (ops.anchors, ops.random_rows):
        q = VQEMA(8, init=ops.normal, revival=ops.Revival(source=source))
        _, state = q.init(jax.random.key(0), z)

        def steps(state, q=q):
            def step(state, key):
                codes = q.quantize((), state, z).codes
                state = q.update((), state, z, codes, key)
                return state, jnp.linalg.norm(q.read_codebook((), state) - 20, axis=-1).max()

            return jax.lax.scan(step, state, jax.random.split(jax.random.key(1), 640))[1]

        far = np.asarray(jax.jit(steps)(state))
        found.append(int(np.flatnonzero(far < 10)[0]))
    assert found[0] == found[1] < 600


def test_revival_is_relative_to_uniform_use_and_waits_for_its_period():
    """The same for 64 vectors a step and for 64 million."""
    for scale in (1e-3, 1.0, 1e6):
        counts = tuple(scale * c for c in (40.0, 20.0, 1.4, 1.6))
        *_, revived = used_and_dead(ops.largest_error, counts=counts)
        assert revived.changed.tolist() == [False, False, True, False]
    batch = ops.Batch(normal(0, 8, 2), jnp.zeros(8, jnp.int32), jnp.ones(8, bool), normal(1, 4, 2))
    revival = ops.Revival(below=0.1, every=5)
    looks = [
        bool(revival(None, batch, normal(1, 4, 2), jnp.array([9.0, 0, 0, 0]), step).changed.any())
        for step in range(1, 11)
    ]
    assert looks == [False] * 4 + [True] + [False] * 4 + [True]


def test_a_revived_code_keeps_its_place_through_the_next_step():
    """Code, count and sum are reset together: the next update cannot bring the old code back."""
    from vqjax import VQEMA

    q = VQEMA(4, init=ops.normal, revival=ops.Revival(below=0.5, every=2))
    z = 20 + normal(0, 64, 3)
    _, state = q.init(jax.random.key(0), z)
    for i in range(200):
        codes = q.quantize((), state, z).codes
        state = q.update((), state, z, codes, jax.random.key(i))
    codebook = np.asarray(q.read_codebook((), state))
    assert len(set(np.asarray(codes).tolist())) == 4
    assert np.abs(codebook - 20).max() < 6
