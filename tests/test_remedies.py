"""The comparison of remedies: each is one change to the baseline, and the verdicts follow."""

import copy
import json
import re
import types

import numpy as np
import pytest
from support import configuration

from vqjax import VQEMA, Guarded, metrics, patients
from vqjax.studies import remedies, remedies_report
from vqjax.trainer import data
from vqjax.trainer.settings import RunError
from vqjax.trainer.summaries import summarise

INFO = types.SimpleNamespace(num_classes=10, image_shape=(8, 8, 1))


@pytest.fixture(scope='module')
def config():
    return configuration('remedies')


def test_every_remedy_is_a_run_and_differs_from_the_baseline_in_what_it_names(config):
    made = {n: remedies.make_patient(config, n, INFO)[0] for n in config['remedies']}
    weak = made.pop('weak')
    assert weak.quantizer == VQEMA(
        256, decay=0.99, commitment=1.0, init='normal', revival=None
    )  # fmt: skip
    control = {'kmeans_after', 'none'}
    assert len({p for n, p in made.items() if n not in control}) == len(made) - len(control)
    for name, patient in made.items():
        changed = config['remedies'][name].keys() - {'codes_after'}
        for field in patients.Patient.__dataclass_fields__:
            same = getattr(patient, field) == getattr(weak, field)
            assert same == (field not in changed) or field == 'steps', (name, field)
        assert patient.steps * patient.batch_size == weak.steps * weak.batch_size, name
    assert made['reset_on_collapse'].quantizer == Guarded(weak.quantizer)
    assert made['loss_weight_warm_up'].quantizer_weight(0) == 0
    assert made['loss_weight_warm_up'].quantizer_weight(600) == 1
    assert made['gumbel'].quantizer.temperature(0) == 5.0
    assert made['gumbel'].quantizer.temperature(600) == pytest.approx(0.1)
    assert set(remedies_report.CLAIMS) <= set(config['remedies'])


@pytest.mark.parametrize(
    'change, message',
    [
        ({'steps': 50}, 'steps is 50: give a multiple of 60'),
        ({'seeds': 0}, 'seeds is 0'),
        ({'methods': 'weak,cure'}, "unknown method 'cure'"),
        ({'epochs': 3}, "unknown config field 'epochs'"),
        ({'remedies': {'weak': {'decay': 0.5}}}, "remedies.weak has no field 'decay'"),
        ({'remedies': {'weak': {'quantizer': {'name': 'vq_emu'}}}}, 'remedies.weak: name must be'),
    ],
)
def test_a_wrong_configuration_is_refused_by_name(config, tmp_path, change, message):
    with pytest.raises(RunError, match=re.escape(message)):
        remedies.run(copy.deepcopy(config) | change, str(tmp_path / 'run'))


def method(accuracies, perplexity):
    seeds = [
        {'seed': s, 'accuracy': a, 'perplexity': perplexity, 'active_codes': 2 * perplexity}
        for s, a in enumerate(accuracies)
    ]
    collapses = len(seeds) if perplexity < 10 else 0
    return {
        'summary': summarise(seeds),
        'seeds': seeds,
        'bits': 8.0,
        'spec': {'name': 'vq_ema'},
        'collapse': metrics.wilson_interval(collapses, len(seeds))._asdict(),
    }


@pytest.fixture
def results():
    rng = np.random.default_rng(0)
    weak, sound = rng.uniform(0.4, 0.7, 10), rng.uniform(0.96, 0.98, 10)
    return {
        'config': {
            'dataset': 'digits', 'seeds': 10, 'steps': 300, 'baseline': {'batch_size': 64},
        },
        'environment': {'vqjax': '0'},
        'methods': {
            'none': method(sound, 100.0),
            'weak': method(weak, 5.0),
            'decay_95': method(sound - 0.005, 40.0),
            'init_unit_sphere': method(weak + rng.uniform(-0.01, 0.01, 10), 5.0),
            'clipped_gradient': method(weak - 0.2, 2.0),
            'init_kmeans': method(weak + 0.1, 6.0),
            'default': method(sound - 0.004, 100.0),
            'reset_on_collapse': method(sound - 0.009, 40.0),
        },
    }  # fmt: skip


