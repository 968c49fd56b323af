"""From the records of a run to findings: every rule asked, the worst first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vqjax.health.history import Finding, History
from vqjax.health.rules import RULES


def diagnose(
    history: Sequence[Mapping[str, Any]],
    num_codes: int | None = None,
    num_classes: float | None = None,
    spec: Any = None,
) -> list[Finding]:
    """What is wrong with a run, the worst first; an empty list where nothing is.

    Args:
      history: records in order of time. Of a step or a mean over some: loss, quantizer_loss,
        input_norm and code_norm (mean lengths of z and z_q), batch_tokens, and the results of
        `codebook_events`. Of an evaluation: perplexity, active_codes, max_share, tokens (vectors
        a stage), evaluation_drift (relative change of the codebook while evaluating),
        position_overlap (of the use of a shared codebook by its positions, 0 to 1), and the
        results of `gradient_flow`. Other entries are ignored.
      num_codes: K.
      num_classes: of a classification task; None where every token has to carry detail. Where
        perplexity is a mean over S stages or groups, C^(1/S): together they tell C classes apart.
      spec: the quantizer's, see `vqjax.to_spec`.
    """
    run = History(history, num_codes, num_classes, spec)
    with np.errstate(all='ignore'):
        found = [finding for rule in RULES if (finding := rule(run)) is not None]
    found = [f._replace(evidence={k: float(x) for k, x in f.evidence.items()}) for f in found]
    return sorted(found, key=lambda f: ('error', 'warning', 'note').index(f.severity))
