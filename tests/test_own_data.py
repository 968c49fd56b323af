"""Data of one's own: the same whichever way they are given, and what is refused."""

import json

import numpy as np
import pytest
from PIL import Image
from support import figures, refuse, small_config
from test_data import png, take, write_tfds

from vqjax import studies
from vqjax.trainer import experiment
from vqjax.trainer.config.settings import Parts
from vqjax.trainer.data import sets
from vqjax.trainer.data.batches import eval_batches, train_batches
from vqjax.trainer.data.recordings import Cutting
from vqjax.trainer.errors import RunError

TINY = {'methods': 'vq_ema', 'seeds': 1, 'epochs': 1, 'batch_size': 20, 'width': 4, 'features': 8}


def drawn(number, seed=0, shape=(16, 16, 3)):
    """Images whose brightness tells the class, of five."""
    labels = np.arange(number) % 5
    noise = np.random.default_rng(seed).integers(0, 50, (number, *shape))
    return (noise + 40 * labels[:, None, None, None]).astype(np.uint8), labels


SPLITS = {'train': drawn(60), 'test': drawn(20, seed=1)}


def write_folder(root, splits=SPLITS):
    for split, (images, labels) in splits.items():
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            folder = root / split / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.squeeze()).save(folder / f'{number}.png')
    return str(root)


def write_npz(path, splits=SPLITS):
    found = {f'{split}_images': images for split, (images, _) in splits.items()}
    np.savez(path, **found, **{f'{split}_labels': labels for split, (_, labels) in splits.items()})
    return str(path)


class Columns:
    """A data set of Hugging Face's interface: rows are mappings, and there are other columns."""

    def __init__(self, images, labels):
        self.images, self.labels, self.shape = images, labels, (len(labels), 3)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        image = Image.fromarray(self.images[i])
        return {'id': f'{i}', 'image': image, 'label': int(self.labels[i])}


class Tensor:
    """What torch gives, as far as it is read: an array by `__array__`."""

    def __init__(self, array):
        self._array = np.asarray(array)

    def __array__(self, dtype=None, copy=None):
        return self._array


class Tensors:
    """A data set of torch's interface, channels first."""

    def __init__(self, images, labels):
        self.images, self.labels = np.moveaxis(images, -1, 1), labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return Tensor(self.images[i]), Tensor(self.labels[i])


class ChannelsLast:
    """The adapter of docs/data.md."""

    def __init__(self, source):
        self.source = source

    def __len__(self):
        return len(self.source)

    def __getitem__(self, i):
        image, label = self.source[i]
        return np.moveaxis(np.asarray(image), 0, -1), label


def grain_source(images, labels):
    import grain

    return grain.MapDataset.range(len(labels)).map(lambda i: (images[i], labels[i]))


GIVEN = {
    'arrays': lambda *split: split,
    'names': lambda images, labels: (images, np.asarray(list('abcde'))[labels][:, None]),
    'Grain': grain_source,
    'Hugging Face': Columns,
    'torch': lambda *split: ChannelsLast(Tensors(*split)),
    'a list': lambda *split: list(zip(*split, strict=True)),
}


def assert_equal(a, b):
    """Two data sets are one to a run."""
    for field in ('image_shape', 'num_classes', 'num_examples'):
        assert getattr(a.info, field) == getattr(b.info, field)
    np.testing.assert_array_equal([a.mean, a.std], [b.mean, b.std])
    for split in ('validation', 'test'):
        for x, y in zip(eval_batches(a, split, 7), eval_batches(b, split, 7), strict=True):
            for name in x:
                np.testing.assert_array_equal(x[name], y[name])
    for x, y in zip(*(take(train_batches(d, 7, seed=3), 9) for d in (a, b)), strict=True):
        np.testing.assert_array_equal(x['image'], y['image'])
        np.testing.assert_array_equal(x['label'], y['label'])


@pytest.fixture(scope='module')
def named(tmp_path_factory):
    """The TFDS set of the same images."""
    root = tmp_path_factory.mktemp('tfds')
    write_tfds(
        root,
        {s: [(png(x), int(y)) for x, y in zip(*split, strict=True)] for s, split in SPLITS.items()},
    )
    return str(root)


