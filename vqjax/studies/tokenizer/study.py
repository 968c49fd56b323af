"""Tokenizers of images against the targets of a tokenizer: `tokenizer_report` of an experiment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vqjax.results.records import Results
from vqjax.results.summaries import shorten
from vqjax.studies.study import Study
from vqjax.studies.tokenizer import report, targets
from vqjax.trainer import errors
from vqjax.trainer.files.display import show
from vqjax.trainer.files.workdir import Workdir


def prepare(config: dict[str, Any]) -> Study:
    """The runs as configured, then their figures against the targets of a tokenizer.

    Raises:
      RunError: steps are not recorded, or nothing is reconstructed.
    """
    if not config.get('record') or not config.get('reconstruction_weight'):
        raise errors.RunError(
            'study tokenizer reads every step and the reconstruction error: set record=True and '
            'reconstruction_weight above 0'
        )
    return Study(config, conclude)


def conclude(results: Results, folder: Workdir) -> Results:
    """Writes and prints the reports of seed 0."""
    quantized = [name for name, method in results.methods.items() if method.spec]
    histories = {name: _complete(folder.history(name, 0), name) for name in quantized}
    figures = {
        name: targets.measure(
            history, results.methods[name].seeds[0].figures, report.num_codes(results, name)
        )
        for name, history in histories.items()
    }
    report.write(folder.path, results, histories=histories, figures=figures)
    show(report.table(results.config, figures))
    return shorten(results)


def _complete(history: list[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    """The history of a run that recorded every step: the figures compare its start with its end."""
    steps = [r['step'] for r in history if 'gradient_norm' in r]
    if steps != list(range(1, len(steps) + 1)):
        raise errors.RunError(
            f'records/{name}/seed_0.jsonl lacks steps: remove finished/{name} and '
            f'checkpoints/{name} to train it again'
        )
    return history
