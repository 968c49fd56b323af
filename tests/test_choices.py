"""`ops.choose_by_logits`: tiles change nothing but the memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from vqjax import ops

N, D, K = 2500, 6, 48  # three tiles, the last one not full
TEMPERATURE = 0.7


@pytest.fixture(scope='module')
def case():
    rng = np.random.default_rng(0)
    shapes = {'rows': (N, D), 'kernel': (D, K), 'bias': (K,), 'codebook': (K, D)}
    arrays = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    to_vectors, to_total = (rng.standard_normal(n, np.float32) for n in ((N, D), K))
    return arrays, rng.random(N) < 0.9, to_vectors, to_total


def plainly(arrays, valid, to_vectors, to_total, noise, soft):
    """Values and gradients with every logit held, in float64, by hand."""
    rows, kernel, bias, codebook = (x.astype(np.float64) for x in arrays.values())
    logits = rows @ kernel + bias
    weights = special.softmax((logits + noise) / TEMPERATURE, axis=-1)
    codes = np.argmax(logits + noise, axis=-1)
    vectors = weights @ codebook if soft else codebook[codes]
    p = special.softmax(logits, axis=-1)
    total = p[valid].sum(0)

    def through_softmax(weights, slope):
        return weights * (slope - (weights * slope).sum(-1, keepdims=True))

    to_logits = through_softmax(weights, to_vectors @ codebook.T) / TEMPERATURE
    to_logits += valid[:, None] * through_softmax(p, to_total)
    gradients = {'rows': to_logits @ kernel.T, 'kernel': rows.T @ to_logits}
    gradients |= {'bias': to_logits.sum(0), 'codebook': weights.T @ to_vectors}
    return (vectors, codes, total), gradients


@pytest.mark.parametrize('soft', [False, True])
@pytest.mark.parametrize('sampled', [False, True])
def test_values_and_gradients_are_those_of_the_whole_matrix(case, sampled, soft):
    arrays, valid, to_vectors, to_total = case
    noise = (jax.random.key(3), jnp.arange(N)) if sampled else None

    @jax.jit
    def ours(arrays):
        def loss(arrays):
            found = ops.choose_by_logits(
                **arrays, valid=valid, temperature=TEMPERATURE, noise=noise, soft=soft, sums=True
            )
            return jnp.sum(found.vectors * to_vectors) + jnp.sum(found.total * to_total), found

        gradients, found = jax.grad(loss, has_aux=True)(arrays)
        return found, gradients

    (vectors, codes, total), gradients = ours(arrays)
    table = np.asarray(ops.gumbel_noise(*noise, K), np.float64) if sampled else 0.0
    right, slopes = plainly(arrays, valid, to_vectors, to_total, table, soft)
    np.testing.assert_array_equal(codes, right[1])
    pairs = [(vectors, right[0]), (total, right[2])]
    for found, exact in pairs + [(gradients[name], slopes[name]) for name in slopes]:
        np.testing.assert_allclose(found, exact, rtol=0, atol=3e-6 * np.abs(exact).max())


def test_no_logits_are_kept():
    n = 2**14
    shapes = [(n, D), (D, 1024), (1024,), (1024, D)]
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]

    def loss(rows, *params):
        noise = jax.random.key(0), jnp.arange(n)
        found = ops.choose_by_logits(rows, *params, jnp.ones(n, bool), noise=noise)
        return jnp.sum(found.vectors**2)

    compiled = jax.jit(jax.grad(loss, (0, 1, 2, 3))).lower(*arrays).compile()
    # All logits would be 64 MB.
    assert compiled.memory_analysis().temp_size_in_bytes < 40e6


def test_a_tie_goes_to_the_lowest_code():
    params = jnp.ones((D, K)), jnp.zeros(K), jnp.ones((K, D))
    found = ops.choose_by_logits(jnp.zeros((3, D)), *params, jnp.ones(3, bool))
    np.testing.assert_array_equal(found.codes, 0)
