"""The verdict on each sentence of the sources, by the rules of docs/answer/protocol.md."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vqjax import intervals, quantizers
from vqjax.metrics import Interval
from vqjax.results import summaries
from vqjax.results.records import MethodResult, Results
from vqjax.results.summaries import BASELINE, MARGIN, paired_difference

UPHELD, OVERTURNED, PART, UNDECIDED = 'holds', 'fails', 'in part', 'undecided'

# What became of its encoder.
FROZEN, FINETUNED, SCRATCH = 'CIFAR-10', 'CIFAR-10 fine-tuned', 'CIFAR-10 from scratch'
PLACES = {'vector': '', 'grid': '-grid'}  # bottleneck -> how names of methods end
IN_USE = 0.9  # of the codes of every stage, which sentence 3 promises
LARGE = 8  # bits a token from which VQ-EMA is judged


class Verdict(NamedTuple):
    """What became of a sentence.

    sentence, source: as in docs/sources.md
    verdict: UPHELD, OVERTURNED, PART or UNDECIDED
    figures: what it rests on, a sentence each
    """

    sentence: str
    source: int
    verdict: str
    figures: tuple[str, ...]


def verdicts(
    *,
    digits: Results,
    deals: Results,
    cifar10: Results,
    finetuned: Results,
    scratch: Results,
    behaviour: Results,
    scenes: Results,
    autopsy: Results,
    others: Mapping[str, Results],
) -> list[Verdict]:
    """The verdicts, in the order of the protocol.

    Args:
      digits: results of configs/digits.py; deals: those of ten deals of its folds; cifar10: of
        configs/cifar10_codes.py; finetuned: of configs/cifar10_finetune.py; scratch: of
        configs/cifar10_scratch.py; behaviour: of configs/behaviour.py; scenes: of configs/tfds.py
        on photographs with digits; autopsy: of configs/autopsy.py, which plants a fault in an FSQ.
      others: name -> results of the studies that are searched for a collapsed FSQ besides.
    """
    trained = {FROZEN: cifar10, FINETUNED: finetuned, SCRATCH: scratch}
    searched = {'digits': digits, **trained, 'recordings': behaviour, 'scenes': scenes}
    searched |= dict(others)
    return [
        _incompatible(deals, trained, behaviour),
        _fsq_collapses(searched, autopsy.methods['unscaled_fsq']),
        _in_use(cifar10, scenes),
        _small_codebooks(cifar10),
        _projections(cifar10),
        _two_stages(cifar10),
    ]


def collapsed(method: MethodResult, num_classes: int) -> int:
    """How many runs of a method collapsed, see `summaries.collapsed`; stages count together."""
    stages = 1 if method.spec is None else quantizers.stages(quantizers.make(method.spec))
    return sum(summaries.collapsed(seed, stages, num_classes) for seed in method.seeds)


def compare(results: Results, a: str, b: str) -> Interval:
    """Paired difference of accuracy, a less b, of two methods of a study."""
    return paired_difference(results.methods[a].seeds, results.methods[b].seeds)


def _incompatible(deals: Results, trained: Mapping[str, Results], behaviour: Results) -> Verdict:
    cases: list[tuple[str, Results, list[str], str, int]]
    cases = [('digits', deals, ['vq_ema'], BASELINE, 10)]
    for (name, results), (place, end) in itertools.product(trained.items(), PLACES.items()):
        own = BASELINE + end if BASELINE + end in results.methods else BASELINE  # the same network
        cases.append((f'{name}, {place}', results, _vq_ema(results, end), own, 10))
    cases.append(('recordings', behaviour, ['vq_ema'], BASELINE, 4))
    fine, bad, figures = [], [], []
    for where, results, names, baseline, classes in cases:
        gone = sum(collapsed(results.methods[name], classes) for name in names)
        runs = sum(len(results.methods[name].seeds) for name in names)
        best = max(names, key=lambda name: compare(results, name, baseline).mean)
        found = compare(results, best, baseline)
        fine.append(not gone and found.low > -MARGIN)
        bad.append(gone > 0 or found.high < -MARGIN)
        figures.append(f'{where}: `{best}` {points(found)}, {gone} of {runs} runs collapsed')
    return Verdict(
        sentence='VQ-EMA is fundamentally incompatible with classification',
        source=0,
        verdict=_of(all(bad), all(fine)),
        figures=tuple(figures),
    )


def _fsq_collapses(studies: Mapping[str, Results], planted: MethodResult) -> Verdict:
    runs, gone = 0, []
    for where, results in studies.items():
        for name, method in results.methods.items():
            if _is_fsq(method.spec):
                runs += len(method.seeds)
                number = collapsed(method, 4 if where == 'recordings' else 10)
                if number:
                    lowest = min(seed.figures['perplexity'] for seed in method.seeds)
                    gone.append(
                        f'{where}: `{name}` in {number} of {len(method.seeds)} runs, '
                        f'perplexity {lowest:.3g}'
                    )
    fallen = collapsed(planted, 10)
    figures = (
        f'{runs} runs with FSQ in {len(studies)} studies',
        *(gone or ['none collapsed']),
        f'with a planted fault {fallen} of {len(planted.seeds)}',
    )
    return Verdict(
        sentence='FSQ cannot collapse by design',
        source=3,
        verdict=OVERTURNED if gone else PART if fallen else UPHELD,
        figures=figures,
    )


def _in_use(cifar10: Results, scenes: Results) -> Verdict:
    found = {
        f'CIFAR-10, {place}': cifar10.methods[f'rvq-32{end}'].summary['least_usage']
        for place, end in PLACES.items()
    }
    counts = [seed.counts for seed in scenes.methods['rvq'].seeds if seed.counts is not None]
    shares = [float(np.min(np.mean(x > 0, axis=-1))) for x in counts]
    found['scenes, trained together'] = intervals.corrected_t(shares)
    least, figures = list(found.values()), []
    for where, share in found.items():
        mean, low, high = (100 * x for x in share)
        share_of = f'{mean:.1f}% ({low:.1f}, {high:.1f})'
        figures.append(f'{where}: the stage with the fewest uses {share_of}')
    verdict = _of(all(x.low > IN_USE for x in least), all(x.high < IN_USE for x in least))
    return Verdict(
        sentence='RVQ: more than 90% of the codes in use in all layers',
        source=3,
        verdict=verdict,
        figures=(*figures,),
    )


def _small_codebooks(cifar10: Results) -> Verdict:
    found = {
        place: compare(cifar10, f'product-32{end}', f'vq_ema-10{end}')
        for place, end in PLACES.items()
    }
    figures = tuple(f'CIFAR-10, {place}: {points(x)}' for place, x in found.items())
    return Verdict(
        sentence='4 x 256 codes rather than 1 x 1,024',
        source=3,
        verdict=_gain([found]),
        figures=figures,
    )


def _projections(cifar10: Results) -> Verdict:
    found = [
        {
            place: compare(cifar10, f'to_{dim}-10{end}', f'vq_ema-10{end}')
            for place, end in PLACES.items()
        }
        for dim in (32, 64)
    ]
    figures = tuple(
        f'CIFAR-10, {place}, to {dim}: {points(x)}'
        for dim, by_place in zip((32, 64), found, strict=True)
        for place, x in by_place.items()
    )
    return Verdict(
        sentence='Project 128 features to 32 or 64', source=3, verdict=_gain(found), figures=figures
    )


def _two_stages(cifar10: Results) -> Verdict:
    figures, fine, bad = [], [], []
    for place, end in PLACES.items():
        found = {n: compare(cifar10, n, BASELINE + end) for n in _vq_ema(cifar10, end)}
        figures += [f'CIFAR-10, {place}: `{name}` {points(x)}' for name, x in found.items()]
        fine.append(all(x.low > -MARGIN for x in found.values()))
        bad.append(all(x.high < -MARGIN for x in found.values()))
    return Verdict(
        sentence='Two stages keep the accuracy',
        source=3,
        verdict=_of(all(fine), all(bad)),
        figures=tuple(figures),
    )


def _gain(options: Sequence[Mapping[str, Interval]]) -> str:
    """UPHELD where some option is better at all places, OVERTURNED where none is at any."""
    better = any(all(x.low > 0 for x in places.values()) for places in options)
    worse = all(x.high < 0 for places in options for x in places.values())
    none = all(-MARGIN < x.low <= 0 <= x.high < MARGIN for p in options for x in p.values())
    return _of(better, worse or none)


def _of(upheld: bool, overturned: bool) -> str:
    return UPHELD if upheld else OVERTURNED if overturned else UNDECIDED


def _vq_ema(results: Results, end: str) -> list[str]:
    """The methods of VQ-EMA at LARGE bits and more, at the places whose names end so."""
    found = [name for name in results.methods if name.startswith('vq_ema-')]
    found = [name for name in found if name == f'vq_ema-{_bits(name)}{end}']
    return [name for name in found if _bits(name) >= LARGE]


def _bits(name: str) -> int:
    return int(name.split('-')[1])


def _is_fsq(spec: Mapping[str, Any] | None) -> bool:
    while spec and spec['name'] != 'fsq' and isinstance(spec.get('inner'), Mapping):
        spec = spec['inner']
    return spec is not None and spec.get('name') == 'fsq'


def points(found: Interval) -> str:
    """A difference in points with its interval."""
    mean, low, high = (100 * x for x in found)
    return f'{mean:+.1f} ({low:+.1f}, {high:+.1f})'
