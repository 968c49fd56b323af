"""What reaches the encoder: the task's gradient, and that of the quantizer's loss."""

from __future__ import annotations

import numpy as np

from vqjax.health.history import Finding, History
from vqjax.health.rules import training


def _no_straight_through(run: History) -> Finding | None:
    flow = run.series('gradient_at_codes', 'gradient_at_input')
    flow = flow[flow[:, 0] > 0]
    passed, bound = run.series('gradient_passed'), 1e-6
    shares = run.series('share_of_task_gradient', 'gradient_at_input', 'quantizer_gradient')
    # Beside a quantizer's gradient a hundred times as long it would be lost in rounding.
    shares = shares[(shares[:, 1] > 0) & (shares[:, 2] < 100 * shares[:, 1])]
    if len(shares) and not training._learning_rate_high(run):
        # Of the gradient that the loop itself has at z: 1, less what a step changes.
        passed, bound = np.abs(shares[:, 0]), 0.1
        evidence = {'share_of_task_gradient': float(np.median(passed))}
        passed = np.array([np.median(passed)])
    elif len(flow):
        passed = flow[:, 1] / flow[:, 0]
        evidence = {'gradient_at_codes': flow[-1, 0], 'gradient_at_input': flow[-1, 1]}
    elif len(passed):
        evidence = {'gradient_passed': passed[-1]}
    # A bounded grid passes nothing beyond its bound: that is `saturated_grid`.
    beyond = run.facts.is_grid and run.last('edge_share') > 0.9
    if not len(passed) or (passed > bound).any() or beyond:
        return None
    remedy = "gradient = 'straight_through', z + stop_gradient(z_q - z)"
    return Finding('no_straight_through', 'error', evidence, remedy)


def _frozen_losses(run: History) -> tuple[np.ndarray, bool]:
    """Quantizer losses that had no gradient, and whether they are all of them."""
    name = 'quantizer_loss_looked' if len(run.series('quantizer_loss_looked')) else 'quantizer_loss'
    flow = run.series(name, 'quantizer_gradient')
    flow = flow[flow[:, 0] > 0]
    frozen = flow[flow[:, 1] <= 1e-9 * flow[:, 0], 0]
    return frozen, len(frozen) == len(flow)


def _clamped_loss(run: History) -> Finding | None:
    frozen, _ = _frozen_losses(run)
    if len(frozen) < 2 or frozen[-1] != frozen[-2]:
        return None
    evidence = {'quantizer_loss': frozen[-1], 'quantizer_gradient': 0.0, 'records': len(frozen)}
    remedy = 'no clamp on the loss; clip_norm = 1.0 bounds the step and keeps its direction'
    return Finding('clamped_loss', 'error', evidence, remedy)


def _detached_commitment(run: History) -> Finding | None:
    frozen, always = _frozen_losses(run)
    # At a weight of 0 there is none to detach: that is `weak_commitment`.
    none = run.facts.number('commitment') == 0
    if not len(frozen) or not always or none or _clamped_loss(run):
        return None
    evidence = {'quantizer_loss': frozen[-1], 'quantizer_gradient': 0.0}
    remedy = 'take the commitment between z and stop_gradient(z_q), with z not detached'
    return Finding('detached_commitment', 'warning', evidence, remedy)


def _loss_left_out(run: History) -> Finding | None:
    """The loss that is minimised holds none of the quantizer's own."""
    rows = run.series('loss', 'task_loss_looked', 'quantizer_loss')
    # At the first look the task's loss has changed most since the step whose loss it was.
    rows = rows[1:] if len(rows) > 2 else rows
    rows = rows[rows[:, 2] > 0.05 * np.abs(rows[:, 1])]
    if not len(rows):
        return None
    share = np.median((rows[:, 0] - rows[:, 1]) / rows[:, 2])
    # 1 where it was added, its weight where it has one, 0 where it was not.
    if not abs(share) < 0.05:
        return None
    loss, task, own = rows[-1]
    evidence = {'loss': loss, 'task_loss': task, 'quantizer_loss': own, 'share_of_it': share}
    remedy = 'minimise task_loss + out.loss'
    return Finding('loss_left_out', 'error', evidence, remedy)


