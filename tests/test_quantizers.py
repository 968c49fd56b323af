"""Quantizers with a codebook: numbers and properties from their papers and exact cases."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vqjax import VQ, VQEMA, GumbelSoftmax, Parallel, RandomProjection, SimVQ, ops


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


# --- the codebook moved by averages


def unit_vectors(step, num=320, dim=64):
    z = np.random.default_rng(step).standard_normal((num, dim))
    return jnp.asarray(z / np.linalg.norm(z, axis=-1, keepdims=True), jnp.float32)


class WithoutTotal(VQEMA):
    """The fault of sources 0 to 2: smoothed counts without the factor n."""

    def read_codebook(self, params, state):
        n = jnp.sum(state.counts)
        size = (state.counts + self.eps) / (n + self.num_codes * self.eps)
        return state.sums / size[:, None]


@pytest.mark.parametrize('kind, live', [(WithoutTotal, 1), (VQEMA, 40)])
def test_collapse_arithmetic(kind, live):
    """ACCEPTANCE 6 and FACTS 1.1: without the factor one code is left after a step or two."""
    q = kind(256, decay=0.95, revival=None)
    state = q.init(jax.random.key(0), unit_vectors(0))[1]
    state = state._replace(counts=jnp.zeros(256), sums=jnp.zeros((256, 64)))
    # Step 0 as there: from an empty codebook every vector starts a code of its own.
    first = jnp.asarray(np.random.default_rng(1).integers(0, 256, 320), jnp.int32)
    state = q.update((), state, unit_vectors(0), first)
    used = []
    step = jax.jit(
        lambda state, z: (c := q.quantize((), state, z).codes, q.update((), state, z, c))
    )
    for i in range(1, 50):
        codes, state = step(state, unit_vectors(i))
        used.append(len(set(codes.tolist())))
    norm = float(jnp.max(jnp.linalg.norm(q.read_codebook((), state), axis=-1)))
    if kind is WithoutTotal:
        assert used[2:] == [1] * len(used[2:]) and norm > 100
    else:
        assert min(used) > live and norm <= 1.0 + 1e-5


def test_a_floor_in_the_metric_explains_1_03():
    """FACTS 1.2: one live code, probabilities clamped to 1e-5, reads 1.0298 and 1.0606."""
    from vqjax.metrics import perplexity

    for num_codes, reported in ((256, 1.0298), (512, 1.0606)):
        counts = np.zeros(num_codes)
        counts[3] = 1000
        p = np.maximum(counts / counts.sum(), 1e-5)
        assert np.exp(-np.sum(p * np.log(p))) == pytest.approx(reported, abs=1e-4)
        assert float(perplexity(jnp.asarray(counts))) == pytest.approx(1.0, abs=1e-6)


def test_an_initialisation_survives_the_first_step():
    z = normal(0, 512, 4)
    q = VQEMA(16, revival=None)
    _, state = q.init(jax.random.key(0), z)
    before = q.read_codebook((), state)
    after = q.read_codebook((), q.update((), state, z, q.quantize((), state, z).codes))
    assert float(jnp.max(jnp.abs(after - before))) < 0.02 * float(jnp.std(z))


def test_codes_stay_in_the_hull_of_their_vectors():
    z = 3 + 0.1 * normal(0, 64, 2)
    q = VQEMA(200)
    _, state = q.init(jax.random.key(0), z)
    for i in range(100):
        codes = q.quantize((), state, z).codes
        state = q.update((), state, z, codes, jax.random.key(i))
    codebook = q.read_codebook((), state)
    assert float(codebook.min()) > float(z.min()) - 1e-3
    assert float(codebook.max()) < float(z.max()) + 1e-3


def test_micro_batches_then_one_update_equal_the_whole_batch():
    """Gradient accumulation: keep the features and codes, update once."""
    q = VQEMA(8, revival=ops.Revival(below=0.9, every=1))
    z = normal(0, 4, 32, 6)
    _, state = q.init(jax.random.key(0), z)
    codes = jnp.stack([q.quantize((), state, part).codes for part in z])
    whole = q.quantize((), state, z.reshape(-1, 6)).codes
    once = q.update((), state, z, codes, jax.random.key(1))
    together = q.update((), state, z.reshape(-1, 6), whole, jax.random.key(1))
    for a, b in zip(once, together, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_temperature_samples_by_distance():
    """p(code) = softmax(-squared distance / temperature), measured over 20,000 draws."""
    q = VQEMA(3, init=ops.normal, temperature=2.0, revival=None)
    _, state = q.init(jax.random.key(0), jnp.zeros((1, 2)))
    codebook = np.asarray(q.read_codebook((), state))
    z = jnp.broadcast_to(jnp.array([0.3, -0.2]), (20_000, 2))
    codes = np.asarray(q.quantize((), state, z, key=jax.random.key(5)).codes)
    share = np.bincount(codes, minlength=3) / len(codes)
    logits = -np.sum((np.array([0.3, -0.2]) - codebook) ** 2, axis=-1) / 2
    expected = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(share, expected, atol=0.012)
    assert len(set(q.quantize((), state, z).codes.tolist())) == 1


# --- the codebook moved by gradients


def test_vq_losses_are_those_of_the_paper():
    """1711.00937 eq. 3: each term's value and where its gradient goes."""
    q = VQ(4, commitment=0.25, codebook=1.0, revival=None)
    z = normal(0, 64, 3)
    params, state = q.init(jax.random.key(0), z)
    loss, (to_params, to_z) = jax.value_and_grad(
        lambda p, z: q.quantize(p, state, z).loss, argnums=(0, 1)
    )(params, z)
    codes = np.asarray(q.quantize(params, state, z).codes)
    difference = np.asarray(z) - np.asarray(params)[codes]
    error = np.mean(difference**2)
    assert float(loss) == pytest.approx(1.25 * error, rel=1e-5)
    np.testing.assert_allclose(
        np.asarray(to_z), 0.25 * 2 * difference / z.size, rtol=1e-4, atol=1e-7
    )
    expected = np.zeros_like(np.asarray(params))
    np.add.at(expected, codes, -2 * difference / z.size)
    np.testing.assert_allclose(np.asarray(to_params), expected, rtol=1e-4, atol=1e-7)


