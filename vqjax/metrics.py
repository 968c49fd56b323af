"""Numbers from counts, codes and probabilities; those of images are in `vqjax.image_quality`.

Perplexity, usage and calibration error of a split are not the means over its batches: give these
functions the counts or the probabilities of the whole split. 0 log 0 is 0, nothing is clamped.

Arrays of NumPy are computed with NumPy and compile nothing; arrays of JAX with JAX, also under jit.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jax import Array

from vqjax.image_quality import frechet_distance as frechet_distance
from vqjax.image_quality import perceptual_distance as perceptual_distance
from vqjax.image_quality import psnr as psnr
from vqjax.image_quality import ssim as ssim
from vqjax.ops.numpy_or_jax import numpy_of
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
    """Exponential of the entropy of counts [..., K] -> float32 [...], 1 to K; 0 for no counts.

    `quantizer.code_counts(codes)` gives the counts of each stage or group on its own.
    """
    xp = numpy_of(counts)
    counts = xp.asarray(counts, xp.float32)
    total = counts.sum(-1, keepdims=True)
    share = counts / xp.where(total > 0, total, xp.float32(1))
    entr = jax.scipy.special.entr if xp is jnp else scipy.special.entr
    return xp.where(total[..., 0] > 0, xp.exp(entr(share).sum(-1)), xp.float32(0))


def active_codes(counts: ArrayLike) -> Array:
    """Number of codes of counts [..., K] used at least once -> int32 [...]."""
    xp = numpy_of(counts)
    return (xp.asarray(counts) > 0).sum(-1, dtype=xp.int32)


def usage(counts: ArrayLike) -> Array:
    """Share of the K codes of counts [..., K] used at least once -> float32 [...], 0 to 1."""
    xp = numpy_of(counts)
    return active_codes(counts).astype(xp.float32) / xp.float32(np.shape(counts)[-1])


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
    xp = numpy_of(values, mask)
    # `where` and not a product: a padded row may hold anything, NaN included.
    return xp.where(mask, values, xp.float32(0)).sum() / xp.asarray(mask).sum(dtype=xp.float32)


def _float32(probs: Array, *others: Array | None) -> tuple[Any, Array]:
    """What computes with all of these, and probs as float32."""
    xp = numpy_of(probs, *others)
    return xp, xp.asarray(probs, xp.float32)


def accuracy(probs: Array, labels: Array, mask: Array | None = None) -> Array:
    """Share of rows of probs [N, C] whose largest entry is at labels [N] -> float32 [], 0 to 1."""
    xp, probs = _float32(probs, labels, mask)
    return _masked_mean((xp.argmax(probs, axis=-1) == labels).astype(xp.float32), mask)


def negative_log_likelihood(probs: Array, labels: Array, mask: Array | None = None) -> Array:
    """Mean of -log probs[label] in nats -> float32 []; inf where a label has probability 0."""
    xp, probs = _float32(probs, labels, mask)
    of_label = xp.take_along_axis(probs, xp.asarray(labels)[:, None], axis=-1)[:, 0]
    with np.errstate(divide='ignore'):
        return _masked_mean(-xp.log(of_label), mask)


def brier_score(probs: Array, labels: Array, mask: Array | None = None) -> Array:
    """Mean squared distance of probs [N, C] from the one-hot labels -> float32 [], 0 to 2."""
    xp, probs = _float32(probs, labels, mask)
    one_hot = xp.asarray(labels)[:, None] == xp.arange(probs.shape[-1])
    return _masked_mean(xp.square(probs - one_hot.astype(xp.float32)).sum(-1), mask)


def _bin_sums(confidence: Array, values: Array, num_bins: int) -> Array:
    """Sums of values [N] in equal bins (i/n, (i+1)/n] of confidence, the first from 0 on."""
    xp = numpy_of(confidence, values)
    with np.errstate(invalid='ignore'):  # NaN falls into the first bin, as JAX has it
        bins = xp.ceil(confidence * num_bins).astype(xp.int32) - 1
    bins = xp.clip(bins, 0, num_bins - 1)
    if xp is jnp:
        return jax.ops.segment_sum(values, bins, num_bins)
    return np.bincount(bins, values, num_bins).astype(np.float32)


def _calibration_error(confidence: Array, hit: Array, weight: Array, num_bins: int) -> Array:
    # sum_b n_b/n |acc_b - conf_b| needs only the sum of (hit - confidence) in each bin.
    return abs(_bin_sums(confidence, weight * (hit - confidence), num_bins)).sum() / weight.sum()


def _confidence(
    probs: Array, labels: Array | None, mask: Array | None
) -> tuple[Array, Array | None, Array]:
    """max(probs), whether it is at the label (None without labels), and the weight: float32 [N]."""
    xp, probs = _float32(probs, labels, mask)
    confidence, hit = probs.max(-1), None
    if labels is not None:
        hit = (xp.argmax(probs, axis=-1) == labels).astype(xp.float32)
    if mask is None:
        return confidence, hit, xp.ones_like(confidence)
    return xp.where(mask, confidence, xp.float32(0)), hit, xp.asarray(mask, xp.float32)


def reliability(
    probs: Array, labels: Array, num_bins: int = 15, mask: Array | None = None
) -> Reliability:
    """Confidence max(probs) against accuracy in equal bins -> Reliability; empty bins read 0."""
    confidence, hit, weight = _confidence(probs, labels, mask)
    count, conf_sum, hit_sum = (
        _bin_sums(confidence, weight * v, num_bins) for v in (1, confidence, hit)
    )
    size = count.clip(1.0)
    return Reliability(conf_sum / size, hit_sum / size, count)


def expected_calibration_error(
    probs: Array, labels: Array, num_bins: int = 15, mask: Array | None = None
) -> Array:
    """Mean distance of accuracy from confidence in equal bins -> float32 [], 0 to 1.

    Guo et al. 2017, arXiv:1706.04599, eq. 3. Biased upwards on small sets: read it beside
    `calibration_band`.
    """
    confidence, hit, weight = _confidence(probs, labels, mask)
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
    confidence, _, weight = _confidence(jnp.asarray(probs), None, mask)
    key = jax.random.key(0) if key is None else key

    def one(key):
        hit = jax.random.uniform(key, confidence.shape) < confidence
        return _calibration_error(confidence, hit.astype(jnp.float32), weight, num_bins)

    # One draw at a time: num_samples x N numbers need not be in memory.
    errors = jax.lax.map(one, jax.random.split(key, num_samples), batch_size=16)
    low, high = jnp.quantile(errors, jnp.array([0.025, 0.975]))
    return Interval(errors.mean(), low, high)


# Runs: one number a seed.


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
