"""Recordings: how they are read, split and cut, what missing steps change, and how they train."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import command, refuse

from vqjax import VQEMA, sensors
from vqjax.trainer import experiment
from vqjax.trainer.data import batches, folds, recording_files, recordings, sets
from vqjax.trainer.data.recordings import Cutting, Recording, from_recordings
from vqjax.trainer.errors import RunError
from vqjax.trainer.run import finished
from vqjax.trainer.step import evaluation, network
from vqjax.trainer.step.starts import init_state
from vqjax.trainer.step.steps import gradients, train_step
from vqjax.trainer.step.task import Task

NAN = float('nan')


def wave(period, steps=60, sensors=3, seed=0):
    """Sines of that many steps with a little noise, float32 [steps, sensors]."""
    rng = np.random.default_rng(seed)
    phase = rng.uniform(0, 6, sensors) + 2 * np.pi * np.arange(steps)[:, None] / period
    return (np.sin(phase) + 0.1 * rng.normal(size=(steps, sensors))).astype(np.float32)


PERIODS = {'slow': 20, 'quick': 7, 'shake': 3}


def some(number=8, subjects=0, **changes):
    """`number` recordings of each of three labels, in turn of so many subjects."""
    pairs = enumerate(itertools.product(range(number), PERIODS))
    return [
        Recording(
            wave(PERIODS[label], seed=i, **changes),
            label,
            f'subject {n % subjects}' if subjects else '',
            name=f'{label} {n}',
        )
        for i, (n, label) in pairs
    ]


# Splits and folds.

NAMES = st.lists(st.sampled_from('abcd'), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(labels=NAMES, number=st.integers(1, 8))
def test_recordings_are_dealt_out_evenly_in_number_and_by_label(labels, number):
    fold = folds.deal(labels, [''] * len(labels), number)
    for counted in (fold, *(fold[np.asarray(labels) == label] for label in set(labels))):
        counts = np.bincount(counted, minlength=number)
        assert counts.max() - counts.min() <= 1
    np.testing.assert_array_equal(fold, folds.deal(labels, [''] * len(labels), number))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data(), labels=NAMES, number=st.integers(1, 8))
def test_a_subject_is_in_one_fold(data, labels, number):
    subjects = data.draw(
        st.lists(st.sampled_from('uvwxyz'), min_size=len(labels), max_size=len(labels))
    )
    fold = folds.deal(labels, subjects, number)
    assert {len(set(fold[np.asarray(subjects) == s])) for s in set(subjects)} == {1}
    # As many folds as can be are used.
    assert len(set(fold)) == min(number, len(set(subjects)))


@pytest.mark.parametrize('subjects', [0, 5])
def test_every_recording_is_tested_once_over_the_folds_and_never_trained_on(subjects):
    tested = []
    for fold in range(4):
        found = from_recordings(
            'x', {'train': some(subjects=subjects)}, Cutting(20, 20, False, 4, fold)
        )
        parts = {s: {r.name for r in found.recordings[s]} for s in found.splits}
        assert sum(map(len, parts.values())) == 24 and len(set.union(*parts.values())) == 24
        tested += sorted(parts['test'])
        if subjects:
            owners = [{r.subject for r in found.recordings[s]} for s in parts]
            assert not any(a & b for a, b in itertools.combinations(owners, 2))
        assert {r.label for r in found.recordings['train']} == set(PERIODS)
    assert len(tested) == len(set(tested)) == 24


def test_a_set_without_a_test_split_gives_a_fifth_and_a_tenth_of_the_rest():
    found = from_recordings('x', {'train': some(10)}, Cutting(20))
    number = {split: len(r) for split, r in found.recordings.items()}
    assert number == {'train': 21, 'validation': 3, 'test': 6}
    for split in number:
        counts = [sum(r.label == label for r in found.recordings[split]) for label in PERIODS]
        assert len(set(counts)) == 1


# Windows.


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=3, max_size=6),
    window=st.integers(1, 40),
    hop=st.integers(1, 50),
    pad=st.booleans(),
)
def test_windows_are_slices_of_their_recordings(lengths, window, hop, pad):
    window = min(window, max(lengths) if pad else min(lengths))
    rng = np.random.default_rng(0)
    own = [Recording(rng.normal(size=(n, 2)).astype(np.float32), 'a') for n in lengths]
    split = recordings._cut(own, ('a',), Cutting(window, hop, pad))
    assert not split.corrupt
    expected = []
    for recording in own:
        x, ended = recording.signals, False
        for first in range(0, len(x), hop):
            piece = x[first : first + window]
            if len(piece) == window or pad and not ended:
                lacking = ((0, window - len(piece)), (0, 0))
                expected.append(np.pad(piece, lacking, constant_values=NAN))
            ended = first + window >= len(x)
    images, labels, good = split.read(np.arange(len(split.indices)))
    assert good.all() and images.dtype == np.float32 and (labels == 0).all()
    np.testing.assert_array_equal(images[:, 0], np.stack(expected))


def test_whole_recordings_of_other_lengths_are_padded_to_the_longest():
    lengths = {'train': (9, 12, 7), 'validation': (5,), 'test': (12, 14)}
    splits = {s: [Recording(wave(5, n), 'a') for n in own] for s, own in lengths.items()}
    found = from_recordings('x', splits)
    assert found.info.image_shape == (1, 14, 3) and found.cutting == Cutting(14, 14, True)
    batch = batches.init_batch(found, 3, seed=0)
    assert sorted(np.isfinite(batch['image']).all(-1).sum((1, 2))) == [7, 9, 12]


def test_standardisation_is_by_the_steps_of_the_training_recordings():
    own = some()
    own[0].signals[5:9, 1] = NAN
    found = from_recordings('x', {'train': own, 'test': some(2)}, Cutting(20, 5))
    steps = np.concatenate([r.signals for r in found.recordings['train']]).astype(np.float64)
    steps = steps[np.isfinite(steps).all(-1)]
    np.testing.assert_allclose(found.mean, steps.mean(0), atol=1e-6)
    np.testing.assert_allclose(found.std, steps.std(0), rtol=1e-6)


def test_missing_steps_are_counted_and_windows_without_any_are_left_out(caplog):
    train, test = some(), some(2)
    test[1].signals[10:55, 2] = NAN
    found = from_recordings('lost', {'train': train, 'test': test}, Cutting(20, 10))
    assert found.counts()['test'] == {
        'recordings': 6, 'steps': 360, 'missing_steps': 45, 'windows': 27, 'missing_windows': 3,
    }  # fmt: skip
    assert found.num_corrupt == {'train': 0, 'validation': 0, 'test': 3}
    assert '45 of 360 steps of split test are missing and masked; 3 windows left out' in caplog.text
    masks = [b['mask'].sum() for b in batches.eval_batches(found, 'test', 8)]
    assert sum(masks) == 27


# What padding changes: nothing.


def classifier(bottleneck='grid', **fields):
    return network.Classifier(3, VQEMA(8), 'sensor', 8, bottleneck, width=4, **fields)


def beyond(images, steps):
    """Windows with so many missing steps after them."""
    return np.pad(images, ((0, 0), (0, 0), (0, steps), (0, 0)), constant_values=NAN)


def batch_of(steps=18, number=12):
    images = np.stack([wave(5, steps, seed=i) for i in range(number)])[:, None]
    return {'image': images, 'label': np.arange(number) % 3, 'stop': np.zeros(1, bool)}


@pytest.mark.parametrize('bottleneck', ['grid', 'vector'])
def test_a_padded_window_has_the_logits_and_codes_of_the_short_one(bottleneck):
    images, model = batch_of()['image'], classifier(bottleneck)
    variables = jax.jit(lambda key: model.init(key, images, train=True))(jax.random.key(0))
    apply = jax.jit(lambda images: model.apply(variables, images, train=False))
    short = apply(images)
    for more in (1, 2, 13):
        long = apply(beyond(images, more))
        np.testing.assert_allclose(long.logits, short.logits, atol=1e-5)
        places = short.quantized.codes.shape[2]
        np.testing.assert_array_equal(long.quantized.codes[:, :, :places], short.quantized.codes)
        assert (long.quantized.codes[:, :, places:] == -1).all()


@pytest.mark.parametrize(
    'bottleneck, accumulate',
    [('grid', 2), ('vector', 1), *(pytest.param(*x, marks=pytest.mark.slow) for x in
     [('grid', 1), ('vector', 2)])],
)  # fmt: skip
def test_a_training_step_on_padded_windows_is_that_on_the_short_ones(bottleneck, accumulate):
    """Gradient, batch and codebook statistics, and all that is measured."""
    batch, outcomes = batch_of(), []
    task = Task(classifier(bottleneck, decoded_shape=None), optax.sgd(0.1), accumulate=accumulate)
    state = init_state(task, 0, batch['image'])
    padded = init_state(task, 0, beyond(batch['image'], 14))
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(padded), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    for more in (0, 14):
        given = batch | {'image': beyond(batch['image'], more)}
        outcomes.append(jax.jit(train_step, static_argnums=0)(task, state, given))
    for a, b in zip(*map(jax.tree.leaves, outcomes), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_the_reconstruction_error_is_over_the_steps_that_are_there():
    batch = batch_of(steps=20)
    batch['image'][3, 0, 6:, 0] = NAN
    model = classifier(decoded_shape=(1, 20, 3))
    task = Task(model, optax.sgd(0.1), reconstruction_weight=1.0)
    state = init_state(task, 0, batch['image'])
    batch |= {'mask': np.ones(12, bool)}
    _, measured = jax.jit(evaluation.eval_step, static_argnums=0)(task, state, batch)
    output = model.apply({'params': state.params, **state.stats}, batch['image'], train=False)
    errors = [
        float(np.mean((np.asarray(d) - x)[np.isfinite(x).all(-1)] ** 2))
        for d, x in zip(output.decoded, batch['image'], strict=True)
    ]
    assert output.decoded.shape == (12, 1, 20, 3)
    np.testing.assert_allclose(measured['reconstruction_error'], sum(errors), rtol=1e-5)
    grads = jax.jit(gradients, static_argnums=0)(task, state, batch)[0]
    assert all(np.isfinite(x).all() and x.any() for x in jax.tree.leaves(grads['decoder']))


def test_a_window_without_a_step_counts_as_corrupt():
    batch = batch_of()
    batch['image'][5] = NAN
    task = Task(classifier(), optax.sgd(0.1))
    state = init_state(task, 0, batch['image'])
    measured = jax.jit(gradients, static_argnums=0)(task, state, batch)[2]
    assert int(measured['corrupt']) == 1 and np.asarray(measured['finite']).all()
    real = sensors.real_places('sensor', 'grid', jnp.asarray(batch['image']))
    assert real.sum() == 11 * 5 and not real[5].any()


# Sources.


def write(folder, own, **more):
    """Recordings as files of a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, recording in enumerate(own):
        values = {'signals': recording.signals, 'label': recording.label} | more
        if recording.subject:
            values['subject'] = recording.subject
        np.savez(folder / f'{i:03}.npz', **{k: v for k, v in values.items() if v is not None})
    return folder


