"""What is said of rates: the bits that are enough, findings, tables, report.md."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

from vqjax import quantizers
from vqjax.atomic import replace_file
from vqjax.results.records import Results
from vqjax.results.summaries import METHODS, still_rising
from vqjax.studies.rates.curves import (
    WITHIN,
    Curves,
    Point,
    baseline,
    bottlenecks,
    curves,
    enough,
    nominal,
    title,
)
from vqjax.studies.rates.plots import figure
from vqjax.studies.reporting import notes, tables
from vqjax.studies.reporting.names import dataset, readable
from vqjax.studies.reporting.plots import save

CALIBRATION = {'ECE': 'ece', 'ECE at fitted T': 'scaled_ece'}  # heading -> metric
NOT_REACHED = 'not reached'
PICTURED = 8  # points: the tables show fewer of them better than a picture
LEARNING = '†'  # beside the accuracy of a point that has not converged


def bits(point: Point | None) -> str:
    """Bits a token with the digits that tell FSQ's from whole ones."""
    return NOT_REACHED if point is None else f'{round(point.bits, 2):g}'


# Tables -----------------------------------------------------------------------------------------


def enough_rows(results: Results) -> Iterable[list[str]]:
    """Family by family the bits per token that are enough, for every bottleneck."""
    found = {kind: curves(results, kind) for kind in bottlenecks(results)}
    yield [
        'quantizer',
        *(f'{k}, {how}' for k in found for how in ('by the interval', 'by the mean')),
    ]
    for family in dict.fromkeys(name for by_family in found.values() for name in by_family):
        each = (enough(by_family.get(family, [])) for by_family in found.values())
        yield [readable(family), *(bits(point) for pair in each for point in pair)]


def point_rows(results: Results, kind: str) -> Iterable[list[str]]:
    """A row for every point of a bottleneck."""
    yield ['quantizer', 'codes', 'bits per token', 'bits per image', 'accuracy %', '95% interval',
           'difference, points', '95% interval', 'perplexity, % of uniform', 'collapsed runs',
           *CALIBRATION]  # fmt: skip
    for family, points in curves(results, kind).items():
        for point in points:
            yield [
                readable(family),
                _codes(results.methods[point.name].spec),
                bits(point),
                f'{round(point.image_bits, 2):g}',
                _accuracy(point),
                tables.percent_range(point.accuracy, point.runs),
                tables.points(point.difference),
                tables.points_range(point.difference, point.runs),
                f'{100 * point.evenness:.0f}%',
                f'{point.collapsed} of {point.runs}',
                *calibration(results, point.name),
            ]


def calibration(results: Results, name: str) -> list[str]:
    """The cells of a method under CALIBRATION; '' where a run does not tell them."""
    summary = results.methods[name].summary
    return [f'{summary[m].mean:.3f}' if m in summary else '' for m in CALIBRATION.values()]


def _accuracy(point: Point) -> str:
    return tables.percent(point.accuracy) + LEARNING * point.learning


def _codes(spec: Mapping[str, Any] | None) -> str:
    if spec is None:
        return ''
    quantizer = quantizers.make(spec)
    stages = quantizers.stages(quantizer)
    return (f'{stages} x ' if stages > 1 else '') + f'{quantizer.num_codes:,}'


