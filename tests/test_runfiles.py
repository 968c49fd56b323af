"""Files of finished runs: what was written before is read; what is damaged or foreign is named."""

import json
import math
import os
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import small_config

from vqjax import VQEMA, runfiles
from vqjax.codec import Codec
from vqjax.trainer import experiment, search
from vqjax.trainer.config.fields import FIELDS
from vqjax.trainer.errors import RunError, Stopped
from vqjax.trainer.files import display
from vqjax.trainer.run import finished, pretrained
from vqjax.trainer.step import task
from vqjax.trainer.step.network import Classifier

ocp = pytest.importorskip('orbax.checkpoint')
RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


# The names and shapes of version 0.2.0, by hand: whoever renames a part fails here.
STEP, SPEC = 6, {'name': 'vq_ema', 'num_codes': 4, 'revival': None}
TRUNKS = {
    'conv': ('ConvTrunk_0', [(3, 3, 1, 1), (3, 3, 1, 2), (3, 3, 2, 4)]),
    'sensor': ('SensorTrunk_0', [(1, 5, 1, 1), (2, 4, 1, 2), (1, 4, 2, 4)]),
}
IMAGES = {
    'conv': {'shape': [4, 4, 1], 'mean': [0.25], 'std': [2.0], 'num_classes': 3},
    'sensor': {'shape': [1, 8, 2], 'mean': [0.25, 0.5], 'std': [2.0, 4.0], 'num_classes': 3},
}


def state_of(encoder):
    trunk, shapes = TRUNKS[encoder]
    convolutions = {
        f'Conv_{i}': {'kernel': normal(*shape), 'bias': normal(shape[-1])}
        for i, shape in enumerate(shapes)
    }
    moments = {'mean': normal(2), 'variance': np.exp(normal(2))}
    counts = np.ones(4, np.float32)
    return {
        'step': np.int32(STEP),
        'key': np.zeros(2, np.uint32),
        'params': {
            'encode': {trunk: convolutions, 'Dense_0': {'kernel': normal(4, 2)}},
            'hidden': {'kernel': normal(2, 2), 'bias': normal(2)},
            'logits': {'kernel': normal(2, 3), 'bias': normal(3)},
        },
        'stats': {
            'batch_stats': {'encode': {'standardize': moments}, 'normalize': moments},
            'codebook_stats': {
                'quantize': {
                    'state': {'counts': counts, 'sums': normal(4, 2), 'step': np.int32(STEP)}
                }
            },
        },
        'opt_state': [np.int32(STEP)],
        'ema_params': (),
        'healthy': np.bool_(True),
        'codebook': (),
    }


def write(workdir, encoder, state, steps=(STEP,)):
    """What `train.py` of version 0.2.0 left of a run of the method vq."""
    config = small_config(
        dataset='digits', encoder=encoder, bottleneck='grid', features=2, width=1,
        quantizers={'none': None, 'vq': SPEC}, methods='vq', seeds=1,
    )  # fmt: skip
    record = {
        'result': {
            'seed': 0, 'accuracy': 0.5, 'nll': 1.0, 'seconds': 1.0, 'perplexity_per_stage': [2.0],
            'reliability': {'confidence': [0.5], 'accuracy': [0.5], 'count': [4]},
        },
        'history': [{'epoch': 1, 'step': 3}, {'epoch': 2, 'step': STEP}],
        'bits': 2.0, 'params': 31, 'images': IMAGES[encoder],
    }  # fmt: skip
    if encoder == 'sensor':
        record['recordings'] = {'hop': 4, 'pad': False, 'rate': 10.0, 'labels': ['a', 'b', 'c']}
    (workdir / 'finished' / 'vq').mkdir(parents=True)
    (workdir / 'config.json').write_text(json.dumps(config))
    (workdir / 'finished' / 'vq' / 'seed_0.json').write_text(json.dumps(record))
    for step in steps:
        folder = workdir / 'checkpoints' / 'vq' / 'seed_0' / str(step)
        save(folder, state | {'step': np.int32(step)})
        (folder / 'extra').mkdir()
        extra = {'config': config, 'digest': '', 'extra': {}}
        (folder / 'extra' / 'metadata').write_text(json.dumps(extra))


