"""The tokenizer setting: its variants, and its figures against its targets."""

import re
import types

import numpy as np
import pytest
from support import configuration, read_results, shared

from vqjax import studies
from vqjax.studies.tokenizer import report, study, targets
from vqjax.trainer import errors
from vqjax.trainer.config import settings
from vqjax.trainer.files.workdir import Workdir


@pytest.fixture(scope='module')
def config():
    return configuration('tokenizer')


def history(losses):
    return [
        {'step': i, 'gradient_norm': 1.0, 'quantizer_loss': float(x)} for i, x in enumerate(losses)
    ] + [{'step': len(losses), 'tokens': 1e5, 'perplexity': 800.0, 'active_codes': 1000.0}]


FINAL = {'perplexity': 800.0, 'active_codes': 1000.0, 'reconstruction_error': 0.1}


def test_figures_are_those_of_the_records():
    falling = np.linspace(2, 1, 400)
    found = targets.measure(history(falling), FINAL, 1024)
    assert found['entropy, bits per token'] == pytest.approx(np.log2(800))
    assert found['dead codes'] == 24 and found['spikes'] == 0
    assert found['share of codes active'] == pytest.approx(1000 / 1024)
    assert found['quantizer loss, end against first quarter'] == pytest.approx(0.6, abs=0.01)
    spiky = falling.copy()
    spiky[[150, 250, 350]] *= 10
    assert targets.measure(history(spiky), FINAL, 1024)['spikes'] == 3


def test_every_variant_is_1024_codes_on_a_grid_and_only_the_quantizer_differs(config):
    made = settings.check(config).methods
    assert all(m.quantizer.num_codes == 1024 and m.bottleneck == 'grid' for m in made.values())
    first, *others = (
        {k: v for k, v in vars(m).items() if k not in ('quantizer', 'bridge')}
        for m in made.values()
    )
    assert others and all(other == first for other in others)
    assert first['classification_weight'] == 0 and first['record']
    assert made['before'].quantizer.codebook == 0 and made['before'].quantizer.revival is None


def test_the_report_sets_each_figure_against_its_target(config, tmp_path):
    names = ('gradient', 'ema_bank')
    histories = dict.fromkeys(names, history(np.linspace(2, 1, 200)))
    bins = {'confidence': [0, 0], 'accuracy': [0, 0], 'count': [4, 6]}
    seed = FINAL | {'tokens': 640.0, 'reliability': bins}
    finding = {'name': 'spikes', 'severity': 'note', 'evidence': {}, 'remedy': 'none'}
    results = {
        'config': config,
        'environment': {'vqjax': '0'},
        'methods': {n: {'spec': config['quantizers'][n], 'seeds': [seed]} for n in names},
        'findings': [finding | {'method': 'gradient', 'seed': 0}],
    }
    figures = {n: targets.measure(histories[n], seed, 1024) for n in names}
    report.write(tmp_path, read_results(results), histories=histories, figures=figures)
    assert report.table(config, figures).row_count == len(targets.TARGETS) + 2
    text = (tmp_path / 'report.md').read_text()
    assert re.search(r'\| perplexity +\| +above 600 \| +800 \| +800 \|', text)
    assert re.search(r'\| dead codes +\| +below 50 \| +24 \| +24 \|', text)
    assert '- ema_bank: no finding.' in text and '- gradient: spikes.' in text
    assert '64 tokens per image' in text and 'docs/sources.md' in text
    assert (tmp_path / 'curves.png').read_bytes().startswith(b'\x89PNG')


def test_every_tokenizer_has_a_column_of_its_own():
    names = ('gradient', 'ema_bank', 'before')
    figure = report.figure(dict.fromkeys(names, history(np.linspace(2, 1, 9))), 1024)
    grid = np.array(figure.axes).reshape(3, 3)
    assert [axis.get_title(loc='left') for axis in grid[0]] == [
        'VQ (by gradient)', 'VQ-EMA, revival\nfrom a bank', 'random codes,\nno gradient',
    ]  # fmt: skip
    for axis in grid[0]:  # its own curve on top of those of all
        *others, own = axis.lines
        assert len(others) == 3 and own.get_zorder() > max(o.get_zorder() for o in others)


def test_records_that_lack_steps_are_refused(config, tmp_path):
    kept = history(np.linspace(2, 1, 9))[5:]
    folder = types.SimpleNamespace(path=tmp_path, history=lambda name, seed: kept)
    results = {'methods': {'ema': {'spec': config['quantizers']['ema'], 'seeds': [FINAL]}}}
    with pytest.raises(errors.RunError, match='records/ema/seed_0.jsonl lacks steps'):
        study.conclude(read_results(results), folder)


@pytest.mark.parametrize('change', [{'record': False}, {'reconstruction_weight': 0.0}])
def test_what_the_report_needs_is_asked_for_before_training(config, tmp_path, change):
    with pytest.raises(errors.RunError, match='set record=True and reconstruction_weight'):
        studies.run(config | change, str(tmp_path / 'run'))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_ema_and_gradient_codebooks_meet_the_targets_and_the_buffer_does_not(config, tmp_path):
    names = ('before', 'gradient', 'ema')
    fields = {'data_dir': str(shared('tfds')), 'methods': ','.join(names)}
    results = studies.run(config | fields, str(tmp_path))
    folder = Workdir(tmp_path, results['config'])
    for name in names:
        final = results['methods'][name]['seeds'][0]
        found = targets.measure(folder.history(name, 0), final, 1024)
        met = [(found[k] > bound) == above for k, (bound, above) in targets.TARGETS.items()]
        assert all(met) == (name != 'before'), (name, found)
        findings = [f['name'] for f in results['findings'] if f['method'] == name]
        assert (findings == []) == (name != 'before'), (name, findings)
