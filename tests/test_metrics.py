"""metrics.py: exact values and known baselines, which no clamp and no padded row may change."""

import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from vqjax import metrics


def confident_model(n, seed=0):
    """Probabilities [n, 10] of a model that is right 97.5% of the time, labels drawn from them."""
    rng = np.random.default_rng(seed)
    # Quantiles and not draws, so that a small set has the same spread of confidence as a large one.
    confidence = rng.permutation(scipy.stats.beta.ppf((np.arange(n) + 0.5) / n, 20, 0.5))
    probs = np.repeat(((1 - confidence) / 9)[:, None], 10, axis=1)
    top = rng.integers(0, 10, n)
    probs[np.arange(n), top] = confidence
    other = (top + rng.integers(1, 10, n)) % 10
    labels = np.where(rng.random(n) < confidence, top, other)
    return probs.astype(np.float32), labels


def test_perplexity_of_one_code_is_one():
    # The "1.03" and "1.06" of sources 0 to 2 were a clamp of the probabilities, not a perplexity.
    for num_codes in (256, 512):
        counts = jnp.zeros(num_codes).at[7].set(320)
        assert metrics.perplexity(counts) == 1.0
        assert metrics.active_codes(counts) == 1
        assert metrics.usage(counts) == 1 / num_codes


def test_perplexity_against_float64():
    counts = np.random.default_rng(0).geometric(0.001, (3, 5000)) - 1
    share = counts / counts.sum(-1, keepdims=True)
    expected = np.exp(-np.sum(share * np.log(np.where(share > 0, share, 1)), -1))
    np.testing.assert_allclose(metrics.perplexity(counts), expected, rtol=1e-5)
    np.testing.assert_array_equal(metrics.active_codes(counts), (counts > 0).sum(-1))


def test_perplexity_of_uniform_counts_is_num_codes_however_large():
    counts = jnp.full(4096, 2_000_000, jnp.int32)  # their int32 sum would overflow
    np.testing.assert_allclose(metrics.perplexity(counts), 4096, rtol=1e-5)


def test_nothing_counted_is_zero_not_nan():
    counts = jnp.zeros((2, 16)).at[0, 3].set(4)
    np.testing.assert_array_equal(metrics.perplexity(counts), [1.0, 0.0])
    np.testing.assert_array_equal(metrics.usage(counts), [1 / 16, 0.0])


def test_uniform_baseline_of_the_published_case():
    use, perplexity = metrics.uniform_baseline(65_536, 64_000)
    assert use == pytest.approx(0.64, abs=0.005)
    assert perplexity / 64_000 == pytest.approx(0.57, abs=0.005)


@pytest.mark.parametrize('num_tokens,num_codes', [(1, 5), (3, 2), (360, 256), (20_000, 64)])
def test_uniform_baseline_against_sampling(num_tokens, num_codes):
    rng = np.random.default_rng(1)
    counts = rng.multinomial(num_tokens, [1 / num_codes] * num_codes, size=4000)
    use, perplexity = metrics.uniform_baseline(num_tokens, num_codes)
    assert use == pytest.approx(float(np.mean(metrics.usage(counts))), rel=0.01)
    entropy = np.log(np.asarray(metrics.perplexity(counts), np.float64)).mean()
    assert perplexity == pytest.approx(math.exp(entropy), rel=0.01)


def test_uniform_baseline_at_its_ends():
    assert metrics.uniform_baseline(0, 8) == (0.0, 0.0)
    assert metrics.uniform_baseline(9, 1) == (1.0, 1.0)
    assert metrics.uniform_baseline(10**9, 1024).perplexity == pytest.approx(1024, rel=1e-5)
    with pytest.raises(ValueError, match='num_codes=0'):
        metrics.uniform_baseline(5, 0)


def test_probability_metrics_by_hand():
    probs = jnp.array([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125]])
    labels = jnp.array([0, 2])
    assert metrics.accuracy(probs, labels) == 0.5
    nll = (math.log(2) + math.log(8)) / 2
    assert metrics.negative_log_likelihood(probs, labels) == pytest.approx(nll, rel=1e-6)
    brier = ((0.25 + 2 * 0.0625) + (0.125**2 + 0.75**2 + 0.875**2)) / 2
    assert metrics.brier_score(probs, labels) == pytest.approx(brier, rel=1e-6)
    # One bin holds .5 (right), one .75 (wrong): (|1 - .5| + |0 - .75|) / 2.
    assert metrics.expected_calibration_error(probs, labels) == pytest.approx(0.625, rel=1e-6)


