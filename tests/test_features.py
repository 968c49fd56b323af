"""Runs whose encoder never moves read its features in place of images, and end as they would."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import SMALL, small_config

from vqjax import runfiles
from vqjax.trainer import experiment
from vqjax.trainer.config import settings
from vqjax.trainer.data import batches, records, sets
from vqjax.trainer.run import encoded as features
from vqjax.trainer.run import pretrained, runs, tasks
from vqjax.trainer.step import evaluation, starts, steps

PER_EPOCH = 4


def config(**changes):
    return small_config(**{
        'seeds': 1, 'width': 8, 'epochs': 2, 'eval_every': 1, 'checkpoint_every': 1,
        'quantizers': {'none': None, 'frozen': SMALL},
    } | changes)  # fmt: skip


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """Checkpoints of a trained encoder."""
    workdir = tmp_path_factory.mktemp('source') / 'run'
    experiment.run(config(methods='none'), str(workdir))
    return workdir / 'checkpoints' / 'none' / 'seed_0'


def second(source, **changes):
    start = {'methods': 'frozen', 'init_from': str(source), 'frozen_epochs': -1}
    return config(**start | changes)


@contextlib.contextmanager
def calls_of_the_encoder():
    """How often programs with an encoder in them were traced, for training and evaluation."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((steps, 'train_step'), (evaluation, 'eval_step')):
            real = getattr(module, name)

            def traced(task, *args, real=real, name=name):
                found.append((name, task.model.encoded))
                return real(task, *args)

            patch.setattr(module, name, traced)
        yield found


@pytest.mark.slow
@pytest.mark.parametrize('bottleneck', ['vector', 'grid'])
def test_features_give_the_figures_that_images_give(source, tmp_path, bottleneck):
    changed = second(source, bottleneck=bottleneck)
    with calls_of_the_encoder() as traced:
        read = experiment.run(changed, str(tmp_path / 'features'))
    assert {encoded for _, encoded in traced} == {True}
    with pytest.MonkeyPatch.context() as patch, calls_of_the_encoder() as traced:
        patch.setattr(features, 'may_stand_in', lambda own, dataset: False)
        anew = experiment.run(changed, str(tmp_path / 'images'))
    assert {encoded for _, encoded in traced} == {False}
    a, b = (found['methods']['frozen']['seeds'][0] for found in (read, anew))
    for name in ('nll', 'quantization_error', 'perplexity', 'accuracy'):
        np.testing.assert_allclose(a[name], b[name], rtol=2e-3, err_msg=name)
    assert read['methods']['frozen']['bits'] == anew['methods']['frozen']['bits']
    assert read['methods']['frozen']['params'] == anew['methods']['frozen']['params']


@pytest.mark.slow
def test_a_run_on_features_that_was_stopped_ends_with_the_same_figures(source, tmp_path):
    whole = experiment.run(second(source), str(tmp_path / 'whole'))
    folder = str(tmp_path / 'parts')
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        real = runs.Run._validate

        def interrupt(run):
            if run.step == 2 * PER_EPOCH:
                raise KeyboardInterrupt
            real(run)

        patch.setattr(runs.Run, '_validate', interrupt)
        experiment.run(second(source), folder)
    parts = experiment.run(second(source), folder)
    a, b = (found['methods']['frozen']['seeds'][0] for found in (whole, parts))
    assert {k: v for k, v in a.items() if k != 'seconds'} == {
        k: v for k, v in b.items() if k != 'seconds'
    }


def test_the_test_split_is_encoded_when_it_is_opened(source):
    checked = settings.check(second(source))
    dataset = sets.load('digits')
    read = []

    class Watched(records.InMemory):
        def read(self, indices):
            read.append(len(indices))
            return super().read(indices)

    test = dataset.splits['test']
    watched = dataclasses.replace(test, records=Watched(test.records.images, test.records.labels))
    dataset = dataclasses.replace(dataset, splits=dict(dataset.splits) | {'test': watched})
    task = tasks.make_task(checked, 'frozen', dataset)
    state = starts.init_state(task, 0, batches.init_batch(dataset, 64, 0)['image'])

    def stand_in(state):
        return features.stand_in(dataset, task, features.encoder_of(task, state))

    encoded = stand_in(state)
    assert stand_in(state) is encoded
    next(batches.train_batches(encoded, 32, 0))
    assert not read and encoded.info.num_examples == dataset.info.num_examples
    batch = next(iter(batches.eval_batches(encoded, 'test', 32)))
    assert read
    images = next(iter(batches.eval_batches(dataset, 'test', 32)))
    z = task.model.clone(axis_name=None).apply(
        {'params': state.params, **state.stats}, images['image'], method='represent'
    )
    np.testing.assert_allclose(batch['image'], z, atol=1e-5)
    np.testing.assert_array_equal(batch['label'], images['label'])
    # Another encoder, other features.
    other = starts.init_state(task, 1, batches.init_batch(dataset, 64, 0)['image'])
    assert stand_in(other) is not encoded


@pytest.mark.parametrize(
    'changes, expected',
    [
        ({}, True),
        ({'frozen_epochs': 1}, False),
        ({'reconstruction_weight': 1.0}, False),
        ({'augment': True}, False),
        ({'bottleneck': 'two_level'}, False),
        ({'features': 2**20}, False),
    ],
)
def test_only_an_encoder_that_sees_every_image_alike_for_good_is_read_once(changes, expected):
    given = config(**{'methods': 'frozen', 'frozen_epochs': -1} | changes)
    own = settings.check(given).methods['frozen']
    assert features.may_stand_in(own, sets.load('digits')) == expected


def test_a_grid_from_an_encoder_of_vectors_is_standardised_anew(source):
    """Places vary more than their mean over an image; what the head reads stays what it was."""
    dataset = sets.load('digits')
    images = batches.init_batch(dataset, 512, 0)['image']
    found = {}
    for bottleneck in ('vector', 'grid'):
        own = settings.check(second(source, bottleneck=bottleneck, methods='none'))
        task = tasks.make_task(own, 'none', dataset)
        loaded = pretrained.load(str(source), 0, starts.state_shapes(task, (8, 8, 1), 64))
        assert pretrained.bottleneck_of(str(source), 0) == 'vector'
        if bottleneck != 'vector':
            loaded = starts.restandardize(task, loaded, images)
        state = starts.init_state(task, 0, images, loaded)
        variables = {'params': state.params, **state.stats}
        model = task.model.clone(axis_name=None)
        z = model.apply(variables, images, method='represent')
        output = model.apply(variables, images, train=False)
        moments = state.stats['batch_stats'][runfiles.ENCODER]['standardize']
        found[bottleneck] = np.asarray(z), moments, output
    z, moments, _ = found['grid']
    np.testing.assert_allclose(z.mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(z.std((0, 1, 2)), 1, atol=1e-3)
    vector, own, _ = found['vector']
    raw = z * np.sqrt(moments['variance'] + 1e-5) + moments['mean']
    pooled = (raw.mean((1, 2)) - own['mean']) / np.sqrt(own['variance'] + 1e-5)
    np.testing.assert_allclose(pooled, vector[:, 0, 0], atol=1e-3)
    assert jax.tree.all(jax.tree.map(lambda x: bool(jnp.isfinite(x).all()), moments))
