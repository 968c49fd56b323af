"""Loss terms that are functions of codebooks and assignment probabilities."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from vqjax.ops.scores import normalize
from vqjax.ops.statistics import AxisName, masked_mean, pmean


def squared_error(
    a: jax.Array, b: jax.Array, mask: jax.Array | None = None, axis_name: AxisName = None
) -> jax.Array:
    """Mean over features and real positions of (a - b)^2, float32 [].

    a, b [..., D], mask bool [...]. See `masked_mean` for what `axis_name` does.
    """
    difference = a.astype(jnp.float32) - b.astype(jnp.float32)
    if mask is not None:  # before the square, whose gradient at NaN is NaN
        difference = jnp.where(mask[..., None], difference, 0.0)
    return masked_mean(jnp.mean(difference**2, axis=-1), mask, axis_name)


def orthogonality(codebook: jax.Array, active: jax.Array | None = None) -> jax.Array:
    """How far codes are from pairwise orthogonal: sum cos^2 / K^2 - 1 / K (arXiv:2112.00384).

    codebook [K, D], active bool [K] -> float32 [], 0 for orthogonal rows. With `active` it is that
    of those rows alone, K their number, and 0 without any. The K x K cosines are never held: their
    squared sum is that of the D x D Gram matrix.
    """
    unit = normalize(codebook.astype(jnp.float32))
    number: Any = codebook.shape[0]
    if active is not None:
        unit = jnp.where(active[:, None], unit, 0.0)
        number = jnp.maximum(jnp.sum(active, dtype=jnp.float32), 1.0)
    gram = jnp.matmul(unit.T, unit, precision=lax.Precision.HIGHEST)
    found = jnp.sum(gram**2) / number**2 - 1 / number
    return found if active is None else jnp.where(jnp.any(active), found, 0.0)


def entropy(probabilities: jax.Array, axis: int = -1) -> jax.Array:
    """Entropy in nats along an axis, with 0 log 0 = 0 and a finite gradient there."""
    safe = jnp.where(probabilities > 0, probabilities, 1.0)
    return -jnp.sum(jnp.where(probabilities > 0, probabilities * jnp.log(safe), 0.0), axis=axis)


def bit_entropy(logit: jax.Array) -> jax.Array:
    """Entropy in nats of a bit with probability sigmoid(logit), finite gradients everywhere.

    logit float32 [...] -> float32 [...].
    """
    # -p log p - (1 - p) log(1 - p) through log-sigmoids: exact where p rounds to 0 or 1.
    p = jax.nn.sigmoid(logit)
    return -p * jax.nn.log_sigmoid(logit) - (1 - p) * jax.nn.log_sigmoid(-logit)


def mean_probabilities(
    probabilities: jax.Array, mask: jax.Array | None = None, axis_name: AxisName = None
) -> jax.Array:
    """Mean over real positions of all replicas: [..., K] -> float32 [K]."""
    rows = probabilities.reshape(-1, probabilities.shape[-1])
    if mask is None:
        return pmean(jnp.mean(rows, axis=0), axis_name)
    real = mask.reshape(-1)
    total = pmean(jnp.sum(jnp.where(real[:, None], rows, 0.0), axis=0), axis_name)
    number = pmean(jnp.sum(real, dtype=jnp.float32), axis_name)
    return total / jnp.maximum(number, 1e-30)


def imbalance(probabilities: jax.Array) -> jax.Array:
    """1 - exp(H(p)) / K: 0 where all are alike, near 1 where one has everything. [K] -> []."""
    return 1 - jnp.exp(entropy(probabilities)) / probabilities.shape[-1]


def diversity(
    probabilities: jax.Array, mask: jax.Array | None = None, axis_name: AxisName = None
) -> jax.Array:
    """1 - exp(H(mean p)) / K: 0 when codes are used alike on average, near 1 at collapse.

    The diversity loss of wav2vec 2.0 (arXiv:2006.11477 section 3.2) as its code has it.
    probabilities [..., K], mask bool [...] -> float32 [].
    """
    return imbalance(mean_probabilities(probabilities, mask, axis_name))


def structural_similarity(
    a: jax.Array, b: jax.Array, mask: jax.Array | None = None, axis_name: AxisName = None
) -> jax.Array:
    """Mean over real positions of SSIM(a, b), the statistics those of a vector's features.

    (2 m_a m_b + c1)(2 s_ab + c2) / ((m_a^2 + m_b^2 + c1)(s_a^2 + s_b^2 + c2)), means m, variances
    and covariance s, c1 = 1e-4 and c2 = 9e-4 (Wang et al. 2004, doi:10.1109/TIP.2003.819861, eq.
    13, for values of range 1). Between -1 and 1; 1 for equal vectors. ERVQ (arXiv:2410.12359)
    minimises it between the vectors of successive stages.

    a, b [..., D], mask bool [...] -> float32 []. See `masked_mean` for what `axis_name` does.
    """
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
    if mask is not None:  # before the products, whose gradient at NaN is NaN
        a, b = (jnp.where(mask[..., None], x, 0.0) for x in (a, b))
    mean_a, mean_b = (jnp.mean(x, axis=-1, keepdims=True) for x in (a, b))
    centred_a, centred_b = a - mean_a, b - mean_b
    variances = jnp.mean(centred_a**2 + centred_b**2, axis=-1)
    covariance = jnp.mean(centred_a * centred_b, axis=-1)
    means, squares = 2 * mean_a * mean_b, mean_a**2 + mean_b**2
    alike = (means + 1e-4)[..., 0] * (2 * covariance + 9e-4)
    return masked_mean(alike / ((squares + 1e-4)[..., 0] * (variances + 9e-4)), mask, axis_name)


def wasserstein(
    z: jax.Array,
    codebook: jax.Array,
    mask: jax.Array | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """Distance between the distributions of vectors and codes, each taken as normal.

    sqrt(|m_z - m_c|^2 + tr(S_z + S_c - 2 (S_z^1/2 S_c S_z^1/2)^1/2)) with means m and covariances
    S: the quadratic Wasserstein distance, as arXiv:2506.15078 adds it to the loss. Its gradient
    reaches all vectors and all codes, used or not. Give it more vectors and codes than features:
    fewer say nothing of some directions.

    z [..., D], codebook [K, D], mask bool [...] -> float32 []. Vectors that are not finite count
    nowhere.
    """
    rows = z.astype(jnp.float32).reshape(-1, z.shape[-1])
    real = jnp.all(jnp.isfinite(rows), axis=-1)
    if mask is not None:
        real &= mask.reshape(-1)
    rows = jnp.where(real[:, None], rows, 0.0)
    number = jnp.maximum(pmean(jnp.sum(real, dtype=jnp.float32), axis_name), 1e-30)
    mean = pmean(jnp.sum(rows, axis=0), axis_name) / number
    rows = jnp.where(real[:, None], rows - mean, 0.0)
    codes = codebook.astype(jnp.float32)
    code_mean = jnp.mean(codes, axis=0)
    codes = codes - code_mean
    # In units of their typical length, so that products of covariances are neither 0 nor infinite.
    size = pmean(jnp.sum(rows**2), axis_name) / number + jnp.mean(jnp.sum(codes**2, axis=-1))
    size = lax.stop_gradient(jnp.sqrt(jnp.maximum(size / z.shape[-1], 1e-30)))
    rows, codes, between = rows / size, codes / size, (mean - code_mean) / size
    spread = pmean(_gram(rows), axis_name) / number
    code_spread = _gram(codes) / codebook.shape[0]
    # A direction without any spread would have an infinite slope.
    least = 1e-6 * jnp.eye(z.shape[-1], dtype=jnp.float32)
    factor = jnp.linalg.cholesky(code_spread + least)
    product = _matmul(_matmul(factor.T, spread + least), factor)
    roots = jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(product), 1e-12))
    squared = jnp.sum(between**2) + jnp.trace(spread + code_spread + 2 * least) - 2 * jnp.sum(roots)
    distance = size * jnp.sqrt(jnp.maximum(squared, 0.0) + 1e-8)
    return jnp.where(pmean(jnp.sum(real, dtype=jnp.float32), axis_name) > 0, distance, 0.0)


def _matmul(a, b):
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def _gram(rows):
    return _matmul(rows.T, rows)
