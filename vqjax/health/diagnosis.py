"""From the records of a run to findings: every rule asked, causes first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vqjax.health import facts
from vqjax.health.history import Finding, History
from vqjax.health.rules import RULES, SYMPTOMS


def diagnose(
    history: Sequence[Mapping[str, Any]],
    num_codes: int | None = None,
    num_classes: float | None = None,
    spec: Any = None,
) -> list[Finding]:
    """What is wrong with a run: causes first, then what follows; empty where nothing is.

    Findings that cost something come before notes; among them causes, in the order in which to
    look at them, before symptoms, the worst first.

    Args:
      history: records in order of time, e.g. those of `Recorder`; the page "My codebook collapsed"
        lists what they may hold. A record that lacks a number is not asked for it, other entries
        are ignored.
      num_codes: K; that of `spec` where this is None and the quantizer is known.
      num_classes: where every vector has to name one of so many classes, alone; None where it
        carries detail. Where S codes a vector, or vectors an example, name the class together,
        C^(1/S); of classes that are not balanced the exponential of the entropy of the labels.
      spec: the quantizer, or its spec, see `vqjax.to_spec`. What it lacks no remedy names.
    """
    if num_codes is None:
        num_codes = getattr(facts.complete(spec), 'num_codes', None)
    run = History(history, num_codes, num_classes, spec)
    with np.errstate(all='ignore'):
        found = [
            (rule in SYMPTOMS, finding) for rule in RULES if (finding := rule(run)) is not None
        ]
    order = sorted(
        found,
        key=lambda f: (f[1].severity == 'note', f[0], f[0] and f[1].severity != 'error'),
    )
    return [f._replace(evidence={k: float(x) for k, x in f.evidence.items()}) for _, f in order]
