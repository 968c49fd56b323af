"""The encoder's output: its offset, scale and growth, and what a fixed grid makes of it."""

from __future__ import annotations

import numpy as np

from vqjax.health.history import Finding, History
from vqjax.health.rules import use


def _constant_inputs(run: History) -> Finding | None:
    """The same vector for every input."""
    norm, spread, start = (
        run.late('input_norm'), run.late('input_spread'), run.first('input_spread')
    )  # fmt: skip
    # A ten-thousandth of its length is what float32 leaves of a difference after a few layers.
    if not (spread <= 1e-4 * norm or spread < 1e-3 * start):
        return None
    evidence = {'input_spread': spread, 'input_norm': norm, 'input_spread_start': start}
    evidence = {name: x for name, x in evidence.items() if np.isfinite(x)}
    remedy = 'look for units that are all 0 (ReLU), a scale of 0, or too large a weight decay'
    return Finding('constant_inputs', 'error', evidence, remedy)


def _offset(run: History) -> Finding | None:
    """A vector that all z share, and that is longer than what tells them apart."""
    start = run.first('input_offset') / run.first('input_spread')
    # At five times the spread all z lie within a cone of about 11 degrees, and next to no feature
    # changes its sign. Features after a ReLU have 1 to 2.
    if not start > 5:
        return None
    evidence = {'offset_against_spread': start, 'bound': 5.0}
    evidence['late'] = run.late('input_offset') / run.late('input_spread')
    facts = run.facts
    feels = facts.is_grid or facts.starts_blind or not facts.approximates
    active = run.last('active_codes')
    pays = feels or run.could_do_better or run.few_active or active < 0.3 * run.expected
    remedy = 'subtract the mean of z, or standardise its features, before the quantizer'
    return Finding('offset', 'warning' if pays else 'note', evidence, remedy)


def _input_scale(run: History) -> Finding | None:
    """Features far from the scale that initial weights and learning rates are meant for."""
    scale = run.first('input_scale')
    if not (scale > 30 or 0 < scale < 1 / 30):
        return None
    evidence = {'input_scale': scale, 'bound': 30.0 if scale > 1 else 1 / 30}
    remedy = 'bring the data, or the features of z, to mean 0 and variance 1'
    return Finding('input_scale', 'note', evidence, remedy)


def _reshaped_features(run: History) -> Finding | None:
    overlap = run.last('position_overlap', 1.0)
    if not overlap < 0.5:
        return None
    remedy = 'a codebook for each group (shared=False), or Projected in place of a reshape'
    return Finding(
        'reshaped_features', 'warning', {'position_overlap': overlap, 'bound': 0.5}, remedy
    )


def _unscaled_fsq(run: History) -> Finding | None:
    collapsed = use._collapse(run)
    fsq = run.facts.is_fsq or "'fsq'" in repr(run.facts.quantizer)
    # Of features beyond the grid the outermost levels are in use, which is another fault.
    if collapsed is None or not fsq or run.last('perplexity') > 2 or run.last('edge_share') > 0.5:
        return None
    evidence = {'perplexity': run.last('perplexity'), 'input_norm': run.last('input_norm')}
    remedy = 'features of mean 0 and variance 1 before the grid (vqjax.encoders.Encoder has them)'
    return Finding('unscaled_fsq', 'error', evidence, remedy)


def _saturated_grid(run: History) -> Finding | None:
    """Features so large that all the grid tells of them is their sign."""
    share = run.last('edge_share')
    levels = run.facts.get('levels', ())
    uniform = float(np.mean([2 / level for level in levels])) if levels else np.nan
    # Half way from uniform use of the levels to the outermost ones alone.
    bound = (1 + uniform) / 2
    if not share > bound:
        return None
    evidence = {'share_at_outermost_levels': share, 'if_uniform': uniform, 'bound': bound}
    remedy = 'bring the features to mean 0 and variance 1 before the grid'
    return Finding('saturated_grid', 'warning', evidence, remedy)


def _rejected_vectors(run: History) -> Finding | None:
    """Vectors without a code that no mask hides: they are not finite."""
    rejected = run.series('rejected', 'batch_tokens')
    rejected = rejected[rejected[:, 0] > 0]
    # All at once is a model that has diverged; some beside others come from the data.
    if not len(rejected) or not rejected[0, 1] > 0:
        return None
    evidence = {'rejected_at_first': rejected[0, 0], 'steps': float(len(rejected))}
    remedy = 'look for NaN and infinities in the data and in the encoder; give padding as a mask'
    return Finding('rejected_vectors', 'warning', evidence, remedy)


def _growing_inputs(run: History) -> Finding | None:
    """z that grows without an end, or away from its codes."""
    lengths = run.series('input_norm')
    if len(lengths) < 10:
        return None
    fifth = len(lengths) // 5
    early, middle, late = (
        np.median(lengths[i * fifth : (i + 1) * fifth]) for i in (1, 2, 4)
    )  # fmt: skip
    growth = run.growth
    # Ten times is more than any sound run of ours showed (7.5, a classifier without weight decay).
    away = growth > 10 and (late > 1.3 * middle or run.late('relative_error') > 0.75)
    if not (late > 10 * early or away):
        return None
    evidence = {'input_norm_early': early, 'input_norm_late': late, 'growth': growth}
    evidence = {name: x for name, x in evidence.items() if np.isfinite(x)}
    remedy = 'weight_decay = 1e-2, or a normalisation before the quantizer'
    if run.facts.has('commitment') and not run.facts.number('commitment') >= 0.25:
        remedy = f'commitment = 0.25, {remedy}'
    return Finding('growing_inputs', 'warning', evidence, remedy)
