"""data.py: what a batch holds, in which order, on which process, and what happens to bad input."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vqjax.trainer.data import sets
from vqjax.trainer.data.batches import eval_batches, init_batch, steps_per_epoch, train_batches
from vqjax.trainer.data.records import DataInfo, Dataset, Split

SHARED = Path(os.environ.get('VQJAX_SHARED', '../shared')) / 'tfds'
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason=f'no TFDS copies in {SHARED}: set VQJAX_SHARED'
)


def numbered(n, shape=(8, 8, 3), dtype=np.uint8):
    """Images whose every pixel is the image's own number, labels the number modulo 5."""
    images = np.broadcast_to(np.arange(n).reshape(-1, 1, 1, 1), (n, *shape)).astype(dtype)
    return images, np.arange(n) % 5


def dataset_of(num_train=100, num_test=30, **kwargs):
    return sets.from_arrays(
        'numbered',
        5,
        {
            'train': numbered(num_train, **kwargs),
            'validation': numbered(20, **kwargs),
            'test': numbered(num_test, **kwargs),
        },
    )


def numbers(dataset, batch):
    """The numbers of the images in a batch of `numbered` images."""
    raw = batch['image'] * dataset.std + dataset.mean
    return np.round(raw[:, 0, 0, 0]).astype(int)


def take(iterator, n):
    return [next(iterator) for _ in range(n)]


def assert_same_batches(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


# The embedded set.


def test_digits_are_split_once_and_evenly():
    digits = sets.load('digits')
    assert digits.info.image_shape == (8, 8, 1) and digits.info.num_classes == 10
    assert digits.info.num_examples == {'train': 1077, 'validation': 360, 'test': 360}
    whole = np.concatenate([s.records.images for s in digits.splits.values()])
    from sklearn.datasets import load_digits

    expected = load_digits().images.sum((1, 2))
    np.testing.assert_array_equal(np.sort(whole.sum((1, 2, 3))), np.sort(expected))
    for split in digits.splits.values():
        share = np.bincount(split.records.labels, minlength=10) / len(split.records.labels)
        np.testing.assert_allclose(share, 0.1, atol=0.006)


def test_training_images_are_standardised():
    images = init_batch(sets.load('digits'), 1077, seed=0)['image']
    assert images.dtype == np.float32
    assert abs(images.mean()) < 1e-3 and abs(images.std() - 1) < 1e-3


# Training batches.


@pytest.mark.parametrize('shape, dtype', [((4, 4, 3), 'uint8'), ((1, 6, 2), 'float64')])
def test_a_batch_is_scaled_channel_by_channel_to_the_bit(shape, dtype):
    rng = np.random.default_rng(0)
    # Channels first in memory, as a source may have them.
    images = np.moveaxis(rng.integers(0, 256, (5, shape[2], *shape[:2])).astype(dtype), 1, -1)
    before, dataset = images.copy(), dataset_of(shape=shape)
    mean, std = rng.random((2, shape[2])).astype(np.float32)
    found = Dataset(dataset.info, dataset.splits, mean, std).batch(images, np.arange(5))['image']
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, (images.astype(np.float32) - mean) / std)
    np.testing.assert_array_equal(images, before)
    assert dataset.batch(images[:0], np.arange(0))['image'].shape == (0, *shape)


def test_an_epoch_holds_every_example_once_in_a_new_order():
    dataset = dataset_of(100)
    batches = take(train_batches(dataset, 25, seed=1), 8)
    epochs = [np.concatenate([numbers(dataset, b) for b in batches[i : i + 4]]) for i in (0, 4)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(100))
    assert not np.array_equal(*epochs)
    assert all(np.array_equal(b['label'], numbers(dataset, b) % 5) for b in batches)


def test_the_short_last_batch_is_dropped_within_its_epoch():
    dataset = dataset_of(100)
    assert steps_per_epoch(dataset, 30) == 3
    first = take(train_batches(dataset, 30, seed=1), 3)
    seen = np.concatenate([numbers(dataset, b) for b in first])
    assert len(np.unique(seen)) == 90


def test_the_seed_decides_the_order():
    dataset = dataset_of()
    runs = [take(train_batches(dataset, 10, seed=s), 3) for s in (1, 1, 2)]
    assert_same_batches(runs[0], runs[1])
    assert not np.array_equal(runs[0][0]['label'], runs[2][0]['label'])


