"""The search of settings: what is drawn, what is chosen, and when the test split is opened."""

import dataclasses
import json
import math
import re
import shutil

import numpy as np
import pytest
from scipy import stats
from support import ROOT, configuration
from support import small_config as config

from vqjax import make, studies
from vqjax.trainer import errors, experiment, search
from vqjax.trainer.config import settings
from vqjax.trainer.config.space import best, draw, make_trials, mean
from vqjax.trainer.data import sets
from vqjax.trainer.data.records import Split
from vqjax.trainer.run import runs

LR = {'learning_rate': {'log_uniform': (1e-3, 1e-2)}}
SPACE = {'every': LR, 'vq_ema': {'quantizer': {'decay': {'uniform': (0.9, 0.99)}}}}


def searching(**changes):
    """Two trials of each of two methods, of one epoch."""
    given = {'trials': 2, 'trial_seeds': 2, 'space': SPACE, 'epochs': 1, 'writers': ''}
    return config(**(given | changes))


def drawn_rates(given):
    """Learning rates of the trials of none."""
    drawn = trials_of(**given)['none']
    return [trial.settings['learning_rate'] for trial in drawn]


def trials_of(**changes):
    """The trials of such a search."""
    given = settings.check(searching(**changes))
    return make_trials(given.config, given.methods)


def draws(distribution, number=2000, method='m'):
    given = {'quantizers': {method: None}, 'overrides': {}, 'trials': number}
    given |= {'space': {method: {'learning_rate': distribution}}}
    found = make_trials(given, [method])
    return [trial.settings['learning_rate'] for trial in found[method]]


# What is drawn ---------------------------------------------------------------------------------


def test_log_uniform_draws_are_uniform_in_their_logarithm():
    found = np.array(draws({'log_uniform': (1e-4, 1e-1)}))
    assert found.min() >= 1e-4 and found.max() <= 1e-1
    place = (np.log10(found) + 4) / 3
    assert stats.kstest(place, 'uniform').pvalue > 0.01
    assert np.mean(found < 1e-3) == pytest.approx(1 / 3, abs=0.04)


def test_uniform_draws_and_choices_have_their_shares():
    found = np.array(draws({'uniform': (0.9, 0.99)}))
    assert found.min() >= 0.9 and found.max() <= 0.99
    assert stats.kstest((found - 0.9) / 0.09, 'uniform').pvalue > 0.01
    chosen = draws({'choice': (1, 'two', {'name': 'fsq'})})
    shares = [chosen.count(x) / len(chosen) for x in (1, 'two', {'name': 'fsq'})]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.04)


@pytest.mark.parametrize('u', [0.0, 0.3, 1 - 2**-53])
@pytest.mark.parametrize('bounds', [(0.95, 0.9995), (0.1234567, 0.1234568), (2.0, 2.0)])
@pytest.mark.parametrize('kind', ['uniform', 'log_uniform'])
def test_a_draw_stays_inside_its_bounds_though_it_is_rounded(kind, bounds, u):
    assert bounds[0] <= draw({kind: bounds}, u) <= bounds[1]


def test_draws_depend_on_method_field_and_number_of_the_trial_alone():
    every = trials_of(methods='all', trials=4)
    assert {name: len(found) for name, found in every.items()} == dict.fromkeys(every, 4)
    assert every == trials_of(methods='all', trials=4)
    fewer = trials_of(methods='vq_ema', trials=2)
    assert fewer == {'vq_ema': every['vq_ema'][:2]}
    rates = {name: [t.settings['learning_rate'] for t in found] for name, found in every.items()}
    assert len({x for found in rates.values() for x in found}) == 12  # no method has another's
    more = {'every': LR | {'weight_decay': {'uniform': (0.0, 0.1)}}}
    again = trials_of(space=more, methods='none', trials=4)['none']
    assert [t.settings['learning_rate'] for t in again] == rates['none']


def test_a_trial_is_its_method_with_the_drawn_values_in_place():
    inner = {'name': 'vq_ema', 'num_codes': 16, 'decay': 0.9}
    given = searching(
        quantizers={'rvq': {'name': 'residual', 'num_stages': 2, 'inner': inner}},
        methods='all',
        overrides={'rvq': {'epochs': 3}},
        space={
            'rvq': {
                'quantizer': {
                    'inner': {'commitment': {'choice': (0.75,)}, 'revival': {'choice': (None,)}}
                },
                'weight_decay': {'choice': (0.5,)},
            }
        },
    )
    first, second = trials_of(**given)['rvq']
    assert first.name == 'rvq-00' and second.name == 'rvq-01'
    assert first.settings == {
        'quantizer.inner.commitment': 0.75, 'quantizer.inner.revival': None, 'weight_decay': 0.5,
    }  # fmt: skip
    assert first.overrides == {'epochs': 3, 'weight_decay': 0.5}
    changed = inner | {'commitment': 0.75, 'revival': None}
    assert first.spec == {'name': 'residual', 'num_stages': 2, 'inner': changed}
    assert given['quantizers']['rvq']['inner'] == inner  # which stays as it was


