"""What a tokenizer's training shows against its targets: figures, diagnosis, curves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

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

COMMAND = 'python train.py --config configs/tokenizer.py --config.data_dir=FOLDER'


def _rows(figures: Mapping[str, Mapping[str, float]]) -> Iterator[list[str]]:
    """Name, target and the figure of each method."""
    for name in next(iter(figures.values())):
        bound, above = TARGETS.get(name, (None, True))
        target = '' if bound is None else f'{"above" if above else "below"} {bound:g}'
        yield [name, target, *(f'{found[name]:.3g}' for found in figures.values())]


def table(config: Mapping[str, Any], figures: Mapping[str, Mapping[str, float]]) -> Table:
    """The figures of each method beside their targets."""
    found = Table(
        title=f'{config["dataset"]}: tokenizers, {notes.epochs(config)}, seed 0',
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for i, heading in enumerate(('', 'target', *figures)):
        found.add_column(heading, justify='right' if i else 'left', style=None if i else 'bold')
    for row in _rows(figures):
        found.add_row(*map(escape, row))
    return found


def markdown(results: Results, figures: Mapping[str, Mapping[str, float]]) -> str:
    """The text of report.md."""
    config = results.config
    parts = [
        f'# Image tokenizers on {dataset(config["dataset"])}',
        f'{len(figures)} tokenizers with {_tokens_an_image(results):.0f} tokens per image were '
        f'trained to reconstruct images for {notes.epochs(config)} with batches of '
        f'{config["batch_size"]}. The targets are those of source 4, which `docs/sources.md` '
        'describes. All figures are those of the test split and of one run with seed 0. '
        + '; '.join(f'`{n}`: {readable(n)}'.replace('\n', ' ') for n in figures)
        + '.',
        '![Quantizer loss, perplexity and active codes of every tokenizer](curves.png)',
        '## Diagnosis',
    ]
    lines = []
    for name in figures:
        found = [f.name for f in results.findings if (f.method, f.seed) == (name, 0)]
        lines.append(f'- {name}: ' + (', '.join(found) or 'no finding') + '.')
    parts += [
        '\n'.join(lines),
        '## Figures and targets',
        tables.markdown([['figure', 'target', *figures], *_rows(figures)]),
        '## How it was made',
        tables.made_by(COMMAND, results.environment),
    ]
    return '\n\n'.join(parts) + '\n'


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
    figures: Mapping[str, Mapping[str, float]],
) -> None:
    """Writes report.md and curves.png; `histories` and `figures` are those of seed 0 by method."""

    workdir = Path(workdir)
    replace_file(workdir / 'report.md', markdown(results, figures))
    most = max(num_codes(results, name) for name in histories)
    save(figure(histories, most), workdir / 'curves.png')
