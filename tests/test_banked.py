"""Banked: what enters the bank, and that dead codes are revived from it alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqjax import FSQ, VQ, VQEMA, Banked, Residual, ops

D = 4


def steps(quantizer, batches, key=None):
    """(params, state) after training on every batch, whose own first one starts the codebook."""
    params, state = quantizer.init(jax.random.key(0), batches[0])

    @jax.jit
    def step(state, z, key):
        codes = quantizer.quantize(params, state, z).codes
        return quantizer.update(params, state, z, codes, key)

    for i, z in enumerate(batches):
        state = step(state, z, None if key is None else jax.random.fold_in(key, i))
    return params, state


def numbered(count, n):
    """`count` batches of n vectors, all different: vector i is i in every feature."""
    return jnp.broadcast_to(jnp.arange(1.0, count * n + 1).reshape(count, n, 1), (count, n, D))


@pytest.mark.parametrize('kind', [VQEMA, VQ])
def test_the_bank_is_a_ring_of_the_newest_vectors(kind):
    quantizer = Banked(kind(4), size=24, fresh=8)
    for count, held in ((2, 16), (3, 24), (5, 24), (11, 24)):
        _, state = steps(quantizer, numbered(count, 8), jax.random.key(1))
        assert 24 <= int(state.seen) < 48 or int(state.seen) == 8 * count
        found = np.sort(np.asarray(state.bank)[: min(int(state.seen), 24), 0])
        np.testing.assert_array_equal(found, np.arange(8 * count - held + 1, 8 * count + 1))


def test_a_large_batch_gives_random_vectors_and_without_a_key_the_worst_served():
    quantizer = Banked(VQEMA(4, revival=ops.Revival(every=1000)), size=16, fresh=8)
    z = numbered(1, 64)
    drawn = [np.asarray(steps(quantizer, z, jax.random.key(s))[1].bank)[:8, 0] for s in (1, 2)]
    assert len(set(drawn[0])) == 8 and set(drawn[0]) != set(drawn[1])
    params, start = quantizer.init(jax.random.key(0), z[0])
    error = jnp.sum((quantizer.quantize(params, start, z[0]).z_q - z[0]) ** 2, axis=-1)
    _, state = steps(quantizer, z)
    worst = np.asarray(z[0])[np.argsort(-np.asarray(error), kind='stable')[:8]]
    np.testing.assert_array_equal(state.bank[:8], worst)


def test_masked_and_corrupt_vectors_stay_out():
    quantizer = Banked(VQEMA(2), size=16, fresh=8)
    z = numbered(1, 8)[0].at[3].set(jnp.nan)
    params, state = quantizer.init(jax.random.key(0), numbered(1, 8)[0])
    mask = jnp.arange(8) < 6
    codes = quantizer.quantize(params, state, z, mask=mask).codes
    after = quantizer.update(params, state, z, codes, jax.random.key(1), mask)
    assert int(after.seen) == 5
    np.testing.assert_array_equal(np.sort(after.bank[:5, 0]), [1, 2, 3, 5, 6])
    nothing = quantizer.update(params, after, z, codes, None, jnp.zeros(8, bool))
    np.testing.assert_array_equal(nothing.bank, after.bank)
    assert int(nothing.seen) == 5


@pytest.mark.parametrize('kind', [VQEMA, VQ])
def test_dead_codes_take_centroids_of_the_bank_where_a_batch_cannot_fill_them(kind):
    """8 vectors a step, 32 far clusters, 32 codes: only the bank has seen all clusters."""
    rng = np.random.default_rng(0)
    centres = 50 * rng.standard_normal((32, D)).astype(np.float32)
    order = np.tile(np.arange(32).reshape(4, 8), (10, 1))
    batches = jnp.asarray(centres[order] + 0.01 * rng.standard_normal((40, 8, D)), jnp.float32)
    revival = ops.Revival(below=0.2, every=20, source=ops.kmeans_rows)
    leaf = kind(32, decay=0.8, init='normal', revival=revival)
    used = {}
    for quantizer in (leaf, Banked(leaf, size=64, fresh=8)):
        params, state = steps(quantizer, batches, jax.random.key(1))
        codes = quantizer.quantize(params, state, jnp.asarray(centres)).codes
        used[type(quantizer)] = len(set(np.asarray(codes).tolist()))
    # 32 centroids of k-means need not be the 32 clusters: some of them may be halves.
    assert used[Banked] >= 28 and used[kind] <= 24


def test_what_a_bank_cannot_serve_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match='inner.*put the bank around the inner quantizer'):
        Banked(Residual(VQEMA(4), 2))
    with pytest.raises(ValueError, match='inner'):
        Banked(FSQ((4, 4)))
    with pytest.raises(ValueError, match='revival.*a bank is of no use'):
        Banked(VQEMA(4, revival=None))
    with pytest.raises(ValueError, match='fresh must be at most size, 8'):
        Banked(VQEMA(4), size=8, fresh=16)