def save(folder, state):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.absolute() / 'state', state, force=True)


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    """{encoder: (workdir, state)}; not to be changed."""
    found = {}
    for encoder in TRUNKS:
        workdir, state = tmp_path_factory.mktemp('written') / encoder, state_of(encoder)
        write(workdir, encoder, state)
        found[encoder] = workdir, state
    return found


@pytest.fixture
def workdir(written, tmp_path):
    """A copy of the one of images."""
    return shutil.copytree(written['conv'][0], tmp_path / 'run')


def sentence(error, *parts):
    message = str(error.value)
    assert '\n' not in message and len(message) < 800, message
    for part in parts:
        assert str(part) in message, message


# What was written before.


@pytest.mark.parametrize('encoder', TRUNKS)
def test_a_workdir_of_version_0_2_gives_the_codec_that_it_holds(written, encoder):
    workdir, state = written[encoder]
    codec = Codec.from_workdir(workdir, 'vq')
    assert codec.quantizer == VQEMA(4, revival=None)
    assert codec.info == {'dataset': 'digits', 'method': 'vq', 'seed': 0, 'test_accuracy': 0.5}
    kept = state['stats']['codebook_stats']['quantize']['state']
    np.testing.assert_array_equal(codec.state.sums, kept['sums'])
    # The network of the trainer, given the same arrays, finds the same codes.
    variables = {'params': state['params'], 'batch_stats': state['stats']['batch_stats']}
    z = Classifier(3, encoder=encoder, features=2, width=1, bottleneck='grid')
    represent = lambda x: np.asarray(z.apply(variables, x, method='represent'))  # noqa: E731
    if encoder == 'conv':
        images = RNG.integers(0, 9, (5, 4, 4, 1))
        codes, vectors = codec.encode(images), represent((images - 0.25) / np.float32(2))
    else:
        signals = normal(8, 2)
        scaled = (signals - np.float32([0.25, 0.5])) / np.float32([2, 4])
        codes, vectors = codec.encode(signals), represent(scaled[None, None])[0, 0]
    smoothed = 4 * (kept['counts'] + 1e-5) / (4 + 4e-5)
    centres = kept['sums'] / smoothed[:, None]
    distances = np.sum((vectors[..., None, :] - centres) ** 2, -1)
    np.testing.assert_array_equal(codes, distances.argmin(-1))
    assert codec.encoder.image_shape == tuple(IMAGES[encoder]['shape'])


def test_a_field_that_did_not_exist_yet_is_at_its_default(workdir):
    file = workdir / 'config.json'
    kept = json.loads(file.read_text())
    for name in ('overrides', 'guard', 'standardize', 'dtype'):
        del kept[name]
    file.write_text(json.dumps(kept))
    assert Codec.from_workdir(workdir, 'vq').quantizer == VQEMA(4, revival=None)


def test_readers_and_trainer_agree_on_names_and_defaults():
    model = Classifier(3, VQEMA(4), features=2, width=1)
    images = jax.ShapeDtypeStruct((8, 4, 4, 1), jnp.float32)
    init = lambda x: model.init({'params': jax.random.key(0)}, x, train=True)  # noqa: E731
    made = jax.eval_shape(init, images)
    assert made['params'].keys() == {runfiles.ENCODER, *runfiles.HEAD} - {'normalize'}
    assert made[runfiles.BATCH_STATS].keys() == {runfiles.ENCODER, 'normalize'}
    assert jax.tree.leaves(runfiles.quantizer_variables(made)[1])
    fields = {runfiles.STEP, runfiles.STATE_PARAMS, runfiles.STATE_STATS, runfiles.STATE_EMA}
    assert fields <= set(task.TrainState._fields)
    assert runfiles.FIELDS == {name: FIELDS[name].default for name in runfiles.FIELDS}


# What is damaged or of something else.

