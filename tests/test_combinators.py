"""Residual, Product and Projected: numbers and properties from their papers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import golden_case

from vqjax import FSQ, LFQ, VQ, VQEMA, Product, Projected, Residual, make, ops
from vqjax.quantizers import VQState


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def test_residual_gradient_is_one_not_the_number_of_stages():
    """ACCEPTANCE 3."""
    q = Residual(VQEMA(8), 8)
    z = normal(0, 1, 2048, 16)
    params, state = q.init(jax.random.key(0), z)
    grad = jax.grad(lambda z: jnp.sum(q.quantize(params, state, z).z_q))(z)
    assert (np.asarray(grad) == 1.0).all()


def test_residual_error_falls_with_every_stage():
    z = normal(0, 2000, 8)
    errors = []
    for stages in (1, 2, 4, 8):
        q = Residual(VQEMA(16), stages)
        params, state = q.init(jax.random.key(0), z)
        errors.append(float(jnp.mean((q.quantize(params, state, z).z_q - z) ** 2)))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.2 * errors[0]


@pytest.mark.parametrize('inner', [FSQ((5,) * 4), FSQ((8, 4, 3, 5), symmetric=True), LFQ(4)])
def test_residual_of_a_fixed_grid_refines_it(inner):
    """Each stage's grid is a power of two finer: inside the grid's range the error vanishes."""
    z = 0.5 * jnp.tanh(normal(0, 500, 4))
    errors = [
        float(jnp.max(jnp.abs(Residual(inner, s).quantize((), (), z).z_q - z))) for s in (1, 4, 8)
    ]
    assert errors[1] < 0.25 * errors[0] and errors[2] < 0.1 * errors[1]


def test_shared_residual_decays_once_a_step():
    q = Residual(VQEMA(4, decay=0.8, revival=None), 8, shared=True)
    z = normal(0, 32, 3)
    params, state = q.init(jax.random.key(0), z)
    after = q.update(params, state, z, q.quantize(params, state, z).codes)
    expected = 0.8 * float(state.counts.sum()) + 0.2 * 8 * 32
    assert float(after.counts.sum()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('kind', ['sample', 'batch'])
def test_residual_dropout_keeps_a_uniform_number_of_stages(kind):
    """n ~ U{1..S}, drawn for each example or once; without a key every stage is used."""
    q = Residual(VQEMA(8), 4, dropout=kind)
    z = normal(0, 400, 2, 3)
    params, state = q.init(jax.random.key(0), z)
    run = jax.jit(lambda key: q.quantize(params, state, z, key).codes)
    depths = []
    for seed in range(40):
        used = np.asarray(run(jax.random.key(seed))) >= 0
        # The first n stages, the same for both vectors of an example.
        assert (used == np.sort(used, axis=-1)[..., ::-1]).all() and (
            used[:, 0] == used[:, 1]
        ).all()
        depths.append(used[:, 0].sum(axis=-1))
    depths = np.stack(depths)
    if kind == 'batch':
        assert (depths == depths[:, :1]).all()
        depths = depths[:, 0]
    assert set(np.unique(depths)) == {1, 2, 3, 4}
    assert np.mean(depths) == pytest.approx(2.5, abs=0.6 if kind == 'batch' else 0.05)
    assert (q.quantize(params, state, z).codes >= 0).all()


@pytest.mark.parametrize('scale', [None, 0.5])
def test_beam_search_is_judged_by_the_final_residual(scale):
    """Wider beams never do worse here, and the widest finds the best of all K^S sums."""
    z = normal(0, 300, 4)
    greedy = Residual(VQEMA(6), 3, scale=scale)
    params, state = greedy.init(jax.random.key(0), z)
    errors = []
    for beam in (1, 2, 6, 36):
        out = dataclasses.replace(greedy, beam=beam).quantize(params, state, z)
        errors.append(float(jnp.sum((out.z_q - z) ** 2)))
    assert errors[0] > errors[1] > errors[2] >= errors[3]
    codebooks = np.asarray(
        jax.vmap(lambda s: greedy.inner.decode((), s, jnp.arange(6)))(state), np.float64
    )
    codebooks *= ((scale or 1.0) ** np.arange(3))[:, None, None]
    sums = (
        codebooks[0][:, None, None] + codebooks[1][None, :, None] + codebooks[2][None, None]
    ).reshape(-1, 4)
    best = ((np.float64(z)[:, None] - sums) ** 2).sum(-1).min(axis=1).sum()
    assert errors[3] == pytest.approx(best, rel=1e-5)


def test_a_beam_with_weights_of_stages_is_the_peer_s():
    g = golden_case('codebooks', 'beam')
    beam = ops.Beam(3, tuple(map(float, g['weights'])))
    q = Residual(VQ(8, revival=None), 3, beam=beam)
    zeros = jnp.zeros_like(g['codebooks'])
    state = VQState(zeros, zeros[..., 0] + 1, jnp.zeros(3, jnp.int32))
    out = q.quantize(g['codebooks'], state, g['z'])
    assert (np.asarray(out.codes) == g['codes']).all()
    np.testing.assert_allclose(np.asarray(out.z_q), g['z_q'], atol=1e-5)
    by_the_end = dataclasses.replace(q, beam=3).quantize(g['codebooks'], state, g['z'])
    assert (by_the_end.codes != out.codes).any()

    def errors(out):
        vectors = np.asarray(q.stage_vectors(g['codebooks'], state, out.codes))
        return np.mean((g['z'] - np.cumsum(vectors, axis=0)) ** 2, axis=(1, 2))

    # Weights favour the early stages: better when cut after one or two, worse at the end.
    difference = errors(out) - errors(by_the_end)
    assert difference[0] < 0 and difference[1] < 0 and difference[2] > 0
    first, _, _ = q.first_stages(2, g['codebooks'], state)
    assert first.beam == ops.Beam(3, (1.0, 0.5))


def test_sums_of_centroids_come_back_to_the_bit():
    """ACCEPTANCE 4: vectors that are sums of centroids."""
    coarse, fine = 16 * normal(0, 8, 4), 0.25 * normal(1, 8, 4)
    q = Residual(VQ(8, revival=None), 2)
    params, state = q.init(jax.random.key(0), normal(2, 100, 4))
    params = jnp.stack([coarse, fine])
    codes = jnp.stack(jnp.meshgrid(jnp.arange(8), jnp.arange(8), indexing='ij'), axis=-1)
    z = coarse[codes[..., 0]] + fine[codes[..., 1]]
    out = q.quantize(params, state, z)
    assert (out.codes == codes).all() and (out.z_q == z).all()


def test_params_inside_a_residual_learn_from_the_task():
    """Their z_q is detached from z but not from what gradients train."""
    q = Residual(Projected(VQEMA(8), 2), 2)
    z = normal(0, 64, 4)
    params, state = q.init(jax.random.key(0), z)
    grad = jax.grad(lambda p: jnp.sum(q.quantize(p, state, z).z_q ** 2))(params)
    assert np.asarray(grad.kernel_out).any()
    alone = jax.grad(lambda z: jnp.sum(q.quantize(params, state, z).z_q))(z)
    np.testing.assert_allclose(np.asarray(alone), 1.0, rtol=1e-6)


def test_product_quantizes_each_group_on_its_own():
    z = normal(0, 128, 6)
    q = Product(VQEMA(8), 3)
    params, state = q.init(jax.random.key(0), z)
    out = q.quantize(params, state, z)
    for group in range(3):
        part = jax.tree.map(lambda x, g=group: x[g], state)
        alone = VQEMA(8).quantize((), part, z[:, 2 * group : 2 * group + 2])
        assert (alone.codes == out.codes[:, group]).all()
        assert (alone.z_q == out.z_q[:, 2 * group : 2 * group + 2]).all()
    assert float(out.loss) == pytest.approx(0.25 * float(jnp.mean((out.z_q - z) ** 2)), rel=1e-5)


def test_a_spec_nested_without_end_is_one_sentence():
    spec = {'name': 'vq_ema', 'num_codes': 8}
    for _ in range(10_000):
        spec = {'name': 'projected', 'dim': 4, 'inner': spec}
    for deep in (spec, spec | {'inner': [spec]}, {'name': 'fsq', 'levels': spec}):
        with pytest.raises(ValueError, match='nested 32 deep'):
            make(deep)


def test_a_spec_of_values_of_another_kind_is_one_sentence():
    grid = {'name': 'fsq', 'levels': [3, 3]}
    with pytest.raises(ValueError, match='symmetric must be True or False, got {}'):
        make(grid | {'symmetric': {}})
    with pytest.raises(ValueError, match='name must be one of'):
        make(grid | {'name': {}})


def test_projection_starts_as_an_orthonormal_one():
    q = Projected(VQEMA(8), 3)
    params, _ = q.init(jax.random.key(0), normal(0, 64, 8))
    np.testing.assert_allclose(params.kernel_out @ params.kernel_in, np.eye(3), atol=1e-5)


def test_hidden_units_are_a_relu_layer_whose_units_drop_out_with_a_key_alone():
    """linear - ReLU - dropout - linear, in NumPy; kept units carry what the dropped ones did."""
    plain = Projected(FSQ((101, 101)), 2, hidden=64)
    q = dataclasses.replace(plain, dropout=0.25)
    z = normal(1, 512, 8)
    params, state = q.init(jax.random.key(0), z)
    units = np.maximum(np.asarray(z) @ params.kernel_hidden + params.bias_hidden, 0)
    expected = FSQ((101, 101)).quantize((), (), units @ params.kernel_in).codes
    np.testing.assert_array_equal(q.quantize(params, state, z).codes, expected)
    # On average over keys the inner quantizer is given what it is given without one.
    found = [q._project(params, z, jax.random.key(k), jnp.arange(512)) for k in range(400)]
    np.testing.assert_allclose(np.mean(found, 0), units @ params.kernel_in, atol=0.5)
    assert 0.2 < np.std(found, 0).mean() < 2
    out = [q.quantize(params, state, z, jax.random.key(k)).codes for k in (0, 0, 1)]
    np.testing.assert_array_equal(out[0], out[1])
    assert (out[0] != out[2]).any()
    with pytest.raises(ValueError, match='dropout must be 0 without hidden units'):
        Projected(FSQ((5, 5)), 2, dropout=0.1)
    with pytest.raises(ValueError, match='dropout must be at least 0 and below 1'):
        Projected(FSQ((5, 5)), 2, hidden=4, dropout=1.0)