def test_revival_of_a_gradient_codebook_leaves_the_optimizer_alone():
    """The shift moves, params and Adam's moments do not, and the code read is a batch vector."""
    q = VQ(4, init=ops.normal, revival=ops.Revival(below=0.5, every=1, source=ops.largest_error))
    z = 50 + normal(0, 128, 3)
    params, state = q.init(jax.random.key(0), z)
    moments = optax.adam(1e-2).init(params)
    codes = q.quantize(params, state, z).codes
    for _ in range(80):
        state = q.update(params, state, z, codes)
    assert np.asarray(state.shift).any(axis=-1).sum() == 3
    revived = np.asarray(q.read_codebook(params, state))[np.asarray(state.shift).any(axis=-1)]
    distance = np.linalg.norm(revived[:, None] - np.asarray(z)[None], axis=-1).min(axis=1)
    assert distance.max() < 1e-4
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(moments))


def test_sync_nu_hands_the_codebook_its_share():
    z = normal(0, 32, 3)
    q = VQ(4, commitment=0.0, codebook=0.0, sync_nu=0.5, revival=None)
    params, state = q.init(jax.random.key(0), z)
    grad = jax.grad(lambda p: jnp.sum(q.quantize(p, state, z).z_q))(params)
    counts = np.bincount(np.asarray(q.quantize(params, state, z).codes), minlength=4)
    np.testing.assert_allclose(np.asarray(grad), 0.5 * counts[:, None] * np.ones((4, 3)), rtol=1e-6)


