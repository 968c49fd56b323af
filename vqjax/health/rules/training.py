"""The loop: its learning rate, its data, its loss over time, and its evaluation."""

from __future__ import annotations

import numpy as np

from vqjax.health.history import Finding, History


def _diverged(run: History) -> Finding | None:
    losses = np.concatenate([run.series(name, finite=False) for name in ('loss', 'quantizer_loss')])
    if np.isfinite(losses).all():
        return None
    evidence = {'records': float(len(losses)), 'not_finite': float((~np.isfinite(losses)).sum())}
    return Finding('diverged', 'error', evidence, 'learning_rate lower, clip_norm = 1.0')


def _learning_rate_high(run: History) -> Finding | None:
    """Steps as large as what they change."""
    ratios = run.series('update_ratio')
    # Five steps of a fifth of the weights replace them, and later ten of a tenth. Adam's first step
    # is lr / (rms of a weight): 0.045 at most in the sound runs of the tests, 0.29 and more where
    # the rate was found too high.
    first, later = np.max(ratios, initial=0.0), np.median(ratios[1:]) if len(ratios) > 2 else 0.0
    jump, rise = _rise_in_ten(run, 'input_norm'), _rise_in_ten(run, 'loss')
    started = run.first('input_norm') > 0
    # Without the weights: z five times as long within ten steps, and the loss twice as high.
    if not (first > 0.2 or later > 0.1 or (started and jump > 5 and rise > 2)):
        return None
    evidence = {'update_ratio': first, 'update_ratio_later': later, 'bound': 0.2}
    if jump:
        evidence |= {'growth_in_ten_steps': jump, 'loss_in_ten_steps': rise}
    lower = f' by {first / 0.02:.0f} times' if first > 0.2 else ''
    remedy = f'learning_rate lower{lower}, or a warm-up'
    return Finding('learning_rate_high', 'error', evidence, remedy)


def _rise_in_ten(run: History, name: str) -> float:
    """The largest of the first ten values against the first, those that are finite."""
    values = run.series(name, finite=False)[:10]
    if len(values) < 10 or not values[0] > 0:
        return 0.0
    return float(np.max(values[np.isfinite(values)]) / values[0])


def _learning_rate_low(run: History) -> Finding | None:
    """Weights that cannot have left where they began."""
    ratios = run.series('update_ratio_most')
    if len(ratios) < 2:
        return None
    # All steps in one direction: more than the weights can have moved.
    moved = float(np.max(ratios)) * run.steps
    # Where nothing moved at all there is no gradient.
    if not 0 < moved < 0.01:
        return None
    evidence = {'moved_at_most': moved, 'bound': 0.01, 'steps': run.steps}
    return Finding('learning_rate_low', 'error', evidence, 'learning_rate higher, or a longer run')


def _weights_shrink(run: History) -> Finding | None:
    """Weights that decay faster than they learn."""
    start, late = run.first('model_norm'), run.late('model_norm')
    if not late < 0.3 * start:
        return None
    evidence = {'model_norm_start': start, 'model_norm_late': late, 'ratio': late / start}
    return Finding('weights_shrink', 'warning', evidence, 'weight_decay lower')


def _frozen_parameters(run: History) -> Finding | None:
    """Matrices that no step moved."""
    still = run.series('still_arrays', 'arrays')
    if len(still) < 2 or not still[:, 0].min() > 0:
        return None
    # A task that does not read the codes moves nothing before or behind them: `codes_ignored`.
    reads = run.series('gradient_at_codes')
    if len(reads) and not reads.any():
        return None
    evidence = {'arrays_that_never_move': still[:, 0].min(), 'of': still[-1, 1]}
    remedy = 'look for a stop_gradient, or for parameters that the optimizer does not hold'
    return Finding('frozen_parameters', 'warning', evidence, remedy)


def _eval_updates(run: History) -> Finding | None:
    drift = np.max(run.series('evaluation_drift'), initial=0.0)
    if not drift > 1e-7:
        return None
    remedy = 'evaluate with train=False: test data must not move the codebook'
    return Finding('eval_updates', 'error', {'evaluation_drift': drift}, remedy)


