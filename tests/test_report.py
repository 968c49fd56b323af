"""report.py, summaries.py and the plots, on a comparison written here."""

import io
import json
import math
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console
from support import read_results, seeds_of, summary_of

from vqjax import intervals, metrics
from vqjax.results import summaries
from vqjax.results.records import Reliability, pack_correct, pack_counts, read_correct
from vqjax.studies.comparison import report, trials
from vqjax.studies.reporting import codebook_plots, notes, plots, tables

TOKENS, CLASSES = 360, 10


def seed_of(seed, accuracy, num_codes=None, stages=1, spread=1.0):
    """What a run keeps of one seed; codes follow a power law of that spread."""
    rng = np.random.default_rng((seed, round(accuracy * 1000), stages))
    probs = np.sort(rng.dirichlet([0.02] * CLASSES, TOKENS))[:, ::-1]
    labels = (rng.random(TOKENS) > accuracy).astype(int)
    bins = metrics.reliability(probs, labels)
    found = {
        'seed': seed,
        'accuracy': float(metrics.accuracy(probs, labels)),
        'nll': 0.11 + 0.01 * seed,
        'brier': 0.03,
        'ece': float(metrics.expected_calibration_error(probs, labels)),
        'reliability': {k: np.asarray(v).tolist() for k, v in bins._asdict().items()},
    }
    if num_codes is None:
        return found
    weight = np.arange(1, num_codes + 1.0) ** -spread
    counts = rng.multinomial(TOKENS, weight / weight.sum(), size=stages)
    return found | {
        'counts': pack_counts(counts if stages > 1 else counts[0]),
        'perplexity': float(metrics.perplexity(counts).mean()),
        'perplexity_per_stage': metrics.perplexity(counts).tolist(),
        'active_codes': float(metrics.active_codes(counts).mean()),
        'usage': float(metrics.usage(counts).mean()),
    }


def method_of(bits, params, **kwargs):
    accuracy = kwargs.pop('accuracy')
    seeds = [seed_of(s, accuracy, **kwargs) for s in range(5)]
    return {
        'spec': None,
        'bits': bits,
        'params': params,
        'seconds': 21.4,
        'summary': summary_of(seeds),
        'seeds': seeds,
    }


@pytest.fixture(scope='module')
def results():
    return {
        'schema': 1,
        'command': 'python train.py --config.seeds=5',
        'config': {'dataset': 'digits', 'epochs': 30, 'batch_size': 64, 'bottleneck': 'vector'},
        'environment': {'jax': '0.10.2', 'devices': '1 x cpu'},
        'methods': {
            'none': method_of(4096, 112_394, accuracy=0.985),
            'vq_ema': method_of(8, 145_418, accuracy=0.981, num_codes=256, spread=0.5),
            'fsq': method_of(15.97, 113_930, accuracy=0.972, num_codes=64_000),
            'rvq': method_of(32, 244_490, accuracy=0.985, num_codes=256, stages=4, spread=0.7),
        },
        'findings': [
            {
                'name': 'low_perplexity',
                'severity': 'warning',
                'method': 'fsq',
                'seed': 2,
                'evidence': {'perplexity': 7.25, 'classes': 10},
                'remedy': 'normalise the features before the bottleneck',
            }
        ],
    }


@pytest.fixture(scope='module')
def histories(results):
    def record(method, seed, epoch):
        found = {'epoch': epoch, 'step': 16 * epoch, 'loss': 1 / epoch, 'accuracy': 0.9}
        stages = results['methods'][method]['seeds'][seed].get('perplexity_per_stage')
        if stages is None:
            return found
        stages = [p * (1 - math.exp(-epoch / 4)) for p in stages]
        return found | {'perplexity': float(np.mean(stages)), 'perplexity_per_stage': stages}

    return {
        method: [[record(method, s, e) for e in range(2, 31, 2)] for s in range(5)]
        for method in results['methods']
    }


@pytest.fixture(scope='module')
def workdir(tmp_path_factory, results, histories):
    folder = tmp_path_factory.mktemp('run')
    report.write(folder, read_results(results), histories)
    return folder


def cells(text, heading, first):
    """The cells of the row that begins with `first` under the Markdown heading."""
    part = text.split(f'## {heading}')[1].split('\n## ')[0] if heading else text
    row = next(line for line in part.splitlines() if line.startswith(f'| {first} '))
    return [cell.strip() for cell in row.strip('|').split('|')]


