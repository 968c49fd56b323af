"""Stages of a run: continuous then quantized, a frozen encoder, an encoder of another run."""

import contextlib
import dataclasses
import json
import types

import jax
import numpy as np
import pytest
from support import SMALL, lines, refuse, small_config, trained_steps

from vqjax.codec import runs
from vqjax.trainer import experiment
from vqjax.trainer.config import settings
from vqjax.trainer.data import batches, sets
from vqjax.trainer.files import display
from vqjax.trainer.run import pretrained, tasks
from vqjax.trainer.step import starts

VQ = {'name': 'vq', 'num_codes': 16}
PER_EPOCH, STEPS = 4, 8
SWITCH = 6  # of two_stages, between its two checkpoints


def config(**changes):
    """Each method is one stage; the reference is `none`."""
    two_stages = {'continuous_epochs': SWITCH / PER_EPOCH, 'record': True}
    return small_config(**{
        'seeds': 1, 'width': 8, 'log_every': 1, 'eval_every': 2,
        'quantizers': {
            'none': None, 'two_stages': VQ, 'after': SMALL, 'thawed': None, 'frozen': SMALL,
        },
        'methods': 'all',
        'overrides': {
            'two_stages': two_stages,
            'after': {'continuous_epochs': 2},
            'thawed': {'frozen_epochs': 1},
            'frozen': {'frozen_epochs': -1, 'init_batch_size': 512},
        },
    } | changes)  # fmt: skip


@pytest.fixture(scope='module')
def first_states():
    """The state that each run started with, in the order of the runs."""
    found, real = [], starts.init_state
    with pytest.MonkeyPatch.context() as patch:

        def keep(*args):
            found.append(jax.device_get(real(*args)))
            return found[-1]

        patch.setattr(starts, 'init_state', keep)
        yield found


@pytest.fixture(scope='module')
def done(tmp_path_factory, first_states):
    """(folder, results) of the reference and of two stages."""
    workdir = tmp_path_factory.mktemp('done') / 'run'
    return workdir, experiment.run(config(methods='none,two_stages'), str(workdir))


@pytest.fixture(scope='module')
def others(tmp_path_factory, first_states):
    """(folder, results, start of each) of the other methods."""
    workdir, names = tmp_path_factory.mktemp('others') / 'run', ('after', 'thawed', 'frozen')
    results = experiment.run(config(methods=','.join(names)), str(workdir))
    return workdir, results, dict(zip(names, first_states[-3:], strict=True))


def saved(workdir, method, step=STEPS):
    """(parameters, other collections) in a checkpoint."""
    import orbax.checkpoint as ocp

    path = workdir / 'checkpoints' / method / 'seed_0' / str(step) / 'state'
    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore(path)
    return state['params'], state['stats']


def same(a, b):
    a, b = jax.tree.leaves(a), jax.tree.leaves(b)
    assert len(a) == len(b) > 0
    return [bool(np.array_equal(x, y)) for x, y in zip(a, b, strict=True)]


def inertia(z, codes):
    return float(np.mean(np.min(np.sum((z[:, None] - codes) ** 2, -1), -1)))


# Continuous, then quantized.


@pytest.mark.parametrize(
    'runs, method, switch',
    [
        ('done', 'two_stages', SWITCH),
        pytest.param('others', 'after', STEPS, marks=pytest.mark.slow),
    ],
)
def test_the_continuous_stage_is_the_run_without_a_quantizer_step_by_step(
    done, request, runs, method, switch
):
    folder = request.getfixturevalue(runs)[0]
    none, staged = trained_steps(done[0], 'none'), trained_steps(folder, method)
    assert none.keys() == staged.keys() == set(range(1, STEPS + 1))
    for step in range(1, STEPS + 1):
        if step <= switch:
            assert staged[step]['quantizer_loss'] == 0 and 'revived' not in staged[step]
            for name in ('loss', 'task_loss', 'input_norm', 'gradient_norm', 'accuracy'):
                assert staged[step][name] == pytest.approx(none[step][name], rel=1e-5), (step, name)
            assert staged[step]['code_norm'] == staged[step]['input_norm']
        else:
            assert staged[step]['quantizer_loss'] > 0
            assert staged[step]['task_loss'] != pytest.approx(none[step]['task_loss'], rel=1e-5)
    log = lines(folder / 'metrics.jsonl')
    events = [r['step'] for r in log if r['method'] == method and r.get('event') == 'quantize']
    assert events == [switch]