DAMAGE = {
    'empty': ('', 'it is empty'),
    'truncated': ('{"quantizers": {"vq"', 'not valid JSON'),
    'a list': ('[]', 'it holds a list instead of a mapping'),
    'null': ('null', 'it holds null'),
    'deep': ('[' * 100_000, 'not valid JSON'),
    'binary': (b'\x93NUMPY\xff\xfe', 'byte 0 is not UTF-8 text'),
    'a folder': (None, 'cannot be read (Is a directory)'),
}


def damage(file, content):
    file.unlink()
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())


def both(workdir, *parts):
    """Codec and trainer refuse it in one sentence with these parts."""
    with pytest.raises(ValueError) as error:
        Codec.from_workdir(workdir, 'vq')
    sentence(error, *parts)
    with pytest.raises(RunError) as error:
        finished.read(workdir, 'vq')
    sentence(error, *parts)


@pytest.mark.parametrize('case', DAMAGE)
@pytest.mark.parametrize(
    'name, remedy',
    [('config.json', 'restore it from a copy'), ('finished/vq/seed_0.json', 'remove it, and the')],
)
def test_a_damaged_file_is_named_with_the_remedy(workdir, name, remedy, case):
    content, reason = DAMAGE[case]
    damage(workdir / name, content)
    both(workdir, workdir / name, reason, remedy)


WRONG = {
    'config.json': [
        (lambda x: x.clear(), 'it has no quantizers'),
        (lambda x: x.update(quantizers=['vq']), "quantizers is ['vq'], and must be a mapping"),
        (lambda x: x.update(quantizers={'vq': 3}), 'quantizers.vq is 3'),
        (lambda x: x.update(overrides=[]), 'overrides is [], and must be a mapping'),
        (lambda x: x.update(overrides={'vq': 3}), 'overrides.vq is 3, and must be a mapping'),
        (lambda x: x.update(overrides={'vq': {'width': '1'}}), "overrides.vq.width is '1'"),
        (lambda x: x.update(features='2'), "features is '2', and must be like 128"),
        (lambda x: x.update(guard=1), 'guard is 1, and must be like False'),
        (lambda x: x.update(encoder=None), "encoder is None, and must be like 'conv'"),
    ],
    'finished/vq/seed_0.json': [
        (lambda x: x.clear(), 'it has no result'),
        (lambda x: x.pop('images'), 'it has no images'),
        (lambda x: x.update(images=[1]), 'images is [1]'),
        (lambda x: x['images'].update(mean='no'), "mean is 'no'"),
        (lambda x: x['images'].pop('num_classes'), 'num_classes'),
        (lambda x: x['images'].update(shape=[4, math.inf, 1]), 'shape is [4, inf, 1], not three'),
        (lambda x: x.update(history=[]), 'its history has no steps'),
        (lambda x: x.update(history=[{'step': 'x'}]), 'its history has no steps'),
        (lambda x: x['result'].update(seed=1), 'it is of seed 1'),
        (lambda x: x['result'].pop('accuracy'), 'its result has no accuracy'),
        (lambda x: x['result'].update(accuracy='good'), "accuracy is 'good'"),
    ],
}
CASES = [(name, *case) for name, cases in WRONG.items() for case in cases]


@pytest.mark.parametrize('name, change, reason', CASES, ids=[reason for *_, reason in CASES])
def test_what_does_not_belong_into_a_file_is_named(workdir, name, change, reason):
    content = json.loads((workdir / name).read_text())
    change(content)
    (workdir / name).write_text(json.dumps(content))
    both(workdir, workdir / name, reason)


@pytest.mark.parametrize(
    'change, reason',
    [
        ({'quantizers': {'vq': {'name': 'pq'}}}, 'name must be one of'),
        ({'quantizers': {'vq': SPEC | {'num_codes': 'four'}}}, 'num_codes'),
        ({'quantizers': {'vq': SPEC | {'num_codes': 8}}}, 'state/counts is float32[4], and config'),
        ({'quantizers': {'vq': {'name': 'fsq', 'levels': [3] * 9}}}, 'levels'),
        ({'features': 3}, 'variables of the encoder do not fit'),
        ({'encoder': 'resnet99'}, "encoder is 'resnet99': choose one of"),
        ({'encoder': 'sensor'}, 'does not tell hop, pad, rate and labels'),
        ({'dtype': 'float99'}, 'float99'),
        ({'bottleneck': 'pyramid'}, "bottleneck is 'pyramid'"),
    ],
)
def test_a_configuration_of_another_run_is_one_sentence(workdir, change, reason):
    file = workdir / 'config.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError) as error:
        Codec.from_workdir(workdir, 'vq')
    sentence(error, workdir, reason, 'restore')