# Numbers.


def test_the_entropy_of_the_codes_is_summed_over_stages(workdir, results):
    text = (workdir / 'report.md').read_text()
    for name, stages in (('vq_ema', 1), ('rvq', 4)):
        seeds = results['methods'][name]['seeds']
        bits = np.mean([np.log2(seed['perplexity_per_stage']).sum() for seed in seeds])
        assert len(seeds[0]['perplexity_per_stage']) == stages
        assert float(cells(text, 'Codes on the test split', name)[-1]) == pytest.approx(bits, 0.01)


def test_summary_has_every_number_with_its_interval():
    seeds = [{'seed': s, 'accuracy': a, 'counts': [1, 2]} for s, a in enumerate([0.9, 0.8, 1.0])]
    found = summaries.summarise(seeds_of(seeds))
    assert found.keys() == {'accuracy'}
    assert found['accuracy'].mean == pytest.approx(0.9)
    # Student's t of three: 4.3027 standard errors, and no accuracy is above 1.
    assert found['accuracy'].low == pytest.approx(0.9 - 4.3027 * 0.1 / 3**0.5, abs=1e-4)
    assert found['accuracy'].high == 1.0
    with pytest.raises(ValueError, match='at least one seed'):
        summaries.summarise([])


def test_difference_is_paired_by_seed_and_not_by_place():
    base = seeds_of([{'seed': s, 'accuracy': 0.1 * s} for s in range(8)])
    other = seeds_of([{'seed': s, 'accuracy': 0.1 * s + 0.02} for s in reversed(range(1, 9))])
    # Accuracies differ by .1 from seed to seed, yet each pair by .02 exactly.
    assert summaries.paired_difference(other, base, 'accuracy') == pytest.approx((0.02,) * 3)
    with pytest.raises(ValueError, match='no seed in common'):
        summaries.paired_difference(base[:1], other[:1], 'accuracy')


def with_correct(results):
    """The results as runs of now leave them: with what each seed told rightly."""
    rng = np.random.default_rng(0)
    hard = rng.permutation(TOKENS)  # shared by all, so that methods are wrong of the same images
    methods = {}
    for name, method in results['methods'].items():
        seeds = []
        for seed in method['seeds']:
            wrong = TOKENS - round(TOKENS * seed['accuracy'])
            correct = np.ones(TOKENS, bool)
            correct[hard[rng.permutation(2 * wrong)[:wrong]]] = False
            seeds.append(seed | {'correct': pack_correct(correct)})
        methods[name] = method | {'seeds': seeds, 'summary': summary_of(seeds)}
    return results | {'methods': methods}


def as_folds(results):
    """The results as those of five folds."""
    methods = {}
    for name, method in results['methods'].items():
        seeds = [
            s | {'fold': {'fold': i, 'repeat': 0, 'train': 1077, 'test': 360}}
            for i, s in enumerate(method['seeds'])
        ]
        methods[name] = method | {'seeds': seeds, 'summary': summary_of(seeds)}
    return results | {'methods': methods}


def test_intervals_are_those_that_the_results_allow(results):
    """Examples and seeds where each seed says what it told rightly, folds where they are folds."""
    now, folds = with_correct(results), as_folds(with_correct(results))
    before, after, parted = (
        [read_results(r).methods[name].seeds for name in ('vq_ema', 'none')]
        for r in (results, now, folds)
    )
    assert [summaries.covers(*x) for x in (before, after, parted)] == ['seeds', 'examples', 'folds']
    assert summaries.covers(after[0], before[1]) == 'seeds'
    correct = [np.stack([s.correct for s in seeds]) for seeds in after]
    apart = [s.accuracy - t.accuracy for s, t in zip(*before, strict=True)]
    expected = [
        intervals.corrected_t(apart),
        intervals.crossed_t(*correct),
        intervals.corrected_t(apart, 360 / 1077),
    ]
    for seeds, interval in zip((before, after, parted), expected, strict=True):
        assert summaries.paired_difference(*seeds, 'accuracy') == pytest.approx(interval, abs=1e-6)
    alone = after[0][0].accuracy
    accuracy = now['methods']['vq_ema']['summary']['accuracy']
    # Five seeds agree to half a point on what are 360 images and no more.
    assert accuracy['low'] < alone - notes.sampling_error(alone, TOKENS) * 0.7
    assert folds['methods']['none']['summary']['accuracy']['high'] <= 1.0