def test_a_folder_is_read_with_its_splits_rates_and_subjects(tmp_path):
    own = some(6, subjects=6)
    parts = {'train': own[:12], 'test': own[12:]}
    for split, recordings_ in parts.items():
        write(tmp_path / split, recordings_, rate=50)
    found = sets.load('recordings', str(tmp_path), cutting=Cutting(20, 10))
    assert found.rate == 50.0 and found.labels == ('quick', 'shake', 'slow')
    assert [len(found.recordings[s]) for s in ('train', 'validation', 'test')] == [9, 3, 6]
    assert {r.subject for r in found.recordings['test']} == {'subject 4', 'subject 5'}
    assert found.recordings['test'][0].name == 'test/000.npz'
    np.testing.assert_array_equal(found.recordings['test'][1].signals, own[13].signals)
    # Labels that are numbers are in their order.
    for i in range(12):
        np.savez(tmp_path / 'train' / f'{i:03}.npz', signals=own[0].signals, label=i % 2 * 9 + 1)
    for path in (tmp_path / 'test').iterdir():
        np.savez(path, signals=own[0].signals, label=10)
    assert sets.load('recordings', str(tmp_path)).labels == ('1', '10')


def test_the_watch_recordings_are_those_of_the_archive():
    pytest.importorskip('aeon')
    found = sets.load('basic_motions', cutting=Cutting(50, 10))
    assert found.labels == ('badminton', 'running', 'standing', 'walking') and found.rate == 10.0
    assert found.info.image_shape == (1, 50, 6)
    counts = found.counts()
    assert [counts[s]['recordings'] for s in found.splits] == [36, 4, 40]
    assert all(counts[s]['windows'] == 6 * counts[s]['recordings'] for s in counts)
    # The first numbers of the files.
    np.testing.assert_allclose(
        found.recordings['test'][0].signals[:3, 0], [-0.740653, -0.740653, 10.208449], rtol=1e-6
    )


