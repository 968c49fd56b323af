"""Input that no run can be made of: one sentence, what was there before is left as it was."""

import json
import math
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest
from support import refuse, small_config

from vqjax import atomic, runfiles
from vqjax.results.finished import FinishedRun
from vqjax.results.records import pack_counts
from vqjax.trainer import experiment
from vqjax.trainer.config import settings
from vqjax.trainer.config.fields import FIELDS
from vqjax.trainer.data import sets
from vqjax.trainer.data.records import Split
from vqjax.trainer.errors import RunError
from vqjax.trainer.files import recorder
from vqjax.trainer.files.checkpoints import differences
from vqjax.trainer.files.workdir import Workdir
from vqjax.trainer.run import memory, plan, tasks
from vqjax.trainer.step import starts

FSQ = {'name': 'fsq', 'levels': (3,) * 16}


def sentence(error):
    message = str(error.value)
    assert '\n' not in message and len(message) < 700, message
    return message


# Configurations.


NEVER = [
    math.nan, math.inf, -math.inf, 10**400, -(10**30), 1e308, None, b'x', {1: 2}, np.float32(1),
    'a\0b', [math.nan], {'a': [{'b': math.nan}]}, object(),
]  # fmt: skip


@pytest.mark.parametrize('name', FIELDS)
def test_no_field_takes_what_cannot_be(name):
    values = list(NEVER)
    if type(FIELDS[name].default) in (int, float):
        values += [-2, True, '3', 2**31 if type(FIELDS[name].default) is int else 1e39]
    for value in values:
        with pytest.raises(RunError) as error:
            settings.check(small_config(**{name: value}))
        assert name in sentence(error), value


@pytest.mark.parametrize(
    'method', ['', 'all', 'a/b', '..', '../../x', '.hidden', 'a,b', 'a b', 'a\0b', 'x' * 300, '-x']
)
def test_a_method_is_named_as_a_folder_can_be(tmp_path, method):
    refuse('method', tmp_path / 'a' / 'run', quantizers={method: None}, methods='all')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'changes, text',
    [
        ({'quantizers': {1: FSQ}, 'methods': 'all'}, 'quantizers has the key 1'),
        ({'quantizers': {}, 'methods': 'all'}, 'quantizers is empty'),
        ({'quantizers': {'a': lambda: 0}, 'methods': 'a'}, 'no plain data'[3:]),
        ({'quantizers': {'a': FSQ | {'noise': np.float64(1)}}, 'methods': 'a'}, 'quantizers.a'),
        ({'quantizer_weight': {'schedule': 3}}, 'quantizer_weight'),
        ({'seeds': 10**9}, 'seeds is 1000000000: give at most 10000'),
        ({'epochs': 10**9}, 'more than a counter of steps holds'),
        ({'dataset': 'mnist:99.0.0', 'data_dir': '/nowhere'}, 'mnist:99.0.0'),
        ({'dataset': 'digits/1'}, 'digits/1'),
        ({'writers': 'tensorboard,mlflow'}, "writers names 'mlflow': there are"),
    ],
)
def test_what_no_run_can_be_made_of_is_one_sentence(tmp_path, changes, text):
    refuse(text, tmp_path / 'a' / 'run', **changes)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'changes, array',
    [
        ({'features': 100_000_000, 'methods': 'none'}, 'hidden/kernel'),
        ({'features': 2**31 - 1, 'methods': 'none'}, 'features 2147483647|hidden/kernel'),
        ({'width': 100_000_000, 'methods': 'none'}, 'kernel'),
        (
            {
                'quantizers': {'q': {'name': 'vq_ema', 'num_codes': 2**31 - 1}},
                'methods': 'q',
                'features': 64,
            },
            'codes|codebook_stats',
        ),
    ],
)
def test_a_model_larger_than_the_memory_is_refused_before_anything_is_made(
    tmp_path, changes, array
):
    with pytest.raises(RunError, match=array) as error:
        experiment.run(small_config(**changes), str(tmp_path / 'run'))
    assert re.search(
        'lower features, width or the number of codes|give fewer codes', sentence(error)
    )
    assert not list(tmp_path.iterdir())


