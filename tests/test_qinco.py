"""QINCo: a golden of the official model, brute force, and what it is for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import golden

from vqjax import VQ, QINCo, Residual, codec
from vqjax.quantizers import QINCoParams


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def moved(params, by=0.3):
    """Params that no longer are a residual quantizer's."""
    leaves, form = jax.tree.flatten(params)
    return form.unflatten([p + by * normal(i, *p.shape) for i, p in enumerate(leaves)])


def test_the_official_model():
    """facebookresearch/Qinco, qinco_v1: codes, sums, losses and gradients of its loss."""
    g = golden('qinco')
    params = QINCoParams(*(jnp.asarray(g[name]) for name in QINCoParams._fields))
    stages, num_codes, dim = params.codebooks.shape
    blocks, hidden = params.down.shape[1], params.down.shape[-1]
    q = QINCo(num_codes, stages, hidden, blocks, commitment=0.0)
    x = jnp.asarray(g['x'])
    out = q.quantize(params, (), x)
    np.testing.assert_array_equal(np.asarray(out.codes), g['codes'])
    np.testing.assert_allclose(out.z_q, g['x_hat'], rtol=1e-4, atol=1e-5)
    assert float(out.loss) == pytest.approx(g['losses'].sum() / x.size, rel=1e-5)
    slopes = jax.grad(lambda p: q.quantize(p, (), x).loss)(params)
    for name in ('codebooks', 'from_sum', 'up'):
        expected = g[f'grad_{name}']
        np.testing.assert_allclose(getattr(slopes, name), expected, rtol=1e-3, atol=1e-5)


def test_it_starts_as_a_residual_quantizer():
    q = QINCo(8, 3)
    z = normal(0, 300, 5)
    params, _ = q.init(jax.random.key(0), z)
    other = Residual(VQ(8, revival=None), 3)
    _, state = other.init(jax.random.key(0), z)
    there = other.quantize(params.codebooks, state._replace(shift=0 * state.shift), z)
    out = q.quantize(params, (), z)
    error, expected = (float(jnp.mean((x.z_q - z) ** 2)) for x in (out, there))
    assert error == pytest.approx(expected, rel=0.02)
    assert np.mean(np.asarray(out.codes) == np.asarray(there.codes)) > 0.95
    still = params._replace(**{name: 0 * getattr(params, name) for name in params._fields[1:]})
    exact = q.quantize(still, (), z)
    np.testing.assert_array_equal(np.asarray(exact.codes), np.asarray(there.codes))
    np.testing.assert_allclose(exact.z_q, there.z_q, atol=1e-6)


@pytest.mark.parametrize('number, num_codes', [(50, 7), (700, 300)])  # several tiles of each
def test_codes_are_the_nearest_of_all_that_a_stage_can_add(number, num_codes):
    q = QINCo(num_codes, 2, hidden=64, blocks=2)
    z = normal(0, number, 4)
    params = moved(q.init(jax.random.key(0), normal(1, 2000, 4))[0])
    codes = np.asarray(q.quantize(params, (), z).codes)
    first = codes[:, :1]
    every = np.broadcast_to(np.arange(num_codes)[:, None], (number, num_codes, 1))
    tried = np.concatenate([np.broadcast_to(first[:, None], every.shape), every], axis=-1)
    sums = np.float64(q.decode(params, (), jnp.asarray(tried, jnp.int32)))
    error = np.sum((np.float64(z)[:, None] - sums) ** 2, axis=-1)
    chosen = np.take_along_axis(error, codes[:, 1:], axis=-1)[:, 0]
    np.testing.assert_allclose(chosen, error.min(-1), rtol=1e-4, atol=1e-5)


