"""Quantizers as NNX modules: the Linen module's program, NNX's modes, and the start from data."""

import pathlib
import subprocess
import sys
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support import every_entry

import vqjax
from vqjax import FSQ, VQ, VQEMA, Guarded, Product, Projected, ops
from vqjax.nnx import CodebookStats, Quantize

EAGER = ops.Revival(below=0.9, every=1)
# Parameters, statistics and revival in one.
LEARNED = VQ(8, decay=0.8, revival=EAGER)
every_quantizer = pytest.mark.parametrize('q', every_entry())


def shape_for(q):
    return (4, *(q.grid or (24,)), 8)


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
    shape = shape_for(q)
    model = nnx.eval_shape(
        lambda: Quantize(q, jnp.zeros(shape), rngs=nnx.Rngs(params=0, quantizer=1))
    )
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    z, mask = jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape[:-1], bool)
    linen, own = (
        gradients_of(step, graphdef).lower(params, rest, z, mask).as_text()
        for step in (linen_step, nnx_step)
    )
    assert len(own) > 1000 and own == linen


@every_quantizer
def test_what_gradients_train_is_param_and_the_rest_statistics(q):
    z = jax.ShapeDtypeStruct(shape_for(q), jnp.float32)
    expected = jax.eval_shape(lambda z: q.init(jax.random.key(0), z), z)
    model = nnx.eval_shape(lambda z: Quantize(q, z, rngs=nnx.Rngs(0)), z)
    for kind, values in zip((nnx.Param, CodebookStats), expected, strict=True):
        found = jax.tree.leaves(nnx.state(model, kind))
        assert sorted(map(str, found)) == sorted(map(str, jax.tree.leaves(values)))
    # For a number of features the variables are the same, and waiting for data where it is needed.
    blank = nnx.eval_shape(lambda: Quantize(q, z.shape[-1], rngs=nnx.Rngs(0)))
    assert blank.started != q.starts_from_data
    blank.started = True
    assert nnx.split(blank)[0] == nnx.split(model)[0]
    chex.assert_trees_all_equal_shapes_and_dtypes(nnx.state(blank), nnx.state(model))


@pytest.mark.parametrize('q', [LEARNED, Projected(FSQ((5, 4), noise=1.0), 2)], ids=repr)
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


def test_train_and_eval_are_nnx_s():
    layer = made()
    model = nnx.Sequential(nnx.Linear(6, 4, rngs=nnx.Rngs(1)), layer)
    assert (layer.use_running_average, layer.deterministic) == (False, False)
    before = stats(layer)
    model.eval()
    assert (layer.use_running_average, layer.deterministic) == (True, True)
    model(batch(1, (64, 6)))
    assert not changed(layer, before)
    # What the call says comes first; a view leaves the module itself as it is.
    layer(batch(1), use_running_average=False)
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
    # Two modules made from one Rngs draw differently, and share no variable: trees may hold both.
    rngs = nnx.Rngs(0, quantizer=1)
    pair = [made(q, z, rngs=rngs), made(q, z, rngs=rngs)]
    a, b = nnx.jit(lambda pair, z: [model(z).codes for model in pair], graph=False)(pair, z)
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
        (lambda: made()(Z[:, :3]), r'z of 3 features: params is float32\[8, 4\] where'),
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
    subprocess.run(
        [sys.executable, '-c', code], check=True, cwd=pathlib.Path(__file__).parent.parent
    )
