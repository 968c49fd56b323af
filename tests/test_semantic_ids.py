"""Semantic IDs: unique, stable when items are appended, and found again."""

import collections

import numpy as np
import pytest

from vqjax.codec import add_suffix, collision_rate, item_table

CODES = np.random.default_rng(0).integers(0, 4, (200, 3))  # 64 IDs for 200 items


def test_collision_rate_counts_every_item_that_shares_its_codes():
    uses = collections.Counter(map(tuple, CODES.tolist()))
    shared = sum(number for number in uses.values() if number > 1)
    assert collision_rate(CODES) == shared / 200
    assert collision_rate([[0, 1], [0, 2], [0, 1], [3, 3]]) == 0.5
    assert collision_rate(np.arange(6).reshape(3, 2)) == 0


def test_the_suffix_counts_items_of_the_same_codes_in_their_order():
    ids = add_suffix(CODES)
    seen = collections.Counter()
    for row, codes in zip(ids.tolist(), CODES.tolist(), strict=True):
        assert row == [*codes, seen[tuple(codes)]]
        seen[tuple(codes)] += 1
    assert ids.dtype == np.int32 and collision_rate(ids) == 0


def test_ids_stay_as_they_are_when_items_are_appended():
    np.testing.assert_array_equal(add_suffix(CODES)[:120], add_suffix(CODES[:120]))


def test_the_table_and_the_ids_are_inverse_to_each_other():
    ids = add_suffix(CODES)
    table = item_table(ids)
    assert [table[tuple(row)] for row in ids.tolist()] == list(range(200))
    assert table.get((0, 0, 0, 99), -1) == -1


def test_a_table_needs_unique_ids():
    with pytest.raises(ValueError, match=r'items 0 and 2 both have \(7, 1\).*add_suffix'):
        item_table([[7, 1], [8, 1], [7, 1]])


@pytest.mark.parametrize(
    'ids, says',
    [
        (np.zeros(5, int), r'integers \[N, L\].* got int64 of shape \(5,\)'),
        (np.zeros((5, 2)), 'got float64'),
        (np.zeros((0, 2), int), r'shape \(0, 2\)'),
        (np.array([[1, 2], [-1, 0]]), 'item 1: its embedding was not finite'),
    ],
)
@pytest.mark.parametrize('function', [add_suffix, collision_rate, item_table])
def test_what_is_no_id_is_refused(function, ids, says):
    with pytest.raises(ValueError, match=says):
        function(ids)
