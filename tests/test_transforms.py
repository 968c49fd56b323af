"""Quantizers inside JAX's transformations and Flax's modules, on one device and on eight."""

import pathlib
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export, lax
from support import SHIPPED, run_on

import vqjax
from vqjax import (
    FSQ,
    VQ,
    VQEMA,
    LatentQuantization,
    MultiScale,
    Product,
    Projected,
    QINCo,
    Residual,
    ops,
)

HERE = pathlib.Path(__file__).parent
QUICK = [VQEMA(8), VQ(8), FSQ((3,) * 8), Residual(VQEMA(8), 3)]
OTHERS = [
    LatentQuantization((5,) * 8),
    QINCo(4, 3, hidden=8),
    Product(VQEMA(8), 2),
    MultiScale(VQEMA(8), (1, 2, 4), phi=(0.5,)),
    Projected(FSQ((3, 4)), 2),
    Residual((VQ(4), FSQ((3,) * 8))),
]
QUANTIZERS = QUICK + [pytest.param(q, marks=pytest.mark.slow) for q in OTHERS]


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize('q', QUANTIZERS, ids=repr)
def test_encode_and_decode_export_and_run(q):
    """jax.export: serialise, load, run; the batch size is left symbolic."""
    z = normal(0, 16, *q.grid, 8)
    params, state = q.init(jax.random.key(0), z)
    batch = export.symbolic_shape('batch, 8')
    encode = export.export(jax.jit(lambda z: q.quantize(params, state, z).codes))(
        jax.ShapeDtypeStruct(batch if isinstance(q, FSQ) else z.shape, jnp.float32)
    )
    codes = export.deserialize(encode.serialize()).call(z)
    expected = q.quantize(params, state, z)
    np.testing.assert_array_equal(np.asarray(codes), np.asarray(expected.codes))
    decode = export.export(jax.jit(lambda c: q.decode(params, state, c)))(
        jax.ShapeDtypeStruct(codes.shape, jnp.int32)
    )
    vectors = export.deserialize(decode.serialize()).call(codes)
    np.testing.assert_array_equal(np.asarray(vectors), np.asarray(expected.z_q))


