"""Index backpropagation: its gradient against a dense float64 one, its memory, its parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import SHIPPED

from vqjax import IBQ, Product, ops


def data(n, k, d, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)), rng.standard_normal((k, d)), rng.standard_normal((n, d))


def dense(z, codebook, cotangent, metric):
    """float64 gradients of (onehot - sg(p) + p) codebook to z and to the codebook, all N x K."""

    def carried(z, codebook):
        products = z @ codebook.T
        scores = products if metric == 'dot' else 2 * products - jnp.sum(codebook**2, axis=-1)
        p = jax.nn.softmax(scores)
        onehot = jax.nn.one_hot(jnp.argmax(p, axis=-1), len(codebook))
        return jnp.vdot((onehot - jax.lax.stop_gradient(p) + p) @ codebook, cotangent)

    with jax.enable_x64(True):
        arrays = [jnp.asarray(x) for x in (z, codebook)]
        return [np.asarray(x) for x in jax.grad(carried, (0, 1))(*arrays)]


# One tile; several of rows, of codes and of both, nothing a multiple of anything.
@pytest.mark.parametrize(
    'metric, shape',
    [
        ('euclidean', (30, 12, 5)),
        ('dot', (17_000, 60, 3)),
        ('dot', (300, 2500, 4)),
        ('dot', (1300, 1100, 4)),
    ],
)
def test_gradient_is_the_dense_one_s(metric, shape):
    z, codebook, cotangent = data(*shape)
    to_z, to_codebook = dense(z, codebook, cotangent, metric)

    def carried(z, codebook):
        chosen = codebook[ops.nearest_codes(z, codebook, metric)]
        return jnp.vdot(chosen + ops.soft_index(z, codebook, metric), jnp.float32(cotangent))

    got = jax.jit(jax.grad(carried, (0, 1)))(jnp.float32(z), jnp.float32(codebook))
    for mine, exact in zip(got, (to_z, to_codebook), strict=True):
        assert np.abs(np.asarray(mine) - exact).max() < 2e-5 * np.abs(exact).max()


def test_one_step_moves_every_code():
    q = IBQ(64, init=ops.normal)
    z = jax.random.normal(jax.random.key(0), (16, 4))
    codebook, _ = q.init(jax.random.key(1), z)
    gradient = jax.grad(lambda c: jnp.sum(jnp.sin(q.quantize(c, (), z).z_q)))(codebook)
    assert len(np.unique(q.quantize(codebook, (), z).codes)) <= 16
    assert (np.abs(np.asarray(gradient)).max(axis=-1) > 0).all()


def test_rows_and_codes_that_are_not_finite_give_no_gradient():
    z, codebook, cotangent = (jnp.float32(x) for x in data(20, 9, 3))
    bad_z, bad_codebook = z.at[4, 1].set(jnp.nan), codebook.at[7].set(jnp.inf)

    def carried(z, codebook):
        return jnp.vdot(ops.soft_index(z, codebook), cotangent)

    gradient = jax.grad(carried, (0, 1))
    to_z, to_codebook = gradient(bad_z, bad_codebook)
    assert not np.asarray(to_z[4]).any() and not np.asarray(to_codebook[7]).any()
    rows, codes = np.arange(20) != 4, np.arange(9) != 7
    others = jax.grad(lambda z, c: jnp.vdot(ops.soft_index(z, c), cotangent[rows]), (0, 1))
    expected = others(z[rows], codebook[codes])
    np.testing.assert_allclose(to_z[rows], expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(to_codebook[codes], expected[1], rtol=1e-5, atol=1e-6)


def test_groups_are_each_their_own_gradient():
    """Under vmap one group after the other: the tiles of one are held, not of all."""
    z, _, _ = (jnp.float32(x) for x in data(50, 8, 6))
    q = Product(IBQ(8), 2)
    params, state = q.init(jax.random.key(0), z)
    loss = lambda q, params, state, z: jnp.sum(q.quantize(params, state, z).z_q ** 2)  # noqa: E731
    together = jax.grad(loss, 1)(q, params, state, z)
    for group in range(2):
        alone = jax.grad(loss, 1)(q.inner, params[group], (), z[:, 3 * group : 3 * group + 3])
        np.testing.assert_allclose(together[group], alone, rtol=1e-5, atol=1e-6)


def test_entropy_terms_are_those_of_the_matrix():
    z, codebook, _ = (jnp.float32(x) for x in data(90, 12, 4))
    mask = jnp.arange(90) % 3 > 0
    q = IBQ(12, entropy=0.5, gamma=2.0, inv_temperature=3.0)
    out = q.quantize(codebook, (), z, mask=mask)
    p = np.asarray(jax.nn.softmax(3.0 * (z @ codebook.T)), np.float64)[np.asarray(mask)]
    single = -(p * np.log(p)).sum(-1).mean()
    batch = -(p.mean(0) * np.log(p.mean(0))).sum()
    np.testing.assert_allclose(out.losses['per_sample_entropy'], single, rtol=1e-5)
    np.testing.assert_allclose(out.losses['batch_entropy'], batch, rtol=1e-5)
    errors = sum(
        getattr(q, name) * out.losses[name] for name in ('index', 'commitment', 'codebook')
    )
    np.testing.assert_allclose(out.loss, errors + 0.5 * (single - 2.0 * batch), rtol=1e-5)


def test_no_n_by_k_matrix_at_16384_x_262144():
    """Temporaries of a whole step's gradients; N x K would be 17 GB, K x D is 67 MB."""
    n, k, d = 16_384, 262_144, 64
    q = IBQ(k)

    def loss(codebook, z):
        out = q.quantize(codebook, (), z)
        return jnp.sum(jnp.sin(out.z_q)) + out.loss

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((k, d), (n, d))]
    step = jax.jit(jax.grad(loss, (0, 1)), compiler_options=SHIPPED)
    extra = step.lower(*shapes).compile().memory_analysis().temp_size_in_bytes
    # The codes' gradient through the index and through the choice, and copies of z.
    print(extra / 1e6)
    assert extra < 4 * k * d * 4 + 60e6
