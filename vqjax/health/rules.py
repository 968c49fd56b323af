"""The rules: each reads the history of a run and gives one finding, or None.

A rule whose records are missing finds nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vqjax.health.history import Finding, History

# Of the number of classes, below which the perplexity is a collapse: one code a class is enough,
# and on classes that are not quite balanced has barely less than their number.
CLASS_SHARE = 0.95


def _diverged(run):
    losses = np.concatenate([run.series('loss'), run.series('quantizer_loss')])
    if np.isfinite(losses).all():
        return None
    evidence = {'records': float(len(losses)), 'not_finite': float((~np.isfinite(losses)).sum())}
    return Finding('diverged', 'error', evidence, 'learning_rate lower, clip_norm = 1.0')


# Faults of the averages: a code lies in the hull of its vectors, so it cannot be longer.


def _first_update(run):
    """Mean length of the codes before and after the first update; NaN where not recorded."""
    lengths = run.series('codebook_norm')
    return (lengths[0], lengths[1]) if len(lengths) > 1 else (np.nan, np.nan)


def _zero_counts(run):
    before, after = _first_update(run)
    bound = max(run.last('batch_tokens', 0.0), 10.0)
    if not after > bound * before:
        return None
    evidence = {'codebook_norm_start': before, 'codebook_norm_step_1': after, 'bound': bound}
    remedy = "counts start at those of the init batch: quantizer 'vq_ema', init = 'kmeans'"
    return Finding('zero_counts', 'error', evidence, remedy)


def _discarded_init(run):
    before, after = _first_update(run)
    if not after < 0.5 * before:
        return None
    evidence = {'codebook_norm_start': before, 'codebook_norm_step_1': after}
    remedy = "sums start at centroid * count: quantizer 'vq_ema', init = 'kmeans'"
    return Finding('discarded_init', 'error', evidence, remedy)


def _missing_total(run):
    code, vector = run.last('max_code_norm'), np.max(run.series('input_norm'), initial=0.0)
    if not code > 10 * vector or _zero_counts(run):
        return None
    evidence = {'max_code_norm': code, 'largest_input_norm': vector, 'ratio': code / vector}
    remedy = "smoothed counts times their total: quantizer 'vq_ema'"
    return Finding('missing_total', 'error', evidence, remedy)


# Faults of the gradient.


def _no_straight_through(run):
    flow = run.series('gradient_at_codes', 'gradient_at_input')
    flow = flow[flow[:, 0] > 0]
    if not len(flow) or (flow[:, 1] > 1e-6 * flow[:, 0]).any():
        return None
    evidence = {'gradient_at_codes': flow[-1, 0], 'gradient_at_input': flow[-1, 1]}
    return Finding('no_straight_through', 'error', evidence, "gradient = 'straight_through'")


def _frozen_losses(run):
    """Quantizer losses that had no gradient, and whether they are all of them."""
    flow = run.series('quantizer_loss', 'quantizer_gradient')
    flow = flow[flow[:, 0] > 0]
    frozen = flow[flow[:, 1] <= 1e-9 * flow[:, 0], 0]
    return frozen, len(frozen) == len(flow)


def _clamped_loss(run):
    frozen, _ = _frozen_losses(run)
    if len(frozen) < 2 or frozen[-1] != frozen[-2]:
        return None
    evidence = {'quantizer_loss': frozen[-1], 'quantizer_gradient': 0.0, 'records': len(frozen)}
    remedy = 'no clamp on the loss; clip_norm = 1.0 bounds the step and keeps its direction'
    return Finding('clamped_loss', 'error', evidence, remedy)


def _detached_commitment(run):
    frozen, always = _frozen_losses(run)
    if not len(frozen) or not always or _clamped_loss(run):
        return None
    evidence = {'quantizer_loss': frozen[-1], 'quantizer_gradient': 0.0}
    remedy = "commitment = 0.25 of 'vq_ema': |z - sg(z_q)|^2, with z not detached"
    return Finding('detached_commitment', 'warning', evidence, remedy)


def _swapped_coefficients(run):
    weights = run.series('commitment_weight', 'codebook_weight')
    if not len(weights):
        return None
    commitment, codebook = weights[-1]
    if not commitment > 1.5 * codebook > 1e-3:
        return None
    evidence = {'commitment_weight': commitment, 'codebook_weight': codebook}
    return Finding('swapped_coefficients', 'warning', evidence, 'commitment = 0.25, codebook = 1.0')


def _growing_inputs(run):
    lengths = run.series('input_norm')
    early, late = _quantile_medians(lengths)
    if not late > 10 * early:
        return None
    evidence = {'input_norm_early': early, 'input_norm_late': late}
    return Finding('growing_inputs', 'warning', evidence, 'commitment = 0.25, weight_decay = 1e-2')


# Faults of the revival.


def _revivals(run):
    """How much revival there still is, and in which share of the steps.

    Of the latter half of the revivals the median number of codes, as a share of all that a batch
    can revive.
    """
    revived = run.series('revived', 'codebook_norm')[1:, 0]
    looks = revived[revived > 0]
    # A codebook that starts dead may be replaced once; more than that were codes in use.
    if not run.num_codes or len(looks) < 4 or np.sum(looks) < 1.5 * run.num_codes:
        return 0.0, 0.0
    most = np.fmin(run.num_codes, run.last('batch_tokens'))
    return np.median(looks[len(looks) // 2 :]) / most, np.mean(revived > 0)


def _revival_every_step(run):
    share, often = _revivals(run)
    if not (often > 0.5 and share > 0.25):
        return None
    evidence = {'share_of_steps': often, 'share_revived': share}
    remedy = "revival = {'every': 10, 'below': 0.1}: averages over steps, not one batch"
    return Finding('revival_every_step', 'warning', evidence, remedy)


def _absolute_threshold(run):
    share, often = _revivals(run)
    if not share > 0.25 or _revival_every_step(run):
        return None
    evidence = {'share_revived': share, 'share_of_steps': often}
    remedy = "revival = {'below': 0.1}: a share of uniform use, not a count"
    return Finding('absolute_threshold', 'warning', evidence, remedy)


def _stale_revival(run):
    revived, reverted = np.sum(run.series('revived')), np.sum(run.series('reverted'))
    if not (reverted > 5 and reverted > 0.2 * revived):
        return None
    evidence = {'revived': revived, 'reverted': reverted}
    remedy = "code, count and sum revived together: quantizer 'vq_ema' with its revival"
    return Finding('stale_revival', 'warning', evidence, remedy)


# Faults around the quantizer.


def _eval_updates(run):
    drift = np.max(run.series('evaluation_drift'), initial=0.0)
    if not drift > 1e-7:
        return None
    remedy = 'evaluate with train=False: test data must not move the codebook'
    return Finding('eval_updates', 'error', {'evaluation_drift': drift}, remedy)


def _reshaped_features(run):
    overlap = run.last('position_overlap', 1.0)
    if not overlap < 0.5:
        return None
    remedy = "quantizer {'name': 'projected', 'dim': 64, 'inner': ...}, or 'product' not shared"
    return Finding(
        'reshaped_features', 'warning', {'position_overlap': overlap, 'bound': 0.5}, remedy
    )


def _unscaled_fsq(run):
    collapsed = _collapse(run)
    if collapsed is None or "'fsq'" not in run.spec or run.last('perplexity') > 2:
        return None
    evidence = {'perplexity': run.last('perplexity'), 'input_norm': run.last('input_norm')}
    remedy = 'features of mean 0 and variance 1 before the grid (vqjax.encoders.Encoder has them)'
    return Finding('unscaled_fsq', 'error', evidence, remedy)


# What a run looks like, whatever the cause.


def _uniform_use(tokens, num_codes):
    """Codes that `tokens` uniform draws among `num_codes` are expected to use."""
    return -num_codes * np.expm1(tokens * np.log1p(-1 / num_codes)) if num_codes > 1 else 1.0


def _expected(run):
    """Codes that a uniform source of the run's tokens would use."""
    if run.num_codes is None:
        return np.nan
    tokens = run.last('tokens')
    return run.num_codes if np.isnan(tokens) else _uniform_use(tokens, run.num_codes)