@pytest.fixture(params=['in memory', 'on demand'])
def storage(request, monkeypatch):
    if request.param == 'on demand':
        monkeypatch.setattr(sets, 'IN_MEMORY_BYTES', 0)


def test_every_way_to_give_images_gives_the_same_set(named, tmp_path, storage):
    expected = sets.load('tiny_set', named)
    assert expected.digest == ''
    found = {
        'folder': sets.load('folder', write_folder(tmp_path / 'images')),
        'npz': sets.load('npz', write_npz(tmp_path / 'images.npz')),
    }
    for name, give in GIVEN.items():
        found[name] = sets.from_sources(name, {s: give(*split) for s, split in SPLITS.items()})
    for name, dataset in found.items():
        assert_equal(dataset, expected)
        assert dataset.info.name == name and len(dataset.digest) == 16


def test_one_digest_tells_the_same_images_and_no_others(tmp_path):
    changed, relabelled = drawn(60), drawn(60)
    changed[0][7, 3, 3, 1] += 1
    relabelled[1][[0, 1]] = relabelled[1][[1, 0]]
    digests = [
        sets.load('folder', write_folder(tmp_path / 'images')).digest,
        *(sets.from_sources('x', SPLITS | {'train': x}).digest for x in (changed, relabelled)),
        sets.from_sources('x', {'train': SPLITS['train'], 'validation': SPLITS['test']}).digest,
    ]  # fmt: skip
    assert len(set(digests)) == len(digests)
    same = [sets.load('npz', write_npz(tmp_path / 'a.npz')), sets.from_sources('x', SPLITS)]
    assert {dataset.digest for dataset in same} == {digests[0]}


def test_folds_are_those_of_the_same_images_in_a_tfds_set(tmp_path):
    train = {'train': SPLITS['train']}
    write_tfds(tmp_path, {'train': [(png(x), int(y)) for x, y in zip(*drawn(60), strict=True)]})
    own = sets.open_own('x', given=train)
    for fold in range(3):
        cutting = Cutting(folds=3, fold=fold)
        assert_equal(own.at(cutting), sets.load('tiny_set', str(tmp_path), cutting=cutting))
    with pytest.raises(ValueError, match='test split of its own'):
        sets.from_sources('x', SPLITS, Cutting(folds=3))


def test_files_are_in_the_order_of_their_numbers_and_classes_by_size(tmp_path):
    images = np.arange(24, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 1), np.uint8)
    write_folder(
        tmp_path, {'train': (images, np.arange(24) % 12), 'val': (images, np.arange(24) % 12)}
    )
    (tmp_path / 'train' / '3' / 'notes.txt').write_text('no image')
    (tmp_path / 'train' / '3' / '.hidden.png').write_text('no image')
    dataset = sets.load('folder', str(tmp_path))
    records = dataset.splits['test'].records
    np.testing.assert_array_equal(records.images[:, 0, 0, 0], np.arange(24))
    np.testing.assert_array_equal(records.labels, np.arange(24) % 12)


def test_images_are_resized_where_that_is_asked_for(tmp_path):
    Image.new('L', (6, 9)).save(_folder(tmp_path, 'a') / '0.png')
    with pytest.raises(ValueError, match=r'6 x 9 pixels and 1 of 8 x 8 .*set image_size'):
        Image.new('L', (8, 8)).save(_folder(tmp_path, 'a') / '1.png')
        sets.load('folder', str(tmp_path))
    for number in range(2, 30):
        Image.new('L', (8, number)).save(_folder(tmp_path, 'b') / f'{number}.png')
    assert sets.load('folder', str(tmp_path), 4).info.image_shape == (4, 4, 1)


def _folder(root, name):
    (root / name).mkdir(parents=True, exist_ok=True)
    return root / name


def test_broken_files_are_named_counted_and_left_out(tmp_path, caplog):
    write_folder(tmp_path)
    for number, damage in ((5, b''), (7, b'no image'), (12, None), (31, b'GIF89a')):
        path = next(tmp_path.glob(f'train/*/{number}.png'))
        path.write_bytes(path.read_bytes()[:90] if damage is None else damage)
    dataset = sets.load('folder', str(tmp_path))
    assert sum(dataset.num_corrupt.values()) == 4
    assert sum(dataset.info.num_examples.values()) == 76
    assert (
        'folder: 4 of 60 images of split train cannot be decoded and are left out: '
        'train/0/5.png, train/2/7.png, train/2/12.png and 1 more' in caplog.text
    )