def test_images_of_another_run_are_one_sentence(workdir):
    file = workdir / 'finished' / 'vq' / 'seed_0.json'
    kept = json.loads(file.read_text())
    for change in ({'mean': [1.0, 2.0]}, {'std': [0]}, {'std': [10**400]}, {'shape': [4, 4, 3]}):
        file.write_text(json.dumps(kept | {'images': kept['images'] | change}))
        with pytest.raises(ValueError) as error:
            Codec.from_workdir(workdir, 'vq')
        sentence(error, workdir, 'does not fit the run vq with seed 0')


@pytest.mark.parametrize(
    'content, reason',
    [
        ({}, 'it has no time'),
        ({'time': 3}, 'time is 3'),
        ({'time': 'now', 'tuning': [1]}, 'tuning is [1]'),
        ({'time': 'now', 'tuning': {'methods': {'vq': {'trials': 3}}}}, 'trials'),
    ],
)
def test_a_damaged_choice_of_settings_is_one_sentence(tmp_path, content, reason):
    file = tmp_path / search.OPENED
    file.write_text(json.dumps(content))
    with pytest.raises(RunError) as error:
        search._opened(tmp_path, None, {})
    sentence(error, file, reason, 'choose another --workdir')


def test_a_choice_of_settings_of_another_search_is_one_sentence(tmp_path):
    trial = {'settings': {}, 'accuracy': [0.5], 'nll': [1.0]}
    method = {'trials': [trial] * 2, 'chosen': [1, 1, 0], 'together': 1}
    tuning = {'trials': 2, 'seeds': 1, 'nested': True, 'space': {}, 'methods': {'vq': method}}
    (tmp_path / search.OPENED).write_text(json.dumps({'time': 'now', 'tuning': tuning}))
    three, two = (types.SimpleNamespace(seeds=n) for n in (3, 2))
    assert search._opened(tmp_path, three, {'vq': [None] * 2}).time == 'now'
    for given, trials in (
        (two, {'vq': [None] * 2}),
        (three, {'vq': [None]}),
        (three, {'fsq': [None] * 2}),
        (three, {}),
    ):
        with pytest.raises(RunError, match='it is of other methods, trials or seeds') as error:
            search._opened(tmp_path, given, trials)
        sentence(error, search.OPENED, 'choose another --workdir')


# Checkpoints.


def test_a_checkpoint_of_another_step_than_the_record_is_refused_with_both(workdir):
    folder = workdir / 'checkpoints' / 'vq' / 'seed_0'
    shutil.move(folder / str(STEP), folder / '4')  # a folder's name is not believed
    state = runfiles.read_checkpoint(folder)
    save(folder / '4', state | {'step': np.int32(4)})
    record = workdir / 'finished' / 'vq' / 'seed_0.json'
    parts = (folder / '4', 'of step 4', f'ended at step {STEP}', f'remove {record}')
    with pytest.raises(ValueError) as error:
        Codec.from_workdir(workdir, 'vq')
    sentence(error, *parts, 'the same train.py command')
    with pytest.raises(RunError, match='init_from') as error:
        pretrained.load(str(folder), 0, None)
    sentence(error, *parts)
    record.unlink()  # a run that goes on: what it has is what its user named
    assert runfiles.read_variables(folder).keys() == {'params', 'batch_stats', 'codebook_stats'}


def test_a_run_without_checkpoints_says_how_to_have_them(workdir):
    folder = workdir / 'checkpoints' / 'vq' / 'seed_0'
    shutil.rmtree(folder)
    with pytest.raises(ValueError) as error:
        Codec.from_workdir(workdir, 'vq')
    sentence(error, folder, 'has no checkpoint', 'checkpoint_every above 0')