def _collapse(run):
    perplexity, expected = run.last('perplexity'), _expected(run)
    # C classes need about C codes; detail needs a share of what a uniform source would use.
    bound = 0.2 * expected if run.num_classes is None else CLASS_SHARE * run.num_classes
    bound = np.fmin(bound, 0.8 * expected)
    if not perplexity < bound:
        return None
    evidence = {'perplexity': perplexity, 'bound': bound}
    evidence |= {name: run.last(name) for name in ('active_codes', 'max_share')}
    evidence = {name: x for name, x in evidence.items() if not np.isnan(x)}
    remedy = "init = 'kmeans', revival = {'below': 0.1, 'every': 10}, decay = 0.95"
    return Finding('collapse', 'error', evidence, remedy)


def _dead_codes(run):
    active, expected = run.last('active_codes'), _expected(run)
    bound = (0.3 if run.num_classes is None else 0.05) * expected
    if not active < bound:
        return None
    evidence = {'active_codes': active, 'if_uniform': expected, 'bound': bound}
    return Finding('dead_codes', 'warning', evidence, "revival = {'below': 0.1, 'every': 10}")


def _quantile_medians(values):
    """Medians of the second and of the last fifth."""
    if len(values) < 10:
        return np.nan, np.nan
    fifth = len(values) // 5
    return np.median(values[fifth : 2 * fifth]), np.median(values[-fifth:])


def _relative_loss(run):
    """Quantizer loss against the power of its input, where that is known: free of its scale."""
    both = run.series('quantizer_loss', 'input_norm')
    if len(both):
        return both[:, 0] / np.maximum(both[:, 1], 1e-30) ** 2
    return run.series('quantizer_loss')


def _loss_rising(run):
    early, late = _quantile_medians(_relative_loss(run))
    if not late > 3 * early > 0:
        return None
    evidence = {'relative_loss_early': early, 'relative_loss_late': late}
    remedy = "quantizer 'vq_ema', decay = 0.95: a codebook that keeps up with its vectors"
    return Finding('loss_rising', 'warning', evidence, remedy)


def _spikes(run):
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
    remedy = "revival = {'below': 0.1, 'every': 10}, learning_rate lower"
    return Finding('spikes', 'warning', evidence, remedy)


RULES: tuple[Callable[[History], Finding | None], ...] = (
    _diverged,
    _zero_counts,
    _discarded_init,
    _missing_total,
    _no_straight_through,
    _clamped_loss,
    _detached_commitment,
    _swapped_coefficients,
    _growing_inputs,
    _revival_every_step,
    _absolute_threshold,
    _stale_revival,
    _eval_updates,
    _reshaped_features,
    _unscaled_fsq,
    _collapse,
    _dead_codes,
    _loss_rising,
    _spikes,
)
