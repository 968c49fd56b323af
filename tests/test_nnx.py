"""Quantizers as NNX modules: the Linen module's numbers, and what NNX's users expect of a layer."""

import os
import pathlib
import subprocess
import sys
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from support import table

import vqjax
from vqjax import FSQ, VQ, VQEMA, Guarded, Product, Projected, Residual, ops
from vqjax.nnx import CodebookStats, Quantize

HERE = pathlib.Path(__file__).parent
TABLE = table()
SHAPE = (4, 24, 8)
EAGER = ops.Revival(below=0.9, every=1)
# Parameters, statistics and revival in one.
LEARNED = VQ(8, decay=0.8, revival=EAGER)
every_quantizer = pytest.mark.parametrize(
    'q', [pytest.param(q, id=name) for name, q in TABLE.items()]
)


def batch(seed, shape=(64, 4)):
    return jax.random.normal(jax.random.key(seed), shape)


def made(q=LEARNED, z=None, **kwargs):
    return Quantize(q, batch(0) if z is None else z, **{'rngs': nnx.Rngs(0), **kwargs})


def stats(model):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(model.read()[1])]


def changed(model, before):
    return any((a != b).any() for a, b in zip(before, stats(model), strict=True))


def assert_equal(a, b):
    chex.assert_trees_all_equal_structs(a, b)
    chex.assert_trees_all_equal(a, b)


def score(out):
    return jnp.sum(jnp.sin(out.z_q.astype(jnp.float32))) + out.loss


class Keyed(vqjax.nn.Quantize):
    """The Linen module with given keys instead of ones made from its path."""

    keys: Any = None

    def has_rng(self, name):
        return name in self.keys

    def make_rng(self, name):
        return self.keys[name]


def linen_step(model, z, mask):
    """A training step of the Linen module with what the NNX module holds: out, new state."""
    params, state = model.read()
    variables = {'params': {'quantizer': params}}
    if jax.tree.leaves(state):
        variables['codebook_stats'] = {'state': state}
    linen = Keyed(model.quantizer, keys={'quantizer': model.rngs()})
    out, updates = linen.apply(variables, z, True, mask, mutable=['codebook_stats'])
    return out, updates['codebook_stats']['state'] if jax.tree.leaves(state) else state


def nnx_step(model, z, mask):
    out = model(z, mask)
    return out, model.read()[1]


def gradients_of(step, graphdef):
    def program(params, rest, z, mask):
        def loss(params, z):
            out, state = step(nnx.merge(graphdef, params, rest, copy=True), z, mask)
            return score(out), (out, state)

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, z)

    return jax.jit(program)


@every_quantizer
def test_a_training_step_is_the_linen_module_s_program(q):
    """Outputs, new state and gradients lower to the same text: equal numbers, to the bit."""
    model = nnx.eval_shape(
        lambda: Quantize(q, jnp.zeros(SHAPE), rngs=nnx.Rngs(params=0, quantizer=1))
    )
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    z, mask = jax.ShapeDtypeStruct(SHAPE, jnp.float32), jax.ShapeDtypeStruct(SHAPE[:-1], bool)
    linen, own = (
        gradients_of(step, graphdef).lower(params, rest, z, mask).as_text()
        for step in (linen_step, nnx_step)
    )
    assert len(own) > 1000 and own == linen


@every_quantizer
def test_what_gradients_train_is_param_and_the_rest_statistics(q):
    z = jax.ShapeDtypeStruct(SHAPE, jnp.float32)
    expected = jax.eval_shape(lambda z: q.init(jax.random.key(0), z), z)
    model = nnx.eval_shape(lambda z: Quantize(q, z, rngs=nnx.Rngs(0)), z)
    for kind, values in zip((nnx.Param, CodebookStats), expected, strict=True):
        found = jax.tree.leaves(nnx.state(model, kind))
        assert sorted(map(str, found)) == sorted(map(str, jax.tree.leaves(values)))
    # For a number of features the variables are the same, and waiting for data where it is needed.
    blank = nnx.eval_shape(lambda: Quantize(q, SHAPE[-1], rngs=nnx.Rngs(0)))
    assert blank.started != q.starts_from_data
    blank.started = True
    assert nnx.split(blank)[0] == nnx.split(model)[0]
    chex.assert_trees_all_equal_shapes_and_dtypes(nnx.state(blank), nnx.state(model))


