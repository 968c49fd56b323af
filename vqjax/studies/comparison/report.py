"""results.json as people read it: a table in the terminal, report.md, and the plots beside it."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

from vqjax.atomic import replace_file
from vqjax.results.records import Results
from vqjax.results.summaries import (
    BASELINE,
    code_use,
    compare,
    mean_calibrated_error,
    verdict,
)
from vqjax.studies.comparison import trials
from vqjax.studies.reporting import notes, plots, tables
from vqjax.studies.reporting.names import dataset
from vqjax.trainer.files.display import show

_COLUMNS = 100  # of the terminal's report

# Cells. A table is a list of rows of text; where it is printed decides its look.


def _number(x: float) -> str:
    """Whole above 100, else about three digits."""
    return f'{x:,.0f}' if abs(x) >= 100 or x == round(x) else f'{x:.3g}'


def _share(x: float) -> str:
    """A percentage with the digits that tell small ones apart."""
    return f'{100 * x:.1f}%' if x >= 0.01 else f'{100 * x:.2g}%'


def _outcome_rows(results: Results) -> Iterable[list[str]]:
    decodes = any('reconstruction_error' in m.summary for m in results.methods.values())
    yield [
        "method", "accuracy %", "95% interval", "bits per image", "parameters", "seconds",
        *["reconstruction error"] * decodes,
    ]  # fmt: skip
    for name, method in results.methods.items():
        summary = method.summary
        row = [
            name,
            tables.percent(method.accuracy),
            tables.percent_range(method.accuracy, len(method.seeds)),
            _number(method.bits),
            f'{method.params:,}',
            f'{method.seconds:.0f}',
        ]
        if decodes:
            error = summary.get('reconstruction_error')
            row.append('' if error is None else f'{error.mean:.4f}')
        yield row


def _difference_rows(results: Results) -> Iterable[list[str]]:
    yield [
        "method", "verdict", "points", "95% interval",
        f"{notes.runs(results)} better / equal / worse",
    ]  # fmt: skip
    for name, method in results.methods.items():
        difference = compare(results, name)
        if difference is None:
            continue
        seeds = {s.seed: s.accuracy for s in results.methods[BASELINE].seeds}
        signs = [np.sign(s.accuracy - seeds[s.seed]) for s in method.seeds if s.seed in seeds]
        tally = ' / '.join(str(signs.count(sign)) for sign in (1, 0, -1))
        said = verdict(difference, len(signs))
        interval = tables.points_range(difference, len(signs))
        yield [name, said, tables.points(difference), interval, tally]


def _perplexity_rows(results: Results) -> Iterable[list[str]]:
    yield [
        'method', 'perplexity', '95% interval', 'uniform source', 'lowest seed', 'by stage',
        'entropy, bits per token',
    ]  # fmt: skip
    for name, method in results.methods.items():
        use = code_use(method)
        if use is None:
            continue
        per_stage = [seed.perplexity_per_stage for seed in method.seeds]
        # Where folds chose other numbers of stages, there is no mean by stage.
        stages = np.mean(per_stage, axis=0) if len({len(x) for x in per_stage}) == 1 else ()
        found = method.summary['perplexity']
        yield [
            name,
            _number(found.mean),
            f'{_number(found.low)} to {_number(found.high)}'
            if len(method.seeds) > 1
            else tables.ONE_RUN,
            _number(use.uniform.perplexity),
            _number(min(min(stages) for stages in per_stage)),
            ', '.join(_number(x) for x in stages) if len(stages) > 1 else '',
            _number(np.mean([np.sum(np.log2(np.maximum(x, 1.0))) for x in per_stage])),
        ]


def _use_rows(results: Results) -> Iterable[list[str]]:
    yield ['method', 'codes', 'test tokens', 'codes in use', 'share in use', 'uniform source']
    for name, method in results.methods.items():
        use = code_use(method)
        if use is None:
            continue
        summary = method.summary
        yield [
            name,
            f'{use.num_codes:,}',
            f'{use.num_tokens:,}',
            _number(summary['active_codes'].mean),
            _share(summary['usage'].mean),
            _share(use.uniform.usage),
        ]


def _calibration_rows(results: Results) -> Iterable[list[str]]:
    scaled = _rescaled(results)
    yield [
        'method', 'NLL (nats)', 'Brier score', 'ECE',
        *['ECE at fitted T', 'NLL at fitted T', 'T'] * scaled,
        'ECE of a calibrated model', '95% range of that',
    ]  # fmt: skip
    for name, method in results.methods.items():
        summary, band = method.summary, mean_calibrated_error(method)
        yield [
            name,
            *(f'{summary[metric].mean:.3f}' for metric in ('nll', 'brier', 'ece')),
            *(f'{summary[m].mean:.3f}' for m in ('scaled_ece', 'scaled_nll') if scaled),
            *(f'{summary[m].mean:.2f}' for m in ('temperature',) if scaled),
            f'{band.mean:.3f}',
            f'{band.low:.3f} to {band.high:.3f}',
        ]


def _rescaled(results: Results) -> bool:
    return all('temperature' in method.summary for method in results.methods.values())


def _over(value: str, interval: str) -> str:
    """A value with its interval in a line of its own, '' where there is none."""
    return value and f'{value}\n({interval})'


def table(results: Results) -> Table:
    """The comparison in at most 100 columns, intervals and baselines below the values."""
    config = results.config
    split = notes.split(results)
    num_seeds = max(len(m.seeds) for m in results.methods.values())
    number = notes.counted(num_seeds, notes.runs(results))
    interval = f'(...) 95% interval over {notes.over_what(results)}'
    if notes.alone(results):
        interval = 'one run of each method: no interval'
    found = Table(
        title=f'{config["dataset"]}: {split} split, {number}',
        caption=f'{interval}; [...] what a calibrated model, or a uniform source, would show',
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    found.add_column('method', style='bold', overflow='fold')
    headings = ("accuracy %", f"compared\nwith {BASELINE}", "ECE", "perplexity",
                "codes in use", "bits/\nimage", "params", "s")  # fmt: skip
    for heading in headings:
        found.add_column(heading, justify='right', no_wrap=True)
    for name, method in results.methods.items():
        summary, use, difference = method.summary, code_use(method), compare(results, name)
        runs = len(method.seeds)
        codes = ['', '']
        if use is not None:
            codes = [
                f'{_number(summary["perplexity"].mean)}\n[{_number(use.uniform.perplexity)}]',
                f'{summary["active_codes"].mean:.0f} of {use.num_codes:,}\n'
                f'{_share(summary["usage"].mean)} [{_share(use.uniform.usage)}]',
            ]
        cells = [
            name,
            _over(tables.percent(method.accuracy), tables.percent_range(method.accuracy, runs)),
            _over(tables.points(difference), tables.points_range(difference, runs)),
            f'{summary["ece"].mean:.3f}\n[{mean_calibrated_error(method).mean:.3f}]',
            *codes,
            _number(method.bits),
            f'{method.params:,}',
            f'{method.seconds:.0f}',
        ]
        found.add_row(*(escape(cell) for cell in cells))
    return found


def print_table(results: Results) -> None:
    """Prints `table` to stdout, in colour only on a terminal and where NO_COLOR is not set."""
    show(table(results), _COLUMNS)


def print_findings(results: Results) -> None:
    """Prints what is wrong with the runs, or that nothing is."""
    lines = [notes.finding(f).replace('**', '') for f in results.findings]
    lines = [line for line in (notes.rising(results), *lines) if line]
    show(escape('\n'.join(lines or ['Diagnosis: nothing wrong.'])), _COLUMNS)


def markdown(results: Results) -> str:
    """The text of report.md."""
    config, methods = results.config, results.methods
    split = notes.split(results)
    num_seeds = max(len(m.seeds) for m in methods.values())
    parts = [
        f'# Comparison on {dataset(config["dataset"])}',
        f'{notes.counted(len(methods), "methods")} were trained with '
        f'{notes.counted(num_seeds, notes.runs(results))} each, {notes.budget(config)}, batches of '
        f'{config["batch_size"]} images and the bottleneck `{config["bottleneck"]}`. Encoder, '
        'head, optimizer, data order and budget are the same for all methods.',
    ]
    if rising := notes.rising(results):
        parts.append(f'**{rising}**')
    changed = {n: m.overrides for n, m in methods.items() if m.overrides}
    if changed:
        said = (f'{n} ({", ".join(f"{k} {v}" for k, v in o.items())})' for n, o in changed.items())
        parts.append(f'These settings differ between methods: {", ".join(said)}.')
    parts += [
        '![Test accuracy of every method](accuracy.png)',
        f'## Outcome on the {split} split',
        tables.markdown(_outcome_rows(results)),
        f'{notes.interval(results)} {notes.sampling_note(methods)}'
        f'Seconds are those of all {notes.runs(results)} together.',
    ]
    parts += trials.tuning_section(results)
    differences = list(_difference_rows(results))
    if len(differences) > 1:
        parts += [
            f'## Accuracy compared with {BASELINE}',
            tables.markdown(differences, words=2),
            f'Differences are paired by {notes.runs(results)[:-1]}, which has the same initial '
            f'encoder and data order for all methods. {notes.interval(results)}',
        ]
    parts += trials.halves_section(results)
    perplexities = list(_perplexity_rows(results))
    if len(perplexities) > 1:
        parts += [
            f'## Codes on the {split} split',
            tables.markdown(perplexities),
            tables.markdown(_use_rows(results)),
            'These are means over seeds and stages, from counts summed over the whole split. A '
            'uniform source of the same number of tokens does not use every code either, so its '
            'figures are given for comparison. The entropy is the sum over stages: the number of '
            'bits that entropy-coded tokens come close to.',
            '![Perplexity over training](perplexity.png)',
            '![Use of the codes](usage.png)',
        ]
    parts += [
        '## Calibration',
        tables.markdown(_calibration_rows(results)),
        'The expected calibration error (ECE) has 15 equal bins. The last two columns are the mean '
        'and the 95% range of the ECE that a perfectly calibrated model with the same confidences '
        'would show.' + notes.TEMPERATURE * _rescaled(results),
        '![Reliability](reliability.png)',
    ]
    if results.findings:
        parts += ['## Findings', '\n'.join(notes.finding(f) for f in results.findings)]
    parts += [
        '## How it was made',
        tables.made_by(results.command, results.environment),
        'The configuration is in `results.json`.',
    ]
    return '\n\n'.join(parts) + '\n'


def write(
    workdir: str | Path,
    results: Results,
    histories: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]] | None,
) -> None:
    """Writes report.md, accuracy.png, perplexity.png, usage.png and reliability.png to `workdir`.

    Args:
        workdir: an existing folder.
        histories: {method: [for each seed: the validation records over training]}; None, without
            records, leaves perplexity.png empty but for a note.
    """
    workdir = Path(workdir)
    replace_file(workdir / 'report.md', markdown(results))
    figures = {
        'accuracy': plots.accuracy(results),
        'perplexity': plots.perplexity(histories or {}),
        'usage': plots.usage(results),
        'reliability': plots.reliability(results),
    }
    for name, figure in figures.items():
        plots.save(figure, workdir / f'{name}.png')
