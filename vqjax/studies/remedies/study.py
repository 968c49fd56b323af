"""Each remedy alone, added to one weak baseline, against all others: seeds, intervals, verdicts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vqjax import metrics, quantizers
from vqjax.results import summaries
from vqjax.results.records import Results
from vqjax.results.summaries import shorten
from vqjax.studies.remedies import report
from vqjax.studies.study import Study
from vqjax.trainer.files.display import show
from vqjax.trainer.files.workdir import Workdir


def prepare(config: dict[str, Any]) -> Study:
    """The runs as configured, then what became of each remedy."""
    return Study(config, conclude)


def conclude(results: Results, folder: Workdir) -> Results:
    """Says of every run whether it collapsed and how often its remedy acted; writes the reports."""
    methods = {}
    for name, method in results.methods.items():
        # All codes of an image: eight groups of nine codes tell far more than ten classes apart.
        codes = 1
        if method.spec is not None:
            quantizer = quantizers.make(method.spec)
            codes = quantizers.stages(quantizer) * round(method.bits / quantizer.bits)
        seeds = []
        for seed in method.seeds:
            finished = folder.finished_run(name, seed.seed)
            fell = summaries.collapsed(seed, codes, finished.images.num_classes)
            collapsed = {'collapsed': float(fell)}
            acted = actions(method.spec, method.overrides, finished.history)
            seeds.append(seed.with_figures(collapsed | acted))
        collapses = int(sum(seed.figures['collapsed'] for seed in seeds))
        collapse = metrics.wilson_interval(collapses, len(seeds))
        methods[name] = dataclasses.replace(method, seeds=tuple(seeds), collapse=collapse)
    results = shorten(dataclasses.replace(results, methods=methods))
    report.write(folder.path, results)
    show(report.table(results))
    return results


def actions(
    spec: Mapping[str, Any] | None,
    overrides: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
) -> dict[str, float]:
    """How often a remedy acted in one run, where it waits for something before it does.

    Args:
      spec: of the quantizer, None without one.
      overrides: fields of the configuration that the remedy changes.
      history: the run's records of its evaluations.

    Returns:
      Of a quantizer with revival `revived`, codes that were replaced; of one with a guard
      `refits`; of clipped gradients `clipped`, the share of the steps.
    """
    parts, last = list(_parts(spec or {})), history[-1]
    found = {}
    if any(part.get('name') == 'guarded' for part in parts):
        found['refits'] = float(last.get('refits', 0))
    elif any(part.get('revival') for part in parts) and 'revived' in last:
        found['revived'] = float(sum(r.get('revived', 0) for r in history))
    if overrides.get('clip_norm') and 'clipped' in last:
        found['clipped'] = float(np.mean([r['clipped'] for r in history]))
    return found


def _parts(spec: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The spec of a quantizer and those of the quantizers in it."""
    yield spec
    inner = spec.get('inner') or ()
    for part in [inner] if isinstance(inner, Mapping) else inner:
        yield from _parts(part)
