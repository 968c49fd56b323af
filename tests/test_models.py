"""Shapes, sizes and the normalisation that keeps bounded quantizers alive."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqjax import FSQ, Projected
from vqjax.trainer import models


def images(*shape):
    return jax.random.normal(jax.random.key(0), shape)


@pytest.mark.parametrize(
    'shape, bottleneck, expected',
    [
        ((8, 8, 1), 'vector', (1, 1)),
        ((8, 8, 1), 'grid', (2, 2)),
        ((28, 28, 1), 'grid', (7, 7)),
        ((32, 32, 3), 'grid', (8, 8)),
    ],
)
def test_encoder_gives_one_vector_or_a_grid_of_float32(shape, bottleneck, expected):
    encoder = models.Encoder(features=24, bottleneck=bottleneck, dtype=jnp.bfloat16)
    z, variables = jax.eval_shape(
        lambda x: encoder.init_with_output(jax.random.key(0), x, train=True), images(4, *shape)
    )
    assert z.shape == (4, *expected, 24)
    assert z.dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype('float32')}


def test_resnet18_has_the_11_168_832_trunk_parameters_of_the_cifar_variant():
    shapes = jax.eval_shape(
        lambda x: models.ResNet18().init(jax.random.key(0), x, train=True), images(2, 32, 32, 3)
    )
    assert sum(x.size for x in jax.tree.leaves(shapes['params'])) == 11_168_832
    out = jax.eval_shape(
        lambda x: models.ResNet18().init_with_output(jax.random.key(0), x, train=True)[0],
        images(2, 32, 32, 3),
    )
    assert out.shape == (2, 4, 4, 512)


def test_standardize_removes_scale_and_shared_direction_and_ignores_masked_rows():
    z = 0.05 * images(64, 16) + 7.0 * images(16)
    mask = jnp.arange(64) < 48
    z = z.at[48:].set(1e6)
    norm = models.Standardize()
    variables = norm.init(jax.random.key(0), z, train=True)
    out, _ = norm.apply(variables, z, train=True, mask=mask, mutable=['batch_stats'])
    np.testing.assert_allclose(out[:48].mean(0), 0.0, atol=1e-3)
    np.testing.assert_allclose(out[:48].std(0), 1.0, atol=0.01)


def test_evaluation_standardizes_from_the_start_by_the_init_batch():
    z = 3.0 + 5.0 * images(4096, 4)
    norm = models.Standardize()
    out = norm.apply(norm.init(jax.random.key(0), z, train=True), z, train=False)
    np.testing.assert_allclose(out.mean(0), 0.0, atol=1e-5)
    np.testing.assert_allclose(out.std(0), 1.0, atol=1e-5)


def test_every_method_starts_from_the_same_encoder_and_head():
    x = images(32, 8, 8, 1)
    params = []
    for quantizer in (None, Projected(FSQ((5, 5)), 2)):
        model = models.Classifier(10, quantizer, features=16)
        variables = jax.jit(functools.partial(model.init, train=True))(jax.random.key(3), x)
        params.append({k: v for k, v in variables['params'].items() if k != 'quantize'})
    jax.tree.map(np.testing.assert_array_equal, *params)


def test_fsq_codes_of_a_fresh_model_spread_however_small_its_features():
    """Bounded quantizers round tiny or shared features to one code: the collapse that was seen."""
    x = images(256, 8, 8, 1)
    model = models.Classifier(10, Projected(FSQ((8, 8, 8, 5, 5, 5)), 6), features=16)
    variables = jax.jit(functools.partial(model.init, train=True))(jax.random.key(0), x)
    shrunk = jax.tree.map(lambda p: p, variables['params'])
    shrunk['encode']['Dense_0']['kernel'] *= 0.05
    apply = jax.jit(functools.partial(model.apply, train=True, mutable=['batch_stats']))
    out, _ = apply(variables | {'params': shrunk}, x)
    assert len(np.unique(out.quantized.codes)) > 100


@pytest.mark.parametrize('places', [1, 2])
def test_decoder_learns_to_give_images_back_from_a_vector_and_from_a_grid(places):
    x = images(4, 8, 8, 1)
    z = images(4, places, places, 8)
    decoder = models.Decoder((8, 8, 1), width=8)

    @jax.jit
    def losses_over_40_steps(key):
        def loss(p):
            return jnp.mean((decoder.apply(p, z) - x) ** 2)

        def step(p, _):
            value, gradient = jax.value_and_grad(loss)(p)
            return jax.tree.map(lambda a, g: a - 0.1 * g, p, gradient), value

        return jax.lax.scan(step, decoder.init(key, z), length=40)[1]

    values = losses_over_40_steps(jax.random.key(0))
    assert values[-1] < 0.9 * values[0]


@pytest.mark.parametrize('field, value', [('kind', 'transformer'), ('bottleneck', 'line')])
def test_unknown_names_are_errors_that_list_the_known_ones(field, value):
    encoder = models.Encoder(**{field: value})
    with pytest.raises(ValueError, match=f"'{value}': choose one of"):
        encoder.init(jax.random.key(0), images(2, 8, 8, 1), train=True)
