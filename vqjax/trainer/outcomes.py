"""What is kept of an evaluation, and of a model."""

from typing import Any

import jax
import numpy as np

from vqjax import calibration, metrics
from vqjax.trainer import loop, training


def measure(evaluation: loop.Evaluation, quantizer: Any = None) -> dict[str, Any]:
    """Every figure of one split, from its predictions and its summed counts.

    accuracy, nll, brier, ece; with a quantizer perplexity, active_codes and usage (means over
    stages), perplexity_per_stage, max_share (of the most used code of any stage), tokens (a stage)
    and, where groups or stages share a codebook, position_overlap (of their uses of it, 0 to 1);
    the means of the evaluation; reliability is a table over 15 confidence bins.
    """
    probs, labels = evaluation.probs, evaluation.labels
    bins = metrics.reliability(probs, labels)
    record: dict[str, Any] = {
        'accuracy': float(metrics.accuracy(probs, labels)),
        'brier': float(metrics.brier_score(probs, labels)),
        'ece': float(metrics.expected_calibration_error(probs, labels)),
        'corrupt': evaluation.corrupt,
        'reliability': {
            name: np.asarray(getattr(bins, name)).tolist()
            for name in ('confidence', 'accuracy', 'count')
        },
    } | evaluation.means
    if evaluation.counts is not None:
        counts = evaluation.counts.reshape(-1, evaluation.counts.shape[-1])
        per_stage = np.asarray(metrics.perplexity(counts))
        record |= {
            'perplexity': float(per_stage.mean()),
            'perplexity_per_stage': per_stage.tolist(),
            'active_codes': float(np.mean(metrics.active_codes(counts))),
            'usage': float(np.mean(metrics.usage(counts))),
            'tokens': float(counts.sum(-1).max()),
            'max_share': float(np.max(counts.max(-1) / np.maximum(counts.sum(-1), 1.0))),
        }
        if getattr(quantizer, 'shared', False):
            share = counts / np.maximum(counts.sum(-1, keepdims=True), 1.0)
            record['position_overlap'] = float(share.min(0).sum())
    return record


def recalibrate(test: loop.Evaluation, validation: loop.Evaluation) -> dict[str, float]:
    """temperature, fitted on validation, and scaled_nll and scaled_ece of the test split with it.

    See `calibration.fit_temperature`. {} where the split has one class.
    """
    if test.probs.shape[-1] < 2:
        return {}
    temperature = calibration.fit_temperature(validation.probs, validation.labels)
    probs = calibration.at_temperature(test.probs, temperature)
    return {
        'temperature': temperature,
        'scaled_nll': float(metrics.negative_log_likelihood(probs, test.labels)),
        'scaled_ece': float(metrics.expected_calibration_error(probs, test.labels)),
    }


def count_params(state: training.TrainState) -> int:
    """Numbers a model holds: parameters and, since they are learned too, codebook statistics."""
    learned = (state.params, state.stats.get('codebook_stats', {}))
    return sum(int(np.prod(x.shape, dtype=int)) for x in jax.tree.leaves(learned))
