"""What a tokenizer's training shows against its targets: figures, diagnosis, curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

from vqjax import quantizers
from vqjax.studies import notes, tables
from vqjax.trainer.files import replace_file

# Source 4's own targets: name -> (bound, whether the figure has to be above it).
TARGETS = {
    'share of codes active': (0.8, True),
    'perplexity': (600.0, True),
    'dead codes': (50.0, False),
    'quantizer loss, end against first quarter': (1.0, False),
    'spikes': (1.0, False),
}

COMMAND = 'python train.py --config configs/tokenizer.py --config.data_dir=FOLDER'


def measure(
    history: Sequence[Mapping[str, float]], final: Mapping[str, float], num_codes: int
) -> dict[str, float]:
    """The figures that the targets are about, from a run's records and its test figures."""
    losses = np.array([r['quantizer_loss'] for r in history if 'gradient_norm' in r])
    quarter = len(losses) // 4
    warm = losses[quarter:]
    spikes = [x > 4 * np.median(warm[max(i - 25, 0) : i + 25]) for i, x in enumerate(warm)]
    return {
        'share of codes active': final['active_codes'] / num_codes,
        'perplexity': final['perplexity'],
        'dead codes': num_codes - final['active_codes'],
        'quantizer loss, end against first quarter': float(
            np.median(losses[-quarter:]) / np.median(losses[:quarter])
        ),
        'spikes': float(np.sum(spikes)),
        'reconstruction error': final['reconstruction_error'],
    }


def _rows(figures):
    """Name, target and the figure of each method."""
    for figure in next(iter(figures.values())):
        bound, above = TARGETS.get(figure, (None, True))
        target = '' if bound is None else f'{"above" if above else "below"} {bound:g}'
        yield [figure, target, *(f'{found[figure]:.3g}' for found in figures.values())]


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


def markdown(results: Mapping[str, Any], figures: Mapping[str, Mapping[str, float]]) -> str:
    """The text of report.md."""
    config = results['config']
    parts = [
        f'# Tokenizer on {config["dataset"]}',
        f'{len(figures)} tokenizers of images, {_tokens_an_image(results):.0f} tokens per image, '
        f'trained to reconstruct for {notes.epochs(config)} in batches of {config["batch_size"]}. '
        'Targets: those of source 4 (`docs/sources.md` says what that is). Figures of the test '
        'split, seed 0.',
        '![Quantizer loss, perplexity and active codes of every tokenizer](curves.png)',
        '## Diagnosis',
    ]
    lines = []
    for name in figures:
        found = [f['name'] for f in results['findings'] if (f['method'], f['seed']) == (name, 0)]
        lines.append(f'- {name}: ' + (', '.join(found) or 'nothing wrong') + '.')
    parts += [
        '\n'.join(lines),
        '## Figures and targets',
        tables.markdown([['figure', 'target', *figures], *_rows(figures)]),
        '## How it was made',
        tables.made_by(COMMAND, results['environment']),
    ]
    return '\n\n'.join(parts) + '\n'


def figure(histories: Mapping[str, Sequence[Mapping[str, float]]], num_codes: int):
    """Quantizer loss of every step, and perplexity and active codes of every evaluation.

    A column for each tokenizer, in which the others are grey: none hides another.
    """
    from vqjax.studies import plots

    return plots.styled(_draw)(histories, num_codes, plots)


def _draw(histories, num_codes, plots):
    rows = (
        ('quantizer_loss', 'gradient_norm', "quantizer's loss"),
        ('perplexity', 'tokens', 'perplexity'),
        ('active_codes', 'tokens', f'active codes of {num_codes:,}'),
    )
    drawn = plots.new_figure(1.2 + 2.1 * len(histories), 6.4)
    grid = drawn.subplots(3, len(histories), sharex=True, sharey='row', squeeze=False)
    targets = {1: TARGETS['perplexity'][0], 2: TARGETS['share of codes active'][0] * num_codes}
    for line, (key, kind, title) in enumerate(rows):
        series = {
            name: np.array([(r['step'], r[key]) for r in history if kind in r], float).T
            for name, history in histories.items()
        }
        for axis, name in zip(grid[line], series, strict=True):
            for points in series.values():
                axis.plot(*points, color=plots.LIGHT, lw=0.8, zorder=1)
            axis.plot(*series[name], color=plots.BLUE, lw=1.4, zorder=2)
            if line in targets:
                axis.axhline(targets[line], color=plots.VERMILION, lw=1, ls='--')
        grid[line, 0].set_ylabel(title)
    grid[0, 0].set_yscale('log')
    for axis in grid[1:, 0]:
        axis.set_ylim(bottom=0)
    for axis, name in zip(grid[0], histories, strict=True):
        axis.set_title(name)
    drawn.supxlabel(
        'step; blue: the tokenizer named, grey: the others; dashed: target; perplexity and active '
        'codes of the validation split',
        fontsize=9,
        color=plots.GREY,
    )
    return drawn


def num_codes(results: Mapping[str, Any], name: str) -> int:
    """K of a method."""
    return quantizers.make(results['methods'][name]['spec']).num_codes


def _tokens_an_image(results):
    seed = next(m['seeds'][0] for m in results['methods'].values() if m['spec'])
    return seed['tokens'] / sum(seed['reliability']['count'])


def write(
    workdir: str | Path,
    results: Mapping[str, Any],
    histories: Mapping[str, Sequence[Mapping[str, float]]],
    figures: Mapping[str, Mapping[str, float]],
) -> None:
    """Writes report.md and curves.png; `histories` and `figures` are those of seed 0 by method."""
    from vqjax.studies import plots

    workdir = Path(workdir)
    replace_file(workdir / 'report.md', markdown(results, figures))
    most = max(num_codes(results, name) for name in histories)
    plots.save(figure(histories, most), workdir / 'curves.png')
