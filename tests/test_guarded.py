"""The guard re-fits a collapsed codebook inside the step, alike on every replica."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqjax import VQ, VQEMA, Guarded, Product, Projected, Residual, make, metrics, ops, to_spec
from vqjax.quantizers import count_refits, guard_codebooks

K, D, N = 8, 4, 64
FAR = {'init': 'normal', 'revival': None}  # all vectors are nearest to one code: a collapse


# Runs a few times: quick to compile rather than quick.
quick = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


def batch(seed=0):
    # Small whole numbers far from any normal code: sums are exact, so replicas can be compared
    # to the bit.
    centres = 40 + jax.random.randint(jax.random.key(5), (K, D), -6, 7)
    noise = jax.random.randint(jax.random.key(seed), (N, D), -1, 2)
    return (centres[jnp.arange(N) % K] + noise).astype(jnp.float32)


def run(quantizer, num_steps, z=batch):
    @quick
    def step(state, seed):
        x = z(seed)
        codes = quantizer.quantize(params, state, x).codes
        return quantizer.update(params, state, x, codes, jax.random.key(seed)), codes

    params, state = quick(quantizer.init)(jax.random.key(1), z(0))
    history = []
    for seed in range(num_steps):
        state, codes = step(state, seed)
        history.append(float(metrics.perplexity(ops.code_counts(codes.reshape(-1), K))))
    return params, state, history


@pytest.mark.parametrize('kind', [VQEMA, VQ])
def test_a_collapsed_codebook_is_refitted_once_its_cooldown_is_over(kind):
    _, state, history = run(Guarded(kind(K, **FAR), cooldown=3), 6)
    assert max(history[:3]) < 3  # collapsed until then
    assert min(history[3:]) > 0.9 * K
    assert int(state.refits) == 1 and int(state.last) == 3
    _, _, history = run(kind(K, **FAR), 6)
    assert max(history) < 3


def test_a_refit_codebook_is_that_of_kmeans_and_keeps_what_the_optimizer_holds():
    for kind in (VQEMA, VQ):
        guarded = Guarded(kind(K, **FAR), cooldown=1)
        params, state, _ = run(guarded, 1)
        assert int(state.refits) == 1
        codebook = guarded.read_codebook(params, state)
        z = batch(0)
        error = jnp.mean(jnp.sum((z - codebook[ops.nearest_codes(z, codebook)]) ** 2, axis=-1))
        assert error < 4.0  # the noise alone is 4 * 2/3; the centres are 100 apart
        for held in jax.tree.leaves(params):  # VQ's: still the normal start
            assert float(jnp.max(jnp.abs(held))) < 5


def test_a_healthy_codebook_is_left_alone_to_the_bit():
    plain = VQEMA(K, decay=0.9)
    guarded = Guarded(plain, cooldown=1)
    _, state, _ = run(guarded, 4)
    _, expected, _ = run(plain, 4)
    assert int(state.refits) == 0
    jax.tree.map(np.testing.assert_array_equal, state.inner, expected)


def test_the_cooldown_keeps_refits_apart():
    # One distinct vector: no re-fit can help.
    _, state, _ = run(Guarded(VQEMA(K, **FAR), cooldown=4), 11, lambda seed: jnp.ones((N, D)))
    assert int(state.refits) == 2 and int(state.last) == 8


def test_the_bound_leaves_room_for_few_tokens_and_few_codes():
    # Four vectors a step cannot show ten codes, nor can a codebook of eight.
    def few(seed):
        return batch(seed)[:4]

    _, state, _ = run(Guarded(VQEMA(K, init='batch_rows', revival=None), cooldown=1), 3, few)
    assert int(state.refits) == 0


@pytest.mark.parametrize('kind', [VQEMA, VQ])
def test_replicas_refit_to_the_same_bits_as_one_device(kind):
    guarded = Guarded(kind(K, **FAR), cooldown=1)
    z = batch(3)
    params, state = guarded.init(jax.random.key(1), batch())
    codes = guarded.quantize(params, state, z).codes
    key = jax.random.key(2)
    whole = quick(guarded.update)(params, state, z, codes, key)
    assert int(whole.refits) == 1
    update = functools.partial(guarded.update, key=key, axis_name='r')
    split = quick(jax.vmap(lambda z, c: update(params, state, z, c), axis_name='r'))(
        z.reshape(4, -1, D), codes.reshape(4, -1)
    )
    for one, many in zip(jax.tree.leaves(whole), jax.tree.leaves(split), strict=True):
        np.testing.assert_array_equal(many, np.broadcast_to(one, many.shape))


def test_masked_and_corrupt_vectors_are_no_part_of_a_refit():
    guarded = Guarded(VQEMA(K, **FAR), cooldown=1)
    z = batch(3)
    params, state = guarded.init(jax.random.key(1), batch())
    codes = guarded.quantize(params, state, z).codes
    clean = quick(guarded.update)(params, state, z, codes, jax.random.key(2))
    padded = jnp.concatenate([z, jnp.full((8, D), 1e6), jnp.full((4, D), jnp.nan)])
    mask = jnp.arange(len(padded)) < N
    codes = guarded.quantize(params, state, padded, mask=mask).codes
    found = quick(guarded.update)(params, state, padded, codes, jax.random.key(2), mask)
    jax.tree.map(np.testing.assert_array_equal, found, clean)


@pytest.mark.parametrize('outer', [
    lambda q: Residual(q, 2), lambda q: Product(q, 2), lambda q: Projected(q, 4),
])  # fmt: skip
def test_a_guard_works_inside_combinators(outer):
    quantizer = guard_codebooks(outer(VQEMA(K, **FAR)), cooldown=2)
    assert make(to_spec(quantizer)) == quantizer
    _, state, _ = run(quantizer, 4)
    assert int(count_refits(state)) >= 1
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(state))


def test_what_has_no_codebook_of_its_own_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match='guard the inner quantizer'):
        Guarded(Residual(VQEMA(K), 2))
    with pytest.raises(ValueError, match='least must be a perplexity'):
        Guarded(VQEMA(K), least=0.5)
    with pytest.raises(ValueError, match='cooldown'):
        Guarded(VQEMA(K), cooldown=0)
    assert guard_codebooks(make({'name': 'fsq', 'levels': [3, 3]})).levels == (3, 3)
