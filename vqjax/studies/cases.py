"""The autopsy's cases: each claim of a collapsed project, its fault, and the cure alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vqjax import health
from vqjax.patients import Course, Patient, evaluate, treat, whole
from vqjax.quantizers import FSQ, VQ, VQEMA, Product, Projected, to_spec
from vqjax.studies import faults
from vqjax.studies.averages import Bench, drive
from vqjax.studies.faults import AbsoluteThreshold, EvalUpdates, EveryStep
from vqjax.trainer.data import Dataset

HEALTHY = {'num_codes': 256, 'decay': 0.95}
# The usual start of the collapsed projects: normal vectors, nothing revived.
BARE = HEALTHY | {'init': 'normal', 'revival': None}
STILL = HEALTHY | {'revival': None}  # k-means start, nothing revived


class Outcome(NamedTuple):
    """One side of a case: its records, its figures, and what `health.diagnose` makes of them."""

    history: list[dict[str, float]]
    figures: dict[str, float]
    findings: list[health.Finding]


@dataclasses.dataclass(frozen=True)
class Case:
    """A fault beside its cure.

    Attributes:
      claim: what the source says, or does.
      source: file the claim comes from.
      faulty, cured: what is trained; they differ in the fault alone.
      measure: (patient, course, dataset) -> figures.
      shown: the entry of the records that the plot shows.
    """

    claim: str
    source: str
    faulty: Any
    cured: Any
    measure: Callable[..., dict[str, float]]
    shown: str = 'perplexity'


# Figures.


def _final(course: Course, *names: str) -> dict[str, float]:
    return {name: course.final[name] for name in names if name in course.final}


def _usual(patient, course, dataset):
    return _final(course, 'accuracy', 'perplexity', 'active_codes')


def _steps(course: Course, name: str) -> np.ndarray:
    return np.array([r[name] for r in course.history if 'gradient_norm' in r and name in r])


def _last(course: Course, name: str) -> float:
    return next(r[name] for r in reversed(course.history) if name in r)


def _averages(bench, course, dataset):
    larger = drive(
        dataclasses.replace(bench, quantizer=dataclasses.replace(bench.quantizer, num_codes=512))
    )
    found = _final(course, 'reported_perplexity', 'perplexity', 'active_codes')
    found['max_norm'] = course.final['max_code_norm']
    found['max_norm_step_1'] = course.history[1]['max_code_norm']
    found['active_codes_step_1'] = course.history[1]['active_codes']
    names = ('reported_perplexity', 'perplexity', 'active_codes')
    return found | {f'{name}_k512': larger.final[name] for name in names}


def _gradient(patient, course, dataset):
    names = ('gradient_at_codes', 'gradient_at_input')
    return _usual(patient, course, dataset) | {name: _last(course, name) for name in names}


def _commitment(patient, course, dataset):
    # Another commitment weight: without a gradient nothing can change, to the bit.
    other = dataclasses.replace(patient.quantizer, commitment=0.01)
    short = treat(dataclasses.replace(patient, quantizer=other, steps=60), dataset)
    losses = _steps(course, 'task_loss')[:60]
    return _usual(patient, course, dataset) | {
        'input_norm': course.final['input_norm'],
        'quantizer_gradient': _last(course, 'quantizer_gradient'),
        'effect_of_commitment': float(np.max(np.abs(losses - _steps(short, 'task_loss')))),
    }


def _clamp(patient, course, dataset):
    bare = course
    if isinstance(patient.quantizer, faults.ClampedLoss):
        without = faults.MissingTotal(**HEALTHY)
        bare = treat(dataclasses.replace(patient, quantizer=without), dataset)
    return _usual(patient, course, dataset) | {
        'largest_loss_without_clamp': float(np.max(_steps(bare, 'quantizer_loss'))),
        'quantizer_loss': _steps(course, 'quantizer_loss')[-1],
        'quantizer_gradient': _last(course, 'quantizer_gradient'),
    }


def _first_update(patient, course, dataset):
    before, after = _steps(course, 'codebook_norm')[:2]
    return {
        'codebook_norm_start': before,
        'codebook_norm_step_1': after,
        'max_code_norm_step_1': _steps(course, 'max_code_norm')[1],
        'batch_perplexity_start': _steps(course, 'batch_perplexity')[0],
        'batch_perplexity_step_1': _steps(course, 'batch_perplexity')[1],
    } | _usual(patient, course, dataset)


def _revived(patient, course, dataset):
    revived = _steps(course, 'revived')[1:]
    looks = revived[revived > 0]
    return _usual(patient, course, dataset) | {
        'revived': float(revived.sum()),
        'reverted': float(_steps(course, 'reverted').sum()),
        'share_of_codes_revived': float(np.mean(looks)) / 256 if len(looks) else 0.0,
        'share_of_steps_with_revival': float(np.mean(revived > 0)),
        'error': course.final['error'],
    }


def _threshold(patient, course, dataset):
    found = _revived(patient, course, dataset)
    if isinstance(patient.quantizer.revival, AbsoluteThreshold):
        share = AbsoluteThreshold(least=0.01, of_total=True)
        patient = dataclasses.replace(
            patient, quantizer=dataclasses.replace(patient.quantizer, revival=share)
        )
        other = _revived(patient, treat(patient, dataset), dataset)
        found |= {f'{name}_usage_below_.01': x for name, x in other.items() if name != 'reverted'}
    return found


def _coefficients(patient, course, dataset):
    weights = {name: _last(course, name) for name in ('commitment_weight', 'codebook_weight')}
    weighted = [
        treat(Patient(faults.WeightedVQEMA(**HEALTHY, codebook=weight), steps=60), dataset)
        for weight in (1.0, 0.25)
    ]
    a, b = (jax.tree.leaves(run.variables) for run in weighted)
    effect = max(float(jnp.max(jnp.abs(x - y))) for x, y in zip(a, b, strict=True))
    return (
        _usual(patient, course, dataset)
        | _final(course, 'error')
        | weights
        | {'effect_of_codebook_weight_with_ema': effect}
    )


def _evaluation(patient, course, dataset):
    """Accuracy on the test split, and again after it was evaluated once class by class."""
    images, labels = whole(dataset, 'test')
    first, variables = evaluate(patient, course.variables, images, labels)
    least = min(int(jnp.sum(labels == c)) for c in range(patient.num_classes))
    variables = course.variables
    for label in range(patient.num_classes):
        rows = jnp.flatnonzero(labels == label)[:least]
        _, variables = evaluate(patient, variables, images[rows], labels[rows])
    again, _ = evaluate(patient, variables, images, labels)
    return {
        'accuracy': float(first['accuracy']),
        'accuracy_after_evaluation': float(again['accuracy']),
        'error': float(first['error']),
        'error_after_evaluation': float(again['error']),
        'evaluation_drift': float(first['evaluation_drift']),
    }


def _reshaped(patient, course, dataset):
    found = _usual(patient, course, dataset) | {'bits': float(patient.quantizer.bits)}
    return found | _final(course, 'position_overlap')


_GRID = (8, 8, 8, 5, 5, 5)

CASES: dict[str, Case] = {
    'missing_total': Case(
        'EMA updates converge to a single mode without reconstruction: 44 falls to 1.03 in 10 '
        'steps',
        'seed 002',
        Bench(faults.MissingTotal(256, decay=0.95, revival=None)),
        Bench(VQEMA(256, decay=0.95, revival=None)),
        _averages,
    ),
    'no_straight_through': Case(
        'With VQ the accuracy is 5-23%',
        'seed 001',
        Patient(faults.NoStraightThrough(**BARE)),
        Patient(VQEMA(**BARE)),
        _gradient,
        'accuracy',
    ),
    'detached_commitment': Case(
        'Extreme ranges of the commitment weight were tested: none helps',
        'seed 000',
        Patient(faults.DetachedCommitment(**HEALTHY)),
        Patient(VQEMA(**HEALTHY)),
        _commitment,
        'input_norm',
    ),
    'clamped_loss': Case(
        'Losses clamped from 10^13 to about 100: a major improvement',
        'seed 000',
        Patient(faults.ClampedLoss(**HEALTHY)),
        Patient(VQEMA(**HEALTHY)),
        _clamp,
        'quantizer_loss',
    ),
    'discarded_init': Case(
        'A data-driven start was tried: it does not hold',
        'seed 002',
        Patient(faults.DiscardedInit(**STILL)),
        Patient(VQEMA(**STILL)),
        _first_update,
        'codebook_norm',
    ),
    'stale_revival': Case(
        'Dead codes never recover, restarts do not help',
        'seed 000',
        Patient(faults.StaleRevival(**HEALTHY)),
        Patient(VQEMA(**HEALTHY)),
        _revived,
        'reverted',
    ),
    'zero_counts': Case(
        'The fixed version: averages of the codebook from the first step',
        'seed 004',
        Patient(faults.ZeroCounts(**STILL)),
        Patient(VQEMA(**STILL)),
        _first_update,
        'max_code_norm',
    ),
    'swapped_coefficients': Case(
        'codebook .25 and commitment 1.0 are what the paper specifies',
        'seed 004',
        Patient(faults.SwappedCoefficients(**HEALTHY)),
        Patient(VQ(**HEALTHY)),
        _coefficients,
        'quantizer_loss',
    ),
    'absolute_threshold': Case(
        'Dead is a count below 2, or a usage below .01',
        'seeds 001 and 003',
        Patient(VQEMA(**HEALTHY, revival=AbsoluteThreshold())),
        Patient(VQEMA(**HEALTHY)),
        _threshold,
        'revived',
    ),
    'revival_every_step': Case(
        'Dead codes looked for at every step disrupt training',
        'seed 004',
        Patient(VQEMA(**HEALTHY, revival=EveryStep())),
        Patient(VQEMA(**HEALTHY)),
        _revived,
        'revived',
    ),
    'eval_updates': Case(
        'The fixed evaluation mode: VQ stays in training',
        'seed 002',
        Patient(VQEMA(**HEALTHY), bridge=EvalUpdates),
        Patient(VQEMA(**HEALTHY)),
        _evaluation,
        'evaluation_drift',
    ),
    'reshaped_features': Case(
        'view(batch, 64, 2) may not preserve meaningful features',
        'seed 002',
        Patient(faults.ReshapedFeatures(VQEMA(**HEALTHY), 2, shared=True)),
        Patient(Projected(VQEMA(**HEALTHY), 64)),
        _reshaped,
        'accuracy',
    ),
    'unscaled_fsq': Case(
        'FSQ cannot collapse by design',
        'seed 003',
        Patient(Projected(faults.UnscaledFSQ(_GRID), 6)),
        Patient(Projected(FSQ(_GRID), 6)),
        _usual,
    ),
}


def examine(name: str, patient: Any, course: Course, dataset: Dataset | None) -> Outcome:
    """Figures and findings of one side of the case `name`."""
    figures = CASES[name].measure(patient, course, dataset)
    findings = health.diagnose(
        course.history,
        num_codes=patient.quantizer.num_codes,
        num_classes=getattr(patient, 'num_classes', None),
        spec=_spec(patient.quantizer),
    )
    return Outcome(course.history, {k: float(v) for k, v in figures.items()}, findings)


def _spec(quantizer):
    """The spec of the healthy quantizer that a faulty one stands in for."""
    if isinstance(quantizer, Projected | Product):
        inner = _spec(quantizer.inner)
        return {'name': type(quantizer).__name__.lower(), 'inner': inner}
    if isinstance(quantizer, FSQ):
        return {'name': 'fsq', 'levels': list(quantizer.levels)}
    return (
        to_spec(quantizer)
        if type(quantizer) in (VQEMA, VQ)
        and not isinstance(quantizer.revival, AbsoluteThreshold | EveryStep)
        else {'name': 'vq' if isinstance(quantizer, VQ) else 'vq_ema'}
    )
