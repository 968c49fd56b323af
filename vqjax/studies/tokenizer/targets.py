"""What a tokenizer's training is held against: targets, and the figures of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

# Source 4's own targets: name -> (bound, whether the figure has to be above it).
TARGETS = {
    'share of codes active': (0.8, True),
    'perplexity': (600.0, True),
    'dead codes': (50.0, False),
    'quantizer loss, end against first quarter': (1.0, False),
    'spikes': (1.0, False),
}


def measure(
    history: Sequence[Mapping[str, float]], final: Mapping[str, float], num_codes: int
) -> dict[str, float]:
    """The figures that the targets are about, from a run's records and its test figures."""
    losses = np.array([r['quantizer_loss'] for r in history if 'gradient_norm' in r])
    quarter = len(losses) // 4
    warm = losses[quarter:]
    spikes = [x > 4 * np.median(warm[max(i - 25, 0) : i + 25]) for i, x in enumerate(warm)]
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
    }
