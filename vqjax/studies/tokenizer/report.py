"""What a tokenizer's training shows against its targets: figures, diagnosis, curves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

from vqjax import quantizers
from vqjax.atomic import replace_file
from vqjax.results.records import Results
from vqjax.studies.reporting import notes, tables
from vqjax.studies.reporting.names import dataset, readable
from vqjax.studies.reporting.plots import save
from vqjax.studies.tokenizer.plots import figure
from vqjax.studies.tokenizer.targets import TARGETS

# Method -> the figures of each of its runs.
Figures = Mapping[str, Sequence[Mapping[str, float]]]


def _rows(figures: Figures) -> Iterator[list[str]]:
    """Name, target and the figure of each method; of a method whose runs lack it, nothing."""
    runs = [run for method in figures.values() for run in method]
    for name in dict.fromkeys(name for run in runs for name in run):
        bound, above = TARGETS.get(name, (None, True))
        target = '' if bound is None else f'{"above" if above else "below"} {bound:g}'
        each = ([run[name] for run in of if name in run] for of in figures.values())
        yield [name, target, *(_cell(values) if values else '' for values in each)]


def _cell(values: Sequence[float]) -> str:
    """The mean of several runs, and their range."""
    mean = f'{np.mean(values):.3g}'
    return mean if len(values) == 1 else f'{mean} ({min(values):.3g} to {max(values):.3g})'


def table(config: Mapping[str, Any], figures: Figures) -> Table:
    """The figures of each method beside their targets."""
    number = len(next(iter(figures.values())))
    found = Table(
        title=f'{config["dataset"]}: tokenizers, {notes.epochs(config)}, '
        + ('one run' if number == 1 else f'mean (range) of {number} runs'),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for i, heading in enumerate(('', 'target', *figures)):
        found.add_column(heading, justify='right' if i else 'left', style=None if i else 'bold')
    for row in _rows(figures):
        found.add_row(*map(escape, row))
    return found


def markdown(results: Results, figures: Figures) -> str:
    """The text of report.md."""
    config = results.config
    number = len(next(iter(figures.values())))
    of_runs = (
        'of one run with seed 0'
        if number == 1
        else f'of {number} runs: their mean, and in brackets the lowest and the highest. The '
        'picture shows the run with seed 0'
    )
    parts = [
        f'# Image tokenizers on {dataset(config["dataset"])}',
        f'{len(figures)} tokenizers with {_tokens_an_image(results):.0f} tokens per image were '
        f'trained to reconstruct images for {notes.epochs(config)} with batches of '
        f'{config["batch_size"]}{_other_epochs(config, figures)}. The targets are those of '
        'source 4, which `docs/sources.md` describes. All figures are those of the test split and '
        f'{of_runs}. '
        + '; '.join(f'`{n}`: {readable(n)}'.replace('\n', ' ') for n in figures)
        + '.',
        '![Quantizer loss, perplexity and active codes of every tokenizer](curves.png)',
        '## Diagnosis',
    ]
    lines = []
    for name in figures:
        found = Counter(f.name for f in results.findings if f.method == name)
        each = (f'{f} ({runs} of {number} runs)' if number > 1 else f for f, runs in found.items())
        lines.append(f'- {name}: ' + (', '.join(each) or 'no finding') + '.')
    parts += [
        '\n'.join(lines),
        '## Figures and targets',
        tables.markdown([['figure', 'target', *figures], *_rows(figures)]),
        '## How it was made',
        tables.made_by(results.command, results.environment),
    ]
    return '\n\n'.join(parts) + '\n'


def _other_epochs(config: Mapping[str, Any], figures: Figures) -> str:
    """Which methods were trained for another number of epochs, as ' (`a` for 1 epoch)'."""
    own = {name: config['overrides'].get(name, {}).get('epochs') for name in figures}
    parts = [
        f'`{name}` for {notes.counted(epochs, "epochs")}'
        for name, epochs in own.items()
        if epochs not in (None, config['epochs'])
    ]
    return f' ({", ".join(parts)})' if parts else ''


def num_codes(results: Results, name: str) -> int:
    """K of a method.

    Raises:
      ValueError: it has no quantizer.
    """
    spec = results.methods[name].spec
    if spec is None:
        raise ValueError(f'{name} has no quantizer, so no codes')
    return quantizers.make(spec).num_codes


def _tokens_an_image(results: Results) -> float:
    seed = next(method.seeds[0] for method in results.methods.values() if method.spec)
    return seed.figures['tokens'] / seed.num_examples


def write(
    workdir: str | Path,
    results: Results,
    *,
    histories: Mapping[str, Sequence[Mapping[str, float]]],
    figures: Figures,
) -> None:
    """Writes report.md, and curves.png of `histories`, which are those of seed 0 by method."""

    workdir = Path(workdir)
    replace_file(workdir / 'report.md', markdown(results, figures))
    most = max(num_codes(results, name) for name in histories)
    save(figure(histories, most), workdir / 'curves.png')