@pytest.mark.parametrize(
    'q',
    [
        LEARNED,
        VQEMA(8, temperature=0.5, revival=EAGER),
        Residual(VQEMA(8, init='normal', revival=EAGER), 2, dropout='sample'),
        Projected(FSQ((5, 4), noise=1.0), 2),
    ],
    ids=repr,
)
def test_start_and_step_give_the_linen_module_s_numbers(q):
    z0, z, mask = batch(0), batch(1), jnp.arange(64) < 50
    streams = nnx.Rngs(params=3, quantizer=4)
    model = made(q, z0, rngs=nnx.Rngs(params=3, quantizer=4))
    start = Keyed(q, keys={'params': streams.params()}).init(jax.random.key(0), z0, True)
    assert_equal(
        model.read(),
        (
            start.get('params', {}).get('quantizer', ()),
            start.get('codebook_stats', {}).get('state', ()),
        ),
    )
    expected = jax.jit(lambda state: linen_step(nnx.merge(graphdef, state, copy=True), z, mask))
    graphdef, state = nnx.split(model)
    out, after = expected(state)
    assert_equal(nnx.jit(lambda model, z: model(z, mask))(model, z), out)
    assert_equal(model.read()[1], after)
    evaluated = q.quantize(*model.read(), z)
    model.eval()
    assert_equal(model(z), evaluated)
    assert_equal(model.decode(evaluated.codes), q.decode(*model.read(), evaluated.codes))


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

    before, (params, state) = stats(model), model.read()
    assert jax.tree.map(jnp.shape, jax.tree.leaves(step(model, optimizer, batch(1)))) == [(8, 4)]
    assert changed(model, before)
    assert not np.array_equal(params, model.read()[0])
    # The statistics are the quantizer's update from before the optimizer's step, no more.
    codes = LEARNED.quantize(params, state, batch(1)).codes
    chex.assert_trees_all_close(
        model.read()[1], LEARNED.update(params, state, batch(1), codes), rtol=1e-6
    )


