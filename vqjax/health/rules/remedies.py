"""Remedies that fit the quantizer: nothing that it already has, nothing that it lacks."""

from __future__ import annotations

from vqjax.health.history import History


def rounded(decay: float) -> str:
    """A decay with as many digits as tell it from 1."""
    for digits in (2, 3, 4, 5):
        if round(decay, digits) < 1:
            return f'{round(max(decay, 0.0), digits):g}'
    return f'{decay:g}'


def decay(run: History) -> str:
    """Of averages over a tenth of the run, and no more than a hundred steps."""
    return rounded(1 - 1 / min(max(run.steps / 10, 5.0), 100.0))


def of_collapse(run: History) -> str:
    """What brings codes back into use."""
    facts = run.facts
    if facts.is_fsq:
        return 'bring the features to mean 0 and variance 1 before the grid'
    if facts.known and facts.has('free_bits'):
        return 'free_bits higher, or kl lower'
    if facts.known and facts.has('num_bits'):
        advice = ['bring the features to mean 0 and variance 1']
        if facts.number('entropy') < 0.1:
            advice.insert(0, 'entropy = 0.1')
        return ', '.join(advice)
    if facts.known and facts.has('hard'):
        return 'diversity = 0.1' if not facts.number('diversity') else 'temperature higher'
    advice = []
    if not facts.known:
        advice = ["init = 'kmeans'", 'revival = Revival()']
    if facts.start and facts.start != 'kmeans':
        advice.append("init = 'kmeans'")
    if facts.known and facts.has('revival') and facts.get('revival') is None:
        advice.append('revival = Revival()')
    if 1 - facts.number('decay') < 1 / max(run.steps / 5, 5.0):
        advice.append(f'decay = {decay(run)}')
    if getattr(facts.get('revival'), 'every', 0) > run.steps / 10 > 0:
        advice.append(f'revival = Revival(every={max(int(run.steps / 20), 1)})')
    if not advice:
        guarded = any(hasattr(part, 'cooldown') for part in _parts(run))
        advice = ['a lower learning rate', 'features of mean 0 and variance 1']
        if not guarded and facts.has('revival'):
            advice.append('Guarded(...) around the quantizer')
    return ', '.join(advice)


def of_dead_codes(run: History) -> str:
    """What revives codes, or fewer of them."""
    facts = run.facts
    if facts.is_grid:
        return of_collapse(run) + ', or fewer levels or bits'
    if not facts.known or (facts.has('revival') and facts.get('revival') is None):
        return 'revival = Revival()'
    advice = [of_collapse(run)]
    if facts.has('revival') and not any(hasattr(part, 'fresh') for part in _parts(run)):
        advice.append("Banked(...) with Revival(source='kmeans_rows')")
    return ', or '.join([*advice, 'fewer codes'])


def _parts(run):
    from vqjax.health.facts import parts

    return parts(run.facts.quantizer) if run.facts.known else []