@pytest.mark.slow
def test_codes_fitted_after_training_are_kmeans_of_the_features_of_then(done, others):
    from sklearn.cluster import KMeans

    workdir, results, _ = others
    encoder, quantizer, params, state, _ = runs.read_run(workdir, 'after', 0)
    # The encoder is that of the run without a quantizer.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        saved(workdir, 'after')[0]['encode'],
        saved(done[0], 'none')[0]['encode'],
    )
    batch = batches.init_batch(sets.load('digits'), config()['init_batch_size'], 0)
    z = encoder(batch['image']).reshape(-1, 16)
    codebook = np.asarray(quantizer.read_codebook(params, state))
    best = KMeans(16, n_init=4, random_state=0).fit(z)
    assert inertia(z, codebook) < 1.15 * best.inertia_ / len(z)
    nearest = np.argmin(np.sum((z[:, None] - codebook) ** 2, -1), -1)
    means = np.stack([z[nearest == k].mean(0) for k in range(16)])
    # Lloyd's fixed point, but for its last iteration and the smoothing of the counts.
    assert np.mean((means - codebook) ** 2) < 0.05 * np.mean((z - z.mean(0)) ** 2)
    assert results['methods']['after']['seeds'][0]['perplexity'] > 8


def test_a_codebook_of_parameters_starts_at_the_switch_with_a_fresh_optimizer():
    given = config()
    given['overrides']['two_stages']['ema_decay'] = 0.5
    given = settings.check(given)
    task = tasks.make_task(given, 'two_stages', sets.load('digits'))
    task = dataclasses.replace(task, continuous=True)
    task = dataclasses.replace(task, model=task.model.clone(axis_name=None))
    x = batches.init_batch(sets.load('digits'), 256, 0)['image']
    state = starts.init_state(task, 0, x)
    moved = state._replace(
        step=np.int32(SWITCH),
        opt_state=jax.tree.map(lambda a: a + 1, state.opt_state),
        params=jax.tree.map(lambda a: 1.01 * a, state.params),
    )
    new = starts.start_quantizer(task, moved, x)
    for name in ('encode', 'hidden', 'logits'):
        assert all(same(new.params[name], moved.params[name]))
    codes = np.asarray(new.params['quantize']['quantizer'])
    assert not np.array_equal(codes, moved.params['quantize']['quantizer'])
    # Features of the averaged parameters, which the continuous stage is measured by.
    z = task.model.apply({'params': moved.ema_params, **moved.stats}, x, method='represent')
    z = np.asarray(z).reshape(-1, 16)
    assert inertia(z, codes) < 0.6 * np.mean(np.sum((z - z.mean(0)) ** 2, -1))
    assert all(same(new.ema_params['quantize'], new.params['quantize']))
    assert all(same(new.ema_params['encode'], moved.ema_params['encode']))
    fresh, kept = (
        {jax.tree_util.keystr(path): leaf for path, leaf in found}
        for found in map(
            lambda s: jax.tree_util.tree_flatten_with_path(s)[0], (new.opt_state, moved.opt_state)
        )
    )
    assert any('quantize' in path for path in fresh)
    for path, leaf in fresh.items():
        assert np.array_equal(leaf, 0 * leaf if 'quantize' in path else kept[path]), path
    with pytest.raises(ValueError, match='identical'):
        starts.start_quantizer(task, moved, 0 * x)


class Killed(BaseException):
    """As kill -9: nothing of the run's own is told."""


@contextlib.contextmanager
def killed_after(monkeypatch, step):
    real = display.Display.step

    def stop(self, at, num_steps):
        if at == step:
            raise Killed
        real(self, at, num_steps)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(display.Display, 'step', stop)
        yield


def alone(workdir):
    """What results.json says of two_stages, and all it saved at its end."""
    seeds = json.loads((workdir / 'results.json').read_text())['methods']['two_stages']['seeds']
    told = {k: v for k, v in seeds[0].items() if k != 'seconds'}
    return told, [jax.tree.leaves(part) for part in saved(workdir, 'two_stages')]


