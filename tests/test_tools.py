"""JAX's own tools beside what the contract asks of every quantizer: export, donation, restoring."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, serialization
from jax import export

import vqjax.nnx
from vqjax import FSQ, LFQ, VQ, VQEMA, Guarded, GumbelSoftmax, Product, Residual, codec, ops
from vqjax.testing.tools import compilations

KEY = jax.random.key(0)
Z = jax.random.normal(KEY, (64, 8))
(BATCH,) = export.symbolic_shape('batch')


@pytest.mark.parametrize(
    'q',
    [VQEMA(8, temperature=0.5), GumbelSoftmax(8), Residual(VQ(8), 2, dropout='sample')],
    ids=repr,
)
def test_a_program_of_any_batch_takes_a_key_and_a_mask(q):
    """[batch, 2, D], with as many vectors as make several tiles."""
    params, state = q.init(KEY, Z)

    def encode(params, state, z, key, mask):
        return q.quantize(params, state, z, key, mask).codes

    shapes = jax.ShapeDtypeStruct((BATCH, 2, 8), jnp.float32), KEY
    mask = jax.ShapeDtypeStruct((BATCH, 2), bool)
    program = export.export(jax.jit(encode))(params, state, *shapes, mask)
    for number in (1, 1500):
        z = jax.random.normal(KEY, (number, 2, 8))
        mask = jnp.arange(2 * number).reshape(number, 2) % 3 > 0
        codes = program.call(params, state, z, KEY, mask)
        np.testing.assert_array_equal(codes, encode(params, state, z, KEY, mask))


def test_a_trained_step_is_donated_from_the_first_on():
    q = Product(Guarded(VQ(8)), 2)
    params, state = q.init(KEY, Z)

    @jax.jit
    def step(params, state, z):
        out = q.quantize(params, state, z)
        return params, q.update(params, state, z, out.codes)

    step = jax.jit(step, donate_argnums=(0, 1))
    for _ in range(2):
        params, state = step(params, state, Z)
    assert np.isfinite(jax.tree.leaves(state)[0]).all()


def test_fit_takes_an_optimizer_that_keeps_the_parameters():
    def update(updates, kept, params=None):
        return jax.tree.map(lambda u, k, p: -0.01 * u + 0 * (k - p), updates, kept, params), kept

    holding = optax.GradientTransformation(lambda params: params, update)
    fitted = codec.fit(VQ(8), KEY, np.asarray(Z), steps=2, optimizer=holding, progress=False)
    assert np.isfinite(fitted.params).all()


def test_an_own_start_that_returns_the_batch_leaves_it_to_its_owner():
    def first_rows(key, z, k, mask=None, axis_name=None):
        return z, jnp.ones(k)

    params, state = VQ(64, init=first_rows).init(KEY, Z)
    jax.jit(lambda p, s: (p + 1, s), donate_argnums=(0, 1))(params, state)
    assert np.isfinite(Z).all()


class Model(nn.Module):
    """A dense layer and a quantizer."""

    @nn.compact
    def __call__(self, x, train):
        return vqjax.nn.Quantize(Residual(VQ(8), 2))(nn.Dense(8)(x), train)


def test_linen_takes_variables_restored_without_a_target():
    variables = Model().init(KEY, Z, train=False)
    plain = serialization.msgpack_restore(serialization.to_bytes(variables))
    out, moved = Model().apply(plain, Z, True, mutable=['codebook_stats'])
    expected, after = Model().apply(variables, Z, True, mutable=['codebook_stats'])
    np.testing.assert_array_equal(out.codes, expected.codes)
    assert jax.tree.structure(moved) == jax.tree.structure(after)


def test_nnx_takes_a_pure_dict():
    made = vqjax.nnx.Quantize(VQ(8), Z, rngs=nnx.Rngs(0))
    again = vqjax.nnx.Quantize(VQ(8), 8, rngs=nnx.Rngs(1))
    state = nnx.state(again)
    nnx.replace_by_pure_dict(state, nnx.to_pure_dict(nnx.state(made)))
    nnx.update(again, state)
    again.started = True
    expected = made(Z, use_running_average=True)
    np.testing.assert_array_equal(again(Z, use_running_average=True).codes, expected.codes)


def test_what_does_not_fit_is_named_whatever_its_containers():
    q = VQEMA(8)
    state = q.init(KEY, Z)[1]._asdict()
    with pytest.raises(ValueError, match=r'state.step is nothing where int32\[\] is needed'):
        vqjax.quantizers.restore(q, {}, {k: v for k, v in state.items() if k != 'step'})
    with pytest.raises(ValueError, match=r'state.more is float32\[\] where nothing is needed'):
        q.decode({}, state | {'more': jnp.zeros(())}, jnp.zeros(3, jnp.int32))


def bound(x):
    """A bound of one's own, inverted by halving."""
    return x / (1 + jnp.abs(x))


CALLS = {
    'soft_assignments': lambda: ops.soft_assignments(Z, Z[:8]),
    'code_balance': lambda: ops.code_balance(Z, Z[:8]),
    'sinkhorn': lambda: ops.Sinkhorn()(KEY, Z, Z[:8]),
    'sample_codes': lambda: ops.sample_codes(KEY, jnp.tile(Z, (32, 1)), Z[:8], 1.0),
    'nearest_candidates': lambda: ops.nearest_candidates(jnp.tile(Z, (32, 1)), Z[:8], 2),
    'soft_index': lambda: jax.grad(lambda z: ops.soft_index(z, Z[:8]).sum())(Z),
    'batch_rows': lambda: ops.batch_rows(KEY, Z, 8),
    'lfq': lambda: LFQ(8).quantize((), (), Z),
    'bound': lambda: FSQ((4,) * 8, bound=bound).quantize((), (), Z),
    'inverse_bound': lambda: ops.inverse_bound(bound, jnp.float32(0.5)),
    'residual start': lambda: Residual(VQEMA(8), 2).init(KEY, Z),
    'product start': lambda: Product(VQEMA(8), 2).init(KEY, Z),
}


@pytest.mark.parametrize('call', CALLS)
def test_outside_jit_nothing_is_compiled_twice(call):
    CALLS[call]()
    before = compilations()
    CALLS[call]()
    assert compilations() == before
