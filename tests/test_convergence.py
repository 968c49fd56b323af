"""convergence.py and the budget: when a run has not been long enough to be compared."""

import types

import numpy as np
import pytest
from support import configuration, read_results

from vqjax.results.summaries import RISE, rise, still_rising
from vqjax.trainer.config import settings
from vqjax.trainer.data import sets
from vqjax.trainer.run.plan import plan


def histories(accuracy, evaluations=8, seeds=5, noise=0.0, steps=440):
    """Records of runs whose training accuracy at a share t of the run is accuracy(t).

    As runs leave them: each tells the mean over the steps since the one before.
    """
    rng = np.random.default_rng(0)
    ends = np.linspace(0, 1, evaluations + 1)
    means = [
        np.mean(accuracy(np.linspace(a, b, 100))) for a, b in zip(ends, ends[1:], strict=False)
    ]
    return [
        [
            {'step': int(steps * end), 'train_accuracy': mean + noise * rng.normal()}
            for end, mean in zip(ends[1:], means, strict=True)
        ]
        for _ in range(seeds)
    ]


def saturating(constant):
    """Towards 99% with a time constant that is a share of the run."""
    return lambda t: 0.99 - 0.89 * np.exp(-t / constant)


@pytest.mark.parametrize('evaluations', [4, 8, 40])
def test_the_rise_is_that_of_the_last_third(evaluations):
    assert rise(histories(lambda t: 0.3 + 0.6 * t, evaluations)) == pytest.approx(0.2)
    assert rise(histories(lambda t: 0.9 + 0 * t, evaluations)) == pytest.approx(0, abs=1e-9)
    assert rise(histories(lambda t: 0.9 - 0.3 * t, evaluations)) == pytest.approx(-0.1)


@pytest.mark.parametrize(
    'constant, converged', [(0.05, True), (0.1, True), (0.12, True), (0.25, False), (1.0, False)]
)
def test_a_run_of_few_time_constants_has_not_converged(constant, converged):
    found = rise(histories(saturating(constant), noise=0.002))
    assert (found <= RISE) == converged


def test_noise_of_five_seeds_is_no_rise():
    assert abs(rise(histories(lambda t: 0.95 + 0 * t, noise=0.005))) < RISE


def test_what_cannot_be_told_is_not():
    assert rise([]) is None
    assert rise(histories(saturating(1.0), evaluations=1)) is None
    assert rise([[{'step': 1, 'accuracy': 0.5}, {'step': 2, 'accuracy': 0.6}]]) is None


def test_only_methods_above_the_bound_are_named():
    rises = {'a': 0.5, 'b': RISE, 'c': -0.5, 'd': None}
    methods = {name: {'rise': x} for name, x in rises.items()} | {'before': {}}
    assert still_rising(read_results({'methods': methods})) == {'a': 0.5}


@pytest.mark.parametrize(
    'epochs, steps, expected', [(2, 0, 8), (2, 8, 8), (2, 9, 12), (40, 9, 160), (1, 2000, 2000)]
)
def test_epochs_or_steps_whichever_is_longer(epochs, steps, expected):
    own = settings.check({'epochs': epochs, 'steps': steps, 'batch_size': 256}).methods['none']
    found = plan(own, sets.load('digits'))
    assert found.per_epoch == 4 and found.num_steps == expected
    assert found.evaluates(expected) and found.warmup == 4


def test_a_small_set_is_trained_as_long_as_the_configuration_for_any_set_says():
    own = settings.check(configuration('tfds')).methods['vq_ema']
    for examples, epochs in ((1_644, 167), (54_000, 10)):
        info = types.SimpleNamespace(
            num_examples={'train': examples}, name='x', image_shape=(32, 32, 1)
        )
        found = plan(own, types.SimpleNamespace(info=info))
        assert found.epoch(found.num_steps) == epochs
