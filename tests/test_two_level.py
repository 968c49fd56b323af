"""Two levels of codes in one model: order, statistics, figures a level, and the study of them."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import SMALL, refuse, small_config

from vqjax import VQEMA, Levels, encoders, studies
from vqjax.codec import Codec
from vqjax.nn import COLLECTION
from vqjax.runfiles import quantizer_variables
from vqjax.studies.vqvae2 import study
from vqjax.trainer.config import settings
from vqjax.trainer.data import sets
from vqjax.trainer.errors import RunError
from vqjax.trainer.run import finished, tasks
from vqjax.trainer.step import two_level
from vqjax.trainer.step.network import Classifier

FSQ = {'name': 'projected', 'dim': 3, 'inner': {'name': 'fsq', 'levels': (4, 4, 4)}}


def config(**changes):
    return small_config(**{
        'study': 'vqvae2', 'bottleneck': 'two_level', 'width': 8, 'seeds': 1, 'eval_every': 2,
        'checkpoint_every': 2, 'reconstruction_weight': 1.0, 'record': True,
        'quantizers': {
            'two': SMALL,
            'mixed': {'top': SMALL | {'num_codes': 8}, 'bottom': FSQ},
            'one': SMALL | {'num_codes': 32},
        },
        'methods': 'all',
        'overrides': {
            'mixed': {
                'accumulate': 2, 'continuous_epochs': 1.0, 'classification_weight': 0.0,
                'guard': True,
            },
            'one': {'bottleneck': 'grid'},
        },
    } | changes)  # fmt: skip


@pytest.fixture(scope='module')
def done(tmp_path_factory):
    """(folder, results of the study) of two equal levels and of one."""
    workdir = tmp_path_factory.mktemp('two') / 'run'
    return workdir, studies.run(config(methods='two,one'), str(workdir))


@pytest.fixture(scope='module')
def unlike(tmp_path_factory):
    """Those of two levels of unlike quantizers."""
    workdir = tmp_path_factory.mktemp('mixed') / 'run'
    return workdir, studies.run(config(methods='mixed'), str(workdir))


every_run = pytest.mark.parametrize(
    'runs', ['done', pytest.param('unlike', marks=pytest.mark.slow)]
)
# Digits have a bottom grid of 2 x 2 and one top code.
BITS = {'two': 5 * 4, 'mixed': 3 + 4 * 6, 'one': 4 * 5}


@every_run
def test_bits_and_uses_are_those_of_each_level(request, runs):
    workdir, results = request.getfixturevalue(runs)
    for name, method in results['methods'].items():
        assert method['bits'] == BITS[name]
        if name == 'one':
            continue
        found = json.loads((workdir / 'finished' / name / 'seed_0.json').read_text())['result']
        top, bottom = found['perplexity_per_stage']
        assert 1 < top <= 16 and 1 < bottom <= 64
        assert found['tokens'] == 4 * 360
        spec = method['spec']
        assert spec['name'] == 'levels' and spec['sizes'] == [1, 4]


@every_run
def test_the_study_decodes_the_runs_as_they_ended_and_each_level_alone(request, runs):
    workdir, results = request.getfixturevalue(runs)
    for name, method in results['methods'].items():
        [seed] = method['seeds']
        if name == 'one':
            assert 'error_top' not in seed
            continue
        # One level tells less than both.
        for part in ('top', 'bottom'):
            assert seed[f'error_{part}'] > seed['reconstruction_error'], (name, part)
        # Decoded again, the test split has the error that the run measured.
        checked = settings.check(results['config'])
        dataset = sets.load('digits')
        checked = tasks.fit_quantizers(checked, dataset)
        task, variables = finished.trained(checked, name, 0, workdir, dataset)
        errors, _ = study.decode_apart(task, variables, dataset)
        assert errors['all'] == pytest.approx(seed['reconstruction_error'], rel=1e-5)
    text = (workdir / 'report.md').read_text()
    for name in results['methods']:
        rows = ('',) if name == 'one' else ('', ', top alone', ', bottom alone')
        assert all(f'\n| {name}{row} ' in text for row in rows), name
    assert (workdir / 'reconstructions.png').stat().st_size > 10_000


@functools.cache
def model(top=8):
    """A model of two levels, its variables, images, and the quantizer."""
    q = two_level.over((VQEMA(top, decay=0.5), VQEMA(16, decay=0.5)), 'conv', (8, 8, 1))
    classifier = Classifier(
        10, q, features=6, bottleneck='two_level', width=4, decoded_shape=(8, 8, 1),
        grids=encoders.two_level_grids('conv', (8, 8, 1)),
    )  # fmt: skip
    images = jax.random.normal(jax.random.key(0), (64, 8, 8, 1))
    init = jax.jit(functools.partial(classifier.init, train=True))
    return classifier, init(jax.random.key(1), images), images, q


def test_the_bottom_is_quantized_from_what_the_top_s_codes_say():
    classifier, variables, images, q = model()
    run = jax.jit(lambda v: classifier.apply(v, images, train=False))
    out = run(variables)
    params, state = quantizer_variables(variables)
    # Both levels are what the one quantizer makes of both.
    whole = q.quantize(params, state, out.z)
    assert (np.asarray(whole.codes) == np.asarray(out.quantized.codes)).all()
    assert (np.asarray(whole.z_q) == np.asarray(out.quantized.z_q)).all()
    np.testing.assert_allclose(out.quantized.loss, whole.loss, rtol=1e-6)
    # Other vectors for the same top: the top's z stays, the bottom's does not.
    top, bottom = state
    moved = variables | {
        COLLECTION: {'quantize': {'state': (top._replace(sums=top.sums + 1), bottom)}}
    }
    other = run(moved)
    assert (np.asarray(other.z[:, :, :1]) == np.asarray(out.z[:, :, :1])).all()
    assert (np.asarray(other.z[:, :, 1:]) != np.asarray(out.z[:, :, 1:])).any(axis=-1).all()


def test_a_training_step_moves_the_statistics_of_both_once():
    classifier, variables, images, q = model()
    mask = jnp.arange(64) % 3 > 0

    @jax.jit
    def step(variables):
        return classifier.apply(
            variables, images, train=True, mask=mask, mutable=[COLLECTION, 'batch_stats'],
            rngs={'quantizer': jax.random.key(2)},
        )  # fmt: skip

    out, moved = step(variables)
    params, state = quantizer_variables(variables)
    real = jnp.broadcast_to(mask[:, None, None], out.z.shape[:-1])
    plain = Levels(tuple(VQEMA(i.num_codes, decay=0.5, revival=None) for i in q.inner), q.sizes)
    expected = plain.update(params, state, out.z, out.quantized.codes, mask=real)
    found = moved[COLLECTION]['quantize']['state']
    for a, b, before in zip(found, expected, state, strict=True):
        np.testing.assert_allclose(a.counts.sum(), b.counts.sum(), rtol=1e-5)
        assert int(a.step) == int(before.step) + 1
    assert (np.asarray(out.quantized.codes)[~np.asarray(mask)] == -1).all()


def test_gradients_reach_the_top_through_its_codes_and_stop_where_frozen():
    classifier, variables, images, _ = model()

    def error(params, frozen):
        out = classifier.apply(variables | {'params': params}, images, train=False, frozen=frozen)
        return jnp.mean((out.decoded - images) ** 2)

    slope = jax.jit(jax.grad(error), static_argnums=1)
    free = slope(variables['params'], False)['encode']
    for part in ('trunk', 'deepen', 'lift', 'top_head', 'bottom_head'):
        assert all(np.asarray(x).any() for x in jax.tree.leaves(free[part])), part
    assert not any(
        np.asarray(x).any() for x in jax.tree.leaves(slope(variables['params'], True)['encode'])
    )


@pytest.mark.parametrize(
    'kind, shape, grids',
    [
        ('conv', (32, 32, 3), ((4, 4), (8, 8))),
        ('conv', (28, 28, 1), ((4, 4), (7, 7))),
        ('resnet9', (32, 24, 3), ((2, 2), (4, 3))),
        ('resnet18', (32, 24, 3), ((2, 2), (4, 3))),
    ],
)
def test_grids_are_those_of_the_encoder(kind, shape, grids):
    assert encoders.two_level_grids(kind, shape) == grids
    encoder = encoders.TwoLevelEncoder(kind, features=5, width=4)

    run = functools.partial(encoder.init_with_output, method=top_and_bottom)
    found, _ = jax.eval_shape(run, jax.random.key(0), jnp.zeros((2, *shape)))
    assert tuple(x.shape for x in found) == tuple((2, *grid, 5) for grid in grids)
    packed = two_level.pack([jnp.full((2, *grid, 5), i) for i, grid in enumerate(grids)])
    for i, part in enumerate(two_level.unpack(packed, grids)):
        assert part.shape == (2, *grids[i], 5) and (np.asarray(part) == i).all()


def top_and_bottom(encoder, images):
    x, top = encoder(images, train=True)
    return top, encoder.bottom(x, top, train=True)


def test_bad_specs_and_a_codec_of_two_levels_are_refused(done, tmp_path):
    with pytest.raises(ValueError, match='two has bottleneck two_level.*vector or grid'):
        Codec.from_workdir(done[0], 'two')
    wrong = {'top': SMALL, 'botom': SMALL}
    said = "give top and bottom, or one spec for both, got ['botom', 'top']"
    changes = {'bottleneck': 'two_level', 'quantizers': {'two': wrong}, 'methods': 'two'}
    refuse(said, tmp_path / 'a', **changes)
    with pytest.raises(RunError, match='reconstruction_weight above 0'):
        studies.run(config(overrides={'one': {'reconstruction_weight': 0.0}}), str(tmp_path / 'b'))
    with pytest.raises(RunError, match=r'overrides.one.checkpoint_every is 0, and study vqvae2'):
        studies.run(config(overrides={'one': {'checkpoint_every': 0}}), str(tmp_path / 'b'))
    assert not list(tmp_path.iterdir())
