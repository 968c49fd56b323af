"""TurboQuant: the figures of arXiv:2504.19874, its levels, and that data does not matter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqjax import TurboQuant
from vqjax.codec import compress, decompress
from vqjax.quantizers.turbo_quant import lloyd_max

D = 256


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def run(num_bits, residual, z, seed=2):
    q = TurboQuant(z.shape[-1], num_bits, residual)
    params, state = q.init(jax.random.key(seed), z)
    return q.quantize(params, state, z)


def test_levels_are_those_of_the_tables():
    """Max 1960, table I."""
    np.testing.assert_allclose(lloyd_max(1), [-0.7980, 0.7980], atol=2e-4)
    np.testing.assert_allclose(lloyd_max(2)[2:], [0.4528, 1.510], atol=5e-4)
    np.testing.assert_allclose(lloyd_max(3)[4:], [0.2451, 0.7560, 1.344, 2.152], atol=5e-4)
    np.testing.assert_allclose(lloyd_max(4)[[8, 15]], [0.1284, 2.733], atol=1e-3)


@pytest.mark.parametrize('num_bits, error', [(1, 0.36), (2, 0.117), (3, 0.03), (4, 0.009)])
def test_the_squared_error_is_the_paper_s(num_bits, error):
    """Theorem 1, of unit vectors; .0345 at 3 bits is Max's own figure, which the paper rounds."""
    rows = normal(0, 400, D)
    # Far from normal: sparse, shifted and of very different lengths. The rotation hides it.
    row = jnp.arange(400)[:, None]
    some = (jnp.arange(D) - 7 * row) % D < 3
    sparse = jnp.where(some, rows + 5, 0.0) * 10.0 ** (row % 7 - 3)
    for z in (rows, sparse):
        out = run(num_bits, False, z)
        found = jnp.mean(jnp.sum((out.z_q - z) ** 2, -1) / jnp.sum(z**2, -1))
        np.testing.assert_allclose(found, {3: 0.0345}.get(num_bits, error), rtol=0.06)


@pytest.mark.parametrize('num_bits', [1, 2, 3, 4])
def test_products_are_unbiased_with_the_residual_bit(num_bits):
    """Theorem 2: right on average, and D times their squared error pi / 2 times that of b - 1 bits.

    That is 1.57, .57, .18 and .054; the paper says 1.57, .56, .18 and .047, from rounded ones.
    """
    z = normal(0, 300, D)
    z /= jnp.linalg.norm(z, axis=-1, keepdims=True)
    error = np.pi / 2 * [1.0, 0.3634, 0.1175, 0.0345][num_bits - 1]
    outs = [run(num_bits, True, z, seed).z_q for seed in range(2)]
    y = normal(10, D, 100)
    found = [jnp.mean(((z_q - z) @ y) ** 2) for z_q in outs]
    np.testing.assert_allclose(np.mean(found) * D / jnp.mean(jnp.sum(y**2, 0)), error, rtol=0.06)
    slopes = [jnp.mean(jnp.sum(z_q * z, -1)) for z_q in outs]
    np.testing.assert_allclose(np.mean(slopes), 1.0, atol=0.01)
    # Without that bit they are too small, by the share of the error.
    plain = jnp.mean(jnp.sum(run(num_bits, False, z).z_q * z, -1))
    np.testing.assert_allclose(plain, 1 - [0.3634, 0.1175, 0.0345, 0.0095][num_bits - 1], atol=0.01)


def test_codes_lengths_and_bits():
    z = jnp.concatenate(
        [normal(0, 5, 8) * 10.0 ** jnp.arange(-12, 13, 6)[:, None], jnp.zeros((1, 8))]
    )
    q = TurboQuant(8, 4)
    params, state = q.init(jax.random.key(0), z)
    out = q.quantize(params, state, z)
    assert q.bits == 15 + 4 * 8 and out.codes.shape == (6, 9)
    lengths, found = (np.linalg.norm(x, axis=-1) for x in (z, out.z_q))
    np.testing.assert_allclose(found[:5], lengths[:5], rtol=0.1)
    assert (np.asarray(out.z_q[5]) == 0).all() and (np.asarray(out.codes[5, 0]) == 0).all()
    codes = np.asarray(out.codes)
    np.testing.assert_array_equal(decompress(q, compress(q, codes, 'fixed')), codes)
    spoiled = codes.copy()
    spoiled[0, 3] = 16
    assert (np.asarray(q.decode(params, state, spoiled)[0]) == 0).all()


def test_what_is_refused():
    for fields in ({'num_bits': 0}, {'num_bits': 9}, {'residual': 1}):
        with pytest.raises(ValueError, match=next(iter(fields))):
            TurboQuant(8, **fields)
    with pytest.raises(ValueError, match='8 features'):
        TurboQuant(8).init(jax.random.key(0), jnp.ones((3, 9)))
