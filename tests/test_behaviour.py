"""The study of behaviours: its sessions, its figures over folds, and a whole run in small."""

import dataclasses
import json
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from support import read_results

pytest.importorskip('aeon')

from vqjax import FSQ, VQEMA, Product, Projected, Residual, studies
from vqjax.studies.behaviour import report, sessions
from vqjax.studies.behaviour.outcome import Behaviours, SequenceModels
from vqjax.trainer.data.recordings import Recording
from vqjax.trainer.errors import RunError


def recording(label, steps, start):
    signals = start + np.arange(steps * 2, dtype=np.float32).reshape(steps, 2)
    return Recording(signals, label)


@given(
    st.lists(st.tuples(st.sampled_from('abc'), st.integers(1, 9)), min_size=1, max_size=7),
    st.integers(1, 3),
    st.integers(1, 8),
    st.integers(0, 3),
)
def test_sessions_hold_every_recording_whole_as_often_as_asked(kinds, rounds, length, seed):
    recordings = [recording(label, n, 100 * i) for i, (label, n) in enumerate(kinds)]
    found = sessions.draw(recordings, 'abc', rounds, length, seed)
    rows = np.concatenate([s[real] for s, real in zip(found.signals, found.mask, strict=True)])
    labels = found.labels[found.mask]
    assert len(found.labels) == rounds * -(-len(kinds) // length)
    assert (found.labels[~found.mask] == -1).all() and np.isnan(found.signals[~found.mask]).all()
    at = 0
    seen = []
    while at < len(rows):
        number = int(rows[at, 0]) // 100
        whole = recordings[number]
        end = at + len(whole.signals)
        np.testing.assert_array_equal(rows[at:end], whole.signals)
        assert (labels[at:end] == 'abc'.index(whole.label)).all()
        seen.append(number)
        at = end
    assert sorted(seen) == sorted(list(range(len(kinds))) * rounds)


def test_the_order_is_random_and_the_same_again():
    recordings = [recording('a', 1, 10 * i) for i in range(30)]
    one, again, other = (sessions.draw(recordings, 'a', 1, 30, seed).signals for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


@pytest.mark.parametrize(
    'quantizer, codes, sizes',
    [
        (VQEMA(8), [3, -1], (8,)),
        (Residual(VQEMA(8), 3), [[3, 1, 7], [-1, -1, -1]], (8, 8, 8)),
        (Product(Residual(VQEMA(4), 2), 2), [[[3, 1], [0, 2]], [[-1, -1], [-1, -1]]], (4,) * 4),
    ],
)
def test_every_part_of_a_code_is_an_axis(quantizer, codes, sizes):
    found, of_each = sessions.axes_of(quantizer, np.array(codes))
    assert of_each == sizes
    np.testing.assert_array_equal(found, np.array(codes).reshape(2, -1))


def test_a_grid_has_an_axis_a_feature():
    grid = FSQ((3, 5, 4))
    codes = np.arange(-1, 60)
    found, sizes = sessions.axes_of(Projected(grid, 3), codes)
    assert sizes == (3, 5, 4) and (found[0] == -1).all()
    # As FSQ's own vectors order them: the rank of a value among those of its feature.
    vectors = np.asarray(grid.decode((), (), codes[1:]))
    for axis in range(3):
        _, rank = np.unique(vectors[:, axis], return_inverse=True)
        np.testing.assert_array_equal(found[1:, axis], rank)


def test_states_of_places_become_states_of_steps():
    found = sessions.as_steps(np.array([[1, 2, 3]]), 4, 10)
    np.testing.assert_array_equal(found, [[1] * 4 + [2] * 4 + [3] * 2])


def test_intervals_over_folds_know_that_training_sets_overlap():
    values, folds = [0.8, 0.9, 0.85, 0.7], behaviours([fold('any', 0.6, 0.95, 20.0)] * 4)
    found = report.over_folds(folds, values)
    # 20 recordings test and 60 train: 1/4 + 1/3 in place of 1/4.
    plain = stats.ttest_1samp(values, 0).confidence_interval()
    wider = (plain.high - plain.low) * np.sqrt((1 / 4 + 1 / 3) * 4)
    assert found.high - found.low == pytest.approx(wider)
    assert found.mean == pytest.approx(np.mean(values))
    assert np.isnan(report.over_folds(folds, [0.5])[1])


def fold(method, f1, accuracy, perplexity):
    """A fold of two methods with these figures of the second, in plain data."""

    def models(value):
        one = {'frame_accuracy': 0.9, 'adjusted_rand_index': value, 'states_found': 4}
        return {
            name: one | {'boundary_f1': value + more}
            for name, more in (('HMM', 0), ('sticky HMM', 0.1), ('HSMM', 0.2),
                               ('HSMM, states found', 0.0))
        }  # fmt: skip

    none = {'accuracy': 0.95, 'models': models(0.5)}
    other = {'accuracy': accuracy, 'perplexity': perplexity, 'models': models(f1)}
    return {
        'methods': {
            'none': {'seeds': [none], 'spec': None, 'bits': 0},
            method: {'seeds': [other], 'spec': {'name': 'vq_ema'}, 'bits': 6},
        },
        'peers': {'0': {'peer': {'adjusted_rand_index': 0.1}}},
        'recordings': {'train': {'recordings': 60}, 'test': {'recordings': 20}},
    }


def behaviours(folds):
    own = dataclasses.asdict(SequenceModels())
    return Behaviours.of(read_results({'folds': folds, 'sequence_models': own}))


def test_conclusions_follow_from_the_figures():
    def said(*folds):
        return '\n'.join(report.conclusions(behaviours([fold(*figures) for figures in folds])))

    good = said(*[('good', 0.6, accuracy, 20.0) for accuracy in (0.95, 0.94, 0.95, 0.95)])
    assert 'a difference of 2 points is excluded; collapsed in 0 of 4 folds' in good
    assert 'Sticky states (compared with an HMM) raise boundary F1 on codes of none (+0.10' in good
    assert 'good +0.50' in good
    # A mean within 2 points excludes nothing where the folds disagree.
    scattered = said(*[('good', 0.6, accuracy, 20.0) for accuracy in (0.99, 0.9, 0.98, 0.91)])
    assert 'a difference of 2 points is not excluded' in scattered
    bad = said(('bad', 0.6, 0.3, 1.0), ('bad', 0.7, 0.31, 9.0), ('bad', 0.7, 0.29, 9.0))
    assert 'a loss of more than 2 points; collapsed in 1 of 3 folds' in bad


def small(**fields):
    from configs import behaviour as configuration

    config = configuration.get_config().to_dict()
    config |= {
        'folds': 2,
        'seeds': 2,
        'epochs': 1,
        'width': 4,
        'features': 8,
        'methods': 'none,vq_ema',
    }
    config |= {'rounds': 1, 'states': 5, 'tokens': 8, 'restarts': 1, 'writers': ''}
    return config | fields


@pytest.mark.slow
def test_a_whole_run_in_small(tmp_path):
    """Trains, codes, fits and reports; a second run of the same folder says the same."""
    config = small(epochs=20)  # after one the classifier is at chance, and all may differ
    found = studies.run(config, str(tmp_path))
    written = json.loads((tmp_path / 'results.json').read_text())
    assert len(written['folds']) == 2
    held = [f['recordings']['test']['recordings'] for f in written['folds']]
    assert sum(held) == 80  # every recording is held out once
    models = written['folds'][1]['methods']['vq_ema']['seeds'][0]['models']
    assert set(models) >= {'codes', 'HMM', 'sticky HMM', 'HSMM', 'HSMM, states found'}
    for figures in models.values():
        assert 0 <= figures['frame_accuracy'] <= 1 and 1 <= figures['states_found'] <= 64
    assert models['HSMM']['states_found'] <= 4 and models['HSMM, states found']['states_found'] <= 5
    assert models['codes']['states_found'] > 4
    classifier = written['folds'][0]['methods']['none']['seeds'][0]['models']['classifier']
    accuracy = written['folds'][0]['methods']['none']['seeds'][0]['accuracy']
    # Windows that reach over a boundary are the only difference.
    assert abs(classifier['frame_accuracy'] - accuracy) < 0.25
    text = (tmp_path / 'report.md').read_text()
    assert '| vq_ema ' in text and 'nan' not in text
    assert (tmp_path / 'session.png').read_bytes().startswith(b'\x89PNG')
    again = studies.run(config, str(tmp_path))
    assert again['folds'] == found['folds']


@pytest.mark.parametrize(
    'fields, said',
    [
        ({'folds': 0}, 'set folds to 2 or more'),
        ({'fold': 1}, 'fold to -1'),
        ({'seeds': 3}, 'a multiple of folds'),
        ({'bottleneck': 'vector'}, "set 'sensor' and 'grid'"),
        ({'dataset': 'digits', 'encoder': 'conv'}, "encoder='conv'"),
        ({'states': 0}, 'states'),
        ({'lag_s': float('nan')}, 'lag_s must be seconds above 0'),
        ({'folds': 81, 'seeds': 81}, 'at most 80 folds'),
    ],
)
def test_what_cannot_be_studied_is_a_sentence(fields, said, tmp_path):
    with pytest.raises(RunError, match=said):
        studies.run(small(**fields), str(tmp_path / 'run'))
    assert not pathlib.Path(tmp_path / 'run').exists()
