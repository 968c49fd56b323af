"""What is wrong with a run: what to measure, and what the measurements say.

`Recorder` gathers in one's own loop what `diagnose` reads: a list of plain dicts, one a step or
one an evaluation. Records may come from anywhere else too; one that lacks a number is not asked
for it. `gradient_flow` and `codebook_events` measure two of the things that a loop does not have
at hand.
"""

from vqjax.health.diagnosis import diagnose
from vqjax.health.history import Finding, History
from vqjax.health.linen import linen_quantizer
from vqjax.health.probes import codebook_events, gradient_flow
from vqjax.health.recorder import Recorder
from vqjax.health.rules import CLASS_SHARE, RULES

__all__ = [
    'CLASS_SHARE',
    'RULES',
    'Finding',
    'History',
    'Recorder',
    'codebook_events',
    'diagnose',
    'gradient_flow',
    'linen_quantizer',
]