def cut(folder):
    largest = max(folder.rglob('d/*'), key=lambda p: p.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-20])


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')  # its last threads
@pytest.mark.parametrize(
    'harm, reason',
    [
        (cut, 'cannot be read'),
        (lambda folder: shutil.rmtree(folder / 'state'), 'cannot be read'),
        (lambda folder: save(folder, {'weights': normal(3)}), 'holds no params of a model'),
        (lambda folder: save(folder, {'params': {'a': normal(3)}}), 'holds no step'),
    ],
    ids=['cut', 'gone', 'another', 'half'],
)
def test_a_damaged_or_foreign_checkpoint_is_one_sentence(workdir, harm, reason):
    folder = workdir / 'checkpoints' / 'vq' / 'seed_0' / str(STEP)
    harm(folder)
    with pytest.raises(ValueError) as error:
        Codec.from_workdir(workdir, 'vq')
    sentence(error, folder, reason, f'remove {workdir / "finished" / "vq" / "seed_0.json"}')


@pytest.mark.parametrize('content', ['', '{', '[]', '{}', '{"config": {"quantizers": 3}}'])
def test_a_damaged_configuration_beside_a_checkpoint_is_one_sentence(workdir, content):
    folder = workdir / 'checkpoints' / 'vq' / 'seed_0'
    assert pretrained.bottleneck_of(str(folder), 0) == 'grid'
    (folder / str(STEP) / 'extra' / 'metadata').write_text(content)
    with pytest.raises(RunError, match='init_from: checkpoint .* cannot be read') as error:
        pretrained.bottleneck_of(str(folder), 0)
    sentence(error, folder / str(STEP), 'train.py')


def test_the_running_average_is_read_where_there_is_one():
    raw = {'params': {'a': 1}, 'ema_params': {'a': 2}, 'stats': {'batch_stats': {'b': 3}}}
    assert runfiles.variables_of(raw) == {'params': {'a': 2}, 'batch_stats': {'b': 3}}
    assert runfiles.variables_of(raw | {'ema_params': ()})['params'] == {'a': 1}
    assert runfiles.variables_of({'params': {'a': 1}, 'step': 3}) == {'params': {'a': 1}}


# A run that was stopped, where none but a stop keeps checkpoints.


def test_a_run_that_was_stopped_and_resumed_leaves_the_model_it_ended_with(tmp_path, monkeypatch):
    given = small_config(
        quantizers={'fsq': {'name': 'fsq', 'levels': (3,) * 4}}, methods='fsq', seeds=1, features=4,
        width=4, checkpoint_every=0, steps_per_call=1, folds=0, writers='', eval_every=2,
    )  # fmt: skip
    real = display.Display.step

    def stop(self, at, num_steps):
        if at == 3:
            os.kill(os.getpid(), 15)
        real(self, at, num_steps)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(display.Display, 'step', stop)
        experiment.run(given, str(tmp_path))
    folder = runfiles.checkpoints_folder(tmp_path, 'fsq', 0)
    stopped = int(runfiles.read_checkpoint(folder)['step'])
    assert 3 <= stopped < 8

    results = experiment.run(given, str(tmp_path))
    assert int(runfiles.read_checkpoint(folder)['step']) == 8
    codec = Codec.from_workdir(tmp_path, 'fsq')
    accuracy = results['methods']['fsq']['seeds'][0]['accuracy']
    assert codec.info['test_accuracy'] == accuracy

    # What such a run left before: refused, and the remedy that is named is one.
    shutil.rmtree(folder / '8')
    with pytest.raises(ValueError) as error:
        Codec.from_workdir(tmp_path, 'fsq')
    record = runfiles.record_file(tmp_path, 'fsq', 0)
    sentence(error, f'of step {stopped}', 'ended at step 8', f'remove {record}')
    record.unlink()
    again = experiment.run(given, str(tmp_path))
    assert again['methods']['fsq']['seeds'][0]['accuracy'] == accuracy
    same = Codec.from_workdir(tmp_path, 'fsq')
    jax.tree.map(np.testing.assert_array_equal, same.encoder.variables, codec.encoder.variables)
