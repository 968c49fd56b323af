"""studies/segmentation.py: figures worked out by hand."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqjax.studies.behaviour import segmentation

TRUE = np.array([0, 0, 0, 1, 1, 1, 2, 2])


def test_frames_after_the_best_matching():
    states = np.array([5, 5, 5, 5, 7, 7, 7, 7])
    # 5 -> 0 (3 steps), 7 -> 1 or 2 (2 steps each): 5 of 8.
    assert segmentation.frame_accuracy(TRUE, states) == 5 / 8
    assert segmentation.fit_matching(TRUE, states)[5] == 0
    # Names do not matter, and more states than labels leave some without one.
    assert segmentation.frame_accuracy(TRUE, 9 - TRUE) == 1
    split = np.array([0, 0, 3, 1, 1, 1, 2, 2])
    assert segmentation.frame_accuracy(TRUE, split) == 7 / 8
    assert segmentation.fit_matching(TRUE, split) == {0: 0, 1: 1, 2: 2}


def test_a_matching_is_learned_on_some_sessions_and_used_on_others():
    matching = segmentation.fit_matching(TRUE, 9 - TRUE)
    assert matching == {9: 0, 8: 1, 7: 2}
    held_out = np.array([9, 9, 8, 4])
    assert segmentation.frame_accuracy(np.array([0, 1, 1, 2]), held_out, None, matching) == 0.5
    # Fitted here, 9 could be called 1.
    assert segmentation.frame_accuracy(np.array([1, 1, 1, 2]), held_out, None, matching) == 0.25


def test_the_matching_is_the_best_of_all():
    rng = np.random.default_rng(0)
    for _ in range(20):
        labels, states = rng.integers(0, 3, 30), rng.integers(0, 4, 30)
        best = max(
            np.mean(np.array([*names, -1])[states] == labels)
            if len(names) == 3
            else np.mean(np.array(names)[states] == labels)
            for names in itertools.permutations([0, 1, 2, -1])
        )
        assert segmentation.frame_accuracy(labels, states) == pytest.approx(best)


def test_rand_index_of_a_published_table():
    # Hubert and Arabie's index of the partitions 001122 and 001222, pairs counted by hand: 2 in
    # both, 3 and 4 in each, of 15: (2 - 12/15) / (7/2 - 12/15).
    labels, states = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 0, 1, 2, 2, 2])
    found = segmentation.adjusted_rand_index(labels, states)
    assert found == pytest.approx((2 - 12 / 15) / (3.5 - 12 / 15))
    assert segmentation.adjusted_rand_index(labels, 2 - labels) == 1
    assert segmentation.adjusted_rand_index(labels, np.zeros(6, int)) == 0


def edges(true, found, tolerance):
    """Boundaries of rows of 40 steps that change at these steps."""

    def row(cuts):
        return np.searchsorted(cuts, np.arange(40), side='right')

    return segmentation.boundaries(row(true), row(found), tolerance)


def test_boundaries_are_matched_once():
    assert edges([10, 20], [10, 20], 0) == (2, 2, 2)
    assert edges([10, 20], [11, 19], 0) == (0, 2, 2)
    assert edges([10, 20], [11, 19], 1) == (2, 2, 2)
    # Three found near one true one are one right and two wrong.
    found = edges([10], [9, 10, 11], 2)
    assert found == (1, 3, 1) and (found.precision, found.recall, found.f1) == (1 / 3, 1, 0.5)
    # Both can be matched, but not each with its nearest: 12 is nearest to 11 and 14.
    assert edges([10, 12], [12, 14], 2) == (2, 2, 2)


def test_sessions_without_boundaries():
    nothing = edges([], [], 3)
    assert nothing == (0, 0, 0) and nothing.f1 == 1
    missed, invented = edges([10], [], 3), edges([], [10], 3)
    assert (missed.precision, missed.recall, missed.f1) == (1, 0, 0)
    assert (invented.precision, invented.recall, invented.f1) == (0, 1, 0)


@given(
    st.lists(st.integers(1, 39), unique=True, max_size=6),
    st.lists(st.integers(1, 39), unique=True, max_size=6),
    st.integers(0, 6),
)
def test_no_matching_has_more_pairs(true, found, tolerance):
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import maximum_bipartite_matching

    true, found = sorted(true), sorted(found)
    matched = edges(true, found, tolerance)
    assert (matched.found, matched.true) == (len(found), len(true))
    if true and found:
        near = np.abs(np.subtract.outer(found, true)) <= tolerance
        most = maximum_bipartite_matching(csr_matrix(near))
        assert matched.matched == (most >= 0).sum()
    assert edges(found, true, tolerance).matched == matched.matched


def test_boundaries_of_two_sessions_are_not_joined():
    labels = np.array([[0, 0, 1, 1], [2, 2, 2, 2]])
    assert segmentation.boundaries(labels, labels, 0) == (1, 1, 1)


def test_masked_steps_count_nowhere():
    labels = np.array([[0, 0, 9, 9, 1, 1, 9, 9]])
    states = np.array([[0, 0, 3, 4, 1, 1, 5, 6]])
    mask = np.array([[True] * 2 + [False] * 2 + [True] * 2 + [False] * 2])
    found = segmentation.figures(labels, states, 0, mask, log_likelihood=-8.0)
    assert found == {
        'frame_accuracy': 1.0,
        'adjusted_rand_index': 1.0,
        'boundary_precision': 1.0,
        'boundary_recall': 1.0,
        'boundary_f1': 1.0,
        'states_found': 2,
        'log_likelihood_a_step': -2.0,
    }
    # The same by labels of -1, and whatever stands in the padding.
    assert segmentation.figures(np.where(mask, labels, -1), states, 0)['states_found'] == 2
    # A change across a gap is found at its end, wherever within the gap a method puts it.
    late = np.array([[0, 0, 0, 0, 0, 1, 1, 1]])
    assert segmentation.boundaries(labels, late, 0, mask) == (0, 1, 1)
    assert segmentation.boundaries(labels, late, 1, mask) == (1, 1, 1)


def test_steps_without_a_state_are_wrong():
    labels, states = np.array([0, 0, 1, 1]), np.array([0, 0, -1, -1])
    found = segmentation.figures(labels, states, 0)
    assert found['frame_accuracy'] == 0.5 and found['states_found'] == 1
    assert found['boundary_f1'] == 1


@pytest.mark.parametrize(
    'message, arguments',
    {
        'labels must be integers': (TRUE * 1.0, TRUE),
        'states must be integers': (TRUE, TRUE * 1.0),
        'of one shape': (TRUE, TRUE[:-1]),
        'mask must be bool': (TRUE, TRUE, np.ones(8)),
        'no step that counts': (TRUE, TRUE, np.zeros(8, bool)),
    }.items(),
)
def test_what_does_not_fit_is_named(message, arguments):
    with pytest.raises(ValueError, match=message):
        segmentation.adjusted_rand_index(*arguments)
    with pytest.raises(ValueError, match='tolerance must be a number of steps'):
        segmentation.boundaries(TRUE, TRUE, -1)
