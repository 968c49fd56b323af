"""The training step: what it moves, what it leaves, and that devices do not change it."""

import dataclasses
import functools
import pathlib
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import run_on

from vqjax import VQEMA
from vqjax.trainer import errors
from vqjax.trainer.run import runs
from vqjax.trainer.step import evaluation, network, starts, steps
from vqjax.trainer.step.optimizer import make_optimizer
from vqjax.trainer.step.parallel import Pmap
from vqjax.trainer.step.task import AXIS, Task

QUANTIZER = VQEMA(16, decay=0.9)
FORM = Pmap()


def make_task(quantizer=QUANTIZER, learning_rate=1e-2, **kwargs):
    model = network.Classifier(4, quantizer, features=8, axis_name=AXIS)
    return Task(model, make_optimizer(learning_rate, 100), **kwargs)


def make_batch(size=64, seed=0):
    """Four classes: which quarter of the image is bright."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 4, size).astype(np.int32)
    image = rng.normal(size=(size, 8, 8, 1)).astype(np.float32)
    for i, k in enumerate(label):
        image[i, 4 * (k // 2) :][:4, 4 * (k % 2) :][:, :4] += 2.0
    return {'image': image, 'label': label}


@functools.cache
def compiled(**kwargs):
    task = make_task(**kwargs)
    step = FORM.compile(functools.partial(steps.train_steps, task))
    return task, step, starts.init_state(task, 0, make_batch(256, seed=9)['image'])


def batches(start=0):
    while True:
        yield make_batch(seed=start)
        start += 1


def run(num_steps, source=None, steps_per_call=1, state=None, should_stop=bool, **kwargs):
    """(state, metrics of every step) of that many steps from the start or another state."""
    task, step, start = compiled(**kwargs)
    records = []
    state, stopped = runs.fit(
        step,
        FORM.place(start if state is None else state, task),
        batches() if source is None else source,
        num_steps,
        records.append,
        should_stop,
        steps_per_call,
    )
    assert stopped == (should_stop is not bool)
    return FORM.read(state), records


def test_two_steps_move_parameters_and_statistics_and_report_every_step():
    _, _, before = compiled()
    after, records = run(2)
    assert after.step == 2
    assert len(records) == 2
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), before.params, after.params)
    assert all(jax.tree.leaves(moved)), moved
    old, new = (s.stats['codebook_stats']['quantize']['state'] for s in (before, after))
    # Every step adds (1 - decay) of its 64 vectors to what is left of the rest.
    expected = 0.81 * old.counts.sum() + (0.09 + 0.1) * 64
    np.testing.assert_allclose(new.counts.sum(), expected, rtol=0.05)
    assert new.step == 2
    assert all(r['loss'] > 0 and r['corrupt'] == 0 for r in records)
    np.testing.assert_allclose(
        records[0]['loss'], records[0]['task_loss'] + records[0]['quantizer_loss'], rtol=1e-6
    )


def test_half_precision_computes_in_bfloat16_and_keeps_everything_in_float32():
    task = make_task()
    task = dataclasses.replace(task, model=task.model.clone(dtype=jnp.bfloat16))
    state = starts.state_shapes(task, (8, 8, 1), 64)
    step = jax.pmap(functools.partial(steps.train_step, task), axis_name=AXIS)
    batch = jax.tree.map(lambda x: x[None], make_batch() | {'stop': np.zeros(1, bool)})
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), state)
    trace = jax.make_jaxpr(step)(one, batch)
    assert 'bf16[' in str(trace)
    after = jax.eval_shape(step, one, batch)[0]
    assert jax.tree.map(lambda x: (x.shape[1:], x.dtype), after) == jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    )
    assert {x.dtype.name for x in jax.tree.leaves(after)} == {'float32', 'int32', 'uint32', 'bool'}


def test_forty_steps_learn_the_task():
    _, records = run(40)
    assert np.mean([r['accuracy'] for r in records[-5:]]) > 0.95
    assert np.mean([r['accuracy'] for r in records[:2]]) < 0.7


def test_micro_batches_update_the_codebook_once_with_the_whole_batch():
    """Updating at each of four would keep .9^4 of the old counts and add a quarter batch each."""
    _, _, before = compiled(accumulate=4)
    after, records = run(1, accumulate=4)
    old, new = (s.stats['codebook_stats']['quantize']['state'] for s in (before, after))
    assert new.step == 1
    np.testing.assert_allclose(new.counts.sum(), 0.9 * old.counts.sum() + 0.1 * 64, rtol=1e-5)
    np.testing.assert_allclose(
        records[0]['loss'], records[0]['task_loss'] + records[0]['quantizer_loss'], rtol=1e-6
    )
    assert 1.0 < records[0]['task_loss'] < 2.5  # about log 4, not four times that


def test_corrupt_images_are_counted_and_change_nothing_but_their_own_share():
    bad = make_batch()
    bad['image'][60:] = np.nan
    zeroed = make_batch()
    zeroed['image'][60:] = np.inf
    a, records = run(1, iter([bad]))
    b, _ = run(1, iter([zeroed]))
    assert records[0]['corrupt'] == 4
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(a))
    jax.tree.map(np.testing.assert_array_equal, a, b)
    counts = a.stats['codebook_stats']['quantize']['state'].counts
    old = compiled()[2].stats['codebook_stats']['quantize']['state'].counts
    np.testing.assert_allclose(counts.sum(), 0.9 * old.sum() + 0.1 * 60, rtol=1e-5)


def test_a_batch_of_corrupt_images_alone_leaves_codebook_and_averages_as_they_were():
    empty = make_batch()
    empty['image'][:] = np.nan
    after, records = run(1, iter([empty]))
    before = compiled()[2]
    assert records[0]['corrupt'] == 64
    jax.tree.map(
        np.testing.assert_array_equal, before.stats['batch_stats'], after.stats['batch_stats']
    )
    old, new = (s.stats['codebook_stats']['quantize']['state'] for s in (before, after))
    np.testing.assert_array_equal(old.sums, new.sums)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(after))


def test_a_step_that_is_not_finite_stops_the_run_and_keeps_the_state_before_it():
    huge = make_batch()
    huge['image'][:] = np.where(huge['image'] > 0, 3e38, -3e38)  # finite, but no longer inside
    healthy, _ = run(2)
    for size in (1, 3):  # alone, and as the last of a dispatch
        given = [make_batch(seed=0), make_batch(seed=1), huge, *(make_batch() for _ in 'abcdef')]
        with pytest.raises(errors.Diverged, match='step 3: the gradient turned NaN') as error:
            run(9, iter(given), size)
        state = FORM.read(error.value.state)
        assert not state.healthy
        found = state._replace(healthy=healthy.healthy)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), found, healthy)


def test_steps_of_one_dispatch_are_those_taken_one_by_one():
    """Seven steps, three a dispatch, broken off after four and gone on with."""
    expected, records = run(7)
    middle, found = run(4, steps_per_call=3)
    state, more = run(3, batches(4), steps_per_call=3, state=middle)
    assert len(found) == 4 and len(more) == 3
    for a, b in zip(records, found + more, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-6, atol=1e-6, err_msg=name)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_a_request_to_stop_ends_the_loop_after_the_dispatch_that_carried_it_and_one_more():
    asked = iter([False, True, True, True])
    state, records = run(30, steps_per_call=3, should_stop=lambda: next(asked))
    assert state.step == len(records) == 9
    # Heard as well where there is no other dispatch to stop before.
    state, records = run(3, steps_per_call=3, should_stop=lambda: True)
    assert state.step == len(records) == 3


def test_evaluation_does_not_depend_on_the_batch_size_and_changes_nothing():
    task, _, state = compiled()
    data = make_batch(70) | {'mask': np.ones(70, bool)}

    def padded(size):
        for i in range(0, 70, size):
            part = {k: v[i : i + size] for k, v in data.items()}
            yield {
                k: np.pad(v, [(0, size - len(v))] + [(0, 0)] * (v.ndim - 1))
                for k, v in part.items()
            }

    fn = FORM.compile(functools.partial(evaluation.eval_step, task))
    placed = FORM.place(state, task)
    (_, a), (after, b) = (evaluation.evaluate(fn, placed, padded(size)) for size in (40, 70))
    assert a.counts.sum() == b.counts.sum() == 70
    np.testing.assert_array_equal(a.counts, b.counts)
    np.testing.assert_array_equal(a.labels, data['label'])
    np.testing.assert_allclose(a.probs, b.probs, atol=1e-6)
    assert a.means == pytest.approx(b.means, rel=1e-5)
    jax.tree.map(np.testing.assert_array_equal, FORM.read(after), jax.device_get(state))


def test_schedule_decay_and_clipping():
    params = {'kernel': jnp.ones((2, 2)), 'bias': jnp.ones(2)}
    zero = jax.tree.map(jnp.zeros_like, params)
    optimizer = make_optimizer(1.0, 10, warmup_steps=2, weight_decay=0.5)
    state = optimizer.init(params)
    sizes = []
    for _ in range(11):
        updates, state = optimizer.update(zero, state, params)
        assert not updates['bias'].any()
        sizes.append(-float(updates['kernel'][0, 0]))
    # Without a gradient only the decay is left: .5 x the learning rate of each step.
    cosine = 0.5 * (1 + np.cos(np.pi * np.arange(9) / 8))
    np.testing.assert_allclose(sizes, 0.5 * np.array([0, 0.5, *cosine]), atol=1e-6)
    clipped = make_optimizer(1.0, 10, clip_norm=1.0)
    huge = jax.tree.map(lambda p: 1e6 * p, params)
    _, state = clipped.update(huge, clipped.init(params), params)
    mu = next(x for x in jax.tree.leaves(state) if x.shape == (2, 2))
    np.testing.assert_allclose(mu, 0.1 / np.sqrt(6), rtol=1e-5)


def test_averaged_parameters_follow_the_decay():
    _, _, before = compiled(ema_decay=0.75)
    after, _ = run(1, ema_decay=0.75)
    expected = jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, before.params, after.params)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7),
        after.ema_params,
        expected,
    )


def check_shard_map():
    """20 steps under shard_map, which tracks what is replicated, against those under pmap."""
    task, _, state = compiled()
    axes = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=axes)
    whole, split = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec(AXIS)
    step = jax.jit(
        jax.shard_map(
            functools.partial(steps.train_step, task),
            mesh=mesh,
            in_specs=(whole, split),
            out_specs=whole,
        )
    )
    for batch, _ in zip(batches(), range(20), strict=False):
        state, _ = step(state, batch | {'stop': np.zeros(jax.device_count(), bool)})
    expected, _ = run(20)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(a).max(initial=1.0))


def summary():
    """20 steps and an evaluation, as arrays."""
    state, records = run(20)
    task, _, _ = compiled()
    batch = make_batch(64, seed=99) | {'mask': np.arange(64) < 60}
    fn = FORM.compile(functools.partial(evaluation.eval_step, task))
    _, seen = evaluation.evaluate(fn, FORM.place(state, task), [batch])
    losses = [record['loss'] for record in records]
    means = list(seen.means.values())
    return [*jax.tree.leaves(state), losses, seen.probs, means], seen.counts


SCRIPT = """
import pickle, sys
sys.path.insert(0, sys.argv[1])
import jax, test_training as t
assert jax.device_count() == 8
with open(sys.argv[2], 'wb') as file:
    pickle.dump(jax.device_get(t.summary()), file)
if 'shard_map' in sys.argv:
    t.check_shard_map()
"""


@pytest.mark.parametrize('forms', [(), pytest.param(('shard_map',), marks=pytest.mark.slow)])
def test_eight_devices_train_as_one(tmp_path, forms):
    """20 steps, k-means start and revival included: state to 1e-5, codes equal."""
    file = tmp_path / 'eight'
    run_on(8, '-c', SCRIPT, str(pathlib.Path(__file__).parent), str(file), *forms)
    (eight, counts), (one, expected) = pickle.loads(file.read_bytes()), summary()
    np.testing.assert_array_equal(counts, expected)
    for a, b in zip(one, eight, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(a).max(initial=1.0))
