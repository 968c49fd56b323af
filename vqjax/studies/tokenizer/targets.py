"""What a tokenizer's training is held against: targets, and the figures of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

# Steps by which source 4 expects a perplexity and a quantizer loss.
PERPLEXITY_BY, LOSS_AT = 1_000, 5_000
EARLY_PERPLEXITY = f'highest perplexity by step {PERPLEXITY_BY:,}'
LATE_LOSS = f'quantizer loss at step {LOSS_AT:,}'

# Source 4's own targets: name -> (bound, whether the figure has to be above it).
TARGETS = {
    'share of codes active': (0.8, True),
    'perplexity': (600.0, True),
    EARLY_PERPLEXITY: (600.0, True),
    LATE_LOSS: (0.05, False),
    'dead codes': (50.0, False),
    'quantizer loss, end against first quarter': (1.0, False),
    'spikes': (1.0, False),
}


def measure(
    history: Sequence[Mapping[str, float]], final: Mapping[str, float], num_codes: int
) -> dict[str, float]:
    """The figures that the targets are about, from a run's records and its test figures.

    The perplexity by a step is the highest of the evaluations until then, on the validation split;
    the loss at a step is the median of the 100 training steps before it. A run that is
    first evaluated after the one step, or ends before the other, lacks that figure.
    """
    early = [r['perplexity'] for r in history if 'tokens' in r and r['step'] <= PERPLEXITY_BY]
    losses = np.array([r['quantizer_loss'] for r in history if 'gradient_norm' in r])
    quarter = len(losses) // 4
    warm = losses[quarter:]
    spikes = [x > 4 * np.median(warm[max(i - 25, 0) : i + 25]) for i, x in enumerate(warm)]
    trajectory = {EARLY_PERPLEXITY: max(early)} if early else {}
    if len(losses) >= LOSS_AT:
        trajectory[LATE_LOSS] = float(np.median(losses[LOSS_AT - 100 : LOSS_AT]))
    return {
        'share of codes active': final['active_codes'] / num_codes,
        'perplexity': final['perplexity'],
        'entropy, bits per token': float(np.log2(max(final['perplexity'], 1.0))),
        'dead codes': num_codes - final['active_codes'],
        'quantizer loss, end against first quarter': float(
            np.median(losses[-quarter:]) / np.median(losses[:quarter])
        ),
        'spikes': float(np.sum(spikes)),
        'reconstruction error': final['reconstruction_error'],
    } | trajectory


def kept(figures: Mapping[str, float]) -> dict[str, float]:
    """The figures of `measure` that the records alone tell, named as those of a results file."""
    names = {
        'spikes': 'spikes',
        EARLY_PERPLEXITY: 'perplexity_by_step_1000',
        LATE_LOSS: 'quantizer_loss_at_step_5000',
    }
    return {name: figures[title] for title, name in names.items() if title in figures}
