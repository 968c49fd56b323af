"""results.json as people read it: a table in the terminal, report.md, and the plots beside it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

from vqjax.metrics import Interval
from vqjax.trainer.files import replace_file
from vqjax.trainer.logs import show
from vqjax.trainer.summaries import (
    BASELINE,
    code_use,
    mean_calibrated_error,
    paired_difference,
    summarise,
    verdict,
)

__all__ = [
    'markdown',
    'paired_difference',
    'print_findings',
    'print_table',
    'summarise',
    'table',
    'write',
]

# Cells. A table is a list of rows of text; where it is printed decides its look.


def _percent(interval: Mapping[str, float], digits: int = 1) -> str:
    mean, low, high = (100 * interval[k] for k in ('mean', 'low', 'high'))
    return f'{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})'


def _points(interval: Interval) -> str:
    return '{:+.1f} ({:+.1f} to {:+.1f})'.format(*(100 * x for x in interval))


def _number(x: float) -> str:
    """Whole above 100, else about three digits."""
    return f'{x:,.0f}' if abs(x) >= 100 or x == round(x) else f'{x:.3g}'


def _share(x: float) -> str:
    """A percentage with the digits that tell small ones apart."""
    return f'{100 * x:.1f}%' if x >= 0.01 else f'{100 * x:.2g}%'


def _difference(results: Mapping[str, Any], name: str) -> Interval | None:
    methods = results['methods']
    if BASELINE not in methods or name == BASELINE:
        return None
    return paired_difference(methods[name]['seeds'], methods[BASELINE]['seeds'], 'accuracy')


def _outcome_rows(results: Mapping[str, Any]) -> Iterable[list[str]]:
    decodes = any('reconstruction_error' in m['summary'] for m in results['methods'].values())
    yield [
        "method", "accuracy % (95%)", "bits an image", "parameters", "seconds", "NLL (nats)",
        "Brier", "ECE", "ECE if calibrated", *["reconstruction error"] * decodes,
    ]  # fmt: skip
    for name, method in results['methods'].items():
        summary = method['summary']
        band = mean_calibrated_error(method)
        row = [
            name,
            _percent(summary['accuracy']),
            _number(method['bits']),
            f'{method["params"]:,}',
            f'{method["seconds"]:.0f}',
            f'{summary["nll"]["mean"]:.3f}',
            f'{summary["brier"]["mean"]:.3f}',
            f'{summary["ece"]["mean"]:.3f}',
            f'{band.mean:.3f} ({band.low:.3f} to {band.high:.3f})',
        ]
        if decodes:
            error = summary.get('reconstruction_error')
            row.append('' if error is None else f'{error["mean"]:.4f}')
        yield row


def _code_rows(results: Mapping[str, Any]) -> Iterable[list[str]]:
    yield [
        "method", "codes", "test tokens", "perplexity (95%)", "by stage", "lowest seed",
        "perplexity if uniform", "active codes", "usage", "usage if uniform",
    ]  # fmt: skip
    for name, method in results['methods'].items():
        use = code_use(method)
        if use is None:
            continue
        summary = method['summary']
        stages = np.mean([seed['perplexity_per_stage'] for seed in method['seeds']], axis=0)
        found = summary['perplexity']
        yield [
            name,
            f'{use.num_codes:,}',
            f'{use.num_tokens:,}',
            '{} ({} to {})'.format(*(_number(found[k]) for k in ('mean', 'low', 'high'))),
            ', '.join(_number(x) for x in stages) if len(stages) > 1 else '',
            _number(min(np.min(seed['perplexity_per_stage']) for seed in method['seeds'])),
            _number(use.uniform.perplexity),
            _number(summary['active_codes']['mean']),
            _share(summary['usage']['mean']),
            _share(use.uniform.usage),
        ]


def _difference_rows(results: Mapping[str, Any]) -> Iterable[list[str]]:
    yield ['method', f'points to {BASELINE} (95%)', 'seeds better / equal / worse', 'verdict']
    for name, method in results['methods'].items():
        difference = _difference(results, name)
        if difference is None:
            continue
        seeds = {s['seed']: s['accuracy'] for s in results['methods'][BASELINE]['seeds']}
        signs = [
            np.sign(s['accuracy'] - seeds[s['seed']]) for s in method['seeds'] if s['seed'] in seeds
        ]
        tally = ' / '.join(str(signs.count(sign)) for sign in (1, 0, -1))
        yield [name, _points(difference), tally, verdict(difference, len(signs))]


def _below(text: str) -> str:
    """'m (l to h)' with the interval in a line of its own."""
    return text.replace(' (', '\n(').replace(' to ', ', ')


def table(results: Mapping[str, Any]) -> Table:
    """The comparison in under 100 columns, intervals and baselines below the values."""
    num_seeds = max(len(m['seeds']) for m in results['methods'].values())
    found = Table(
        title=f'{results["config"]["dataset"]}: test split, {num_seeds} seeds',
        caption='( ) 95% interval over seeds   [ ] calibrated model, uniform source',
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    found.add_column('method', style='bold')
    headings = ("accuracy %", f"to {BASELINE}", "ECE", "perplexity", "active", "usage",
                "bits", "params", "s")  # fmt: skip
    for heading in headings:
        found.add_column(heading, justify='right')
    for name, method in results['methods'].items():
        summary, use, difference = method['summary'], code_use(method), _difference(results, name)
        codes = [''] * 3
        if use is not None:
            codes = [
                f'{_number(summary["perplexity"]["mean"])}\n[{_number(use.uniform.perplexity)}]',
                f'{summary["active_codes"]["mean"]:.0f}\nof {use.num_codes:,}',
                f'{_share(summary["usage"]["mean"])}\n[{_share(use.uniform.usage)}]',
            ]
        cells = [
            name,
            _below(_percent(summary['accuracy'])),
            '' if difference is None else _below(_points(difference)),
            f'{summary["ece"]["mean"]:.3f}\n[{mean_calibrated_error(method).mean:.3f}]',
            *codes,
            _number(method['bits']),
            f'{method["params"]:,}',
            f'{method["seconds"]:.0f}',
        ]
        found.add_row(*(escape(cell) for cell in cells))
    return found


def print_table(results: Mapping[str, Any]) -> None:
    """Prints `table` to stdout, in colour only on a terminal and where NO_COLOR is not set."""
    show(table(results))


def print_findings(results: Mapping[str, Any]) -> None:
    """Prints what is wrong with the runs, or that nothing is."""
    lines = [_finding(f).replace('**', '') for f in results['findings']]
    text = '\n'.join(lines or ['Diagnosis: nothing wrong.'])
    show(escape(text))


def _markdown(rows: Iterable[list[str]]) -> str:
    header, *body = rows
    rule = ['---' if name in ('method', 'verdict') else '---:' for name in header]
    lines = [header, rule, *body]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def _finding(finding: Mapping[str, Any]) -> str:
    where = ', '.join(f'{k} {finding[k]}' for k in ('method', 'seed') if k in finding)
    evidence = ', '.join(f'{k} = {v:.4g}' for k, v in finding['evidence'].items())
    return (
        f'- **{finding["name"]}** ({finding["severity"]}{", " + where if where else ""}): '
        f'{evidence}. Remedy: {finding["remedy"]}'
    )


def markdown(results: Mapping[str, Any]) -> str:
    """The text of report.md."""
    config, environment = results['config'], results['environment']
    methods = results['methods']
    num_seeds = max(len(m['seeds']) for m in methods.values())
    parts = [
        f'# Comparison on {config["dataset"]}',
        f'{len(methods)} methods, {num_seeds} seeds each, {config["epochs"]} epochs, batch size '
        f"{config['batch_size']}, bottleneck '{config['bottleneck']}': the same encoder, head, "
        'optimizer, data order and budget for every method.',
    ]
    changed = {n: m['overrides'] for n, m in methods.items() if m.get('overrides')}
    if changed:
        said = (f'{n} ({", ".join(f"{k} {v}" for k, v in o.items())})' for n, o in changed.items())
        parts.append(f'But for what is overridden: {", ".join(said)}.')
    if 'command' in results:
        parts.append(f'Made by\n```\n{results["command"]}\n```')
    parts += [
        'on ' + ', '.join(f'{k} {v}' for k, v in environment.items()) + '.',
        '## Outcome on the test split',
        _markdown(_outcome_rows(results)),
        f'Brackets: bootstrap 95% interval over seeds. {_sampling_note(methods)} ECE: 15 equal '
        'bins; beside it the mean and the 95% range of a perfectly calibrated model with the same '
        'confidences. Seconds: all seeds together.',
        '![accuracy](accuracy.png)',
    ]
    differences = list(_difference_rows(results))
    if len(differences) > 1:
        parts += [
            f'## Difference to {BASELINE}',
            _markdown(differences),
            'Paired by seed: the same initial encoder and data order.',
        ]
    codes = list(_code_rows(results))
    if len(codes) > 1:
        parts += [
            '## Codes on the test split',
            _markdown(codes),
            'Perplexity, active codes and usage are means over stages, from counts summed over the '
            'whole split. A uniform source of as many tokens does not use every code either: its '
            'figures stand beside.',
            *(f'![{name}]({name}.png)' for name in ('perplexity', 'usage')),
        ]
    parts += ['## Calibration', '![reliability](reliability.png)']
    if results.get('findings'):
        parts += ['## Findings', '\n'.join(_finding(f) for f in results['findings'])]
    return '\n\n'.join(parts) + '\n'


def _sampling_note(methods: Mapping[str, Any]) -> str:
    method = next(iter(methods.values()))
    num_images = round(sum(method['seeds'][0]['reliability']['count']))
    share = method['summary']['accuracy']['mean']
    half = 100 * 1.96 * math.sqrt(share * (1 - share) / num_images)
    return (
        f'It leaves out that the {num_images:,} test images are themselves a sample: that alone '
        f'is worth {half:.1f} points either way.'
    )


def write(
    workdir: str | Path,
    results: Mapping[str, Any],
    histories: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]] | None,
) -> None:
    """Writes report.md, accuracy.png, perplexity.png, usage.png and reliability.png to `workdir`.

    Args:
        workdir: an existing folder.
        results: the content of results.json.
        histories: {method: [for each seed: the validation records over training]}; None, without
            records, leaves perplexity.png empty but for a note.
    """
    from vqjax.studies import plots  # Matplotlib takes a second to import

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
