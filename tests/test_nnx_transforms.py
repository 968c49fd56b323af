"""What NNX's transformations make of a quantizer: jit, grad, vmap, replicas, checkpoints."""

import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from support import run_on

from vqjax import VQ, VQEMA, Residual, ops
from vqjax.nnx import Quantize

HERE = pathlib.Path(__file__).parent
EAGER = ops.Revival(below=0.9, every=1)
# Parameters, statistics and revival in one.
LEARNED = VQ(8, decay=0.8, revival=EAGER)


def batch(seed, shape=(64, 4)):
    return jax.random.normal(jax.random.key(seed), shape)


def made(q=LEARNED, z=None, **kwargs):
    return Quantize(q, batch(0) if z is None else z, **{'rngs': nnx.Rngs(0), **kwargs})


def assert_equal(a, b):
    chex.assert_trees_all_equal_structs(a, b)
    chex.assert_trees_all_equal(a, b)


@pytest.mark.parametrize('kwargs', [{}, {'graph': False}, {'graph_updates': False}], ids=str)
def test_jit_updates_statistics_in_place_and_traces_once(kwargs):
    model = made()
    counts, (params, state) = model.stats.counts, model.read()
    traces = []

    def step(model, z):
        traces.append(0)
        return model(z).codes

    step = nnx.jit(step, **kwargs)
    for seed in range(3):
        codes = step(model, batch(seed))
        state = LEARNED.update(params, state, batch(seed), codes)
    assert len(traces) == 1
    assert model.stats.counts is counts
    chex.assert_trees_all_close(model.read()[1], state, rtol=1e-6)
    assert int(model.stats.step[...]) == 3


def test_split_and_merge_under_plain_jit():
    model = made()
    graphdef, state = nnx.split(model)

    @jax.jit
    def step(state, z):
        model = nnx.merge(graphdef, state)
        return model(z), nnx.state(model)

    out, state = step(state, batch(1))
    assert_equal(out, nnx.jit(lambda model, z: model(z))(model, batch(1)))
    assert_equal(nnx.merge(graphdef, state).read(), model.read())


def test_gradients_and_optimizers_take_parameters_and_leave_statistics():
    model = made()
    optimizer = nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, z):
        grads = nnx.grad(lambda model: model(z).loss)(model)
        optimizer.update(model, grads)
        return grads

    params, state = model.read()
    assert jax.tree.map(jnp.shape, jax.tree.leaves(step(model, optimizer, batch(1)))) == [(8, 4)]
    assert not np.array_equal(params, model.read()[0])
    # Statistics: the quantizer's own update, from before the optimizer's step.
    codes = LEARNED.quantize(params, state, batch(1)).codes
    chex.assert_trees_all_close(
        model.read()[1], LEARNED.update(params, state, batch(1), codes), rtol=1e-6
    )


def test_vmap_over_modules_is_each_module():
    q, z = VQEMA(8, init='normal', revival=EAGER), batch(0, (3, 64, 4))
    keys = jax.random.split(jax.random.key(0), 3)
    models = nnx.vmap(lambda key, z: made(q, z, rngs=nnx.Rngs(key)))(keys, z)
    codes = nnx.vmap(lambda model, z: model(z).codes)(models, z)
    alone = made(q, z[1], rngs=nnx.Rngs(keys[1]))
    np.testing.assert_array_equal(np.asarray(codes[1]), np.asarray(alone(z[1]).codes))
    chex.assert_trees_all_close(
        jax.tree.map(lambda x: x[1], models.read()[1]), alone.read()[1], rtol=1e-5
    )


def test_replicas_under_vmap_are_one_with_the_whole_batch():
    q = VQEMA(8, decay=0.8, revival=EAGER)
    z, mask = jnp.round(4 * batch(1)), jnp.arange(64) < 40  # the last replica has padding only
    one, several = made(q), made(q, axis_name='i')
    codes = one(z, mask).codes
    replicas = nnx.vmap(
        lambda model, z, mask: model(z, mask).codes, in_axes=(None, 0, 0), axis_name='i'
    )
    found = replicas(several, z.reshape(4, 16, 4), mask.reshape(4, 16))
    np.testing.assert_array_equal(np.asarray(found).reshape(-1), np.asarray(codes))
    chex.assert_trees_all_close(several.read()[1], one.read()[1], rtol=1e-5, atol=1e-5)


def test_four_devices_agree_with_one():
    """nnx.pmap, nnx.shard_map and nnx.jit over sharded rows, in a process of their own."""
    assert 'agree: ' in run_on(4, str(HERE / 'four_devices_nnx.py'))


def test_a_checkpoint_of_the_state_goes_on_to_the_bit(tmp_path):
    def build(x):
        rngs = nnx.Rngs(0, quantizer=1)
        encode = nnx.Linear(x.shape[-1], 4, rngs=rngs)
        quantize = Quantize(Residual(LEARNED, 2), encode(x), rngs=rngs)
        return nnx.Sequential(encode, quantize)

    x = batch(0, (64, 6))
    model = build(x)
    step = nnx.jit(lambda model, x: model(x))
    step(model, x)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / 'state', nnx.state(model))
    # Shapes alone build what is restored: no data, no k-means.
    graphdef, like = nnx.split(nnx.eval_shape(build, jax.ShapeDtypeStruct(x.shape, x.dtype)))
    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore(tmp_path / 'state', like)
    again = nnx.merge(graphdef, state)
    assert_equal(nnx.state(again), nnx.state(model))
    assert_equal(step(again, x), step(model, x))
    assert_equal(nnx.state(again), nnx.state(model))