def test_resume_from_a_saved_position_is_exact_with_augmentation():
    dataset = dataset_of(shape=(16, 16, 3))
    iterator = train_batches(dataset, 10, seed=3, augment=True)
    take(iterator, 13)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = take(iterator, 12)
    resumed = train_batches(dataset, 10, seed=3, augment=True)
    resumed.set_state(state)
    assert_same_batches(take(resumed, 12), expected)


def test_processes_share_the_batch_of_one():
    dataset = dataset_of(shape=(16, 16, 3))
    whole = take(train_batches(dataset, 20, seed=3, augment=True), 7)
    parts = [take(train_batches(dataset, 20, 3, p, 2, augment=True), 7) for p in (0, 1)]
    joined = [{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in zip(*parts, strict=True)]
    assert_same_batches(joined, whole)


def test_the_initial_batch_is_the_beginning_of_training():
    dataset = dataset_of()
    first = take(train_batches(dataset, 10, seed=5), 3)
    expected = {k: np.concatenate([b[k] for b in first]) for k in first[0]}
    assert_same_batches([init_batch(dataset, 30, seed=5)], [expected])
    assert len(init_batch(dataset, 10_000, seed=5)['label']) == 100


def test_augmentation_flips_half_and_shifts_by_at_most_an_eighth():
    # Pixel values are column numbers, so a row of the result tells flip and shift.
    columns = np.broadcast_to(np.arange(32)[None, None, :, None], (64, 32, 32, 3))
    splits = {s: (columns.astype(np.uint8), np.zeros(64, int)) for s in ('train', 'test')}
    dataset = sets.from_arrays('columns', 1, splits | {'validation': splits['test']})
    batches = take(train_batches(dataset, 64, seed=0, augment=True), 20)
    images = np.concatenate([b['image'] for b in batches]) * dataset.std + dataset.mean
    rows = np.round(images[:, 5, :, 0]).astype(int)
    middle = np.diff(rows[:, 6:-6])  # away from the reflected border
    flipped = middle[:, 0] < 0
    np.testing.assert_array_equal(middle, np.where(flipped, -1, 1)[:, None].repeat(19, 1))
    assert 0.45 < flipped.mean() < 0.55
    shift = np.where(flipped, rows[:, 16] - 15, rows[:, 16] - 16)
    np.testing.assert_array_equal(np.unique(shift), np.arange(-4, 5))
    untouched = next(iter(eval_batches(dataset, 'test', 64)))['image']
    np.testing.assert_allclose(untouched * dataset.std + dataset.mean, columns, atol=1e-4)


# Evaluation batches.


@pytest.mark.parametrize('process_count', [1, 2])
def test_evaluation_sees_every_example_once(process_count):
    dataset = dataset_of(num_test=30)
    seen, lengths = [], []
    for process in range(process_count):
        batches = list(eval_batches(dataset, 'test', 8, process, process_count))
        lengths.append(len(batches))
        for batch in batches:
            assert batch['image'].shape == (8 // process_count, 8, 8, 3)
            assert not batch['image'][~batch['mask']].any()
            seen.append(numbers(dataset, batch)[batch['mask']])
    assert lengths == [4] * process_count
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(30))


def test_evaluation_can_be_repeated():
    batches = eval_batches(dataset_of(), 'validation', 8)
    assert_same_batches(list(batches), list(batches))


# Bad input.


class Dying:
    """Records whose reader fails after some reads, as a lost disk would make it."""

    def __init__(self, records, reads):
        self.records, self.reads = records, reads

    def read(self, indices):
        self.reads -= 1
        if self.reads < 0:
            raise OSError('disk gone')
        return self.records.read(indices)


def test_a_dying_loader_raises_and_does_not_hang():
    dataset = dataset_of()
    train = dataset.splits['train']
    dying = Split(Dying(train.records, 5), train.indices)
    dataset = Dataset(dataset.info, {'train': dying}, dataset.mean, dataset.std)
    iterator = train_batches(dataset, 10, seed=0)
    with pytest.raises(OSError, match='disk gone'):
        take(iterator, 50)


def test_images_with_nan_are_left_out_and_counted():
    images, labels = numbered(40, dtype=np.float32)
    images = images.copy()
    images[[3, 17], 2, 2, 0] = [np.nan, np.inf]
    clean = numbered(10, dtype=np.float32)
    splits = {'train': (images, labels), 'validation': clean, 'test': clean}
    dataset = sets.from_arrays('holes', 5, splits)
    assert dataset.num_corrupt == {'train': 2, 'validation': 0, 'test': 0}
    assert dataset.info.num_examples['train'] == 38
    batches = take(train_batches(dataset, 19, seed=0), 2)
    seen = np.concatenate([numbers(dataset, b) for b in batches])
    np.testing.assert_array_equal(np.sort(seen), np.delete(np.arange(40), [3, 17]))


def test_errors_name_the_value():
    dataset, grey = dataset_of(), dataset_of(shape=(8, 8, 1))
    with pytest.raises(ValueError, match='batch_size=101'):
        train_batches(dataset, 101, seed=0)
    with pytest.raises(ValueError, match='process_count=3'):
        train_batches(dataset, 10, seed=0, process_index=0, process_count=3)
    with pytest.raises(ValueError, match='augment=True'):
        train_batches(grey, 10, seed=0, augment=True)
    with pytest.raises(ValueError, match="split='dev'"):
        eval_batches(dataset, 'dev', 10)
    with pytest.raises(ValueError, match='labels 0 to 4: need 0 to 2'):
        sets.from_arrays('x', 3, {'train': numbered(9), 'validation': (), 'test': ()})


# TFDS sets, in files written here.


def write_tfds(folder, splits, features=None, file_format='array_record'):
    """A prepared TFDS set: {split: [(encoded image, label)]} as array_record files."""
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_generated_pb2 as example_pb
    from tensorflow_datasets.proto import tf_feature_generated_pb2 as pb

    folder = folder / 'tiny_set' / '1.0.0'
    folder.mkdir(parents=True)
    for split, records in splits.items():
        name = f'tiny_set-{split}.array_record-00000-of-00001'
        writer = ArrayRecordWriter(str(folder / name), 'group_size:1')
        for encoded, label in records:
            feature = {
                'image': pb.Feature(bytes_list=pb.BytesList(value=[encoded])),
                'label': pb.Feature(int64_list=pb.Int64List(value=[label])),
            }
            writer.write(
                example_pb.Example(features=pb.Features(feature=feature)).SerializeToString()
            )
        writer.close()
    template = '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'
    info = {
        'name': 'tiny_set',
        'version': '1.0.0',
        'fileFormat': file_format,
        'moduleName': '__main__',
        'splits': [
            {'name': s, 'shardLengths': [str(len(r))], 'filepathTemplate': template}
            for s, r in splits.items()
        ],
    }
    package = 'tensorflow_datasets.core.features.'
    image = {
        'pythonClassName': package + 'image_feature.Image',
        'image': {'dtype': 'uint8', 'shape': {'dimensions': ['16', '16', '3']}},
    }
    label = {
        'pythonClassName': package + 'class_label_feature.ClassLabel',
        'classLabel': {'numClasses': '5'},
    }
    description = {
        'pythonClassName': package + 'features_dict.FeaturesDict',
        'featuresDict': {'features': features or {'image': image, 'label': label}},
    }
    (folder / 'dataset_info.json').write_text(json.dumps(info))
    (folder / 'features.json').write_text(json.dumps(description))


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, 'png')
    return buffer.getvalue()


