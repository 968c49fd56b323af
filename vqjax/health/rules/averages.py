"""The codebook: what its averages, its start and its choice of codes do to it."""

from __future__ import annotations

import math

import numpy as np

from vqjax.health.history import Finding, History
from vqjax.health.rules import remedies

# A code is a mean of vectors, so it lies in their hull and cannot be longer than they are.


def _first_update(run: History) -> tuple[float, float]:
    """Mean length of the codes before and after the first update; NaN where not recorded."""
    lengths = run.series('codebook_norm')
    return (lengths[0], lengths[1]) if len(lengths) > 1 else (np.nan, np.nan)


def _zero_counts(run: History) -> Finding | None:
    before, after = _first_update(run)
    bound = max(run.last('batch_tokens', 0.0), 10.0)
    if not after > bound * before:
        return None
    evidence = {'codebook_norm_start': before, 'codebook_norm_step_1': after, 'bound': bound}
    remedy = 'start the counts from the initialisation, as the sums: VQEMA.init does'
    return Finding('zero_counts', 'error', evidence, remedy)


def _discarded_init(run: History) -> Finding | None:
    before, after = _first_update(run)
    if not after < 0.5 * before or run.first('relative_error') > 1:
        return None
    evidence = {'codebook_norm_start': before, 'codebook_norm_step_1': after}
    remedy = 'start the sums at centroid * count: VQEMA.init does'
    return Finding('discarded_init', 'error', evidence, remedy)


def _missing_total(run: History) -> Finding | None:
    code, vector = run.last('max_code_norm'), np.max(run.series('input_norm'), initial=0.0)
    if not code > 10 * vector or _zero_counts(run):
        return None
    # Codes drawn without a look at small vectors are longer than they are from the start.
    if run.facts.starts_blind and code < 1.5 * run.first('max_code_norm'):
        return None
    evidence = {'max_code_norm': code, 'largest_input_norm': vector, 'ratio': code / vector}
    remedy = 'multiply the smoothed counts by their total, (N + eps) / (n + K eps) * n'
    return Finding('missing_total', 'error', evidence, remedy)


def _frozen_codebook(run: History) -> Finding | None:
    """A codebook that no step moved by a bit."""
    changes = run.series('codebook_change')
    if len(changes) < 10 or changes.max() > 0:
        return None
    evidence = {'largest_change': 0.0, 'steps': float(len(changes))}
    if run.facts.known and run.facts.has('codebook'):
        remedy = "give the quantizer's params to the optimizer"
        if run.facts.number('codebook') == 0:
            remedy = 'codebook = 1.0: at 0 nothing moves the codes'
    else:
        remedy = (
            "keep the state that `update` returns (Linen: mutable=['codebook_stats'], and the "
            'updated collection in the next step)'
        )
    return Finding('frozen_codebook', 'error', evidence, remedy)


def _random_codes(run: History) -> Finding | None:
    """Codes drawn at a temperature at which they say little of the vector."""
    errors = run.series('relative_error', 'nearest_error')
    temperature = run.facts.number('temperature')
    if not len(errors) or not temperature > 0 or not run.facts.approximates:
        return None
    drawn, nearest = np.median(errors[len(errors) // 2 :], axis=0)
    # Twice the error of the nearest code, or as much as a code drawn blindly leaves at the least.
    if not (drawn > 2 * nearest or drawn > 1) or drawn < 0.2:
        return None
    evidence = {'relative_error': drawn, 'of_nearest': nearest, 'temperature': temperature}
    remedy = f'temperature below {temperature:g}, the mean squared distance to the nearest code'
    return Finding('random_codes', 'warning', evidence, remedy)


def _window(run: History) -> float:
    """Steps that an average remembers, 1 / (1 - decay); NaN without averages."""
    decay = run.facts.number('decay')
    return 1 / (1 - decay) if decay < 1 else np.nan


def _noisy_average(run: History) -> Finding | None:
    """Fewer than one vector a code in all that the averages remember."""
    tokens, window = run.late('batch_tokens'), _window(run)
    if run.num_codes is None or not run.facts.averages:
        return None
    held = tokens * window / run.num_codes
    if not held < 1:
        return None
    evidence = {'vectors_a_code': held, 'batch_tokens': tokens, 'decay': run.facts.number('decay')}
    # Ten vectors a code leave a tenth of the variance as noise of the mean.
    wanted = 1 - tokens / (10 * run.num_codes)
    remedy = f'decay = {remedies.rounded(wanted)}, or a larger batch'
    severity = 'warning' if run.late('codebook_change') > 0.05 else 'note'
    return Finding('noisy_average', severity, evidence, remedy)


def _slow_average(run: History) -> Finding | None:
    """Averages that still hold more of their start than of the run."""
    window = _window(run)
    kept = math.exp(-run.steps / window) if window > 0 and run.steps else 0.0
    # Above a half, a code is nearer to where it began than to where its vectors are.
    if not kept > 0.5 or not run.facts.averages or run.steps < 20:
        return None
    evidence = {'kept_of_start': kept, 'window': window, 'steps': run.steps}
    remedy = f'decay = {remedies.decay(run)}: averages over a tenth of the run at most'
    error, reference = run.errors
    behind = error > 1.5 * reference and error > 0.1
    few = run.last('active_codes') < 0.3 * run.expected
    return Finding('slow_average', 'warning' if behind or few else 'note', evidence, remedy)


def _blind_start(run: History) -> Finding | None:
    """Codes that began no nearer to the vectors than their mean is."""
    error = run.first('relative_error')
    if not run.facts.starts_blind or not error > 0.9:
        return None
    evidence = {'relative_error_start': error, 'active_codes': run.last('active_codes')}
    evidence |= {'if_uniform': run.expected}
    lost = run.could_do_better or run.last('active_codes') < 0.3 * run.expected
    remedy = "init = 'kmeans', on a large batch of real vectors"
    if run.facts.has('revival') and run.facts.get('revival') is None:
        remedy += ', and revival = Revival()'
    return Finding('blind_start', 'warning' if lost else 'note', evidence, remedy)