def test_the_best_trial_is_that_of_the_highest_accuracy_then_of_the_lowest_nll():
    assert best([0.5, 0.9, 0.7], [1.0, 1.0, 0.1]) == 1
    assert best([0.9, 0.9, 0.9], [0.3, 0.2, 0.2]) == 1
    assert best([0.9, 0.9], [math.nan, 5.0]) == 1
    assert best([None, 0.1, math.nan], [None, 9.0, 0.0]) == 1
    assert best([None, None], [None, None]) is None
    assert mean([0.25, 0.75]) == 0.5 and mean([0.25, None]) is None


def test_the_space_of_the_digits_keeps_rates_matched_and_makes_quantizers():
    found = trials_of(**configuration('digits') | {'trials': 24})
    assert {name: len(t) for name, t in found.items()} == dict.fromkeys(
        ('none', 'vq_ema', 'fsq', 'rvq'), 24
    )
    bits = {'vq_ema': (8, 8), 'fsq': (15.9, 16), 'rvq': (32, 32)}
    for name, (low, high) in bits.items():
        for trial in found[name]:
            assert low <= make(trial.spec).bits <= high
            assert {'learning_rate', 'weight_decay'} < trial.settings.keys()


def test_the_digits_have_the_outcome_of_the_committed_search_and_its_space():
    kept = json.loads((ROOT / 'docs' / 'comparison' / 'trials.json').read_text())['tuning']
    given = configuration('digits')
    assert kept['space'] == json.loads(json.dumps(given['space']))
    drawn = trials_of(**given | {'trials': kept['trials']})
    for name, said in kept['methods'].items():
        means = [mean(trial['accuracy']) for trial in said['trials']]
        assert means[said['together']] == max(means)
        trial = drawn[name][said['together']]
        assert (
            json.loads(json.dumps(trial.settings)) == said['trials'][said['together']]['settings']
        )
        assert (
            trial.overrides == given['overrides'][name] and trial.spec == given['quantizers'][name]
        )


# A whole search --------------------------------------------------------------------------------


class Watched(Split):
    """A test split that tells when it is read."""

    def read(self, positions):
        assert OPENED[0].exists(), 'the test split is read before it is opened'
        READS.append(len(positions))
        return super().read(positions)


OPENED, READS = [], []


@pytest.fixture(scope='module')
def searched(tmp_path_factory):
    """A search in three parts, broken off among the trials and among the final runs."""
    folder = tmp_path_factory.mktemp('search') / 'run'
    finish, load, finished = runs.Run.finish, sets.load_dataset, []

    def watched(*args):
        found = load(*args)
        test = Watched(**vars(found.splits['test']))
        return dataclasses.replace(found, splits=found.splits | {'test': test})

    def breaking(run):
        if (run.method, run.seed) == stop:
            raise errors.RunError('broken off')
        finish(run)
        finished.append((run.method, run.seed))

    OPENED[:], READS[:] = [folder / search.OPENED], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs.Run, 'finish', breaking)
        patch.setattr(sets, 'load_dataset', watched)
        stop = 'vq_ema-00', 1
        with pytest.raises(errors.RunError, match='broken off'):
            studies.run(searching(), str(folder))
        assert not OPENED[0].exists() and not READS
        stop = 'vq_ema', 0
        with pytest.raises(errors.RunError, match='broken off'):
            studies.run(searching(), str(folder))
        said = OPENED[0].read_text()
        shutil.rmtree(folder / 'search')  # nothing is searched once the test split was opened
        stop = None
        results = studies.run(searching(), str(folder))
    assert OPENED[0].read_text() == said
    return folder, results, finished


def test_every_run_is_taken_once_and_the_test_split_read_at_the_end_alone(searched):
    _, _, finished = searched
    runs_of = [(f'{m}-{i:02d}', s) for m in ('none', 'vq_ema') for i in (0, 1) for s in (0, 1)]
    assert finished == runs_of + [(m, s) for m in ('none', 'vq_ema') for s in (0, 1)]
    assert READS  # by the final runs; `Watched` fails before


