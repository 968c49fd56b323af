"""Dead codes that are brought back: too many, too late, or not for good."""

from __future__ import annotations

import math

import numpy as np

from vqjax.health.history import Finding, History
from vqjax.health.rules import remedies


def _revivals(run: History) -> tuple[float, float]:
    """How much revival there still is, and in which share of the steps.

    Where it is recorded, the share of the revived codes that were in use. Else of the latter half
    of the revivals the median number of codes, as a share of all that a batch can revive.
    """
    revived = run.series('revived', 'codebook_norm')[1:, 0]
    looks = revived[revived > 0]
    in_use = run.series('revived_in_use')
    if not run.num_codes or len(looks) < 4:
        return 0.0, 0.0
    often = float(np.mean(revived > 0))
    if len(in_use):
        share = float(in_use.sum() / looks.sum())
        # By chance a code is called used that has just died; a handful is no evidence.
        return (share if share > 0.1 and in_use.sum() >= 10 else 0.0), often
    # A codebook that starts dead may be replaced once; more than that were codes in use.
    if np.sum(looks) < 1.5 * run.num_codes:
        return 0.0, 0.0
    most = np.fmin(run.num_codes, run.last('batch_tokens'))
    share = float(np.median(looks[len(looks) // 2 :]) / most)
    return (share if share > 0.25 else 0.0), often


def _revival_every_step(run: History) -> Finding | None:
    share, often = _revivals(run)
    if not (often > 0.5 and share > 0):
        return None
    evidence = {'share_of_steps': often, 'share_revived': share}
    remedy = 'revive every tenth step, by averages over steps and not by one batch: Revival()'
    return Finding('revival_every_step', 'warning', evidence, remedy)


def _absolute_threshold(run: History) -> Finding | None:
    share, often = _revivals(run)
    if not share > 0 or _revival_every_step(run):
        return None
    evidence = {'share_revived': share, 'share_of_steps': often}
    remedy = 'call a code dead below a share of uniform use, not below a count: Revival(below=0.1)'
    return Finding('absolute_threshold', 'warning', evidence, remedy)


def _stale_revival(run: History) -> Finding | None:
    revived, reverted = np.sum(run.series('revived')), np.sum(run.series('reverted'))
    if not (reverted > 5 and reverted > 0.2 * revived):
        return None
    evidence = {'revived': revived, 'reverted': reverted}
    remedy = 'revive code, count and sum together, as VQEMA does'
    return Finding('stale_revival', 'warning', evidence, remedy)


def _late_revival(run: History) -> Finding | None:
    """Revival that cannot act before the run is over, on codes that are dead."""
    revival = run.facts.get('revival')
    every, below = getattr(revival, 'every', None), getattr(revival, 'below', None)
    decay = run.facts.number('decay')
    if every is None or not 0 < below < 1 or not 0 <= decay < 1 or not run.steps:
        return None
    # A count that starts at uniform use falls as decay^t: below the threshold after this many.
    falls = math.log(below) / math.log(decay) if decay > 0 else 0.0
    first = max(float(every), falls)
    few = run.last('active_codes') < 0.2 * run.expected
    revived = run.series('revived')
    if not (first > run.steps and few and len(revived) and revived.sum() == 0):
        return None
    evidence = {'first_revival': first, 'steps': run.steps}
    evidence['active_codes'] = run.last('active_codes')
    advice = []
    if falls > run.steps:
        advice.append(f'decay = {remedies.decay(run)}')
    if every > run.steps / 10:
        advice.append(f'revival = Revival(every={max(int(run.steps / 20), 1)})')
    severity = 'note' if run.could_do_better is False else 'warning'
    return Finding('late_revival', severity, evidence, ', '.join(advice) or 'a longer run')