def test_a_certain_mistake_is_infinitely_unlikely():
    probs = jnp.array([[1.0, 0.0]])
    assert metrics.negative_log_likelihood(probs, jnp.array([1])) == math.inf
    assert metrics.negative_log_likelihood(probs, jnp.array([0])) == 0.0


def test_arrays_of_numpy_and_of_jax_give_the_same():
    probs, labels = confident_model(60)
    padded = np.concatenate([probs, np.full((4, 10), np.nan, np.float32)])
    labels = np.concatenate([labels, np.zeros(4, labels.dtype)])
    mask, counts = np.arange(64) < 60, np.array([[0, 3, 5, 0], [0, 0, 0, 0], [1, 1, 1, 1]])

    def measured(probs, labels, mask, counts):
        of_probs = (
            metrics.accuracy,
            metrics.negative_log_likelihood,
            metrics.brier_score,
            metrics.expected_calibration_error,
            metrics.reliability,
        )
        found = [f(probs, labels, mask=mask) for f in of_probs]
        found += [f(probs[:60], labels[:60]) for f in of_probs]
        return found + [
            f(counts) for f in (metrics.perplexity, metrics.active_codes, metrics.usage)
        ]

    with warnings.catch_warnings():
        warnings.simplefilter('error')
        ours = measured(padded, labels, mask, counts)
    theirs = jax.jit(measured)(padded, labels, mask, counts)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert isinstance(a, np.ndarray | np.generic) and a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_masked_rows_count_nowhere_even_when_nan():
    probs, labels = confident_model(40)
    padded = np.concatenate([probs, np.full((24, 10), np.nan, np.float32)])
    padded_labels = np.concatenate([labels, np.zeros(24, labels.dtype)])
    mask = jnp.arange(64) < 40
    for metric in (
        metrics.accuracy,
        metrics.negative_log_likelihood,
        metrics.brier_score,
        metrics.expected_calibration_error,
    ):
        got = jax.jit(metric)(padded, padded_labels, mask=mask)
        assert got == pytest.approx(float(metric(probs, labels)), rel=1e-5)


def test_reliability_adds_up_to_the_calibration_error():
    probs, labels = confident_model(5000)
    bins = metrics.reliability(probs, labels)
    assert bins.count.shape == (15,) and bins.count.sum() == 5000
    edges = np.arange(16) / 15
    full = np.asarray(bins.count) > 0
    confidence = np.asarray(bins.confidence)[full]
    assert np.all((confidence > edges[:-1][full]) & (confidence <= edges[1:][full]))
    error = jnp.sum(bins.count * jnp.abs(bins.accuracy - bins.confidence)) / 5000
    assert error == pytest.approx(
        float(metrics.expected_calibration_error(probs, labels)), abs=1e-6
    )


@pytest.mark.parametrize('n,expected', [(360, 0.012), (10_000, 0.0023)])
def test_a_calibrated_model_scores_what_its_size_lets_it(n, expected):
    probs, labels = confident_model(n)
    band = metrics.calibration_band(probs)
    assert band.mean == pytest.approx(expected, rel=0.15)
    assert band.low < band.mean < band.high
    assert band.low <= metrics.expected_calibration_error(probs, labels) <= band.high


def test_an_overconfident_model_lies_outside_the_band():
    probs, labels = confident_model(2000)
    sharp = probs**2 / (probs**2).sum(-1, keepdims=True)
    wrong = np.where(np.arange(2000) % 8 == 0, (labels + 1) % 10, labels)
    band = metrics.calibration_band(sharp)
    assert metrics.expected_calibration_error(sharp, wrong) > 2 * band.high


def test_calibration_band_ignores_masked_rows():
    probs, _ = confident_model(300)
    padded = np.concatenate([probs, np.full((100, 10), np.nan, np.float32)])
    band = metrics.calibration_band(padded, mask=jnp.arange(400) < 300)
    assert band.mean == pytest.approx(float(metrics.calibration_band(probs).mean), rel=0.1)


def test_wilson_interval():
    # 0 of 10: 0 to z^2 / (n + z^2) = 3.8415 / 13.8415.
    assert metrics.wilson_interval(0, 10) == pytest.approx((0, 0, 0.27753), abs=1e-5)
    assert metrics.wilson_interval(10, 10) == pytest.approx((1, 0.72247, 1), abs=1e-5)
    assert metrics.wilson_interval(50, 100) == pytest.approx((0.5, 0.40383, 0.59617), abs=1e-5)
    with pytest.raises(ValueError, match='successes=3'):
        metrics.wilson_interval(3, 2)