def test_sizes_are_measured_and_not_guessed(monkeypatch):
    checked = settings.check(small_config(methods='none'))
    task = tasks.make_task(checked, 'none', sets.load('digits'))
    state = starts.state_shapes(task, (8, 8, 1), 1)
    needed = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((state, state.params)))
    pages = {'SC_PAGE_SIZE': 1, 'SC_PHYS_PAGES': needed * jax.local_device_count()}
    monkeypatch.setattr(memory.os, 'sysconf', pages.__getitem__)
    memory.check_memory(checked.methods['none'], task, (8, 8, 1))
    pages['SC_PHYS_PAGES'] -= 1
    with pytest.raises(RunError, match='GB, and there are'):
        memory.check_memory(checked.methods['none'], task, (8, 8, 1))


def test_an_epoch_far_beyond_the_end_is_the_end():
    far = {'eval_every': 3e38, 'warmup_epochs': 3e38, 'frozen_epochs': 3e38, 'epochs': 2}
    checked = settings.check(small_config(**far)).methods['none']
    found = plan.plan(checked, sets.load('digits'))
    assert found.num_steps == found.every_eval == found.warmup == found.frozen == 8
    assert found.steps_per_call == 8  # not 16 batches at once where there are 8


def test_not_a_number_is_equal_to_itself_where_configurations_are_compared():
    a, b = {'x': math.nan, 'y': [1, math.nan]}, {'x': math.nan, 'y': (1, math.nan)}
    assert differences(a, b) == {}
    assert differences(a, b | {'x': 1.0}).keys() == {'x'}


# Folders.

