"""What the seeds of a comparison say together: intervals, paired differences, baselines."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vqjax import intervals, metrics
from vqjax.metrics import Interval
from vqjax.results.records import read_correct, read_counts

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


BASELINE = 'none'  # the method that the others are compared with
MARGIN = 0.02  # of accuracy: a difference inside it counts as none
ENOUGH_SEEDS = 5  # fewer say too little of other seeds, whatever their interval

# What the 95% interval of an accuracy, or of a difference, covers; and how it was made.
FOLDS, EXAMPLES, SEEDS = 'folds', 'examples', 'seeds'
METHODS = {
    FOLDS: 'corrected resampled t over folds, whose training sets overlap (Nadeau and Bengio 2003)',
    EXAMPLES: 'bootstrap over seeds and test examples together',
    SEEDS: 'bootstrap over seeds alone',
}


class CodeUse(NamedTuple):
    """Codes K, tokens a stage, and what a uniform source would show, of one method's test split."""

    num_codes: int
    num_tokens: int
    uniform: metrics.UniformBaseline


def joint_perplexity(seed: Mapping[str, Any], number: int) -> float:
    """At most how many images a seed's codes tell apart, `number` of them an image.

    The perplexity of one code to that power; infinite without codes.
    """
    return float(seed.get('perplexity', np.inf) ** number)


def covers(*groups: Sequence[Mapping[str, Any]]) -> str:
    """What an interval of accuracies of these seeds can hold: FOLDS, EXAMPLES or SEEDS.

    EXAMPLES where every seed keeps which test examples it told rightly; SEEDS for results of
    before, and where the numbers of examples differ.
    """
    seeds = [seed for group in groups for seed in group]
    if all('fold' in seed for seed in seeds):
        return FOLDS
    numbers = {(seed.get('correct') or {}).get('examples') for seed in seeds}
    return EXAMPLES if len(numbers) == 1 and None not in numbers else SEEDS


def _test_to_train(seeds: Sequence[Mapping[str, Any]]) -> float:
    """Test examples of a fold for each training example; 0 where seeds are no folds."""
    if covers(seeds) != FOLDS:
        return 0.0
    return float(np.mean([seed['fold']['test'] / seed['fold']['train'] for seed in seeds]))


def _correct(seeds: Sequence[Mapping[str, Any]]) -> np.ndarray:
    return np.stack([read_correct(seed) for seed in seeds])


