"""Each remedy alone, added to one weak baseline, against all others: seeds, intervals, verdicts."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from rich.console import Console

from vqjax import health, metrics, quantizers
from vqjax.studies import remedies_report as report
from vqjax.trainer import experiment
from vqjax.trainer.summaries import shorten
from vqjax.trainer.workdir import Workdir


def run(config: dict[str, Any], workdir: str) -> dict[str, Any]:
    """`experiment.run`, and the comparison of the remedies in `workdir` and on the terminal."""
    return experiment.run(config, workdir, conclude)


def conclude(results: dict[str, Any], folder: Workdir) -> None:
    """Says of every run whether it collapsed; writes and prints the reports."""
    for name, method in results['methods'].items():
        num_classes = folder.finished(name, 0)['images']['num_classes']
        # Stages together: eight groups of nine codes tell far more than ten classes apart.
        stages = 1 if method['spec'] is None else quantizers.stages(quantizers.make(method['spec']))
        for seed in method['seeds']:
            perplexity = seed.get('perplexity', np.inf) ** stages
            seed['collapsed'] = float(perplexity < health.CLASS_SHARE * num_classes)
        collapses = int(sum(seed['collapsed'] for seed in method['seeds']))
        method['collapse'] = metrics.wilson_interval(collapses, len(method['seeds']))._asdict()
    shorten(results)
    report.write(folder.path, results)
    Console(width=None if sys.stdout.isatty() else 120).print(report.table(results))
