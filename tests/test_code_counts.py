"""`Base.code_counts`: each codebook is counted on its own, whatever the quantizer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vqjax
from vqjax import metrics, ops

LEAF = vqjax.VQEMA(5)
RNG = np.random.default_rng(0)


def by_hand(columns, num):
    """Counts [..., K] of codes [N, ...], a loop over the trailing axes."""
    found = np.zeros((*columns.shape[1:], num))
    for place in np.ndindex(columns.shape[1:]):
        used = columns[(slice(None), *place)]
        found[place] = np.bincount(used[used >= 0], minlength=num)
    return found


@pytest.mark.parametrize(
    'quantizer',
    [
        LEAF,
        vqjax.Residual(LEAF, num_stages=3),
        vqjax.Product(vqjax.Residual(LEAF, num_stages=3), num_groups=2),
    ],
    ids=['leaf', 'residual', 'product of residuals'],
)
def test_a_row_for_each_codebook(quantizer):
    codes = RNG.integers(-1, 5, (4, 6, *quantizer.code_shape))
    expected = by_hand(codes.reshape(-1, *quantizer.code_shape), 5)
    found = quantizer.code_counts(jnp.asarray(codes))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(quantizer.code_counts(codes), expected)  # of NumPy


def test_one_row_for_all_places_that_share_a_codebook():
    quantizer = vqjax.MultiScale(LEAF, scales=(1, 2))
    codes = RNG.integers(-1, 5, (7, 5))
    expected = np.bincount(codes[codes >= 0], minlength=5)
    np.testing.assert_array_equal(quantizer.code_counts(codes), expected)


def test_a_collapsed_stage_shows_where_pooled_counts_hide_it():
    # Stage 1 uses one code, stage 0 all of them: pooled, nearly half of the perplexity is left.
    quantizer = vqjax.Residual(LEAF, num_stages=2)
    codes = jnp.stack([jnp.arange(100) % 5, jnp.zeros(100, jnp.int32)], axis=-1)
    np.testing.assert_allclose(metrics.perplexity(quantizer.code_counts(codes)), [5, 1], rtol=1e-5)
    assert metrics.perplexity(ops.code_counts(codes, 5)) > 2


def test_codes_of_the_first_stages_alone_leave_the_others_at_0():
    quantizer = vqjax.Residual(LEAF, num_stages=3)
    codes = RNG.integers(0, 5, (8, 2))
    counts = quantizer.code_counts(codes)
    np.testing.assert_array_equal(counts[:2], by_hand(codes, 5))
    assert not counts[2].any()


def test_counts_are_summed_over_an_axis():
    quantizer = vqjax.Residual(LEAF, num_stages=2)
    codes = RNG.integers(0, 5, (3, 8, 2))
    counts = jax.vmap(lambda c: quantizer.code_counts(c, 'i'), axis_name='i')(jnp.asarray(codes))
    np.testing.assert_array_equal(counts, np.stack([quantizer.code_counts(codes)] * 3))


def test_other_codes_are_refused():
    with pytest.raises(ValueError, match=r'codes must be \[..., 3\].* got shape \(8, 4\)'):
        vqjax.Residual(LEAF, num_stages=3).code_counts(jnp.zeros((8, 4), jnp.int32))