def test_candidates_are_the_nearest_without_the_blocks():
    """Of three a vector, the one whose f comes nearest; of all, the code that is taken without."""
    q = QINCo(7, 2, hidden=64, blocks=2, candidates=3)
    z = normal(0, 50, 4)
    params = moved(q.init(jax.random.key(0), normal(1, 500, 4))[0])
    codes = np.asarray(q.quantize(params, (), z).codes)
    total = np.float64(params.codebooks[0])[codes[:, 0]]
    base = np.float64(params.codebooks[1])
    linear = base + base @ np.float64(params.from_code[0])
    offset = total @ np.float64(params.from_sum[0]) + np.float64(params.bias[0])
    left = np.float64(z) - total
    order = np.argsort(np.sum((left[:, None] - linear - offset[:, None]) ** 2, -1), -1)[:, :3]
    tried = jnp.stack([jnp.broadcast_to(codes[:, :1], order.shape), order], -1)
    error = np.sum((np.float64(z)[:, None] - np.float64(q.decode(params, (), tried))) ** 2, -1)
    np.testing.assert_array_equal(codes[:, 1], order[np.arange(50), error.argmin(-1)])
    whole = [dataclasses.replace(q, candidates=n).quantize(params, (), z).codes for n in (7, None)]
    np.testing.assert_array_equal(np.asarray(whole[0]), np.asarray(whole[1]))
    assert (codes != np.asarray(whole[0])).any()


def test_the_first_codes_decode_to_the_sum_so_far():
    q = QINCo(6, 4, hidden=8)
    z = normal(0, 30, 3)
    params = moved(q.init(jax.random.key(0), z)[0])
    out = q.quantize(params, (), z)
    errors = []
    for n in range(1, 5):
        codes = jnp.where(jnp.arange(4) < n, out.codes, -1)
        errors.append(float(jnp.mean((q.decode(params, (), codes) - z) ** 2)))
    assert float(out.losses['partial_sums']) == pytest.approx(sum(errors), rel=1e-4)


def test_a_stage_learns_what_the_one_before_leaves():
    """Rings around two centres, one upright and one flat: a fixed second codebook has to serve
    both, one that sees the sum serves each (the paper's figure 1)."""
    angle = 2 * jnp.pi * jax.random.uniform(jax.random.key(0), (2000,))
    upright = jnp.arange(2000) % 2 == 0
    ring = jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)
    ring = jnp.where(upright[:, None], ring * jnp.array([0.1, 1.0]), ring * jnp.array([1.0, 0.1]))
    z = ring + jnp.where(upright[:, None], jnp.array([5.0, 0.0]), jnp.array([-5.0, 0.0]))
    start = VQ(2, revival=None).init(jax.random.key(1), z)[0]
    assert sorted(np.round(start[:, 0])) == [-5, 5]
    fixed = codec.fit(Residual(VQ(4), 2), jax.random.key(0), np.asarray(z), 0, progress=False)

    q, optimizer = QINCo(4, 2, hidden=32), optax.adam(0.01)

    @jax.jit
    def train(params):
        def step(carry, _):
            params, memory = carry
            slopes = jax.grad(lambda p: q.quantize(p, (), z).losses['partial_sums'])(params)
            updates, memory = optimizer.update(slopes, memory)
            return (optax.apply_updates(params, updates), memory), None

        (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), length=200)
        return params

    params = train(q.init(jax.random.key(0), z)[0])
    error = float(jnp.mean((q.quantize(params, (), z).z_q - z) ** 2))
    assert error < 0.8 * fixed.info['error']


def test_what_all_codes_could_add_is_not_held():
    q = QINCo(512, 2, hidden=64)
    z = jnp.zeros((4096, 16))
    params = jax.eval_shape(lambda: q.init(jax.random.key(0), z[:16] + jnp.eye(16)))[0]
    for call in (
        lambda p, z: q.quantize(p, (), z),
        jax.grad(lambda p, z: q.quantize(p, (), z).loss, (0, 1)),
    ):
        used = jax.jit(call).lower(params, z).compile().memory_analysis()
        assert used.temp_size_in_bytes < 40e6  # hidden features of all: 537 MB


@pytest.mark.parametrize(
    'fields, text',
    [
        ({'num_codes': 0}, 'num_codes must be an integer from 1 .* got 0'),
        ({'num_stages': 1}, 'num_stages must be an integer from 2 .* got 1'),
        ({'hidden': 0}, 'hidden must be an integer from 1 .* got 0'),
        ({'blocks': True}, 'blocks must be an integer from 1 .* got True'),
        ({'candidates': 5}, 'candidates must be an integer from 1 to 4, got 5'),
        ({'partial_sums': -1.0}, 'partial_sums must be .* got -1.0'),
    ],
)
def test_fields_out_of_range_are_refused(fields, text):
    with pytest.raises(ValueError, match=text):
        QINCo(**{'num_codes': 4, 'num_stages': 2} | fields)