def records_of(n, broken=()):
    """Encoded `numbered` images, those in `broken` damaged in different ways."""
    images, labels = numbered(n, (16, 16, 3))
    damage = [lambda b: b[:40], lambda b: b'', lambda b: b'no image', lambda b: png(images[0, :9])]
    encoded = [png(i) for i in images]
    for k, i in enumerate(broken):
        encoded[i] = damage[k % 4](encoded[i])
    return list(zip(encoded, labels.tolist(), strict=True))


@pytest.fixture(params=['in memory', 'on demand'])
def storage(request, monkeypatch):
    if request.param == 'on demand':
        monkeypatch.setattr(sets, 'IN_MEMORY_BYTES', 0)
    return request.param


def test_a_tfds_set_is_read_whole(tmp_path, storage):
    write_tfds(tmp_path, {'train': records_of(50), 'test': records_of(20)})
    dataset = sets.load('tiny_set', str(tmp_path))
    assert dataset.info == DataInfo(
        'tiny_set', (16, 16, 3), 5, {'train': 45, 'validation': 5, 'test': 20}
    )
    seen = {}
    for split in dataset.splits:
        batches = list(eval_batches(dataset, split, 8))
        seen[split] = np.concatenate([numbers(dataset, b)[b['mask']] for b in batches])
        labels = np.concatenate([b['label'][b['mask']] for b in batches])
        np.testing.assert_array_equal(labels, seen[split] % 5)
    np.testing.assert_array_equal(seen['test'], np.arange(20))
    both = np.concatenate([seen['train'], seen['validation']])
    np.testing.assert_array_equal(np.sort(both), np.arange(50))
    for batch in take(train_batches(dataset, 9, seed=0), 5):
        np.testing.assert_array_equal(batch['label'], numbers(dataset, batch) % 5)


