"""Accuracy against bits: the rates of the configuration, the rate that is enough, the report."""

import io
import json
import math
import platform
import re
import sys

import jax
import numpy as np
import pytest
from rich.console import Console
from support import ROOT, configuration, read_results, summary_of

from vqjax import health, make, metrics, quantizers, studies
from vqjax.metrics import Interval
from vqjax.results.records import Results, read_counts
from vqjax.studies.rates import curves, plots, report
from vqjax.studies.rates.curves import Point, enough
from vqjax.trainer import errors
from vqjax.trainer.config import fields, settings
from vqjax.trainer.data import sets
from vqjax.trainer.run import tasks

ONE_CODEBOOK = ('vq_ema', 'sim_vq', 'gumbel')


@pytest.fixture(scope='module')
def config():
    return configuration('rates')


def levels_of(spec):
    return spec['inner']['levels']


def test_every_method_has_the_bits_that_its_name_says(config):
    found = {}
    for name, spec in config['quantizers'].items():
        if spec is None:
            continue
        family, rate, *_ = name.split('-')
        q = make(spec)
        assert q.bits == pytest.approx(quantizers.stages(q) * math.log2(q.num_codes), abs=1e-12)
        if family == 'fsq':  # 7 x 5^4 levels are 12.10 bits, 8 x 6 x 5 are 7.91
            assert q.bits == pytest.approx(math.log2(math.prod(levels_of(spec))), abs=1e-12)
            assert q.bits == pytest.approx(int(rate), abs=0.1)
        else:
            assert q.bits == int(rate)
        found.setdefault(family, set()).add(int(rate))
    assert {f: max(r) for f, r in found.items() if f in ONE_CODEBOOK} == dict.fromkeys(
        ONE_CODEBOOK, 12
    )
    assert all(r - {16} == {4, 6, 8, 10, 12} for r in found.values())
    assert {f for f, r in found.items() if 16 in r} == {'fsq', 'lfq', 'rvq', 'product'}


def test_levels_are_those_of_the_paper(config):
    """FSQ's paper, table 1, from 8 bits on; below them exact powers of two."""
    products = {
        int(name.split('-')[1]): math.prod(levels_of(spec))
        for name, spec in config['quantizers'].items()
        if name.startswith('fsq')
    }
    assert products == {4: 16, 6: 64, 8: 240, 10: 1000, 12: 4375, 16: 64000}


def test_every_method_builds_for_its_bottleneck_and_differs_in_nothing_else(config):
    given, dataset = settings.check(config), sets.load('digits')
    z = jax.ShapeDtypeStruct((1024, 2, 2, 128), np.float32)
    own = set(fields.FIELDS) - {'methods', 'overrides', 'quantizer_weight', 'bottleneck'}
    for name, method in given.methods.items():
        assert method.bottleneck == ('grid' if name.endswith('-grid') else 'vector')
        assert all(getattr(method, field) == config[field] for field in own), name
        tasks.make_task(given, name, dataset)
        if method.quantizer is not None and method.bottleneck == 'vector':
            params, state = jax.eval_shape(method.quantizer.init, jax.random.key(0), z)
            out = jax.eval_shape(method.quantizer.quantize, params, state, z)
            assert out.codes.shape == (1024, 2, 2, *method.quantizer.code_shape)
    vectors = {n: s for n, s in config['quantizers'].items() if not n.endswith('-grid')}
    assert config['quantizers'] == vectors | {f'{n}-grid': s for n, s in vectors.items()}


def test_an_argument_chooses_the_bottleneck():
    source = sys.modules['configs.rates']
    both, one, other = (set(source.get_config(k).quantizers) for k in ('both', 'vector', 'grid'))
    assert one | other == both and not one & other and len(one) == len(other) == 40
    with pytest.raises(errors.RunError, match='bottleneck is .cube.: choose one of both'):
        source.get_config('cube')


def points(*found):
    """Of (bits, low, mean) of the difference, with intervals as wide above as below."""
    return [
        Point(
            f'x-{bits}', bits, bits, Interval(0.9, 0.8, 1.0), Interval(m, lo, 2 * m - lo), 1, 0, 5
        )
        for bits, lo, m in found
    ]


