"""Quality of images: against float64 loops over the published formulas, and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqjax import metrics

RNG = np.random.default_rng(0)
IMAGES = RNG.random((3, 13, 12, 2))
NOISY = np.clip(IMAGES + 0.2 * RNG.normal(size=IMAGES.shape), 0, 1)


def slow_ssim(x, y, data_range, size=11, sigma=1.5, k1=0.01, k2=0.03):
    """Of one image [H, W, C] by Wang et al. 2004, eqs. 13 to 17: a loop over places, float64."""
    at = np.arange(size) - (size - 1) / 2
    window = np.exp(-(at[:, None] ** 2 + at**2) / (2 * sigma**2))
    window /= window.sum()
    c1, c2 = (k1 * data_range) ** 2, (k2 * data_range) ** 2
    found = []
    for i in range(x.shape[0] - size + 1):
        for j in range(x.shape[1] - size + 1):
            for c in range(x.shape[2]):
                a, b = x[i : i + size, j : j + size, c], y[i : i + size, j : j + size, c]
                mean_a, mean_b = (window * a).sum(), (window * b).sum()
                var_a = (window * (a - mean_a) ** 2).sum()
                var_b = (window * (b - mean_b) ** 2).sum()
                both = (window * (a - mean_a) * (b - mean_b)).sum()
                found.append(
                    (2 * mean_a * mean_b + c1)
                    * (2 * both + c2)
                    / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
                )
    return np.mean(found)


@pytest.mark.parametrize('data_range, shift', [(1.0, 0.0), (2.0, -1.0), (255.0, 0.0)])
def test_ssim_is_that_of_the_paper(data_range, shift):
    x, y = (data_range * v + shift for v in (IMAGES, NOISY))
    expected = [slow_ssim(a, b, data_range) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(metrics.ssim(x, y, data_range), expected, rtol=1e-5)
    np.testing.assert_allclose(
        metrics.ssim(jnp.asarray(x), jnp.asarray(y), data_range), expected, rtol=1e-5
    )


def test_ssim_with_another_window_and_constants():
    rest = {'size': 5, 'sigma': 0.8, 'k1': 0.02, 'k2': 0.1}
    expected = [slow_ssim(a, b, 1.0, **rest) for a, b in zip(IMAGES, NOISY, strict=True)]
    np.testing.assert_allclose(metrics.ssim(IMAGES, NOISY, 1.0, **rest), expected, rtol=1e-5)


def test_ssim_of_two_constant_images_is_the_term_of_their_means():
    x, y = np.full((1, 11, 11, 1), 200, np.uint8), np.full((1, 11, 11, 1), 100, np.uint8)
    c1 = 2.55**2
    expected = (2 * 200 * 100 + c1) / (200**2 + 100**2 + c1)
    np.testing.assert_allclose(metrics.ssim(x, y, 255), [expected], rtol=1e-6)


def test_psnr_by_hand():
    black, grey = np.zeros((2, 4, 4, 3), np.uint8), np.full((2, 4, 4, 3), 16, np.uint8)
    # uint8 differences would wrap around.
    np.testing.assert_allclose(metrics.psnr(black, grey, 255), [20 * np.log10(255 / 16)] * 2)
    error = ((IMAGES - NOISY) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(metrics.psnr(IMAGES, NOISY, 1.0), -10 * np.log10(error), rtol=1e-5)


def test_an_image_against_itself():
    assert np.isinf(metrics.psnr(IMAGES, IMAGES, 1)).all()
    np.testing.assert_allclose(metrics.ssim(IMAGES, IMAGES, 1), 1, rtol=1e-6)

    def maps(x):
        return [x, x[..., ::2, :, :] - 0.5]

    np.testing.assert_array_equal(metrics.perceptual_distance(maps, IMAGES, IMAGES), [0, 0, 0])
    rows = RNG.normal(size=(50, 4))
    assert metrics.frechet_distance(rows, rows[::-1]) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize('name', ['psnr', 'ssim'])
def test_leading_axes_and_numpy_or_jax(name):
    function = getattr(metrics, name)
    one = function(IMAGES, NOISY, 1.0)
    assert isinstance(one, np.ndarray) and one.dtype == np.float32 and one.shape == (3,)
    grid = function(IMAGES[None], NOISY[None], 1.0)
    np.testing.assert_array_equal(grid, one[None])
    jitted = jax.jit(lambda x, y: function(x, y, 1.0))(IMAGES, NOISY)
    np.testing.assert_allclose(jitted, one, rtol=1e-5)


def test_frechet_distance_of_normal_distributions_in_closed_form():
    # Of diagonal covariances: |m_a - m_b|^2 + sum (s_a - s_b)^2. Corners of a box have exactly
    # these moments with the divisor n - 1, once scaled.
    corners = np.array(np.meshgrid(*[[-1.0, 1.0]] * 3)).reshape(3, -1).T * np.sqrt(7 / 8)
    a, b = corners * [1.0, 2.0, 3.0], corners * [2.0, 2.0, 0.5] + [1.0, 0.0, -2.0]
    assert metrics.frechet_distance(a, b) == pytest.approx(1 + 4 + 1 + 0 + 2.5**2, rel=1e-12)


def test_frechet_distance_against_the_square_root_of_a_matrix():
    linalg = pytest.importorskip('scipy.linalg')
    a, b = RNG.normal(size=(40, 5)) @ RNG.normal(size=(5, 5)), RNG.normal(size=(30, 5)) + 0.3
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    expected = np.square(a.mean(0) - b.mean(0)).sum()
    expected += np.trace(ca + cb - 2 * linalg.sqrtm(ca @ cb).real)
    assert metrics.frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)
    # Fewer rows than features: the covariance is singular and the square root still real.
    few = RNG.normal(size=(4, 20))
    assert np.isfinite(metrics.frechet_distance(few, few + 1))
    assert metrics.frechet_distance(few, few + 1) == pytest.approx(20, rel=1e-6)


def test_perceptual_distance_is_equation_1():
    def maps(x):
        return [x + 0.1, jnp.tanh(x[..., ::2, ::2, :] - 0.5) * 3]

    weights = [np.array([0.5, 2.0]), np.array([1.0, 0.0])]
    expected = np.zeros(3)
    for x, y, weight in zip(maps(IMAGES), maps(NOISY), weights, strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        for n, i, j in np.ndindex(x.shape[:3]):
            a, b = (v[n, i, j] / np.linalg.norm(v[n, i, j]) for v in (x, y))
            expected[n] += (weight * (a - b) ** 2).sum() / (x.shape[1] * x.shape[2])
    found = metrics.perceptual_distance(maps, IMAGES, NOISY, weights)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_perceptual_distance_has_a_finite_gradient_where_a_map_is_zero():
    gradient = jax.grad(
        lambda y: metrics.perceptual_distance(lambda x: [x], jnp.asarray(IMAGES), y).sum()
    )(jnp.zeros(IMAGES.shape))
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


@pytest.mark.parametrize(
    'call, says',
    [
        (lambda: metrics.psnr(IMAGES, NOISY[:2], 1), r'same shape, got \(3, 13, 12, 2\) and'),
        (lambda: metrics.psnr(IMAGES, NOISY, 0), 'data_range must be finite and above 0, got 0'),
        (lambda: metrics.psnr(np.ones((4, 4)), np.ones((4, 4)), 1), r'images\[..., None\]'),
        (lambda: metrics.ssim(IMAGES, NOISY, 1, size=13), 'an odd size of at most 12'),
        (lambda: metrics.ssim(IMAGES, NOISY, 1, size=4), 'size must be an odd number, got 4'),
        (
            lambda: metrics.frechet_distance(np.ones((5, 2)), np.ones((5, 3))),
            'the same layer of the same network',
        ),
        (lambda: metrics.frechet_distance(np.ones((1, 2)), np.ones((5, 2))), 'N at least 2'),
        (
            lambda: metrics.frechet_distance(np.full((5, 2), np.nan), np.ones((5, 2))),
            'features_a has values that are not finite',
        ),
        (
            lambda: metrics.perceptual_distance(lambda x: [x], IMAGES, NOISY, [np.ones(3)]),
            r'weights must be of shapes \[\(2,\)\]',
        ),
        (lambda: metrics.perceptual_distance(lambda x: [], IMAGES, NOISY), 'features gave no map'),
    ],
)
def test_what_is_refused_says_the_remedy(call, says):
    with pytest.raises(ValueError, match=says):
        call()