def test_items_that_cannot_be_read_are_counted_and_left_out(caplog):
    images, labels = drawn(60)
    images = images.astype(np.float32)
    images[[3, 9], 2, 2, 1] = np.nan, np.inf

    class Source(Columns):
        def __getitem__(self, i):
            if i == 20:
                raise OSError('gone')
            return None if i == 21 else (self.images[i], self.labels[i])

    arrays = sets.from_sources('mine', {'train': (images, labels)})
    source = sets.from_sources('mine', {'train': Source(images, labels)})
    assert sum(arrays.info.num_examples.values()) == 58
    assert sum(source.info.num_examples.values()) == 56
    assert '2 of 60 images of split train' in caplog.text and 'number 3, number 9' in caplog.text
    assert '4 of 60 images of split train' in caplog.text


# Whole runs.


@pytest.fixture(scope='module')
def outcome(named, tmp_path_factory):
    """Figures of a run on the TFDS set."""
    workdir = tmp_path_factory.mktemp('run') / 'tfds'
    studies.run(small_config(**TINY, dataset='tiny_set', data_dir=named), str(workdir))
    return figures(workdir)


@pytest.mark.parametrize('way', ['folder', 'npz', 'Hugging Face', 'torch'])
def test_a_run_gives_the_figures_of_the_same_images_as_a_tfds_set(outcome, tmp_path, way):
    config, given = small_config(**TINY), None
    if way == 'folder':
        config |= {'dataset': way, 'data_dir': write_folder(tmp_path / 'images')}
    elif way == 'npz':
        config |= {'dataset': way, 'data_dir': write_npz(tmp_path / 'images.npz')}
    else:
        given = {split: GIVEN[way](*arrays) for split, arrays in SPLITS.items()}
    workdir = tmp_path / 'run'
    results = studies.run(config, str(workdir), dataset=given)
    assert figures(workdir) == outcome
    assert results['config']['dataset'] == ('your data' if given else way)
    digest = sets.from_sources('x', SPLITS).digest
    assert json.loads((workdir / 'config.json').read_text())['data_digest'] == digest


def test_a_run_goes_on_with_the_same_data_alone(tmp_path):
    config = small_config(**TINY | {'methods': 'none'})
    workdir, cut = tmp_path / 'run', {'train': SPLITS['train']}
    first = experiment.run(config, str(workdir), dataset=cut)
    before = {p: p.read_bytes() for p in workdir.rglob('*') if p.is_file()}
    again = experiment.run(config, str(workdir), dataset=cut)
    assert again['methods'] == first['methods']
    other = {'train': (SPLITS['train'][0], SPLITS['train'][1][::-1].copy())}
    with pytest.raises(RunError, match='holds a run on other data') as error:
        experiment.run(config, str(workdir), dataset=other)
    assert '\n' not in str(error.value)
    after = {p: p.read_bytes() for p in workdir.rglob('*') if p.is_file()}
    assert {p.name for p in before.keys() ^ after.keys()} <= {'.lock'}
    digest = first['config']['data_digest']
    with pytest.raises(RunError, match=f'data_digest is {digest}'):
        experiment.run(config | {'data_digest': digest}, str(tmp_path / 'new'), dataset=other)
    assert not (tmp_path / 'new').exists()


# Bad input: one sentence, and nothing is written.


def flat(root):
    for number, image in enumerate(SPLITS['train'][0]):
        Image.fromarray(image).save(root / f'{number}.png')


def modes(root):
    write_folder(root)
    Image.new('L', (16, 16)).save(root / 'train' / '1' / '99.png')


