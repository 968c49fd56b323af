"""Numbers and properties of single quantizers, from their papers and ACCEPTANCE's exact cases."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqjax import (
    FSQ,
    LFQ,
    VQ,
    VQEMA,
    GumbelSoftmax,
    Product,
    Projected,
    RandomProjection,
    Residual,
    SimVQ,
    make,
    ops,
    to_spec,
)


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


# --- FSQ


def test_fsq_case_of_the_reference_page():
    """ACCEPTANCE 1: the first level varies fastest."""
    out = FSQ((3, 5, 4)).quantize((), (), jnp.array([0.25, 0.6, -7.0]))
    assert out.z_q.tolist() == [0.0, 0.5, -1.0]
    assert int(out.codes) == 10


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(3, 9), min_size=1, max_size=4), st.booleans(), st.integers(0, 9))
def test_fsq_codes_number_the_grid(levels, symmetric, seed):
    """decode is a bijection from [0, K) to the grid, and quantize finds the nearest level."""
    q = FSQ(tuple(levels), symmetric=symmetric)
    grid = np.asarray(q.decode((), (), jnp.arange(q.num_codes)))
    assert len({tuple(row) for row in grid}) == math.prod(levels)
    assert grid.min() == -1.0 and np.abs(grid).max() == 1.0
    # First level fastest: consecutive codes differ in the first feature.
    assert (grid[1][1:] == grid[0][1:]).all() and grid[1][0] > grid[0][0]
    z = 2 * normal(seed, 50, len(levels))
    out = q.quantize((), (), z, key=jax.random.key(seed))
    assert out.codes.min() >= 0 and out.codes.max() < q.num_codes
    half = (np.array(levels) - 1) / 2
    if symmetric:
        exact = 2 * np.floor((np.tanh(np.float64(z)) + 1) * half + 0.5) / (2 * half) - 1
        assert np.abs(exact - np.asarray(out.z_q)).max() < 1e-6


def test_fsq_codes_are_exact_near_2_to_the_31():
    """Integers throughout: a float32 sum of strides is wrong above 2^24."""
    levels = (5,) * 13
    assert math.prod(levels) < 2**31
    q = FSQ(levels)
    codes = jnp.array([0, 1, 2**24 + 1, q.num_codes - 2, q.num_codes - 1], jnp.int32)
    vectors = q.decode((), (), codes)
    digits = np.round(np.asarray(vectors) * 2).astype(int) + 2
    again = [sum(int(d) * 5**i for i, d in enumerate(row)) for row in digits]
    assert again == codes.tolist()
    # And back through quantize: z whose bound lands on those levels.
    z = jnp.arctanh(jnp.clip(vectors, -0.99, 0.99) / 1.001)
    assert q.quantize((), (), z).codes.tolist() == codes.tolist()


@pytest.mark.parametrize('scale, expected', [(0.5, 0.14), (1.0, 0.90), (2.0, 0.41)])
def test_fsq_usage_depends_on_the_scale_of_z(scale, expected):
    """FACTS 3: perplexity / K for N(0, s^2) into [8, 8, 8, 5, 5, 5], by independent features."""
    share = 1.0
    z = scale * np.asarray(normal(0, 400_000))
    for level in (8, 5):
        codes = np.asarray(FSQ((level,)).quantize((), (), jnp.asarray(z)[:, None]).codes)
        p = np.bincount(codes, minlength=level) / len(codes)
        share *= (np.exp(-np.sum(p * np.log(np.maximum(p, 1e-300)))) / level) ** 3
    assert share == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize('symmetric', [False, True])
def test_fsq_noise_stays_in_range_and_is_reproducible(symmetric):
    q = FSQ((5, 4, 3), symmetric=symmetric, noise=2.0)
    z = 5 * normal(0, 1000, 3)
    out = q.quantize((), (), z, key=jax.random.key(1))
    assert out.codes.min() >= 0 and out.codes.max() < 60
    assert (out.z_q == q.decode((), (), out.codes)).all()
    assert (out.codes != q.quantize((), (), z).codes).any()
    assert (out.codes == q.quantize((), (), z, key=jax.random.key(1)).codes).all()


# --- the codebook moved by averages


def unit_vectors(step, num=320, dim=64):
    z = np.random.default_rng(step).standard_normal((num, dim))
    return jnp.asarray(z / np.linalg.norm(z, axis=-1, keepdims=True), jnp.float32)


class WithoutTotal(VQEMA):
    """The fault of seeds 000 to 002: smoothed counts without the factor n."""

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


# --- bits and samples


def brute_force_lfq(z, inv_temperature):
    """Entropies by the softmax over all 2^bits codes, in float64."""
    z = np.float64(z)
    codes = np.array(list(itertools.product([-1.0, 1.0], repeat=z.shape[-1])))
    logits = 2 * inv_temperature * z @ codes.T
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)

    def entropy(p):
        return -np.sum(np.where(p > 0, p * np.log(np.maximum(p, 1e-300)), 0), axis=-1)

    return entropy(p).mean(), entropy(p.mean(axis=0))


@pytest.mark.parametrize('num_bits, inv_temperature', [(1, 1.0), (3, 100.0), (8, 0.5), (11, 2.0)])
def test_lfq_entropies_equal_the_sum_over_all_codes(num_bits, inv_temperature):
    z = normal(num_bits, 40, num_bits)
    losses = LFQ(num_bits, inv_temperature=inv_temperature).quantize((), (), z).losses
    single, joint = brute_force_lfq(z, inv_temperature)
    assert float(losses['per_sample_entropy']) == pytest.approx(single, rel=2e-5, abs=1e-6)
    assert float(losses['batch_entropy']) == pytest.approx(joint, rel=2e-5)


def arrays_of(jaxpr):
    for equation in jaxpr.eqns:
        for variable in (*equation.invars, *equation.outvars):
            yield math.prod(getattr(variable.aval, 'shape', ()))
        for inner in jax.core.jaxprs_in_params(equation.params):
            yield from arrays_of(inner)


@pytest.mark.parametrize('q, dim', [(LFQ(18), 18), (FSQ((8,) * 6), 6)])
def test_large_implicit_codebooks_are_never_held(q, dim):
    """2^18 codes: nothing in quantize, its gradient or decode comes near that many numbers."""
    z = jnp.zeros((4, dim))
    run = jax.make_jaxpr(
        jax.grad(lambda z: jnp.sum(q.quantize((), (), z).z_q) + q.quantize((), (), z).loss)
    )
    assert max(arrays_of(run(z).jaxpr)) < q.num_codes // 8
    decode = jax.make_jaxpr(lambda codes: q.decode((), (), codes))(jnp.zeros(4, jnp.int32))
    assert max(arrays_of(decode.jaxpr)) < 1000


def test_lfq_beyond_18_bits_is_bounded_by_its_blocks():
    z = normal(0, 8, 20)
    q = LFQ(20, inv_temperature=1.0)
    blocks = sum(
        float(LFQ(b, inv_temperature=1.0).quantize((), (), part).losses['batch_entropy'])
        for b, part in ((18, z[:, :18]), (2, z[:, 18:]))
    )
    assert float(q.quantize((), (), z).losses['batch_entropy']) == pytest.approx(blocks, rel=1e-5)


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


def test_sim_vq_moves_every_code_with_one_step():
    q = SimVQ(32)
    z = normal(0, 16, 4)
    kernel, state = q.init(jax.random.key(0), z)
    grad = jax.grad(lambda w: q.quantize(w, state, z).loss)(kernel)
    before, after = q.read_codebook(kernel, state), q.read_codebook(kernel - grad, state)
    assert (jnp.abs(after - before).max(axis=-1) > 0).all()
    norms = np.linalg.norm(np.asarray(before), axis=-1)
    assert np.median(norms) == pytest.approx(np.linalg.norm(np.asarray(z), axis=-1).mean(), rel=0.3)


# --- combinators


def test_residual_gradient_is_one_not_the_number_of_stages():
    """ACCEPTANCE 3."""
    q = Residual(VQEMA(8), 8)
    z = normal(0, 1, 2048, 16)
    params, state = q.init(jax.random.key(0), z)
    grad = jax.grad(lambda z: jnp.sum(q.quantize(params, state, z).z_q))(z)
    assert (np.asarray(grad) == 1.0).all()


def test_residual_error_falls_with_every_stage():
    z = normal(0, 2000, 8)
    errors = []
    for stages in (1, 2, 4, 8):
        q = Residual(VQEMA(16), stages)
        params, state = q.init(jax.random.key(0), z)
        errors.append(float(jnp.mean((q.quantize(params, state, z).z_q - z) ** 2)))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.2 * errors[0]


@pytest.mark.parametrize('inner', [FSQ((5,) * 4), FSQ((8, 4, 3, 5), symmetric=True), LFQ(4)])
def test_residual_of_a_fixed_grid_refines_it(inner):
    """Each stage's grid is a power of two finer: inside the grid's range the error vanishes."""
    z = 0.5 * jnp.tanh(normal(0, 500, 4))
    errors = [
        float(jnp.max(jnp.abs(Residual(inner, s).quantize((), (), z).z_q - z))) for s in (1, 4, 8)
    ]
    assert errors[1] < 0.25 * errors[0] and errors[2] < 0.1 * errors[1]


def test_shared_residual_decays_once_a_step():
    q = Residual(VQEMA(4, decay=0.8, revival=None), 8, shared=True)
    z = normal(0, 32, 3)
    params, state = q.init(jax.random.key(0), z)
    after = q.update(params, state, z, q.quantize(params, state, z).codes)
    expected = 0.8 * float(state.counts.sum()) + 0.2 * 8 * 32
    assert float(after.counts.sum()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('kind', ['sample', 'batch'])
def test_residual_dropout_keeps_a_uniform_number_of_stages(kind):
    """n ~ U{1..S}, drawn for each example or once; without a key every stage is used."""
    q = Residual(VQEMA(8), 4, dropout=kind)
    z = normal(0, 400, 2, 3)
    params, state = q.init(jax.random.key(0), z)
    run = jax.jit(lambda key: q.quantize(params, state, z, key).codes)
    depths = []
    for seed in range(40):
        used = np.asarray(run(jax.random.key(seed))) >= 0
        # The first n stages, the same for both vectors of an example.
        assert (used == np.sort(used, axis=-1)[..., ::-1]).all() and (
            used[:, 0] == used[:, 1]
        ).all()
        depths.append(used[:, 0].sum(axis=-1))
    depths = np.stack(depths)
    if kind == 'batch':
        assert (depths == depths[:, :1]).all()
        depths = depths[:, 0]
    assert set(np.unique(depths)) == {1, 2, 3, 4}
    assert np.mean(depths) == pytest.approx(2.5, abs=0.6 if kind == 'batch' else 0.05)
    assert (q.quantize(params, state, z).codes >= 0).all()


def test_beam_search_is_judged_by_the_final_residual():
    """Wider beams never do worse here, and the widest finds the best of all K^S sums."""
    z = normal(0, 300, 4)
    greedy = Residual(VQEMA(6), 3)
    params, state = greedy.init(jax.random.key(0), z)
    errors = []
    for beam in (1, 2, 6, 36):
        out = dataclasses.replace(greedy, beam=beam).quantize(params, state, z)
        errors.append(float(jnp.sum((out.z_q - z) ** 2)))
    assert errors[0] > errors[1] > errors[2] >= errors[3]
    codebooks = np.asarray(
        jax.vmap(lambda s: greedy.inner.decode((), s, jnp.arange(6)))(state), np.float64
    )
    sums = (
        codebooks[0][:, None, None] + codebooks[1][None, :, None] + codebooks[2][None, None]
    ).reshape(-1, 4)
    best = ((np.float64(z)[:, None] - sums) ** 2).sum(-1).min(axis=1).sum()
    assert errors[3] == pytest.approx(best, rel=1e-5)


def test_sums_of_centroids_come_back_to_the_bit():
    """ACCEPTANCE 4: vectors that are sums of centroids."""
    coarse, fine = 16 * normal(0, 8, 4), 0.25 * normal(1, 8, 4)
    q = Residual(VQ(8, revival=None), 2)
    params, state = q.init(jax.random.key(0), normal(2, 100, 4))
    params = jnp.stack([coarse, fine])
    codes = jnp.stack(jnp.meshgrid(jnp.arange(8), jnp.arange(8), indexing='ij'), axis=-1)
    z = coarse[codes[..., 0]] + fine[codes[..., 1]]
    out = q.quantize(params, state, z)
    assert (out.codes == codes).all() and (out.z_q == z).all()


def test_params_inside_a_residual_learn_from_the_task():
    """Their z_q is detached from z but not from what gradients train."""
    q = Residual(Projected(VQEMA(8), 2), 2)
    z = normal(0, 64, 4)
    params, state = q.init(jax.random.key(0), z)
    grad = jax.grad(lambda p: jnp.sum(q.quantize(p, state, z).z_q ** 2))(params)
    assert np.asarray(grad.kernel_out).any()
    alone = jax.grad(lambda z: jnp.sum(q.quantize(params, state, z).z_q))(z)
    np.testing.assert_allclose(np.asarray(alone), 1.0, rtol=1e-6)


def test_product_quantizes_each_group_on_its_own():
    z = normal(0, 128, 6)
    q = Product(VQEMA(8), 3)
    params, state = q.init(jax.random.key(0), z)
    out = q.quantize(params, state, z)
    for group in range(3):
        part = jax.tree.map(lambda x, g=group: x[g], state)
        alone = VQEMA(8).quantize((), part, z[:, 2 * group : 2 * group + 2])
        assert (alone.codes == out.codes[:, group]).all()
        assert (alone.z_q == out.z_q[:, 2 * group : 2 * group + 2]).all()
    assert float(out.loss) == pytest.approx(0.25 * float(jnp.mean((out.z_q - z) ** 2)), rel=1e-5)


def test_projection_starts_as_an_orthonormal_one():
    q = Projected(VQEMA(8), 3)
    params, _ = q.init(jax.random.key(0), normal(0, 64, 8))
    np.testing.assert_allclose(params.kernel_out @ params.kernel_in, np.eye(3), atol=1e-5)


# --- bad configuration


BAD = {
    'num_codes must be an integer from 1': lambda: VQEMA(0),
    'decay must be in': lambda: VQEMA(8, decay=1.0),
    'metric must be one of': lambda: VQ(8, metric='manhattan'),
    'levels must be an integer from 3': lambda: FSQ((8, 2)),
    'levels must be an integer from 2': lambda: FSQ((8, 1), symmetric=True),
    'levels must multiply to at most': lambda: FSQ((8,) * 11),
    'levels must be a list': lambda: FSQ(()),
    'num_bits must be an integer from 1 to 30': lambda: LFQ(31),
    'inv_temperature must be finite': lambda: LFQ(4, inv_temperature=0.0),
    'temperature must be above 0': lambda: GumbelSoftmax(4, temperature=0.0),
    'below must lie in': lambda: ops.Revival(below=2.0),
    'every must be at least 1': lambda: ops.Revival(every=0),
    'source must be one of': lambda: ops.Revival(source='nothing'),
    'gradient must be one of': lambda: VQEMA(8, gradient='none'),
    'init must be one of': lambda: VQEMA(8, init='zeros'),
    'revival must be a Revival or None': lambda: VQEMA(8, revival=2),
    'commitment must be finite': lambda: VQEMA(8, commitment=-1.0),
    'num_stages must be an integer': lambda: Residual(VQEMA(8), 0),
    'num_stages must be 2': lambda: Residual((VQEMA(8), VQEMA(4)), 3),
    'shared must be False': lambda: Residual((VQEMA(8), VQEMA(4)), shared=True),
    'dropout must be one of': lambda: Residual(VQEMA(8), 2, dropout=0.5),
    'beam must be 1': lambda: Residual(LFQ(4), 2, beam=2),
    'inner must be a quantizer': lambda: Product(256, 2),
    'cannot stand in Residual': lambda: Residual(RandomProjection(8, 2), 2),
    'cannot stand in Residual: with hard=False': lambda: Residual(GumbelSoftmax(8, hard=False), 2),
    'cannot stand in Projected': lambda: Projected(RandomProjection(8, 2), 2),
    'of one code_shape': lambda: Residual((VQEMA(8), Product(VQEMA(8), 2))),
    "has no field 'codes'": lambda: make({'name': 'vq_ema', 'num_codes': 8, 'codes': 8}),
    'name must be one of': lambda: make({'name': 'vqema', 'num_codes': 8}),
    "a mapping with a 'name'": lambda: make(['vq_ema']),
    'missing 1 required': lambda: make({'name': 'vq_ema'}),
    'schedule must be the name': lambda: ops.Schedule('no_such_schedule'),
    'does not take': lambda: ops.Schedule('exponential_decay', speed=1),
    'it has no spec': lambda: to_spec(VQEMA(8, gradient=lambda z, z_q: z_q)),
}


@pytest.mark.parametrize('message', BAD)
def test_bad_configuration_is_named(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()


def test_bad_shapes_are_named_at_trace_time():
    with pytest.raises(ValueError, match='num_groups=3 must divide'):
        jax.eval_shape(Product(VQEMA(8), 3).init, jax.random.key(0), jnp.zeros((4, 8)))
    with pytest.raises(ValueError, match='must have 3 features'):
        jax.eval_shape(lambda z: FSQ((3, 5, 4)).quantize((), (), z), jnp.zeros((4, 8)))
    with pytest.raises(ValueError, match='must have 6 features'):
        LFQ(6).init(jax.random.key(0), jnp.zeros((4, 8)))


@pytest.mark.parametrize(
    'q', [VQEMA(4), VQ(4), SimVQ(4), GumbelSoftmax(4), Residual(VQEMA(4), 2), Product(VQ(4), 2)]
)
@pytest.mark.parametrize('z', [np.zeros((9, 4)), np.ones((9, 4)), np.full((9, 4), np.nan)])
def test_an_init_batch_that_cannot_start_a_codebook_is_refused(q, z):
    with pytest.raises(ValueError, match='identical|not finite'):
        q.init(jax.random.key(0), jnp.asarray(z))


def test_a_start_that_reads_no_data_takes_any_batch():
    VQEMA(4, init=ops.normal).init(jax.random.key(0), jnp.zeros((9, 4)))
    FSQ((3, 4)).init(jax.random.key(0), jnp.zeros((9, 2)))


def test_replace_keeps_the_start():
    q = dataclasses.replace(VQEMA(8, init=ops.normal), num_codes=4)
    assert q == VQEMA(4, init='normal') and q.start is ops.normal
    assert dataclasses.replace(q, init=ops.kmeans) == VQEMA(4)
