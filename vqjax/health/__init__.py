"""What is wrong with a run: what to measure, and what the measurements say.

`diagnose` reads a list of plain dicts, one a step or one an evaluation, from this project's runs
or from a loop of your own; a record that lacks a number is not asked for it. `gradient_flow` and
`codebook_events` measure what a loop does not have at hand.
"""

from vqjax.health.diagnosis import diagnose
from vqjax.health.history import Finding, History
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
]