@pytest.mark.parametrize(
    'found, shown, estimate',
    [
        ([(4, -0.1, -0.05), (6, -0.009, -0.001), (8, -0.001, 0.0)], 6, 6),
        ([(8, -0.001, 0.0), (6, -0.009, -0.001), (4, -0.1, -0.05)], 6, 6),  # in any order
        ([(4, -0.1, -0.05), (8, -0.06, -0.02)], None, None),  # never
        ([(4, -0.02, -0.005), (8, -0.015, -0.001)], None, 4),  # the interval crosses one point
        ([(4, -0.02, -0.005), (8, -0.0099, 0.001)], 8, 4),
        ([(4, -0.01, -0.009), (6, -0.011, -0.01), (8, 0.0, 0.0)], 8, 4),  # exactly one is too much
        ([(4, -0.03, -0.01)], None, None),
        ([(6, -0.1, -0.05), (6, -0.005, 0.0)], 6, 6),  # two of one rate: one of them is enough
        ([(4, -0.005, 0.0), (8, -0.1, -0.05)], 4, 4),  # a larger rate that falls behind again
        ([(7.906891, -0.005, 0.0)], 7.906891, 7.906891),
        ([], None, None),
    ],
)
def test_the_rate_that_is_enough_is_the_smallest_that_loses_less_than_a_point(
    found, shown, estimate
):
    given = enough(points(*found))
    assert [p and p.bits for p in given] == [shown, estimate]


def test_nothing_is_enough_without_something_to_compare_with():
    alone = [p._replace(difference=None) for p in points((4, 0.0, 0.0))]
    assert enough(alone) == (None, None)


def method(accuracies, bits=None, bottleneck='vector', evenness=0.5, collapsed=0):
    """An entry of results.json, with bits a token, over as many folds as accuracies."""
    seeds = [
        {'seed': s, 'accuracy': a, 'fold': {'repeat': 0, 'fold': s, 'test': 20, 'train': 60}}
        | {'ece': 0.02, 'scaled_ece': 0.01}
        for s, a in enumerate(accuracies)
    ]
    found = {'spec': None, 'bits': 4096.0}
    if bits is not None:
        for s, seed in enumerate(seeds):
            seed |= {'evenness': evenness, 'collapsed': float(s < collapsed)}
        image = bits * (4 if bottleneck == 'grid' else 1)
        spec = {'name': 'fsq', 'levels': (8, 6, 5) if bits % 1 else (4,) * int(bits / 2)}
        found = {'spec': spec, 'bits': image, 'bits_per_token': bits}
    overrides = {'bottleneck': bottleneck} if bottleneck != 'vector' else {}
    return found | {'summary': summary_of(seeds), 'seeds': seeds, 'overrides': overrides}


@pytest.fixture
def results():
    vector = np.array([0.98, 0.97, 0.99, 0.96, 0.98])
    grid = np.array([0.90, 0.91, 0.90, 0.92, 0.89])
    unsure = np.array([0.02, -0.03, 0.02, -0.03, 0.0])
    return {
        'config': {
            'dataset': 'digits', 'seeds': 5, 'epochs': 40, 'batch_size': 96, 'bottleneck': 'vector',
        },
        'environment': {'vqjax': '0'},
        'methods': {
            'none': method(vector),
            'fsq-8': method(vector - 0.005, 7.906891),
            'fsq-4': method(vector - 0.3, 4.0, collapsed=2),
            'vq_ema-4': method(vector + unsure, 4.0, evenness=0.25),
            'vq_ema-16': method(vector - 0.02, 16.0),
            'none-grid': method(grid, bottleneck='grid'),
            'vq_ema-4-grid': method(grid + 0.001, 4.0, 'grid', evenness=0.125),
        },
    }  # fmt: skip


def test_methods_are_compared_with_none_of_their_own_bottleneck(results):
    vector, grid = (curves.curves(read_results(results), kind) for kind in ('vector', 'grid'))
    assert [p.name for p in vector['fsq']] == ['fsq-4', 'fsq-8']  # by bits
    assert [p.difference.mean for p in vector['fsq']] == pytest.approx([-0.3, -0.005])
    assert grid['vq_ema'][0].difference.mean == pytest.approx(0.001)
    assert grid['vq_ema'][0].image_bits == 16.0
    # The grid's own; else the vector's, which is the same network; or none at all.
    ours, none = (
        np.mean([seed['accuracy'] for seed in results['methods'][name]['seeds']])
        for name in ('vq_ema-4-grid', 'none')
    )
    del results['methods']['none-grid']
    found = curves.curves(read_results(results), 'grid')['vq_ema'][0].difference
    assert found.mean == pytest.approx(ours - none)
    del results['methods']['none']
    assert curves.curves(read_results(results), 'grid')['vq_ema'][0].difference is None


def test_the_table_of_what_is_enough_follows_from_the_differences(results):
    assert list(report.enough_rows(read_results(results))) == [
        [
            'quantizer', 'vector, by the interval', 'vector, by the mean',
            'grid, by the interval', 'grid, by the mean',
        ],
        ['FSQ', '7.91', '7.91', 'not reached', 'not reached'],
        ['VQ-EMA', 'not reached', '4', '4', '4'],
    ]  # fmt: skip