def test_images_that_cannot_be_decoded_are_counted_and_seen_nowhere(tmp_path, storage, caplog):
    broken = [4, 5, 11, 30]
    write_tfds(
        tmp_path,
        {
            'train': records_of(60, broken),
            'validation': records_of(10),
            'test': records_of(20, broken[:3]),
        },
    )
    dataset = sets.load('tiny_set', str(tmp_path))
    batches = list(eval_batches(dataset, 'test', 8))
    seen = np.concatenate([numbers(dataset, b)[b['mask']] for b in batches])
    np.testing.assert_array_equal(seen, np.delete(np.arange(20), broken[:3]))
    steps = steps_per_epoch(dataset, 8)
    trained = [numbers(dataset, b) for b in take(train_batches(dataset, 8, seed=0), 2 * steps)]
    assert not np.isin(np.concatenate(trained), broken).any()
    assert dataset.num_corrupt == {'train': 4, 'validation': 0, 'test': 3}
    if storage == 'in memory':
        assert '4 of 60 images of split train cannot be decoded' in caplog.text


def test_a_set_without_test_labels_is_tested_on_its_validation_split(tmp_path):
    write_tfds(tmp_path, {'train': records_of(50), 'validation': records_of(20)})
    num_examples = sets.load('tiny_set', str(tmp_path)).info.num_examples
    assert num_examples == {'train': 45, 'validation': 5, 'test': 20}


def test_images_are_resized_on_request(tmp_path):
    write_tfds(tmp_path, {'train': records_of(30), 'test': records_of(20)})
    dataset = sets.load('tiny_set', str(tmp_path), image_size=4)
    assert dataset.info.image_shape == (4, 4, 3)
    batch = next(iter(eval_batches(dataset, 'test', 20)))
    np.testing.assert_array_equal(numbers(dataset, batch), np.arange(20))


def test_a_set_that_is_not_prepared_says_how_to_prepare_it(tmp_path):
    with pytest.raises(ValueError) as error:
        sets.load('cifar100', str(tmp_path))
    command = str(error.value).split('prepare it with: ')[1]
    assert command.startswith("pip install 'vqjax[tfds]' && python -c ")
    assert "'cifar100'" in command and str(tmp_path) in command and 'array_record' in command
    compile(command.split('"')[1], 'command', 'exec')  # the quoted part is Python
    with pytest.raises(ValueError, match="'no_such_set' is neither"):
        sets.load('no_such_set', str(tmp_path))


def test_a_set_in_another_file_format_is_refused(tmp_path):
    write_tfds(tmp_path, {'train': records_of(2)}, file_format='tfrecord')
    with pytest.raises(ValueError, match='file format tfrecord, not array_record; prepare it in'):
        sets.load('tiny_set', str(tmp_path))


def test_a_set_of_something_else_is_refused(tmp_path):
    text = {'pythonClassName': 'tensorflow_datasets.core.features.text_feature.Text', 'text': {}}
    write_tfds(tmp_path, {'train': records_of(2)}, features={'text': text})
    with pytest.raises(ValueError, match='need one uint8 image with one label'):
        sets.load('tiny_set', str(tmp_path))


# The real copies.


@needs_shared
def test_mnist_is_read_without_tensorflow():
    code = (
        'import sys; from vqjax.trainer import data;'
        f"d = data.load('mnist', {str(SHARED)!r});"
        'b = next(data.train_batches(d, 128, seed=0));'
        "print(d.info.num_examples, d.num_corrupt, 'tensorflow' in sys.modules, b['image'].shape)"
    )
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.stdout.strip() == (
        "{'train': 7200, 'validation': 800, 'test': 2000} "
        "{'train': 0, 'validation': 0, 'test': 0} False (128, 28, 28, 1)"
    ), result.stderr


@needs_shared
def test_cifar10_on_demand_is_the_real_one(monkeypatch):
    monkeypatch.setattr(sets, 'IN_MEMORY_BYTES', 0)
    dataset = sets.load('cifar10', str(SHARED))
    assert dataset.info.num_examples == {'train': 45_000, 'validation': 5_000, 'test': 10_000}
    # Published channel means and deviations of CIFAR-10, on the scale 0 to 255.
    np.testing.assert_allclose(dataset.mean, [125.3, 123.0, 113.9], atol=1.5)
    np.testing.assert_allclose(dataset.std, [63.0, 62.1, 66.7], atol=1.5)
