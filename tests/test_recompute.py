"""docs/recompute.py and the library come to the same verdicts and figures, each by its own code."""

import importlib
import pathlib
import re
import sys

import numpy as np
import pytest

from vqjax import intervals, metrics
from vqjax.results.records import Results
from vqjax.studies import answer
from vqjax.studies.remedies import verdicts

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / 'docs'
REMEDIES = sorted(
    str(path.parent.relative_to(DOCS / 'remedies'))
    for path in (DOCS / 'remedies').rglob('results.json')
)


@pytest.fixture(scope='module')
def recompute():
    sys.path.insert(0, str(DOCS))
    yield importlib.import_module('recompute')
    sys.path.remove(str(DOCS))
    sys.modules.pop('recompute')


@pytest.fixture(scope='module')
def rows(recompute):
    return {row.number: row for row in recompute.rows()}


def load(name):
    return Results.load(DOCS / f'{name}.json')


def test_it_imports_nothing_of_the_library():
    text = (DOCS / 'recompute.py').read_text()
    assert not re.search(r'^\s*(from|import) vqjax', text, re.MULTILINE)


def test_every_sentence_has_a_rule_a_verdict_and_figures(recompute, rows):
    protocol = (DOCS / 'answer' / 'protocol.md').read_text()
    second = protocol[protocol.index('# Second part') :]
    ruled = set(re.findall(r'^\| ([0-9]+)', second, re.MULTILINE))
    assert ruled == {str(n) for n in range(1, 34)}
    assert {re.sub(r'[abc]$', '', number) for number in rows} == {str(n) for n in range(1, 34)}
    known = {'holds', 'fails', 'in part', 'undecided', 'open', 'not testable here'}
    for row in rows.values():
        assert row.verdict in known and row.figures and row.rule
        # What is open says what would decide it.
        assert row.verdict != 'open' or 'decide' in row.figures


def test_both_programs_come_to_the_same_verdicts(rows):
    cifar10, digits = load('cifar10/results'), load('comparison/results')
    found = answer.verdicts(
        digits=digits,
        deals=load('comparison/deals'),
        cifar10=cifar10,
        finetuned=load('cifar10/finetune/results'),
        scratch=load('cifar10/scratch/results'),
        behaviour=load('behaviour/results'),
        scenes=load('comparison/scenes'),
        autopsy=load('autopsy/results'),
        others={
            name: load(f'{name}/results')
            for name in (
                'remedies/digits',
                'remedies/mnist',
                'remedies/mnist/longer',
                'comparison/more',
                'cifar10/tuned',
            )
            if (DOCS / name).exists()
        },
    )
    ours = [rows[number].verdict for number in ('1', '5', '20', '26a', '26b', '26c')]
    assert [v.verdict for v in found] == ours


def test_both_programs_come_to_the_same_intervals(recompute):
    cifar10 = load('cifar10/results')
    for a, b in (('vq_ema-8', 'none'), ('product-12', 'vq_ema-12')):
        expected = 100 * np.array(answer.compare(cifar10, a, b))
        assert recompute.less('cifar10/results', a, b) == pytest.approx(expected, abs=1e-9)
    rng = np.random.default_rng(0)
    values = rng.normal(size=5)
    assert recompute.student(values, 0.25) == pytest.approx(intervals.corrected_t(values, 0.25))
    assert recompute.wilson(3, 10)[1:] == pytest.approx(
        [100 * x for x in metrics.wilson_interval(3, 10)[1:]]
    )


@pytest.mark.parametrize('name', REMEDIES)
def test_reports_of_remedies_agree_with_the_answer(recompute, name):
    """On each set; the answer then takes both together."""
    results, path = load(f'remedies/{name}/results'), f'remedies/{name}/results'
    for method, found in results.methods.items():
        if found.spec is not None:
            assert recompute.falls(path, method) == sum(s.figures['collapsed'] for s in found.seeds)
    for remedy in results.methods.keys() & verdicts.CLAIMS.keys() - {'none'}:
        kind = verdicts.CLAIMS[remedy][2]
        said = verdicts.holds(remedy, results)
        if kind == verdicts.CURES:
            assert said == recompute.cure(path, remedy), remedy
        if kind == verdicts.SAFE:
            assert (said == 'fails') == bool(recompute.falls(path, remedy)), remedy
        assert f'| {said}' in (DOCS / 'remedies' / name / 'report.md').read_text()


def test_a_remedy_holds_where_it_cures_on_both_sets(recompute):
    both = [load(f'remedies/{name}/results') for name in ('digits', 'mnist/longer')]
    cures = [name for name, claim in verdicts.CLAIMS.items() if claim[2] == verdicts.CURES]
    read = [name for name in cures if all(name in results.methods for results in both)]
    assert len(read) > 10
    for remedy in read:
        said = {verdicts.holds(remedy, results) for results in both}
        assert recompute.cured(remedy) == (said.pop() if len(said) == 1 else 'in part'), remedy


def test_readme_gives_the_figures_of_the_answer(recompute):
    """Accuracies and collapses in the README's lines on remedies are those recomputed here."""
    text = (ROOT / 'README.md').read_text()
    places = {
        'digits': 'digits',
        'mnist': 'MNIST after 560 steps',
        'mnist/longer': 'MNIST after 1,680',
    }
    for name, place in places.items():
        line = re.search(rf'^- On {place}, .*', text, re.MULTILINE)[0]
        path, remedies = f'remedies/{name}/results', ('init_kmeans', 'revival', 'l2_normalised')
        accuracy = {
            method: f'{recompute.mean(path, method, "accuracy", 100).mean:.1f}%'
            for method in ('weak', *remedies, 'none')
        }
        # In the order of the sentence: the setup, its remedies, the network without a quantizer.
        assert re.findall(r'[0-9.]+%', line) == list(accuracy.values())
        fallen, runs = re.search(r'([0-9]+) of ([0-9]+) runs', line).groups()
        assert int(fallen) == recompute.falls(path, 'weak')
        assert int(runs) == len(recompute.seeds(path, 'weak'))
        none = not any(recompute.falls(path, method) for method in remedies)
        assert f'{"none" if none else "some"} of these runs collapsed' in line


def test_readme_and_answer_agree_on_digits_and_cifar10(recompute):
    """The differences in the README's table of the comparison are those recomputed here."""
    text = (ROOT / 'README.md').read_text()
    for shown, trial, method in (
        ('VQ-EMA, 256 codes', 'vq_ema', 'vq_ema-8'),
        ('FSQ, 64,000 codes', 'fsq', 'fsq-16'),
        ('RVQ, 4 x 256 codes', 'rvq', 'rvq-32'),
    ):
        cells = re.search(rf'^\| {shown} \|(.*)\|$', text, re.MULTILINE)[1].split('|')
        assert cells[4].strip() == str(recompute.less('cifar10/results', method, 'none'))
        assert cells[2].strip() == str(recompute.nested(trial))