def test_the_vowels_have_other_lengths():
    pytest.importorskip('aeon')
    found = sets.load('japanese_vowels')
    lengths = [len(r.signals) for split in found.recordings.values() for r in split]
    assert (min(lengths), max(lengths), len(lengths)) == (7, 29, 640)
    assert found.info.image_shape == (1, 29, 12) and found.labels == tuple('123456789')
    assert found.info.num_examples == {'train': 243, 'validation': 27, 'test': 370}
    assert found.rate == pytest.approx(1000 / 6.4)


def test_a_tfds_set_of_sequences_is_one_of_recordings(tmp_path):
    own = {'train': some(6), 'test': some(2)}
    write_sequences(tmp_path, own)
    found = sets.load('moves', str(tmp_path), cutting=Cutting(20))
    assert found.labels == ('quick', 'shake', 'slow')
    assert [len(found.recordings[s]) for s in ('train', 'validation', 'test')] == [15, 3, 6]
    for a, b in zip(found.recordings['test'], own['test'], strict=True):
        assert a.label == b.label and a.subject == 'test ' + b.name[-1:]
        np.testing.assert_array_equal(a.signals, b.signals)


def write_sequences(folder, splits):
    """A prepared TFDS set of signals [T, 3] with a label and a subject."""
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_generated_pb2 as example_pb
    from tensorflow_datasets.proto import tf_feature_generated_pb2 as pb

    folder = folder / 'moves' / '1.0.0'
    folder.mkdir(parents=True)
    names = sorted(PERIODS)
    for split, own in splits.items():
        name = f'moves-{split}.array_record-00000-of-00001'
        writer = ArrayRecordWriter(str(folder / name), 'group_size:1')
        for r in own:
            who = f'{split} {r.name[-1:]}'.encode()
            feature = {
                'signals': pb.Feature(float_list=pb.FloatList(value=r.signals.ravel())),
                'label': pb.Feature(int64_list=pb.Int64List(value=[names.index(r.label)])),
                'subject': pb.Feature(bytes_list=pb.BytesList(value=[who])),
            }
            features = pb.Features(feature=feature)
            writer.write(example_pb.Example(features=features).SerializeToString())
        writer.close()
    template = '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'
    info = {
        'name': 'moves', 'version': '1.0.0', 'fileFormat': 'array_record',
        'moduleName': '__main__',
        'splits': [
            {'name': s, 'shardLengths': [str(len(own))], 'filepathTemplate': template}
            for s, own in splits.items()
        ],
    }  # fmt: skip
    package = 'tensorflow_datasets.core.features.'
    features = {
        'signals': {
            'pythonClassName': package + 'tensor_feature.Tensor',
            'tensor': {
                'shape': {'dimensions': ['-1', '3']},
                'dtype': 'float32',
                'encoding': 'none',
            },
        },
        'label': {
            'pythonClassName': package + 'class_label_feature.ClassLabel',
            'classLabel': {'numClasses': '3'},
        },
        'subject': {'pythonClassName': package + 'text_feature.Text', 'text': {}},
    }
    description = {
        'pythonClassName': package + 'features_dict.FeaturesDict',
        'featuresDict': {'features': features},
    }
    (folder / 'dataset_info.json').write_text(json.dumps(info))
    (folder / 'features.json').write_text(json.dumps(description))
    (folder / 'label.labels.txt').write_text('\n'.join(names))


