"""Balanced assignment: against Sinkhorn's algorithm on the whole matrix, and what it is for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqjax import VQEMA, Residual, SimVQ, make, ops

KEY = jax.random.key(0)


def batch(n, k, d, seed=0, spread=1.0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)), spread * rng.standard_normal((k, d))


def plan(z, codebook, epsilon, iters, metric='euclidean'):
    """float64 transport plan [N, K] of arXiv:2412.15195 as its authors' code makes it."""
    if metric == 'cosine':
        z, codebook = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (z, codebook))
    cost = np.linalg.norm(z[:, None] - codebook, axis=-1)
    if metric == 'dot':
        cost = -z @ codebook.T
    cost = (cost - cost.mean()) / cost.std()
    q = np.exp(-(cost - cost.min()) / epsilon)
    for _ in range(iters):
        q /= q.sum(axis=0) * q.shape[1]
        q /= q.sum(axis=1, keepdims=True) * q.shape[0]
    return q


@pytest.mark.parametrize('metric', ['euclidean', 'cosine', 'dot'])
@pytest.mark.parametrize('n, k, iters', [(50, 8, 1), (45, 20, 5), (2500, 30, 5)])
def test_codes_are_the_plan_s_largest_entries(metric, n, k, iters):
    """Several tiles in the last case; N is a multiple of K in none."""
    z, codebook = batch(n, k, 4)
    q = plan(z, codebook, 0.25, iters, metric)
    codes = np.asarray(jax.jit(ops.Sinkhorn(0.25, iters), static_argnums=3)(
        KEY, jnp.float32(z), jnp.float32(codebook), metric
    ))  # fmt: skip
    got, best = q[np.arange(n), codes], q.max(axis=-1)
    # Where it differs, the two entries are equal but for rounding.
    assert (codes != q.argmax(axis=-1)).mean() < 0.01
    assert (got > best * (1 - 1e-3)).all()


def test_it_is_computed_on_logarithms():
    """At this epsilon every entry of exp(-cost / epsilon) but a few underflows, even in float64."""
    z, codebook = batch(64, 16, 4, spread=0.01)
    codes = ops.Sinkhorn(1e-3, 200)(KEY, jnp.float32(z), jnp.float32(codebook))
    counts = np.bincount(np.asarray(codes), minlength=16)
    assert counts.min() >= 2 and counts.max() <= 8


def test_a_collapsed_codebook_is_used_evenly_in_training_only():
    z = jax.random.normal(KEY, (512, 8))
    # Nearest: one code beside the batch gets it all, the others are far off on one side.
    q = SimVQ(16, assignment=ops.Sinkhorn())
    far = jnp.full((16, 8), 3.0) + jax.random.normal(jax.random.key(1), (16, 8))
    params, state = jnp.eye(8), far.at[0].set(0.0)
    used = lambda codes: np.bincount(np.asarray(codes), minlength=16)  # noqa: E731
    assert (used(q.quantize(params, state, z).codes) > 0).sum() < 4
    counts = used(q.quantize(params, state, z, KEY).codes)
    assert counts.min() > 0 and counts.max() < 3 * 512 / 16


def test_masked_and_unusable_vectors_and_codes_weigh_nothing():
    z, codebook = (jnp.float32(x) for x in batch(40, 6, 3))
    mask = jnp.arange(40) < 30
    assign = jax.jit(ops.Sinkhorn())
    expected = np.asarray(assign(KEY, z[:30], codebook))
    hidden = jnp.where(mask[:, None], z, jnp.nan)
    for given, real in ((hidden, None), (jnp.where(mask[:, None], z, 1e9), mask)):
        codes = np.asarray(assign(KEY, given, codebook, mask=real))
        np.testing.assert_array_equal(codes[:30], expected)
        assert (codes[30:] == -1).all()
    worse = jnp.concatenate([codebook, jnp.full((2, 3), jnp.nan)])
    np.testing.assert_array_equal(assign(KEY, z[:30], worse), expected)
    assert (np.asarray(assign(KEY, z, codebook, mask=mask & False)) == -1).all()
    assert (np.asarray(assign(KEY, jnp.ones((5, 3)), jnp.ones((4, 3)))) == 0).all()


def test_memory_is_a_tile_s():
    """N x K at 16,384 x 16,384 would be a gigabyte."""
    shapes = [jax.ShapeDtypeStruct((16_384, 64), jnp.float32)] * 2
    compiled = jax.jit(lambda z, c: ops.Sinkhorn()(KEY, z, c)).lower(*shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 120e6


def test_it_is_an_argument_and_plain_data():
    q = Residual(VQEMA(8, assignment=ops.Sinkhorn(epsilon=0.2, iters=3)), 2)
    spec = {'name': 'vq_ema', 'num_codes': 8, 'assignment': {'epsilon': 0.2, 'iters': 3}}
    assert make({'name': 'residual', 'num_stages': 2, 'inner': spec}) == q
    assert make(spec | {'assignment': 'nearest_assignment'}) == VQEMA(8)
    assert dataclasses.replace(q.inner, assignment=ops.nearest_assignment) == VQEMA(8)


@pytest.mark.parametrize(
    'build, message',
    [
        (lambda: ops.Sinkhorn(iters=0), 'iters must be an integer from 1 .* got 0'),
        (lambda: ops.Sinkhorn(epsilon=0.0), 'epsilon must be finite and above 0, got 0.0'),
        (lambda: VQEMA(4, assignment='greedy'), "assignment must be one of .* got 'greedy'"),
        (
            lambda: VQEMA(4, assignment=ops.Sinkhorn(), temperature=0.5),
            'temperature=0.5 .*assignment=Sinkhorn',
        ),
        (
            lambda: make({'name': 'vq', 'num_codes': 4, 'assignment': {'iters': 0}}),
            'iters must be an integer from 1 .* got 0',
        ),
    ],
)
def test_bad_configurations_name_field_and_value(build, message):
    with pytest.raises(ValueError, match=message):
        build()
