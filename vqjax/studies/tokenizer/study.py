"""Tokenizers of images against the targets of a tokenizer: `tokenizer_report` of an experiment."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from vqjax.results.records import Results
from vqjax.results.summaries import shorten, summarise
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
    """Writes and prints the reports.

    Adds to every seed with a quantizer what its records tell: `spikes`, `perplexity_by_step_1000`
    and `quantizer_loss_at_step_5000`, see `targets.measure`, the last two where the run has them.
    """
    methods = dict(results.methods)
    histories, figures = {}, {}
    for name, method in results.methods.items():
        if not method.spec:
            continue
        num_codes, runs, seeds = report.num_codes(results, name), [], []
        for seed in method.seeds:
            history = _complete(folder.history(name, seed.seed), name, seed.seed)
            runs.append(targets.measure(history, seed.figures, num_codes))
            seeds.append(seed.with_figures(targets.kept(runs[-1])))
            if len(runs) == 1:
                histories[name] = history
        figures[name] = runs
        methods[name] = dataclasses.replace(method, seeds=tuple(seeds), summary=summarise(seeds))
    results = dataclasses.replace(results, methods=methods)
    report.write(folder.path, results, histories=histories, figures=figures)
    show(report.table(results.config, figures))
    return shorten(results)


def _complete(history: list[Mapping[str, Any]], name: str, seed: int) -> list[Mapping[str, Any]]:
    """The history of a run that recorded every step: the figures compare its start with its end."""
    steps = [r['step'] for r in history if 'gradient_norm' in r]
    if steps != list(range(1, len(steps) + 1)):
        raise errors.RunError(
            f'records/{name}/seed_{seed}.jsonl lacks steps: remove finished/{name} and '
            f'checkpoints/{name} to train it again'
        )
    return history
