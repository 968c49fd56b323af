"""Quantizers on one task: table, report.md and plots of an experiment."""

from __future__ import annotations

from typing import Any

from vqjax.results.records import Results
from vqjax.studies.comparison import report
from vqjax.studies.study import Study
from vqjax.trainer import experiment, search
from vqjax.trainer.files.workdir import Workdir


def prepare(config: dict[str, Any]) -> Study:
    """The runs as configured; with `config['trials']` the settings are searched first."""
    return Study(config, conclude, run=search.run if config.get('trials') else experiment.run)


def conclude(results: Results, folder: Workdir | search.Outcome) -> Results:
    """Writes and prints the reports."""
    seeds = range(results.config['seeds'])
    histories = {
        method: [folder.finished_run(method, seed).history for seed in seeds]
        for method in results.methods
    }
    report.write(folder.path, results, histories)
    report.print_table(results)
    report.print_findings(results)
    return results
