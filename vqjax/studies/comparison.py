"""Quantizers on one task: table, report.md and plots of an experiment."""

from __future__ import annotations

from typing import Any

from vqjax.studies import report
from vqjax.trainer import experiment, search
from vqjax.trainer.workdir import Workdir


def run(config: dict[str, Any], workdir: str) -> dict[str, Any]:
    """`experiment.run`, and its reports in `workdir` and on the terminal.

    With `config['trials']` the settings are searched first, see `search.run`.
    """
    start = search.run if config.get('trials') else experiment.run
    return start(config, workdir, conclude)


def conclude(results: dict[str, Any], folder: Workdir | search.Outcome) -> None:
    """Writes and prints the reports."""
    seeds = range(results['config']['seeds'])
    histories = {
        method: [folder.finished(method, seed)['history'] for seed in seeds]
        for method in results['methods']
    }
    report.write(folder.path, results, histories)
    report.print_table(results)
    report.print_findings(results)
