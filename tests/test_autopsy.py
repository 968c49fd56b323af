"""The autopsy: the collapse to its published figure, and every fault told from every cure."""

import json
import pathlib
import platform
import re

import numpy as np
import pytest
from support import configuration

from vqjax import health, studies
from vqjax.results.records import Results
from vqjax.studies.autopsy import cases, faults, outcome, plots, study
from vqjax.trainer.config import settings
from vqjax.trainer.data import batches
from vqjax.trainer.errors import RunError

NAMES = (
    "missing_total", "no_straight_through", "detached_commitment", "clamped_loss",
    "discarded_init", "stale_revival", "zero_counts", "swapped_coefficients",
    "absolute_threshold", "revival_every_step", "eval_updates", "reshaped_features",
    "unscaled_fsq",
)  # fmt: skip


def config(**fields):
    return configuration('autopsy') | {'cases': 'missing_total'} | fields


def test_the_published_collapse_needs_no_encoder_and_no_labels(tmp_path):
    results = studies.run(config(), str(tmp_path))
    kept = json.loads((tmp_path / 'results.json').read_text())
    assert json.loads(json.dumps(results)) == kept
    case = results['cases']['missing_total']
    faulty, cured = case['faulty'], case['cured']
    # The 1.03 and 1.06 of sources 0 to 2 are what the clamp at 1e-5 makes of one code.
    assert faulty['reported_perplexity'] == pytest.approx(1.0298, abs=5e-5)
    assert faulty['reported_perplexity_k512'] == pytest.approx(1.0606, abs=5e-5)
    assert faulty['perplexity'] == 1 and faulty['active_codes'] == 1
    assert faulty['active_codes_step_1'] == 1  # from the first step on
    assert faulty['max_norm_step_1'] == pytest.approx(16, abs=0.01)  # (1 - g) n
    assert faulty['max_norm'] == pytest.approx(293.4, abs=0.5)
    assert cured['perplexity'] > 40 and cured['perplexity_k512'] > 40
    assert cured['max_norm'] <= 1.001  # a code lies in the hull of its vectors
    assert case['claim'] and case['source'] == 'source 2'
    assert 'missing_total' in [f['name'] for f in case['findings']['faulty']]
    assert case['findings']['cured'] == []
    assert (tmp_path / 'missing_total.png').read_bytes().startswith(b'\x89PNG')
    report = (tmp_path / 'report.md').read_text()
    assert '1.0298' in report and '(missing_total.png)' in report
    # Without the blank line a list is no list to mkdocs.
    assert 'diagnosis of the faulty run:\n\n- **missing_total** (error)' in report
    assert cases.CASES['missing_total'].seen in report and 'docs/sources.md' in report


@pytest.mark.slow
def test_a_fault_in_evaluation_is_found_and_the_same_command_again_trains_nothing(
    tmp_path, monkeypatch
):
    """A second of training each: one evaluation of a faulty model moves its codebook."""
    small = {
        'cases': 'eval_updates', 'width': 4, 'features': 16, 'epochs': 1, 'batch_size': 256,
        'eval_every': 1,
    }  # fmt: skip
    first = studies.run(config(**small), str(tmp_path))
    case = first['cases']['eval_updates']
    assert list(first['methods']) == ['eval_updates', 'vq_ema']
    assert first['methods']['eval_updates']['spec']['name'] == 'vq_ema'  # the healthy one's
    assert case['faulty']['evaluation_drift'] > 1e-3 and case['cured']['evaluation_drift'] == 0
    for figure in ('accuracy', 'quantization_error'):
        cured = case['cured']
        assert cured[f'{figure}_after_evaluation'] == cured[figure]
    faulty = case['faulty']
    assert faulty['quantization_error_after_evaluation'] != faulty['quantization_error']
    assert 'eval_updates' in [f['name'] for f in case['findings']['faulty']]
    assert 'eval_updates' not in [f['name'] for f in case['findings']['cured']]
    assert (tmp_path / 'eval_updates.png').read_bytes().startswith(b'\x89PNG')
    monkeypatch.setattr(batches, 'train_batches', None)
    assert studies.run(config(**small), str(tmp_path)) == first


def test_every_method_of_a_case_is_configured_and_trains_alike():
    given = config(methods='all')
    methods = settings.check({k: v for k, v in given.items() if k != 'cases'}, faults.PARTS).methods
    for name, case in cases.CASES.items():
        assert set(case.methods) <= methods.keys(), name
        pair = [vars(methods[m]) for m in (case.faulty, case.cured) if isinstance(m, str)]
        for faulty, cured in [pair] if pair else []:
            rest = faulty.keys() - {'quantizer', 'bridge'}
            assert all(faulty[field] == cured[field] for field in rest), name
            assert type(faulty['quantizer']) is not type(cured['quantizer']) or repr(
                faulty['quantizer']
            ) != repr(cured['quantizer']), name


def drawn(name, history=None, counts=None, **figures):
    """The axes of a case's plot, of records and figures given for (faulty, cured)."""

    sides = outcome.SIDES
    result = outcome.CaseResult(
        claim='',
        source='',
        seen='',
        findings={},
        figures={s: {k: v[i] for k, v in figures.items()} for i, s in enumerate(sides)},
    )
    record = outcome.CaseRecord(
        case=result,
        history={s: [dict(r) for r in (history or ([], []))[i]] for i, s in enumerate(sides)},
        counts=dict(zip(sides, counts or (None, None), strict=True)),
    )
    return plots.figure(name, cases.CASES[name], record).axes


