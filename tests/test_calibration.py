"""calibration.py: a temperature is found again, and what it does to the calibration error."""

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from vqjax import calibration, metrics


def drawn(number, sharpness, seed=0):
    """Probabilities that are `sharpness` times too sure, and labels drawn from the true ones."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(number, 10))
    true = softmax(logits, -1)
    labels = (rng.random((number, 1)) > true.cumsum(-1)).sum(-1).clip(max=9)
    return softmax(sharpness * logits, -1).astype(np.float32), labels


@pytest.mark.parametrize('sharpness', [0.5, 1.0, 3.0])
def test_the_temperature_that_spoiled_the_confidences_is_found(sharpness):
    probs, labels = drawn(20_000, sharpness)
    assert calibration.fit_temperature(probs, labels) == pytest.approx(sharpness, rel=0.03)


def test_a_fit_on_one_split_calibrates_another():
    temperature = calibration.fit_temperature(*drawn(2000, 3.0))
    probs, labels = drawn(5000, 3.0, seed=1)
    scaled = calibration.at_temperature(probs, temperature)
    before, after = (metrics.expected_calibration_error(p, labels) for p in (probs, scaled))
    assert before > 0.15 and after < metrics.calibration_band(scaled).high
    np.testing.assert_array_equal(scaled.argmax(-1), probs.argmax(-1))
    np.testing.assert_allclose(scaled.sum(-1), 1, atol=1e-6)


def test_it_is_the_minimum_of_the_stated_loss():
    probs, labels = drawn(300, 2.0)
    found = calibration.fit_temperature(probs, labels)
    targets = np.full(probs.shape, 1 / 302 / 9)
    targets[np.arange(300), labels] = 1 - 1 / 302

    def loss(temperature):
        return -np.mean((targets * log_softmax(np.log(probs) / temperature, -1)).sum(-1))

    grid = np.geomspace(0.05, 20, 2000)
    assert found == pytest.approx(grid[np.argmin([loss(t) for t in grid])], rel=0.01)


def test_a_split_without_a_mistake_asks_for_no_certainty():
    """Where the label counts 1 it would be T = 0, and every mistake of the test split certain."""
    labels = np.arange(360) % 10
    probs = softmax(6.0 * np.eye(10)[labels], -1)
    scaled = calibration.at_temperature(probs, calibration.fit_temperature(probs, labels))
    assert scaled.max(-1) == pytest.approx(1 - 1 / 362, abs=1e-4)


def test_probabilities_that_float32_rounded_to_zero_are_taken():
    probs = np.eye(10, dtype=np.float32)[np.arange(100) % 10]
    labels = np.arange(100) % 10
    labels[:10] = 9 - labels[:10]  # certain, and wrong of ten
    temperature = calibration.fit_temperature(probs, labels)
    assert temperature > 10 and np.isfinite(calibration.at_temperature(probs, temperature)).all()


@pytest.mark.parametrize('shape', [(0, 10), (4, 1), (4,)])
def test_what_cannot_be_fitted_is_refused(shape):
    with pytest.raises(ValueError, match='probs has shape'):
        calibration.fit_temperature(np.ones(shape), np.zeros(shape[:1], int))
