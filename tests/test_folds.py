"""Folds of image sets: what each holds, and a comparison that runs over all of them."""

import json
from collections import Counter

import numpy as np
import pytest
from support import refuse
from support import small_config as config
from test_data import needs_shared

from vqjax import intervals, studies
from vqjax.results import summaries
from vqjax.results.records import Results
from vqjax.trainer import errors, experiment
from vqjax.trainer.config import settings
from vqjax.trainer.data import sets, tfds
from vqjax.trainer.data.folds import parts_of
from vqjax.trainer.data.recordings import Cutting
from vqjax.trainer.data.records import InMemory, whole
from vqjax.trainer.run import runs


@pytest.mark.parametrize('folds, repeat', [(2, 0), (5, 0), (5, 3), (7, 1)])
def test_every_example_is_tested_once_a_repetition_and_by_label(folds, repeat):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(6), 30 + np.arange(6)))
    splits = [parts_of('x', labels, folds, fold, repeat, 4) for fold in range(folds)]
    tested = np.concatenate([s['test'] for s in splits])
    np.testing.assert_array_equal(np.sort(tested), np.arange(len(labels)))
    for found in splits:
        together = np.concatenate(list(found.values()))
        np.testing.assert_array_equal(np.sort(together), np.arange(len(labels)))
        for split in ('test', 'validation'):
            of_label = np.bincount(labels[found[split]], minlength=6) / np.bincount(labels)
            assert np.ptp(of_label) < 0.08
    # One size of training, so that every fold takes the same steps.
    assert len({len(s['train']) for s in splits}) == 1
    assert np.ptp([len(s['test']) for s in splits]) <= 1


def test_repetitions_are_dealt_out_in_other_ways_and_always_the_same_ones():
    labels = np.arange(200) % 10
    first, second, again = (parts_of('x', labels, 5, 0, r, 4)['test'] for r in (0, 1, 0))
    np.testing.assert_array_equal(first, again)
    assert len(np.intersect1d(first, second)) < 20


def test_five_folds_of_digits_are_of_the_sizes_of_its_splits():
    images = []
    for fold in range(5):
        found = sets.load('digits', cutting=Cutting(folds=5, fold=fold))
        assert found.info.num_examples['train'] == 1077
        assert found.info.num_examples['test'] in (359, 360)
        split = found.splits['test']
        images.append(split.records.images[split.indices])
        train = found.splits['train'].records.images[found.splits['train'].indices]
        assert found.mean == pytest.approx(train.mean(), rel=1e-5)  # nothing of the test split
    everything = np.concatenate(images)
    assert len(everything) == 1797
    for value in (everything, sets.load('digits').splits['train'].records.images):
        assert value.shape[1:] == (8, 8, 1)


def test_seeds_go_through_folds_and_then_through_the_next_repetition():
    given = {'folds': 3, 'seeds': 6}
    assert [settings.fold_of(given, s) for s in range(6)] == [
        (0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2),
    ]  # fmt: skip
    found = settings.cutting(given, 5)
    assert (found.folds, found.fold, found.repeat) == (3, 2, 1)
    # One fold for all seeds, and none.
    assert settings.fold_of(given | {'fold': 1}, 5) is None
    assert settings.cutting(given | {'fold': 1}, 5)[3:] == (3, 1, 0)
    assert settings.fold_of({}, 5) is None and settings.cutting({}, 5) == Cutting()


