"""The autopsy's cases: each claim of a collapsed project, its fault, and the cure alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from vqjax.quantizers import VQEMA
from vqjax.studies.autopsy import faults, measures
from vqjax.studies.autopsy.averages import Bench


class Panel(NamedTuple):
    """One panel of a case's plot.

    kind: 'steps', an entry of the records over the steps; 'total', one or two of them summed up;
      'bars', figures of the case; 'halves', how many codes each position uses on the test split.
    names: what it shows, entry -> what it is called; for 'halves' the positions.
    title: what is plotted, with its unit.
    until: the last step shown.
    """

    kind: str
    names: dict[str, str]
    title: str
    until: int | None = None


def _steps_of(name: str, title: str, until: int | None = None) -> Panel:
    return Panel(kind='steps', names={name: title}, title=title, until=until)


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


_PERPLEXITY = _steps_of('perplexity', 'perplexity on the validation split (codes)')
_REVIVED = (Panel('total', {'revived': 'revived'}, 'codes revived, in total'), _PERPLEXITY)
_FIRST_STEPS = (
    _steps_of('codebook_norm', 'mean length of the codes', 20),
    _steps_of('batch_perplexity', 'perplexity of each batch (codes)', 20),
)

CASES: dict[str, Case] = {
    'missing_total': Case(
        claim='EMA updates converge to a single mode without reconstruction: 44 falls to 1.03 in '
        '10 steps',
        source='source 2',
        faulty=Bench(faults.MissingTotal(256, decay=0.95, revival=None)),
        cured=Bench(VQEMA(256, decay=0.95, revival=None)),
        measure=measures.averages,
        shown=(
            _steps_of('max_code_norm', 'length of the longest code'),
            _steps_of('perplexity', 'perplexity (codes)'),
        ),
        seen='The vectors have length 1 and nothing is trained. Without the factor, the codes in '
        'use grow longer than every vector, until one code takes all of them.',
    ),
    'no_straight_through': Case(
        claim='With VQ the accuracy is 5-23%',
        source='source 1',
        faulty='no_straight_through',
        cured='vq_ema_bare',
        measure=measures.gradient,
        shown=(
            _steps_of('accuracy', 'validation accuracy'),
            Panel(
                'bars',
                {'gradient_at_codes': 'after', 'gradient_at_input': 'before'},
                "task's gradient after and before the quantizer",
            ),
        ),
        seen='The gradient of the task ends at the quantizer. Only the codes move, and the encoder '
        'keeps its random weights.',
    ),
    'detached_commitment': Case(
        claim='Extreme ranges of the commitment weight were tested: none helps',
        source='source 0',
        faulty='detached_commitment',
        cured='vq_ema',
        measure=measures.commitment,
        shown=(
            _steps_of('input_norm', 'mean length of the features'),
            Panel('bars', {'quantizer_gradient': 'at the end'}, "gradient of the quantizer's loss"),
        ),
        seen='A commitment loss without a gradient has no effect, whatever its weight. The '
        'features grow and leave the codes behind.',
        also=('detached_commitment_hundredth',),
    ),
    'clamped_loss': Case(
        claim='Losses clamped from 10^13 to about 100: a major improvement',
        source='source 0',
        faulty='clamped_loss',
        cured='vq_ema',
        measure=measures.clamp,
        shown=(
            _steps_of('quantizer_loss', "quantizer's loss"),
            _steps_of('accuracy', 'validation accuracy'),
        ),
        seen='The loss stays at the clamp, 100, where its gradient is zero, so nothing is learned.',
        also=('clamped_loss_unclamped',),
    ),
    'discarded_init': Case(
        claim='A data-driven start was tried: it does not hold',
        source='source 2',
        faulty='discarded_init',
        cured='vq_ema_still',
        measure=measures.first_update,
        shown=_FIRST_STEPS,
        seen='The first update moves the codes from their k-means positions to near 0, after which '
        'most of the batch is assigned to a few of them.',
    ),
    'stale_revival': Case(
        claim='Dead codes never recover, restarts do not help',
        source='source 0',
        faulty='stale_revival',
        cured='vq_ema',
        measure=measures.revived,
        shown=(
            Panel(
                'total',
                {'revived': 'revived', 'reverted': 'undone'},
                'codes revived, and undone one step later, in total',
            ),
        ),
        seen='In the faulty run, the next update undoes most revivals. In the cured run it undoes '
        'none.',
    ),
    'zero_counts': Case(
        claim='The fixed version: averages of the codebook from the first step',
        source='source 4',
        faulty='zero_counts',
        cured='vq_ema_still',
        measure=measures.first_update,
        shown=_FIRST_STEPS,
        seen='The first update makes the codes 75,000 times too long on average, and the nearest '
        'one then takes every vector.',
    ),
    'swapped_coefficients': Case(
        claim='codebook .25 and commitment 1.0 are what the paper specifies',
        source='source 4',
        faulty='swapped_coefficients',
        cured='vq',
        measure=measures.coefficients,
        shown=(
            _steps_of('accuracy', 'validation accuracy'),
            _steps_of('quantization_error', 'squared error relative to the features'),
        ),
        seen='The faulty side is the more accurate one: exchanged weights do no harm here. With a '
        'codebook of moving averages, the weight of the codebook loss has no effect at all.',
        also=('codebook_weight_1', 'codebook_weight_quarter'),
    ),
    'absolute_threshold': Case(
        claim='Dead is a count below 2, or a usage below .01',
        source='sources 1 and 3',
        faulty='absolute_threshold',
        cured='vq_ema',
        measure=measures.threshold,
        shown=_REVIVED,
        seen='With 64 vectors per step and 256 codes nearly every count is below 2, so codes in '
        'use are replaced until the end of the run.',
        also=('absolute_threshold_share',),
    ),
    'revival_every_step': Case(
        claim='Dead codes looked for at every step disrupt training',
        source='source 4',
        faulty='revival_every_step',
        cured='vq_ema',
        measure=measures.revived,
        shown=_REVIVED,
        seen='A single batch leaves most codes unused, so each step replaces a quarter of them. '
        'Averages over many steps find few dead codes.',
    ),
    'eval_updates': Case(
        claim='The fixed evaluation mode: VQ stays in training',
        source='source 2',
        faulty='eval_updates',
        cured='vq_ema',
        measure=measures.evaluation,
        shown=(
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
        seen='Evaluation moves the faulty codebook, so the same model has a different error when '
        'it sees the same images again.',
    ),
    'reshaped_features': Case(
        claim='view(batch, 64, 2) may not preserve meaningful features',
        source='source 2',
        faulty='reshaped_features',
        cured='projected_64',
        measure=measures.reshaped,
        shown=(Panel('halves', {'codes': 'codes'}, 'codes in use on the test split, of 256'),),
        seen='The two halves of the features share one codebook but not a single code of it, so '
        'each half has only half of the codebook.',
    ),
    'unscaled_fsq': Case(
        claim='FSQ cannot collapse by design',
        source='source 3',
        faulty='unscaled_fsq',
        cured='fsq',
        measure=measures.usual,
        shown=(_PERPLEXITY, _steps_of('accuracy', 'validation accuracy')),
        seen='The features are a thousandth of the grid spacing, so all of them are rounded to its '
        'middle. One code is in use from the first step to the last.',
    ),
}
