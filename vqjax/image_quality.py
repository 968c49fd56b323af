"""How near restored or generated images are to real ones; networks come from the user.

Arrays of NumPy are computed with NumPy and compile nothing; arrays of JAX with JAX, also under jit
and with gradients. No weights are downloaded: FID and LPIPS take the features of a network that
you pass in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax import Array

from vqjax.ops.fields import check, check_count, check_positive
from vqjax.ops.numpy_or_jax import numpy_of

ArrayLike = Array | np.ndarray
# A network: images [..., H, W, C] to its feature maps.
Features = Callable[[Any], Sequence[Any]]


def psnr(images: ArrayLike, restored: ArrayLike, data_range: float) -> Array:
    """Peak signal-to-noise ratio of each image in decibels: 10 log10(data_range^2 / MSE).

    The mean over a set is the mean of these, not the ratio of the mean error.

    Args:
      images: real numbers [..., H, W, C], the originals; any dtype.
      restored: the same shape.
      data_range: the largest value minus the smallest that a pixel may have: 1 or 255, or 2 for
        pixels from -1 to 1.

    Returns:
      float32 [...]; inf where an image is restored exactly.

    Raises:
      ValueError: for different shapes, fewer than three axes, or a data_range that is not above 0.
    """
    xp, x, y = _pair(images, restored, data_range)
    error = xp.square(x - y).mean((-3, -2, -1))
    with np.errstate(divide='ignore'):
        return 10 * xp.log10(xp.float32(data_range) ** 2 / error)


def ssim(
    images: ArrayLike,
    restored: ArrayLike,
    data_range: float,
    size: int = 11,
    sigma: float = 1.5,
    k1: float = 0.01,
    k2: float = 0.03,
) -> Array:
    """Structural similarity of each image (Wang et al. 2004, doi:10.1109/TIP.2003.819861, eq. 13).

    Means, variances and covariance are weighted by a Gaussian window that sums to 1, at every
    place where the window fits into the image; the result is the mean over places and channels.
    With the defaults these are the settings of section III-C of the paper.

    Args:
      images: real numbers [..., H, W, C], the originals; any dtype.
      restored: the same shape.
      data_range: the largest value minus the smallest that a pixel may have.
      size: height and width of the window in pixels, an odd number.
      sigma: standard deviation of the window in pixels.
      k1, k2: the constants are (k1 data_range)^2 and (k2 data_range)^2.

    Returns:
      float32 [...], from -1 to 1; 1 where an image is restored exactly.

    Raises:
      ValueError: for different shapes, fewer than three axes, images smaller than the window, or a
        number out of range.
    """
    xp, x, y = _pair(images, restored, data_range)
    check_count('size', size)
    check(size % 2 == 1, 'size', size, 'an odd number')
    for name, value in (('sigma', sigma), ('k1', k1), ('k2', k2)):
        check_positive(name, value)
    height, width = x.shape[-3:-1]
    if min(height, width) < size:
        raise ValueError(
            f'size is {size}, and the window must fit into images of {height} x {width} pixels: '
            f'give an odd size of at most {min(height, width)}'
        )
    # Variances do not depend on the mean, and float32 keeps more digits of small numbers.
    mean_of_x, mean_of_y = (v.mean((-3, -2), keepdims=True) for v in (x, y))
    x, y = x - mean_of_x, y - mean_of_y
    rows, columns = (_windows(side, size, sigma) for side in (height, width))

    # Accelerators multiply matrices in less than float32 unless told to.
    exact: Any = {} if xp is np else {'precision': 'highest'}

    def mean(values):
        return xp.einsum('ph,...hwc,qw->...pqc', rows, values, columns, optimize=True, **exact)

    mean_x, mean_y = mean(x), mean(y)
    variance = mean(x * x) - mean_x**2 + mean(y * y) - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    mean_x, mean_y = mean_x + mean_of_x, mean_y + mean_of_y
    c1, c2 = xp.float32((k1 * data_range) ** 2), xp.float32((k2 * data_range) ** 2)
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return (luminance * (2 * covariance + c2) / (variance + c2)).mean((-3, -2, -1))


def frechet_distance(features_a: ArrayLike, features_b: ArrayLike) -> float:
    """Frechet distance of two sets of feature vectors, each taken as a normal distribution.

    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), with the covariances of np.cov (Heusel et
    al. 2017, arXiv:1706.08500, eq. 6). With the 2,048 features of the published Inception network
    it is the FID; with other features it is not comparable with published numbers. It is biased
    upwards on small sets, so compare only distances between sets of equal sizes.

    Args:
      features_a, features_b: real numbers [N, D] and [M, D], N and M at least 2; the sets need not
        be paired. They are computed with in float64, on the host.

    Returns:
      The distance, 0 or above.

    Raises:
      ValueError: for sets of another shape, with different D, or with values that are not finite.
    """
    sets = [np.asarray(features, np.float64) for features in (features_a, features_b)]
    for name, values in zip(('features_a', 'features_b'), sets, strict=True):
        if values.ndim != 2 or len(values) < 2 or not values.shape[1]:
            raise ValueError(f'{name} must be [N, D] with N at least 2, got shape {values.shape}')
        if not np.isfinite(values).all():
            raise ValueError(f'{name} has values that are not finite: leave out those rows')
    a, b = sets
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f'features_a has {a.shape[1]} features and features_b {b.shape[1]}: '
            'take both from the same layer of the same network'
        )
    covariances = [np.atleast_2d(np.cov(values, rowvar=False)) for values in sets]
    # tr (C_a C_b)^(1/2) is the sum of the singular values of C_a^(1/2) C_b^(1/2): no square root
    # of a matrix that is not symmetric, and none of a number below 0.
    root_a, root_b = map(_root, covariances)
    shared = np.linalg.svd(root_a @ root_b, compute_uv=False).sum()
    apart = np.square(a.mean(0) - b.mean(0)).sum()
    return max(float(apart + sum(np.trace(c) for c in covariances) - 2 * shared), 0.0)


def perceptual_distance(
    features: Features,
    images: ArrayLike,
    restored: ArrayLike,
    weights: Sequence[ArrayLike] | None = None,
) -> Array:
    """Distance of each pair of images in the feature maps of a network: LPIPS's formula.

    Vectors of each map are scaled to unit length; the squared differences, weighted by channel,
    are averaged over places and added up over channels and maps (Zhang et al. 2018,
    arXiv:1801.03924, eq. 1). It is LPIPS with the paper's network and weights, and a distance of
    your own with others. `jax.grad` passes through it, so it may be a training loss.

    Args:
      features: your network: images [..., H, W, C] to a sequence of maps [..., h, w, c], one for
        each layer that is compared. It scales pixels as the network wants them.
      images: [..., H, W, C], the originals.
      restored: the same shape.
      weights: for each map, real numbers [c] of at least 0; None: 1 everywhere.

    Returns:
      float32 [...], 0 or above.

    Raises:
      ValueError: for images of different shapes, maps without three trailing axes, or weights that
        do not fit the maps.
    """
    if np.shape(images) != np.shape(restored):
        raise ValueError(_apart(images, restored))
    pairs = list(zip(features(images), features(restored), strict=True))
    if not pairs:
        raise ValueError('features gave no map: return a sequence of arrays [..., h, w, c]')
    if weights is None:
        weights = [np.ones(np.shape(a)[-1], np.float32) for a, _ in pairs]
    channels, given = [np.shape(a)[-1:] for a, _ in pairs], [np.shape(w) for w in weights]
    if channels != given:
        raise ValueError(
            f'weights must be of shapes {channels}, one number a channel of each map that features '
            f'gives, got {given}'
        )
    total: Any = 0
    for (a, b), weight in zip(pairs, weights, strict=True):
        if np.ndim(a) < 3:
            raise ValueError(f'maps must be [..., h, w, c], features gave one of shape {a.shape}')
        xp = numpy_of(a, b, weight)
        a, b = (_unit(xp, xp.asarray(x, xp.float32)) for x in (a, b))
        difference = xp.square(a - b) * xp.asarray(weight, xp.float32)
        total = total + difference.sum(-1).mean((-2, -1))
    return total


def _pair(images, restored, data_range):
    """What computes with both, and both as float32; see `psnr` for what raises."""
    check_positive('data_range', data_range)
    if np.shape(images) != np.shape(restored):
        raise ValueError(_apart(images, restored))
    if np.ndim(images) < 3:
        raise ValueError(
            f'images must be [..., H, W, C], got shape {np.shape(images)}: grey images without an '
            'axis of channels get one by images[..., None]'
        )
    xp = numpy_of(images, restored)
    return xp, *(xp.asarray(x, xp.float32) for x in (images, restored))


def _apart(images, restored):
    return (
        f'images and restored must have the same shape, got {np.shape(images)} and '
        f'{np.shape(restored)}'
    )


def _windows(side: int, size: int, sigma: float) -> np.ndarray:
    """The weights of the window at each place where it fits: float32 [side - size + 1, side]."""
    offsets = np.arange(size) - size // 2
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    places = np.arange(side - size + 1)
    rows = np.zeros((len(places), side))
    rows[places[:, None], places[:, None] + np.arange(size)] = weights
    return rows.astype(np.float32)


def _root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric square root; eigenvalues that rounding made negative are 0."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def _unit(xp: Any, maps: Any) -> Any:
    """Vectors of unit length; a zero vector stays, and its gradient is finite."""
    return maps / xp.sqrt(xp.square(maps).sum(-1, keepdims=True) + xp.float32(1e-20))