def _roughness(values: np.ndarray) -> float:
    """Mean squared difference of neighbours against the variance, after a quadratic trend.

    2 (1 - r) for neighbours of correlation r (von Neumann 1941).
    """
    values = values[len(values) // 2 :]
    if len(values) < 50:
        return np.nan
    at = np.linspace(-1, 1, len(values))
    rest = values - np.polyval(np.polyfit(at, values, 2), at)
    return float(np.mean(np.diff(rest) ** 2) / np.var(rest))


def _batch_order(run: History) -> Finding | None:
    """Batches that resemble the one before them."""
    loss, spread = _roughness(run.series('loss')), _roughness(run.series('input_spread'))
    # Of batches drawn alike both are near 2, and 1 is a correlation of a half. z alone may drift,
    # and so may a loss; the data move both.
    if not (loss < 1 and spread < 1):
        return None
    evidence = {'correlation_of_losses': 1 - loss / 2, 'correlation_of_spreads': 1 - spread / 2}
    return Finding('batch_order', 'warning', evidence, 'shuffle the training data')


def _overfitting(run: History) -> Finding | None:
    """What is learned on the training data does not hold on others."""
    train, held_out = run.series('task_loss_looked'), run.series('evaluation_loss')
    start = run.first('loss')
    if len(train) < 3 or len(held_out) < 2 or not np.isfinite(start):
        return None
    start = max(start, train[0])
    now, ahead = float(np.mean(train[-3:])), float(np.mean(held_out[-2:]))
    best = float(np.min(held_out))
    gain = start - now
    if not gain > 0 or not ahead > now:
        return None
    lost, risen = (ahead - now) / gain, (ahead - best) / gain
    evidence = {
        'task_loss': now, 'evaluation_loss': ahead, 'best_evaluation_loss': best,
        'share_of_gain_lost': lost,
    }  # fmt: skip
    remedy = 'more training data or augmentation, or stop where evaluation_loss is lowest'
    # A quarter of all that was learned is not there on other data, or a tenth has been unlearned.
    if lost > 0.25 or (risen > 0.1 and lost > 0.1):
        return Finding('overfitting', 'warning', evidence, remedy)
    if ahead > 1.25 * now and lost > 0.02:
        return Finding('overfitting', 'note', evidence, remedy)
    return None


def _ignored(run: History) -> tuple[float, float]:
    """Late task loss with the right vectors, and with those of other examples."""
    rows = run.series('task_loss_looked', 'task_loss_shuffled')[-3:]
    return (np.nan, np.nan) if len(rows) < 3 else tuple(np.median(rows, axis=0))


def _codes_ignored(run: History) -> Finding | None:
    """The task does as well with the codes of other examples."""
    right, other = _ignored(run)
    if not other - right < 0.02 * abs(right):
        return None
    evidence = {'task_loss': right, 'task_loss_shuffled': other}
    remedy = 'look for a path around the quantizer, or for codes that carry nothing yet'
    return Finding('codes_ignored', 'warning', evidence, remedy)


def _no_progress(run: History) -> Finding | None:
    """A task loss that has hardly fallen."""
    name = 'task_loss_looked' if len(run.series('task_loss_looked')) else 'loss'
    losses = run.series(name)
    if len(losses) < 3 or run.steps < 100 or not np.isfinite(run.first(name)):
        return None
    start, late = losses[0], float(np.median(losses[-max(len(losses) // 5, 3) :]))
    if not late > 0.98 * start > 0:
        return None
    evidence = {f'{name}_start': start, f'{name}_late': late}
    remedy = 'look at the targets, at the learning rate, and for a task loss without a gradient'
    severity = 'warning' if _codes_ignored(run) else 'note'
    return Finding('no_progress', severity, evidence, remedy)


def _quantile_medians(values: np.ndarray) -> tuple[float, float]:
    """Medians of the second and of the last fifth."""
    if len(values) < 10:
        return np.nan, np.nan
    fifth = len(values) // 5
    return float(np.median(values[fifth : 2 * fifth])), float(np.median(values[-fifth:]))


def _loss_rising(run: History) -> Finding | None:
    values = run.series('relative_error')
    least = 0.3  # of the variance; below, a rise costs little
    if not len(values):
        # Against the power of its input, where that is known: free of its scale.
        both = run.series('quantizer_loss', 'input_norm')
        values = both[:, 0] / np.maximum(both[:, 1], 1e-30) ** 2
        least = 0.0
        if not len(both):
            values = run.series('quantizer_loss')
    early, late = _quantile_medians(values)
    if not (late > 3 * early > 0 and late > least):
        return None
    evidence = {'relative_loss_early': early, 'relative_loss_late': late}
    remedy = 'learning_rate lower, or a codebook that keeps up with its vectors'
    if run.facts.has('decay') and not run.facts.number('decay') <= 0.95:
        remedy += ': decay = 0.95'
    return Finding('loss_rising', 'warning', evidence, remedy)


def _spikes(run: History) -> Finding | None:
    losses = run.series('quantizer_loss', 'gradient_norm')[:, 0]
    losses = losses[len(losses) // 5 :]
    if len(losses) < 100:
        return None
    window = 25
    local = np.array(
        [np.median(losses[max(i - window, 0) : i + window]) for i in range(len(losses))]
    )
    spikes = losses > 4 * local
    if spikes.sum() < 3:
        return None
    worst = np.max(losses[spikes] / local[spikes])
    evidence = {'spikes': float(spikes.sum()), 'worst_against_median': worst}
    remedy = 'learning_rate lower'
    revival = run.facts.get('revival')
    if run.facts.has('revival') and getattr(revival, 'every', 1) < 10:
        remedy += ', revival every tenth step at most'
    return Finding('spikes', 'warning', evidence, remedy)
