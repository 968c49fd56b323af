"""studies/peers.py: each peer finds what is plain to see, and says what it lacks."""

import sys

import numpy as np
import pytest

from vqjax.studies.behaviour import peers, segmentation


def sessions(seed, noise=0.5, count=3, steps=120):
    """Signals [B, T, 2] whose mean says the behaviour, labels, and a mask of padded ends."""
    rng = np.random.default_rng(seed)
    means = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    labels = np.stack([np.repeat(rng.permutation(6) % 3, steps // 6) for _ in range(count)])
    signals = means[labels] + noise * rng.standard_normal((count, steps, 2))
    mask = np.ones(labels.shape, bool)
    mask[0, -20:] = False
    signals[0, -20:] = np.nan
    return signals, labels, mask


def test_tokens_and_an_hmm():
    pytest.importorskip('hmmlearn')
    signals, labels, mask = sessions(0)
    peer = peers.TokensHMM(12, 3).fit(signals, mask)
    held_out, truth, mask = sessions(1)
    states = peer.predict(held_out, mask)
    found = segmentation.figures(truth, states, 2, mask)
    assert found['frame_accuracy'] > 0.95 and found['adjusted_rand_index'] > 0.9
    assert (states[~mask] == -1).all() and (states[mask] >= 0).all()
    # Its likelihood is that of the codes: above that of codes drawn evenly.
    assert 0 > peer.log_likelihood(held_out, mask) > -np.log(12) * mask.sum()


def test_change_points():
    pytest.importorskip('ruptures')
    signals, labels, mask = sessions(0)
    peer = peers.ChangePoints(3, tolerance=2).fit(signals, labels, mask)
    assert max(change.f1 for change in peer.tried) > 0.95
    assert peer.penalty in peer.penalties and len(peer.tried) == len(peer.penalties)
    held_out, truth, mask = sessions(1)
    states = peer.predict(held_out, mask)
    found = segmentation.figures(truth, states, 2, mask)
    assert found['frame_accuracy'] > 0.95 and found['boundary_f1'] > 0.95
    assert (states[~mask] == -1).all() and len(np.unique(states[mask])) == 3


def test_a_session_too_short_for_a_change_is_one_segment():
    pytest.importorskip('ruptures')
    signals, labels, mask = sessions(0)
    peer = peers.ChangePoints(3, tolerance=2, min_size=4).fit(signals, labels, mask)
    assert len(np.unique(peer.predict(signals[1:, :5]))) >= 1
    assert (peer.predict(signals[1:2, :5])[0] == peer.predict(signals[1:2, :5])[0, 0]).all()


@pytest.mark.parametrize('package', ['hmmlearn', 'ruptures'])
def test_an_absent_peer_is_named(package, monkeypatch):
    for name in (package, f'{package}.hmm'):
        monkeypatch.setitem(sys.modules, name, None)
    signals, labels, mask = sessions(0)
    with pytest.raises(ValueError, match=rf'{package} is not installed: .*vqjax\[bench\]'):
        if package == 'hmmlearn':
            peers.TokensHMM(4, 2).fit(signals, mask)
        else:
            peers.ChangePoints(3, 2).fit(signals, labels, mask)


BAD = {
    'num_codes must be an integer from 1': lambda: peers.TokensHMM(0, 3),
    'penalties must be finite and above 0': lambda: peers.ChangePoints(3, 2, penalties=(0.0,)),
    'kernel must be': lambda: peers.ChangePoints(3, 2, kernel='cosine'),
    'sessions must be floating point': lambda: peers.TokensHMM(4, 2).fit(np.zeros((3, 4))),
    'not finite: mask those steps': lambda: peers.TokensHMM(4, 2).fit(sessions(0)[0]),
    'mask must be bool': lambda: peers.TokensHMM(4, 2).fit(np.zeros((1, 4, 2)), np.ones((1, 4))),
    'session 1 has no real step': lambda: peers.TokensHMM(4, 2).fit(
        np.zeros((2, 4, 2)), np.array([[True] * 4, [False] * 4])
    ),
}  # fmt: skip


@pytest.mark.parametrize('message', BAD)
def test_what_does_not_fit_is_named(message):
    pytest.importorskip('hmmlearn')
    with pytest.raises(ValueError, match=message):
        BAD[message]()
