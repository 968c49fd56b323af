"""Accuracy against bits: quantizers at several rates, beside the same network without one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from vqjax import metrics, quantizers
from vqjax.results.records import MethodResult, Results
from vqjax.results.summaries import collapsed, shorten, summarise
from vqjax.studies.rates import report
from vqjax.studies.study import Study
from vqjax.trainer.files.display import show
from vqjax.trainer.files.workdir import Workdir


def prepare(config: dict[str, Any]) -> Study:
    """Accuracy against bits: the runs as configured, then what they say of rates."""
    return Study(config, conclude)


def conclude(results: Results, folder: Workdir) -> Results:
    """Says of every run how even its codes are used and whether it collapsed; writes the reports.

    Adds `bits_per_token` to every method with a quantizer, and to its seeds `evenness` (perplexity
    as a share of that of a uniform source of as many tokens), `least_usage` (the share of the codes
    in use of the stage with the fewest) and `collapsed`, 0 or 1: all codes of an image together
    tell fewer images apart than there are classes.
    """
    methods = {
        name: method
        if method.spec is None
        else _judged(method, method.spec, name=name, folder=folder)
        for name, method in results.methods.items()
    }
    results = shorten(dataclasses.replace(results, methods=methods))
    report.write(folder.path, results)
    show(report.table(results))
    return results


def _judged(
    method: MethodResult, spec: Mapping[str, Any], name: str, folder: Workdir
) -> MethodResult:
    """A method with what `conclude` adds."""
    quantizer = quantizers.make(spec)
    codes = quantizers.stages(quantizer) * round(method.bits / quantizer.bits)
    seeds = []
    for seed in method.seeds:
        classes = folder.finished_run(name, seed.seed).images.num_classes
        tokens, perplexity = (seed.figures[figure] for figure in ('tokens', 'perplexity'))
        uniform = metrics.uniform_baseline(round(tokens), quantizer.num_codes)
        used = np.asarray(seed.counts) > 0
        more = {
            'least_usage': float(used.mean(-1).min()),
            'evenness': perplexity / uniform.perplexity,
            'collapsed': float(collapsed(seed, codes, classes)),
        }
        seeds.append(seed.with_figures(more))
    return dataclasses.replace(
        method,
        bits_per_token=float(quantizer.bits),
        seeds=tuple(seeds),
        summary=summarise(seeds),
    )
