"""The rules: each reads the history of a run and gives one finding, or None.

A rule whose records are missing finds nothing. Causes are told before what follows from them, so
every rule of the first kind names something to change, and those of the second what a run looks
like whatever the cause.
"""

from __future__ import annotations

from collections.abc import Callable

from vqjax.health.history import Finding, History
from vqjax.health.rules import averages, gradients, inputs, revival, training, use

CLASS_SHARE = use.CLASS_SHARE
Rule = Callable[[History], Finding | None]

CAUSES: tuple[Rule, ...] = (
    averages._noisy_average,
    averages._zero_counts,
    averages._discarded_init,
    averages._missing_total,
    inputs._rejected_vectors,
    training._learning_rate_high,
    training._learning_rate_low,
    training._weights_shrink,
    inputs._constant_inputs,
    inputs._offset,
    gradients._no_straight_through,
    gradients._clamped_loss,
    gradients._detached_commitment,
    gradients._loss_left_out,
    gradients._weak_commitment,
    gradients._strong_commitment,
    gradients._swapped_coefficients,
    averages._frozen_codebook,
    averages._random_codes,
    averages._slow_average,
    revival._revival_every_step,
    revival._absolute_threshold,
    revival._stale_revival,
    revival._late_revival,
    averages._blind_start,
    training._eval_updates,
    inputs._reshaped_features,
    inputs._unscaled_fsq,
    inputs._saturated_grid,
    training._frozen_parameters,
    training._batch_order,
    training._overfitting,
    inputs._input_scale,
)
SYMPTOMS: tuple[Rule, ...] = (
    training._diverged,
    use._collapse,
    use._dead_codes,
    use._dead_stage,
    use._error_near_variance,
    inputs._growing_inputs,
    training._no_progress,
    training._codes_ignored,
    training._loss_rising,
    training._spikes,
    use._few_codes_needed,
    use._skewed_use,
)
RULES = CAUSES + SYMPTOMS

__all__ = ['CAUSES', 'CLASS_SHARE', 'RULES', 'SYMPTOMS', 'Rule']
