"""Noise of sampled codes: its distribution, its independence, and that it is tied to the place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vqjax import ops

ROWS, CODES = 4096, 256
# Bounds are those of probability 1e-4 under the null: the seeds are fixed, nothing is flaky.
LEAST = 1e-4


@pytest.fixture(scope='module')
def numbers():
    """Uniform numbers [key, row, code] of two keys that differ by one."""
    draw = jax.jit(ops.uniform_noise, static_argnums=2)
    places = jnp.arange(ROWS)
    return np.stack([draw(jax.random.key(seed), places, CODES) for seed in (6, 7)])


def _uniform(counts):
    return stats.chisquare(counts).pvalue


def test_numbers_are_uniform_inside_the_unit_interval(numbers):
    assert numbers.min() > 0 and numbers.max() < 1
    assert stats.kstest(numbers.ravel(), 'uniform').pvalue > LEAST
    # The low bits too: the fractions left by the first eight.
    assert stats.kstest((numbers.ravel() * 256) % 1, 'uniform').pvalue > LEAST
    for moment in (1, 2, 3, 4):
        error = np.sqrt((1 / (2 * moment + 1) - 1 / (moment + 1) ** 2) / numbers.size)
        mean = np.mean(numbers.astype(np.float64) ** moment)
        assert abs(mean - 1 / (moment + 1)) < 4 * error


@pytest.mark.parametrize(
    'one, other',
    [
        (np.s_[:, :, :-1], np.s_[:, :, 1:]),
        (np.s_[:, :, :-2], np.s_[:, :, 2:]),
        (np.s_[:, :-1], np.s_[:, 1:]),
        (np.s_[:, :-64], np.s_[:, 64:]),
        (np.s_[0], np.s_[1]),
        (np.s_[0, :-1, 1:], np.s_[1, 1:, :-1]),
    ],
    ids=['next code', 'second next code', 'next row', '64th next row', 'next key', 'all three'],
)
def test_neighbours_are_independent(numbers, one, other):
    a, b = numbers[one].ravel(), numbers[other].ravel()
    high = (a * 16).astype(int) * 16 + (b * 16).astype(int)
    assert _uniform(np.bincount(high, minlength=256)) > LEAST
    low = ((a * 4096) % 16).astype(int) * 16 + ((b * 4096) % 16).astype(int)
    assert _uniform(np.bincount(low, minlength=256)) > LEAST


def test_rows_share_no_numbers(numbers):
    """Streams that overlapped would repeat: 2^23 values, as many repetitions as chance gives."""
    n, values = numbers.size, 2**23
    empty = np.exp(-n / values)
    expected = values * (1 - empty)
    deviation = np.sqrt(values * empty * (1 - (1 + n / values) * empty))
    assert abs(len(np.unique(numbers)) - expected) < 4 * deviation


def test_gumbel_noise_draws_codes_by_their_logits():
    noise = np.asarray(ops.gumbel_noise(jax.random.key(1), jnp.arange(16 * ROWS), 16))
    assert stats.kstest(noise.ravel(), stats.gumbel_r.cdf).pvalue > LEAST
    logits = np.linspace(-3, 3, 16)
    counts = np.bincount((logits + noise).argmax(-1), minlength=16)
    p = np.exp(logits) / np.exp(logits).sum()
    assert stats.chisquare(counts, p * counts.sum()).pvalue > LEAST


@pytest.mark.parametrize('implementation', [None, 'rbg'])
def test_noise_belongs_to_the_place_and_the_code(implementation):
    """Whatever rows stand beside it, and however many codes there are."""
    key = jax.random.key(2, impl=implementation)
    places = jnp.asarray([5, 0, 70_000, 5])
    noise = np.asarray(ops.uniform_noise(key, places, 8))
    alone = np.asarray(ops.uniform_noise(key, places[2:3], 12))
    np.testing.assert_array_equal(noise[2], alone[0, :8])
    np.testing.assert_array_equal(noise[0], noise[3])
    assert (noise[0] != noise[1]).all()
