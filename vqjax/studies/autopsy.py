"""Runs the autopsy: every case's fault and cure, a table, a report and a plot a case."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vqjax.patients import treat
from vqjax.studies.averages import Bench, drive
from vqjax.studies.cases import CASES, examine
from vqjax.trainer import data, logs
from vqjax.trainer.experiment import environment
from vqjax.trainer.settings import check_fields, choose, load_dataset
from vqjax.trainer.workdir import Workdir

# Name -> type of the fields of an autopsy's configuration, see configs/autopsy.py.
FIELDS: dict[str, type] = {'dataset': str, 'data_dir': str, 'cases': str, 'seed': int}


def run(config: dict[str, Any], workdir: str) -> dict[str, Any]:
    """Runs the cases that are not finished in `workdir` and writes its reports.

    Args:
      config: plain data with exactly the fields of FIELDS.
      workdir: folder for results.json, report.md and a plot a case.

    Returns:
      The content of results.json.

    Raises:
      RunError: something for the user to put right.
    """
    check_fields(config, FIELDS)
    names = choose(config['cases'], CASES, 'case')
    dataset = load_dataset(config['dataset'], config['data_dir'])
    folder = Workdir(workdir, config)
    courses: dict[Any, Any] = {}  # several cases share a healthy run
    with logs.Display(len(names), quiet=False) as display:
        for name in names:
            if folder.finished('autopsy', name) is None:
                begun = time.monotonic()
                folder.finish('autopsy', name, _case(name, dataset, courses, config['seed']))
                display.say(f'{name}: {time.monotonic() - begun:.0f} s')
    records = {}
    for name in names:
        records[name] = folder.finished('autopsy', name)
    results = {
        'schema': 1,
        'config': config,
        'environment': environment(),
        'cases': {name: record['case'] for name, record in records.items()},
    }
    folder.write_json('results.json', results)
    (folder.path / 'report.md').write_text(markdown(results))
    from vqjax.studies import autopsy_plots  # Matplotlib takes a second to import

    for name, record in records.items():
        autopsy_plots.write(folder.path / f'{name}.png', name, record)
    folder.close()
    # Without a terminal rich assumes 80 columns and would break the rows of a log.
    Console(width=None if sys.stdout.isatty() else 120).print(table(results))
    return results


def _case(name: str, dataset: data.Dataset, courses: dict[Any, Any], seed: int) -> dict[str, Any]:
    """One case as plain data: what goes to results.json, and both histories for the plot."""
    case = CASES[name]
    outcomes = {}
    for side, patient in (('faulty', case.faulty), ('cured', case.cured)):
        if patient not in courses:
            courses[patient] = (
                drive(patient) if isinstance(patient, Bench) else treat(patient, dataset, seed)
            )
        outcomes[side] = examine(name, patient, courses[patient], dataset)
    entry = {'claim': case.claim, 'source': case.source, 'shown': case.shown}
    entry |= {side: finite(outcome.figures) for side, outcome in outcomes.items()}
    entry['findings'] = {
        side: [f._asdict() | {'evidence': finite(f.evidence)} for f in outcome.findings]
        for side, outcome in outcomes.items()
    }
    history = {
        side: [finite(record) for record in outcome.history] for side, outcome in outcomes.items()
    }
    return {'case': entry, 'history': history}


def finite(figures: Mapping[str, float]) -> dict[str, float | None]:
    """Numbers that JSON can hold: None for NaN and infinities."""
    return {k: float(v) if math.isfinite(v) else None for k, v in figures.items()}


def number(value: float | None) -> str:
    """About four digits."""
    if value is None:
        return 'not finite'
    return f'{value:.4f}'.rstrip('0').rstrip('.') if 1e-3 <= abs(value) < 1e4 else f'{value:.3g}'


def table(results: Mapping[str, Any]) -> Table:
    """Every figure of every case, faulty beside cured, and the faulty run's findings."""
    found = Table(title='autopsy', box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    found.add_column('case', style='bold')
    found.add_column('figure')
    for heading in ('faulty', 'cured'):
        found.add_column(heading, justify='right')
    found.add_column('found in the faulty run')
    for name, case in results['cases'].items():
        findings = [f['name'] for f in case['findings']['faulty']]
        cured = [f['name'] for f in case['findings']['cured']]
        notes = findings + ([f'cured: {", ".join(cured)}'] if cured else [])
        rows = list(dict.fromkeys([*case['faulty'], *case['cured']]))
        for row in range(max(len(rows), len(notes))):
            figure = rows[row] if row < len(rows) else ''
            cells = [
                name if row == 0 else '',
                figure,
                *(
                    number(case[s][figure]) if figure in case[s] else ''
                    for s in ('faulty', 'cured')
                ),
                notes[row] if row < len(notes) else '',
            ]
            found.add_row(*(escape(cell) for cell in cells))
        found.add_section()
    return found


def markdown(results: Mapping[str, Any]) -> str:
    """The text of report.md."""
    parts = [
        '# Autopsy',
        'Made by\n\n```\npython train.py --config configs/autopsy.py\n```',
        'Every case changes one thing: the faulty run has the fault, the cured run has not. '
        f'Trained on {results["config"]["dataset"]}, seed {results["config"]["seed"]}: one run a '
        'side, so small differences of accuracy say nothing. '
        + ', '.join(f'{k} {v}' for k, v in results['environment'].items())
        + '.',
    ]
    for name, case in results['cases'].items():
        figures = dict.fromkeys([*case['faulty'], *case['cured']])
        rows = ['| | faulty | cured |', '| --- | ---: | ---: |']
        for figure in figures:
            cells = (
                number(case[s][figure]) if figure in case[s] else '' for s in ('faulty', 'cured')
            )
            rows.append(f'| {figure} | {" | ".join(cells)} |')
        parts += [f'## {name}', f'{case["source"]}: *{case["claim"]}*.', '\n'.join(rows)]
        for side, findings in case['findings'].items():
            parts.append(f'Found in the {side} run:' + _findings(findings))
        parts.append(f'![{name}]({name}.png)')
    return '\n\n'.join(parts) + '\n'


def _findings(findings):
    if not findings:
        return ' nothing.'
    lines = []
    for f in findings:
        evidence = ', '.join(f'{k} = {number(v)}' for k, v in f['evidence'].items())
        lines.append(f'\n- **{f["name"]}** ({f["severity"]}): {evidence}. Remedy: {f["remedy"]}.')
    return ''.join(lines)