# Bad input.


def changed(i, **fields):
    own = some(4)
    own[i] = own[i]._replace(**fields)
    return {'train': own}


BAD = {
    "'slow 1' has 2 sensors, 'slow 0' has 3": (changed(3, signals=wave(5, sensors=2)), Cutting()),
    "'quick 0' has 12 steps, fewer than window=20: give at most 12, or pad=True": (
        changed(1, signals=wave(5, 12)),
        Cutting(20),
    ),
    'window=61 is longer than the longest recording, of 60': ({'train': some(4)}, Cutting(61)),
    "'quick 0' has no step at which all sensors": (
        changed(1, signals=np.full((60, 3), NAN)),
        Cutting(),
    ),
    'has signals float64 of shape .60,.': (changed(1, signals=np.zeros(60)), Cutting()),
    r'of shape \(0, 3\)': (changed(1, signals=np.zeros((0, 3))), Cutting()),
    'has signals complex128': (changed(1, signals=np.zeros((9, 3), complex)), Cutting()),
    'a rate of 50 Hz, .slow 0. of 0': (changed(1, rate=50.0), Cutting()),
    "has subject 'me', 'slow 0' has ''": (changed(1, subject='me'), Cutting()),
    "subject 'subject 0' is in the splits 'train' and 'test'": (
        {'train': some(8, 2), 'test': some(8, 1)},
        Cutting(),
    ),
    'has one subject for train and test': ({'train': some(8, 1)}, Cutting()),
    'has 3 subjects: give at most 3 folds, got 4': ({'train': some(8, 3)}, Cutting(folds=4)),
    'has 24 recordings: give at most 24 folds': ({'train': some()}, Cutting(folds=25)),
    "label 'other' is in split 'test' and not in train": (
        {'train': some(), 'test': changed(1, label='other')['train']},
        Cutting(),
    ),
    'takes all recordings of a label': (
        {'train': [r._replace(label=str(i)) for i, r in enumerate(some(1))]},
        Cutting(),
    ),
    'no recording to train from': ({'train': []}, Cutting()),
    "no recording in split 'test'": ({'train': some(), 'test': []}, Cutting()),
}


