"""DiVeQ (arXiv:2509.26469): its noise, its residual form and its space-filling form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import golden_case

from vqjax import VQ, MultiScale, Residual, SpaceFilling, Strided, ops, testing
from vqjax.quantizers import VQState
from vqjax.testing import claimed


def test_the_estimator_has_the_peer_s_gradient():
    g = golden_case('codebooks', 'diveq')
    out, pullback = jax.vjp(lambda *zs: ops.directional(*zs, g['noise']), g['z'], g['z_q'])
    np.testing.assert_array_equal(np.asarray(out), g['z_q'])  # theirs is as far from z, see below
    for got, name in zip(
        pullback(jnp.asarray(g['cotangent'])), ('z_grad', 'z_q_grad'), strict=True
    ):
        np.testing.assert_allclose(np.asarray(got), g[name], atol=1e-5)
    far, theirs = (np.linalg.norm(x - g['z'], axis=-1) for x in (g['z_q'], g['out']))
    np.testing.assert_allclose(theirs, far, rtol=1e-5)


def test_stages_share_the_direction_of_the_whole_error(monkeypatch):
    """As ResidualVQ(diveq=True): every code that was taken gets the gradient of the sum."""
    g = golden_case('codebooks', 'diveq_residual')
    monkeypatch.setattr(ops.gradients, 'normal_noise', lambda *_: g['noise'] / 5e-3**0.5)
    stages, num_codes, _ = g['codebooks'].shape
    inner = VQ(num_codes, commitment=0, codebook=0, gradient=ops.DiVeQ(5e-3), revival=None)
    q = Residual(inner, stages)
    zeros = jnp.zeros_like(g['codebooks'])
    state = VQState(zeros, zeros[..., 0] + 1, jnp.zeros(stages, jnp.int32))

    def task(params, z):
        out = q.quantize(params, state, z, jax.random.key(0))
        return jnp.vdot(out.z_q, g['cotangent']) + out.loss, out

    grads, out = jax.grad(task, (0, 1), has_aux=True)(jnp.asarray(g['codebooks']), g['z'])
    assert (np.asarray(out.codes) == g['codes']).all()
    np.testing.assert_allclose(np.asarray(grads[0]), g['codebook_grads'], atol=1e-5)
    np.testing.assert_allclose(np.asarray(grads[1]), g['z_grad'], atol=1e-5)


NOISY = VQ(8, gradient=ops.DiVeQ(0.01))


@pytest.mark.parametrize(
    'q', [Strided(NOISY, (2, 1)), MultiScale(NOISY, (1, (4, 6)), phi=(0.5,))], ids=repr
)
def test_one_estimator_stands_around_strides_and_scales(q):
    trial = testing.Trial(q)
    claimed.the_task_s_gradient_is_the_estimator_s(trial)
    claimed.each_loss_trains_what_it_claims(trial)


def test_noise_is_a_key_s_and_the_place_s_among_real_vectors():
    z, z_q = (jax.random.normal(jax.random.key(i), (6, 4)) for i in range(2))
    mask = jnp.array([True, False, True, True, False, True])
    noisy = ops.DiVeQ(0.1)

    def slope(z, z_q, *given):
        return np.asarray(jax.grad(lambda z: jnp.sum(noisy(z, z_q, *given) * z_q))(z))

    plain = jax.grad(lambda z: jnp.sum(ops.directional(z, z_q) * z_q))(z)
    np.testing.assert_array_equal(slope(z, z_q), np.asarray(plain))
    one, two = (slope(z, z_q, jax.random.key(i)) for i in range(2))
    assert (one != two).any() and (one != plain).any()
    few = slope(z[mask], z_q[mask], jax.random.key(0))
    np.testing.assert_array_equal(slope(z, z_q, jax.random.key(0), mask)[np.asarray(mask)], few)


def test_noise_is_normal():
    drawn = np.asarray(ops.normal_noise(jax.random.key(0), jnp.arange(2000), 16))
    # Four standard errors of 32,000 numbers.
    assert abs(drawn.mean()) < 4 / 32000**0.5 and abs(drawn.var() - 1) < 4 * (2 / 32000) ** 0.5
    assert abs((drawn**4).mean() - 3) < 4 * (96 / 32000) ** 0.5


def curve(num_codes=24, points=3, seed=0):
    q = SpaceFilling(num_codes, points)
    z = jax.random.normal(jax.random.key(seed), (256, 2))
    return q, q.init(jax.random.key(1), z)[0], z


def test_codes_lie_evenly_on_the_segments_in_order():
    q, points, _ = curve()
    assert q.segments == 8 and points.shape == (9, 2)
    codebook = np.asarray(q.decode(points, (), jnp.arange(q.num_codes))).reshape(8, 3, 2)
    for m, share in enumerate((1 / 6, 3 / 6, 5 / 6)):
        expected = (1 - share) * points[:-1] + share * points[1:]
        np.testing.assert_allclose(codebook[:, m], np.asarray(expected), rtol=1e-5, atol=1e-6)


def test_the_start_is_a_walk_through_the_centroids():
    q, points, z = curve()
    centroids = np.asarray(ops.kmeans(jax.random.key(1), z, 9).centroids)
    left = points = np.asarray(points)
    assert {tuple(x) for x in left} == {tuple(x) for x in centroids}
    for at in range(8):
        steps = np.linalg.norm(points[at + 1 :] - points[at], axis=-1)
        assert steps.argmin() == 0


def test_a_key_offers_one_code_of_each_segment():
    q, points, z = curve()
    taken = [np.asarray(q.quantize(points, (), z, jax.random.key(i)).codes) for i in range(4)]
    for codes in taken:
        assert all(len(set(codes[codes // 3 == s] % 3)) == 1 for s in set(codes // 3))
    assert len({tuple(codes % 3) for codes in taken}) > 1


def test_training_by_the_task_alone_takes_the_curve_to_the_vectors():
    """From a start beside them, with no other loss and no revival, until it uses all segments."""
    q, points, z = curve()
    points = points * 0.1 + 2.0

    def task(points, key):
        return jnp.mean(jnp.sum((q.quantize(points, (), z, key).z_q - z) ** 2, axis=-1))

    step = jax.jit(lambda points, key: points - 0.2 * jax.grad(task)(points, key))
    before = float(task(points, None))
    for i in range(300):
        points = step(points, jax.random.key(i))
    assert float(task(points, None)) < 0.05 * before
    codes = np.asarray(q.quantize(points, (), z).codes)
    assert len(set(codes // 3)) == q.segments


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match='num_codes must be a multiple of points=3'):
        SpaceFilling(8, points=3)
    with pytest.raises(ValueError, match='variance must be finite and not negative, got -1'):
        ops.DiVeQ(-1)