def test_a_row_has_bits_accuracy_difference_use_and_collapses(results):
    header, four, eight, *_ = report.point_rows(read_results(results), 'vector')
    assert len(header) == len(four) == 12
    assert four[:3] == ['FSQ', '16', '4'] and four[9] == '2 of 5' and eight[9] == '0 of 5'
    assert header[10:] == ['ECE', 'ECE at fitted T'] and four[10:] == ['0.020', '0.010']
    assert eight[1:5] == ['240', '7.91', '7.91', '97.1']
    assert eight[6:9] == ['-0.5', '-0.5 to -0.5', '50%']
    # Of 5 folds, one test image for three of training: t4 sqrt(1/5 + 1/3) s either way.
    _, _, _, unsure, _ = report.point_rows(read_results(results), 'vector')
    s = np.std([0.02, -0.03, 0.02, -0.03, 0.0], ddof=1)
    half = 2.776445 * math.sqrt(1 / 5 + 1 / 3) * s
    assert unsure[7] == f'{100 * (-0.004 - half):+.1f} to {100 * (-0.004 + half):+.1f}'
    grid = list(report.point_rows(read_results(results), 'grid'))
    assert grid[1][:4] == ['VQ-EMA', '16', '4', '16'] and len(grid) == 2


def test_the_findings_are_those_of_the_results(results):
    said = report.findings(read_results(results))
    assert said[0] == (
        '**Vector, 1 token per image.** The network without a quantizer reaches 97.6% (95.3 to '
        '99.9). The fewest bits per token that lose less than 1 point, by the 95% interval: FSQ '
        '(7.91). By the mean: VQ-EMA (4), FSQ (7.91).'
    )
    assert said[1].startswith('**Grid, 4 tokens per image.**')
    assert 'by the 95% interval: VQ-EMA (4).' in said[1]
    text = '\n'.join(said)
    assert '-0.4 (VQ-EMA) to -30.0 (FSQ) at 4 bits' in text
    assert 'per image, as vector and as grid: VQ-EMA 95.6 and 90.5% at 16 bits.' in text
    assert '25% (`vq_ema-4`) to 50%' in text and '2 of 20 runs collapsed (`fsq-4` 2)' in text
    # A family that is never near is named.
    results['methods']['vq_ema-4'] = method([0.2] * 5, 4.0)
    assert 'No rate was enough for VQ-EMA.' in report.findings(read_results(results))[0]


def test_a_point_that_has_not_converged_is_marked_wherever_it_stands(results):
    assert '†' not in str(list(report.point_rows(read_results(results), 'vector')))
    results['methods']['fsq-4']['rise'], results['methods']['fsq-8']['rise'] = 0.05, 0.009
    (_, four, eight, *_), text = (
        report.point_rows(read_results(results), 'vector'), report.markdown(read_results(results)),
    )  # fmt: skip
    assert (four[4], eight[4]) == ('67.6†', '97.1')
    assert 'training accuracy still rose, in points: fsq-4 +5.0.' in text
    axis = plots.figure(read_results(results)).axes[0]
    hollow = [line.get_ydata() for line in axis.lines if line.get_markerfacecolor() == 'white']
    assert np.concatenate(hollow) == pytest.approx([32.4])


def test_the_report_and_the_picture_are_written_and_the_terminal_has_100_columns(results, tmp_path):
    report.write(tmp_path, read_results(results))
    text = (tmp_path / 'report.md').read_text()
    places = [text.index(f'\n## {part}') for part in ('What was found', 'Fewest bits', 'Vector',
                                                      'Grid', 'How it was made')]  # fmt: skip
    assert places == sorted(places) and text.startswith('# Accuracy against bits on digits, 40 ')
    assert 'Nadeau and Bengio 2003' in text
    assert 'not run up to the largest rate, 16 bits: FSQ (to 8 bits).' in text
    # Five points: the tables show them, and no picture is drawn or named.
    assert 'rates.png' not in text and not (tmp_path / 'rates.png').exists()
    every = configuration('rates')['quantizers']
    names = {
        name: method([0.5] * 5, float(name.split('-')[1]), 'grid' if 'grid' in name else 'vector')
        for name, spec in every.items()
        if spec is not None
    }
    wide = results | {'methods': results['methods'] | names}
    report.write(tmp_path, read_results(wide))
    assert '](rates.png)' in (tmp_path / 'report.md').read_text()
    assert (tmp_path / 'rates.png').read_bytes().startswith(b'\x89PNG')
    console = Console(width=200, file=io.StringIO())
    console.print(report.table(read_results(wide)))
    printed = console.file.getvalue()
    assert max(len(line.rstrip()) for line in printed.splitlines()) < 100
    assert '…' not in printed and ' Gumbel-Softmax ' in printed


