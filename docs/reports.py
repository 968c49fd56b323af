"""Summaries and reports of the committed results again: python docs/reports.py

Summaries are made from what each run kept, and reports from these; nothing is trained. With --plots
also the plots that need no more than the results. Those of the autopsy, the tokenizers and the
behaviours, and the perplexity over training, need the records of a run.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from vqjax.atomic import to_json
from vqjax.results.records import Results
from vqjax.results.summaries import summarise
from vqjax.studies.autopsy import study as autopsy
from vqjax.studies.behaviour import report as behaviour
from vqjax.studies.comparison import report as comparison
from vqjax.studies.rates import plots as rates_plots
from vqjax.studies.rates import report as rates
from vqjax.studies.remedies import plots as remedies_plots
from vqjax.studies.remedies import report as remedies
from vqjax.studies.reporting import plots
from vqjax.studies.vqvae2 import report as vqvae2

ROOT = Path(__file__).parent
TEXTS = {
    'comparison': comparison.markdown,
    'comparison/calibration': comparison.markdown,
    'comparison/more': comparison.markdown,
    'rates': rates.markdown,
    'rates/longer': rates.markdown,
    'rates/deals': rates.markdown,
    'cifar10': rates.markdown,
    'cifar10/encoders': rates.markdown,
    'cifar10/finetune': rates.markdown,
    'cifar10/finetune/longer': rates.markdown,
    'cifar10/scratch': rates.markdown,
    'cifar10/tuned': comparison.markdown,
    'remedies/digits': remedies.markdown,
    'remedies/mnist': remedies.markdown,
    'remedies/mnist/longer': remedies.markdown,
    'remedies/averaged': remedies.markdown,
    'autopsy': autopsy.markdown,
    'behaviour': behaviour.text,
    'vqvae2/cifar10': vqvae2.text,
    'vqvae2/digits': vqvae2.text,
}
_COMPARISON = {name: getattr(plots, name) for name in ('accuracy', 'usage', 'reliability')}
PLOTS = {
    'comparison': _COMPARISON,
    'comparison/calibration': _COMPARISON,
    'comparison/more': _COMPARISON,
    'cifar10/tuned': _COMPARISON,
    'rates': {'rates': rates_plots.figure},
    'cifar10': {'rates': rates_plots.figure},
    'cifar10/encoders': {'rates': rates_plots.figure},
    'remedies/digits': {'remedies': remedies_plots.figure},
    'remedies/mnist': {'remedies': remedies_plots.figure},
    'remedies/mnist/longer': {'remedies': remedies_plots.figure},
    'remedies/averaged': {'remedies': remedies_plots.figure},
}


def summarised(path: Path) -> Results:
    """Results with the summaries of their methods made again from the runs, and written so."""
    found = Results.load(path)
    methods = {
        name: dataclasses.replace(method, summary=summarise(method.seeds))
        for name, method in found.methods.items()
    }
    found = dataclasses.replace(found, methods=methods)
    path.write_text(to_json(found.plain()) + '\n')
    return found


def main(with_plots: bool) -> None:
    """Writes the summaries and the report of every folder, and its plots."""
    summarised(ROOT / 'comparison' / 'scenes.json')
    for part, text in TEXTS.items():
        path = ROOT / part / 'results.json'
        again = part.startswith(('remedies', 'rates', 'cifar10'))
        results = summarised(path) if again else Results.load(path)
        (ROOT / part / 'report.md').write_text(text(results))
        for name, figure in PLOTS.get(part, {}).items():
            if with_plots:
                plots.save(figure(results), ROOT / part / f'{name}.png')
        print(part)


if __name__ == '__main__':
    main('--plots' in sys.argv[1:])
