"""Intervals that hold: of runs on folds, and of runs that share one test set.

Each says how sure a mean over runs is of other runs *and* other examples.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

from vqjax.metrics import Interval

_LEVEL = 0.975  # the upper end of a 95% interval


def corrected_t(values: Sequence[float], test_to_train: float = 0.0) -> Interval:
    """Mean of values [n], one a run, with the corrected resampled t interval at 95%.

    Runs of a cross-validation share training data, so that their spread shows too little. With
    sample variance s^2 the variance of the mean is (1/n + n_test/n_train) s^2, n - 1 degrees of
    freedom: Nadeau and Bengio 2003, doi 10.1023/A:1024068626366, section 3.

    Args:
        values: figures, or paired differences of them.
        test_to_train: n_test / n_train; 0 for runs that are independent, the ordinary t interval.

    Returns:
        Interval; both ends are the value where there is one alone.

    Raises:
        ValueError: no values, or test_to_train below 0.
    """
    values = np.asarray(values, np.float64)
    if values.size == 0:
        raise ValueError('values is empty: an interval needs at least one run')
    if not test_to_train >= 0:
        raise ValueError(f'test_to_train={test_to_train}: give n_test / n_train, at least 0')
    mean, n = float(values.mean()), values.size
    if n == 1:
        return Interval(mean, mean, mean)
    variance = (1 / n + test_to_train) * values.var(ddof=1)
    half = float(stdtrit(n - 1, _LEVEL)) * math.sqrt(variance)
    return Interval(mean, mean - half, mean + half)


def crossed_t(correct: np.ndarray, other: np.ndarray | None = None) -> Interval:
    """Accuracy of seeds x examples, or a difference of two, with its 95% interval over both.

    With mean squares of a two-way layout the variance of the mean is rows + (columns - residual)
    (Owen 2007, doi 10.1214/07-AOAS122, section 3). Each part is taken with its own Student's t
    (Banerjee 1960, Sankhya 22, 357-376), so that the interval holds for two seeds as for ten:
    half^2 = t(seeds - 1)^2 rows + t(examples - 1)^2 max(columns - residual, 0), and not below what
    examples alone say.

    Args:
        correct: bool [seeds, examples], whether each example was told rightly. One seed alone tells
            of examples only.
        other: the same of what is subtracted, paired by seed and by example; None = the accuracy
            itself, where two examples told rightly and two wrongly are added as far as the examples
            decide, or few mistakes would look like none (Agresti and Coull 1998, doi
            10.2307/2685469).

    Returns:
        Interval of the accuracy, 0 to 1, or of the difference.

    Raises:
        ValueError: an axis of length 0, other shapes, or values that are not bool.
    """
    correct = np.asarray(correct)
    for name, value in (('correct', correct), ('other', other)):
        if value is not None and (np.shape(value) != correct.shape or value.dtype != bool):
            raise ValueError(
                f'{name} is {value.dtype} {np.shape(value)}: need bool {correct.shape}'
            )
    if correct.ndim != 2 or not correct.size:
        raise ValueError(f'correct has shape {correct.shape}: need [seeds, examples], neither 0')
    found = float(correct.mean())
    if other is not None:
        values = correct.astype(np.float64) - other
        found = float(values.mean())
        half = math.sqrt(sum(_two_way(values)))
        return Interval(found, found - half, found + half)
    added = np.repeat([[1.0, 1.0, 0.0, 0.0]], len(correct), 0)
    values = np.concatenate([correct, added], 1)
    of_seeds, of_examples = _two_way(values)
    share = of_examples / (of_seeds + of_examples)
    centre = found + share * (float(values.mean()) - found)
    half = math.sqrt(of_seeds + of_examples)
    low, high = max(centre - half, 0.0), min(centre + half, 1.0)
    return Interval(found, min(low, found), max(high, found))


def _two_way(values: np.ndarray) -> tuple[float, float]:
    """What seeds and what examples add to half the square of an interval of values [S, N]."""
    seeds, examples = values.shape
    centre, rows, columns = values.mean(), values.mean(1), values.mean(0)
    of_columns = columns.var(ddof=1) / examples if examples > 1 else 0.0
    z = float(stdtrit(max(examples - 1, 1), _LEVEL))
    if seeds == 1:
        return 0.0, z**2 * of_columns
    residual = np.sum((values - rows[:, None] - columns + centre) ** 2)
    residual /= max((seeds - 1) * (examples - 1), 1) * values.size
    t = float(stdtrit(seeds - 1, _LEVEL))
    of_rows = t**2 * rows.var(ddof=1) / seeds
    return of_rows, z**2 * max(of_columns - residual, of_columns - of_rows / z**2, 0.0)
