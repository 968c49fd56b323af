"""Intervals that hold: of runs on folds, and of runs that share one test set.

Each says how sure a mean over runs is of other runs *and* other examples.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtri, stdtrit

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


def crossed_bootstrap(
    correct: np.ndarray, other: np.ndarray | None = None, num_samples: int = 4_000
) -> Interval:
    """Accuracy of seeds x examples, or a difference of two, with its 95% interval over both.

    Seeds and examples are drawn with replacement, each for itself (the pigeonhole bootstrap, Owen
    2007, doi 10.1214/07-AOAS122), always the same draws. Few seeds make the draws too narrow, and
    what neither seed nor example explains counts three times in them (ibid., theorem 3); so they
    are stretched about the mean to the unbiased variance of a two-way layout and to Student's t,
    with the degrees of freedom of Satterthwaite 1946, doi 10.2307/3002019.

    Args:
        correct: bool [seeds, examples], whether each example was told rightly. One seed alone tells
            of examples only.
        other: the same of what is subtracted, paired by seed and by example; None = the accuracy
            itself, where two examples told rightly and two wrongly are added to the draws, or few
            mistakes would look like none (Agresti and Coull 1998, doi 10.2307/2685469).
        num_samples: bootstrap draws.

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
    if other is None:
        found = float(correct.mean())
        added = np.repeat([[1.0, 1.0, 0.0, 0.0]], len(correct), 0)
        values = np.concatenate([correct, added], 1)
    else:
        values = correct.astype(np.float64) - other
        found = float(values.mean())
    centre, variance, freedom = _two_way(values)
    draws = _draw(values, num_samples) - centre
    spread = float(np.sqrt(np.mean(draws**2)))
    if spread:
        draws *= math.sqrt(variance) / spread * float(stdtrit(freedom, _LEVEL) / ndtri(_LEVEL))
    low, high = (float(x) for x in centre + np.quantile(draws, [1 - _LEVEL, _LEVEL]))
    if other is None:
        low, high = max(low, 0.0), min(high, 1.0)
    return Interval(found, min(low, found), max(high, found))


def _two_way(values: np.ndarray) -> tuple[float, float, float]:
    """Mean of values [S, N], its variance over both axes, and the degrees of freedom of that.

    With row, column and residual mean squares: (rows + columns - residual) / (S N), and not below
    what rows or columns alone say.
    """
    seeds, examples = values.shape
    centre = values.mean()
    rows, columns = values.mean(1), values.mean(0)
    of_columns = columns.var(ddof=1) / examples if examples > 1 else 0.0
    if seeds == 1:
        return centre, of_columns, max(examples - 1.0, 1.0)
    of_rows = rows.var(ddof=1) / seeds
    residual = np.sum((values - rows[:, None] - columns + centre) ** 2)
    residual /= max((seeds - 1) * (examples - 1), 1) * values.size
    variance = max(of_rows, of_columns, of_rows + of_columns - residual)
    if not variance:
        return centre, 0.0, 1.0
    # Rows that differ no more than the residual lets them add nothing, and take no freedom either.
    uncertain = of_columns**2 / max(examples - 1, 1)
    if of_rows > residual:
        uncertain += of_rows**2 / (seeds - 1)
    return centre, variance, variance**2 / max(uncertain, variance**2 / values.size)


def _draw(values: np.ndarray, num_samples: int) -> np.ndarray:
    """Means of values [S, N] over seeds and examples drawn anew, float64 [num_samples]."""
    rng = np.random.default_rng(0)
    seeds, examples = values.shape
    # Examples with equal outcomes are one kind: their numbers are drawn, and not each of them.
    kinds, number = np.unique(values, axis=1, return_counts=True)
    rows = rng.multinomial(seeds, np.full(seeds, 1 / seeds), num_samples) / seeds
    columns = rng.multinomial(examples, number / examples, num_samples) / examples
    return np.sum(rows @ kinds * columns, -1)