FOLDERS = {
    'an empty folder': (lambda root: None, 'is empty: put a folder of images for each class'),
    'no classes': (flat, '60 images lie in'),
    'an empty class': (
        lambda root: (write_folder(root), (root / 'train' / 'x').mkdir()), "x' holds no image"
    ),
    'one class': (
        lambda root: write_folder(root, {'.': (SPLITS['train'][0], np.zeros(60, int))}),
        'one class, so there is nothing to tell apart',
    ),
    'several modes': (modes, r"80 images of mode RGB and 1 of mode L (train/1/99.png): convert"),
    'another mode': (
        lambda root: Image.new('CMYK', (9, 9)).save(_folder(root, 'a') / '0.jpg'),
        '1 image of mode CMYK',
    ),
    'a test class': (
        lambda root: write_folder(root, {'train': drawn(4), 'test': drawn(5)}),
        "class '4' is in split 'test' and not in train",
    ),
    'all broken': (
        lambda root: (_folder(root, 'a') / '0.png').write_text('no image'), 'none of 1 images'
    ),
    'splits and more': (
        lambda root: (write_folder(root), _folder(root, 'more') / 'x'), "folder 'more' lies beside"
    ),
    'no train': (
        lambda root: write_folder(root, {'test': drawn(9), 'val': drawn(9)}), 'a folder named train'
    ),
}  # fmt: skip


@pytest.mark.parametrize('name', FOLDERS)
def test_folders_that_are_refused(tmp_path, name):
    make, text = FOLDERS[name]
    root = tmp_path / 'images'
    root.mkdir()
    make(root)
    refuse(text, tmp_path / 'run', dataset='folder', data_dir=str(root), batch_size=20)
    assert not (tmp_path / 'run').exists()


def test_a_path_that_is_not_there_is_told_with_the_nearest_one(tmp_path):
    write_folder(tmp_path / 'flowers')
    write_npz(tmp_path / 'flowers.npz')
    for name, path, near in (
        ('folder', 'flower', 'flowers'),
        ('folder', 'Flowres/train', 'flowers/train'),
        ('npz', 'flower.npz', 'flowers.npz'),
        ('recordings', 'flower', 'flowers'),
        ('tiny_set', 'flower', 'flowers'),
    ):
        text = f"did you mean '{tmp_path / near}'?"
        refuse(text, tmp_path / 'run', dataset=name, data_dir=str(tmp_path / path))
    refuse("did you mean 'npz'?", tmp_path / 'run', dataset='nzp')
    refuse("set dataset to 'folder'", tmp_path / 'run', dataset=str(tmp_path / 'flowers'))


IMAGES, LABELS = SPLITS['train']
ARRAYS = {
    'images alone': (IMAGES, 'without labels: need a pair (images, labels)'),
    'no train': ({'test': SPLITS['test']}, 'need train, and validation and test'),
    'other splits': ({'train': (IMAGES, LABELS), 'dev': SPLITS['test']}, 'need train, and valid'),
    'fewer labels': ((IMAGES, LABELS[:50]), 'for 60 images: need integers from 0'),
    'one-hot': ((IMAGES, np.eye(5)[LABELS]), 'labels.argmax(-1)'),
    'real labels': ((IMAGES, LABELS + 0.5), 'need integers from 0, or text'),
    'from 1': ((IMAGES, LABELS + 1), '5 labels from 1 to 5, and none is 0: number the classes'),
    'below 0': ((IMAGES, LABELS - 1), '5 labels from -1 to 3'),
    'a gap': ((IMAGES, LABELS + 3 * (LABELS > 2)), 'none is 3: number'),
    'a test label': (
        {'train': (IMAGES, LABELS), 'test': (IMAGES, LABELS + 1)},
        "label 5 is in split 'test' and not in train",
    ),
    'one class': ((IMAGES, 0 * LABELS), 'one class, so there is nothing to tell apart'),
    'channels first': ((np.moveaxis(IMAGES, -1, 1), LABELS), 'channels first: need'),
    'several sizes': (([IMAGES[0], IMAGES[1, :9]] * 30, LABELS), 'need one shape, so resize'),
    'sizes of a source': (list(zip([IMAGES[0], IMAGES[1, :9]], (0, 1), strict=True)), 'item 1 is'),
    'NaN': ((np.full((60, 4, 4, 1), np.nan), LABELS), 'every image holds NaN or infinities'),
    'text': ((np.full((60, 4, 4, 1), 'x'), LABELS), 'need real numbers'),
    'no image': ((IMAGES[:0], LABELS[:0]), 'none of them 0'),
    'an empty source': ([], 'is empty'),
    'no pairs': ([1, 2, 3], 'item 0 is 1: need a pair (image, label)'),
    'other keys': ([{'x': 1, 'y': 2}], "item 0 has ['x', 'y']: need image and label"),
    'no source': (7, 'is 7: need a pair'),
    'a name': ('mnist', "need a pair (image, label)"),
}  # fmt: skip


