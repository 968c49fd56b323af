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
        seen='Vectors of length 1, nothing trained: without the factor live codes grow past every '
        'vector, and one takes all.',
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
        seen='The task moves the codes alone: its gradient ends at the quantizer, and the encoder '
        'stays as it was drawn.',
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
        seen='A commitment without a gradient holds nothing, whatever its weight: the features '
        'grow away from the codes.',
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
        seen='At the clamp, 100, the loss stands still and has no gradient: nothing is learned.',
        also=('clamped_loss_unclamped',),
    ),
    'discarded_init': Case(
        claim='A data-driven start was tried: it does not hold',
        source='source 2',
        faulty='discarded_init',
        cured='vq_ema_still',
        measure=measures.first_update,
        shown=_FIRST_STEPS,
        seen='The first update takes the codes from where k-means put them to near 0, and most of '
        'the batch to few of them.',
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
                {'revived': 'revived', 'reverted': 'taken back'},
                'codes revived, and taken back one step later, in total',
            ),
        ),
        seen='Of the codes that the faulty run revives, the next update takes most back; of the '
        "cured one's it takes back none.",
    ),
    'zero_counts': Case(
        claim='The fixed version: averages of the codebook from the first step',
        source='source 4',
        faulty='zero_counts',
        cured='vq_ema_still',
        measure=measures.first_update,
        shown=_FIRST_STEPS,
        seen='The first update throws the codes 75,000 times too far out on average; the nearest '
        'one takes every vector.',
    ),
    'swapped_coefficients': Case(
        claim='codebook .25 and commitment 1.0 are what the paper specifies',
        source='source 4',
        faulty='swapped_coefficients',
        cured='vq',
        measure=measures.coefficients,
        shown=(
            Panel(
                'bars',
                {'commitment_weight': 'commitment', 'codebook_weight': 'codebook'},
                'weights, read from the gradient',
            ),
            _steps_of('quantization_error', 'squared error relative to the features'),
        ),
        seen='The two weights are exchanged. In this one run the faulty side is the more accurate, '
        'so that exchanged weights are not shown to harm; of an averaged codebook the second does '
        'nothing.',
        also=('codebook_weight_1', 'codebook_weight_quarter'),
    ),
    'absolute_threshold': Case(
        claim='Dead is a count below 2, or a usage below .01',
        source='sources 1 and 3',
        faulty='absolute_threshold',
        cured='vq_ema',
        measure=measures.threshold,
        shown=_REVIVED,
        seen='64 vectors per step for 256 codes: nearly every count is below 2, and codes in use '
        'are replaced to the end.',
        also=('absolute_threshold_share',),
    ),
    'revival_every_step': Case(
        claim='Dead codes looked for at every step disrupt training',
        source='source 4',
        faulty='revival_every_step',
        cured='vq_ema',
        measure=measures.revived,
        shown=_REVIVED,
        seen='One batch leaves most codes unused, so each step replaces a quarter of them; '
        'averages over steps call few dead.',
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
        seen='Evaluation moves the faulty codebook, so that the same model on the same images has '
        'another error the second time.',
    ),
    'reshaped_features': Case(
        claim='view(batch, 64, 2) may not preserve meaningful features',
        source='source 2',
        faulty='reshaped_features',
        cured='projected_64',
        measure=measures.reshaped,
        shown=(
            Panel('use', {'faulty': 'faulty'}, 'share of the uses of each code, faulty'),
            Panel('use', {'cured': 'cured'}, 'share of the uses of each code, cured'),
        ),
        seen='The two halves of the features share one codebook and not one code of it: each has '
        'the use of half.',
    ),
    'unscaled_fsq': Case(
        claim='FSQ cannot collapse by design',
        source='source 3',
        faulty='unscaled_fsq',
        cured='fsq',
        measure=measures.usual,
        shown=(_PERPLEXITY, _steps_of('accuracy', 'validation accuracy')),
        seen='Features a thousandth as large as the grid all round to its middle: one code, from '
        'the start to the end.',
    ),
}
