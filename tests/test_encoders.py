"""Shapes, sizes and the normalisation of the encoders; their convolution is XLA's."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqjax import encoders, ops, trunks


def images(*shape):
    return jax.random.normal(jax.random.key(0), shape)


# The convolution.

SIDES = st.tuples(st.integers(3, 7), st.integers(3, 7))
KERNELS = st.tuples(st.integers(1, 3), st.integers(1, 3))
STRIDES = st.tuples(st.integers(1, 3), st.integers(1, 3))
PADDINGS = st.sampled_from(['SAME', 'VALID', ((1, 2), (0, 1))])


@settings(max_examples=12, deadline=None, derandomize=True)
@given(SIDES, KERNELS, STRIDES, PADDINGS)
def test_the_product_with_patches_is_the_convolution_forward_and_backward(
    sides, kernel, strides, padding
):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *sides, 2)).astype(np.float32)
    w = rng.normal(size=(*kernel, 2, 3)).astype(np.float32)
    numbers = {'dimension_numbers': ('NHWC', 'HWIO', 'NHWC')}

    def both(convolve):
        def run(x, w):
            y = convolve(x, w, strides, padding, **numbers)
            return jnp.sum(y * jnp.cos(jnp.arange(y.size)).reshape(y.shape)), y

        return jax.value_and_grad(run, (0, 1), has_aux=True)

    @jax.jit
    def compare(x, w):
        return both(ops.convolve)(x, w), both(jax.lax.conv_general_dilated)(x, w)

    ours, theirs = compare(x, w)
    assert ours[0][1].shape == theirs[0][1].shape
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_convolutions_of_small_images_are_products_on_a_cpu_and_those_of_large_ones_are_not():
    """In a loop XLA's own are slow there; of a large image the patches are too many."""
    cpu = jax.default_backend() == 'cpu'
    for side, product in ((8, cpu), (28, False), (32, False)):
        x = jax.ShapeDtypeStruct((2, side, side, 1), jnp.float32)
        trunk = encoders.ConvTrunk(4)
        jaxpr = jax.make_jaxpr(
            lambda x, net=trunk: net.init_with_output(jax.random.key(0), x, train=True)
        )
        assert ('conv_general_dilated' not in str(jaxpr(x))) == product, side
        assert encoders.are_small((side, side, 1)) == product


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
    encoder = encoders.Encoder(features=24, bottleneck=bottleneck, dtype=jnp.bfloat16)
    z, variables = jax.eval_shape(
        lambda x: encoder.init_with_output(jax.random.key(0), x, train=True), images(4, *shape)
    )
    assert z.shape == (4, *expected, 24)
    assert z.dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype('float32')}


@pytest.mark.parametrize('shape', [(2, 8, 6, 3), (2, 7, 5, 3)])
def test_max_pool_and_its_gradient_are_those_of_flax(shape):
    x, weights = images(*shape), jnp.cos(jnp.arange(3.0))
    of_flax = lambda x: nn.max_pool(x, (2, 2), (2, 2), 'SAME')  # noqa: E731
    np.testing.assert_array_equal(trunks.max_pool(x), of_flax(x))
    ours, theirs = (
        jax.grad(lambda x, pool=pool: jnp.sum(weights * pool(x)))(x)
        for pool in (trunks.max_pool, of_flax)
    )
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    'trunk, parameters',
    [
        # Without the last layer: that of Page 2018 makes it 6,573,120.
        (encoders.ResNet9(64), 6_568_000),
        (encoders.ResNet18(), 11_168_832),
    ],
)
def test_a_resnet_has_the_published_number_of_parameters(trunk, parameters):
    run = functools.partial(trunk.init_with_output, train=True)
    out, variables = jax.eval_shape(run, jax.random.key(0), images(2, 32, 32, 3))
    assert sum(x.size for x in jax.tree.leaves(variables['params'])) == parameters
    assert out.shape == (2, 4, 4, 512)


def test_standardize_removes_scale_and_shared_direction_and_ignores_masked_rows():
    z = 0.05 * images(64, 16) + 7.0 * images(16)
    mask = jnp.arange(64) < 48
    z = z.at[48:].set(1e6)
    norm = encoders.Standardize()
    variables = norm.init(jax.random.key(0), z, train=True)
    out, _ = norm.apply(variables, z, train=True, mask=mask, mutable=['batch_stats'])
    np.testing.assert_allclose(out[:48].mean(0), 0.0, atol=1e-3)
    np.testing.assert_allclose(out[:48].std(0), 1.0, atol=0.01)


def test_evaluation_standardizes_from_the_start_by_the_init_batch():
    z = 3.0 + 5.0 * images(4096, 4)
    norm = encoders.Standardize()
    out = norm.apply(norm.init(jax.random.key(0), z, train=True), z, train=False)
    np.testing.assert_allclose(out.mean(0), 0.0, atol=1e-5)
    np.testing.assert_allclose(out.std(0), 1.0, atol=1e-5)


@pytest.mark.parametrize('decay', [0.9, 0.7])
def test_evaluation_lags_behind_features_that_move_by_the_memory_of_its_averages(decay):
    """Of a mean that moves by s a step, an average of decay d tells what was s d / (1 - d) ago."""
    norm, step = encoders.Standardize(decay=decay), 0.1
    z = images(256, 4)
    z = z / jnp.std(z, axis=0)
    variables = norm.init(jax.random.key(0), z, train=True)
    move = jax.jit(lambda v, z: norm.apply(v, z, train=True, mutable=['batch_stats'])[1])
    for i in range(1, 81):
        variables = move(variables, z + step * i)
    lag = jnp.mean(norm.apply(variables, z + step * i, train=False))
    np.testing.assert_allclose(lag, step * decay / (1 - decay), rtol=0.02)


@pytest.mark.parametrize('places', [1, 2])
def test_decoder_learns_to_give_images_back_from_a_vector_and_from_a_grid(places):
    x = images(4, 8, 8, 1)
    z = images(4, places, places, 8)
    decoder = encoders.Decoder((8, 8, 1), width=8)

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
    encoder = encoders.Encoder(**{field: value})
    with pytest.raises(ValueError, match=f"'{value}': choose one of"):
        encoder.init(jax.random.key(0), images(2, 8, 8, 1), train=True)


@pytest.mark.parametrize(
    'padding, options, message',
    [
        ('SAME', {'batch_group_count': 2}, 'batch_group_count=2'),
        ([(-1, 0), (0, 0)], {}, 'give sides from 0'),
    ],
)
def test_options_that_patches_do_not_know_are_refused(padding, options, message):
    with pytest.raises(ValueError, match=message):
        ops.convolve(images(1, 8, 8, 3), jnp.zeros((3, 3, 3, 6)), (1, 1), padding, **options)


@pytest.mark.parametrize('options', [{'rhs_dilation': (2, 2)}, {'feature_group_count': 3}])
def test_patches_of_other_convolutions_are_refused(options):
    with pytest.raises(ValueError, match='use lax.conv_general_dilated'):
        ops.convolve(images(1, 8, 8, 3), jnp.zeros((3, 3, 3, 6)), (1, 1), 'SAME', **options)