def test_the_plot_of_a_revival_shows_how_much_of_it_was_undone():
    steps = [
        {'step': i, 'gradient_norm': 1.0, 'revived': float(i % 2), 'reverted': float(i % 2 == 0)}
        for i in range(10)
    ]
    sound = [r | {'reverted': 0.0} for r in steps]
    (axis,) = drawn('stale_revival', (steps, sound))
    found = {line.get_label(): line.get_ydata()[-1] for line in axis.lines}
    assert found == {
        'faulty: revived': 5, 'faulty: undone': 5, 'cured: revived': 5, 'cured: undone': 0,
    }  # fmt: skip


def test_the_plot_of_an_evaluation_shows_the_same_images_twice():
    steps = [{'step': 1, 'evaluation_drift': 0.5}], [{'step': 1, 'evaluation_drift': 0.0}]
    figures = {
        'quantization_error': (0.05, 0.05), 'quantization_error_after_evaluation': (0.03, 0.05),
    }  # fmt: skip
    drift, error = drawn('eval_updates', steps, **figures)
    assert [bar.get_height() for bar in error.patches] == [0.05, 0.03, 0.05, 0.05]
    assert [line.get_ydata()[0] for line in drift.lines] == [0.5, 0.0]  # 0 is on the scale
    assert drift.get_ylim()[0] < 0


def test_the_plot_of_reshaped_features_counts_the_codes_of_each_half():
    halves = [[6.0, 0.0, 2.0, 1.0, 0.0], [0.0, 4.0, 0.0, 4.0, 0.0]]
    (axis,) = drawn('reshaped_features', counts=(np.array(halves), np.full((1, 5), 2.0)))
    assert [text.get_text() for text in axis.texts] == [
        'first half only: 2', 'both halves: 1', 'second half only: 1', 'unused: 1',
        'all features: 5', 'unused: 0',
    ]  # fmt: skip


def test_every_panel_shows_something_that_has_a_name():
    for name, case in cases.CASES.items():
        assert case.seen.endswith('.') and case.shown, name
        for panel in case.shown:
            assert (
                panel.kind in ('steps', 'total', 'bars', 'halves') and panel.names and panel.title
            )
    with pytest.raises(ValueError, match="no record of either run has 'perplexity'"):
        drawn('unscaled_fsq', ([{'step': 1}], [{'step': 1}]))


def test_the_committed_report_has_every_trained_case_over_its_seeds():
    """With the accuracies of the runs, and their paired difference, made here again."""
    folder = pathlib.Path(__file__).parent.parent / 'docs/autopsy'
    results = Results.load(folder / 'results.json')
    text = study.markdown(results)
    if results.environment['python'] == platform.python_version():
        assert (folder / 'report.md').read_text() == text
    table = text[text.index('## Accuracy and perplexity over 5 seeds') :]
    trained = {name: case for name, case in cases.CASES.items() if isinstance(case.faulty, str)}
    assert len(trained) == 12
    for name, case in trained.items():
        row = re.search(rf'^\| {name.replace("_", " ")} .*', table, re.MULTILINE)[0]
        said = [float(cell) for cell in row.split('|')[2:5]]
        means = [
            100 * np.mean([seed.figures['accuracy'] for seed in results.methods[method].seeds])
            for method in (case.faulty, case.cured)
        ]
        assert said == pytest.approx([*means, means[0] - means[1]], abs=0.051)


def test_the_cases_are_those_of_the_claims():
    assert tuple(cases.CASES) == NAMES


@pytest.mark.parametrize(
    'fields, message',
    [
        ({'cases': 'missing_totl'}, "unknown case 'missing_totl'"),
        ({'cases': 3}, 'cases is 3'),
        ({'seed': 3}, "unknown config field 'seed'"),
        ({'quantizers': {}, 'cases': 'fsq_collapse'}, 'unknown case'),
        ({'quantizers': {}, 'cases': 'unscaled_fsq'}, 'quantizers lacks unscaled_fsq, fsq'),
        ({'dataset': 'nowhere'}, 'dataset nowhere'),
        ({'dataset': 'nowhere', 'cases': 'unscaled_fsq'}, 'dataset nowhere'),
    ],
)
def test_a_wrong_configuration_is_refused_by_name(tmp_path, fields, message):
    with pytest.raises(RunError, match=re.escape(message)):
        studies.run(config(**fields), str(tmp_path / 'run'))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_every_fault_is_found_and_no_cure_is(tmp_path):
    found = studies.run(config(cases='all'), str(tmp_path))['cases']
    for name in NAMES:
        assert name in [f['name'] for f in found[name]['findings']['faulty']], name
        assert found[name]['findings']['cured'] == [], name
        assert (tmp_path / f'{name}.png').exists()
    assert found['no_straight_through']['faulty']['accuracy'] <= 0.23
    assert found['no_straight_through']['cured']['accuracy'] >= 0.95
    assert found['clamped_loss']['faulty']['largest_loss_without_clamp'] > 1e13
    assert found['detached_commitment']['faulty']['effect_of_commitment'] == 0
    assert found['swapped_coefficients']['cured']['effect_of_codebook_weight_with_ema'] == 0
    assert found['zero_counts']['faulty']['max_code_norm_step_1'] > 1e5
    assert found['stale_revival']['cured']['reverted'] == 0
    assert found['unscaled_fsq']['faulty']['active_codes'] == 1
    assert {rule.__name__.lstrip('_') for rule in health.RULES} >= set(NAMES)
