"""The Wasserstein term: its formula in float64, its gradient, and that it brings back codes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from vqjax import VQ, ops


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def formula(z, codes):
    """arXiv:2506.15078: of means and covariances, with a matrix square root."""
    z, codes = (np.asarray(x, np.float64) for x in (z, codes))
    spread, code_spread = (np.cov(x.T, bias=True) for x in (z, codes))
    root = scipy.linalg.sqrtm(spread)
    cross = scipy.linalg.sqrtm(root @ code_spread @ root).real
    means = np.sum((z.mean(0) - codes.mean(0)) ** 2)
    return np.sqrt(means + np.trace(spread + code_spread - 2 * cross))


@pytest.mark.parametrize('scale', [1.0, 1e-8, 1e12])
def test_it_is_the_distance_of_two_normal_distributions(scale):
    z = scale * (normal(0, 300, 6) @ normal(1, 6, 6) + 0.5)
    codes = scale * normal(2, 40, 6)
    found = ops.wasserstein(z, codes)
    np.testing.assert_allclose(found, formula(z, codes), rtol=1e-4)
    # 0 for the same vectors, whatever their order, to float32's rounding of squares.
    assert float(ops.wasserstein(z, z[::-1])) < 2e-3 * float(jnp.sqrt(jnp.mean(z**2)))
    mask = jnp.arange(300) < 200
    spoiled = z.at[250].set(jnp.nan)
    for given in (z, spoiled):
        hidden = ops.wasserstein(given, codes, mask)
        np.testing.assert_allclose(hidden, ops.wasserstein(z[:200], codes), rtol=1e-4)
    np.testing.assert_allclose(
        ops.wasserstein(spoiled, codes), ops.wasserstein(jnp.delete(z, 250, 0), codes), rtol=1e-4
    )


def test_the_gradient_is_that_of_the_formula_and_finite_without_spread():
    z, codes = normal(0, 50, 4) + 1.0, normal(1, 20, 4)
    slopes = jax.grad(ops.wasserstein, (0, 1))(z, codes)
    for place, (row, column) in ((0, (3, 1)), (1, (7, 2))):
        pair = [np.asarray(x, np.float64) for x in (z, codes)]
        ends = []
        for step in (1e-5, -1e-5):
            moved = [x.copy() for x in pair]
            moved[place][row, column] += step
            ends.append(formula(*moved))
        expected = (ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose(slopes[place][row, column], expected, rtol=1e-2, atol=1e-5)
    # Equal eigenvalues, one code, vectors on a line, and nothing real.
    square = jnp.concatenate([jnp.eye(4), -jnp.eye(4)])
    line = normal(0, 50, 1) * jnp.ones(4)
    for pair in ((square, square), (square, square[:1]), (line, line), (line, 0 * line)):
        for slope in jax.grad(ops.wasserstein, (0, 1))(*pair):
            assert np.isfinite(np.asarray(slope)).all()
    nothing = jnp.zeros(50, bool)
    value, slope = jax.value_and_grad(ops.wasserstein)(z, codes, nothing)
    assert value == 0 and (np.asarray(slope) == 0).all()


def test_codes_that_start_elsewhere_come_into_use():
    """The paper's setting: codes N(0, 1), vectors N(2, 1), where few codes are ever nearest."""
    codes, z = normal(0, 64, 4), normal(1, 2000, 4) + 2.0

    def active(weight):
        q = VQ(64, init='normal', revival=None, wasserstein=weight)
        params, state = codes, q.init(jax.random.key(0), z)[1]

        @jax.jit
        def step(params):
            return params - 0.3 * jax.grad(lambda p: q.quantize(p, state, z).loss)(params)

        for _ in range(60):
            params = step(params)
        return len(np.unique(q.quantize(params, state, z).codes))

    assert active(0.0) < 40 and active(10.0) > 60