def _weight_in_loss(run: History) -> float:
    """What the loop multiplies the quantizer's loss by; 1 where it cannot be told."""
    rows = run.series('share_of_quantizer_gradient', 'quantizer_gradient', 'gradient_at_input')
    rows = rows[rows[:, 1] > 1e-3 * rows[:, 2]]
    if len(rows):
        return float(max(np.median(rows[:, 0]), 0.0))
    rows = run.series('loss', 'task_loss_looked', 'quantizer_loss')[1:]
    rows = rows[rows[:, 2] > 0.01 * np.abs(rows[:, 1])]
    return float(np.median((rows[:, 0] - rows[:, 1]) / rows[:, 2])) if len(rows) else 1.0


def _ratios(run: History) -> np.ndarray:
    """The quantizer's gradient at z against the task's, a value a look."""
    flow = run.series('quantizer_gradient', 'gradient_at_input')
    flow = flow[flow[:, 1] > 0]
    return flow[:, 0] / flow[:, 1]


def _holds_nothing(run: History) -> bool:
    """Whether z has left its codes: ten times as long as at the start, or served no better than
    by its mean.
    """
    return run.growth > 10 or run.late('relative_error') > 0.75


def _weak_commitment(run: History) -> Finding | None:
    """Nothing that the encoder feels keeps z near the codes."""
    weight, ratios = run.facts.number('commitment'), _ratios(run)
    if not (run.facts.has('commitment') and run.facts.approximates):
        return None
    ratio = float(np.median(ratios)) if len(ratios) else np.nan
    # A hundredth of the task's gradient: the encoder turns by half a degree.
    if not (weight == 0 or (ratio < 0.01 and weight < 0.01)):
        return None
    lost = _holds_nothing(run)
    evidence = {
        'commitment': weight, 'gradient_against_task': ratio, 'growth_of_z': run.growth,
        'relative_error': run.late('relative_error'),
    }  # fmt: skip
    evidence = {name: x for name, x in evidence.items() if np.isfinite(x)}
    return Finding('weak_commitment', 'warning' if lost else 'note', evidence, 'commitment = 0.25')


def _strong_commitment(run: History) -> Finding | None:
    """The commitment outweighs the task: z stays at its codes, whatever the task asks for."""
    given = _weight_in_loss(run)
    ratios = _ratios(run) * given
    weight = run.facts.number('commitment')
    weight = given * (run.last('commitment_weight') if np.isnan(weight) else weight)
    # Where the codes lie far from z any weight pulls hard; the weight is then not at fault.
    fits = not run.first('relative_error') > 0.9
    if not weight > 1 or not run.facts.approximates:
        return None
    if not len(ratios) and weight > 10:
        # Nothing to compare it with; the paper found no difference from 0.1 to 2.
        evidence = {'commitment': weight, 'bound': 10.0}
        return Finding('strong_commitment', 'note', evidence, 'commitment = 0.25')
    if len(ratios) < 2 or not fits:
        return None
    # Ten times the task's gradient: what the encoder follows is 84 degrees off the task's way.
    # Later the ratio falls, since z has then given in; the task's gradient may vanish as well.
    ratio = float(max(ratios[0], np.median(ratios[: max(len(ratios) // 2, 2)])))
    if not ratio > 10:
        return None
    evidence = {'commitment': weight, 'gradient_against_task': ratio, 'bound': 10.0}
    if given > 1.5:
        evidence['weight_of_the_loss'] = given
        remedy = f'add out.loss with a weight of 1, in place of {given:.3g}'
        return Finding('strong_commitment', 'warning', evidence, remedy)
    # As strong as the task at the start, and within what the paper found to make no difference.
    remedy = f'commitment = {min(max(weight / ratio, 0.1), 1.0):.2g}'
    return Finding('strong_commitment', 'warning', evidence, remedy)


def _swapped_coefficients(run: History) -> Finding | None:
    weights = run.series('commitment_weight', 'codebook_weight')
    if not len(weights):
        return None
    commitment, codebook = weights[-1]
    if not commitment > 1.5 * codebook > 1e-3:
        return None
    evidence = {'commitment_weight': commitment, 'codebook_weight': codebook}
    remedy = 'a commitment of 0.25 for z, a codebook weight of 1.0 for the codes (VQ-VAE, eq. 3)'
    return Finding('swapped_coefficients', 'warning', evidence, remedy)