def test_reports_name_what_their_intervals_cover(results):
    for made, words, runs in (
        (results, "Student's t over seeds alone. It does not include that", 'seeds'),
        (
            with_correct(results),
            "Student's t over seeds and test examples together. Seconds",
            'seeds',
        ),
        (as_folds(results), '(Nadeau and Bengio 2003). Seconds', 'folds'),
    ):
        made = read_results(made)
        text = report.markdown(made)
        covered = summaries.covers(made.methods['fsq'].seeds)
        assert f'95% interval: {summaries.METHODS[covered]}' in text
        assert words in text and f'5 {runs} each' in text
        assert f'{runs} better / equal / worse' in text and f'all {runs} together' in text
        assert f'5 {runs}' in report.table(made).title


def test_a_run_that_still_learns_is_no_comparison(results, capsys):
    words = 'Not converged, so methods cannot be compared:'
    rises = {'none': 0.004, 'vq_ema': 0.031, 'fsq': None, 'rvq': 0.0102}
    methods = {n: m | {'rise': rises[n]} for n, m in results['methods'].items()}
    text = report.markdown(read_results(results | {'methods': methods}))
    assert f'**{words}' in text and '(vq_ema +3.1 points, rvq +1.0 points). Remedy' in text
    report.print_findings(read_results(results | {'methods': methods}))
    assert words in ' '.join(capsys.readouterr().out.split())
    assert words not in report.markdown(
        read_results(results)
    )  # results of before tell nothing of it
    still = {n: m | {'rise': 0.009} for n, m in results['methods'].items()}
    assert words not in report.markdown(read_results(results | {'methods': still}))


def test_the_budget_is_named(results):
    config = results['config'] | {'steps': 2000}
    text = report.markdown(read_results(results | {'config': config}))
    assert '30 epochs or 2,000 steps, whichever' in text
    assert 'steps, whichever' not in report.markdown(read_results(results))


def test_a_fitted_temperature_stands_beside_the_raw_error(results):
    methods = {}
    for name, method in results['methods'].items():
        more = {'temperature': 1.4, 'scaled_ece': 0.0123, 'scaled_nll': 0.0567}
        seeds = [seed | more for seed in method['seeds']]
        methods[name] = method | {'seeds': seeds, 'summary': summary_of(seeds)}
    text = report.markdown(read_results(results | {'methods': methods}))
    row = cells(text, 'Calibration', 'fsq')
    assert row[4:7] == ['0.012', '0.057', '1.40'] and notes.TEMPERATURE in text
    before = report.markdown(read_results(results))
    assert notes.TEMPERATURE not in before and len(cells(before, 'Calibration', 'fsq')) == 6


def test_what_was_told_rightly_comes_back_from_its_bits():
    for number in (1, 8, 359, 10_000):
        correct = np.random.default_rng(number).random(number) < 0.9
        kept = json.loads(json.dumps({'correct': pack_correct(correct)}))
        np.testing.assert_array_equal(read_correct(kept), correct)
        assert len(kept['correct']['bits']) <= number / 6 + 4
    assert read_correct({'accuracy': 0.5}) is None


@pytest.mark.parametrize(
    'kept',
    [
        'all',
        {'examples': 4},
        {'examples': 9, 'bits': '8A=='},
        {'examples': -1, 'bits': ''},
        {'examples': 4, 'bits': '?'},
        {'examples': 4, 'bits': '8A=='},  # all four, where the accuracy says half
    ],
)
def test_damaged_bits_are_refused_in_a_sentence(kept):
    with pytest.raises(ValueError, match='correct of seed 3 is damaged'):
        read_correct({'seed': 3, 'accuracy': 0.5, 'correct': kept})


def test_short_results_keep_what_intervals_are_made_from(results):
    made = read_results(json.loads(json.dumps(as_folds(with_correct(results)))))
    short = summaries.shorten(made)
    seed = short.methods['rvq'].seeds[0]
    assert seed.reliability is None and seed.counts is None
    assert seed.figures == made.methods['rvq'].seeds[0].figures
    for name in ('vq_ema', 'fsq', 'rvq'):
        assert summaries.compare(short, name) == summaries.compare(made, name)