def test_verdicts_follow_the_paired_intervals_and_name_the_collapses(results):
    said = {name: remedies_report.verdict(name, results) for name in results['methods']}
    assert said['decay_95'] == 'helps, within 2 points of none'
    assert said['init_unit_sphere'].startswith('no effect shown, still')
    assert said['clipped_gradient'].startswith('harms') and '100%' in said['clipped_gradient']
    assert said['init_kmeans'].startswith('helps, still') and '100%' in said['init_kmeans']
    assert said['weak'] == ''


def test_a_claim_holds_where_its_remedy_prevents_the_collapse(results):
    methods = results['methods']
    rng = np.random.default_rng(1)
    weak = np.array([s['accuracy'] for s in methods['weak']['seeds']])
    methods['l2_normalised'] = method(weak + 0.3, 12.0)  # said to harm
    methods['revival'] = method(weak + 0.3, 60.0)
    methods['revival_every_step'] = method(weak + 0.3 + rng.normal(0, 0.01, 10), 60.0)
    methods['reconstruction'] = method(weak, 5.0)  # said to be needed
    methods['none']['spec'] = None
    said = {name: remedies_report.holds(name, results) for name in (
        'none', 'decay_95', 'init_kmeans', 'init_unit_sphere', 'clipped_gradient', 'l2_normalised',
        'revival', 'revival_every_step', 'reconstruction',
    )}  # fmt: skip
    assert said == {
        'none': 'holds', 'decay_95': 'holds', 'init_kmeans': 'in part', 'init_unit_sphere': 'fails',
        'clipped_gradient': 'fails', 'l2_normalised': 'fails', 'revival': 'holds',
        'revival_every_step': 'not shown',
        'reconstruction': 'fails: default, decay_95, reset_on_collapse do without',
    }  # fmt: skip
    del methods['weak']
    assert remedies_report.holds('decay_95', results) == ''


def test_the_report_states_every_remedy_claim_and_interval(results, tmp_path):
    remedies_report.write(tmp_path, results)
    text = (tmp_path / 'report.md').read_text()
    assert '| seed 001 | decay .95 adapts faster | holds | decay_95 | helps, within 2' in text
    assert '100 (72 to 100)' in text  # Wilson, ten of ten
    assert 'collapses in 0% and ends -0.5 (-0.5 to -0.5) points from it' in text
    assert 'configs/remedies.py --config.dataset=digits --config.seeds=10' in text
    assert all(name in text for name in results['methods'])
    assert (tmp_path / 'remedies.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.long
def test_a_guard_brings_a_collapsing_run_within_two_points_of_the_healthy_one(config, tmp_path):
    names = 'none,weak,reset_on_collapse,default,kmeans_after'
    found = remedies.run(config | {'methods': names, 'seeds': 3}, str(tmp_path))['methods']
    assert found['weak']['collapse']['mean'] == 1
    assert found['reset_on_collapse']['collapse']['mean'] == 0
    healthy = found['default']['summary']['accuracy']['mean']
    assert found['reset_on_collapse']['summary']['accuracy']['mean'] > healthy - 0.02
    assert found['weak']['summary']['accuracy']['mean'] < healthy - 0.2
    assert json.loads((tmp_path / 'results.json').read_text())['methods'] == found


def test_codes_fitted_afterwards_are_the_kmeans_centroids_of_the_encoder(config):
    dataset = data.load('digits')
    config = config | {'steps': 60}
    patient, num_codes = remedies.make_patient(config, 'kmeans_after', dataset.info)
    course = patients.treat(patient, dataset)
    found = remedies.fit_after(patient, num_codes, course, dataset)
    assert found['active_codes'] > 100 and found['perplexity'] > 50
    assert abs(found['accuracy'] - course.final['accuracy']) < 0.1
