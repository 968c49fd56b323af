"""What the seeds of a comparison say together: intervals, paired differences, baselines."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vqjax import health, intervals, metrics
from vqjax.metrics import Interval
from vqjax.results.records import MethodResult, Reliability, Results, SeedResult

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


def still_rising(results: Results) -> dict[str, float]:
    """The methods that have not converged, and their rise; {} where none is told.

    A method has not where its training accuracy rises by more than RISE in the last third.
    """
    rises = {name: method.rise for name, method in results.methods.items()}
    return {name: x for name, x in rises.items() if x is not None and x > RISE}


BASELINE = 'none'  # the method that the others are compared with
MARGIN = 0.02  # of accuracy: a difference inside it counts as none
ENOUGH_SEEDS = 5  # fewer say too little of other seeds, whatever their interval

# What the 95% interval of an accuracy, or of a difference, covers; and how it was made.
FOLDS, EXAMPLES, SEEDS = 'folds', 'examples', 'seeds'
METHODS = {
    FOLDS: 'corrected resampled t over folds, whose training sets overlap (Nadeau and Bengio 2003)',
    EXAMPLES: "Student's t over seeds and test examples together",
    SEEDS: "Student's t over seeds alone",
}


class CodeUse(NamedTuple):
    """Codes K, tokens a stage, and what a uniform source would show, of one method's test split."""

    num_codes: int
    num_tokens: int
    uniform: metrics.UniformBaseline


class Halves(NamedTuple):
    """A method on the first half of the deals of folds, and on the others.

    accuracy: of each half; overlap: whether these intervals do; compared: the paired difference to
    the baseline in each half, None of the baseline itself.
    """

    accuracy: tuple[Interval, Interval]
    overlap: bool
    compared: tuple[Interval, Interval] | None


def joint_perplexity(seed: SeedResult, number: int) -> float:
    """At most how many images a seed's codes tell apart, `number` of them an image.

    The perplexity of one code to that power; infinite without codes.
    """
    return float(seed.figures.get('perplexity', np.inf) ** number)


def collapsed(seed: SeedResult, number: int, num_classes: int) -> bool:
    """Whether a run collapsed: its codes tell fewer images apart than there are classes.

    The one definition of all studies: the perplexity on the test split, of all `number` codes of an
    image together, is below `health.CLASS_SHARE` of the number of classes. One code a class has
    barely less than their number.
    """
    return joint_perplexity(seed, number) < health.CLASS_SHARE * num_classes


def covers(*groups: Sequence[SeedResult]) -> str:
    """What an interval of accuracies of these seeds can hold: FOLDS, EXAMPLES or SEEDS.

    EXAMPLES where every seed keeps which test examples it told rightly; SEEDS for results of
    before, and where the numbers of examples differ.
    """
    seeds = [seed for group in groups for seed in group]
    if all(seed.fold is not None for seed in seeds):
        return FOLDS
    numbers = {None if seed.correct is None else len(seed.correct) for seed in seeds}
    return EXAMPLES if len(numbers) == 1 and None not in numbers else SEEDS


def _test_to_train(seeds: Sequence[SeedResult]) -> float:
    """Test examples of a fold for each training example; 0 where seeds are no folds."""
    folds = [seed.fold for seed in seeds if seed.fold is not None]
    if len(folds) < len(seeds):
        return 0.0
    return float(np.mean([fold.test / fold.train for fold in folds]))


def _correct(seeds: Sequence[SeedResult]) -> np.ndarray:
    return np.stack([seed.correct for seed in seeds if seed.correct is not None])


def summarise(seeds: Sequence[SeedResult]) -> dict[str, Interval]:
    """Mean and 95% interval of every figure that all seeds report.

    Of the accuracy as METHODS says, of all others Student's t over seeds, or the corrected one over
    folds.

    Raises:
        ValueError: no seeds.
    """
    if not seeds:
        raise ValueError('seeds is empty: a summary needs at least one seed')
    names = [name for name in seeds[0].figures if all(name in seed.figures for seed in seeds)]
    ratio = _test_to_train(seeds)
    found = {
        name: intervals.corrected_t([seed.figures[name] for seed in seeds], ratio) for name in names
    }
    if 'accuracy' in found:
        found['accuracy'] = _accuracy(seeds, found['accuracy'])
    return found


def _accuracy(seeds: Sequence[SeedResult], by_t: Interval) -> Interval:
    if covers(seeds) == EXAMPLES:
        return intervals.crossed_t(_correct(seeds))
    return Interval(by_t.mean, max(by_t.low, 0.0), min(by_t.high, 1.0))


def shorten(results: Results) -> Results:
    """The same with the figures of every seed alone, and what intervals are made from.

    Counts and tables stay in the finished runs.
    """
    methods = {
        name: dataclasses.replace(
            method,
            seeds=tuple(
                SeedResult(seed.seed, seed.figures, fold=seed.fold, correct=seed.correct)
                for seed in method.seeds
            ),
        )
        for name, method in results.methods.items()
    }
    return dataclasses.replace(results, methods=methods)