RESULT = {
    'seed': 0, 'accuracy': 0.5, 'nll': 1.0, 'seconds': 1.0,
    'reliability': {'confidence': [0.5], 'accuracy': [0.5], 'count': [4.0]},
    'counts': pack_counts(np.array([3, 0, 1])),
}  # fmt: skip
FINISHED = {
    'result': RESULT, 'history': [{'step': 1}], 'bits': 2.0, 'params': 3,
    'images': {'shape': [8, 8, 1], 'mean': [0.5], 'std': [0.25], 'num_classes': 10},
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """The folder of one finished run."""
    found = Workdir(tmp_path, small_config(record=True))
    found.finish('none', 0, FinishedRun.read(FINISHED))
    yield found
    found.close()


def content(path):
    return {p: p.read_bytes() for p in path.rglob('*') if p.is_file() and p.name != '.lock'}


@pytest.mark.parametrize(
    'damage',
    [
        '', '{', '[]', 'null', '7', '\0' * 64, '{}', '[' * 100_000,
        json.dumps(FINISHED)[:-30],
        json.dumps(FINISHED | {'history': 3}),
        json.dumps(FINISHED | {'history': [3]}),
        json.dumps(FINISHED | {'result': RESULT | {'seed': 1}}),
        json.dumps(FINISHED | {'result': {'seed': 0}}),
        json.dumps(FINISHED | {'result': RESULT | {'counts': {'shape': [3]}}}),
        b'\xff\xfe',
    ],
    ids=range(15),
)  # fmt: skip
def test_a_damaged_finished_run_is_named_and_left_alone(folder, damage):
    assert folder.finished('none', 0).plain() == FINISHED and folder.finished('none', 1) is None
    file = folder.path / 'finished' / 'none' / 'seed_0.json'
    file.write_bytes(damage if isinstance(damage, bytes) else damage.encode())
    before = content(folder.path)
    with pytest.raises(RunError, match='seed_0.json is damaged .*: remove it') as error:
        folder.finished('none', 0)
    sentence(error)
    assert content(folder.path) == before


@pytest.mark.parametrize('damage', ['', '{', '[]', '"x"', None])
def test_a_damaged_configuration_is_named_and_left_alone(folder, damage):
    folder.close()
    file = folder.path / 'config.json'
    if damage is None:
        file.unlink()
    else:
        file.write_text(damage)
    before = content(folder.path)
    with pytest.raises(RunError, match='config.json') as error:
        Workdir(folder.path, small_config(record=True))
    assert 'choose another --workdir' in sentence(error)
    assert content(folder.path) == before
    folder.close = lambda: None


def test_a_configuration_of_before_a_field_existed_is_the_same_configuration(folder):
    folder.close()
    file = folder.path / 'config.json'
    kept = json.loads(file.read_text())
    del kept['writers'], kept['ema_decay']
    file.write_text(json.dumps(kept))
    Workdir(folder.path, small_config(record=True, writers='')).close()
    refused = small_config(record=True, ema_decay=0.5)
    with pytest.raises(RunError, match='ema_decay is 0.0 there and 0.5 here'):
        Workdir(folder.path, refused)
    folder.close = lambda: None


def test_records_are_read_as_far_as_they_were_written(folder):
    file = runfiles.steps_file(folder.path, 'none', 0)
    with pytest.raises(RunError, match='is missing, with what every step'):
        folder.history('none', 0)
    file.parent.mkdir(parents=True)
    file.write_text('{"step": 0}\n{"step": 2}\n{"st')
    assert folder.history('none', 0) == [{'step': 0}, {'step': 1}, {'step': 2}]


@pytest.mark.parametrize('line', ['{"st', '', '3', '{}', '{"step": "x"}', '\0\0', '[' * 100_000])
def test_a_damaged_line_of_records_is_named(tmp_path, line):
    file = tmp_path / 'seed_0.jsonl'
    file.write_text(f'{{"step": 0}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(RunError, match='is damaged in line 2 ') as error:
        recorder.read_lines(file)
    sentence(error)


@pytest.mark.parametrize(
    'path', ['/proc/no/such', '/dev/null', '/dev/null/x', 'a\0b', 'x' * 300, 'gs://bucket/run']
)
def test_a_folder_that_cannot_be_is_one_sentence(path):
    with pytest.raises(RunError, match='workdir') as error:
        Workdir(path, small_config())
    sentence(error)
    assert not pathlib.Path('gs:').exists()


def test_what_cannot_be_written_whole_is_not_written(tmp_path, monkeypatch):
    target = tmp_path / 'results.json'
    atomic.replace_file(target, 'before')

    def full(_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(atomic.os, 'fsync', full)
    with pytest.raises(OSError):
        atomic.replace_file(target, 'after')
    assert [p.name for p in tmp_path.iterdir()] == ['results.json']
    assert target.read_text() == 'before'


@pytest.mark.parametrize('name', ['metrics.jsonl', 'tensorboard', 'checkpoints', 'finished'])
def test_what_stands_where_the_run_writes_is_one_sentence(tmp_path, name):
    """A folder for a file, a file for a folder."""
    workdir = tmp_path / 'run'
    Workdir(workdir, small_config(methods='none', seeds=1)).close()
    if name == 'metrics.jsonl':
        (workdir / name).mkdir()
    else:
        (workdir / name).write_text('mine')
    refuse(f'{workdir}', workdir, methods='none', seeds=1, epochs=2)
    assert (workdir / name).exists()


def test_foreign_files_are_left_alone(tmp_path):
    workdir = tmp_path / 'run'
    given = {'methods': 'none', 'seeds': 1, 'epochs': 1}
    Workdir(workdir, small_config(**given)).close()
    foreign = [
        workdir / 'notes.txt',
        workdir / 'checkpoints' / 'none' / 'seed_0' / 'notes.txt',
        workdir / 'finished' / 'none' / 'seed_7.json',
        workdir / 'finished' / 'other' / 'seed_0.json',
    ]
    for file in foreign:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text('mine')
    (workdir / 'metrics.jsonl').write_text('{"kept": 1}\n{"cut')
    (workdir / 'results.json').write_text('{"cut')
    results = experiment.run(small_config(**given), str(workdir))
    assert json.loads((workdir / 'results.json').read_text()) == json.loads(json.dumps(results))
    assert all(file.read_text() == 'mine' for file in foreign)
    first = (workdir / 'metrics.jsonl').read_text().split('\n')[:2]
    assert first[0] == '{"kept": 1}' and json.loads(first[1])['method'] == 'none'


# Data.


def arrays(number=20, shape=(4, 4, 1), classes=3):
    return np.zeros((number, *shape), np.uint8), np.arange(number) % classes


@pytest.mark.parametrize(
    'splits, text',
    [
        ({'test': arrays(0)}, 'none of them 0'),
        ({'test': arrays(5, (4, 0, 1))}, 'none of them 0'),
        ({'test': arrays(5, (4, 5, 1))}, 'need one shape'),
        ({'test': arrays(5, classes=4)}, 'labels 0 to 3: need 0 to 2'),
        ({'train': (arrays()[0], arrays()[1] - 1)}, 'labels -1 to 1'),
        ({'train': (arrays()[0], arrays()[1] + 0.5)}, 'labels of float64'),
        ({'train': (arrays()[0].astype(complex), arrays()[1])}, 'images of complex128'),
        ({'train': (arrays()[0].astype(object), arrays()[1])}, 'images of object'),
        ({'train': (np.full((20, 4, 4, 1), np.nan), arrays()[1])}, 'no usable image in train'),
        ({'validation': (np.full((5, 4, 4, 1), np.inf), arrays(5)[1])}, 'image in validation'),
    ],
)
def test_arrays_that_are_no_data_set_are_refused(splits, text):
    whole = {split: arrays() for split in ('train', 'validation', 'test')}
    with pytest.raises(ValueError, match=text) as error:
        sets.from_arrays('mine', 3, whole | splits)
    sentence(error)


@pytest.mark.parametrize('number, text', [(1, 'one class'), (3, 'batch_size=256: need 1 to 20')])
def test_a_set_that_cannot_be_trained_on_is_one_sentence(tmp_path, monkeypatch, number, text):
    splits = {split: arrays(classes=number) for split in ('train', 'validation', 'test')}
    mine = sets.from_arrays('mine', number, splits)
    monkeypatch.setattr(sets, 'load_dataset', lambda *_: mine)
    refuse(text, tmp_path / 'run', batch_size=8 if number == 1 else 256)
    assert not list(tmp_path.iterdir())


class Gone:
    """Records whose files were removed while a run went on."""

    def __len__(self):
        return 20

    def read(self, indices):
        good = np.zeros(len(indices), bool) if self.reads > 3 else np.ones(len(indices), bool)
        self.reads += 1
        images, labels = arrays()
        return images[indices], labels[indices], good

    reads = 0


def test_data_that_go_away_end_the_run_in_one_sentence(tmp_path, monkeypatch):
    mine = sets.from_arrays('mine', 3, {s: arrays() for s in ('train', 'validation', 'test')})
    mine.splits['train'] = Split(Gone(), np.arange(20))
    monkeypatch.setattr(sets, 'load_dataset', lambda *_: mine)
    refuse('none seed 0: dataset=', tmp_path / 'run', methods='none', batch_size=4, epochs=9)


@pytest.mark.parametrize(
    'damage',
    [
        lambda folder: (folder / 'dataset_info.json').write_text('{'),
        lambda folder: (folder / 'dataset_info.json').unlink(),
        lambda folder: [p.unlink() for p in folder.glob('*array_record*')],
        lambda folder: [p.write_bytes(b'') for p in folder.glob('*array_record*')],
        lambda folder: [p.write_bytes(p.read_bytes()[:999]) for p in folder.glob('*array_record*')],
    ],
    ids=range(5),
)
def test_a_damaged_folder_of_data_is_one_sentence(tmp_path, damage):
    from support import shared

    source = next(shared('tfds', 'mnist').glob('*/dataset_info.json')).parent
    folder = tmp_path / 'mnist' / source.name
    shutil.copytree(source, folder)
    damage(folder)
    with pytest.raises(RunError, match='dataset mnist') as error:
        sets.load_dataset('mnist', str(tmp_path))
    sentence(error)
