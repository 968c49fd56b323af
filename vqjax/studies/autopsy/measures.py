"""What the autopsy measures of a case: figures of one side from its finished run."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vqjax.nn import COLLECTION
from vqjax.studies.autopsy.averages import Bench, drive
from vqjax.trainer.step.task import Task


class Chart(NamedTuple):
    """A finished run.

    history: its records in order, every step among them
    final: its figures on the test split
    counts: uses of each code there by position, [positions, K]; None without codes
    restore: () -> (task, variables), the model it ended with
    """

    history: Sequence[Mapping[str, float]]
    final: Mapping[str, float]
    counts: np.ndarray | None
    restore: Callable[[], tuple[Task, dict[str, Any]]]


Charts = Mapping[str, Chart]  # by method


def _final(chart: Chart, *names: str) -> dict[str, float]:
    return {name: chart.final[name] for name in names if name in chart.final}


def usual(chart: Chart, charts: Charts, dataset: Any) -> dict[str, float]:
    """What every run tells: accuracy and use of the codes."""
    return _final(chart, 'accuracy', 'perplexity', 'active_codes')


def _steps(chart: Chart, name: str) -> np.ndarray:
    return np.array([r[name] for r in chart.history if 'gradient_norm' in r and name in r])


def _last(chart: Chart, name: str) -> float:
    return next(r[name] for r in reversed(chart.history) if name in r)


def averages(bench: Bench, history: Sequence[Mapping[str, float]]) -> dict[str, float]:
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


def gradient(chart: Chart, charts: Charts, dataset: Any) -> dict[str, float]:
    """The task's gradient on both sides of the quantizer."""
    names = ('gradient_at_codes', 'gradient_at_input')
    return usual(chart, charts, dataset) | {name: _last(chart, name) for name in names}


def commitment(chart: Chart, charts: Charts, dataset: Any) -> dict[str, float]:
    """What a commitment weight does to the features, and its gradient."""
    found = usual(chart, charts, dataset) | {
        'input_norm': chart.final['input_norm'],
        'quantizer_gradient': _last(chart, 'quantizer_gradient'),
    }
    if chart is charts['detached_commitment']:
        # Another commitment weight: without a gradient nothing can change, to the bit.
        other = _steps(charts['detached_commitment_hundredth'], 'task_loss')
        losses = _steps(chart, 'task_loss')[: len(other)]
        found['effect_of_commitment'] = float(np.max(np.abs(losses - other)))
    return found


def clamp(chart: Chart, charts: Charts, dataset: Any) -> dict[str, float]:
    """The quantizer's loss with its clamp and without, and its gradient."""
    bare = charts['clamped_loss_unclamped'] if chart is charts['clamped_loss'] else chart
    return usual(chart, charts, dataset) | {
        'largest_loss_without_clamp': float(np.max(_steps(bare, 'quantizer_loss'))),
        'quantizer_loss': _steps(chart, 'quantizer_loss')[-1],
        'quantizer_gradient': _last(chart, 'quantizer_gradient'),
    }


def first_update(chart: Chart, charts: Charts, dataset: Any) -> dict[str, float]:
    """The codebook before and after its first update."""
    before, after = _steps(chart, 'codebook_norm')[:2]
    return {
        'codebook_norm_start': before,
        'codebook_norm_step_1': after,
        'max_code_norm_step_1': _steps(chart, 'max_code_norm')[1],
        'batch_perplexity_start': _steps(chart, 'batch_perplexity')[0],
        'batch_perplexity_step_1': _steps(chart, 'batch_perplexity')[1],
    } | usual(chart, charts, dataset)


def revived(chart: Chart, charts: Charts, dataset: Any) -> dict[str, float]:
    """Codes replaced over the run, and taken back."""
    revived = _steps(chart, 'revived')[1:]
    looks = revived[revived > 0]
    return usual(chart, charts, dataset) | {
        'revived': float(revived.sum()),
        'reverted': float(_steps(chart, 'reverted').sum()),
        'share_of_codes_revived': float(np.mean(looks)) / 256 if len(looks) else 0.0,
        'share_of_steps_with_revival': float(np.mean(revived > 0)),
        'quantization_error': chart.final['quantization_error'],
    }


def threshold(chart: Chart, charts: Charts, dataset: Any) -> dict[str, float]:
    """Codes replaced, and the uses that a batch can give one."""
    found = revived(chart, charts, dataset)
    if chart is charts['absolute_threshold']:
        other = revived(charts['absolute_threshold_share'], charts, dataset)
        found |= {f'{name}_usage_below_.01': x for name, x in other.items() if name != 'reverted'}
    return found


def coefficients(chart: Chart, charts: Charts, dataset: Any) -> dict[str, float]:
    """The weights of the two losses, read from their gradients."""
    weights = {name: _last(chart, name) for name in ('commitment_weight', 'codebook_weight')}
    a, b = (
        jax.tree.leaves(charts[f'codebook_weight_{weight}'].restore()[1])
        for weight in ('1', 'quarter')
    )
    effect = max(float(np.max(np.abs(x - y))) for x, y in zip(a, b, strict=True))
    return (
        usual(chart, charts, dataset)
        | _final(chart, 'quantization_error')
        | weights
        | {'effect_of_codebook_weight_with_ema': effect}
    )


def evaluation(chart: Chart, charts: Charts, dataset: Any) -> dict[str, float]:
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


def reshaped(chart: Chart, charts: Charts, dataset: Any) -> dict[str, float]:
    """Use of the codes by position, and bits."""
    found = usual(chart, charts, dataset) | {'bits': chart.final['bits']}
    return found | _final(chart, 'position_overlap')
