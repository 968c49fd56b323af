"""FSQ and LFQ: codebooks that are never held. Numbers and properties from their papers."""

import itertools
import math

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqjax import FSQ, LFQ, Residual, make, ops, to_spec


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def test_fsq_case_of_the_reference_page():
    """ACCEPTANCE 1: the first level varies fastest."""
    out = FSQ((3, 5, 4)).quantize((), (), jnp.array([0.25, 0.6, -7.0]))
    assert out.z_q.tolist() == [0.0, 0.5, -1.0]
    assert int(out.codes) == 10


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(3, 9), min_size=1, max_size=4), st.booleans(), st.integers(0, 9))
def test_fsq_codes_number_the_grid(levels, symmetric, seed):
    """decode is a bijection from [0, K) to the grid, and quantize finds the nearest level."""
    q = FSQ(tuple(levels), symmetric=symmetric)
    grid = np.asarray(q.decode((), (), jnp.arange(q.num_codes)))
    assert len({tuple(row) for row in grid}) == math.prod(levels)
    assert grid.min() == -1.0 and np.abs(grid).max() == 1.0
    # First level fastest: consecutive codes differ in the first feature.
    assert (grid[1][1:] == grid[0][1:]).all() and grid[1][0] > grid[0][0]
    z = 2 * normal(seed, 50, len(levels))
    out = q.quantize((), (), z, key=jax.random.key(seed))
    assert out.codes.min() >= 0 and out.codes.max() < q.num_codes
    half = (np.array(levels) - 1) / 2
    if symmetric:
        exact = 2 * np.floor((np.tanh(np.float64(z)) + 1) * half + 0.5) / (2 * half) - 1
        assert np.abs(exact - np.asarray(out.z_q)).max() < 1e-6


def test_fsq_codes_are_exact_near_2_to_the_31():
    """Integers throughout: a float32 sum of strides is wrong above 2^24."""
    levels = (5,) * 13
    assert math.prod(levels) < 2**31
    q = FSQ(levels)
    codes = jnp.array([0, 1, 2**24 + 1, q.num_codes - 2, q.num_codes - 1], jnp.int32)
    vectors = q.decode((), (), codes)
    digits = np.round(np.asarray(vectors) * 2).astype(int) + 2
    again = [sum(int(d) * 5**i for i, d in enumerate(row)) for row in digits]
    assert again == codes.tolist()
    # And back through quantize: z whose bound lands on those levels.
    z = jnp.arctanh(jnp.clip(vectors, -0.99, 0.99) / 1.001)
    assert q.quantize((), (), z).codes.tolist() == codes.tolist()


@pytest.mark.parametrize('scale, expected', [(0.5, 0.14), (1.0, 0.90), (2.0, 0.41)])
def test_fsq_usage_depends_on_the_scale_of_z(scale, expected):
    """FACTS 3: perplexity / K for N(0, s^2) into [8, 8, 8, 5, 5, 5], by independent features."""
    share = 1.0
    z = scale * np.asarray(normal(0, 400_000))
    for level in (8, 5):
        codes = np.asarray(FSQ((level,)).quantize((), (), jnp.asarray(z)[:, None]).codes)
        p = np.bincount(codes, minlength=level) / len(codes)
        share *= (np.exp(-np.sum(p * np.log(np.maximum(p, 1e-300)))) / level) ** 3
    assert share == pytest.approx(expected, abs=0.01)


def test_ifsq_is_the_paper_s_formula():
    """2601.17124's code: round((2 sigmoid(1.6 z) - 1) (L - 1) / 2) / (L // 2), odd L only."""
    levels = (17, 5, 3, 9)
    z = np.asarray(normal(0, 4000, 4))
    q = FSQ(levels, symmetric=True, bound='ifsq')
    bounded = 2 / (1 + np.exp(-1.6 * np.float64(z))) - 1
    width = np.array(levels) // 2
    expected = np.round(bounded * width) / width
    edge = np.abs(np.abs(bounded * width % 1) - 0.5) < 1e-5
    z_q = np.asarray(q.quantize((), (), jnp.asarray(z)).z_q)
    np.testing.assert_allclose(z_q[~edge], expected[~edge], atol=1e-6)
    assert edge.mean() < 1e-3


@pytest.mark.parametrize('bound, distance', [('tanh', 0.045), ('ifsq', 0.018)])
def test_ifsq_makes_normal_features_nearly_uniform(bound, distance):
    """The largest difference of distribution functions, which a rising function keeps."""
    x = np.linspace(-6, 6, 100_001)
    normal_share = 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    share = (np.asarray(ops.BOUNDS[bound](jnp.asarray(x, jnp.float32)), np.float64) + 1) / 2
    found = np.abs(normal_share - share).max()
    assert 0.9 * distance < found < distance


@pytest.mark.parametrize('level, tanh, ifsq', [(5, 0.0908, 0.0813), (17, 0.0183, 0.0121)])
def test_ifsq_tells_more_of_normal_features(level, tanh, ifsq):
    """What the code leaves of the variance, by numerical integration; all levels are in use.

    Not an even use: rounding gives the end levels half a cell, which tanh happens to overfill.
    """
    z = np.asarray(normal(1, 400_000))
    left, even = {}, {}
    for bound in ('tanh', 'ifsq'):
        q = FSQ((level,), symmetric=True, bound=bound)
        codes = np.asarray(q.quantize((), (), jnp.asarray(z)[:, None]).codes)
        counts = np.bincount(codes, minlength=level)
        assert counts.min() > 0
        means = np.bincount(codes, z, minlength=level) / counts
        left[bound] = np.mean((z - means[codes]) ** 2) / z.var()
        p = counts / counts.sum()
        even[bound] = np.exp(-np.sum(p * np.log(p))) / level
    assert left == pytest.approx({'tanh': tanh, 'ifsq': ifsq}, rel=0.02)
    assert 0.9 < even['ifsq'] < even['tanh']


