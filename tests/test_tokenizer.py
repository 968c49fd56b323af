"""The tokenizer setting: its variants, and its figures against its targets."""

import json
import types

import numpy as np
import pytest
from support import configuration, shared

from vqjax.studies import remedies, tokenizer_report


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
    found = tokenizer_report.measure(history(falling), FINAL, 1024)
    assert found['dead codes'] == 24 and found['spikes'] == 0
    assert found['share of codes active'] == pytest.approx(1000 / 1024)
    assert found['quantizer loss, end against first quarter'] == pytest.approx(0.6, abs=0.01)
    spiky = falling.copy()
    spiky[[150, 250, 350]] *= 10
    assert tokenizer_report.measure(history(spiky), FINAL, 1024)['spikes'] == 3


def test_every_variant_is_1024_codes_on_a_grid_and_only_the_quantizer_differs(config):
    info = types.SimpleNamespace(num_classes=10, image_shape=(32, 32, 3))
    made = {n: remedies.make_patient(config, n, info)[0] for n in config['remedies']}
    assert all(p.quantizer.num_codes == 1024 and p.grid for p in made.values())
    rest = {tuple(v for k, v in vars(p).items() if k != 'quantizer') for p in made.values()}
    assert len(rest) == 1
    assert made['before'].quantizer.codebook == 0 and made['before'].quantizer.revival is None


def test_the_report_sets_each_figure_against_its_target(config, tmp_path):
    run = {'history': history(np.linspace(2, 1, 200)), 'result': FINAL}
    specs = config['remedies']
    results = {
        'config': config,
        'environment': {'vqjax': '0'},
        'methods': {name: {'spec': specs[name]['quantizer']} for name in ('gradient', 'ema_bank')},
        'findings': {'gradient': [], 'ema_bank': []},
    }
    runs = {'gradient': run, 'ema_bank': run}
    tokenizer_report.write(tmp_path, results, runs)
    figures = tokenizer_report.measure_all(results, runs)
    assert tokenizer_report.table(config, figures).row_count == len(tokenizer_report.TARGETS) + 1
    text = (tmp_path / 'report.md').read_text()
    assert '| perplexity | above 600 | 800 | 800 |' in text and 'ema_bank: nothing wrong.' in text
    assert '| dead codes | below 50 | 24 | 24 |' in text
    assert (tmp_path / 'curves.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.long
def test_ema_and_gradient_codebooks_meet_the_targets_and_the_buffer_does_not(config, tmp_path):
    fields = {'data_dir': str(shared('tfds')), 'methods': 'before,gradient,ema'}
    results = remedies.run(config | fields, str(tmp_path))
    for name in ('before', 'gradient', 'ema'):
        run = json.loads((tmp_path / 'finished' / name / 'seed_0.json').read_text())
        found = tokenizer_report.measure(run['history'], run['result'], 1024)
        met = [
            (found[k] > bound) == above for k, (bound, above) in tokenizer_report.TARGETS.items()
        ]
        assert all(met) == (name != 'before'), (name, found)
        assert (results['findings'][name] == []) == (name != 'before')
