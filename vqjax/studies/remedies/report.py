"""What the comparison of remedies says: conclusions, the claims and what became of them, tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from vqjax.atomic import replace_file
from vqjax.results.records import Results
from vqjax.results.summaries import BASELINE as NONE
from vqjax.results.summaries import METHODS, compare
from vqjax.studies.remedies.plots import figure
from vqjax.studies.remedies.verdicts import (
    CLAIMS,
    HEALTHY,
    WEAK,
    acted,
    by_accuracy,
    choice,
    collapses,
    guard,
    holds,
    verdict,
)
from vqjax.studies.reporting import notes, tables
from vqjax.studies.reporting.plots import save


def command(config: Mapping[str, Any]) -> str:
    """The command that makes the results of a configuration."""
    file, flags = 'remedies.py', [f'--config.seeds={config["seeds"]}']
    if config['dataset'] != 'digits':
        file = f'remedies_{config["dataset"]}.py:{config["epochs"]}'
        flags.append('--config.data_dir=FOLDER')
    if config.get('methods', 'all') != 'all':
        flags.append(f'--config.methods={config["methods"]}')
    if config.get('bottleneck', 'vector') != 'vector':
        flags.append(f'--config.bottleneck={config["bottleneck"]}')
    return ' '.join([f'python train.py --config configs/{file}', *flags])


# Tables, all with a row for each remedy, the most accurate first.


def _outcome_rows(results: Results) -> Iterable[list[str]]:
    yield ['remedy', 'how often it acted', 'accuracy %', f'points compared with {NONE}',
           'runs collapsed']  # fmt: skip
    for name in by_accuracy(results):
        method = results.methods[name]
        yield [
            name,
            acted(name, results),
            tables.percent(method.accuracy),
            tables.points(compare(results, name, NONE)),
            _collapsed(name, results),
        ]


def _interval_rows(results: Results) -> Iterable[list[str]]:
    yield ['remedy', 'accuracy %', f'points compared with {NONE}', f'points compared with {WEAK}',
           'runs collapsed %']  # fmt: skip
    for name in by_accuracy(results):
        method = results.methods[name]
        quantized, runs = 'perplexity' in method.summary, len(method.seeds)
        yield [
            name,
            tables.percent_range(method.accuracy, runs),
            *(tables.points_range(compare(results, name, to), runs) for to in (NONE, WEAK)),
            '{:.0f} to {:.0f}'.format(*(100 * x for x in collapses(name, results)[1:]))
            if quantized
            else '',
        ]


def _code_rows(results: Results) -> Iterable[list[str]]:
    yield ['remedy', 'perplexity', 'codes in use', 'bits per image']
    for name in by_accuracy(results):
        method = results.methods[name]
        summary = method.summary
        if 'perplexity' in summary:
            found = [
                f'{summary["perplexity"].mean:.1f}',
                f'{summary["active_codes"].mean:.0f}',
            ]
            yield [name, *found, f'{method.bits:,.0f}']


def _collapsed(name: str, results: Results) -> str:
    method = results.methods[name]
    if 'perplexity' not in method.summary:
        return ''
    runs = len(method.seeds)
    return f'{round(collapses(name, results).mean * runs)} of {runs}'


def _claim_rows(results: Results) -> Iterable[list[str]]:
    yield ['source', 'claim', 'verdict', 'remedy', 'outcome']
    for name, (source, claim, _) in CLAIMS.items():
        if name in results.methods and (said := verdict(name, results)):
            yield [source, claim, holds(name, results), name, said]


def table(results: Results) -> Table:
    """All remedies, one a row, without their intervals."""
    config = results.config
    seeds = notes.counted(config['seeds'], 'seeds')
    found = Table(
        title=f'{config["dataset"]}: {seeds}, {notes.epochs(config)}',
        caption='intervals and claims: report.md',
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    codes = {name: cells for name, *cells in _code_rows(results)}
    (*headings, _), *rows = _outcome_rows(results)
    for i, heading in enumerate([*headings, 'runs collapsed', *codes['remedy']]):
        words = i < 2  # what it is and how often it acted: whole lines, whatever the width
        found.add_column(
            heading,
            justify='left' if words else 'right',
            no_wrap=words,
            style='' if i else 'bold',
            min_width=max(len(word) for word in heading.split()),
        )
    for row in rows:
        found.add_row(*map(escape, [*row, *codes.get(row[0], [''] * 3)]))
    return found


def _conclusions(results: Results) -> list[str]:
    return [
        '## What to choose',
        choice(results),
        *guard(results),
        '## The claims',
        'The sources are five working notes on a classifier whose codebook collapsed; '
        '`docs/sources.md` says what each is. A remedy that is to prevent the collapse holds what '
        f'is claimed where no run collapsed and a loss of 2 points or more to `{NONE}` is '
        f'excluded, in part where it is better than `{WEAK}`. One said never to collapse fails '
        'where a run did, and is not refuted otherwise. One said to harm has to be worse than '
        f'what it is added to (`{WEAK}`; `revival` where every step is looked at). These are the '
        'verdicts on this set; `docs/answer.md` takes digits and MNIST together.',
        tables.markdown(_claim_rows(results), words=5),
    ]


def _title(results: Results) -> str:
    """What a report is of: the baseline alone, all remedies, or those of a later run."""
    if results.methods.keys() <= {NONE, WEAK}:
        return 'The weak baseline'
    return 'Remedies' if HEALTHY in results.methods else 'Further remedies'


def markdown(results: Results) -> str:
    """The text of report.md."""
    config = results.config
    grid = config.get('bottleneck') == 'grid'
    alone = results.methods.keys() <= {NONE, WEAK}  # the baseline, without a remedy
    known = WEAK in results.methods
    fell = f', of which {_collapsed(WEAK, results)} runs collapsed' if known else ''
    return '\n\n'.join([
        f'# {_title(results)} on {config["dataset"]}' + grid * ', with a grid of codes per image',
        f'The weak baseline (`{WEAK}`) and the network without a quantizer, {config["seeds"]} '
        'seeds each.'
        if alone
        else f'{len(results.methods)} remedies and controls, {config["seeds"]} seeds each: each '
        f'remedy alone, added to one weak baseline (`{WEAK}`){fell}. What fails here '
        'fails added to this baseline, which is no verdict on a run with a sound start and revival '
        '(`configs/digits.py`).',
        '![Test error and perplexity of every remedy](remedies.png)',
        *([] if alone else _conclusions(results)),
        '## Outcome',
        'How often a remedy acted is the mean per run, for those that wait for an event; "-" '
        'stands for those that act at all times or once, such as another start.',
        tables.markdown(_outcome_rows(results), words=2),
        '## Intervals',
        '95%: of accuracies and differences '
        f'{METHODS[notes.covered(results.methods)]}, of the share '
        'of collapsed runs after Wilson.',
        tables.markdown(_interval_rows(results)),
        '## Codes',
        'Means over seeds, and over stages where there are several.',
        tables.markdown(_code_rows(results)),
        '## How it was made',
        tables.made_by(command(config), results.environment),
        f'{config["epochs"]} epochs of batches of {config["batch_size"]} images. Same seeds, data '
        'order and number of images for all; small_batches takes four times the steps for it. The '
        "encoder's features are not standardised here, which is what lets the baseline collapse: "
        '`vqjax.encoders.Encoder` standardises them. Every run is in the figures, collapsed ones '
        'too. Collapsed: test perplexity (of all stages together) below 95% of the number of '
        'classes; one code per class has barely less than their number.',
    ]) + '\n'  # fmt: skip


def write(workdir: str | Path, results: Results) -> None:
    """Writes report.md and remedies.png to an existing folder."""

    workdir = Path(workdir)
    replace_file(workdir / 'report.md', markdown(results))
    save(figure(results), workdir / 'remedies.png')