def test_scan_and_remat_equal_a_loop():
    q = Residual(VQEMA(8), 2)
    z = normal(0, 5, 32, 8)
    params, state = q.init(jax.random.key(0), z[0])

    @jax.checkpoint
    def step(state, z):
        out = q.quantize(params, state, z)
        return q.update(params, state, z, out.codes), out.loss

    scanned, losses = jax.jit(lambda s: lax.scan(step, s, z))(state)
    looped = state
    for i in range(5):
        looped, loss = jax.jit(step)(looped, z[i])
        np.testing.assert_allclose(loss, losses[i], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(scanned), jax.tree.leaves(looped), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_vmap_over_models_is_each_model():
    q = VQEMA(8)
    z = normal(0, 3, 32, 4)
    keys = jax.random.split(jax.random.key(0), 3)
    _, states = jax.vmap(q.init)(keys, z)
    outs = jax.vmap(lambda s, z: q.quantize((), s, z))(states, z)
    for i in range(3):
        alone = q.quantize((), jax.tree.map(lambda x, i=i: x[i], states), z[i])
        np.testing.assert_array_equal(np.asarray(outs.codes[i]), np.asarray(alone.codes))


class Model(nn.Module):
    """A quantizer between two layers, as a user would write it."""

    quantizer: vqjax.Quantizer

    @nn.compact
    def __call__(self, x, train, mask=None):
        z = nn.Dense(8)(x)
        out = vqjax.nn.Quantize(self.quantizer)(z, train=train, mask=mask)
        return nn.Dense(3)(out.z_q), out


@pytest.mark.parametrize('q', QUANTIZERS, ids=repr)
def test_linen_keeps_statistics_in_their_collection(q):
    x = normal(0, 64, *q.grid, 5)
    model = Model(q)
    variables = model.init(jax.random.key(0), x, train=True)
    has_state = bool(jax.tree.leaves(variables.get('codebook_stats', {})))
    params, state = q.init(jax.random.key(1), normal(1, 64, *q.grid, 8))
    assert has_state == bool(jax.tree.leaves(state))
    inside = [name for name in variables['params'] if name.startswith('Quantize')]
    assert bool(inside) == bool(jax.tree.leaves(params))
    # Evaluation changes nothing and needs nothing mutable.
    (_, out), same = model.apply(variables, x, train=False, mutable=['codebook_stats'])
    for a, b in zip(
        jax.tree.leaves(same.get('codebook_stats', {})),
        jax.tree.leaves(variables.get('codebook_stats', {})),
        strict=True,
    ):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    (_, trained), updates = model.apply(variables, x, train=True, mutable=['codebook_stats'])
    np.testing.assert_array_equal(np.asarray(trained.codes), np.asarray(out.codes))
    if has_state:
        before = jax.tree.leaves(variables['codebook_stats'])
        after = jax.tree.leaves(updates['codebook_stats'])
        assert any(
            (np.asarray(a) != np.asarray(b)).any() for a, b in zip(before, after, strict=True)
        )


def test_linen_uses_the_stream_quantizer_only_where_given():
    model = Model(FSQ((5,) * 8, noise=3.0))
    x = normal(0, 64, 5)
    variables = model.init(jax.random.key(0), x, train=True)
    codes = [
        np.asarray(model.apply(variables, x, train=True, rngs=rngs)[1].codes)
        for rngs in ({}, {}, {'quantizer': jax.random.key(1)}, {'quantizer': jax.random.key(2)})
    ]
    assert (codes[0] == codes[1]).all()
    assert (codes[0] != codes[2]).any() and (codes[2] != codes[3]).any()


def test_linen_refuses_an_init_batch_that_starts_no_codebook():
    with pytest.raises(ValueError, match='identical'):
        Model(VQEMA(8)).init(jax.random.key(0), jnp.ones((16, 5)), train=True)


def test_nnx_through_its_bridge():
    """The Linen module inside flax.nnx: statistics become a variable that training updates."""
    z = normal(0, 64, 4)
    module = nnx.bridge.ToNNX(vqjax.nn.Quantize(VQEMA(8)), rngs=nnx.Rngs(0))
    module.lazy_init(z, train=True)

    def counts():
        state = nnx.to_pure_dict(nnx.state(module))['state']
        return np.asarray(jax.tree.leaves(state)[0])

    before = counts()
    out = module(2 * z, train=True, mutable=['codebook_stats'])
    assert out.z_q.shape == z.shape
    assert (counts() != before).any()


def lowered_step(stages):
    """A training step of an RVQ of that many stages, lowered."""
    q = Residual(VQEMA(1024), stages)
    z = normal(0, 2048, 16)
    one = jax.tree.map(
        lambda x: jnp.stack([x] * stages),
        VQEMA(1024, init=ops.normal).init(jax.random.key(0), z)[1],
    )

    def step(state, z):
        loss, grad = jax.value_and_grad(lambda z: q.quantize((), state, z).loss)(z)
        codes = q.quantize((), state, z).codes
        return q.update((), state, z, codes, jax.random.key(0)), loss, grad

    return jax.jit(step, compiler_options=SHIPPED).lower(one, z)


def test_the_program_does_not_grow_with_the_stages():
    one, eight = (lowered_step(stages).as_text().count('\n') for stages in (1, 8))
    assert eight < 1.1 * one, (one, eight)


@pytest.mark.slow
def test_compile_time_does_not_grow_with_the_stages(compiled_anew):
    """RVQ of 8 stages compiles in at most twice the time of one, and never again."""

    def seconds(stages):
        lowered = lowered_step(stages)
        start = time.process_time()
        lowered.compile()
        return time.process_time() - start

    seconds(1)  # what is compiled once for all
    # The best of two interleaved: other work on the machine only adds.
    short, long = (
        min(times) for times in zip(*[(seconds(1), seconds(8)) for _ in range(2)], strict=True)
    )
    assert long < 2 * short, (short, long)


@pytest.mark.parametrize('number', ['3', pytest.param('20', marks=pytest.mark.slow)])
def test_eight_devices_agree_with_one(number):
    """pmap and shard_map over 8 CPU devices, in a process of their own."""
    found = run_on(8, str(HERE / 'eight_devices.py'), number)
    assert f'agree: {number} quantizers' in found
