"""The autopsy's cases: each claim of a collapsed project, its fault, and the cure alone."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vqjax.nn import COLLECTION
from vqjax.quantizers import VQEMA
from vqjax.studies import faults
from vqjax.studies.averages import Bench, drive
from vqjax.trainer.steps import Task


class Chart(NamedTuple):
    """A finished run.

    history: its records in order, every step among them
    final: its figures on the test split
    restore: () -> (task, variables), the model it ended with
    """

    history: list[dict[str, float]]
    final: dict[str, float]
    restore: Callable[[], tuple[Task, dict[str, Any]]]


class Panel(NamedTuple):
    """One panel of a case's plot.

    kind: 'steps', an entry of the records over the steps; 'total', one or two of them summed up;
      'bars', figures of the case; 'use', the codes of one side by use on the test split.
    names: what it shows, entry -> what it is called; for 'use' the side.
    title: what is plotted, with its unit.
    until: the last step shown.
    """

    kind: str
    names: dict[str, str]
    title: str
    until: int | None = None


def _steps_of(name: str, title: str, until: int | None = None) -> Panel:
    return Panel('steps', {name: title}, title, until)


@dataclasses.dataclass(frozen=True)
class Case:
    """A fault beside its cure.

    Attributes:
      claim: what the source says, or does.
      source: which of docs/sources.md the claim comes from.
      faulty, cured: methods of configs/autopsy.py (or a Bench); they differ in the fault alone.
      measure: (chart, charts, dataset) -> figures, where charts maps every method to its Chart.
      shown: the panels of its plot.
      seen: what they show, in a sentence or two.
      also: methods that measuring takes besides.
    """

    claim: str
    source: str
    faulty: str | Bench
    cured: str | Bench
    measure: Callable[..., dict[str, float]]
    shown: tuple[Panel, ...]
    seen: str
    also: tuple[str, ...] = ()

    @property
    def methods(self) -> tuple[str, ...]:
        """The runs it needs."""
        return (*(m for m in (self.faulty, self.cured) if isinstance(m, str)), *self.also)


# Figures.


def _final(chart: Chart, *names: str) -> dict[str, float]:
    return {name: chart.final[name] for name in names if name in chart.final}


def _usual(chart, charts, dataset):
    return _final(chart, 'accuracy', 'perplexity', 'active_codes')


def _steps(chart: Chart, name: str) -> np.ndarray:
    return np.array([r[name] for r in chart.history if 'gradient_norm' in r and name in r])


def _last(chart: Chart, name: str) -> float:
    return next(r[name] for r in reversed(chart.history) if name in r)


def averages(bench: Bench, history: list[dict[str, float]]) -> dict[str, float]:
    """Figures of the averages alone, for K codes and for 512."""
    larger = drive(
        dataclasses.replace(bench, quantizer=dataclasses.replace(bench.quantizer, num_codes=512))
    )
    names = ('reported_perplexity', 'perplexity', 'active_codes')
    found = {name: history[-1][name] for name in names}
    found['max_norm'] = history[-1]['max_code_norm']
    found['max_norm_step_1'] = history[1]['max_code_norm']
    found['active_codes_step_1'] = history[1]['active_codes']
    return found | {f'{name}_k512': larger[-1][name] for name in names}


def _gradient(chart, charts, dataset):
    names = ('gradient_at_codes', 'gradient_at_input')
    return _usual(chart, charts, dataset) | {name: _last(chart, name) for name in names}


def _commitment(chart, charts, dataset):
    found = _usual(chart, charts, dataset) | {
        'input_norm': chart.final['input_norm'],
        'quantizer_gradient': _last(chart, 'quantizer_gradient'),
    }
    if chart is charts['detached_commitment']:
        # Another commitment weight: without a gradient nothing can change, to the bit.
        other = _steps(charts['detached_commitment_hundredth'], 'task_loss')
        losses = _steps(chart, 'task_loss')[: len(other)]
        found['effect_of_commitment'] = float(np.max(np.abs(losses - other)))
    return found


def _clamp(chart, charts, dataset):
    bare = charts['clamped_loss_unclamped'] if chart is charts['clamped_loss'] else chart
    return _usual(chart, charts, dataset) | {
        'largest_loss_without_clamp': float(np.max(_steps(bare, 'quantizer_loss'))),
        'quantizer_loss': _steps(chart, 'quantizer_loss')[-1],
        'quantizer_gradient': _last(chart, 'quantizer_gradient'),
    }


def _first_update(chart, charts, dataset):
    before, after = _steps(chart, 'codebook_norm')[:2]
    return {
        'codebook_norm_start': before,
        'codebook_norm_step_1': after,
        'max_code_norm_step_1': _steps(chart, 'max_code_norm')[1],
        'batch_perplexity_start': _steps(chart, 'batch_perplexity')[0],
        'batch_perplexity_step_1': _steps(chart, 'batch_perplexity')[1],
    } | _usual(chart, charts, dataset)


def _revived(chart, charts, dataset):
    revived = _steps(chart, 'revived')[1:]
    looks = revived[revived > 0]
    return _usual(chart, charts, dataset) | {
        'revived': float(revived.sum()),
        'reverted': float(_steps(chart, 'reverted').sum()),
        'share_of_codes_revived': float(np.mean(looks)) / 256 if len(looks) else 0.0,
        'share_of_steps_with_revival': float(np.mean(revived > 0)),
        'quantization_error': chart.final['quantization_error'],
    }


def _threshold(chart, charts, dataset):
    found = _revived(chart, charts, dataset)
    if chart is charts['absolute_threshold']:
        other = _revived(charts['absolute_threshold_share'], charts, dataset)
        found |= {f'{name}_usage_below_.01': x for name, x in other.items() if name != 'reverted'}
    return found


def _coefficients(chart, charts, dataset):
    weights = {name: _last(chart, name) for name in ('commitment_weight', 'codebook_weight')}
    a, b = (
        jax.tree.leaves(charts[f'codebook_weight_{weight}'].restore()[1])
        for weight in ('1', 'quarter')
    )
    effect = max(float(np.max(np.abs(x - y))) for x, y in zip(a, b, strict=True))
    return (
        _usual(chart, charts, dataset)
        | _final(chart, 'quantization_error')
        | weights
        | {'effect_of_codebook_weight_with_ema': effect}
    )


def _evaluation(chart, charts, dataset):
    """Accuracy on the test split, and again after it was evaluated once class by class."""
    task, variables = chart.restore()
    split = dataset.splits['test']
    images, labels, _ = split.read(np.arange(len(split.indices)))
    batch = dataset.batch(images, labels)
    images, labels = batch['image'], batch['label']
    _, first = _evaluate(task, variables, images, labels)
    least = min(int(np.sum(labels == c)) for c in range(task.model.num_classes))
    moved = variables
    for label in range(task.model.num_classes):
        rows = np.flatnonzero(labels == label)[:least]
        moved, _ = _evaluate(task, moved, images[rows], labels[rows])
    _, again = _evaluate(task, moved, images, labels)
    return {
        'accuracy': float(first[0]),
        'accuracy_after_evaluation': float(again[0]),
        'quantization_error': float(first[1]),
        'quantization_error_after_evaluation': float(again[1]),
        'evaluation_drift': chart.final['evaluation_drift'],
    }


@functools.partial(jax.jit, static_argnums=0)
def _evaluate(task: Task, variables: Any, images: jax.Array, labels: jax.Array):
    """The variables that one batch in evaluation leaves, and its (accuracy, quantization error)."""
    model = task.model.clone(axis_name=None)
    output, moved = model.apply(variables, images, train=False, mutable=[COLLECTION])
    error = jnp.sum((output.quantized.z_q - output.z) ** 2) / jnp.sum(output.z**2)
    return variables | moved, (jnp.mean(jnp.argmax(output.logits, -1) == labels), error)


def _reshaped(chart, charts, dataset):
    found = _usual(chart, charts, dataset) | {'bits': chart.final['bits']}
    return found | _final(chart, 'position_overlap')


_PERPLEXITY = _steps_of('perplexity', 'perplexity on the validation split (codes)')
_REVIVED = (Panel('total', {'revived': 'revived'}, 'codes revived, in total'), _PERPLEXITY)
_FIRST_STEPS = (
    _steps_of('codebook_norm', 'mean length of the codes', 20),
    _steps_of('batch_perplexity', 'perplexity of each batch (codes)', 20),
)

CASES: dict[str, Case] = {
    'missing_total': Case(
        'EMA updates converge to a single mode without reconstruction: 44 falls to 1.03 in 10 '
        'steps',
        'source 2',
        Bench(faults.MissingTotal(256, decay=0.95, revival=None)),
        Bench(VQEMA(256, decay=0.95, revival=None)),
        averages,
        (
            _steps_of('max_code_norm', 'length of the longest code'),
            _steps_of('perplexity', 'perplexity (codes)'),
        ),
        'Vectors of length 1, nothing trained: without the factor live codes grow past every '
        'vector, and one takes all.',
    ),
    'no_straight_through': Case(
        'With VQ the accuracy is 5-23%',
        'source 1',
        'no_straight_through',
        'vq_ema_bare',
        _gradient,
        (
            _steps_of('accuracy', 'validation accuracy'),
            Panel(
                'bars',
                {'gradient_at_codes': 'after', 'gradient_at_input': 'before'},
                "task's gradient after and before the quantizer",
            ),
        ),
        'The task moves the codes alone: its gradient ends at the quantizer, and the encoder '
        'stays as it was drawn.',
    ),
    'detached_commitment': Case(
        'Extreme ranges of the commitment weight were tested: none helps',
        'source 0',
        'detached_commitment',
        'vq_ema',
        _commitment,
        (
            _steps_of('input_norm', 'mean length of the features'),
            Panel('bars', {'quantizer_gradient': 'at the end'}, "gradient of the quantizer's loss"),
        ),
        'A commitment without a gradient holds nothing, whatever its weight: the features grow '
        'away from the codes.',
        ('detached_commitment_hundredth',),
    ),
    'clamped_loss': Case(
        'Losses clamped from 10^13 to about 100: a major improvement',
        'source 0',
        'clamped_loss',
        'vq_ema',
        _clamp,
        (
            _steps_of('quantizer_loss', "quantizer's loss"),
            _steps_of('accuracy', 'validation accuracy'),
        ),
        'At the clamp, 100, the loss stands still and has no gradient: nothing is learned.',
        ('clamped_loss_unclamped',),
    ),
    'discarded_init': Case(
        'A data-driven start was tried: it does not hold',
        'source 2',
        'discarded_init',
        'vq_ema_still',
        _first_update,
        _FIRST_STEPS,
        'The first update takes the codes from where k-means put them to near 0, and most of the '
        'batch to few of them.',
    ),
    'stale_revival': Case(
        'Dead codes never recover, restarts do not help',
        'source 0',
        'stale_revival',
        'vq_ema',
        _revived,
        (
            Panel(
                'total',
                {'revived': 'revived', 'reverted': 'taken back'},
                'codes revived, and taken back one step later, in total',
            ),
        ),
        'Of the codes that the faulty run revives, the next update takes most back; of the cured '
        "one's it takes back none.",
    ),
    'zero_counts': Case(
        'The fixed version: averages of the codebook from the first step',
        'source 4',
        'zero_counts',
        'vq_ema_still',
        _first_update,
        _FIRST_STEPS,
        'The first update throws the codes 75,000 times too far out on average; the nearest one '
        'takes every vector.',
    ),
    'swapped_coefficients': Case(
        'codebook .25 and commitment 1.0 are what the paper specifies',
        'source 4',
        'swapped_coefficients',
        'vq',
        _coefficients,
        (
            Panel(
                'bars',
                {'commitment_weight': 'commitment', 'codebook_weight': 'codebook'},
                'weights, read from the gradient',
            ),
            _steps_of('quantization_error', 'squared error relative to the features'),
        ),
        'The two weights are exchanged, and it makes little difference here; of an averaged '
        'codebook the second does nothing.',
        ('codebook_weight_1', 'codebook_weight_quarter'),
    ),
    'absolute_threshold': Case(
        'Dead is a count below 2, or a usage below .01',
        'sources 1 and 3',
        'absolute_threshold',
        'vq_ema',
        _threshold,
        _REVIVED,
        '64 vectors per step for 256 codes: nearly every count is below 2, and codes in use are '
        'replaced to the end.',
        ('absolute_threshold_share',),
    ),
    'revival_every_step': Case(
        'Dead codes looked for at every step disrupt training',
        'source 4',
        'revival_every_step',
        'vq_ema',
        _revived,
        _REVIVED,
        'One batch leaves most codes unused, so each step replaces a quarter of them; averages '
        'over steps call few dead.',
    ),
    'eval_updates': Case(
        'The fixed evaluation mode: VQ stays in training',
        'source 2',
        'eval_updates',
        'vq_ema',
        _evaluation,
        (
            _steps_of('evaluation_drift', 'codebook moved by one evaluation (share of its length)'),
            Panel(
                'bars',
                {
                    'quantization_error': 'first time',
                    'quantization_error_after_evaluation': 'again',
                },
                'error on the same test images',
            ),
        ),
        'Evaluation moves the faulty codebook, so that the same model on the same images has '
        'another error the second time.',
    ),
    'reshaped_features': Case(
        'view(batch, 64, 2) may not preserve meaningful features',
        'source 2',
        'reshaped_features',
        'projected_64',
        _reshaped,
        (
            Panel('use', {'faulty': 'faulty'}, 'share of the uses of each code, faulty'),
            Panel('use', {'cured': 'cured'}, 'share of the uses of each code, cured'),
        ),
        'The two halves of the features share one codebook and not one code of it: each has the '
        'use of half.',
    ),
    'unscaled_fsq': Case(
        'FSQ cannot collapse by design',
        'source 3',
        'unscaled_fsq',
        'fsq',
        _usual,
        (_PERPLEXITY, _steps_of('accuracy', 'validation accuracy')),
        'Features a thousandth as large as the grid all round to its middle: one code, from the '
        'start to the end.',
    ),
}