@pytest.mark.parametrize(
    'difference,words',
    [
        ((-0.001, -0.012, 0.009), 'no significant difference; a loss of 2 points is excluded'),
        ((-0.010, -0.019, -0.002), 'worse than none, by less than 2 points'),
        ((0.010, 0.002, 0.019), 'better than none, by less than 2 points'),
        ((-0.800, -0.850, -0.750), 'worse than none by 75.0 points or more'),
        ((-0.030, -0.040, -0.010), 'worse than none'),
        ((0.030, 0.010, 0.050), 'better than none'),
        ((-0.010, -0.050, 0.010), 'undecided'),
    ],
)
def test_verdict_follows_from_the_interval(difference, words):
    assert words in summaries.verdict(metrics.Interval(*difference), num_seeds=5)
    few = summaries.verdict(metrics.Interval(*difference), num_seeds=2)
    assert few == '2 seeds are too few for a verdict: run 5 or more'


def test_band_from_bins_is_the_band_from_probabilities():
    rng = np.random.default_rng(0)
    probs = np.sort(rng.dirichlet([0.1] * CLASSES, 2000))[:, ::-1]
    bins = metrics.reliability(probs, np.zeros(2000, int))
    found = summaries.calibrated_error(Reliability(*(tuple(np.asarray(x)) for x in bins)))
    np.testing.assert_allclose(found, metrics.calibration_band(probs), rtol=0.1)


def test_code_use_counts_the_tokens_of_one_stage(results):
    methods = read_results(results).methods
    assert summaries.code_use(methods['none']) is None
    for name, num_codes in (('vq_ema', 256), ('rvq', 256), ('fsq', 64_000)):
        use = summaries.code_use(methods[name])
        assert (use.num_codes, use.num_tokens) == (num_codes, TOKENS)
        assert use.uniform == metrics.uniform_baseline(TOKENS, num_codes)


# report.md.


def test_report_states_the_figures_of_the_results(workdir, results):
    text = (workdir / 'report.md').read_text()
    for name, method in results['methods'].items():
        row = cells(text, 'Outcome on the test split', name)
        mean, low, high = (100 * method['summary']['accuracy'][k] for k in ('mean', 'low', 'high'))
        assert row[1:3] == [f'{mean:.1f}', f'{low:.1f} to {high:.1f}']
        assert float(row[3].replace(',', '')) == pytest.approx(method['bits'], rel=0.01)
        assert row[4] == f'{method["params"]:,}' and row[5] == '21'
        ece = float(cells(text, 'Calibration', name)[3])
        assert ece == pytest.approx(method['summary']['ece']['mean'], abs=6e-4)
    row = cells(text, 'Codes on the test split', 'rvq')
    assert len(row[5].split(',')) == 4 and float(row[4]) <= float(row[1])
    row = cells(text.split('codes in use')[1], '', 'rvq')
    assert row[1:3] == ['256', '360'] and float(row[5].rstrip('%')) == pytest.approx(75.6)
    difference = summaries.compare(read_results(results), 'fsq')
    row = cells(text, 'Accuracy compared with none', 'fsq')
    assert row[1] == summaries.verdict(difference, 5)
    assert row[2] == f'{100 * difference.mean:+.1f}'
    assert row[3] == f'{100 * difference.low:+.1f} to {100 * difference.high:+.1f}'
    assert sum(int(n) for n in row[4].split('/')) == 5


def test_report_states_findings_with_evidence_and_remedy(workdir, results):
    text = (workdir / 'report.md').read_text()
    assert '**low_perplexity** (warning, method fsq, seed 2): perplexity = 7.25' in text
    assert 'Remedy: normalise the features' in text
    assert '## Findings' not in report.markdown(read_results(results | {'findings': []}))


@pytest.mark.parametrize(
    'accuracy, num_images, points', [(0.985, 360, 1.3), (0.9, 10_000, 0.6), (0.991, 360, 1.1)]
)
def test_sampling_error_is_half_of_wilson_s_interval(accuracy, num_images, points):
    """Near 1.96 sqrt(p (1 - p) / n), but not 0 where every image is right."""
    found = 100 * notes.sampling_error(accuracy, num_images)
    assert found == pytest.approx(points, abs=0.06)
    plain = 196 * math.sqrt(accuracy * (1 - accuracy) / num_images)
    assert plain < found < plain + 0.15
    assert 100 * notes.sampling_error(1.0, 360) == pytest.approx(0.53, abs=0.01)