def test_the_chosen_setting_is_that_of_the_best_recorded_validation_score(searched):
    folder, results, _ = searched
    kept = json.loads((folder / 'results.json').read_text())
    opened = json.loads((folder / search.OPENED).read_text())
    assert kept['tuning'] == opened['tuning'] | {'test_opened': opened['time']}
    assert re.fullmatch(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00', opened['time'])
    assert results['tuning']['trials'] == 2 and not results['tuning']['nested']
    final = json.loads((folder / 'final' / 'config.json').read_text())
    drawn = trials_of()
    for name, said in results['tuning']['methods'].items():
        assert [t['settings'] for t in said['trials']] == [t.settings for t in drawn[name]]
        means = [np.mean(t['accuracy']) for t in said['trials']]
        assert len(said['trials'][0]['nll']) == 2
        best = int(np.argmax(means))
        assert said['together'] == best and said['chosen'] == [best, best]
        trial = drawn[name][best]
        assert final['overrides'][name] == trial.overrides == results['methods'][name]['overrides']
        assert final['quantizers'][name] == trial.spec
        assert [s['seed'] for s in results['methods'][name]['seeds']] == [0, 1]
        for seed, run in enumerate(results['methods'][name]['seeds']):
            # The final run is the chosen trial once more, and is now told on the test split.
            scored = said['trials'][best]['accuracy'][seed]
            assert run['validation_accuracy'] == pytest.approx(scored, abs=1e-6)
            assert run['correct']['examples'] == 360 and 'split' not in run
    text = (folder / 'report.md').read_text()
    assert 'Each method had 2 random trials' in text and opened['time'] in text
    for name, said in opened['tuning']['methods'].items():
        trial = drawn[name][said['chosen'][0]]
        chosen = ', '.join(f'{k} {v}' for k, v in trial.settings.items())
        assert re.search(rf'\| {name} +\| {re.escape(chosen)} +\|', text)
    assert not (folder / 'final' / 'checkpoints').joinpath('none-00').exists()


def test_another_search_in_a_folder_that_has_opened_its_test_split_is_refused(searched):
    folder, _, _ = searched
    for changes in ({'trials': 3}, {'trials': 0}, {'space': {'every': LR}}):
        with pytest.raises(errors.RunError, match='holds a run of another configuration'):
            studies.run(searching(**changes), str(folder))


@pytest.mark.slow
def test_each_fold_chooses_for_itself_on_parts_without_its_test_images(tmp_path, monkeypatch):
    finish, held = runs.Run.finish, []
    monkeypatch.setattr(
        runs.Run,
        'finish',
        lambda run: held.append((run.method, run.seed, run.context)) or finish(run),
    )
    space = {'every': {'learning_rate': {'choice': (1e-3, 1.1e-3)}}}
    given = searching(folds=2, methods='none', space=space, trials=3)
    rates = drawn_rates(given)
    assert set(rates) == {1e-3, 1.1e-3}
    results = studies.run(given, str(tmp_path / 'run'))
    said = results['tuning']['methods']['none']
    assert results['tuning']['nested'] and results['tuning']['seeds'] == 2
    for fold in (0, 1):
        scores = [(t['accuracy'][fold], -t['nll'][fold]) for t in said['trials']]
        assert scores[said['chosen'][fold]] == max(scores)
    splits = {}
    for method, seed, context in held:
        parts = {name: set(split.indices) for name, split in context.dataset.splits.items()}
        if context.settings.split == 'validation':
            assert parts.keys() == {'train', 'validation'}
            splits[seed] = parts
        else:
            assert not parts['test'] & (splits[seed]['train'] | splits[seed]['validation'])
            index = said['chosen'][seed]
            own = context.settings.methods[method]
            assert own.learning_rate == said['trials'][index]['settings']['learning_rate']
    assert [s['fold']['fold'] for s in results['methods']['none']['seeds']] == [0, 1]
    text = (tmp_path / 'run' / 'report.md').read_text()
    assert 'The search is nested' in text and '| none, 0 |' in text and '| none, 1 |' in text


@pytest.mark.slow
def test_a_trial_that_diverges_is_the_worst_and_ends_nothing(tmp_path):
    space = {'every': {'learning_rate': {'choice': (1e30, 1e-3)}}}
    given = searching(methods='none', space=space, trial_seeds=1, seeds=1, trials=3)
    rates = drawn_rates(given)
    assert set(rates) == {1e30, 1e-3}
    said = studies.run(given, str(tmp_path / 'run'))['tuning']['methods']['none']
    assert [t['accuracy'] == [None] for t in said['trials']] == [rate == 1e30 for rate in rates]
    assert rates[said['together']] == 1e-3


# What is refused -------------------------------------------------------------------------------


def refused(tmp_path, text, **changes):
    with pytest.raises(errors.RunError) as error:
        studies.run(searching(**changes), str(tmp_path / 'a' / 'run'))
    assert text in str(error.value) and '\n' not in str(error.value), str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'space, text',
    [
        ({'every': {'learning_rate': {'normal': (0, 1)}}}, "space.every.learning_rate has the unk"),
        ({'every': {'learning_rate': {'log_unifrom': (1, 2)}}}, 'did you mean log_uniform?'),
        ({'every': {'learning_rate': 3e-3}}, 'space.every.learning_rate is 0.003: give a distr'),
        ({'every': {'learning_rate': {}}}, 'space.every.learning_rate is {}: give a distribution'),
        ({'every': {'learning_rate': {'choice': ()}}}, 'learning_rate.choice is (): give a list'),
        ({'every': {'learning_rate': {'uniform': (2, 1)}}}, 'uniform is from 2 to 1: give the low'),
        ({'every': {'learning_rate': {'uniform': (1,)}}}, 'uniform is (1,): give two numbers'),
        ({'every': {'learning_rate': {'uniform': ('a', 1)}}}, "is ('a', 1): give two numbers"),
        ({'every': {'learning_rate': {'log_uniform': (0, 1)}}}, 'log_uniform begins at 0: give bo'),
        ({'every': {'learning_rat': {'uniform': (1, 2)}}}, 'did you mean learning_rate?'),
        ({'every': {'seeds': {'choice': (1, 2)}}}, "space.every names a field 'seeds' that there"),
        ({'every': LR, 'vq_emu': LR}, "space names a method 'vq_emu': config.quantizers has none"),
        ({'none': LR}, "space has nothing for the method 'vq_ema'"),
        (
            {'every': LR, 'vq_ema': {'quantizer': {'levels': {'choice': (1,)}}}},
            "space.vq_ema names 'quantizer.levels', and the spec of 'vq_ema' has no 'levels'",
        ),
        (
            {'every': {'quantizer': {'decay': {'choice': (0.9,)}}}},
            "the spec of 'none' has no 'decay' there: it has nothing",
        ),
        (
            {'every': LR, 'vq_ema': {'quantizer': {'decay': {'a': {'choice': (1,)}}}}},
            "'quantizer.decay.a', and the spec of 'vq_ema' has no 'a'",
        ),
        (
            {'every': LR, 'vq_ema': {'quantizer': {'decay': {'choice': (1.5,)}}}},
            'trial vq_ema-00 (learning_rate',
        ),
        (
            {'every': LR, 'vq_ema': {'quantizer': {'choice': ({'name': 'vqema'},)}}},
            "name must be one of",
        ),
        ({'every': LR, 'vq_ema': {'epochs': {'uniform': (1, 2)}}}, 'epochs is 1.'),
        ({'every': LR, 'none': 3}, 'space.none is 3: give a distribution'),
    ],
)  # fmt: skip
def test_a_wrong_space_is_one_sentence_that_names_its_field(tmp_path, space, text):
    refused(tmp_path, text, space=space)


