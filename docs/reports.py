"""Summaries and reports of the committed results again, from what their runs kept.

    python docs/reports.py

After a change of how intervals are made or of what a report says; nothing is trained.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from vqjax.atomic import to_json
from vqjax.results.records import Results
from vqjax.results.summaries import summarise
from vqjax.studies.rates import report as rates
from vqjax.studies.remedies import report as remedies

ROOT = Path(__file__).parent
REPORTS = {
    'remedies/digits': remedies,
    'remedies/mnist': remedies,
    'remedies/more': remedies,
    'rates': rates,
    'rates/longer': rates,
    'cifar10': rates,
    'cifar10/finetune': rates,
    'cifar10/finetune/longer': rates,
}

if __name__ == '__main__':
    paths = [ROOT / folder / 'results.json' for folder in REPORTS]
    for path in filter(Path.exists, [*paths, ROOT / 'comparison' / 'scenes.json']):
        found = Results.load(path)
        methods = {
            name: dataclasses.replace(method, summary=summarise(method.seeds))
            for name, method in found.methods.items()
        }
        found = dataclasses.replace(found, methods=methods)
        path.write_text(to_json(found.plain()) + '\n')
        if path in paths:
            REPORTS[str(path.parent.relative_to(ROOT))].write(path.parent, found)
        print(path, flush=True)
