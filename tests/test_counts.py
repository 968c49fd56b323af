"""Counts of the codes as results keep them: small, readable, and as they were."""

import json

import numpy as np
import pytest

from vqjax.atomic import to_json
from vqjax.results.records import pack_counts, read_counts


@pytest.mark.parametrize('shape', [(7,), (4, 8), (2, 3, 5), (64000,)])
def test_counts_come_back_through_json_as_they_were(shape):
    counts = np.random.default_rng(0).poisson(0.05, shape).astype(float)
    kept = json.loads(json.dumps({'counts': pack_counts(counts)}))
    np.testing.assert_array_equal(read_counts(kept), counts)
    np.testing.assert_array_equal(read_counts({'counts': counts.tolist()}), counts)  # as it was
    assert read_counts({'accuracy': 0.5}) is None


def test_only_used_codes_take_room():
    counts = np.zeros((2, 64000))
    counts[1, 7] = 360
    assert pack_counts(counts) == {'shape': [2, 64000], 'codes': [64007], 'uses': [360]}


@pytest.mark.parametrize(
    'kept',
    [
        'many',
        {'shape': [4]},
        {'shape': [-4], 'codes': [1], 'uses': [1]},
        {'shape': [4], 'codes': [4], 'uses': [1]},
        {'shape': [4], 'codes': [1, 2], 'uses': [1, 2, 3]},
        {'shape': [4], 'codes': [1, 2], 'uses': [1]},
        {'shape': [10**15], 'codes': [1], 'uses': [1]},
        [[1, 2], [3]],
    ],
)
def test_damaged_counts_are_refused_in_a_sentence(kept):
    with pytest.raises(ValueError, match='counts of seed 3 are damaged'):
        read_counts({'seed': 3, 'counts': kept})


def test_json_is_as_json_says_with_lists_of_numbers_in_one_line():
    value = {'a': [1, 2.5, None], 'b': {'c [\n1]': ['x, "[\n', [True, []]], 'd': []}, 'e': [{}]}
    text = to_json(value)
    assert json.loads(text) == value
    assert '"a": [1, 2.5, null]' in text and text.count('\n') > 8
