"""The benchmarks run, and their JSON has what the tables and plots are drawn from."""

import importlib
import json
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / 'benchmarks'


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run a benchmark with --quick; its results as written."""
    monkeypatch.syspath_prepend(FOLDER)

    def run(name):
        module = importlib.import_module(name)
        module.main(['--quick', '--out', str(tmp_path)])
        results = json.loads((tmp_path / f'{name}.json').read_text())
        environment = results['environment']
        assert {
            'cpu',
            'cores',
            'cores_used',
            'device',
            'load_average',
            'versions',
        } <= environment.keys()
        assert environment['versions']['jax']
        return results, tmp_path / f'{name}.png'

    yield run
    # Their names are common ones: no later test should import these instead.
    for name in ('common', 'nearest', 'quantizers', 'training', 'fit', 'pipeline', 'scaling'):
        sys.modules.pop(name, None)


def _is_png(path):
    return path.read_bytes().startswith(b'\x89PNG') and path.stat().st_size > 10_000


def test_nearest(run):
    pytest.importorskip('faiss')
    results, plot = run('nearest')
    for row in results['search']['rows']:
        assert row['runs']['vqjax']['median_ms'] >= row['runs']['vqjax']['min_ms'] > 0
        assert row['ratio_to_faiss'] > 0
        assert row['float64']['largest_excess_in_roundings'] < 4
    assert results['search']['geometric_mean_ratio_to_faiss'] > 0
    assert results['memory']['bytes'] < 64e6
    assert [row['K'] for row in results['against_K']] == [64, 256]
    assert _is_png(plot)


def test_quantizers_and_training(run):
    for name in ('quantizers', 'training'):
        results, plot = run(name)
        for row in results['steps'].values():
            assert row['runs'] and row['compile_s'] > 0
            # torch is left out of a quick run: no ratio is invented.
            assert row['speedup'] is None
        assert results['against_K'] and results['against_N']
        assert _is_png(plot)


def test_fit_errors_are_those_of_faiss_to_a_few_percent(run):
    pytest.importorskip('faiss')
    results, _ = run('fit')
    for row in results['fits'].values():
        assert row['error']['vqjax'] == pytest.approx(row['error']['faiss'], rel=0.1)
        assert row['speedup'] > 0


def test_ratios_are_medians_over_rounds(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    common = importlib.import_module('common')
    times = {'a': [1.0, 20.0, 3.0], 'b': [2.0, 20.0, 6.0]}
    assert common.ratio(times, 'a', 'b') == 0.5
    assert common.ratio(times, 'a', 'absent') is None
    assert common.geometric_mean([0.5, 2.0, 1.0]) == 1.0
    assert common.geometric_mean([0.5, None]) is None
    order = []
    runs = {'a': lambda: order.append('a'), 'b': lambda: order.append('b')}
    assert [len(t) for t in common.measure(runs, 2).values()] == [2, 2]
    assert order == ['a', 'b'] * 3
    sys.modules.pop('common')


def test_the_tables_of_the_readme_are_those_of_the_json(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    tables = importlib.import_module('tables')
    text = (FOLDER / 'README.md').read_text()
    assert tables.render(text) == text
    # Every block was filled in: none is followed at once by its end.
    assert '-->\n<!-- end -->' not in text
    sys.modules.pop('tables')


def test_pipeline(run):
    results, _ = run('pipeline')
    assert results['rows'].keys() == {'mnist', 'cifar10'}
    for row in results['rows'].values():
        assert row['runs'].keys() == {'pipeline', 'resident batch'} and row['ratio'] > 0


def test_scaling(run):
    results, _ = run('scaling')
    for row in results['collectives']:
        # Sums and counts, and nothing that grows with the vectors.
        assert row['step'] == {'all-reduce': row['formula']}
        assert row['formula'] == 4 * row['K'] * (row['D'] + 1)
        assert sum(row['with revival'].values()) < row['z'] / 8
    one, *more = results['weak_scaling']
    for row in more:
        assert row['operations'] == pytest.approx(one['operations'], rel=0.05)
        assert row['operations of a tile'] == pytest.approx(one['operations of a tile'], rel=0.05)
        assert row['tiles'] == one['tiles']
    whole, split = results['large_codebook']
    for part in ('arguments', 'temporary'):
        assert split[part] < 0.3 * whole[part]
    assert all(0 < row['efficiency'] < 1 for row in results['projection'])