def test_a_run_resumed_across_the_switch_gives_the_same_figures_and_records(
    done, tmp_path, monkeypatch
):
    """Killed after the switch; its last checkpoint is from before."""
    given = config(methods='two_stages')
    with killed_after(monkeypatch, SWITCH + 1):
        experiment.run(given, str(tmp_path))
    record = tmp_path / 'records' / 'two_stages' / 'seed_0.jsonl'
    assert len(lines(record)) == SWITCH + 1  # later than the checkpoint
    with record.open('a') as file:
        file.write('{"step": 8, "lo')
    experiment.run(given, str(tmp_path))
    whole = done[0] / 'records' / 'two_stages' / 'seed_0.jsonl'
    assert record.read_text() == whole.read_text()
    (told, found), (expected_told, expected) = alone(tmp_path), alone(done[0])
    assert told == expected_told
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.slow
def test_steps_a_dispatch_change_no_step(done, tmp_path):
    assert config()['steps_per_call'] > 1
    experiment.run(config(methods='two_stages', steps_per_call=1), str(tmp_path))
    one, many = (trained_steps(folder, 'two_stages') for folder in (tmp_path, done[0]))
    assert one.keys() == many.keys() == set(range(1, STEPS + 1))
    for step in one:
        for name, value in one[step].items():
            if isinstance(value, float):
                assert many[step][name] == pytest.approx(value, rel=1e-6, abs=1e-6), (step, name)
    for a, b in zip(*map(jax.tree.leaves, (alone(tmp_path)[1], alone(done[0])[1])), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


# What a step tells.


def test_a_record_has_every_step_and_says_what_the_log_says(done):
    workdir, _ = done
    record = lines(workdir / 'records' / 'two_stages' / 'seed_0.jsonl')
    assert [r['step'] for r in record] == list(range(1, STEPS + 1))
    logged = trained_steps(workdir, 'two_stages')
    for told in record:
        told['accuracy'] = told.pop('train_accuracy')
        labels = {k: logged[told['step']][k] for k in ('method', 'seed', 'split')}
        assert labels | told == logged[told['step']]
    quantized = {'codebook_norm', 'max_code_norm', 'batch_perplexity', 'batch_tokens', 'reverted'}
    assert quantized <= record[-1].keys() and not quantized & record[0].keys()
    assert record[-1]['batch_tokens'] == 256


def test_nothing_is_recorded_where_it_is_not_asked_for(done):
    assert [p.name for p in (done[0] / 'records').iterdir()] == ['two_stages']


# Frozen.


@pytest.mark.slow
def test_a_frozen_encoder_stands_still_for_its_epochs_and_moves_afterwards(others):
    start = others[2]['thawed'].params
    middle, end = (saved(others[0], 'thawed', step)[0] for step in (PER_EPOCH, STEPS))
    assert all(same(start['encode'], middle['encode']))
    assert not any(same(start['hidden'], middle['hidden']))
    assert not any(same(middle['encode'], end['encode']))


@pytest.mark.slow
def test_an_encoder_frozen_for_good_keeps_its_statistics_too_and_the_rest_learns(others):
    start, (params, stats) = others[2]['frozen'], saved(others[0], 'frozen')
    assert all(same(start.params['encode'], params['encode']))
    assert all(same(start.stats['batch_stats']['encode'], stats['batch_stats']['encode']))
    assert not any(same(start.params['hidden'], params['hidden']))
    assert not all(same(start.stats['codebook_stats'], stats['codebook_stats']))
    assert not any(same(start.stats['batch_stats']['normalize'], stats['batch_stats']['normalize']))


# From another run.


def test_a_run_starts_from_the_encoder_and_head_of_another(done, first_states, tmp_path):
    source = str(done[0] / 'checkpoints' / 'none' / 'seed_{seed}')
    changes = {'methods': 'frozen', 'log_every': 4, 'epochs': 1}
    overrides = {'frozen': {'frozen_epochs': -1, 'init_from': source}}
    results = experiment.run(config(**changes, overrides=overrides), str(tmp_path))
    start, params = first_states[-1], saved(tmp_path, 'frozen', PER_EPOCH)[0]
    there, there_stats = saved(done[0], 'none')
    for name in ('encode', 'hidden', 'logits'):
        assert all(same(start.params[name], there[name])), name
    for name in ('encode', 'normalize'):
        assert all(same(start.stats['batch_stats'][name], there_stats['batch_stats'][name])), name
    assert all(same(params['encode'], there['encode']))
    assert results['methods']['frozen']['seeds'][0]['perplexity'] > 5
    # A codebook of the features as they are, not as a fresh encoder would have them.
    encoder, quantizer, *_ = runs.read_run(tmp_path, 'frozen', 0)
    z = encoder(batches.init_batch(sets.load('digits'), 1024, 0)['image']).reshape(-1, 16)
    held = types.SimpleNamespace(**start.stats['codebook_stats']['quantize']['state']._asdict())
    codes = np.asarray(quantizer.read_codebook((), held))
    assert inertia(z, codes) < 0.6 * np.mean(np.sum((z - z.mean(0)) ** 2, -1))


def test_a_head_for_other_classes_stays_fresh(done):
    task = tasks.make_task(settings.check(config()), 'none', sets.load('digits'))
    folder = str(done[0] / 'checkpoints' / 'none' / 'seed_{seed}')
    for classes, parts in ((7, {'encode'}), (10, {'encode', 'normalize', 'hidden', 'logits'})):
        other = dataclasses.replace(task, model=task.model.clone(num_classes=classes))
        found = pretrained.load(folder, 0, starts.state_shapes(other, (8, 8, 1), 64))
        assert set(found['params']) | set(found['batch_stats']) == parts


def test_what_a_run_cannot_start_from_is_one_line_and_leaves_nothing_behind(done, tmp_path):
    empty = tmp_path / 'empty'
    empty.mkdir()
    source = str(done[0] / 'checkpoints' / 'none' / 'seed_0')
    small = {'methods': 'none', 'seeds': 1, 'width': 8}
    for changes, text in (
        ({'init_from': str(tmp_path / 'gone')}, f'init_from: there is no folder {tmp_path}/gone'),
        ({'init_from': str(empty)}, 'has no checkpoint'),
        (
            {'init_from': source, 'features': 12},
            'encode/Dense_0/kernel is (32, 16) there and (32, 12) here',
        ),
        ({'init_from': source, 'standardize': False}, 'encode/Dense_0/bias is missing there'),
    ):
        refuse(text, tmp_path / 'run', **small | changes)
        assert not (tmp_path / 'run').exists()