def softsign(x):
    return x / (1 + jnp.abs(x))


@pytest.mark.parametrize('symmetric', [False, True])
@pytest.mark.parametrize('bound', [ops.tanh, ops.ifsq, softsign])
def test_every_bound_has_its_inverse(symmetric, bound):
    """Grid points come back, and so the stages of a Residual refine a grid under any bound."""
    q = FSQ((5, 8, 3), symmetric=symmetric, bound=bound)
    codes = jnp.arange(q.num_codes)
    again = q.quantize((), (), q.unbound(q.decode((), (), codes))).codes
    np.testing.assert_array_equal(np.asarray(again), np.asarray(codes))
    z = 0.5 * jnp.tanh(normal(0, 500, 3))
    errors = [
        float(jnp.max(jnp.abs(Residual(q, s).quantize((), (), z).z_q - z))) for s in (1, 4, 8)
    ]
    assert errors[1] < 0.25 * errors[0] and errors[2] < 0.1 * errors[1]


def test_bounds_in_specs_and_what_is_none():
    q = FSQ((5, 5), bound='ifsq')
    assert q == FSQ((5, 5), bound=ops.ifsq) and make(to_spec(q)) == q
    assert to_spec(q)['bound'] == 'ifsq' and repr(q) == 'FSQ(levels=(5, 5), bound=ifsq)'
    with pytest.raises(ValueError, match=r"bound must be one of \['cauchy', 'clamp', .*'softsign'"):
        FSQ((5,), bound='softsign')
    for wrong in (lambda x: x, jax.nn.sigmoid, lambda x: -jnp.tanh(x), jnp.sum):
        with pytest.raises(ValueError, match='bound must rise from -1 to 1'):
            FSQ((5,), bound=wrong)


@pytest.mark.parametrize('symmetric', [False, True])
def test_fsq_noise_stays_in_range_and_is_reproducible(symmetric):
    q = FSQ((5, 4, 3), symmetric=symmetric, noise=2.0)
    z = 5 * normal(0, 1000, 3)
    out = q.quantize((), (), z, key=jax.random.key(1))
    assert out.codes.min() >= 0 and out.codes.max() < 60
    assert (out.z_q == q.decode((), (), out.codes)).all()
    assert (out.codes != q.quantize((), (), z).codes).any()
    assert (out.codes == q.quantize((), (), z, key=jax.random.key(1)).codes).all()


def brute_force_lfq(z, inv_temperature):
    """Entropies by the softmax over all 2^bits codes, in float64."""
    z = np.float64(z)
    codes = np.array(list(itertools.product([-1.0, 1.0], repeat=z.shape[-1])))
    logits = 2 * inv_temperature * z @ codes.T
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)

    def entropy(p):
        return -np.sum(np.where(p > 0, p * np.log(np.maximum(p, 1e-300)), 0), axis=-1)

    return entropy(p).mean(), entropy(p.mean(axis=0))


@pytest.mark.parametrize('num_bits, inv_temperature', [(1, 1.0), (3, 100.0), (8, 0.5), (11, 2.0)])
def test_lfq_entropies_equal_the_sum_over_all_codes(num_bits, inv_temperature):
    z = normal(num_bits, 40, num_bits)
    losses = LFQ(num_bits, inv_temperature=inv_temperature).quantize((), (), z).losses
    single, joint = brute_force_lfq(z, inv_temperature)
    assert float(losses['per_sample_entropy']) == pytest.approx(single, rel=2e-5, abs=1e-6)
    assert float(losses['batch_entropy']) == pytest.approx(joint, rel=2e-5)


def arrays_of(jaxpr):
    for equation in jaxpr.eqns:
        for variable in (*equation.invars, *equation.outvars):
            yield math.prod(getattr(variable.aval, 'shape', ()))
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from arrays_of(inner)


@pytest.mark.parametrize('q, dim', [(LFQ(18), 18), (FSQ((8,) * 6), 6)])
def test_large_implicit_codebooks_are_never_held(q, dim):
    """2^18 codes: nothing in quantize, its gradient or decode comes near that many numbers."""
    z = jnp.zeros((4, dim))
    run = jax.make_jaxpr(
        jax.grad(lambda z: jnp.sum(q.quantize((), (), z).z_q) + q.quantize((), (), z).loss)
    )
    assert max(arrays_of(run(z).jaxpr)) < q.num_codes // 8
    decode = jax.make_jaxpr(lambda codes: q.decode((), (), codes))(jnp.zeros(4, jnp.int32))
    assert max(arrays_of(decode.jaxpr)) < 1000


def test_lfq_beyond_18_bits_is_bounded_by_its_blocks():
    z = normal(0, 8, 20)
    q = LFQ(20, inv_temperature=1.0)
    blocks = sum(
        float(LFQ(b, inv_temperature=1.0).quantize((), (), part).losses['batch_entropy'])
        for b, part in ((18, z[:, :18]), (2, z[:, 18:]))
    )
    assert float(q.quantize((), (), z).losses['batch_entropy']) == pytest.approx(blocks, rel=1e-5)
