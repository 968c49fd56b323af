"""Losses of soft assignments, and of the codes in use, against the peer and brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import golden_case

from vqjax import VQ, VQEMA, ops
from vqjax.quantizers import VQEMAState, VQState


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def close(got, expected, tolerance=1e-5):
    np.testing.assert_allclose(np.asarray(got), expected, rtol=tolerance, atol=tolerance)


def of_codebook(codebook):
    """The state of a VQEMA with this codebook."""
    return VQEMAState(jnp.ones(len(codebook)), jnp.asarray(codebook), jnp.zeros((), jnp.int32))


@pytest.mark.parametrize('number', [50, 3000])  # within a tile, and several
def test_cross_entropy_is_that_of_the_softmax_of_distances(number):
    z, codebook, mask = normal(0, number, 3), normal(1, 7, 3), jnp.arange(number) % 3 > 0
    codes = jax.random.randint(jax.random.key(2), (number,), -1, 7)
    logits = -np.sum((np.float64(z)[:, None] - np.float64(codebook)) ** 2, axis=-1) / 0.5
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    real = np.asarray(mask & (codes >= 0))
    expected = -log_p[np.arange(number), codes][real].mean()
    spoiled = jnp.where(mask[:, None], z, jnp.nan)
    got, slope = jax.value_and_grad(ops.code_cross_entropy)(
        spoiled, codebook, codes, 0.5, mask=mask
    )
    assert float(got) == pytest.approx(expected, rel=1e-4)
    # Each vector is drawn to its code as it is pushed from the mean of what it might be.
    towards = np.exp(log_p) @ np.float64(codebook) - np.float64(codebook)[codes]
    close(slope, np.where(real[:, None], 2 / 0.5 * towards, 0) / real.sum(), 1e-4)
    assert float(ops.code_cross_entropy(z, codebook, jnp.full(number, -1))) == 0.0


def test_cross_entropy_and_diversity_of_cosines_are_the_peer_s():
    g = golden_case('codebooks', 'cross_entropy')

    def loss(z):
        unit = ops.normalize(z)
        return ops.code_cross_entropy(unit, g['codebook'], g['codes'], 2.0, 'cosine')

    value, slope = jax.value_and_grad(loss)(g['z'])
    close(value, g['loss'])
    close(slope, g['z_grad'])
    state = of_codebook(g['codebook'])
    q = VQEMA(len(g['codebook']), commitment=0, cross_entropy=0.5, metric='cosine')
    out = q.quantize((), state, g['z'])
    assert (np.asarray(out.codes) == g['codes']).all()
    expected = ops.code_cross_entropy(g['z'], g['codebook'], out.codes, 1.0, 'cosine')
    close(out.losses['cross_entropy'], expected)
    close(out.loss, 0.5 * expected)

    g = golden_case('codebooks', 'diversity')

    def negative_entropy(z):
        temperature = 2 / float(g['inv_temperature'])
        return -ops.entropy(ops.mean_assignment(z, g['codebook'], temperature, 'cosine'))

    value, slope = jax.value_and_grad(negative_entropy)(g['z'])
    close(value, g['loss'], 1e-4)  # theirs bounds the logarithm
    close(slope, g['z_grad'], 1e-4)


def test_diversity_moves_z_towards_even_use():
    z, state = 0.3 + 0.3 * normal(0, 64, 4), of_codebook(normal(1, 8, 4))
    q = VQEMA(8, commitment=0, diversity=1.0, revival=None)
    before = q.quantize((), state, z)
    for _ in range(50):
        z -= 20.0 * jax.grad(lambda z: q.quantize((), state, z).loss)(z)
    after = q.quantize((), state, z)
    assert float(after.losses['diversity']) < 0.5 * float(before.losses['diversity'])
    used = [int((ops.code_counts(out.codes, 8) > 0).sum()) for out in (before, after)]
    assert used[1] > used[0]


def test_orthogonality_of_active_codes_is_the_peer_s():
    g = golden_case('codebooks', 'active_orthogonality')
    q = VQ(len(g['codebook']), commitment=0, codebook=0, active_orthogonality=1.0, revival=None)
    zeros = jnp.zeros_like(g['codebook'])
    state = VQState(zeros, zeros[:, 0] + 1, jnp.zeros((), jnp.int32))

    def loss(codebook):
        out = q.quantize(codebook, state, g['z'])
        return out.loss, out

    slope, out = jax.grad(loss, has_aux=True)(jnp.asarray(g['codebook']))
    assert (np.asarray(out.codes) == g['codes']).all()
    close(out.losses['active_orthogonality'], g['loss'])
    close(slope, g['codebook_grad'])
    unused = np.setdiff1d(np.arange(q.num_codes), g['codes'])
    assert len(unused) and not np.asarray(slope)[unused].any()
    close(ops.orthogonality(g['codebook'], jnp.ones(8, bool)), ops.orthogonality(g['codebook']))
    assert float(ops.orthogonality(g['codebook'], jnp.zeros(8, bool))) == 0.0