@pytest.mark.parametrize('message', BAD)
def test_recordings_that_are_no_data_set_are_refused(message):
    with pytest.raises(ValueError, match=message) as error:
        from_recordings('mine', *BAD[message])
    assert "dataset='mine'" in str(error.value) and '\n' not in str(error.value)


def config(folder, **changes):
    """Two epochs of a small encoder on a folder of recordings."""
    return {
        'dataset': 'recordings', 'data_dir': str(folder), 'encoder': 'sensor', 'width': 4,
        'window': 20, 'hop': 20, 'bottleneck': 'grid', 'batch_size': 16, 'init_batch_size': 32,
    } | changes  # fmt: skip


@pytest.mark.parametrize(
    'file, content, text',
    [
        (None, None, 'there is no .npz file'),
        ('gone/a.npz', {'signals': wave(5), 'label': 'a'}, 'there is no .npz file'),
        ('test/a.npz', {'signals': wave(5), 'label': 'a'}, 'or none'),
        ('a.npz', b'nothing', "recording 'a.npz' cannot be read"),
        ('a.npz', wave(5), 'it holds one array without a name'),
        ('a.npz', {'signals': wave(5)}, 'has no label: it holds'),
        ('a.npz', {'label': 'a'}, 'has no signals: it holds'),
        ('a.npz', {'signals': wave(5), 'label': ''}, 'has an empty label'),
        ('a.npz', {'signals': wave(5), 'label': [1, 2]}, 'has label int64 of shape (2,)'),
        ('a.npz', {'signals': wave(5), 'label': 1.5}, 'need text or an integer'),
        ('a.npz', {'signals': wave(5), 'label': 'a', 'rate': 0}, 'has rate 0: give steps'),
        ('a.npz', {'signals': [[{}]], 'label': 'a'}, "recording 'a.npz' cannot be read"),
        ('a.npz', {'signals': wave(5), 'label': 'a'}, 'one class'),
        ('a.npz', {'signals': wave(5, 19), 'label': 'a'}, 'longer than the longest'),
    ],
)
def test_a_folder_that_is_no_data_set_is_one_sentence_and_nothing_is_written(
    tmp_path, file, content, text
):
    folder = tmp_path / 'data'
    folder.mkdir()
    if text == 'or none' or text == 'one class':
        write(folder, [r._replace(label='a') for r in some(4)])
    if file is not None:
        (folder / file).parent.mkdir(exist_ok=True)
        if isinstance(content, bytes):
            (folder / file).write_bytes(content)
        elif isinstance(content, np.ndarray):
            with open(folder / file, 'wb') as one:
                np.save(one, content)
        else:
            np.savez(folder / file, **content)
    refuse(text, tmp_path / 'run', **config(folder))
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    'changes, text',
    [
        ({'data_dir': ''}, 'needs data_dir'),
        ({'data_dir': '/no/such'}, 'there is no such folder'),
        ({'encoder': 'conv'}, 'holds recordings: set encoder to sensor, not conv'),
        ({'dataset': 'digits'}, 'holds images: set encoder to conv, resnet9, resnet18'),
        ({'augment': True}, 'augment is for images'),
        ({'bottleneck': 'two_level'}, 'set bottleneck to vector or grid'),
        ({'folds': 3, 'fold': 3}, 'fold is 3 and folds is 3'),
        ({'folds': 1}, 'folds of at least 2'),
        ({'fold': 2}, 'fold is 2 and folds is 0'),
        ({'window': -1}, 'window is -1: give at least 0'),
        ({'window': 99}, 'longer than the longest'),
        ({'batch_size': 999}, 'batch_size=999'),
    ],
)
def test_fields_that_do_not_fit_recordings_are_refused(tmp_path, changes, text):
    write(tmp_path / 'data', some(4))
    refuse(text, tmp_path / 'run', **config(tmp_path / 'data', **changes))
    assert not (tmp_path / 'run').exists()


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(recording_files.importlib.util, 'find_spec', lambda _: None)
    with pytest.raises(ValueError, match=r"pip install 'vqjax\[sequences\]'"):
        sets.load('basic_motions')


