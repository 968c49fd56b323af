"""What was saved comes back to the bit; what is damaged, foreign or unwritable is said."""

import json
import math
import resource
import shutil
import signal

import jax
import numpy as np
import pytest

from vqjax.trainer.errors import CheckpointError
from vqjax.trainer.files.checkpoints import Checkpoints, describe, differences

CONFIG = {'epochs': 3, 'quantizers': {'a': {'num_codes': 8, 'levels': (5, 5)}}}


def state(seed=0, codes=8):
    rng = np.random.default_rng(seed)
    return {
        'codebook': rng.normal(size=(codes, 4)).astype(np.float32),
        'step': np.int32(seed),
        'key': rng.integers(0, 2**32, 2, dtype=np.uint32),
        'empty': (),
    }


def saved(path, steps=(1, 2, 3), accuracies=(0.5, 0.9, 0.6), **kwargs):
    store = Checkpoints(path, CONFIG, **kwargs)
    for step, accuracy in zip(steps, accuracies, strict=True):
        store.save(step, state(step), {'history': [0.1 + step]}, accuracy)
    store.wait()
    return store


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert [x.dtype for x in jax.tree.leaves(a)] == [x.dtype for x in jax.tree.leaves(b)]


def restore(path, config=CONFIG, like=None):
    said = []
    store = Checkpoints(path, config)
    found = store.restore(state() if like is None else like, said.append)
    store.close()
    return found, said


def test_the_newest_comes_back_to_the_bit_with_its_plain_data(tmp_path):
    saved(tmp_path).close()
    (arrays, extra), said = restore(tmp_path)
    assert_same(arrays, state(3))
    assert extra == {'history': [3.1]}
    assert said == []


def test_the_newest_and_the_most_accurate_are_kept(tmp_path):
    store = saved(tmp_path, (1, 2, 3, 4, 5), (0.1, 0.9, 0.2, 0.3, None), keep=2)
    assert store.steps() == [2, 4, 5]
    store.close()


def test_an_empty_folder_has_nothing_to_restore(tmp_path):
    assert restore(tmp_path / 'new')[0] is None


def largest_file(folder):
    return max((p for p in folder.rglob('*') if p.is_file()), key=lambda p: p.stat().st_size)


def cut(folder):
    file = largest_file(folder / 'state')
    file.write_bytes(file.read_bytes()[:-20])


def flip(folder):
    file = largest_file(folder / 'state')
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0xFF
    file.write_bytes(data)


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')  # its last threads
@pytest.mark.parametrize(
    'damage', [cut, flip, lambda folder: shutil.rmtree(folder / 'state' / 'd')]
)
def test_a_damaged_newest_is_said_and_the_one_before_is_used(tmp_path, damage):
    saved(tmp_path).close()
    damage(tmp_path / '3')
    (arrays, extra), said = restore(tmp_path)
    assert_same(arrays, state(2))
    assert extra == {'history': [2.1]}
    assert len(said) == 1 and str(tmp_path / '3') in said[0] and '\n' not in said[0]
    # The damaged one is out of the way of the run that goes on.
    store = Checkpoints(tmp_path, CONFIG)
    store.save(3, state(3), {}, 0.6)
    store.close()
    assert_same(restore(tmp_path)[0][0], state(3))


def test_content_that_was_edited_is_caught_by_its_checksum(tmp_path):
    saved(tmp_path).close()
    file = tmp_path / '3' / 'extra' / 'metadata'
    extra = json.loads(file.read_text())
    file.write_text(json.dumps(extra | {'digest': '0' * 64}))
    (arrays, _), said = restore(tmp_path)
    assert_same(arrays, state(2))
    assert 'checksum' in said[0]


def test_another_configuration_is_an_error_that_names_the_difference(tmp_path):
    saved(tmp_path).close()
    other = {'epochs': 3, 'quantizers': {'a': {'num_codes': 16, 'levels': [5, 5]}}}
    with pytest.raises(CheckpointError, match=r'quantizers\.a\.num_codes is 8 there and 16 here'):
        restore(tmp_path, other)


def test_another_number_of_codes_is_an_error_that_names_both_shapes(tmp_path):
    saved(tmp_path).close()
    with pytest.raises(CheckpointError, match=r'codebook.*\(8, 4\), this model needs \(16, 4\)'):
        restore(tmp_path, like=state(codes=16))
    assert (tmp_path / '3').exists()


def test_a_folder_that_cannot_be_made_is_an_error_that_names_it(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(CheckpointError, match='cannot write checkpoints to .*file/inside'):
        Checkpoints(tmp_path / 'file' / 'inside', CONFIG)


# Orbax's threads meet the full disk one after the other, the last ones behind the end of the save.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_a_full_disk_is_an_error_and_earlier_checkpoints_stay(tmp_path):
    store = saved(tmp_path)
    big = state() | {'codebook': np.random.default_rng(0).normal(size=(500, 500))}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        with pytest.raises(CheckpointError, match='cannot write a checkpoint .* earlier'):
            store.save(4, big, {}, 0.7)
            store.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    (arrays, _), said = restore(tmp_path)
    assert_same(arrays, state(3))
    assert said == []


def test_a_disk_too_full_for_a_checkpoint_is_said_before_orbax_writes(tmp_path, monkeypatch):
    store = saved(tmp_path)
    before = sorted(tmp_path.rglob('*'))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: usage._replace(free=100))
    with pytest.raises(CheckpointError, match=r'it takes 0\.0 MB and 0\.0 are free; earlier'):
        store.save(4, state(), {}, 0.7)
    store.close()
    assert sorted(tmp_path.rglob('*')) == before


def test_json_changes_nothing_that_is_held_against_a_configuration():
    given = {'space': {'choice': ({'levels': (8, 5)}, {'levels': [(1, 2), None]}, math.nan)}}
    assert differences(json.loads(json.dumps(given)), given) == {}
    other = {'space': {'choice': ({'levels': (8, 6)}, {'levels': [(1, 2), None]}, math.nan)}}
    assert differences(given, other).keys() == {'space.choice'}


def test_differences_are_told_in_one_line():
    found = differences({'a': {'b': (1, 2)}, 'c': 1}, {'a': {'b': [1, 2]}, 'd': 2})
    assert found == {'c': (1, '(missing)'), 'd': ('(missing)', 2)}
    assert describe(found, 'there', 'here') == (
        'c is 1 there and (missing) here, d is (missing) there and 2 here'
    )
