"""What the comparison of remedies says: a table, the claims and what became of them, a plot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

from vqjax.metrics import Interval
from vqjax.trainer.summaries import MARGIN, paired_difference

WEAK, NONE, HEALTHY, GUARD = 'weak', 'none', 'default', 'reset_on_collapse'

# What a claim says of its remedy: that it prevents the collapse, or that nothing else does.
CURES, NEEDED = 'cures', 'needed'

# Remedy -> (who proposes it, what is claimed, CURES, NEEDED or the remedy it is to be worse than),
# in the order of the documents.
CLAIMS: dict[str, tuple[str, str, str]] = {
    'none': ('seed 000', 'no quantizer: simplest, works', CURES),
    'reconstruction': ('seed 000', 'a reconstruction task is needed for VQ to work at all', NEEDED),
    'fsq_8x4': ('seed 000', 'FSQ: no codebook, guaranteed diversity', CURES),
    'loss_weight_tenth': ('seed 001', 'quantizer loss times .1', CURES),
    'loss_weight_warm_up': ('seed 001', 'quantizer loss warmed up', CURES),
    'init_kmeans': ('seed 001', 'data-driven start', CURES),
    'revival': ('seed 001', 'dead codes reinitialised, optional', CURES),
    'decay_95': ('seed 001', 'decay .95 adapts faster', CURES),
    'small_batches': ('seed 001', 'smaller batches update more often', CURES),
    'commitment_hundredth': ('seed 002', 'much lower commitment', CURES),
    'l2_normalised': ('seed 002', 'l2 normalisation constrains too much: remove it', WEAK),
    'projection_64': ('seed 002', 'a learned projection to 64', CURES),
    'reset_on_collapse': ('seed 002', 'reset when the perplexity falls below a bound', CURES),
    'clipped_gradient': ('seed 002', 'gradient clipping', CURES),
    'frozen_encoder': ('seed 002', 'encoder frozen at first', CURES),
    'kmeans_after': ('seed 002', 'k-means as a fallback', CURES),
    'fsq_64000': ('seed 003', 'FSQ cannot collapse by design', CURES),
    'rvq_4x256': ('seed 003', 'RVQ avoids winner-take-all dynamics', CURES),
    'product_8x256': ('seed 003', 'product quantization prevents total collapse', CURES),
    'gumbel': ('seed 003', 'Gumbel-Softmax annealed 5.0 to .1', CURES),
    'two_stages': ('seed 003', 'continuous first, then quantized', CURES),
    'projection_8': ('seed 003', 'fewer code dimensions', CURES),
    'init_unit_sphere': ('seed 004', 'unit sphere times sqrt(D)', CURES),
    'revival_every_100': ('seed 004', 'dead codes looked for every 100 steps', CURES),
    'revival_every_step': ('seed 004', 'looking at every step disrupts training', 'revival'),
}


def differences(results: Mapping[str, Any], to: str) -> dict[str, Interval]:
    """Paired differences of accuracy of each remedy to one of them, where it was run."""
    methods = results['methods']
    if to not in methods:
        return {}
    seeds = methods[to]['seeds']
    return {
        name: paired_difference(method['seeds'], seeds, 'accuracy')
        for name, method in methods.items()
        if name != to
    }


def verdict(name: str, results: Mapping[str, Any]) -> str:
    """What became of a remedy: whether it beats `weak`, and whether it is as good as `none`."""
    gain = differences(results, WEAK).get(name)
    loss = differences(results, NONE).get(name)
    collapse = results['methods'][name]['collapse']['mean']
    if name == WEAK:
        return ''
    if gain is None:  # a comparison without the baseline
        said = 'measured'
    else:
        said = 'helps' if gain.low > 0 else 'harms' if gain.high < 0 else 'no effect shown'
    if loss is not None and loss.low > -MARGIN:
        said += f', within {100 * MARGIN:g} points of {NONE}'
    elif loss is not None and loss.high < -MARGIN:
        said += f', still {-100 * loss.mean:.1f} points below {NONE}'
    if 0 < collapse:
        said += f'; collapses in {100 * collapse:.0f}% of the seeds'
    return said


def holds(name: str, results: Mapping[str, Any]) -> str:
    """Whether the claim about a remedy holds, '' where what it is compared with was not run."""
    methods, kind = results['methods'], CLAIMS[name][2]
    gains = differences(results, WEAK if kind in (CURES, NEEDED) else kind)
    if kind == NEEDED:
        others = [n for n in by_accuracy(results) if n in gains and n != name]
        cured = [n for n in others if methods[n]['spec'] and _prevents(n, gains, methods)]
        return f'fails: {", ".join(cured[:3])} do without' if cured else 'not refuted'
    if name not in gains:
        return ''
    gain = gains[name]
    if kind != CURES:
        return 'holds' if gain.high < 0 else 'fails' if gain.low > 0 else 'not shown'
    if _prevents(name, gains, methods):
        return 'holds'
    return 'in part' if gain.low > 0 else 'fails'


def _prevents(name, gains, methods):
    """Better than `weak`, and no seed collapsed."""
    return gains[name].low > 0 and not methods[name]['collapse']['mean']


def _cured(name, results):
    """Within the margin of `none`, and no seed collapsed."""
    loss = differences(results, NONE).get(name)
    collapse = results['methods'][name]['collapse']['mean']
    return loss is not None and loss.low > -MARGIN and not collapse


def _points(x: Interval | None) -> str:
    return '' if x is None else f'{100 * x.mean:+.1f} ({100 * x.low:+.1f} to {100 * x.high:+.1f})'


def by_accuracy(results: Mapping[str, Any]) -> list[str]:
    """Names of the remedies, the most accurate first."""
    methods = results['methods']
    return sorted(methods, key=lambda n: -methods[n]['summary']['accuracy']['mean'])


def choice(results: Mapping[str, Any]) -> str:
    """Which single changes cure the baseline, which help, and which do nothing or harm."""
    said = {n: verdict(n, results) for n in by_accuracy(results) if n not in (WEAK, NONE)}
    cure = [n for n in said if _cured(n, results)]
    help_ = [n for n, v in said.items() if v.startswith('helps') and n not in cure]
    none = [n for n, v in said.items() if v.startswith('no effect')]
    harm = [n for n, v in said.items() if v.startswith('harms')]
    groups = {
        f'Enough on their own, within {100 * MARGIN:g} points of {NONE} and never collapsed': cure,
        'Better than the baseline, not enough or not proven enough': help_,
        'No effect shown': none,
        'Worse than the baseline': harm,
    }
    return '\n'.join(f'- {k}: {", ".join(v) or "none"}.' for k, v in groups.items())


def guard(results: Mapping[str, Any]) -> list[str]:
    """Whether a run that collapses ends as a healthy one does once it is guarded; [] if not run."""
    methods = results['methods']
    if not {WEAK, HEALTHY, GUARD} <= methods.keys():
        return []
    to_healthy = differences(results, HEALTHY)
    share = {n: f'{100 * methods[n]["collapse"]["mean"]:.0f}%' for n in (WEAK, GUARD)}
    return [
        '## The guard',
        f'The baseline collapses in {share[WEAK]} of the seeds and ends '
        f'{_points(to_healthy[WEAK])} points from the healthy `{HEALTHY}`; with the guard '
        f'(`{GUARD}`, nothing else changed) it '
        f'collapses in {share[GUARD]} and ends {_points(to_healthy[GUARD])} points from it.',
    ]


def command(config: Mapping[str, Any]) -> str:
    """The command that makes the results of a configuration."""
    file, flags = 'remedies.py', [f'--config.seeds={config["seeds"]}']
    if config['dataset'] != 'digits':
        file = f'remedies_{config["dataset"]}.py'
        flags.append('--config.data_dir=FOLDER')
    return ' '.join([f'python train.py --config configs/{file}', *flags])


def _rows(results: Mapping[str, Any]) -> Iterable[list[str]]:
    to_weak, to_none = differences(results, WEAK), differences(results, NONE)
    for name in by_accuracy(results):
        method = results['methods'][name]
        summary, collapse = method['summary'], method['collapse']
        accuracy = summary['accuracy']
        codes = ['', '', '']
        if 'perplexity' in summary:
            codes = [
                f'{summary["perplexity"]["mean"]:.1f}',
                f'{summary["active_codes"]["mean"]:.0f}',
                f'{100 * collapse["mean"]:.0f} ({100 * collapse["low"]:.0f} to '
                f'{100 * collapse["high"]:.0f})',
            ]
        yield [
            name,
            f'{100 * accuracy["mean"]:.1f} ({100 * accuracy["low"]:.1f} to '
            f'{100 * accuracy["high"]:.1f})',
            _points(to_weak.get(name)),
            _points(to_none.get(name)),
            *codes,
            f'{method["bits"]:.0f}',
        ]


HEADINGS = (
    'remedy', 'accuracy %', 'to weak', 'to none', 'perplexity', 'active', 'collapsed %', 'bits',
)  # fmt: skip


def table(results: Mapping[str, Any]) -> Table:
    """All remedies, one a row."""
    config = results['config']
    found = Table(
        title=f'{config["dataset"]}: {config["seeds"]} seeds, {config["epochs"]} epochs',
        caption='( ) 95% interval: bootstrap over seeds, differences paired; Wilson for collapses',
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for i, heading in enumerate(HEADINGS):
        found.add_column(heading, justify='right' if i else 'left', style=None if i else 'bold')
    for row in _rows(results):
        found.add_row(*map(escape, row))
    return found


def markdown(results: Mapping[str, Any]) -> str:
    """The text of report.md."""
    config = results['config']
    lines = [f'| {" | ".join(HEADINGS)} |', '| --- |' + ' ---: |' * (len(HEADINGS) - 1)]
    lines += [f'| {" | ".join(row)} |' for row in _rows(results)]
    claims = ['| source | claim | holds | remedy | outcome |', '| --- | --- | --- | --- | --- |']
    for name, (source, claim, _) in CLAIMS.items():
        if name in results['methods'] and (said := verdict(name, results)):
            claims.append(f'| {source} | {claim} | {holds(name, results)} | {name} | {said} |')
    return '\n\n'.join([
        f'# Remedies on {config["dataset"]}',
        f'Made by\n\n```\n{command(config)}\n```',
        f'{len(results["methods"])} remedies and controls, {config["seeds"]} seeds each, '
        f'{config["epochs"]} epochs of batches of {config["batch_size"]} images: each alone, '
        'added to one weak baseline (`weak`), everything else equal. Same seeds, data order and '
        'number of images for all; small_batches takes four times the steps for it. The '
        "encoder's features are not standardised here, which is what lets the baseline collapse: "
        "`vqjax.encoders.Encoder` standardises them. What fails here fails added to this baseline, "
        'which is no verdict on a run with a sound start and revival (`configs/digits.py`). Every '
        'run is in the figures, collapsed ones too. Collapsed: test perplexity (of all stages '
        'together) below 95% of the number of '
        'classes; one code a class has barely less than their number.',
        ', '.join(f'{k} {v}' for k, v in results['environment'].items()) + '.',
        '\n'.join(lines),
        'Brackets: 95% intervals, of the accuracy by bootstrap over seeds, of differences paired '
        'by seed, of the share of collapsed runs after Wilson.',
        '![remedies](remedies.png)',
        '## What to choose',
        choice(results),
        *guard(results),
        '## The claims',
        'A remedy that is to prevent the collapse holds what is claimed where it is better than '
        '`weak` and no seed collapsed, in part where some did. One said to harm has to be worse '
        'than what it is added to (`weak`; `revival` where every step is looked at).',
        '\n'.join(claims),
    ]) + '\n'  # fmt: skip


def write(workdir: str | Path, results: Mapping[str, Any]) -> None:
    """Writes report.md and remedies.png to an existing folder."""
    from vqjax.studies import plots  # Matplotlib takes a second to import

    workdir = Path(workdir)
    (workdir / 'report.md').write_text(markdown(results))
    plots.save(figure(results), workdir / 'remedies.png')


def figure(results: Mapping[str, Any]):
    """Accuracy of every seed and perplexity of every remedy, sorted by accuracy."""
    from vqjax.studies import plots

    return plots.styled(_draw)(results, plots)


def _draw(results, plots):
    methods = results['methods']
    order = by_accuracy(results)[::-1]
    drawn = plots.new_figure(9, 1.2 + 0.24 * len(order))
    left, right = drawn.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    for row, name in enumerate(order):
        colour = {WEAK: '#D55E00', NONE: plots.GREY}.get(name, '#0072B2')
        for axis, key, scale in ((left, 'accuracy', 100), (right, 'perplexity', 1)):
            values = [scale * s[key] for s in methods[name]['seeds'] if key in s]
            if values:
                axis.plot(values, [row] * len(values), 'o', color=colour, ms=4, alpha=0.35, mew=0)
                axis.plot(np.mean(values), row, 'D', color=colour, ms=5, mec='white')
    left.set_yticks(range(len(order)), order)
    left.set_xlabel('test accuracy (%)')
    right.set_xlabel('test perplexity (mean over stages)')
    right.set_xscale('log')
    left.set_title(f'{results["config"]["dataset"]}: each remedy alone')
    drawn.supxlabel('dots: seeds; diamonds: their mean', fontsize=9, color=plots.GREY)
    return drawn