def summarise(per_seed: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean and 95% interval of every number that all seeds report.

    Of the accuracy as METHODS says, of all others Student's t over seeds, or the corrected one over
    folds.

    Args:
        per_seed: one mapping a seed; entries that are no numbers (lists, tables) are left aside.

    Returns:
        {metric: {'mean': m, 'low': l, 'high': h}}.

    Raises:
        ValueError: no seeds.
    """
    if not per_seed:
        raise ValueError('per_seed is empty: a summary needs at least one seed')
    names = [
        name
        for name, value in per_seed[0].items()
        if name != 'seed' and isinstance(value, int | float) and all(name in s for s in per_seed)
    ]
    ratio = _test_to_train(per_seed)
    found = {name: intervals.corrected_t([s[name] for s in per_seed], ratio) for name in names}
    if 'accuracy' in found:
        found['accuracy'] = _accuracy(per_seed, found['accuracy'])
    return {name: interval._asdict() for name, interval in found.items()}


def _accuracy(per_seed: Sequence[Mapping[str, Any]], by_t: Interval) -> Interval:
    kind = covers(per_seed)
    if kind == FOLDS:
        return Interval(by_t.mean, max(by_t.low, 0.0), min(by_t.high, 1.0))
    if kind == EXAMPLES:
        return intervals.crossed_bootstrap(_correct(per_seed))
    return metrics.bootstrap_interval([s['accuracy'] for s in per_seed])


def shorten(results: dict[str, Any]) -> None:
    """Leaves of every seed the numbers, and what intervals are made from.

    Counts and tables stay in the finished runs.
    """
    for method in results['methods'].values():
        method['seeds'] = [
            {
                name: value
                for name, value in seed.items()
                if isinstance(value, int | float) or name in ('correct', 'fold')
            }
            for seed in method['seeds']
        ]


def paired_difference(
    a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]], metric: str
) -> Interval:
    """Mean over common seeds of `metric` of `a` minus that of `b`, with its 95% interval.

    Of accuracies as METHODS says of `covers(a, b)`; of other figures over folds, or seeds alone.

    Raises:
        ValueError: no seed in common.
    """
    other = {s['seed']: s for s in b}
    a = [s for s in a if s['seed'] in other]
    if not a:
        raise ValueError(f'metric={metric!r}: the two methods have no seed in common')
    b = [other[s['seed']] for s in a]
    differences = [x[metric] - y[metric] for x, y in zip(a, b, strict=True)]
    kind = covers(a, b)
    if kind == FOLDS:
        return intervals.corrected_t(differences, _test_to_train(a))
    if kind == EXAMPLES and metric == 'accuracy':
        return intervals.crossed_bootstrap(_correct(a), _correct(b))
    return metrics.bootstrap_interval(differences)


def halves(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Accuracies of the first half of the deals of folds beside those of the others, by method.

    Args:
        results: the content of results.json.

    Returns:
        {method: {'accuracy': [first, second], 'overlap': whether these intervals do, 'compared':
        the same of the paired difference to the baseline, but for itself}}, intervals as mappings;
        {} where runs are no folds, or folds were dealt out once.
    """
    methods = {name: method['seeds'] for name, method in results['methods'].items()}
    deals = 0
    if covers(*methods.values()) == FOLDS:
        deals = 1 + max(seed['fold']['repeat'] for seeds in methods.values() for seed in seeds)
    if deals < 2:
        return {}
    parts = {
        name: [[s for s in seeds if (s['fold']['repeat'] < deals // 2) == first]
               for first in (True, False)]
        for name, seeds in methods.items()
    }  # fmt: skip
    found = {}
    for name, both in parts.items():
        a, b = (summarise(seeds)['accuracy'] for seeds in both)
        overlap = a['low'] <= b['high'] and b['low'] <= a['high']
        found[name] = {'accuracy': [a, b], 'overlap': overlap}
        if name != BASELINE and BASELINE in parts:
            pairs = zip(both, parts[BASELINE], strict=True)
            found[name]['compared'] = [paired_difference(*p, 'accuracy')._asdict() for p in pairs]
    return found


def verdict(difference: Interval, num_seeds: int) -> str:
    """What a paired difference of accuracy to the baseline says, in one sentence."""
    _, low, high = difference
    if num_seeds < ENOUGH_SEEDS:
        return f'{num_seeds} seeds are too few for a verdict: run {ENOUGH_SEEDS} or more'
    if -MARGIN < low and high < MARGIN:
        side = 'above' if low > 0 else 'below' if high < 0 else 'not apart from'
        return (
            f"{side} {BASELINE}, within {100 * MARGIN:g} points: 'incompatible with the task' "
            'is rejected'
        )
    if high <= -MARGIN:
        return f'worse than {BASELINE} by {-100 * high:.1f} points or more'
    if high < 0:
        return f'worse than {BASELINE}'
    if low > 0:
        return f'better than {BASELINE}'
    return 'undecided: the interval is too wide, more seeds, folds or test examples are needed'


def code_use(method: Mapping[str, Any]) -> CodeUse | None:
    """Codes, tokens and uniform baseline of an entry of results['methods']; None without codes.

    Tokens are those of its first run, codes the most of all runs, where folds chose other numbers.
    """
    counts = read_counts(method['seeds'][0])
    if counts is None:
        return None
    num_codes = max(read_counts(seed).shape[-1] for seed in method['seeds'])
    num_tokens = round(counts.sum() / (counts.size / counts.shape[-1]))
    return CodeUse(num_codes, num_tokens, metrics.uniform_baseline(num_tokens, num_codes))


def calibrated_error(bins: Mapping[str, Sequence[float]], num_samples: int = 2000) -> Interval:
    """Calibration error that a calibrated model with a reliability table's confidences shows.

    As `metrics.calibration_band`, but from 'confidence' and 'count' of the bins, which is what a
    run keeps; taking a bin's mean confidence for all its examples widens the band by a few percent.
    """
    confidence, count = (np.asarray(bins[name], np.float64) for name in ('confidence', 'count'))
    hits = np.random.default_rng(0).binomial(
        count.astype(int), np.clip(confidence, 0, 1), (num_samples, len(count))
    )
    errors = np.abs(hits - count * confidence).sum(-1) / count.sum()
    low, high = np.quantile(errors, [0.025, 0.975])
    return Interval(float(errors.mean()), float(low), float(high))


def mean_calibrated_error(method: Mapping[str, Any]) -> Interval:
    """`calibrated_error` of an entry of results['methods'], mean over its seeds."""
    bands = [calibrated_error(seed['reliability']) for seed in method['seeds']]
    return Interval(*(float(np.mean(x)) for x in zip(*bands, strict=True)))
