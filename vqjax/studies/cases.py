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


@dataclasses.dataclass(frozen=True)
class Case:
    """A fault beside its cure.

    Attributes:
      claim: what the source says, or does.
      source: which of docs/sources.md the claim comes from.
      faulty, cured: methods of configs/autopsy.py (or a Bench); they differ in the fault alone.
      measure: (chart, charts, dataset) -> figures, where charts maps every method to its Chart.
      shown: the entry of the records that the plot shows.
      also: methods that measuring takes besides.
    """

    claim: str
    source: str
    faulty: str | Bench
    cured: str | Bench
    measure: Callable[..., dict[str, float]]
    shown: str = 'perplexity'
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


CASES: dict[str, Case] = {
    'missing_total': Case(
        'EMA updates converge to a single mode without reconstruction: 44 falls to 1.03 in 10 '
        'steps',
        'source 2',
        Bench(faults.MissingTotal(256, decay=0.95, revival=None)),
        Bench(VQEMA(256, decay=0.95, revival=None)),
        averages,
    ),
    'no_straight_through': Case(
        'With VQ the accuracy is 5-23%',
        'source 1',
        'no_straight_through',
        'vq_ema_bare',
        _gradient,
        'accuracy',
    ),
    'detached_commitment': Case(
        'Extreme ranges of the commitment weight were tested: none helps',
        'source 0',
        'detached_commitment',
        'vq_ema',
        _commitment,
        'input_norm',
        ('detached_commitment_hundredth',),
    ),
    'clamped_loss': Case(
        'Losses clamped from 10^13 to about 100: a major improvement',
        'source 0',
        'clamped_loss',
        'vq_ema',
        _clamp,
        'quantizer_loss',
        ('clamped_loss_unclamped',),
    ),
    'discarded_init': Case(
        'A data-driven start was tried: it does not hold',
        'source 2',
        'discarded_init',
        'vq_ema_still',
        _first_update,
        'codebook_norm',
    ),
    'stale_revival': Case(
        'Dead codes never recover, restarts do not help',
        'source 0',
        'stale_revival',
        'vq_ema',
        _revived,
        'reverted',
    ),
    'zero_counts': Case(
        'The fixed version: averages of the codebook from the first step',
        'source 4',
        'zero_counts',
        'vq_ema_still',
        _first_update,
        'max_code_norm',
    ),
    'swapped_coefficients': Case(
        'codebook .25 and commitment 1.0 are what the paper specifies',
        'source 4',
        'swapped_coefficients',
        'vq',
        _coefficients,
        'quantizer_loss',
        ('codebook_weight_1', 'codebook_weight_quarter'),
    ),
    'absolute_threshold': Case(
        'Dead is a count below 2, or a usage below .01',
        'sources 1 and 3',
        'absolute_threshold',
        'vq_ema',
        _threshold,
        'revived',
        ('absolute_threshold_share',),
    ),
    'revival_every_step': Case(
        'Dead codes looked for at every step disrupt training',
        'source 4',
        'revival_every_step',
        'vq_ema',
        _revived,
        'revived',
    ),
    'eval_updates': Case(
        'The fixed evaluation mode: VQ stays in training',
        'source 2',
        'eval_updates',
        'vq_ema',
        _evaluation,
        'evaluation_drift',
    ),
    'reshaped_features': Case(
        'view(batch, 64, 2) may not preserve meaningful features',
        'source 2',
        'reshaped_features',
        'projected_64',
        _reshaped,
        'accuracy',
    ),
    'unscaled_fsq': Case(
        'FSQ cannot collapse by design',
        'source 3',
        'unscaled_fsq',
        'fsq',
        _usual,
    ),
}
