"""What reports say of their runs: budget, intervals, convergence, findings."""

from collections.abc import Mapping
from typing import Any

from vqjax.metrics import wilson_interval
from vqjax.results.records import MethodResult, Results, RunFinding
from vqjax.results.summaries import (
    BASELINE,
    EXAMPLES,
    FOLDS,
    METHODS,
    RISE,
    SEEDS,
    covers,
    still_rising,
)

TEMPERATURE = (
    ' T is a temperature for each run, fitted on its validation split (Guo et al. 2017) and '
    'applied to the test split. A temperature above 1 makes the model less confident.'
)


def runs(results: Results) -> str:
    """What the runs of a method are: 'seeds', or 'folds' where each tests another part."""
    return FOLDS if covered(results.methods) == FOLDS else SEEDS


def split(results: Results) -> str:
    """The split that the runs were measured on."""
    return results.config.get('split', 'test')


def covered(methods: Mapping[str, MethodResult]) -> str:
    """What the intervals of all these methods cover, see `summaries.covers`."""
    return covers(*(method.seeds for method in methods.values()))


def alone(results: Results) -> bool:
    """Whether every method has one run, so that there is no interval."""
    return all(len(method.seeds) == 1 for method in results.methods.values())


def interval(results: Results) -> str:
    """What the 95% intervals of accuracies are, in a sentence."""
    if alone(results):
        return 'There is one run of each method, so there is no interval: set seeds to 5 or more.'
    return f'95% interval: {METHODS[covered(results.methods)]}.'


def over_what(results: Results) -> str:
    """The same in words."""
    kind = covered(results.methods)
    return 'seeds and test examples' if kind == EXAMPLES else kind


def budget(config: Mapping[str, Any]) -> str:
    """How long a run is."""
    steps = config.get('steps', 0)
    return epochs(config) + (f' or {steps:,} steps, whichever is longer' if steps else '')


def epochs(config: Mapping[str, Any]) -> str:
    """'1 epoch', '40 epochs'."""
    return counted(config['epochs'], 'epochs')


def counted(number: float, things: str) -> str:
    """So many of what is named in the plural: '1 seed', '5 seeds'."""
    return f'{number} {things[:-1] if number == 1 else things}'


def started(config: Mapping[str, Any]) -> str:
    """Which encoder the runs started from, and for how long it was frozen; '' for none."""
    if not config.get('init_from'):
        return ''
    frozen = config['frozen_epochs']
    still = f'frozen for {frozen:g} epochs and then fine-tuned' if frozen > 0 else 'fine-tuned'
    return (
        ' Every run starts from an encoder that was trained without a quantizer. The encoder is '
        f'{"frozen" if frozen < 0 else still}, and the head is trained further.'
    )


def rising(results: Results) -> str:
    """That runs were too short, with the methods whose training accuracy tells; '' otherwise."""
    rises = ', '.join(f'{n} {100 * x:+.1f} points' for n, x in still_rising(results).items())
    return rises and (
        'Not converged, so methods cannot be compared: in the last third of the runs the training '
        f'accuracy still rises by more than {100 * RISE:g} point ({rises}). Remedy: raise steps or '
        'epochs.'
    )


def finding(found: RunFinding) -> str:
    """What `health.diagnose` found, with its evidence and remedy, as an item of a list."""
    told = {'method': found.method, 'seed': found.seed}
    where = ', '.join(f'{k} {v}' for k, v in told.items() if v is not None)
    evidence = ', '.join(f'{k} = {v:.4g}' for k, v in found.evidence.items())
    return (
        f'- **{found.name}** ({found.severity}{", " + where if where else ""}): '
        f'{evidence}. Remedy: {found.remedy}'
    )


def sampling_error(accuracy: float, num_images: int) -> float:
    """Half the 95% interval of an accuracy on so many images, which are a sample themselves.

    After Wilson, which holds near an accuracy of 1 too.
    """
    found = wilson_interval(round(accuracy * num_images), num_images)
    return (found.high - found.low) / 2


def sampling_note(methods: Mapping[str, MethodResult]) -> str:
    """What an interval over seeds alone leaves out; '' of the others."""
    if covered(methods) != SEEDS:
        return ''
    name = BASELINE if BASELINE in methods else next(iter(methods))
    method = methods[name]
    num_images = method.seeds[0].num_examples
    half = sampling_error(method.accuracy.mean, num_images)
    return (
        f'It does not include that the {num_images:,} test images are a sample themselves, which '
        f'adds an uncertainty of {100 * half:.1f} points either way at the accuracy of {name}. '
    )
