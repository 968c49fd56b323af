"""The benchmarks run, and their JSON has what the tables and plots are drawn from."""

import functools
import importlib
import json
import math
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

FOLDER = Path(__file__).parent.parent / 'benchmarks'


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run a benchmark with --quick; its results as written."""
    monkeypatch.syspath_prepend(FOLDER)

    def run(name, written=None):
        written = written or name
        module = importlib.import_module(name)
        module.main(['--quick', '--out', str(tmp_path)])
        results = json.loads((tmp_path / f'{written}.json').read_text())
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
        return results, tmp_path / f'{written}.png'

    yield run
    # Their names are common ones: no later test should import these instead.
    for name in (
        'calls',
        'common',
        'nearest',
        'tiles',
        'quantizers',
        'training',
        'fit',
        'retrieval',
        'distortion',
        'image_features',
        'usage',
        'codebook_size',
        'unseen',
        'pipeline',
        'scaling',
        'hsmm',
        'trainer',
        'memory',
        'versions',
    ):
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


@pytest.mark.slow
def test_calls_of_single_vectors(run):
    results, _ = run('calls')
    assert {row['method'] for row in results['rows']} > {'quantize', 'decode', 'update'}
    for row in results['rows']:
        assert min(row['us'].values()) > 0 and row['ratio'] > 0
    assert results['worst'] == max(results['rows'], key=lambda row: row['ratio'])


@pytest.mark.slow
def test_quantizers_and_training(run):
    for name in ('quantizers', 'training'):
        results, plot = run(name)
        for row in results['steps'].values():
            assert row['runs'] and row['compile_s'] > 0
            # torch is left out of a quick run: no ratio is invented.
            assert row['speedup'] is None
        assert results['against_K'] and results['against_N']
        assert _is_png(plot)


def test_a_peer_in_a_process_of_its_own_tells_its_time(run):
    common = importlib.import_module('common')
    sleeper = functools.partial(functools.partial, time.sleep)
    with common.elsewhere(sleeper, 0.02) as peer:
        times = common.measure({'peer': peer, 'ours': lambda: None}, 2)
    assert min(times['peer']) >= 20 and len(times['peer']) == len(times['ours']) == 2
    with common.elsewhere(functools.partial, time.sleep) as peer, pytest.raises(SystemExit):
        peer()  # sleeps for no number of seconds, which fails


@pytest.mark.slow
def test_fit_has_no_more_error_than_faiss(run):
    pytest.importorskip('faiss')
    results, _ = run('fit')
    for row in results['fits'].values():
        assert row['error']['vqjax'] <= row['error']['faiss']
        assert row['error']['vqjax'] == pytest.approx(row['error']['faiss'], rel=0.1)
        assert row['iterations']['vqjax'] <= row['iterations']['faiss']
        assert row['speedup'] > 0 < row['encode']['speedup']
        assert row['parts']['start_ms'] > 0


@pytest.mark.slow
def test_a_version_beside_itself_does_the_same(run, monkeypatch, tmp_path):
    versions = importlib.import_module('versions')
    folder = ['--quick', '--out', str(tmp_path)]
    versions.main([*folder, '--against', str(FOLDER.parent)])
    results = json.loads((tmp_path / 'versions.json').read_text())
    assert len(results['rows']) > 10 and not results['missing']
    for row in results['rows'].values():
        low, high = row['range']
        assert 0 < low <= row['ratio'] <= high
    errors = results['rows']['fit, product']['error']
    assert errors[versions.OURS] == errors[versions.OTHER] > 0
    with pytest.raises(SystemExit, match='ended'):  # a folder without vqjax
        versions.main([*folder, '--against', str(tmp_path)])


@pytest.mark.slow
def test_tiles_of_every_size_choose_the_same_codes(run):
    results, _ = run('tiles')
    module = sys.modules['tiles']
    (row,) = results['rows']
    assert list(row['of_the_rule']) == ['1,024 x 256', '1,024 x 384', 'groups of 1']
    given = module.search._data(row['N'], row['D'], row['K'])
    small = module.nearest._Tile(256, lambda *_: 100, 2**12)
    np.testing.assert_array_equal(
        module.searcher(small)(*given), module.nearest.nearest_codes(*given)
    )


@pytest.mark.slow
def test_search_over_codes_has_the_recall_of_faiss(run):
    pytest.importorskip('faiss')
    results, _ = run('retrieval')
    for row in results['rows']:
        assert row['recall']['vqjax'] == pytest.approx(row['recall']['faiss'], abs=0.1)
        assert row['runs']['vqjax']['min_ms'] > 0 <= row['collisions']['vqjax'] <= 1


@pytest.mark.slow
def test_the_sequence_model_has_the_likelihood_of_hmmlearn(run):
    pytest.importorskip('hmmlearn')
    results, _ = run('hsmm')
    found = results['log_likelihood']
    assert found['vqjax'] == pytest.approx(found['hmmlearn'], rel=1e-5)
    for row in results['rows']:
        assert all(times['vqjax']['min_ms'] > 0 for times in row['runs'].values())
        assert row['memory_mb']['EM step'] < 1
    assert results['rows'][0]['runs']['EM step']['speedup'] > 0
    assert results['found']['variational, mergers']['states'] == [4]


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


@pytest.mark.slow
def test_distortion(run, monkeypatch):
    pytest.importorskip('faiss')
    results, plot = run('distortion')
    rows = {(r['set'], r['family'], r['bits']): r for r in results['rows']}
    for family in ('VQ-EMA', 'Product', 'Residual', 'faiss PQ'):
        assert rows['patches', family, 8]['error'] < rows['patches', family, 4]['error'] < 1
    # Noise that sums up is a Gaussian: at equal bits no code of one vector is below its bound.
    for (name, _, bits), row in rows.items():
        bound = dict(results['sets'][name]['gaussian'])[bits]
        # Of one covariance the Gaussian needs most: a network's features may need less.
        assert row['error'] > bound or name == 'features'
    assert rows['features', 'VQ-EMA', 8]['error'] < rows['features', 'VQ-EMA', 4]['error'] < 1
    ends = ('', '_features', '_normal', '_embeddings')
    assert all(_is_png(plot.with_stem(f'distortion{end}')) for end in ends)
    # Done before: nothing is measured again.
    monkeypatch.setattr(sys.modules['distortion'], 'ours', None)
    monkeypatch.setattr(sys.modules['distortion'], 'theirs', None)
    assert run('distortion')[0]['rows'] == results['rows']


def test_the_families_of_the_distortion_have_the_bits_that_they_are_listed_at(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    distortion = importlib.import_module('distortion')
    for name, vectors in distortion.SETS.items():
        for family, rates in vectors.rates.items():
            made = [
                (bits, distortion.FAMILIES[family](bits))
                for bits in rates
                if family in distortion.FAMILIES
            ]
            for bits, quantizer in made:
                # 240 vectors of E8 and 196,560 of the Leech lattice are no powers of two.
                assert quantizer is None or bits - 0.42 < quantizer.bits <= bits, (name, family)
    for name in ('common', 'distortion', 'image_features'):
        sys.modules.pop(name)


@pytest.mark.slow
def test_image_features_tell_classes_apart_and_are_the_same_each_time(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    distortion = importlib.import_module('distortion')
    images = distortion.stripes(2000, 0), distortion.stripes(500, 1)
    once, again = (
        distortion.image_features.learned(*images[0], *images[1], width=2, epochs=2)
        for _ in range(2)
    )
    fitted, tested, accuracy = once
    assert fitted.shape == (2000, 16) and tested.shape == (500, 16) and accuracy > 0.65
    np.testing.assert_array_equal(tested, again[1])
    for name in ('common', 'distortion', 'image_features'):
        sys.modules.pop(name)


def test_the_embeddings_have_unit_length_and_the_spectrum_that_was_said(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    distortion = importlib.import_module('distortion')
    z = distortion.embeddings(20_000, 0)
    assert np.linalg.norm(z, axis=1) == pytest.approx(1, abs=1e-5)
    spectrum = np.linalg.eigvalsh(z.T @ z)[::-1]
    # Variances 1 / i, but for what unit length takes from the first.
    assert spectrum[9] / spectrum[39] == pytest.approx(4, rel=0.15)
    for name in ('common', 'distortion', 'image_features'):
        sys.modules.pop(name)


@pytest.mark.slow
def test_usage(run):
    results, plot = run('usage', 'usage_64')
    found = {row['method']: row['curve'] for row in results['rows']}
    assert {'VQ', 'IBQ', 'linear (SimVQ)', 'VQBridge, codes learned'} <= set(found)
    for curve in found.values():
        assert [0, 10] == [curve[0][0], curve[-1][0]]
        assert curve[-1][2] < curve[0][2], 'the error falls'
        assert all(0 < used <= results['even_use'] for _, used, _ in curve)
    assert _is_png(plot)


@pytest.mark.slow
def test_codebook_size(run):
    results, plot = run('codebook_size')
    found = {(row['method'], row['K']): row for row in results['rows']}
    methods = {'VQ', 'VQ-EMA', 'VQ-EMA, revival', 'FSQ', 'FSQ, standardized'}
    assert found.keys() == {(method, size) for method in methods for size in (16, 256)}
    assert all(0 < used <= 1 for row in found.values() for used in row['used'])
    for method in ('VQ-EMA', 'VQ-EMA, revival'):
        assert found[method, 256]['error'] < found[method, 16]['error']
    assert _is_png(plot)
    for size, levels in sys.modules['codebook_size'].LEVELS.items():
        assert math.prod(levels) == pytest.approx(size, rel=0.07)
    # Done before: nothing is measured again.
    sys.modules['codebook_size'].measured = None
    assert run('codebook_size')[0]['rows'] == results['rows']


@pytest.mark.slow
def test_unseen(monkeypatch, tmp_path):
    pytest.importorskip('tensorflow_datasets')
    monkeypatch.syspath_prepend(FOLDER)
    unseen = importlib.import_module('unseen')
    command = ['--quick', '--methods', 'none,sim_vq', '--out', str(tmp_path)]
    unseen.main(command)
    path = tmp_path / 'unseen.json'
    found = json.loads(path.read_text())['rows']['noise']
    assert found.keys() == {'none', 'sim_vq'} and 'active_codes' not in found['none']
    for row in found.values():
        # Brightness tells the classes of noise apart.
        assert len(row['accuracy']) == 2 and min(row['accuracy']) > 0.9
        assert row['early'] == row['end'], 'a run of 8 steps ends before 96'
    assert 1 <= found['sim_vq']['active_codes'] <= 256
    # Done before: nothing is trained again.
    monkeypatch.setattr(unseen.experiment, 'run', None)
    unseen.main(command)
    assert json.loads(path.read_text())['rows']['noise'] == found
    for name in ('common', 'unseen'):
        sys.modules.pop(name)


def test_the_scenes_are_digits_before_backgrounds(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    unseen = importlib.import_module('unseen')
    stroke = np.zeros((40, 28, 28, 1))
    stroke[:, 6:22, 12:16] = 255
    monkeypatch.setattr(unseen, '_read', lambda *_: (stroke, np.zeros(40, int)))
    scenes, _ = unseen._scenes(None)
    assert scenes.shape == (40, 16, 16) and scenes.min() >= 0 and scenes.max() <= 255
    assert scenes[:, 6:10, 7:9].mean() > 80 + scenes[:, :, :3].mean()
    assert len(np.unique(scenes.mean((1, 2)))) == 40, 'each has a background of its own'
    for name in ('common', 'unseen'):
        sys.modules.pop(name)


def test_the_bound_of_independent_features_is_that_of_one(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    distortion = importlib.import_module('distortion')
    z = np.random.default_rng(0).standard_normal((200_000, 4))
    # D(R) = 2^(-2 R / D) for D independent features of one variance.
    assert distortion.gaussian_bound(z, 8) == pytest.approx(2 ** (-2 * 8 / 4), rel=0.02)
    for name in ('common', 'distortion', 'image_features'):
        sys.modules.pop(name)


@pytest.mark.slow
def test_trainer(run):
    results, _ = run('trainer')
    assert results['rows']['digits'].keys() == {'none', 'VQ-EMA', 'RVQ', 'FSQ'}
    for row in results['rows']['digits'].values():
        assert row['runs'].keys() == {'trainer', 'bare loop', 'input alone'}
        low, high = row['range']
        assert 0 < low <= row['ratio'] <= high and min(row['images_per_s'].values()) > 0


def test_the_bare_loop_of_the_trainers_benchmark_is_the_same_training(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    trainer = importlib.import_module('trainer')
    from vqjax.trainer import experiment
    from vqjax.trainer.run.runs import Run

    with trainer.opened(trainer.CASES['digits'], '', quick=True) as context:
        run = Run.start(context, 'vq_ema', 0, experiment.stages(context, 'vq_ema'))
        step, state, batch = trainer.start_bare(run)
        state, _ = step(state, batch)  # the first batch of the run
        run.take(1)
        taken = run.form.read(run.state)
        run.recorder.close()
        run.checkpoints.close()
    # A warm-up begins at a rate of 0, so gradients are compared by the moments of the optimizer.
    for bare, ours in ((state[1], taken.stats), (state[2], taken.opt_state)):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), bare, ours
        )
    for name in ('common', 'trainer'):
        sys.modules.pop(name)


@pytest.mark.slow
def test_memory(run):
    results, _ = run('memory')
    for row in results['rows'].values():
        ours = row['runs']['vqjax']
        # What XLA says, and pages of its threads' stacks.
        assert ours['peak'] < ours['temporary'] + ours['output'] + 2**20


@pytest.mark.slow
def test_pipeline(run):
    results, _ = run('pipeline')
    assert results['rows'].keys() == {'mnist', 'cifar10'}
    for row in results['rows'].values():
        assert row['runs'].keys() == {'pipeline', 'resident batch'} and row['ratio'] > 0


def test_results_of_two_runs_are_compared_by_every_number_but_the_seconds(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(FOLDER)
    compare = importlib.import_module('compare')

    def write(name, **result):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'results.json').write_text(json.dumps({'methods': [result]}))
        return tmp_path / name

    first = write('first', accuracy=0.5, seconds=1.0, counts=[100, 3])
    same = write('same', accuracy=0.5, seconds=9.0, counts=[100, 3])
    assert compare.largest_difference(first, same) == 0
    other = write('other', accuracy=0.5, seconds=1.0, counts=[101, 3])
    assert compare.largest_difference(first, other) == pytest.approx(0.01)
    assert compare.largest_difference(first, write('less', accuracy=0.5)) == float('inf')
    for name in ('common', 'compare'):
        sys.modules.pop(name)


@pytest.mark.slow
def test_scaling(run, monkeypatch):
    monkeypatch.setenv('XLA_FLAGS', '')  # what it reads is the compiled program, as shipped
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


@pytest.fixture
def accelerator(monkeypatch):
    """The modules accelerator, accelerator_search and accelerator_train."""
    monkeypatch.syspath_prepend(FOLDER)
    names = ('accelerator', 'accelerator_search', 'accelerator_train')
    yield [importlib.import_module(name) for name in names]
    for name in (*names, 'common', 'quantizers', 'pipeline'):
        sys.modules.pop(name, None)


@pytest.fixture
def no_accelerator():
    if jax.default_backend() != 'cpu':
        pytest.skip('it would run')


def test_accelerator_says_what_it_would_do_without_one(
    accelerator, no_accelerator, tmp_path, capsys
):
    out = tmp_path / 'results'
    accelerator[0].main(['--out', str(out), '--minutes', '3'])
    said = capsys.readouterr().out
    assert said.startswith('No GPU or TPU here') and '3 minutes' in said and not out.exists()
    assert all(f'\n{part}: ' in said for part in ('search', 'steps', 'train'))
    accelerator[0].main(['--parts', 'steps'])
    assert 'configs/cifar10.py' not in capsys.readouterr().out


@pytest.mark.parametrize(
    'flags, said',
    [
        (['--parts', 'search,serch'], "unknown part 'serch': choose among search, steps, train"),
        (['--minutes', '0'], '--minutes is 0.0: give more than 0'),
        (['--minutes', 'nan'], '--minutes is nan'),
        (['--minutes', 'many'], "invalid float value: 'many'"),
        (['--cpu-time'], '--cpu-time leaves out what the accelerator does'),
        (['--part-time'], 'unrecognized arguments: --part-time'),
    ],
)
def test_accelerator_mistakes_are_one_line(accelerator, flags, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        accelerator[0].main(flags)
    assert said in stopped.value.code and '\n' not in stopped.value.code
    assert capsys.readouterr() == ('', '')


@pytest.mark.slow
def test_accelerator_search_and_steps(accelerator, tmp_path, capsys):
    command = ['--quick', '--parts', 'search,steps', '--out', str(tmp_path)]
    accelerator[0].main(command)
    files = [tmp_path / f'cpu_{part}.json' for part in ('search', 'steps')]
    search, steps = (json.loads(file.read_text()) for file in files)
    cases = [(row['inputs'], row['precision']) for row in search['rows']]
    assert cases == [('float32', 'highest'), ('bfloat16', 'highest'), ('bfloat16', 'bfloat16')]
    for row in search['rows']:
        assert len(row['runs']) == 4 and not row['failed']
        assert all(run['median_ms'] > 0 for run in row['runs'].values())
        assert row['checks']['fused_differs_beyond_ties'] == 0
        assert len(row['checks']['largest_excess_in_roundings']) == 3
        assert max(row['checks']['largest_excess_in_roundings'].values()) <= 4
    # Neither small shapes nor an interpreted kernel decide.
    assert search['recommendation']['default'] is None
    for row in steps['rows'].values():
        assert row['vectors_per_s'] == pytest.approx(row['N'] / row['median_ms'] * 1e3, rel=0.01)
    # Done before: nothing is measured again, and a full run's figures are not replaced.
    capsys.readouterr()
    before = [file.stat().st_mtime_ns for file in files]
    accelerator[0].main(command)
    assert capsys.readouterr().out.count('done before') == 2
    files[1].write_text(json.dumps(steps | {'quick': False}))
    with pytest.raises(SystemExit):
        accelerator[0].main(command)
    assert 'holds a full run' in capsys.readouterr().err
    assert json.loads(files[1].read_text())['quick'] is False
    assert files[0].stat().st_mtime_ns == before[0]


def test_accelerator_search_without_its_kernel_keeps_the_rest(accelerator, monkeypatch):
    search, lower = accelerator[1], accelerator[1].lower

    def broken(name, *rest):
        if name == search.FUSED:
            raise RuntimeError('out of\nshared memory')
        return lower(name, *rest)

    monkeypatch.setattr(search, 'lower', broken)
    monkeypatch.setattr(search, 'CASES', search.CASES[:1])
    found = search.search(accelerator[0]._arguments(['--quick']))
    (row,) = found['rows']
    assert row['failed'] == {'fused': 'RuntimeError: out of shared memory'}
    assert row['runs'].keys() == {search.TILES, search.PRODUCT, search.ARGMIN}
    assert found['recommendation']['default'] == 'tiles'


def test_accelerator_search_tells_ties_from_wrong_codes(accelerator):
    z, codebook = np.float32([[1.0, 0.0], [0.0, 2.0]]), np.float32([[1, 1], [1, -1], [9, 9]])
    # Codes 0 and 1 are as near to the first row; the second row has one nearest.
    checks = accelerator[1]._checks(
        z, codebook, {'tiles': np.array([0, 0]), 'fused': np.array([1, 0])}
    )
    assert checks['fused_differs'] == 1 and checks['fused_differs_beyond_ties'] == 0
    checks = accelerator[1]._checks(
        z, codebook, {'tiles': np.array([0, 0]), 'fused': np.array([0, 1])}
    )
    assert checks['fused_differs_beyond_ties'] == 1
    # 0.5 |c|^2 - z.c is -1 for code 0 and 3 for code 1; |z||c| is at most 2 * 9 sqrt(2).
    excess = 4 / (18 * 2**0.5) * 2**24
    assert checks['largest_excess_in_roundings']['fused'] == pytest.approx(excess, rel=1e-6)


@pytest.mark.parametrize(
    'ratios, wrong, default',
    [((0.5, 0.9), 0, 'fused'), ((0.5, 1.1), 0, 'tiles'), ((0.5, 0.9), 1, 'tiles')],
)
def test_accelerator_default_is_the_kernel_where_it_is_right_and_faster_everywhere(
    accelerator, ratios, wrong, default
):
    excess = {'fused': 1.0, 'tiles': 0.5}
    checks = {'fused_differs_beyond_ties': wrong, 'largest_excess_in_roundings': excess}
    row = {'inputs': 'float32', 'precision': 'highest', 'checks': checks, 'failed': {}}
    rows = [row | {'fused_to_tiles': ratio} for ratio in ratios]
    assert accelerator[1].recommend(rows)['default'] == default
    assert accelerator[1].recommend(rows[:1] + [row | {'failed': {'tiles': 'x'}}])['default'] in (
        (None,) if not wrong else ('tiles',)
    )
    # On a TPU there are tiles alone.
    alone = row | {'checks': {'largest_excess_in_roundings': {'tiles': 0.5}}}
    assert accelerator[1].recommend([alone])['default'] == 'tiles'


@pytest.mark.slow
def test_accelerator_train(accelerator, tmp_path):
    accelerator[0].main(['--quick', '--parts', 'train', '--out', str(tmp_path)])
    results = json.loads((tmp_path / 'cpu_train.json').read_text())
    assert 1 <= results['plan']['epochs'] <= 2 and results['plan']['epoch_s'] > 0
    assert results['config']['epochs'] == results['plan']['epochs']
    assert 0 <= results['methods']['vq_ema']['accuracy'] <= 1
    assert results['methods']['vq_ema']['perplexity'] >= 1


def test_accelerator_train_is_stopped_at_its_minutes_and_goes_on_as_planned(
    accelerator, monkeypatch, tmp_path
):
    from vqjax.trainer import errors, experiment
    from vqjax.trainer.run import stopping

    def until_asked(config, workdir):
        with stopping.StopRequest() as stop:
            for _ in range(1000):
                if stop():
                    raise errors.Stopped(stop.number)
                time.sleep(0.01)

    plans = iter([{'epochs': 7, 'warmup_epochs': 1.5}])
    monkeypatch.setattr(accelerator[2], '_short_run', lambda *_: next(plans))
    monkeypatch.setattr(experiment, 'run', until_asked)
    command = ['--quick', '--parts', 'train', '--out', str(tmp_path)]
    with pytest.raises(SystemExit, match='the same command goes on'):
        accelerator[0].main([*command, '--minutes', '1e-6'])
    assert not (tmp_path / 'cpu_train.json').exists()
    asked = []

    def whole(config, workdir):
        asked.append((config['epochs'], config['warmup_epochs']))
        return {'methods': {}}

    monkeypatch.setattr(experiment, 'run', whole)
    accelerator[0].main(command)
    assert asked == [(7, 1.5)] and (tmp_path / 'cpu_train.json').exists()


def test_accelerator_epochs_that_fit(accelerator):
    # (400 / 4 - 1.5 * 20) / (1.25 * 5) = 11.2
    assert accelerator[2].epochs_that_fit(400, 4, 20, 5, 60) == 11
    assert accelerator[2].epochs_that_fit(4000, 4, 20, 5, 60) == 60
    assert accelerator[2].epochs_that_fit(40, 4, 20, 5, 60) == 1
