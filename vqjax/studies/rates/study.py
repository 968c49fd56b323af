"""Accuracy against bits: quantizers at several rates, beside the same network without one."""

from __future__ import annotations

from typing import Any

from vqjax import health, metrics, quantizers
from vqjax.results.records import read_counts
from vqjax.results.summaries import joint_perplexity, shorten, summarise
from vqjax.studies.rates import report
from vqjax.studies.study import Study
from vqjax.trainer.files.display import show
from vqjax.trainer.files.workdir import Workdir


def prepare(config: dict[str, Any]) -> Study:
    """Accuracy against bits: the runs as configured, then what they say of rates."""
    return Study(config, conclude)


def conclude(results: dict[str, Any], folder: Workdir) -> None:
    """Says of every run how even its codes are used and whether it collapsed; writes the reports.

    Adds `bits_per_token` to every method with a quantizer, and to its seeds `evenness` (perplexity
    as a share of that of a uniform source of as many tokens), `least_usage` (the share of the codes
    in use of the stage with the fewest) and `collapsed`, 0 or 1: all codes of an image together
    tell fewer images apart than there are classes.
    """
    for name, method in results['methods'].items():
        if method['spec'] is None:
            continue
        quantizer = quantizers.make(method['spec'])
        method['bits_per_token'] = float(quantizer.bits)
        codes = quantizers.stages(quantizer) * round(method['bits'] / quantizer.bits)
        for seed in method['seeds']:
            classes = folder.finished(name, seed['seed'])['images']['num_classes']
            uniform = metrics.uniform_baseline(round(seed['tokens']), quantizer.num_codes)
            used = read_counts(seed) > 0
            seed['least_usage'] = float(used.mean(-1).min())
            seed['evenness'] = seed['perplexity'] / uniform.perplexity
            bound = health.CLASS_SHARE * classes
            seed['collapsed'] = float(joint_perplexity(seed, codes) < bound)
        method['summary'] = summarise(method['seeds'])
    shorten(results)
    report.write(folder.path, results)
    show(report.table(results))
