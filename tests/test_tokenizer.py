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
        {'step': i, 'gradient_norm': 1.0, 'quantizer_loss': float(x)}
        for i, x in enumerate(losses, 1)
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


def test_the_trajectory_is_read_at_the_steps_that_the_source_names():
    def evaluated(step, perplexity):
        return {'step': step, 'tokens': 1e5, 'perplexity': perplexity, 'active_codes': 1000.0}

    falling = np.linspace(1, 0, 5600)
    records = history(falling) + [
        evaluated(s, p) for s, p in ((500, 610), (1000, 590), (1500, 9e2))
    ]
    found = targets.measure(records, FINAL, 1024)
    assert found[targets.EARLY_PERPLEXITY] == 610
    assert found[targets.LATE_LOSS] == pytest.approx(np.median(falling[4900:5000]))
    assert targets.kept(found) == {
        'spikes': 0,
        'perplexity_by_step_1000': 610,
        'quantizer_loss_at_step_5000': found[targets.LATE_LOSS],
    }
    # A shorter run says nothing of that step, one evaluated later nothing of the perplexity.
    short = targets.measure([*history(falling[:4000]), evaluated(1001, 700)], FINAL, 1024)
    assert targets.kept(short).keys() == {'spikes'}


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
    figures = {n: [targets.measure(histories[n], seed, 1024)] for n in names}
    report.write(tmp_path, read_results(results), histories=histories, figures=figures)
    # Of the targets the loss at step 5,000 is not there; two figures have no target.
    assert report.table(config, figures).row_count == len(targets.TARGETS) - 1 + 2
    text = (tmp_path / 'report.md').read_text()
    assert re.search(r'\| perplexity +\| +above 600 \| +800 \| +800 \|', text)
    assert re.search(r'\| dead codes +\| +below 50 \| +24 \| +24 \|', text)
    assert '- ema_bank: no finding.' in text and '- gradient: spikes.' in text
    assert '64 tokens per image' in text and 'docs/sources.md' in text
    assert (tmp_path / 'curves.png').read_bytes().startswith(b'\x89PNG')


def test_a_study_of_several_seeds_keeps_what_each_run_told(config, tmp_path):
    """Perplexities of 780 and 820: their mean and range; what each run's records say is kept."""
    losses = {0: np.linspace(2, 1, 400), 1: np.linspace(2, 1, 400)}
    losses[1][[150, 250]] *= 10
    folder = types.SimpleNamespace(path=tmp_path, history=lambda name, s: history(losses[s]))
    more = {'tokens': 640.0, 'reliability': {'confidence': [0], 'accuracy': [0], 'count': [10]}}
    seeds = [FINAL | more | {'seed': s, 'perplexity': 780.0 + 40 * s} for s in (0, 1)]
    results = {
        'config': config | {'seeds': 2},
        'command': 'python train.py --config configs/tokenizer.py --config.seeds=2',
        'methods': {'ema': {'spec': config['quantizers']['ema'], 'seeds': seeds}},
        'findings': [
            {'name': 'spikes', 'severity': 'note', 'evidence': {}, 'remedy': 'none'}
            | {'method': 'ema', 'seed': 1}
        ],
    }
    found = study.conclude(read_results(results), folder)
    kept = [seed.figures for seed in found.methods['ema'].seeds]
    assert [seed['spikes'] for seed in kept] == [0, 2]
    assert [seed['perplexity_by_step_1000'] for seed in kept] == [800, 800]
    text = (tmp_path / 'report.md').read_text()
    assert re.search(r'\| perplexity +\| +above 600 \| +800 \(780 to 820\) \|', text)
    assert re.search(r'\| spikes +\| +below 1 \| +1 \(0 to 2\) \|', text)
    assert '- ema: spikes (1 of 2 runs).' in text and '--config.seeds=2' in text


def test_a_method_with_fewer_epochs_lacks_the_later_figures(config, tmp_path):
    """The loss at step 5,000 stays for those that have it, and the text names the epochs."""
    steps = {'ema': 5000, 'before': 400}
    folder = types.SimpleNamespace(
        path=tmp_path, history=lambda name, s: history(np.linspace(2, 1, steps[name]))
    )
    methods = {
        name: {'spec': config['quantizers'][name], 'seeds': [FINAL | {'tokens': 640.0, 'seed': 0}]}
        for name in steps
    }
    for method in methods.values():
        method['seeds'][0]['reliability'] = {'confidence': [0], 'accuracy': [0], 'count': [10]}
    changed = config | {'epochs': 4, 'overrides': {'before': {'epochs': 1}}}
    study.conclude(read_results({'config': changed, 'methods': methods}), folder)
    text = (tmp_path / 'report.md').read_text()
    assert 'for 4 epochs with batches of 32 (`before` for 1 epoch).' in text
    assert re.search(r'\| quantizer loss at step 5,000 +\| +below 0.05 \| +1\.01 \| +\|', text)


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
        bounds = [(found[k], *bound) for k, bound in targets.TARGETS.items() if k in found]
        met = [(figure > bound) == above for figure, bound, above in bounds]
        assert all(met) == (name != 'before'), (name, found)
        findings = [f['name'] for f in results['findings'] if f['method'] == name]
        assert (findings == []) == (name != 'before'), (name, findings)
