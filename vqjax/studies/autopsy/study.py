"""Runs the autopsy: every case's fault and cure, a table, a report and a plot a case."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

from vqjax import health
from vqjax.atomic import replace_file
from vqjax.results import environment
from vqjax.results.records import Results, RunFinding
from vqjax.results.summaries import METHODS, paired_difference, shorten
from vqjax.studies.autopsy import faults, plots
from vqjax.studies.autopsy.averages import drive
from vqjax.studies.autopsy.cases import CASES, Case
from vqjax.studies.autopsy.measures import Chart, averages
from vqjax.studies.autopsy.outcome import ENTRY, SIDES, CaseRecord, CaseResult, cases_of, finite
from vqjax.studies.reporting import notes, tables
from vqjax.studies.study import Conclude, Study
from vqjax.trainer import experiment
from vqjax.trainer.config import settings
from vqjax.trainer.config.settings import choose, cutting
from vqjax.trainer.data.sets import load_dataset
from vqjax.trainer.errors import RunError
from vqjax.trainer.files.display import show
from vqjax.trainer.files.workdir import Workdir
from vqjax.trainer.run import finished
from vqjax.trainer.step.task import Task


def prepare(config: dict[str, Any]) -> Study:
    """The cases, each with its fault and its cure.

    Args:
      config: the fields of every configuration, and `cases`; its methods are those of the cases.

    Raises:
      RunError: there are no such cases, or methods that they need are missing.
    """
    if not isinstance(config.get('cases'), str):
        raise RunError(f"cases is {config.get('cases')!r}: give 'all' or names of cases")
    names = choose(config['cases'], CASES, 'case')
    methods = dict.fromkeys(m for name in names for m in CASES[name].methods)
    plain = {field: value for field, value in config.items() if field != 'cases'}
    missing = [name for name in methods if name not in plain.get('quantizers', {})]
    if missing:
        raise RunError(f'quantizers lacks {", ".join(missing)}, which the cases need')
    plain['methods'] = ','.join(methods) or 'all'
    report = functools.partial(conclude, names=names)
    return Study(
        config=plain,
        conclude=report,
        parts=faults.PARTS,
        run=experiment.run if methods else _run_untrained,
    )


def _run_untrained(
    config: dict[str, Any], workdir: str, conclude: Conclude, parts: settings.Parts
) -> dict[str, Any]:
    """Cases of the averages alone: nothing to train."""
    settings.check(config, parts)
    _load(config)  # before a folder is made for it
    folder = Workdir(workdir, config)
    results = Results(config=config, environment=environment.environment(), methods={})
    plain = conclude(results, folder).plain()
    folder.write_json('results.json', plain)
    folder.close()
    return plain


def _load(config: Mapping[str, Any]) -> Any:
    where = config['data_dir'], cutting(config)
    size, digest = config.get('image_size', 0), config.get('data_digest', '')
    return load_dataset(config['dataset'], *where, size, digest)


def conclude(results: Results, folder: Workdir, names: list[str]) -> Results:
    """Measures the cases of finished runs, and writes and prints the reports."""
    dataset = _load(results.config)
    charts = {
        method: _chart(method, results, folder=folder, dataset=dataset)
        for method in results.methods
    }
    cases = {}
    for name in names:
        record = _case(CASES[name], charts, results=results, dataset=dataset)
        cases[name] = record.case.plain()
        plots.write(folder.path / f'{name}.png', name=name, case=CASES[name], record=record)
    results = dataclasses.replace(shorten(results), added={**results.added, ENTRY: cases})
    replace_file(folder.path / 'report.md', markdown(results))
    show(table(results))
    return results


def _chart(method: str, results: Results, folder: Workdir, dataset: Any) -> Chart:
    def restore() -> tuple[Task, dict[str, Any]]:
        checked = settings.check(dict(results.config), faults.PARTS)
        return finished.trained(checked, method, seed=0, workdir=folder.path, dataset=dataset)

    entry = results.methods[method]
    seed = entry.seeds[0]
    final = {**seed.figures, 'bits': float(entry.bits)}
    return Chart(
        history=folder.history(method, 0), final=final, counts=_uses(seed.counts), restore=restore
    )


def _case(case: Case, charts: Mapping[str, Chart], results: Results, dataset: Any) -> CaseRecord:
    """One case: what goes to results.json, and what its plot shows besides."""
    histories: dict[str, Sequence[Mapping[str, Any]]] = {}
    counts: dict[str, np.ndarray | None] = {}
    figures, findings = {}, {}
    for side, patient in zip(SIDES, (case.faulty, case.cured), strict=True):
        if isinstance(patient, str):
            histories[side], counts[side] = charts[patient].history, charts[patient].counts
            measured = case.measure(charts[patient], charts, dataset)
            found = [f for f in results.findings if f.method == patient]
        else:
            histories[side] = drive(patient)
            measured = averages(patient, histories[side])
            diagnosed = health.diagnose(histories[side], patient.quantizer.num_codes)
            found = [RunFinding(*finding) for finding in diagnosed]
        figures[side] = finite(measured)
        findings[side] = tuple(dataclasses.replace(f, evidence=finite(f.evidence)) for f in found)
    result = CaseResult(
        claim=case.claim,
        source=case.source,
        seen=case.seen,
        findings=findings,
        figures=figures,
    )
    plain = {side: [finite(record) for record in found] for side, found in histories.items()}
    return CaseRecord(result, plain, counts)


def _uses(counts: np.ndarray | None) -> np.ndarray | None:
    """Uses of each code on the test split by position, [positions, K]; None without codes."""
    return None if counts is None else counts.reshape(-1, counts.shape[-1])


def number(value: float | None) -> str:
    """About four digits."""
    if value is None:
        return 'not finite'
    return f'{value:.4f}'.rstrip('0').rstrip('.') if 1e-3 <= abs(value) < 1e4 else f'{value:.3g}'


def table(results: Results) -> Table:
    """Every figure of every case, faulty beside cured, and the faulty run's findings."""
    found = Table(title='autopsy', box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    found.add_column('case', style='bold')
    found.add_column('figure')
    for heading in ('faulty', 'cured'):
        found.add_column(heading, justify='right')
    found.add_column('found in the faulty run')
    for name, case in cases_of(results).items():
        findings, cured = ([f.name for f in case.findings[side]] for side in SIDES)
        notes = findings + ([f'cured: {", ".join(cured)}'] if cured else [])
        _, *rows = _figures(case)
        for row in range(max(len(rows), len(notes))):
            cells = [
                name if row == 0 else '',
                *(rows[row] if row < len(rows) else [''] * 3),
                notes[row] if row < len(notes) else '',
            ]
            found.add_row(*(escape(cell) for cell in cells))
        found.add_section()
    return found


def markdown(results: Results) -> str:
    """The text of report.md."""
    cases = cases_of(results)
    parts = [
        '# Faults that collapse a codebook, one by one',
        f'Each of these {len(cases)} faults was reported from a project whose codebook collapsed. '
        'Every fault is shown beside its cure, and the two runs differ in nothing else. They were '
        f'trained on {results.config["dataset"]}. {_of_runs(results)} The sentence in italics is '
        'what the project made of the fault. The sources are five working notes, which '
        '`docs/sources.md` describes.',
    ]
    for name, case in cases.items():
        parts += [
            f'## {name.replace("_", " ").capitalize()}',
            f'{case.source.capitalize()}: *{case.claim}*. Case `{name}`.',
            f'![{name.replace("_", " ")}: faulty and cured]({name}.png)',
            case.seen,
            tables.markdown(_figures(case)),
        ]
        for side, findings in case.findings.items():
            parts += _findings(side, findings)
    several = list(_seed_rows(results))
    if len(several) > 1:
        parts += [
            f'## Accuracy and perplexity over {results.config["seeds"]} seeds',
            tables.markdown(several),
            f'95% interval: {METHODS[notes.covered(results.methods)]}, of the faulty runs compared '
            'with the cured ones with the same seed. Perplexity is that of the test split.',
        ]
    parts += [
        '## How it was made',
        tables.made_by(
            results.command or 'python train.py --config configs/autopsy.py', results.environment
        ),
    ]
    return '\n\n'.join(parts) + '\n'


def _of_runs(results: Results) -> str:
    """Which runs the figures of the cases are of."""
    number = results.config['seeds']
    if number == 1:
        return 'Each is one run, with seed 0, so small differences of accuracy mean nothing.'
    return (
        'The pictures and figures of each case are of the run with seed 0; the last table is of '
        f'{number} seeds.'
    )


def _seed_rows(results: Results) -> Iterator[list[str]]:
    """Accuracy and perplexity of every trained case over the seeds; the headings alone for one."""
    yield ['case', 'accuracy %, faulty', 'cured', 'difference, points', '95% interval',
           'perplexity, faulty', 'cured']  # fmt: skip
    for name in cases_of(results):
        patients = [p for p in (CASES[name].faulty, CASES[name].cured) if isinstance(p, str)]
        if results.config['seeds'] == 1 or len(patients) < 2:
            continue
        faulty, cured = (results.methods[patient] for patient in patients)
        apart = paired_difference(faulty.seeds, cured.seeds)
        yield [
            name.replace('_', ' '),
            tables.percent(faulty.accuracy),
            tables.percent(cured.accuracy),
            tables.points(apart),
            tables.points_range(apart),
            *(f'{method.summary["perplexity"].mean:.1f}' for method in (faulty, cured)),
        ]


def _figures(case: CaseResult) -> Iterator[list[str]]:
    """Every figure of a case, faulty beside cured."""
    yield ['figure', *SIDES]
    for figure in dict.fromkeys([*case.figures['faulty'], *case.figures['cured']]):
        told = (case.figures[side] for side in SIDES)
        yield [figure, *(number(side[figure]) if figure in side else '' for side in told)]


def _findings(side: str, findings: Sequence[RunFinding]) -> list[str]:
    """What the diagnosis says of one run, as paragraphs."""
    if not findings:
        return [f'The diagnosis finds nothing wrong with the {side} run.']
    lines = []
    for f in findings:
        evidence = ', '.join(f'{k} = {number(v)}' for k, v in f.evidence.items())
        lines.append(f'- **{f.name}** ({f.severity}): {evidence}. Remedy: {f.remedy}.')
    return [f'The diagnosis of the {side} run:', '\n'.join(lines)]
