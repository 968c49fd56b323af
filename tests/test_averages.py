"""Averages of a codebook in parts: weights of codes, and one update after several micro-batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import golden_case

from vqjax import VQ, VQEMA, Product, Residual, ops
from vqjax.quantizers import VQEMAState, blend_codes


def close(got, expected):
    np.testing.assert_allclose(np.asarray(got), expected, rtol=1e-5, atol=1e-5)


def before(g):
    return VQEMAState(*(jnp.asarray(g[name]) for name in ('counts0', 'sums0')), jnp.int32(0))


def check_after(q, state, g):
    close(state.counts, g['counts'])
    close(state.sums, g['sums'])
    close(q.read_codebook((), state), g['codebook'])


def test_weights_of_codes_are_the_peer_s():
    g = golden_case('codebooks', 'weights_of_codes')
    q, state, z = VQEMA(8, decay=0.8, revival=None), before(g), g['z'][0]
    codes = q.quantize((), state, z).codes
    assert (np.asarray(codes) == g['codes'][0]).all()
    check_after(q, blend_codes(state, q.update((), state, z, codes), g['weights']), g)


def test_one_update_after_micro_batches_is_the_peer_s():
    g = golden_case('codebooks', 'accumulated')
    q, state = VQEMA(8, decay=0.8, revival=None), before(g)
    assert (np.asarray(q.quantize((), state, g['z']).codes) == g['codes']).all()
    check_after(q, q.update((), state, g['z'], g['codes']), g)


EAGER = ops.Revival(below=0.9, every=1)


@pytest.mark.parametrize(
    'q',
    [
        VQEMA(8, revival=EAGER),
        Residual(VQ(8, revival=EAGER), 2),
        Product(Residual(VQEMA(4, revival=EAGER), 2, shared=True), 2),
    ],
    ids=repr,
)
def test_one_update_after_micro_batches_is_that_of_the_whole_batch(q):
    """z and codes of each micro-batch as they come out of a scan, revival and mask included."""
    whole = jnp.round(4 * jax.random.normal(jax.random.key(0), (6, 16, 8)))
    mask = jax.random.bernoulli(jax.random.key(1), 0.8, (6, 16))
    params, state = q.init(jax.random.key(2), whole)

    def micro_batch(_, inputs):
        z, mask = inputs
        return None, (z, q.quantize(params, state, z, mask=mask).codes)

    masks = mask.reshape(3, 2, 16)
    _, (z, codes) = jax.lax.scan(micro_batch, None, (whole.reshape(3, 2, 16, 8), masks))
    after = q.update(params, state, z, codes, jax.random.key(3), masks)
    codes = q.quantize(params, state, whole, mask=mask).codes
    expected = q.update(params, state, whole, codes, jax.random.key(3), mask)
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_a_weight_of_0_freezes_a_code_and_1_does_nothing():
    q = Residual(VQEMA(8), 2)
    z = jax.random.normal(jax.random.key(0), (64, 4))
    _, state = q.init(jax.random.key(1), z)
    after = q.update((), state, 2 * z, q.quantize((), state, 2 * z).codes)
    weights = jnp.ones((2, 8)).at[1, 3].set(0.0)
    blended = blend_codes(state, after, weights)
    for old, new, got in zip(state[:2], after[:2], blended[:2], strict=True):
        np.testing.assert_array_equal(np.asarray(got[1, 3]), np.asarray(old[1, 3]))
        close(got[0], new[0])
    close(blend_codes(state, after, jnp.ones(8)).sums, after.sums)
    with pytest.raises(ValueError, match='weights must be of shape .8,., one for each code'):
        blend_codes(state, after, jnp.ones(7))
