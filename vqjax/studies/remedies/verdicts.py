"""What became of each remedy, and of what the sources claim of it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vqjax.metrics import Interval
from vqjax.results.records import Results
from vqjax.results.summaries import BASELINE as NONE
from vqjax.results.summaries import MARGIN, compare
from vqjax.studies.reporting import tables
from vqjax.studies.reporting.names import remedy

# What becomes of a remedy, the best first.
ENOUGH = f'Enough alone: within {100 * MARGIN:g} points of `{NONE}`, and no run collapsed'
COSTS = 'No run collapsed, but a loss of 2 points or more is shown or not excluded'
HELPS = 'Better than the baseline, and some runs collapsed'
NOTHING = 'No effect shown'
IDLE = 'Never acted, so nothing is known of it'
HARMS = 'Worse than the baseline'
GROUPS = (ENOUGH, COSTS, HELPS, NOTHING, IDLE, HARMS)


WEAK, HEALTHY, GUARD = 'weak', 'default', 'reset_on_collapse'

# What a claim says of its remedy: that it cures the baseline, that nothing else does, or that it
# never collapses, whatever its accuracy.
CURES, NEEDED, SAFE = 'cures', 'needed', 'never collapses'

# Remedy -> (source of docs/sources.md, what is claimed, CURES, NEEDED, SAFE or the remedy it is to
# be worse than), in the order of the sources.
CLAIMS: dict[str, tuple[str, str, str]] = {
    'none': ('source 0', 'no quantizer: simplest, works', CURES),
    'reconstruction': ('source 0', 'a reconstruction task is needed for VQ to work at all', NEEDED),
    'fsq_8x4': ('source 0', 'FSQ: no codebook, guaranteed diversity', SAFE),
    'loss_weight_tenth': ('source 1', 'quantizer loss times .1', CURES),
    'loss_weight_warm_up': ('source 1', 'quantizer loss warmed up', CURES),
    'init_kmeans': ('source 1', 'data-driven start', CURES),
    'revival': ('source 1', 'dead codes reinitialised, optional', CURES),
    'decay_95': ('source 1', 'decay .95 adapts faster', CURES),
    'small_batches': ('source 1', 'smaller batches update more often', CURES),
    'commitment_hundredth': ('source 2', 'much lower commitment', CURES),
    'l2_normalised': ('source 2', 'l2 normalisation constrains too much: remove it', WEAK),
    'projection_64': ('source 2', 'a learned projection to 64', CURES),
    'reset_on_collapse': ('source 2', 'reset when the perplexity falls below a bound', CURES),
    'clipped_gradient': ('source 2', 'gradient clipping', CURES),
    'frozen_encoder': ('source 2', 'encoder frozen at first', CURES),
    'kmeans_after': ('source 2', 'k-means as a fallback', CURES),
    'fsq_64000': ('source 3', 'FSQ cannot collapse by design', SAFE),
    'rvq_4x256': ('source 3', 'RVQ avoids winner-take-all dynamics', SAFE),
    'product_8x256': ('source 3', 'product quantization prevents total collapse', SAFE),
    'gumbel': ('source 3', 'Gumbel-Softmax annealed 5.0 to .1', CURES),
    'two_stages': ('source 3', 'continuous first, then quantized', CURES),
    'projection_8': ('source 3', 'fewer code dimensions', CURES),
    'init_unit_sphere': ('source 4', 'unit sphere times sqrt(D)', CURES),
    'revival_every_100': ('source 4', 'dead codes looked for every 100 steps', CURES),
    'revival_every_step': ('source 4', 'looking at every step disrupts training', 'revival'),
}


# Entries of a seed that count what a remedy did, and how the mean of a run is told.
ACTIONS = {
    'revived': '{:,.0f} codes revived per run',
    'refits': '{:.1f} re-fits per run',
    'clipped': '{:.0%} of the steps clipped',
}


def never_acted(name: str, results: Results) -> bool:
    """Whether what a remedy does was counted, and did not happen in any run."""
    figures = [seed.figures for seed in results.methods[name].seeds]
    counted = [told[action] for told in figures for action in ACTIONS if action in told]
    return bool(counted) and not any(counted)


def acted(name: str, results: Results) -> str:
    """How often a remedy acted, '-' where its idea is no event that could be counted."""
    method, epochs = results.methods[name], results.config['epochs']
    if never_acted(name, results):
        return 'never'
    for action, text in ACTIONS.items():
        found = [seed.figures[action] for seed in method.seeds if action in seed.figures]
        if found:
            runs = sum(x > 0 for x in found)
            some = '' if runs == len(found) else f', in {runs} of {len(found)}'
            return text.format(np.mean(found)) + some
    given = method.overrides
    if 'continuous_epochs' in given:
        share = given['continuous_epochs'] / epochs
        return 'after training' if share >= 1 else f'the first {share:.0%} of the steps'
    if 'frozen_epochs' in given:
        return f'the first {given["frozen_epochs"] / epochs:.0%} of the steps'
    if isinstance(weight := given.get('quantizer_weight'), Mapping):
        return f'the first {weight["transition_steps"] / epochs:.0%} of the steps'
    return '-'


def collapses(name: str, results: Results) -> Interval:
    """Share of the runs of a remedy that collapsed, with its 95% interval.

    Raises:
      ValueError: the study has not said of the runs whether they did.
    """
    found = results.methods[name].collapse
    if found is None:
        raise ValueError(f'{name} has no collapse: these are no results of the study remedies')
    return found


def group(name: str, results: Results) -> str:
    """Which of GROUPS a remedy belongs to."""
    gain = compare(results, name, WEAK)
    collapse = collapses(name, results).mean
    if never_acted(name, results):
        return IDLE
    if cures(name, results):
        return ENOUGH
    if gain is None:  # a comparison without the baseline
        return NOTHING
    if gain.low > 0:
        return HELPS if collapse else COSTS
    return HARMS if gain.high < 0 else NOTHING


def verdict(name: str, results: Results) -> str:
    """What became of a remedy: whether it beats `weak`, and whether it is as good as `none`."""
    gain, loss = (compare(results, name, to) for to in (WEAK, NONE))
    collapse = collapses(name, results).mean
    if name == WEAK:
        return ''
    if never_acted(name, results):
        said = 'never acted'
    elif gain is None:
        said = 'measured'
    else:
        said = 'helps' if gain.low > 0 else 'harms' if gain.high < 0 else 'no effect shown'
    if loss is not None and loss.low > -MARGIN:
        said += f', within {100 * MARGIN:g} points of {NONE}'
    elif loss is not None and loss.high < -MARGIN:
        said += f', still {-100 * loss.mean:.1f} points below {NONE}'
    if 0 < collapse:
        said += f'; collapses in {100 * collapse:.0f}% of the runs'
    return said


def holds(name: str, results: Results) -> str:
    """Whether the claim about a remedy holds, '' where what it is compared with was not run."""
    methods, kind = results.methods, CLAIMS[name][2]
    if never_acted(name, results):
        return 'not tested'
    if kind == NEEDED:
        others = [n for n in by_accuracy(results) if n != name and methods[n].spec]
        cured = [n for n in others if cures(n, results)]
        return f'fails: {", ".join(map(remedy, cured[:3]))} do without' if cured else 'not refuted'
    if kind == SAFE:
        return 'fails' if collapses(name, results).mean else 'not refuted'
    gain = compare(results, name, WEAK if kind == CURES else kind)
    if gain is None:
        return ''
    if kind != CURES:
        return 'holds' if gain.high < 0 else 'fails' if gain.low > 0 else 'not shown'
    if name == NONE or cures(name, results):
        return 'holds'
    return 'in part' if gain.low > 0 else 'fails'


def cures(name: str, results: Results) -> bool:
    """No run collapsed, and a loss of MARGIN or more to the network without codes is excluded."""
    loss = compare(results, name, NONE)
    return loss is not None and loss.low > -MARGIN and not collapses(name, results).mean


def by_accuracy(results: Results) -> list[str]:
    """Names of the remedies, the most accurate first."""
    return sorted(results.methods, key=lambda n: -results.methods[n].accuracy.mean)


def members(results: Results) -> dict[str, list[str]]:
    """Each of GROUPS -> the remedies in it, the most accurate first; every remedy is in one."""
    found: dict[str, list[str]] = {title: [] for title in GROUPS}
    for name in by_accuracy(results):
        if name not in (WEAK, NONE):
            found[group(name, results)].append(name)
    return found


def choice(results: Results) -> str:
    """Which single changes cure the baseline, which help, and which do nothing or harm."""
    return '\n'.join(
        f'- **{title}**: {", ".join(map(remedy, names)) or "no remedy"}.'
        for title, names in members(results).items()
        if names or title != IDLE
    )


def guard(results: Results) -> list[str]:
    """Whether a run that collapses ends as a healthy one does once it is guarded; [] if not run."""
    if not {WEAK, HEALTHY, GUARD} <= results.methods.keys():
        return []
    share = {n: f'{100 * collapses(n, results).mean:.0f}%' for n in (WEAK, GUARD)}
    ends = {}
    for name in (WEAK, GUARD):
        found = compare(results, name, HEALTHY)
        ends[name] = f'{tables.points(found)} points ({tables.points_range(found)})'
    return [
        '## The guard',
        f'The baseline collapses in {share[WEAK]} of the runs, and its accuracy is {ends[WEAK]} '
        f'compared with the sound VQ-EMA (`{HEALTHY}`). With the guard (`{GUARD}`, nothing else '
        f'changed) it collapses in {share[GUARD]} of them, and its accuracy is {ends[GUARD]} '
        'compared with it.',
    ]
