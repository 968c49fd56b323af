"""What a run minimises: the weights of its losses, and the rate at which it moves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import SMALL, small_config, trained_steps

from vqjax.codec import Codec, fit
from vqjax.results.records import read_counts
from vqjax.trainer import experiment
from vqjax.trainer.config import settings
from vqjax.trainer.data import sets
from vqjax.trainer.errors import RunError
from vqjax.trainer.run.runs import score
from vqjax.trainer.step import starts
from vqjax.trainer.step.optimizer import make_optimizer

PER_EPOCH, STEPS = 4, 8
WARM_UP = {
    'schedule': 'linear_schedule', 'init_value': 0.0, 'end_value': 2.0, 'transition_steps': 2,
}  # fmt: skip


def config(**changes):
    return small_config(**{
        'seeds': 1, 'width': 8, 'log_every': 1, 'eval_every': 2, 'checkpoint_every': 2,
        'quantizers': {
            'weightless': SMALL,
            'uncommitted': SMALL | {'commitment': 0.0},
            'warmed_up': SMALL,
            'tokenizer': SMALL,
            'scales': {'name': 'multi_scale', 'scales': (1, 2), 'phi': (0.5,), 'inner': SMALL},
        },
        'methods': 'all',
        'weight_decay': 0.0,
        'overrides': {
            'weightless': {'quantizer_weight': 0},
            'warmed_up': {'quantizer_weight': WARM_UP, 'reconstruction_weight': 0.5},
            'tokenizer': {
                'classification_weight': 0, 'reconstruction_weight': 3.0, 'bottleneck': 'grid',
                'standardize': False,
                'learning_rate': 1e-2, 'learning_rate_schedule': 'constant', 'warmup_epochs': 0,
            },
            'scales': {'bottleneck': 'grid', 'reconstruction_weight': 1.0},
        },
    } | changes)  # fmt: skip


def run(workdir, methods):
    """(folder, results, the state that each run started with)."""
    states, real = [], starts.init_state
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            starts, 'init_state', lambda *a: states.append(jax.device_get(real(*a))) or states[-1]
        )
        results = experiment.run(config(methods=methods), str(workdir))
    return workdir, results, dict(zip(results['methods'], states, strict=True))


@pytest.fixture(scope='module')
def done(tmp_path_factory):
    return run(tmp_path_factory.mktemp('done') / 'run', 'weightless,uncommitted,tokenizer')


@pytest.fixture(scope='module')
def others(tmp_path_factory):
    return run(tmp_path_factory.mktemp('others') / 'run', 'warmed_up,scales')


def test_a_weight_of_zero_is_the_run_without_the_loss_of_the_quantizer(done):
    weightless, without = (trained_steps(done[0], n) for n in ('weightless', 'uncommitted'))
    for step in range(1, STEPS + 1):
        assert weightless[step]['quantizer_loss'] > 0 == without[step]['quantizer_loss']
        for name in ('loss', 'task_loss', 'input_norm', 'code_norm'):
            assert weightless[step][name] == pytest.approx(without[step][name], rel=1e-6)


def test_a_schedule_is_by_the_epoch_and_its_fractions():
    given = settings.check(config(quantizer_weight=WARM_UP)).methods['uncommitted']
    assert given.quantizer_weight(1.25) == pytest.approx(1.25)


@pytest.mark.slow
def test_a_schedule_weighs_the_quantizer_at_every_step(others):
    for step, told in trained_steps(others[0], 'warmed_up').items():
        weight = 2.0 * (step - 1) / PER_EPOCH / 2
        expected = told['task_loss'] + 0.5 * told['reconstruction_loss']
        expected += weight * told['quantizer_loss']
        assert told['loss'] == pytest.approx(expected, rel=1e-5), step


def test_a_tokenizer_minimises_its_reconstruction_and_leaves_the_head_alone(done):
    workdir, results, starts = done
    steps = trained_steps(workdir, 'tokenizer')
    for told in steps.values():
        expected = 3.0 * told['reconstruction_loss'] + told['quantizer_loss']
        assert told['loss'] == pytest.approx(expected, rel=1e-5)
    errors = [steps[i]['reconstruction_loss'] for i in range(1, STEPS + 1)]
    assert errors[-1] < 0.9 * errors[0]
    measured = results['methods']['tokenizer']['seeds'][0]
    assert measured['reconstruction_error'] < errors[0]
    assert measured['tokens'] == 4 * 360  # a grid of 2 x 2 an image
    import orbax.checkpoint as ocp

    folder = workdir / 'checkpoints' / 'tokenizer' / 'seed_0' / str(STEPS) / 'state'
    with ocp.StandardCheckpointer() as checkpointer:
        params = checkpointer.restore(folder)['params']
    before = starts['tokenizer'].params
    for name in ('hidden', 'logits'):
        jax.tree.map(np.testing.assert_array_equal, before[name], params[name])
    kernel = before['decoder']['Conv_0']['kernel']
    assert not np.array_equal(kernel, params['decoder']['Conv_0']['kernel'])


def test_the_codec_of_a_tokenizer_gives_the_codes_it_counted(done):
    """Its model has no batch statistics at all."""
    images = Codec.from_workdir(done[0], 'tokenizer')
    codes = images.encode(sets.load('digits').splits['test'].read(np.arange(360))[0])
    assert codes.shape == (360, 2, 2)
    counted = read_counts(done[1]['methods']['tokenizer']['seeds'][0])
    np.testing.assert_array_equal(np.bincount(codes.ravel(), minlength=16), counted)


@pytest.mark.slow
def test_a_quantizer_of_grids_trains_and_its_codec_takes_images(others, tmp_path):
    method = others[1]['methods']['scales']
    [measured] = method['seeds']
    # One codebook, counted over all scales; the bits are those of a grid, which is an image.
    counts = read_counts(measured)
    assert counts.shape == (16,) and counts.sum() == 5 * 360
    assert method['bits'] == 5 * 4 and measured['tokens'] == 5 * 360
    codec = Codec.from_workdir(others[0], 'scales')
    images = sets.load('digits').splits['test'].read(np.arange(360))[0]
    codes = codec.encode(images)
    assert codes.shape == (360, 5)
    np.testing.assert_array_equal(np.bincount(codes.ravel(), minlength=16), counts)
    assert codec.decode(codes[:7]).shape == (7, 2, 2, codec.dim)
    assert codec.pack(codes[:7]).nbytes == -(-7 * 20 // 8)
    codec.save(tmp_path / 'codec')
    assert (Codec.load(tmp_path / 'codec').encode(images[:7]) == codes[:7]).all()
    z = codec.encoder(images[:7])
    z[3, 0, 1, 2] = np.nan
    assert codec.error(z) < codec.error(np.where(np.isfinite(z), z, 9.0))
    with pytest.raises(ValueError, match=r'features on a grid \(2, 2\).*\(3, 16\)'):
        Codec(codec.quantizer, codec.params, codec.state).encode(z[0, 0, :1].repeat(3, 0))
    with pytest.raises(ValueError, match='fit takes vectors'):
        fit(codec.quantizer, jax.random.key(0), z)


def test_the_best_tokenizer_is_the_one_of_least_error(done):
    """A score of accuracy would be that of a head that never learns."""

    methods = settings.check(config()).methods
    record = {'accuracy': 0.1, 'reconstruction_error': 0.3}
    assert score(methods['tokenizer'], record) == -0.3
    assert score(methods['weightless'], record) == 0.1


@pytest.mark.parametrize(
    'changes, text',
    [
        ({'quantizer_weight': -0.5}, 'quantizer_weight is -0.5: give at least 0'),
        ({'quantizer_weight': 'half'}, "quantizer_weight is 'half'"),
        ({'quantizer_weight': {}}, 'quantizer_weight: schedule must be the name of an optax'),
        (
            {'quantizer_weight': {'schedule': 'linear'}},
            "quantizer_weight: schedule must be the name of an optax schedule, got 'linear'",
        ),
        (
            {'quantizer_weight': {'schedule': 'linear_schedule', 'to': 1}},
            "quantizer_weight: schedule 'linear_schedule' does not take {'to': 1}",
        ),
        (
            {'classification_weight': 0, 'reconstruction_weight': 0},
            'classification_weight and reconstruction_weight are both 0',
        ),
        ({'reconstruction_weight': -1}, 'reconstruction_weight is -1: give at least 0'),
        ({'continuous_epochs': 2.5}, 'continuous_epochs is 2.5, longer than the run of 2 epochs'),
        ({'frozen_epochs': -2}, 'frozen_epochs is -2: give at least -1'),
        ({'learning_rate_schedule': 'linear'}, 'choose one of cosine, constant'),
    ],
)
def test_a_wrong_value_is_refused_by_name_in_the_config_and_in_an_override(changes, text):
    with pytest.raises(RunError) as error:
        settings.check(small_config(**changes))
    assert text in str(error.value) and '\n' not in str(error.value)
    with pytest.raises(RunError) as error:
        settings.check(small_config(overrides={'vq_ema': changes}))
    assert str(error.value).startswith('overrides.vq_ema') and text in str(error.value)


@pytest.mark.parametrize('warmup_steps', [0, 3])
def test_a_constant_rate_is_the_same_at_every_step_after_the_warm_up(warmup_steps):
    optimizer = make_optimizer(
        0.5, 10, warmup_steps=warmup_steps, weight_decay=1.0, schedule='constant'
    )
    params = {'kernel': jnp.ones((2, 2))}
    state = optimizer.init(params)
    rates = []
    for _ in range(12):
        # Without a gradient the decay is all that moves, by the rate.
        updates, state = optimizer.update({'kernel': jnp.zeros((2, 2))}, state, params)
        rates.append(-float(updates['kernel'][0, 0]))
    expected = [0.5 * i / warmup_steps for i in range(warmup_steps)]
    np.testing.assert_allclose(rates, expected + [0.5] * (12 - warmup_steps), rtol=1e-6)


def test_a_frozen_encoder_moves_by_nothing_until_its_steps_are_over():
    params = {'encode': {'w': jnp.ones((2, 2))}, 'hidden': {'w': jnp.ones((2, 2))}}
    gradient = jax.tree.map(jnp.ones_like, params)
    for frozen, moving in ((3, [False] * 3 + [True] * 3), (-1, [False] * 6), (0, [True] * 6)):
        optimizer = make_optimizer(
            0.1, 6, weight_decay=0.1, schedule='constant', frozen_steps=frozen
        )
        state = optimizer.init(params)
        for moves in moving:
            updates, state = optimizer.update(gradient, state, params)
            assert updates['encode']['w'].any() == moves and updates['hidden']['w'].all()


def test_the_quantizer_s_parameters_move_at_their_own_rate():
    params = {'quantize': {'w': jnp.ones((2, 2))}, 'hidden': {'w': jnp.ones((2, 2))}}
    optimizer = make_optimizer(0.1, 6, schedule='constant', quantizer_rate=10.0)
    gradient = jax.tree.map(jnp.ones_like, params)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    np.testing.assert_allclose(updates['quantize']['w'], 10 * updates['hidden']['w'], rtol=1e-6)