def test_a_line_of_the_picture_has_the_errors_of_the_results(results):
    left, right = (
        a for a in plots.figure(read_results(results)).axes if a.get_xlabel() == 'bits per token'
    )
    assert left.get_yscale() == 'symlog' and 'log scale' in left.get_ylabel()
    assert left.get_title(loc='left').startswith('digits: vector')
    drawn = [line.get_ydata() for c in left.containers for line in [c.lines[0]]]
    np.testing.assert_allclose(drawn[0], [32.4, 2.9], rtol=1e-6)  # FSQ at 4 and 8 bits
    assert [t.get_text() for t in right.get_xticklabels()] == ['4']


@pytest.mark.slow
def test_a_run_says_how_even_its_codes_are_and_whether_they_collapsed(config, tmp_path):
    name, given = 'product-4-grid', config | {
        'methods': 'none-grid,product-4-grid', 'folds': 2, 'seeds': 2, 'width': 4, 'features': 8,
        'epochs': 1, 'batch_size': 256, 'init_batch_size': 64, 'writers': '',
    }  # fmt: skip
    found = studies.run(given, str(tmp_path / 'run'))['methods']
    assert 'bits_per_token' not in found['none-grid']
    assert (found[name]['bits_per_token'], found[name]['bits']) == (4.0, 16.0)
    for seed in found[name]['seeds']:
        path = tmp_path / 'run' / 'finished' / name / f'seed_{seed["seed"]}.json'
        counts = read_counts(json.loads(path.read_text())['result'])
        assert counts.shape == (2, 4)  # groups of 2 bits
        assert counts.sum(-1).tolist() == [seed['fold']['test'] * 4] * 2
        share = counts / counts.sum(-1, keepdims=True)
        entropy = -np.sum(share * np.log(np.where(share > 0, share, 1)), -1)
        perplexity = np.exp(entropy).mean()
        uniform = metrics.uniform_baseline(int(counts[0].sum()), 4).perplexity
        assert seed['evenness'] == pytest.approx(perplexity / uniform, rel=1e-4)
        # Four places of two codes each.
        assert seed['collapsed'] == (perplexity**8 < health.CLASS_SHARE * 10)
    kept = json.loads((tmp_path / 'run' / 'results.json').read_text())
    assert kept['methods'][name]['seeds'] == found[name]['seeds']
    assert 'counts' not in found[name]['seeds'][0]
    text = (tmp_path / 'run' / 'report.md').read_text()
    assert '2 folds per method, 1 epoch,' in text and '| Product' in text


@pytest.mark.parametrize(
    'part',
    [
        'rates',
        'rates/longer',
        'rates/deals',
        pytest.param('cifar10', marks=pytest.mark.slow),
        'cifar10/encoders',
        'cifar10/finetune',
        'cifar10/finetune/longer',
        'cifar10/scratch',
    ],
)
def test_a_committed_report_is_that_of_its_committed_results(part):
    folder = ROOT / 'docs' / part
    results = Results.load(folder / 'results.json')
    kept, made = (folder / 'report.md').read_text(), report.markdown(results)
    if results.environment['python'] == platform.python_version():
        assert kept == made
    # Elsewhere NumPy may add up in another order: a bound between two digits goes to either.
    number = re.compile(r'\d+\.\d+')
    assert number.sub('#', kept) == number.sub('#', made)
    for a, b in zip(number.findall(kept), number.findall(made), strict=True):
        assert float(a) == pytest.approx(float(b), abs=1.01 * 10.0 ** -len(a.partition('.')[2]))


@pytest.mark.parametrize('least, most', [(0.82, 0.85), (0.5, 0.85), (0.12, 0.99), (0.9, 1.0)])
def test_whatever_the_accuracies_the_axis_names_some_and_ends_above_the_best(results, least, most):
    results['methods'] = {'none': method([most] * 5), 'fsq-8': method([least] * 5, 8.0)}
    axis = plots.figure(read_results(results)).axes[0]
    worst, best = axis.get_ylim()
    assert 3 <= sum(best <= tick <= worst for tick in axis.get_yticks()) <= 17
    # No interval is cut off, one that ends at 100% neither.
    assert best < 100 * (1 - most) and worst > 100 * (1 - least)
    assert best == pytest.approx(90 * (1 - most)) if most < 0.98 else best < 0