def test_affine_moves_unused_codes_too():
    z = normal(0, 64, 3)
    q = VQ(8, affine=True, revival=None)
    params, state = q.init(jax.random.key(0), z)
    far = params._replace(codebook=params.codebook.at[0].set(100.0))
    grads = jax.grad(lambda p: q.quantize(p, state, z + 1).loss)(far)
    assert not np.asarray(grads.codebook)[0].any() and np.asarray(grads.offset).all()
    moved = far._replace(offset=far.offset - 0.1 * grads.offset)
    change = q.read_codebook(moved, state)[0] - q.read_codebook(far, state)[0]
    assert np.asarray(change).any()


# --- samples and projections


def test_gumbel_draws_by_its_logits_and_anneals():
    schedule = ops.Schedule('exponential_decay', init_value=2.0, transition_steps=1, decay_rate=0.5)
    q = GumbelSoftmax(4, temperature=schedule)
    z = normal(0, 256, 3)
    params, state = q.init(jax.random.key(0), z)
    # Started as the nearest centroid.
    nearest = ops.nearest_codes(z, params.codebook)
    assert (q.quantize(params, state, z).codes == nearest).all()
    one = jnp.broadcast_to(z[0], (20_000, 3))
    p = np.asarray(jax.nn.softmax(z[0] @ params.kernel + params.bias))
    codes = np.asarray(q.quantize(params, state, one, key=jax.random.key(3)).codes)
    np.testing.assert_allclose(np.bincount(codes, minlength=4) / 20_000, p, atol=0.012)
    later = q.update(params, state, z, nearest)
    assert float(schedule(later.step)) == pytest.approx(1.0)
    soft = dataclasses.replace(q, hard=False).quantize(params, state, z, key=jax.random.key(0))
    assert (soft.z_q != q.decode(params, state, soft.codes)).any()


def test_random_projection_learns_nothing():
    q = RandomProjection(16, 4)
    z = normal(0, 64, 8)
    params, state = q.init(jax.random.key(0), z)
    np.testing.assert_allclose(np.linalg.norm(np.asarray(state.codes), axis=-1), 1.0, rtol=1e-5)
    projected = np.asarray(z) @ np.asarray(state.projection)
    cosine = projected @ np.asarray(state.codes).T
    assert (np.asarray(q.quantize(params, state, z).codes) == cosine.argmax(axis=-1)).all()
    grad = jax.grad(lambda z: jnp.sum(q.quantize(params, state, z).z_q))(z)
    assert not np.asarray(grad).any()


def test_targets_of_several_codebooks_are_parallel_ones():
    """Each codebook with a projection of its own: the codes of 4 quantizers, side by side."""
    q = Parallel((RandomProjection(16, 4),) * 4)
    z = normal(0, 200, 8)
    params, state = q.init(jax.random.key(0), z)
    codes = np.asarray(q.quantize(params, state, z).codes)
    for i, part in enumerate(state):
        alone = RandomProjection(16, 4).quantize((), part, z).codes
        np.testing.assert_array_equal(codes[:, i], alone)
    # They say different things: no two agree more often than chance gives (1/16, 200 vectors).
    agree = [(codes[:, i] == codes[:, j]).mean() for i in range(4) for j in range(i)]
    assert max(agree) < 0.25 and q.bits == 16 and q.targets_only
    uneven = Parallel((RandomProjection(16, 4), RandomProjection(16, 3)))
    with pytest.raises(ValueError, match=r'one number of features, to be added, got \[3, 4\]'):
        uneven.quantize(*uneven.init(jax.random.key(0), z), z)


def test_sim_vq_moves_every_code_with_one_step():
    q = SimVQ(32)
    z = normal(0, 16, 4)
    kernel, state = q.init(jax.random.key(0), z)
    grad = jax.grad(lambda w: q.quantize(w, state, z).loss)(kernel)
    before, after = q.read_codebook(kernel, state), q.read_codebook(kernel - grad, state)
    assert (jnp.abs(after - before).max(axis=-1) > 0).all()
    norms = np.linalg.norm(np.asarray(before), axis=-1)
    assert np.median(norms) == pytest.approx(np.linalg.norm(np.asarray(z), axis=-1).mean(), rel=0.3)