def test_sampling_error_of_360_images_is_stated(workdir, results):
    text = (workdir / 'report.md').read_text()
    accuracy = results['methods']['none']['summary']['accuracy']['mean']
    half = 100 * notes.sampling_error(accuracy, TOKENS)
    assert f'adds an uncertainty of {half:.1f} points either way at the accuracy of none' in text
    assert 'the 360 test images are a sample themselves' in text


def test_a_run_that_did_not_choose_its_settings_says_so(workdir):
    assert 'this run did not choose them' in (workdir / 'report.md').read_text()


def test_folds_that_chose_quantizers_of_other_sizes_have_one_report(tmp_path, results):
    """Under the name of the method, though codes and stages differ."""
    small, large = seed_of(0, 0.9, 16, stages=2), seed_of(1, 0.8, 64, stages=3)
    method = results['methods']['rvq'] | {'seeds': [small, large]}
    method['summary'] = summary_of(method['seeds'])
    grid = {
        'name': 'projected',
        'dim': 1,
        'inner': {'name': 'fsq', 'levels': [4, 5], 'bound': 'ifsq'},
    }
    chosen = [
        {'settings': {'quantizer': grid, 'decay': 0.9}, 'accuracy': [0.5, None], 'nll': [1, None]},
        {'settings': {'quantizer': None, 'decay': 0.8}, 'accuracy': [0.25, 0.75], 'nll': [1, 1]},
    ]
    tuning = {
        'trials': 2, 'nested': True, 'seeds': 2, 'space': {},
        'test_opened': '2026-01-02T03:04:05+00:00',
        'methods': {'rvq': {'trials': chosen, 'chosen': [0, 1]}},
    }  # fmt: skip
    history = [[{'epoch': 1, 'perplexity': 8.0, 'perplexity_per_stage': [8.0] * n}] for n in (2, 3)]
    made = read_results(results | {'methods': {'rvq': method}, 'tuning': tuning})
    report.write(tmp_path, made, {'rvq': history})
    text = (tmp_path / 'report.md').read_text()
    assert '2026-01-02T03:04:05+00:00' in text
    lines = [[cell.strip() for cell in line.split('|')[1:-1]] for line in text.splitlines()]
    rows = {line[0]: line[1:] for line in lines if line}
    assert rows['rvq, 0'] == ['quantizer fsq 4 5 ifsq, decay 0.9', '50.0', '37.5', '25.0', '0']
    assert rows['rvq, 1'] == ['quantizer None, decay 0.8', '75.0', '75.0', '75.0', '1']
    assert summaries.code_use(made.methods['rvq'])[:2] == (64, TOKENS)
    assert (tmp_path / 'usage.png').stat().st_size > 10_000


