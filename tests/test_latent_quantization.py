"""LatentQuantization: a golden of vector-quantize-pytorch, and the same thing said otherwise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import golden

from vqjax import VQ, LatentQuantization, Product, codec
from vqjax.quantizers import VQState


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def test_codes_vectors_and_loss_of_vector_quantize_pytorch():
    """Of 1.32.0 with its own start; its values get no gradient, so none is compared."""
    g = golden('latent_quantization')
    weight = float(g['weight'])
    q = LatentQuantization(tuple(g['levels'].tolist()), commitment=weight, codebook=weight)
    out = q.quantize(jnp.asarray(g['values']), (), jnp.asarray(g['z']))
    np.testing.assert_array_equal(np.asarray(out.codes), g['codes'])
    np.testing.assert_allclose(np.asarray(out.z_q), g['z_q'], atol=1e-6)
    assert float(out.loss) == pytest.approx(float(g['loss']), rel=1e-5)


def test_it_is_a_product_of_codebooks_of_numbers():
    """Codes, vectors, losses and all gradients of Product(VQ(L), D) with the same numbers."""
    q = LatentQuantization((5,) * 6, commitment=0.25, codebook=1.0)
    other = Product(VQ(5, revival=None), 6)
    z = normal(0, 40, 6)
    values, _ = q.init(jax.random.key(0), z)
    values += 0.1 * normal(1, 6, 5)  # no longer in order everywhere
    params = values[..., None]
    state = VQState(jnp.zeros_like(params), jnp.ones((6, 5)), jnp.zeros(6, jnp.int32))

    def run(quantizer, params, state, z):
        out = quantizer.quantize(params, state, z)
        return jnp.sum(jnp.sin(out.z_q)) + out.loss, out

    step = jax.jit(jax.grad(run, (1, 3), has_aux=True), static_argnums=0)
    (to_values, to_z), out = step(q, values, (), z)
    (to_params, to_z_there), there = step(other, params, state, z)
    np.testing.assert_array_equal(np.asarray(out.codes), np.asarray(there.codes))
    np.testing.assert_array_equal(np.asarray(out.z_q), np.asarray(there.z_q))
    for name in ('commitment', 'codebook'):
        assert float(out.losses[name]) == pytest.approx(float(there.losses[name].mean()), rel=1e-5)
    assert float(out.loss) == pytest.approx(float(there.loss), rel=1e-5)
    np.testing.assert_allclose(to_values, to_params[..., 0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(to_z, to_z_there, rtol=1e-4, atol=1e-6)


def test_each_feature_takes_the_nearest_of_its_own_values():
    """In float64, with different numbers of levels and what stands behind them far too near."""
    levels = (2, 7, 3)
    q = LatentQuantization(levels)
    z = normal(0, 500, 3)
    values = 2 * normal(1, 3, 7)
    out = q.quantize(values, (), z)
    for d, level in enumerate(levels):
        mine = np.float64(values[d, :level])
        distance = np.abs(np.float64(z[:, d])[:, None] - mine)
        np.testing.assert_array_equal(np.asarray(out.codes[:, d]), distance.argmin(-1))
        np.testing.assert_array_equal(
            np.asarray(out.z_q[:, d]), np.float32(mine)[distance.argmin(-1)]
        )
    grad = jax.grad(lambda v: q.quantize(v, (), z).loss)(values)
    assert not np.asarray(grad)[0, 2:].any() and not np.asarray(grad)[2, 3:].any()
    # What is no level of its feature decodes to nothing, though it is one of another's.
    assert q.decode(values, (), jnp.array([2, 6, 3])).tolist() == [0.0, float(values[1, 6]), 0.0]
    assert q.bits == pytest.approx(np.log2(2 * 7 * 3))


@pytest.mark.parametrize('scale, shift', [(1e-3, 0.0), (1.0, 100.0), (1e4, -1e4)])
def test_all_levels_are_used_from_the_start_at_any_scale(scale, shift):
    """Of uniform features alike: the cells that the values start with have equal shares."""
    z = scale * jax.random.uniform(jax.random.key(0), (20_000, 3)) + shift
    mask = jnp.arange(20_000) % 5 > 0
    q = LatentQuantization((4, 10, 5))
    params, state = q.init(jax.random.key(1), jnp.where(mask[:, None], z, jnp.nan), mask)
    codes = np.asarray(q.quantize(params, state, z).codes)
    for d, level in enumerate(q.levels):
        share = np.bincount(codes[:, d], minlength=level) / len(codes)
        np.testing.assert_allclose(share, 1 / level, rtol=0.08)


def test_distances_to_all_values_are_not_held():
    q = LatentQuantization((256,) * 16)
    z = jnp.zeros((16_384, 16))
    params = normal(0, 16, 256)
    for call in (
        lambda p, z: q.quantize(p, (), z),
        jax.grad(lambda p, z: q.quantize(p, (), z).loss, (0, 1)),
    ):
        used = jax.jit(call).lower(params, z).compile().memory_analysis()
        assert used.temp_size_in_bytes < 20 * z.nbytes  # the distances are 256 times z


def test_codes_pack_in_the_bits_of_each_feature():
    q = LatentQuantization((2, 9, 4, 5))
    assert codec.code_widths(q).tolist() == [1, 4, 2, 3]
    z = np.asarray(normal(0, 1000, 4))
    fitted = codec.fit(q, jax.random.key(0), z, steps=3, progress=False)
    codes = fitted.encode(z)
    packed = codec.pack(q, codes)
    assert len(packed) == 1000 * 10 // 8
    np.testing.assert_array_equal(codec.unpack(q, packed, 1000), codes)
    wide = Product(LatentQuantization((3, 8)), 2)
    assert codec.code_widths(wide).tolist() == [[2, 2], [3, 3]]


@pytest.mark.parametrize(
    'fields, text',
    [
        ({'levels': ()}, r'levels must be a list of levels, got \(\)'),
        ({'levels': 5}, 'levels must be a list of levels, got 5'),
        ({'levels': (5, 1)}, 'levels must be an integer from 2 to 2147483647, got 1'),
        ({'levels': (5,), 'commitment': -1.0}, 'commitment must be .* got -1.0'),
        ({'levels': (5,), 'codebook': float('nan')}, 'codebook must be .* got nan'),
    ],
)
def test_what_makes_no_grid_is_refused(fields, text):
    with pytest.raises(ValueError, match=text):
        LatentQuantization(**fields)


def test_vectors_of_another_size_are_refused():
    q = LatentQuantization((3, 3))
    with pytest.raises(
        ValueError, match=r'2 features \(levels=\(3, 3\)\), got z of shape \(4, 3\)'
    ):
        q.init(jax.random.key(0), normal(0, 4, 3))