@pytest.mark.slow
def test_a_comparison_over_folds_compiles_once_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    given = config(folds=3, seeds=3, writers='')
    compiled, finish = [], runs.Run.finish
    stages = experiment.stages
    monkeypatch.setattr(
        experiment, 'stages', lambda *args: compiled.append(args[1]) or stages(*args)
    )

    def stop_in_the_second_fold(run):
        if run.seed == 1:
            raise errors.RunError('stopped')
        finish(run)

    monkeypatch.setattr(runs.Run, 'finish', stop_in_the_second_fold)
    with pytest.raises(errors.RunError, match='stopped'):
        studies.run(given, str(tmp_path / 'run'))
    assert compiled == ['none']
    monkeypatch.setattr(runs.Run, 'finish', finish)
    results = studies.run(given, str(tmp_path / 'run'))
    assert compiled == ['none', 'none', 'vq_ema']  # once a method and command, for all folds
    kept = json.loads((tmp_path / 'run' / 'results.json').read_text())
    for method in kept['methods'].values():
        folds = [seed['fold'] for seed in method['seeds']]
        assert [(f['repeat'], f['fold']) for f in folds] == [(0, 0), (0, 1), (0, 2)]
        assert sum(f['test'] for f in folds) == 1797
        assert [s['correct']['examples'] for s in method['seeds']] == [f['test'] for f in folds]
        assert len({f['train'] for f in folds}) == 1
    none, vq = (m['seeds'] for m in results['methods'].values())
    apart = [a['accuracy'] - b['accuracy'] for a, b in zip(vq, none, strict=True)]
    ratio = 599 / none[0]['fold']['train']
    expected = intervals.corrected_t(apart, ratio)
    assert summaries.compare(Results.read(results), 'vq_ema') == pytest.approx(expected)
    text = (tmp_path / 'run' / 'report.md').read_text()
    assert '2 methods were trained with 3 folds each' in text and 'Nadeau and Bengio 2003' in text


def test_fewer_seeds_than_folds_are_the_first_folds(tmp_path):
    given = config(folds=5, seeds=1, methods='none', epochs=1)
    seeds = studies.run(given, str(tmp_path / 'run'))['methods']['none']['seeds']
    assert [s['fold']['fold'] for s in seeds] == [0] and seeds[0]['correct']['examples'] == 360


@pytest.mark.parametrize(
    'changes, text',
    [
        ({'folds': 4, 'seeds': 6}, 'seeds is 6 and folds is 4: give seeds a multiple of folds'),
        ({'folds': 200, 'seeds': 200}, 'has 174 examples of class 8: give at most that many folds'),
        ({'folds': 1}, 'folds of at least 2'),
        ({'fold': -2}, 'fold is -2: give at least -1'),
    ],
)
def test_folds_that_cannot_be_are_one_sentence_and_leave_nothing_behind(tmp_path, changes, text):
    refuse(text, tmp_path / 'a' / 'run', **changes)
    assert not list(tmp_path.iterdir())


def records(number):
    """Images whose every pixel is the image's own number."""
    images = np.broadcast_to(np.arange(number).reshape(-1, 1, 1, 1), (number, 4, 4, 1))
    return InMemory(images.astype(np.uint8), (np.arange(number) % 4).astype(np.int32))


def read_of(splits):
    found = {name: whole(records(n), in_memory=True) for name, n in splits.items()}
    return lambda *_: (4, (4, 4, 1), found)


@pytest.mark.parametrize('split', ['test', 'validation'])
def test_a_fixed_test_set_is_kept_as_it_is(monkeypatch, split):

    monkeypatch.setattr(tfds, 'open_recordings', lambda *_: None)
    monkeypatch.setattr(sets, '_read_once', read_of({'train': 80, split: 20}))
    with pytest.raises(ValueError, match=f"'own' has a {split} split of its own, and a fixed one"):
        sets.load('own', cutting=Cutting(folds=4))


def test_a_set_without_a_test_split_is_dealt_out(monkeypatch):

    monkeypatch.setattr(tfds, 'open_recordings', lambda *_: None)
    monkeypatch.setattr(sets, '_read_once', read_of({'train': 100}))
    tested = Counter()
    for fold in range(4):
        found = sets.load('own', cutting=Cutting(folds=4, fold=fold))
        assert found.info.num_examples == {'train': 67, 'validation': 8, 'test': 25}
        images, _, good = found.splits['test'].read(np.arange(25))
        assert good.all()
        tested.update(images[:, 0, 0, 0].tolist())
    assert tested == Counter(range(100))


@needs_shared
def test_mnist_keeps_its_test_split():
    from test_data import SHARED

    with pytest.raises(errors.RunError, match='dataset mnist: .* kept as it is: set folds to 0'):
        sets.load_dataset('mnist', str(SHARED), Cutting(folds=5))