def deals(accuracies, train=1077):
    """Seeds of two folds each, a row of accuracies a deal."""
    return [
        {
            'seed': seed,
            'accuracy': accuracy,
            'fold': {'repeat': seed // 2, 'fold': seed % 2, 'train': train, 'test': 300},
        }
        for seed, accuracy in enumerate(np.ravel(accuracies))
    ]


def test_halves_are_those_of_the_deals_each_with_its_own_interval():
    none = deals([[0.90, 0.92], [0.91, 0.93], [0.90, 0.94], [0.92, 0.92]])
    far = deals([[0.80, 0.81], [0.80, 0.81], [0.95, 0.96], [0.95, 0.96]])
    given = read_results({'methods': {'none': {'seeds': none}, 'far': {'seeds': far}}})
    found = summaries.halves({name: method.seeds for name, method in given.methods.items()})
    expected = intervals.corrected_t([0.90, 0.92, 0.91, 0.93], 300 / 1077)
    assert found['none'].accuracy[0] == pytest.approx(expected)
    assert found['none'].overlap and not found['far'].overlap and found['none'].compared is None
    first, second = (x.mean for x in found['far'].compared)
    assert (first, second) == pytest.approx((-0.11, 0.035))
    text = '\n'.join(trials.halves_section(given))
    assert '| none   | 91.5 (' in text and '| far ' in text and ' no |' in text
    # Folds dealt out once have no halves, nor have seeds.
    once = read_results({'methods': {'none': {'seeds': none[:2]}}})
    assert trials.halves_section(once) == []
    assert summaries.halves({'none': once.methods['none'].seeds}) == {}
    alone = seeds_of([{'seed': s, 'accuracy': 0.9} for s in range(4)])
    assert summaries.halves({'none': alone}) == {}


def test_a_table_reads_in_a_terminal_too():
    rows = [['method', 'bits'], ['none', '4,096'], ['a|b', '8']]
    lines = tables.markdown(rows).splitlines()
    assert lines == [
        '| method |  bits |', '| ------ | ----: |', '| none   | 4,096 |', '| a\\|b   |     8 |'
    ]  # fmt: skip


def test_the_report_names_the_command_that_made_it(results):
    assert f'```\n{results["command"]}\n```' in report.markdown(read_results(results))


def test_every_picture_of_the_report_is_there(workdir):
    text = (workdir / 'report.md').read_text()
    for name in ('accuracy', 'perplexity', 'usage', 'reliability'):
        assert f'({name}.png)' in text
        assert (workdir / f'{name}.png').read_bytes().startswith(b'\x89PNG')


def test_a_run_without_codes_or_history_still_reports(tmp_path, results):
    alone = results | {'methods': {'none': results['methods']['none']}}
    report.write(tmp_path, read_results(alone), None)
    text = (tmp_path / 'report.md').read_text()
    assert 'compared with none' not in text and 'Codes on the test split' not in text
    assert len(list(tmp_path.glob('*.png'))) == 4


# The terminal.


def test_table_fits_a_terminal_and_shows_the_baselines(results):
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(report.table(read_results(results)))
    lines = console.export_text().splitlines()
    at = next(i for i, line in enumerate(lines) if 'vq_ema' in line)
    assert lines[at].split()[-3:] == ['8', '145,418', '21']
    assert '[75.6%]' in lines[at + 1] and 'of 256' in lines[at]
    for name, method in results['methods'].items():
        row = next(line for line in lines if line.split()[:1] == [name])
        assert row.split()[1] == f'{100 * method["summary"]["accuracy"]["mean"]:.1f}'


def test_one_run_has_no_interval(results, tmp_path):
    """Of one run the bootstrap over examples is narrow, and says nothing of other runs."""
    for method in results['methods'].values():
        method['seeds'] = method['seeds'][:1]
    read = read_results(results)
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(report.table(read))
    said, text = console.export_text(), report.markdown(read)
    assert '(one run)' in said and 'one run of each method: no interval' in said
    assert ' to ' not in said and 'There is one run of each method, so there is no interval' in text
    assert 'one seed is too few for a verdict' in text
    row = next(line for line in text.splitlines() if line.startswith('| vq_ema'))
    assert 'one run' in row and ' to ' not in row
    figure = plots.accuracy(read)
    lengths = [np.ptp(line.get_xdata()) for line in figure.axes[0].lines]
    assert max(lengths) == 0 and 'no interval' in figure.get_supxlabel()


def test_a_log_gets_whole_rows_and_no_colour(results, tmp_path):
    path = tmp_path / 'results.json'
    path.write_text(json.dumps(read_results(results).plain()))
    code = (
        'from vqjax.results.records import Results; from vqjax.studies.comparison import report;'
        f'report.print_table(Results.load({str(path)!r}))'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert '\x1b' not in done.stdout
    assert any('rvq' in line and '244,490' in line for line in done.stdout.splitlines())


# Pictures of a codebook.


def test_feature_map_tells_used_from_unused_codes():

    rng = np.random.default_rng(0)
    labels = np.arange(300) % 3
    centres = rng.normal(size=(3, 16)) * 5
    features = centres[labels] + rng.normal(size=(300, 16))
    codebook = np.concatenate([centres, np.full((2, 16), 100.0)])
    (axis,) = codebook_plots.feature_map(features, labels, codebook).axes
    assert '3 of 5 codes in use' in axis.get_title(loc='left')


def test_heat_map_sorts_codes_by_final_use():

    counts = np.array([[4, 0, 0, 4], [0, 6, 0, 2]])
    figure = codebook_plots.code_use_over_training([10, 20], counts)
    drawn = figure.axes[0].collections[0].get_array().reshape(4, 2)
    np.testing.assert_array_equal(np.ma.filled(drawn[:, 1], 0), [3, 1, 0, 0])
    np.testing.assert_array_equal(np.ma.filled(drawn[:, 0], 0), [0, 2, 2, 0])


def test_importing_the_studies_imports_no_plotting():
    code = (
        'import sys, vqjax.studies;'
        "print([m for m in ('matplotlib', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.strip() == '[]', done.stderr
