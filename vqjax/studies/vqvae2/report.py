"""The table and the pictures of two levels of codes against one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

from vqjax import quantizers
from vqjax.results.records import MethodResult, Results, SeedResult
from vqjax.studies.reporting.names import dataset
from vqjax.studies.reporting.notes import counted, epochs
from vqjax.studies.reporting.tables import made_by, markdown
from vqjax.trainer.step.two_level import NAMES

COMMAND = 'python train.py --config configs/vqvae2.py --config.data_dir=FOLDER'
SHOWN = 10  # images of the picture

HEADINGS = ('method', 'bits per image', 'parameters', 'error', 'perplexity', 'seconds per seed')


def rows(results: Results) -> list[tuple[str, ...]]:
    """Cells of the table, the headings first; a two-level method has a row a level below it."""
    found: list[tuple[str, ...]] = [HEADINGS]
    for name, method in results.methods.items():
        seeds = method.seeds
        error = _over_seeds(seeds, 'reconstruction_error')
        use = [_mean(seeds, f'perplexity_{part}') for part in NAMES]
        told = ' + '.join(filter(None, use)) or _mean(seeds, 'perplexity')
        seconds = f'{method.seconds / len(seeds):.0f}'
        found.append((name, f'{method.bits:.0f}', f'{method.params:,}', error, told, seconds))
        for i, part in enumerate(NAMES):
            if method.spec is not None and f'error_{part}' in seeds[0].figures:
                bits = f'{method.spec["sizes"][i] * level_bits(method.spec)[i]:.0f}'
                error = _over_seeds(seeds, f'error_{part}')
                found.append((f'{name}, {part} alone', bits, '', error, use[i], ''))
    return found


def level_bits(spec: Mapping[str, Any] | None) -> list[float]:
    """Bits of one vector of each level of a method; none without levels."""
    if spec is None or spec['name'] != 'levels':
        return []
    return [quantizers.make(inner).bits for inner in spec['inner']]


def _mean(seeds: Sequence[SeedResult], name: str) -> str:
    if name not in seeds[0].figures:
        return ''
    return f'{np.mean([seed.figures[name] for seed in seeds]):.0f}'


def _over_seeds(seeds: Sequence[SeedResult], name: str) -> str:
    values = [seed.figures[name] for seed in seeds]
    if len(values) == 1:
        return f'{values[0]:.4f}'
    return f'{np.mean(values):.4f} ({min(values):.4f}, {max(values):.4f})'


def table(results: Results) -> Table:
    """For the terminal."""
    config = results.config
    drawn = Table(
        title=f'{config["dataset"]}: two levels of codes against one, {_length(config)}',
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    headings, *body = rows(results)
    for i, heading in enumerate(headings):
        drawn.add_column(heading, justify='right' if i else 'left', style=None if i else 'bold')
    for row in body:
        drawn.add_row(*map(escape, row))
    return drawn


def _length(config: Mapping[str, Any]) -> str:
    return f'{epochs(config)}, {counted(config["seeds"], "seeds")}'


def command(config: Mapping[str, Any]) -> str:
    """What makes the report again."""
    if config['dataset'] == 'cifar10':
        return COMMAND
    return (
        f'python train.py --config configs/vqvae2.py --config.dataset={config["dataset"]} '
        f'--config.epochs={config["epochs"]} --config.seeds={config["seeds"]} '
        f'--config.eval_every={config["eval_every"]:g}'
    )


def text(results: Results) -> str:
    """The content of report.md."""
    config = results.config
    parts = [
        f'# VQ-VAE-2: two levels of codes against one on {dataset(config["dataset"])}',
        made_by(command(config), results.environment),
        'In VQ-VAE-2 (arXiv:1906.00446) the top grid is quantized first. The bottom grid is '
        'twice as high and wide and conditioned on the quantized top. '
        f'{_length(config).capitalize()}, batches of {config["batch_size"]} images. The error is '
        'the mean squared error of standardised pixels on the test split, so '
        'that a uniform grey image has an error of 1. Parentheses hold the lowest and the '
        'highest seed. Perplexity is given as top + bottom. '
        '"Alone" is the same decoder with every vector of the other level replaced by its mean.',
        markdown(rows(results)),
        *_at_equal_bits(results.methods),
        '![reconstructions](reconstructions.png)',
        f'Reconstructions of the first {SHOWN} images of the test split with seed 0.',
    ]
    return '\n\n'.join(parts) + '\n'


def _at_equal_bits(methods: Mapping[str, MethodResult]) -> list[str]:
    """A sentence on each pair of methods, of two levels and of one, that have the same bits."""
    said = []
    for name, method in methods.items():
        for other, single in methods.items():
            if not level_bits(method.spec) or level_bits(single.spec):
                continue
            if method.bits != single.bits or single.spec is None:
                continue
            a, b = (
                [seed.figures['reconstruction_error'] for seed in seeds]
                for seeds in (method.seeds, single.seeds)
            )
            apart = [x - y for x, y in zip(a, b, strict=True)]
            listed = ', '.join(f'{x:+.4f}' for x in apart)
            said.append(
                f'At {method.bits:.0f} bits each, the error of {name} minus that of {other} is '
                f'{np.mean(apart):+.4f} on average, and {listed} for the single seeds.'
            )
    return said


def write(
    workdir: str | Path,
    results: Results,
    pictures: Mapping[tuple[str, str], np.ndarray],
) -> None:
    """Writes report.md and reconstructions.png."""
    from vqjax.studies.reporting.plots import save
    from vqjax.studies.vqvae2.plots import figure  # Matplotlib takes a second to import

    workdir = Path(workdir)
    (workdir / 'report.md').write_text(text(results))
    save(figure(pictures), workdir / 'reconstructions.png')