@pytest.mark.parametrize('name', ARRAYS)
def test_arrays_and_sources_that_are_refused(tmp_path, name):
    given, text = ARRAYS[name]
    with pytest.raises(RunError) as error:
        experiment.run(small_config(**TINY), str(tmp_path / 'run'), parts=Parts(dataset=given))
    message = str(error.value)
    assert text in message and '\n' not in message and len(message) < 500, message
    assert not list(tmp_path.iterdir())


def test_files_of_arrays_that_are_refused(tmp_path):
    file = tmp_path / 'a.npz'
    for arrays, text in (
        ({'test_images': IMAGES, 'test_labels': LABELS}, 'has no train_images: it holds'),
        ({'train_images': IMAGES}, 'has train_images and no train_labels'),
        ({'images': IMAGES, 'labels': LABELS, 'extra': LABELS}, 'an array extra that no split has'),
        ({'images': IMAGES, 'labels': LABELS, 'x_train': IMAGES, 'y_train': LABELS}, 'two arrays'),
    ):
        np.savez(file, **arrays)
        refuse(text, tmp_path / 'run', dataset='npz', data_dir=str(file))
    for content in (b'', b'PK\x03\x04 no more', file.read_bytes()[:5000]):
        file.write_bytes(content)
        refuse('cannot be read', tmp_path / 'run', dataset='npz', data_dir=str(file))
    with open(file, 'wb') as one:
        np.save(one, IMAGES)
    refuse('one array without a name', tmp_path / 'run', dataset='npz', data_dir=str(file))
    refuse('needs data_dir', tmp_path / 'run', dataset='npz')
    assert [p.name for p in tmp_path.iterdir()] == ['a.npz']


def test_values_in_messages_are_short(tmp_path):
    big = np.random.default_rng(0).random((50, 8, 8))
    for changes, text in (
        ({'dataset': big}, 'dataset is an array float64 of shape (50, 8, 8): give a value of type'),
        ({'epochs': big.tolist()}, 'epochs is [[['),
        ({'overrides': big}, 'overrides is an array float64'),
        ({'quantizers': [big]}, 'quantizers is [an array float64'),
    ):
        with pytest.raises(RunError) as error:
            experiment.run(small_config(**changes), str(tmp_path / 'run'))
        message = str(error.value)
        assert text in message and len(message) < 300 and '\n' not in message, message


def test_studies_that_read_their_data_by_name_say_so(tmp_path):
    for study in ('vqvae2', 'autopsy', 'behaviour'):
        with pytest.raises(RunError, match="set dataset to 'folder' or 'npz'"):
            studies.run({'study': study}, str(tmp_path / 'run'), dataset=SPLITS)


def test_a_search_goes_on_with_the_same_data_alone(tmp_path):
    space = {'every': {'learning_rate': {'log_uniform': (1e-3, 1e-2)}}}
    config = small_config(**TINY | {'methods': 'none'}, trials=1, trial_seeds=1, space=space)
    workdir = tmp_path / 'run'
    with pytest.raises(RunError, match='channels first'):
        studies.run(config, str(workdir), dataset=ARRAYS['channels first'][0])
    assert not list(tmp_path.iterdir())
    cut = {'train': SPLITS['train']}
    results = studies.run(config, str(workdir), dataset=cut)
    files = [workdir / place / 'config.json' for place in ('.', 'search', 'final')]
    digests = {json.loads(file.read_text())['data_digest'] for file in files}
    assert digests == {results['config']['data_digest'], sets.from_sources('x', cut).digest}
    with pytest.raises(RunError, match='holds a run on other data'):
        studies.run(config, str(workdir), dataset=SPLITS)