def table(results: Results) -> Table:
    """Accuracy and points compared with none, a row for each family, a column for each rate."""
    found = {kind: curves(results, kind) for kind in bottlenecks(results)}
    every = (p for by_family in found.values() for points in by_family.values() for p in points)
    rates = sorted({nominal(point) for point in every})
    made = Table(
        title=f'{dataset(results.config["dataset"])}: accuracy %, and below it the difference in '
        'points to the network without a quantizer',
        caption=f'last two columns: bits per token that lose less than {100 * WITHIN:g} point, by '
        f'the 95% interval and by the mean\n{LEARNING} not converged   intervals: report.md',
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    made.add_column('bits per token', style='bold', no_wrap=True)
    for heading in (*map(str, rates), 'interval', 'mean'):
        made.add_column(heading, justify='right')
    for kind, by_family in found.items():
        made.add_row(escape(kind), *_none_cells(results, kind, len(rates)), '', '')
        for family, points in by_family.items():
            cells = {nominal(p): _cell(p) for p in points}
            last = map(bits, enough(points))
            row = [f' {readable(family)}', *(cells.get(rate, '') for rate in rates), *last]
            made.add_row(*map(escape, row))
        made.add_section()
    return made


def _cell(point: Point) -> str:
    below = tables.points(point.difference)
    return _accuracy(point) + (below and f'\n{below}')


def _none_cells(results: Results, kind: str, number: int) -> list[str]:
    none = baseline(results, kind)
    told = f'none {tables.percent(results.methods[none].accuracy)}' if none else ''
    return [told, *[''] * (number - 1)]


# Findings ---------------------------------------------------------------------------------------


def _listed(pairs: Iterable[tuple[str, Point]]) -> str:
    """Families with their rates, the smallest first: 'RVQ (6), FSQ and LFQ (7.91)'."""
    ordered = sorted(pairs, key=lambda pair: pair[1].bits)
    return ', '.join(f'{readable(f)} ({bits(point)})' for f, point in ordered) or 'at no rate'


def _enough_said(results: Results, kind: str, none: str) -> str:
    by_family = curves(results, kind)
    found = {family: enough(points) for family, points in by_family.items()}
    accuracy, runs = results.methods[none].accuracy, len(results.methods[none].seeds)
    proven = [(f, e.shown) for f, e in found.items() if e.shown]
    estimate = [(f, e.estimate) for f, e in found.items() if e.estimate]
    never = ', '.join(readable(f) for f, e in found.items() if not e.estimate)
    return (
        f'**{title(kind, by_family).capitalize()}.** The network without a quantizer reaches '
        f'{tables.percent(accuracy)}% ({tables.percent_range(accuracy, runs)}). The fewest bits '
        f'per token that lose less than {100 * WITHIN:g} point, by the 95% interval: '
        f'{_listed(proven)}. By the mean: {_listed(estimate)}.'
        + (f' No rate was enough for {never}.' if never else '')
    )


def _losses(points: Mapping[str, Point]) -> str:
    """The family that loses least and the one that loses most, each with its points."""
    ends = [max, min] if len(points) > 1 else [max]
    chosen = (end(points, key=lambda f: points[f].loss.mean) for end in ends)
    return ' to '.join(f'{tables.points(points[f].difference)} ({readable(f)})' for f in chosen)


def _at(by_family: Curves, rate: int) -> dict[str, Point]:
    return {f: p for f, points in by_family.items() for p in points if nominal(p) == rate}


def _learning(results: Results) -> str:
    """Which points have not converged, and what that means; '' where all have."""
    rises = ', '.join(f'{n} {100 * x:+.1f}' for n, x in still_rising(results).items())
    return rises and (
        f'Not converged ({LEARNING}): in the last third of the runs the training accuracy still '
        f'rose, in points: {rises}. Longer runs would reach a higher accuracy, and fewer bits '
        'might then be enough.'
    )


def findings(results: Results) -> list[str]:
    """What the results say, as sentences; of bottlenecks whose baseline was run."""
    baselines = {kind: baseline(results, kind) for kind in bottlenecks(results)}
    kinds = {kind: curves(results, kind) for kind, none in baselines.items() if none}
    kinds = {kind: by_family for kind, by_family in kinds.items() if by_family}
    every = {k: [p for points in found.values() for p in points] for k, found in kinds.items()}
    if not kinds:
        return []
    said = [_enough_said(results, kind, baselines[kind] or '') for kind in kinds]
    for kind, found in kinds.items():
        rates = sorted({nominal(point) for point in every[kind]})
        ends = ', '.join(f'{_losses(_at(found, rate))} at {rate} bits' for rate in rates)
        said.append(
            f'{kind.capitalize()}: the difference to that network in percentage points, for the '
            f'best and the worst quantizer: {ends}.'
        )
    halves = [(p.loss.high - p.loss.low) / 2 for p in itertools.chain(*every.values())]
    said.append(
        'The 95% interval of a difference reaches '
        f'{100 * np.median(halves):.1f} points to either side of its mean in the median '
        f'({100 * min(halves):.1f} to {100 * max(halves):.1f}). A loss below {100 * WITHIN:g} '
        'point is established only where the mean is better than that by as much.'
    )
    said += _of_equal_image_bits(kinds)
    uses = []
    for kind, points in every.items():
        least, most = (end(points, key=lambda p: p.evenness) for end in (min, max))
        collapsed = ', '.join(f'`{p.name}` {p.collapsed}' for p in points if p.collapsed)
        uses.append(
            f'{kind}: {100 * least.evenness:.0f}% (`{least.name}`) to {100 * most.evenness:.0f}% '
            f'(`{most.name}`), {sum(p.collapsed for p in points)} of '
            f'{sum(p.runs for p in points)} runs collapsed' + (collapsed and f' ({collapsed})')
        )
    return [*said, f'Perplexity, as a percentage of that of a uniform source: {"; ".join(uses)}.']


def _of_equal_image_bits(kinds: Mapping[str, Curves]) -> Iterable[str]:
    """Two bottlenecks beside each other at the bits an image that both have, in one sentence."""
    if len(kinds) < 2:
        return
    (one, first), (other, second) = list(kinds.items())[:2]
    pairs = [
        (family, a, b)
        for family, points in first.items()
        for a, b in itertools.product(points, second.get(family, []))
        if round(a.image_bits) == round(b.image_bits)
    ]
    if pairs:
        each = ', '.join(
            f'{readable(family)} {100 * a.accuracy.mean:.1f} and {100 * b.accuracy.mean:.1f}% at '
            f'{round(a.image_bits)}'
            for family, a, b in pairs
        )
        yield f'At equal bits per image, as {one} and as {other}: {each} bits.'


# Report -----------------------------------------------------------------------------------------


def _left_out(results: Results) -> str:
    """The families that end before the largest rate, as sentences; '' where none does."""
    last: dict[str, int] = {}
    for kind in bottlenecks(results):
        for family, points in curves(results, kind).items():
            last[family] = max(last.get(family, 0), nominal(points[-1]))
    most = max(last.values(), default=0)
    said = ', '.join(f'{readable(f)} (to {rate} bits)' for f, rate in last.items() if rate < most)
    return said and f'Some quantizers were not run up to the largest rate, {most} bits: {said}. '


def _how(config: Mapping[str, Any]) -> str:
    """What a title says of the training besides the data set."""
    if not config.get('init_from'):
        return f', {notes.epochs(config)} from scratch'
    frozen = config['frozen_epochs'] < 0
    return ', encoder frozen' if frozen else f', encoder fine-tuned for {notes.epochs(config)}'


def _pictured(results: Results) -> bool:
    """Whether there are enough points for a picture."""
    every = (curves(results, kind).values() for kind in bottlenecks(results))
    return sum(len(points) for families in every for points in families) >= PICTURED


def markdown(results: Results) -> str:
    """The text of report.md."""
    config, methods = results.config, results.methods
    learning = _learning(results)
    every = (points for kind in bottlenecks(results) for points in curves(results, kind).values())
    several = any(len(points) > 1 for points in every)
    number = notes.counted(config['seeds'], notes.runs(results))
    parts = [
        f'# Accuracy against bits on {dataset(config["dataset"])}{_how(config)}',
        'How many bits per token does a classifier need? '
        f'Every quantizer was trained at {"several rates" if several else "one rate"} and is '
        f'compared with the same network without a quantizer: {number} per method, '
        f'{notes.budget(config)}, batches of {config["batch_size"]} images. All methods and rates '
        'share one learning rate and all other settings. Nothing was tuned for a quantizer or a '
        'rate, so each may do better with settings of its own.' + notes.started(config),
        *([f'**{learning}**'] if learning else []),
        *(['![Accuracy against bits per token](rates.png)'] if _pictured(results) else []),
        '## What was found',
        '\n'.join(f'- {sentence}' for sentence in findings(results)),
        f'## Fewest bits per token that lose less than {100 * WITHIN:g} point',
        tables.markdown(enough_rows(results)),
        '"By the interval" asks that the lower end of the 95% interval of the paired difference '
        f'is above -{100 * WITHIN:g} point, "by the mean" that its mean is. A larger rate may fall '
        'behind again; the tables below have all of them. The smallest of several rates is chosen '
        'and the intervals are not corrected for that, so "by the interval" errs more often than a '
        'single interval would.',
    ]
    for kind in bottlenecks(results):
        by_family, none = curves(results, kind), baseline(results, kind)
        if not by_family:
            continue
        parts.append(f'## {title(kind, by_family).capitalize()}')
        if none:
            accuracy, runs = methods[none].accuracy, len(methods[none].seeds)
            told = map(' '.join, zip(CALIBRATION, calibration(results, none), strict=True))
            parts.append(
                f'Without a quantizer (`{none}`): {tables.percent(accuracy)}% '
                f'({tables.percent_range(accuracy, runs)}) at {methods[none].bits:,.0f} bits per '
                f'image; {", ".join(told)}.'
            )
        parts.append(tables.markdown(point_rows(results, kind)))
    return '\n\n'.join([
        *parts,
        f'95% intervals: {METHODS[notes.covered(methods)]}. Differences are paired by run with the '
        'network without a quantizer, of the same bottleneck where that one was run. The codes of '
        'a token are given as stages or groups x codes of each, and its bits are their log2. '
        + _left_out(results)
        + 'Perplexity is that of the test split, as a percentage of what a uniform source of as '
        'many tokens has, averaged over stages. A run counts as collapsed if all codes of an image '
        'together distinguish fewer images than 95% of the number of classes.',
        '## How it was made',
        tables.made_by(results.command, results.environment),
        'The configuration is in `results.json`.',
    ]) + '\n'  # fmt: skip


def write(workdir: str | Path, results: Results) -> None:
    """Writes report.md, and rates.png where there are PICTURED points, to an existing folder."""
    workdir = Path(workdir)
    replace_file(workdir / 'report.md', markdown(results))
    if _pictured(results):
        save(figure(results), workdir / 'rates.png')
