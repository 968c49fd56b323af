"""FSP, FSQ's perturbation and other grids: arrays of vector-quantize-pytorch, and properties.

`goldens/make_grids.py` wrote the arrays.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from support import golden

from vqjax import (
    FSP,
    FSQ,
    LFQ,
    BinaryMapper,
    Clamped,
    GumbelSoftmax,
    Product,
    Residual,
    Rotated,
    ops,
)
from vqjax.codec.packing import pack
from vqjax.quantizers import BinaryMapperParams, RotatedState


@functools.cache
def case(name):
    arrays = golden('scalar_grids').items()
    return {key.split(':')[1]: x for key, x in arrays if key.startswith(f'{name}:')}


def check_case(q, params, state, name):
    """Codes equal, vectors, loss and the gradient to z close to the golden's."""
    g = case(name)

    def objective(z):
        out = q.quantize(params, state, z)
        return jnp.vdot(out.z_q, g['cotangent']) + out.loss, out

    z_grad, out = jax.jit(jax.grad(objective, has_aux=True))(g['z'])
    np.testing.assert_array_equal(np.asarray(out.codes), g['codes'])
    np.testing.assert_allclose(out.z_q, g['z_q'], rtol=1e-5, atol=1e-5)
    # The variances that it aims at are rounded to four figures.
    np.testing.assert_allclose(out.loss, g['loss'], rtol=5e-4, atol=1e-6)
    np.testing.assert_allclose(z_grad, g['z_grad'], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(q.decode(params, state, g['codes']), g['z_q'], rtol=1e-5, atol=1e-5)


FSPS = {
    'fsp_tanh': {},
    'fsp_sigmoid': {'bound': 'sigmoid', 'inverse': True},
    # The library's targets for the fourth moment are those of a normal distribution.
    'fsp_normal': {'bound': 'erf', 'skewness': 0.06, 'kurtosis': 0.05},
    'fsp_laplace': {'bound': 'laplace'},
    'fsp_cauchy': {'bound': 'cauchy', 'inverse': True, 'mean': 0.0, 'variance': 0.0},
}


@pytest.mark.parametrize('name', FSPS)
def test_fsp_of_vector_quantize_pytorch(name):
    check_case(FSP((5, 4, 2, 7), perturbed=0.0, **FSPS[name]), (), (), name)


@pytest.mark.parametrize('symmetric', [False, True])
def test_hard_clamp_of_vector_quantize_pytorch(symmetric):
    name = 'fsq_clamp_symmetric' if symmetric else 'fsq_clamp'
    levels = (5, 4, 3, 2 if symmetric else 8)
    check_case(FSQ(levels, symmetric=symmetric, bound='clamp'), (), (), name)


def test_rotated_grids_of_vector_quantize_pytorch():
    g = case('fsq_rotated')
    check_case(Rotated(FSQ((5,) * 4)), (), RotatedState(g['rotation'], ()), 'fsq_rotated')
    q = LFQ(6, inv_temperature=1.5)
    state = RotatedState(case('lfq_rotated')['rotation'], ())
    check_case(Rotated(q), (), state, 'lfq_rotated')


def test_a_rotation_spreads_a_large_feature_over_all():
    """One feature of 100 times the variance of 15 others, which a grid of 16 bits would lose."""
    scale = jnp.ones(16).at[3].set(10.0)
    z = scale * jax.random.normal(jax.random.key(0), (2000, 16))
    z /= jnp.std(z)
    spread = {}
    for q in (LFQ(16), Rotated(LFQ(16))):
        params, state = q.init(jax.random.key(1), z)
        out = q.quantize(params, state, z)
        # The best scale for all of the signs.
        factor = jnp.sum(out.z_q * z) / jnp.sum(out.z_q**2)
        spread[type(q)] = float(jnp.mean((factor * out.z_q - z) ** 2) / jnp.mean(z**2))
    assert spread[Rotated] < 0.6 < 0.75 < spread[LFQ]


def test_residual_lfq_with_a_soft_clamp_of_vector_quantize_pytorch():
    g = case('residual_lfq_clamped')
    q = Residual(Clamped(LFQ(6), 1.5), 3, scale=0.5)
    out = q.quantize((), (), g['z'])
    np.testing.assert_array_equal(out.codes, g['codes'])
    np.testing.assert_allclose(out.z_q, g['z_q'], atol=1e-6)


@pytest.mark.parametrize('spherical', [False, True])
def test_codebook_scale_of_vector_quantize_pytorch(spherical):
    q = LFQ(6, inv_temperature=1.5, spherical=spherical, scale=0.5)
    check_case(q, (), (), 'lfq_scale_spherical' if spherical else 'lfq_scale')


@pytest.mark.parametrize('first_bit', ['most', 'least'])
def test_64_bits_are_several_codes(first_bit):
    """Codes of 16 bits are those of four quantizers of 16 features; of 1 bit, the signs."""
    z = jax.random.normal(jax.random.key(0), (50, 64))
    q = LFQ(64, first_bit=first_bit, bits_per_code=16)
    out = q.quantize((), (), z)
    assert q.code_shape == (4,) and q.bits == 64 and q.num_codes == 2**16
    small = LFQ(16, first_bit=first_bit)
    parts = [small.quantize((), (), part).codes for part in jnp.split(z, 4, axis=-1)]
    np.testing.assert_array_equal(out.codes, jnp.stack(parts, axis=-1))
    np.testing.assert_array_equal(out.z_q, jnp.sign(z))
    assert pack(q, np.asarray(out.codes)).size == 50 * 64 // 8

    by_bit = LFQ(64, first_bit=first_bit, bits_per_code=1)
    signs = by_bit.quantize((), (), z)
    np.testing.assert_array_equal(signs.codes, z > 0)
    np.testing.assert_array_equal(by_bit.decode((), (), signs.codes), out.z_q)
    # Codes are a way to write the bits: the loss is the same.
    assert float(signs.loss) == float(out.loss)
    some = q.decode((), (), out.codes.at[:, 1].set(-1).at[:, 2].set(2**16))
    np.testing.assert_array_equal(some, out.z_q.at[:, 16:48].set(0))


def test_codes_beyond_30_bits_are_as_long_as_they_can_be():
    q = LFQ(64)
    assert q.code_shape == (3,) and q.code_sizes.tolist() == [2**30, 2**30, 2**4]
    assert LFQ(30).code_shape == () and LFQ(30).code_sizes.shape == ()
    z = jax.random.normal(jax.random.key(0), (20, 64))
    out = q.quantize((), (), z, mask=jnp.arange(20) > 3)
    assert (out.codes[:4] == -1).all() and (out.codes[4:] >= 0).all()
    np.testing.assert_array_equal(q.decode((), (), out.codes), out.z_q)


def test_binary_mapper_of_vector_quantize_pytorch():
    """Its one-hot vectors times a codebook are the vectors of that codebook."""
    codebook = case('binary_mapper')['codebook']
    params = BinaryMapperParams(jnp.eye(4), jnp.zeros(4), jnp.asarray(codebook))
    check_case(BinaryMapper(4, free_bits=0.5), params, (), 'binary_mapper')


def test_bits_are_drawn_with_their_probabilities():
    q = BinaryMapper(3)
    logits = jnp.array([-2.0, 0.0, 1.0])
    params = BinaryMapperParams(jnp.eye(3), jnp.zeros(3), jnp.ones((8, 3)))
    z = jnp.broadcast_to(logits, (20_000, 3))
    codes = np.asarray(q.quantize(params, (), z, key=jax.random.key(0)).codes)
    p = 1 / (1 + np.exp(-np.float64(logits)))
    bits = np.arange(8)[:, None] >> np.arange(3) & 1
    expected = len(z) * np.prod(np.where(bits, p, 1 - p), axis=-1)
    assert stats.chisquare(np.bincount(codes, minlength=8), expected).pvalue > 1e-4


@pytest.mark.parametrize(
    'name, variance',
    [('tanh', np.pi**2 / 12), ('ifsq', 1.2851), ('sigmoid', np.pi**2 / 3), ('erf', 1),
     ('laplace', 2), ('clamp', 1 / 3)],
)  # fmt: skip
def test_a_bound_makes_its_own_distribution_uniform(name, variance):
    """Moments of the distribution by integrating over its quantiles."""
    bound = ops.BOUNDS[name]
    u = (np.arange(200_000) + 0.5) / 200_000
    x = np.asarray(ops.inverse_bound(bound, jnp.asarray(2 * u - 1, jnp.float32)), np.float64)
    assert np.abs((np.asarray(bound(jnp.asarray(x, jnp.float32))) + 1) / 2 - u).max() < 1e-5
    kurtosis = np.mean(x**4) / np.mean(x**2) ** 2 - 3
    assert ops.MOMENTS[bound] == pytest.approx((np.mean(x**2), kurtosis), rel=0.01, abs=0.01)
    assert ops.MOMENTS[bound][0] == pytest.approx(variance, rel=1e-3)


@pytest.mark.parametrize('inverse', [False, True])
def test_noise_is_uniform_within_a_bin(inverse):
    """With a key u moves by less than half a bin, uniformly, and codes are those without."""
    levels = (4, 7)
    q = FSP(levels, inverse=inverse)
    z = jax.random.normal(jax.random.key(0), (4000, 2))
    out = q.quantize((), (), z, key=jax.random.key(1))
    np.testing.assert_array_equal(out.codes, q.quantize((), (), z).codes)

    def share(values):
        values = np.tanh(np.float64(values)) if inverse else np.float64(values) / np.sqrt(3)
        return (values + 1) / 2

    before = (np.tanh(np.float64(z)) + 1) / 2
    moved = (share(out.z_q) - before) * levels
    assert np.abs(moved).max() < 0.5 + 1e-4
    # Where no move could leave (0, 1), all of them are taken.
    middle = np.abs(before - 0.5) < 0.5 - 0.5 / np.array(levels)
    assert stats.kstest(moved[middle] + 0.5, 'uniform').pvalue > 1e-4
    assert ((share(out.z_q) > 0) & (share(out.z_q) < 1)).all()


@pytest.mark.parametrize(
    'q', [FSP((4, 7), perturbed=0.25), FSQ((5, 7), perturbed=0.25),
          FSQ((5, 7), symmetric=True, perturbed=0.25)], ids=repr,
)  # fmt: skip
def test_a_share_of_features_is_perturbed(q):
    """A quarter of the features, chosen one by one; the others are decode(codes)."""
    # Nothing near the ends, where a moved value is cut off at the last level.
    z = 0.2 * jax.random.normal(jax.random.key(0), (8000, 2))
    out = q.quantize((), (), z, key=jax.random.key(1))
    other = np.asarray(out.z_q != q.decode((), (), out.codes))
    assert np.abs(other.mean(0) - 0.25).max() < 4 * np.sqrt(0.25 * 0.75 / 8000)
    assert abs(other.all(-1).mean() - 0.25**2) < 4 * np.sqrt(0.0625 * 0.9375 / 8000)
    np.testing.assert_array_equal(out.codes, q.quantize((), (), z).codes)
    plain = q.quantize((), (), z)
    np.testing.assert_array_equal(plain.z_q, q.decode((), (), plain.codes))


@pytest.mark.parametrize('symmetric', [False, True])
def test_fsq_takes_noise_of_one_level_in_place_of_rounding(symmetric):
    """b(z) + U(-1/2, 1/2) levels, kept within the grid (2411.19842 section 3.2)."""
    q = FSQ((5, 9), symmetric=symmetric, perturbed=1.0)
    z = 0.3 * jax.random.normal(jax.random.key(0), (4000, 2))
    z_q = np.float64(q.quantize((), (), z, key=jax.random.key(1)).z_q)
    half = np.array([2, 4])  # one level is 1 / half
    bounded = np.tanh(np.float64(z)) * (1 if symmetric else 1.001)
    moved = (z_q - bounded) * half
    assert stats.kstest(moved.ravel() + 0.5, 'uniform').pvalue > 1e-4
    far = q.quantize((), (), 9 * jnp.sign(z), key=jax.random.key(1)).z_q
    assert np.abs(far).max() <= 1


def test_the_gradient_is_that_of_the_perturbed_value():
    """By finite differences with the noise held: no estimator is needed."""
    q = FSP((4, 7))
    z = 0.3 * jax.random.normal(jax.random.key(0), (40, 2))

    def total(z):
        return jnp.sum(jnp.sin(q.quantize((), (), z, key=jax.random.key(1)).z_q))

    direction = jax.random.normal(jax.random.key(2), z.shape)
    slope = jnp.vdot(jax.grad(total)(z), direction)
    step = 1e-2
    difference = (total(z + step * direction) - total(z - step * direction)) / (2 * step)
    np.testing.assert_allclose(slope, difference, rtol=1e-2)


def test_bins_are_used_alike_by_features_of_the_bound_s_distribution():
    """Bins of equal probability: normal features under erf, where FSQ's tanh fills its ends."""
    z = jax.random.normal(jax.random.key(0), (50_000, 1))

    def perplexity(q):
        p = np.bincount(np.asarray(q.quantize((), (), z).codes), minlength=8) / len(z)
        return np.exp(-np.sum(p * np.log(p)))

    assert perplexity(FSP((8,), bound='erf', perturbed=0.0)) > 7.99
    assert perplexity(FSQ((8,))) < 7.9


def test_what_perturbs_stands_in_no_stage_and_other_fields_are_refused():
    nested = Product(GumbelSoftmax(4, hard=False), 2)
    for q in (FSP((5,) * 4), FSQ((5,) * 4, perturbed=0.5), nested):
        with pytest.raises(ValueError, match='cannot stand in Residual: in training its z_q is no'):
            Residual(q, 2)
    q = Residual(FSP((5,) * 4, perturbed=0.0), 3)
    z = 0.5 * jax.random.normal(jax.random.key(0), (200, 4))
    params, state = q.init(jax.random.key(0), z)
    errors = jnp.linalg.norm(q.stage_vectors(params, state, q.quantize(params, state, z).codes)
                             .cumsum(0) - z, axis=(1, 2))  # fmt: skip
    assert errors[1] < 0.4 * errors[0] and errors[2] < 0.4 * errors[1]
    with pytest.raises(ValueError, match='variance must be 0 with bound=cauchy'):
        FSP((5,), bound='cauchy')
    with pytest.raises(ValueError, match='perturbed must be a share from 0 to 1, got 2'):
        FSQ((5,), perturbed=2)
    with pytest.raises(ValueError, match=r'noise must be 0 where perturbed=0.5 is not, got 1.0'):
        FSQ((5,), perturbed=0.5, noise=1.0)
