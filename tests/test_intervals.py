"""intervals.py: how often 95% intervals hold the truth, on accuracies whose mean is known."""

import numpy as np
import pytest
from scipy import stats

from vqjax import intervals, metrics

TRIALS = 1000  # 95% of them: a standard error of .7%
SEEDS = [2, 5, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 10))]


def share_held(found, truth):
    low, high = np.array([i[1:] for i in found]).T
    return np.mean((low <= truth) & (truth <= high))


def outcomes(rng, mean, of_seeds, of_examples, seeds, examples):
    """bool [TRIALS, seeds, examples] whose expectation is `mean`: seeds and examples differ.

    The share of right answers of an example and a seed is mean + a_s + b_i, both uniform and
    bounded so that it stays within 0 and 1.
    """
    a = rng.uniform(-of_seeds, of_seeds, (TRIALS, seeds, 1))
    b = rng.uniform(-of_examples, of_examples, (TRIALS, 1, examples))
    share = mean + a + b
    assert 0 <= share.min() and share.max() <= 1
    return rng.random(share.shape) < share


@pytest.mark.parametrize(
    'mean, of_seeds, of_examples, examples',
    [
        (0.80, 0.01, 0.18, 200),  # the examples decide
        (0.90, 0.06, 0.03, 300),  # the seeds do
        (0.95, 0.02, 0.02, 300),
    ],
)
@pytest.mark.parametrize('seeds', SEEDS)
def test_95_percent_of_crossed_intervals_hold_the_accuracy(
    mean, of_seeds, of_examples, seeds, examples
):
    rng = np.random.default_rng(0)
    drawn = outcomes(rng, mean, of_seeds, of_examples, seeds, examples)
    found = [intervals.crossed_t(x) for x in drawn]
    assert 0.93 <= share_held(found, mean) <= (0.99 if seeds > 2 else 1)


@pytest.mark.parametrize('of_seeds, gain', [(0.05, 0.0), (0.02, 0.03), (0.0, 0.01)])
@pytest.mark.parametrize('seeds', SEEDS)
def test_95_percent_of_crossed_intervals_hold_a_difference(of_seeds, gain, seeds):
    rng = np.random.default_rng(1)
    shape = (TRIALS, 1, 250)
    shared = rng.uniform(-0.1, 0.1, shape)  # examples are hard for both methods, or easy

    def method(mean):
        a = rng.uniform(-of_seeds, of_seeds, (TRIALS, seeds, 1))
        share = mean + a + shared + rng.uniform(-0.05, 0.05, shape)  # and some for one of them
        assert 0 <= share.min() and share.max() <= 1
        return rng.random(share.shape) < share

    a, b = method(0.78 + gain), method(0.78)
    found = [intervals.crossed_t(x, y) for x, y in zip(a, b, strict=True)]
    assert 0.93 <= share_held(found, gain) <= (0.99 if seeds > 2 else 1)


@pytest.mark.parametrize('seeds', [2, 3, 5, 10])
def test_95_percent_of_intervals_over_few_seeds_hold(seeds):
    """Student's t over the seeds of one study holds; percentiles of their bootstrap do not."""
    rng = np.random.default_rng(0)
    values = rng.normal(0.9, 0.02, (TRIALS, seeds))
    assert 0.93 <= share_held([intervals.corrected_t(v) for v in values], 0.9) <= 0.97
    drawn = values[:, rng.integers(0, seeds, (400, seeds))].mean(-1)
    ends = np.quantile(drawn, [0.025, 0.975], axis=1)
    bootstrap = np.mean((ends[0] <= 0.9) & (ends[1] >= 0.9))
    assert bootstrap < {2: 0.55, 3: 0.78, 5: 0.88, 10: 0.925}[seeds]


@pytest.mark.parametrize('folds, repeats', [(5, 1), (10, 1), (5, 4)])
def test_95_percent_of_corrected_intervals_hold_where_training_sets_overlap(folds, repeats):
    """Folds correlated by n_test / (n_test + n_train), what the correction is derived for."""
    rng = np.random.default_rng(0)
    n, ratio = folds * repeats, 1 / (folds - 1)
    shared = ratio / (1 + ratio)
    scatter = 0.01 * np.sqrt(1 - shared) * rng.normal(size=(TRIALS, n))
    values = 0.9 + scatter + 0.01 * np.sqrt(shared) * rng.normal(size=(TRIALS, 1))
    corrected = [intervals.corrected_t(v, ratio) for v in values]
    assert 0.93 <= share_held(corrected, 0.9) <= 0.97
    assert share_held([intervals.corrected_t(v) for v in values], 0.9) < 0.9


def test_the_corrected_interval_is_the_published_formula():
    values = np.random.default_rng(0).normal(0.9, 0.01, 10)
    plain = stats.t.interval(0.95, 9, values.mean(), stats.sem(values))
    assert intervals.corrected_t(values)[1:] == pytest.approx(plain)
    mean, low, high = intervals.corrected_t(values, 1 / 9)
    wider = np.sqrt((1 / 10 + 1 / 9) / (1 / 10))
    assert mean == pytest.approx(values.mean())
    assert (high - low) / (plain[1] - plain[0]) == pytest.approx(wider)
    assert intervals.corrected_t([0.7], 0.25) == (0.7, 0.7, 0.7)


def test_one_seed_tells_of_examples_as_agresti_and_coull_do():
    correct = np.arange(1000)[None] >= 100  # 90%
    mean, low, high = intervals.crossed_t(correct)
    wilson = metrics.wilson_interval(900, 1000)
    assert mean == 0.9
    assert (low, high) == pytest.approx(wilson[1:], abs=0.001)


def test_no_mistake_is_no_certainty_and_ends_stay_within_0_and_1():
    for correct in (np.ones((5, 360), bool), np.zeros((5, 360), bool)):
        found = intervals.crossed_t(correct)
        assert found.mean == correct[0, 0] and 0 <= found.low <= found.mean <= found.high <= 1
        assert 0.005 < found.high - found.low < 0.03


def test_pairing_takes_out_what_both_methods_share():
    rng = np.random.default_rng(0)
    base = np.broadcast_to(rng.random((1, 500)) < 0.7, (5, 500))
    other = base ^ (rng.random((5, 500)) < 0.01)
    found = intervals.crossed_t(other, base)
    alone = intervals.crossed_t(other)
    assert found.mean == pytest.approx(other.mean() - base.mean())
    assert found.high - found.low < 0.3 * (alone.high - alone.low)
    assert intervals.crossed_t(base, base) == (0, 0, 0)


@pytest.mark.parametrize(
    'call, text',
    [
        (lambda: intervals.corrected_t([]), 'values is empty'),
        (lambda: intervals.corrected_t([1.0], -0.1), 'test_to_train=-0.1'),
        (lambda: intervals.corrected_t([1.0], float('nan')), 'test_to_train=nan'),
        (lambda: intervals.crossed_t(np.ones((2, 3))), 'correct is float64'),
        (lambda: intervals.crossed_t(np.ones((2, 0), bool)), 'neither 0'),
        (lambda: intervals.crossed_t(np.ones(3, bool)), 'seeds, examples'),
        (
            lambda: intervals.crossed_t(np.ones((2, 3), bool), np.ones((2, 4), bool)),
            r'other is bool \(2, 4\)',
        ),
    ],
)
def test_what_cannot_be_told_is_refused(call, text):
    with pytest.raises(ValueError, match=text):
        call()
