"""Numbers from counts, codes and probabilities.

Perplexity, usage and calibration error of a split are not the means over its batches: give these
functions the counts or the probabilities of the whole split. 0 log 0 is 0, nothing is clamped.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vqjax.ops.serialization import exported

# Numbers: an array, or lists of them.
ArrayLike = Array | np.ndarray | Sequence[Any]


@exported
class Interval(NamedTuple):
    """A mean with the low and high end of its 95% interval."""

    mean: float
    low: float
    high: float


@exported
class Reliability(NamedTuple):
    """Mean confidence, accuracy and examples of each confidence bin, float32 [num_bins] each."""

    confidence: Array
    accuracy: Array
    count: Array  # type: ignore[assignment]


@exported
class UniformBaseline(NamedTuple):
    """What a uniform source shows: expected usage (0 to 1) and perplexity (1 to K)."""

    usage: float
    perplexity: float


# Codes: counts [..., K], any number dtype, leading axes are stages or groups.


def perplexity(counts: ArrayLike) -> Array:
    """Exponential of the entropy of counts [..., K] -> float32 [...], 1 to K; 0 for no counts."""
    counts = jnp.asarray(counts, jnp.float32)
    total = counts.sum(-1, keepdims=True)
    share = counts / jnp.where(total > 0, total, 1.0)
    entropy = jax.scipy.special.entr(share).sum(-1)
    return jnp.where(total[..., 0] > 0, jnp.exp(entropy), 0.0)


def active_codes(counts: ArrayLike) -> Array:
    """Number of codes of counts [..., K] used at least once -> int32 [...]."""
    return (jnp.asarray(counts) > 0).sum(-1, dtype=jnp.int32)


def usage(counts: ArrayLike) -> Array:
    """Share of the K codes of counts [..., K] used at least once -> float32 [...], 0 to 1."""
    counts = jnp.asarray(counts)
    return active_codes(counts) / counts.shape[-1]


def uniform_baseline(num_tokens: int, num_codes: int) -> UniformBaseline:
    """Usage and perplexity to expect of `num_tokens` tokens drawn uniformly from `num_codes` codes.

    What a measured usage is read against: 65,536 tokens reach only .64 of 64,000 codes. Usage is
    the exact expectation; perplexity is exp of the exact expectation of the empirical entropy.

    Raises:
        ValueError: num_tokens below 0 or num_codes below 1.
    """
    if num_tokens < 0 or num_codes < 1:
        raise ValueError(f'num_tokens={num_tokens}, num_codes={num_codes}: need at least 0 and 1')
    if num_tokens == 0:
        return UniformBaseline(0.0, 0.0)
    if num_codes == 1:
        return UniformBaseline(1.0, 1.0)
    n, p = num_tokens, 1.0 / num_codes
    spread = 12.0 * math.sqrt(n * p * (1 - p)) + 40.0  # the binomial mass beyond it is below 1e-15
    c = np.arange(max(0, int(n * p - spread)), min(n, int(n * p + spread)) + 1, dtype=np.float64)
    # Log of Binomial(c; n, p) but for a constant, by ratios of neighbours: no factorials.
    log_ratio = np.log((n - c[:-1]) / c[1:]) + math.log(p) - math.log1p(-p)
    log_mass = np.concatenate([[0.0], np.cumsum(log_ratio)])
    mass = np.exp(log_mass - log_mass.max())
    mass /= mass.sum()
    share = c / n
    entropy = num_codes * np.sum(mass * share * -np.log(np.where(c > 0, share, 1.0)))
    return UniformBaseline(-math.expm1(n * math.log1p(-p)), math.exp(entropy))


# Probabilities: probs [N, C] float, labels [N] int, mask [N] bool (True = real).


def _masked_mean(values: Array, mask: Array | None) -> Array:
    if mask is None:
        return values.mean()
    # `where` and not a product: a padded row may hold anything, NaN included.
    return jnp.where(mask, values, 0.0).sum() / mask.sum()


def _of_label(probs: Array, labels: Array) -> Array:
    return jnp.take_along_axis(probs, labels[:, None], axis=-1)[:, 0]


def accuracy(probs: Array, labels: Array, mask: Array | None = None) -> Array:
    """Share of rows of probs [N, C] whose largest entry is at labels [N] -> float32 [], 0 to 1."""
    hit = jnp.argmax(probs, axis=-1) == labels
    return _masked_mean(hit.astype(jnp.float32), mask)


def negative_log_likelihood(probs: Array, labels: Array, mask: Array | None = None) -> Array:
    """Mean of -log probs[label] in nats -> float32 []; inf where a label has probability 0."""
    probs = jnp.asarray(probs, jnp.float32)
    return _masked_mean(-jnp.log(_of_label(probs, labels)), mask)


def brier_score(probs: Array, labels: Array, mask: Array | None = None) -> Array:
    """Mean squared distance of probs [N, C] from the one-hot labels -> float32 [], 0 to 2."""
    probs = jnp.asarray(probs, jnp.float32)
    one_hot = jax.nn.one_hot(labels, probs.shape[-1])
    return _masked_mean(jnp.square(probs - one_hot).sum(-1), mask)


def _bins(confidence: Array, num_bins: int) -> Array:
    # Equal bins (i/n, (i+1)/n], the first closed on both sides.
    return jnp.clip(jnp.ceil(confidence * num_bins).astype(jnp.int32) - 1, 0, num_bins - 1)


def _calibration_error(confidence: Array, hit: Array, weight: Array, num_bins: int) -> Array:
    # sum_b n_b/n |acc_b - conf_b| needs only the sum of (hit - confidence) in each bin.
    gap = jax.ops.segment_sum(weight * (hit - confidence), _bins(confidence, num_bins), num_bins)
    return jnp.abs(gap).sum() / weight.sum()


def _confidence(probs: Array, mask: Array | None) -> tuple[Array, Array]:
    confidence = jnp.asarray(probs, jnp.float32).max(-1)
    if mask is None:
        return confidence, jnp.ones_like(confidence)
    return jnp.where(mask, confidence, 0.0), jnp.asarray(mask, jnp.float32)


def reliability(
    probs: Array, labels: Array, num_bins: int = 15, mask: Array | None = None
) -> Reliability:
    """Confidence max(probs) against accuracy in equal bins -> Reliability; empty bins read 0."""
    confidence, weight = _confidence(probs, mask)
    hit = (jnp.argmax(probs, axis=-1) == labels).astype(jnp.float32)
    index = _bins(confidence, num_bins)
    count, conf_sum, hit_sum = (
        jax.ops.segment_sum(weight * v, index, num_bins)
        for v in (jnp.ones_like(confidence), confidence, hit)
    )
    size = jnp.maximum(count, 1.0)
    return Reliability(conf_sum / size, hit_sum / size, count)


def expected_calibration_error(
    probs: Array, labels: Array, num_bins: int = 15, mask: Array | None = None
) -> Array:
    """Mean distance of accuracy from confidence in equal bins -> float32 [], 0 to 1.

    Guo et al. 2017, arXiv:1706.04599, eq. 3. Biased upwards on small sets: read it beside
    `calibration_band`.
    """
    confidence, weight = _confidence(probs, mask)
    hit = (jnp.argmax(probs, axis=-1) == labels).astype(jnp.float32)
    return _calibration_error(confidence, hit, weight, num_bins)


def calibration_band(
    probs: Array,
    num_bins: int = 15,
    mask: Array | None = None,
    num_samples: int = 500,
    key: Array | None = None,
) -> Interval:
    """The calibration error that a perfectly calibrated model with these confidences would show.

    Its labels are drawn from its own probabilities, `num_samples` times.

    Args:
        probs: float [N, C].
        num_bins: bins of the calibration error.
        mask: bool [N], True = real.
        num_samples: how many label sets are drawn.
        key: of the draws; the same fixed one where None, so that a report is reproducible.

    Returns:
        Interval of float32 []: mean, 2.5% and 97.5% quantile.
    """
    confidence, weight = _confidence(probs, mask)
    key = jax.random.key(0) if key is None else key

    def one(key):
        hit = jax.random.uniform(key, confidence.shape) < confidence
        return _calibration_error(confidence, hit.astype(jnp.float32), weight, num_bins)

    # One draw at a time: num_samples x N numbers need not be in memory.
    errors = jax.lax.map(one, jax.random.split(key, num_samples), batch_size=16)
    low, high = jnp.quantile(errors, jnp.array([0.025, 0.975]))
    return Interval(errors.mean(), low, high)


# Runs: one number a seed.


def bootstrap_interval(values: Sequence[float], num_samples: int = 10_000) -> Interval:
    """Mean of values [n] with its bootstrap 95% percentile interval, always the same draws.

    Raises:
        ValueError: no values.
    """
    numbers = np.asarray(values, np.float64)
    if numbers.size == 0:
        raise ValueError('values is empty: an interval needs at least one seed')
    draws = np.random.default_rng(0).integers(0, numbers.size, (num_samples, numbers.size))
    low, high = np.quantile(numbers[draws].mean(-1), [0.025, 0.975])
    return Interval(float(numbers.mean()), float(low), float(high))


def wilson_interval(successes: int, trials: int) -> Interval:
    """Share successes / trials with its 95% interval (Wilson 1927), sound for 0 of n too.

    Raises:
        ValueError: trials below 1, or successes outside 0 to trials.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(
            f'successes={successes}, trials={trials}: need 0 <= successes <= trials >= 1'
        )
    z = 1.959963984540054  # the 97.5% point of the standard normal
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = (
        z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials**2))
    )
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))
