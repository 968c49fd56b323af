"""Conditioned: an inverse pair around a quantizer, its statistics, and RFSQ's claim."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqjax import FSQ, Conditioned, Residual
from vqjax.quantizers import ConditionedParams, ConditionedState

GRID = FSQ((5, 4, 5, 4))


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def test_without_a_mean_and_at_deviation_1_it_is_the_inner_quantizer():
    z = normal(0, 50, 4)
    q = Conditioned(GRID)
    params = ConditionedParams(jnp.zeros(4), jnp.zeros(4), ())
    state = ConditionedState(jnp.zeros(4), jnp.ones(4), ())
    out, inner = q.quantize(params, state, z), GRID.quantize((), (), z)
    np.testing.assert_array_equal(np.asarray(out.codes), np.asarray(inner.codes))
    np.testing.assert_array_equal(np.asarray(out.z_q), np.asarray(inner.z_q))


@pytest.mark.parametrize('decay', [0.9, None])
def test_a_start_follows_the_scale_of_the_data(decay):
    """Moved (with a mean only) and scaled feature by feature, vectors keep their codes."""
    z, scale = normal(0, 200, 4), jnp.array([1e-6, 1.0, 8.0, 1e5])
    shift = jnp.array([0.0, 3.0, -1.0, 1e5]) * (decay is not None)
    q = Residual(Conditioned(GRID, decay=decay), 3)
    outs = [q.quantize(*q.init(jax.random.key(0), x), x) for x in (z, z * scale + shift)]
    same = np.asarray(outs[0].codes == outs[1].codes)
    assert same.mean() > 0.99
    moved = (np.asarray(outs[1].z_q) - shift) / scale
    np.testing.assert_allclose(moved[same.all(-1)], outs[0].z_q[same.all(-1)], atol=2e-2)


def test_statistics_are_weighted_means_over_what_has_a_code():
    z, decay = normal(0, 40, 4) + 2, 0.75
    q = Conditioned(GRID, decay=decay)
    params, state = q.init(jax.random.key(0), z)
    np.testing.assert_allclose(state.mean, z.mean(0), rtol=1e-5)
    np.testing.assert_allclose(state.variance, z.var(0), rtol=1e-4)
    new = 3 * normal(1, 40, 4) - 1
    codes = q.quantize(params, state, new).codes.at[:5].set(-1)
    weights = jnp.arange(40.0) % 3
    after = q.update(params, state, new, codes, weights=weights)
    rows = np.asarray(new, np.float64)[5:]
    w = np.asarray(weights, np.float64)[5:]
    mean = np.average(rows, 0, w)
    variance = np.average((rows - mean) ** 2, 0, w)
    np.testing.assert_allclose(after.mean, decay * state.mean + 0.25 * mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(after.variance, decay * state.variance + 0.25 * variance, rtol=1e-4)


def test_every_stage_helps_where_stages_of_one_fixed_range_stop():
    """RFSQ's point: what a stage leaves is smaller than the range of the next one."""
    z = 0.2 * normal(0, 1000, 4)

    def errors(inner, **fields):
        found = []
        for stages in (1, 2, 4):
            q = Residual(inner, stages, **fields)
            z_q = q.quantize(*q.init(jax.random.key(0), z), z).z_q
            found.append(float(jnp.mean((z_q - z) ** 2) / jnp.mean(z**2)))
        return found

    odd = FSQ((5,) * 4)
    plain, conditioned = errors(odd, scale=1.0), errors(Conditioned(odd))
    assert plain[2] > 0.9 * plain[0]
    assert conditioned[1] < 0.5 * conditioned[0] and conditioned[2] < 0.5 * conditioned[1]
    assert conditioned[2] < 0.3 * plain[2]


def test_first_stages_and_what_is_refused():
    z = normal(0, 60, 4)
    q = Conditioned(Residual(GRID, 3))
    params, state = q.init(jax.random.key(0), z)
    first, *trees = q.first_stages(1, params, state)
    codes = q.quantize(params, state, z).codes
    np.testing.assert_array_equal(np.asarray(first.quantize(*trees, z).codes), codes[:, :1])
    for decay in (1.0, -0.1, True):
        with pytest.raises(ValueError, match='decay must be in'):
            Conditioned(GRID, decay=decay)
    with pytest.raises(ValueError, match='identical'):
        q.init(jax.random.key(0), jnp.ones((8, 4)))