def paired_difference(
    a: Sequence[SeedResult], b: Sequence[SeedResult], metric: str = 'accuracy'
) -> Interval:
    """Mean over common seeds of `metric` of `a` minus that of `b`, with its 95% interval.

    Of accuracies as METHODS says of `covers(a, b)`; of other figures over folds, or seeds alone, by
    Student's t.

    Raises:
        ValueError: no seed in common.
    """
    other = {seed.seed: seed for seed in b}
    a = [seed for seed in a if seed.seed in other]
    if not a:
        raise ValueError(f'metric={metric!r}: the two methods have no seed in common')
    b = [other[seed.seed] for seed in a]
    differences = [x.figures[metric] - y.figures[metric] for x, y in zip(a, b, strict=True)]
    if covers(a, b) == EXAMPLES and metric == 'accuracy':
        return intervals.crossed_t(_correct(a), _correct(b))
    return intervals.corrected_t(differences, _test_to_train(a))


def compare(results: Results, name: str, to: str = BASELINE) -> Interval | None:
    """Paired difference of accuracy of a method to another one; None to itself or one not run."""
    if name == to or to not in results.methods:
        return None
    return paired_difference(results.methods[name].seeds, results.methods[to].seeds)


def halves(methods: Mapping[str, Sequence[SeedResult]]) -> dict[str, Halves]:
    """Accuracies of the first half of the deals of folds beside those of the others, by method.

    Args:
        methods: the seeds of each.

    Returns:
        {} where runs are no folds, or folds were dealt out once.
    """
    folds = [seed.fold for seeds in methods.values() for seed in seeds]
    deals = 0
    if covers(*methods.values()) == FOLDS:
        deals = 1 + max((fold.repeat for fold in folds if fold is not None), default=0)
    if deals < 2:
        return {}

    def half(seeds: Sequence[SeedResult], first: bool) -> list[SeedResult]:
        return [s for s in seeds if s.fold and (s.fold.repeat < deals // 2) == first]

    found = {}
    for name, seeds in methods.items():
        a, b = (summarise(half(seeds, first))['accuracy'] for first in (True, False))
        compared = None
        if name != BASELINE and BASELINE in methods:
            first, second = (
                paired_difference(half(seeds, first), half(methods[BASELINE], first))
                for first in (True, False)
            )
            compared = first, second
        found[name] = Halves((a, b), a.low <= b.high and b.low <= a.high, compared)
    return found


def verdict(difference: Interval, num_seeds: int) -> str:
    """What a paired difference of accuracy to the baseline says, in one sentence."""
    _, low, high = difference
    if num_seeds < ENOUGH_SEEDS:
        few = 'one seed is' if num_seeds == 1 else f'{num_seeds} seeds are'
        return f'{few} too few for a verdict: run {ENOUGH_SEEDS} or more'
    if -MARGIN < low and high < MARGIN:
        if low <= 0 <= high:
            return f'no significant difference; a loss of {100 * MARGIN:g} points is excluded'
        side = 'better' if low > 0 else 'worse'
        return f'{side} than {BASELINE}, by less than {100 * MARGIN:g} points'
    if high <= -MARGIN:
        return f'worse than {BASELINE} by {-100 * high:.1f} points or more'
    if high < 0:
        return f'worse than {BASELINE}'
    if low > 0:
        return f'better than {BASELINE}'
    return 'undecided: the interval is too wide, more seeds, folds or test examples are needed'


def code_use(method: MethodResult) -> CodeUse | None:
    """Codes, tokens and uniform baseline of a method; None without codes.

    Tokens are those of its first run, codes the most of all runs, where folds chose other numbers.
    """
    counts = [seed.counts for seed in method.seeds if seed.counts is not None]
    if not counts:
        return None
    num_codes = max(x.shape[-1] for x in counts)
    num_tokens = round(counts[0].sum() / (counts[0].size / counts[0].shape[-1]))
    return CodeUse(num_codes, num_tokens, metrics.uniform_baseline(num_tokens, num_codes))


def calibrated_error(bins: Reliability, num_samples: int = 2000) -> Interval:
    """Calibration error that a calibrated model with a reliability table's confidences shows.

    As `metrics.calibration_band`, but from the confidence and count of the bins, which is what a
    run keeps; taking a bin's mean confidence for all its examples widens the band by a few percent.
    """
    confidence, count = np.asarray(bins.confidence, float), np.asarray(bins.count, float)
    hits = np.random.default_rng(0).binomial(
        count.astype(int), np.clip(confidence, 0, 1), (num_samples, len(count))
    )
    errors = np.abs(hits - count * confidence).sum(-1) / count.sum()
    low, high = np.quantile(errors, [0.025, 0.975])
    return Interval(float(errors.mean()), float(low), float(high))


def mean_calibrated_error(method: MethodResult) -> Interval:
    """`calibrated_error` of a method, mean over its seeds.

    Raises:
        ValueError: a seed has no reliability table.
    """
    bands = []
    for seed in method.seeds:
        if seed.reliability is None:
            raise ValueError(f'seed {seed.seed} has no reliability table: these results are short')
        bands.append(calibrated_error(seed.reliability))
    return Interval(*(float(np.mean(x)) for x in zip(*bands, strict=True)))