def test_vmap_over_modules_is_each_module():
    z = batch(0, (3, 64, 4))
    keys = jax.random.split(jax.random.key(0), 3)
    models = nnx.vmap(lambda key, z: made(VQEMA(8), z, rngs=nnx.Rngs(key)))(keys, z)
    codes = nnx.vmap(lambda model, z: model(z).codes)(models, z)
    alone = made(VQEMA(8), z[1], rngs=nnx.Rngs(keys[1]))
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
    """nnx.pmap and nnx.shard_map, in a process of their own."""
    flags = os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=4'
    flags += ' --xla_backend_optimization_level=0'  # compiling is most of the time
    run = subprocess.run(
        [sys.executable, str(HERE / 'four_devices_nnx.py')],
        env={**os.environ, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'},
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert 'agree: ' in run.stdout


class Model(nnx.Module):
    """A quantizer between two layers, as a user would write it."""

    def __init__(self, x, rngs):
        self.encode = nnx.Linear(x.shape[-1], 4, rngs=rngs)
        self.quantize = Quantize(Residual(LEARNED, 2), self.encode(x), rngs=rngs)
        self.decode = nnx.Linear(4, x.shape[-1], rngs=rngs)

    def __call__(self, x):
        out = self.quantize(self.encode(x))
        return self.decode(out.z_q), out


def test_a_checkpoint_of_the_state_goes_on_to_the_bit(tmp_path):
    def build(x):
        return Model(x, nnx.Rngs(0, quantizer=1))

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


def test_train_and_eval_are_nnx_s():
    model = Model(batch(0, (64, 6)), nnx.Rngs(0))
    layer = model.quantize
    assert (layer.use_running_average, layer.deterministic) == (False, False)
    before = stats(layer)
    model.eval()
    assert (layer.use_running_average, layer.deterministic) == (True, True)
    model(batch(1, (64, 6)))
    assert not changed(layer, before)
    # What the call says comes first; a view leaves the module itself as it is.
    assert layer(batch(1), use_running_average=False).codes.shape == (64, 2)
    assert changed(layer, before)
    model.train()
    assert (layer.use_running_average, layer.deterministic) == (False, False)
    before = stats(layer)
    nnx.view(model, use_running_average=True, deterministic=True)(batch(1, (64, 6)))
    assert not changed(layer, before)
    assert (layer.use_running_average, layer.deterministic) == (False, False)


def test_the_stream_quantizer_is_used_only_where_given_by_name():
    q, z = FSQ((5,) * 4, noise=3.0), batch(0)

    def codes(rngs, **kwargs):
        model = made(q, z, rngs=rngs)
        return np.asarray(model(z, **kwargs).codes), np.asarray(model(z, **kwargs).codes)

    plain = np.asarray(q.quantize((), (), z).codes)
    for same in (*codes(nnx.Rngs(0)), *codes(nnx.Rngs(0, quantizer=1), deterministic=True)):
        np.testing.assert_array_equal(same, plain)
    first, second = codes(nnx.Rngs(0, quantizer=1))
    other, _ = codes(nnx.Rngs(0, quantizer=2))
    assert (first != plain).any() and (first != second).any() and (first != other).any()
    # Two modules made from one Rngs draw differently.
    rngs = nnx.Rngs(0, quantizer=1)
    a, b = (made(q, z, rngs=rngs)(z).codes for _ in range(2))
    assert (np.asarray(a) != np.asarray(b)).any()


def test_without_data_a_codebook_waits_for_its_start():
    model = made(z=4)
    for refused in (lambda: model(batch(0)), lambda: model.decode(jnp.zeros(3, jnp.int32))):
        with pytest.raises(ValueError, match=r'started is False: VQ\(.*start\(key, z\)'):
            refused()
    model.start(jax.random.key(5), batch(0))
    assert_equal(model.read(), LEARNED.init(jax.random.key(5), batch(0)))
    counts = model.stats.counts
    model(batch(1))
    # Again, from the features as they are now: the same variables, so an optimizer keeps them.
    model.start(jax.random.key(6), batch(1))
    assert_equal(model.read(), LEARNED.init(jax.random.key(6), batch(1)))
    assert model.stats.counts is counts


@pytest.mark.parametrize(
    'q',
    [
        VQEMA(8, init='normal'),
        Guarded(VQEMA(8, init='normal'), least=4.0),
        Product(VQ(8, init='unit_sphere'), 2),
        Projected(FSQ((5, 4)), 2),
    ],
    ids=repr,
)
def test_what_needs_no_data_starts_without(q):
    assert_equal(made(q, 4).read(), made(q, batch(0)).read())


Z = np.asarray(batch(0))


@pytest.mark.parametrize(
    ('refused', 'message'),
    [
        (lambda: made(VQEMA), 'quantizer must be a quantizer of vqjax.quantizers, got <class'),
        (lambda: made(rngs=None), "rngs must be an nnx.Rngs with a stream 'params'.*got None"),
        (lambda: made(rngs=nnx.Rngs(quantizer=0)), "rngs must be .* with a stream 'params'"),
        (lambda: made(z=(64, 4)), r'z must be a batch .* features D, got \(64, 4\)'),
        (lambda: made(z=0), 'z must be a batch .* features D, got 0'),
        (lambda: made(z=jax.ShapeDtypeStruct((64, 4), jnp.float32)), 'features D, got ShapeDtype'),
        (lambda: made(z=jnp.ones((16, 4))), 'all 16 vectors of the init batch z are identical'),
        (lambda: made(Product(VQEMA(8), 3), 4), 'num_groups=3 must divide the features of z'),
        (lambda: made().start(jax.random.key(0), Z[:, :3]), r'z of shape \(64, 3\) does not fit'),
        (lambda: made()(Z[:, :3]), r'must agree in D .* got \(64, 3\) and \(8, 4\)'),
        (lambda: made(deterministic=None)(Z), 'deterministic is None .* give True or False'),
    ],
)
def test_mistakes_are_named(refused, message):
    with pytest.raises(ValueError, match=message):
        refused()


def test_flax_s_nnx_is_imported_only_with_the_module():
    code = (
        'import sys, vqjax; assert "flax.nnx" not in sys.modules;'
        'vqjax.nnx.Quantize; assert "flax.nnx" in sys.modules'
    )
    subprocess.run([sys.executable, '-c', code], check=True, cwd=HERE.parent)
