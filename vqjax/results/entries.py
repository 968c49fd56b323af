"""The entry of a method in results.json, from the records of its finished runs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vqjax.results.finished import FinishedRun
from vqjax.results.records import MethodResult
from vqjax.results.summaries import rise, summarise


def entry(
    runs: Sequence[FinishedRun],
    *,
    spec: Mapping[str, Any] | None,
    overrides: Mapping[str, Any],
    classifies: bool,
) -> MethodResult:
    """What results.json says of one method, from the records of its finished runs."""
    seeds = tuple(run.result for run in runs)
    return MethodResult(
        spec=spec,
        overrides=overrides,
        bits=float(np.mean([run.bits for run in runs])),
        params=round(np.mean([run.params for run in runs])),
        seconds=sum(seed.figures['seconds'] for seed in seeds),
        summary=summarise(seeds),
        rise=rise([run.history for run in runs]) if classifies else None,
        seeds=seeds,
    )