# Training.


def test_the_command_trains_on_a_folder_and_what_it_leaves_can_be_read(tmp_path, caplog):
    own = some(8)
    own[0].signals[10:40] = NAN
    folder, workdir = write(tmp_path / 'data', own), tmp_path / 'run'
    flags = ['--config=configs/base.py']
    flags += [f'--config.{k}={v}' for k, v in config(folder, hop=10, epochs=6).items()]
    flags += ['--config.features=16', '--config.methods=none,vq_ema', '--config.seeds=1']
    flags += ['--config.quantizers.vq_ema.num_codes=16', '--config.eval_every=6']
    said = command('--workdir', str(workdir), *flags)
    assert said.code == 0, said.err
    assert '30 of' in caplog.text and 'steps of split' in caplog.text
    results = json.loads((workdir / 'results.json').read_text())
    assert results['methods']['vq_ema']['seeds'][0]['accuracy'] > 0.9
    told = results['recordings']
    assert sum(part['missing_steps'] for part in told.values()) == 30
    assert sum(part['recordings'] for part in told.values()) == 24
    check_finished(workdir)


def test_folds_in_turn_hold_out_other_recordings_with_every_seed(tmp_path):
    folder, workdir = write(tmp_path / 'data', some(4)), tmp_path / 'run'
    changes = {'folds': 2, 'seeds': 2, 'epochs': 1, 'features': 8, 'writers': '', 'batch_size': 8}
    results = experiment.run(config(folder, **changes), str(workdir))
    seeds = results['methods']['none']['seeds']
    assert [seed['fold']['fold'] for seed in seeds] == [0, 1] and 'recordings' not in results
    read = [finished.read(workdir, 'none', seed).dataset for seed in (0, 1)]
    held = [[r.name for r in dataset.recordings['test']] for dataset in read]
    assert len(held[0]) == len(held[1]) == 6 and len({*held[0], *held[1]}) == 12
    for dataset, seed in zip(read, seeds, strict=True):
        assert len(dataset.splits['test'].indices) == seed['fold']['test']


def check_finished(workdir):
    """What is read of the run later agrees with its figures."""
    for method in ('none', 'vq_ema'):
        run = finished.read(workdir, method)
        hits = []
        for recording in run.dataset.recordings['test']:
            starts, logits = run.logits(recording.signals)
            assert starts.tolist() == [0, 10, 20, 30, 40]
            there = np.isfinite(logits).all(-1)
            assert there.tolist() == [
                np.isfinite(recording.signals[s : s + 20]).any() for s in starts
            ]
            hits += (logits.argmax(-1) == run.dataset.labels.index(recording.label))[there].tolist()
        kept = json.loads((workdir / 'finished' / method / 'seed_0.json').read_text())
        assert np.mean(hits) == pytest.approx(kept['result']['accuracy'])
        session = np.concatenate([r.signals for r in run.dataset.recordings['test']])
        assert (run.codec is None) == (method == 'none')
        assert run.encoder(session).shape == (len(session) // 4, 16)
        if run.codec is not None:
            codes = run.codec.encode_recording(session)
            again = type(run.codec).from_workdir(workdir, method)
            np.testing.assert_array_equal(again.encode_recording(session), codes)
    with pytest.raises(RunError, match='not finished'):
        finished.read(workdir, 'vq_ema', seed=7)