def test_a_whole_spec_and_a_part_of_it_are_not_drawn_both():
    given = settings.check(searching()).config
    other = {'quantizer': {'choice': (None,)}}
    clash = {'every': {'quantizer': {'decay': {'choice': (0.9,)}}}, 'vq_ema': other}
    with pytest.raises(errors.RunError, match='draws quantizer of the method .vq_ema. as a wh'):
        make_trials(given | {'space': clash}, ['vq_ema'])


@pytest.mark.parametrize(
    'changes, text',
    [
        ({'trials': -1}, 'trials is -1: give at least 0'),
        ({'trial_seeds': 0}, 'trial_seeds is 0: give at least 1'),
        ({'study': 'remedies'}, "trials is 2, which only the study comparison knows"),
        ({'trials': 0, 'split': 'train'}, "split is 'train': choose one of test, validation"),
        (
            {'classification_weight': 0.0, 'reconstruction_weight': 1.0},
            'classification_weight of none is 0, and trials are chosen by accuracy',
        ),
    ],
)  # fmt: skip
def test_a_search_that_cannot_be_is_refused(tmp_path, changes, text):
    refused(tmp_path, text, **changes)


def test_a_trial_that_does_not_fit_the_features_is_named_and_leaves_nothing(tmp_path):
    space = {'fsq': {'quantizer': {'levels': {'choice': ((3,) * 5,)}}}}
    text = 'trial fsq-00 (quantizer.levels (3, 3, 3, 3, 3)): fsq-00 seed 0: '
    refused(tmp_path, text, space=space, methods='fsq')


def test_the_trainer_itself_searches_nothing(tmp_path):
    with pytest.raises(errors.RunError, match='trials is 2: only the study comparison'):
        experiment.run(searching(), str(tmp_path / 'run'))
    assert not list(tmp_path.iterdir())
