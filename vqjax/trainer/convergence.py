"""Whether runs were long enough to be compared."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

RISE = 0.01  # of training accuracy in the last third of a run: above it, it has not converged


def rise(histories: Sequence[Sequence[Mapping[str, Any]]]) -> float | None:
    """How much the training accuracy of a method still rises in the last third of its runs.

    The slope of the least-squares line through the mean over seeds, times a third of the steps.
    Each evaluation tells the mean over the steps since the one before, and stands at their middle;
    the line takes those that stand in the last third, two at least.

    Args:
      histories: of every seed the records of its evaluations, with 'step' and 'train_accuracy'.

    Returns:
      The rise as a share, negative where it falls; None where there are no two evaluations.
    """
    number = min((len(history) for history in histories), default=0)
    if number < 2 or any('train_accuracy' not in r for history in histories for r in history):
        return None
    ends = np.array([record['step'] for record in histories[0][:number]], float)
    middles = (ends + np.concatenate([[0.0], ends[:-1]])) / 2
    accuracy = np.mean([[r['train_accuracy'] for r in h[:number]] for h in histories], 0)
    late = max(int(np.sum(middles > 2 / 3 * ends[-1])), 2)
    slope = np.polyfit(middles[-late:], accuracy[-late:], 1)[0]
    return float(slope * ends[-1] / 3)


def still_rising(results: Mapping[str, Any]) -> dict[str, float]:
    """The methods of results.json that have not converged, and their rise; {} where none is told.

    A method has not where its training accuracy rises by more than RISE in the last third.
    """
    rises = {name: method.get('rise') for name, method in results['methods'].items()}
    return {name: x for name, x in rises.items() if x is not None and x > RISE}
