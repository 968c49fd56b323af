"""Codes of a codebook used alike and stages that differ (ERVQ); dropout of stages; logits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vqjax import VQ, VQEMA, GumbelSoftmax, Residual, make, ops, to_spec


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def brute_force_balance(z, codebook, temperature=1.0):
    """KL(uniform || mean of softmax(-squared distance / temperature)) in float64."""
    z, codebook = np.float64(z), np.float64(codebook)
    logits = -np.sum((z[:, None] - codebook) ** 2, axis=-1) / temperature
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p = (p / p.sum(-1, keepdims=True)).mean(0)
    return -np.mean(np.log(len(codebook) * p))


@pytest.mark.parametrize('number', [50, 3000])  # within a tile, and several
def test_code_balance_is_the_divergence_from_uniform_use(number):
    z, codebook = normal(0, number, 3), normal(1, 7, 3)
    mask = jnp.arange(number) % 3 > 0
    spoiled = jnp.where(mask[:, None], z, jnp.nan)
    for temperature in (0.5, 4.0):
        got = ops.code_balance(spoiled, codebook, temperature, mask=mask)
        expected = brute_force_balance(z[mask], codebook, temperature)
        assert float(got) == pytest.approx(expected, rel=1e-4)
    slope = jax.grad(lambda c: ops.code_balance(spoiled, c, mask=mask))(codebook)
    for k, d in ((0, 0), (3, 2)):
        near = np.float64(codebook)
        near[k, d] += 1e-5
        difference = brute_force_balance(z[mask], near) - brute_force_balance(z[mask], codebook)
        assert float(slope[k, d]) == pytest.approx(difference / 1e-5, rel=1e-2, abs=1e-4)
    assert float(ops.code_balance(z, codebook, mask=jnp.zeros(number, bool))) == 0.0


def test_code_balance_is_zero_for_even_use_and_reaches_codes_that_diversity_does_not():
    codebook = jnp.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert float(ops.code_balance(4 * codebook, codebook)) == pytest.approx(0.0, abs=1e-6)
    lost = codebook.at[3].set(jnp.array([0.0, -50.0]))
    z = 0.1 * normal(0, 100, 2)

    def diversity(codebook):
        return ops.imbalance(ops.mean_assignment(z, codebook))

    assert not np.asarray(jax.grad(diversity)(lost))[3].any()
    pull = np.asarray(jax.grad(lambda c: ops.code_balance(z, c))(lost))[3]
    # Minus the gradient points from the code to the vectors nearest to it: K = 4 codes, 2 (c - z).
    nearest = np.asarray(z)[np.argmin(np.asarray(z)[:, 1])]
    np.testing.assert_allclose(pull, 2 * (np.asarray(lost[3]) - nearest) / 4, rtol=0.02, atol=0.05)
    far = jax.grad(lambda c: ops.code_balance(z, c))(lost.at[3].set(1e8))
    assert np.isfinite(far).all()


def test_code_balance_brings_dead_codes_into_use():
    """A codebook started far beside the vectors, moved by gradients alone, with and without it."""
    z = normal(0, 512, 4)

    @jax.jit
    def train(q_weight):
        def loss(params):
            out = q.quantize(params, state, z)
            return out.losses['codebook'] + q_weight * out.losses['balance']

        def step(carry, _):
            params, memory = carry
            updates, memory = optimizer.update(jax.grad(loss)(params), memory)
            return (optax.apply_updates(params, updates), memory), None

        (params, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), length=300)
        return q.quantize(params, state, z).codes

    q = VQ(32, balance=1.0, revival=None)
    optimizer = optax.adam(0.05)
    _, state = q.init(jax.random.key(0), z)
    start = 5 + 0.1 * normal(1, 32, 4)
    without, with_it = (len(np.unique(train(weight))) for weight in (0.0, 0.1))
    assert without < 8 and with_it == 32


def test_the_balance_of_averages_moves_vectors_alone():
    q = VQEMA(8, balance=1.0, commitment=0.0)
    z = normal(0, 64, 3)
    _, state = q.init(jax.random.key(0), z)
    loss, slope = jax.value_and_grad(lambda z: q.quantize((), state, z).loss)(z)
    expected = brute_force_balance(z, q.read_codebook((), state))
    assert float(loss) == pytest.approx(expected, rel=1e-4) and np.asarray(slope).any()


def test_assignments_of_all_pairs_are_not_held():
    z, codebook = jnp.zeros((16_384, 8)), normal(0, 2048, 8)
    loss = jax.jit(jax.grad(ops.code_balance, argnums=(0, 1))).lower(z, codebook).compile()
    all_pairs = 4 * z.shape[0] * len(codebook)
    assert loss.memory_analysis().temp_size_in_bytes < all_pairs / 3


# --- likeness of stages


def brute_force_similarity(a, b):
    a, b = np.float64(a), np.float64(b)
    values = []
    for x, y in zip(a, b, strict=True):
        covariance = np.cov(x, y, bias=True)
        top = (2 * x.mean() * y.mean() + 1e-4) * (2 * covariance[0, 1] + 9e-4)
        bottom = (x.mean() ** 2 + y.mean() ** 2 + 1e-4) * (np.trace(covariance) + 9e-4)
        values.append(top / bottom)
    return np.mean(values)


def test_structural_similarity_is_its_formula():
    a, b = normal(0, 20, 6), normal(1, 20, 6)
    got = float(ops.structural_similarity(a, b))
    assert got == pytest.approx(brute_force_similarity(a, b), rel=1e-4)
    assert float(ops.structural_similarity(a, a)) == pytest.approx(1.0)
    centred = a - a.mean(-1, keepdims=True)
    assert float(ops.structural_similarity(centred, -centred)) < -0.99
    mask = jnp.arange(20) < 12
    hidden = jnp.where(mask[:, None], a, jnp.nan)
    expected = brute_force_similarity(a[:12], b[:12])
    assert float(ops.structural_similarity(hidden, b, mask)) == pytest.approx(expected, rel=1e-4)


def test_a_residual_measures_each_stage_against_the_one_before():
    q = Residual(VQ(8, revival=None), 3, similarity=0.5)
    z = normal(0, 40, 6)
    params, state = q.init(jax.random.key(0), z)
    out = q.quantize(params, state, z)
    vectors = q.stage_vectors(params, state, out.codes)
    pairs = [brute_force_similarity(vectors[s - 1], vectors[s]) for s in (1, 2)]
    np.testing.assert_allclose(out.losses['similarity'], [0.0, *pairs], rtol=1e-4)
    without = Residual(VQ(8, revival=None), 3).quantize(params, state, z).loss
    assert float(out.loss) == pytest.approx(float(without) + 0.5 * sum(pairs), rel=1e-4)

    # Straight through: to z what moving all stages' vectors by the same amount would do.
    def moved(shift):
        similar = ops.structural_similarity
        a, b, c = vectors + shift
        return similar(a, b) + similar(b, c)

    def term(params, z):
        return jnp.sum(q.quantize(params, state, z).losses['similarity'])

    to_params, to_z = jax.grad(term, (0, 1))(params, z)
    np.testing.assert_allclose(to_z, jax.grad(moved)(jnp.zeros_like(z)), rtol=1e-3, atol=1e-6)
    # And to each code the sum over the vectors that it stands for.
    similar = ops.structural_similarity
    slopes = jax.grad(lambda v: similar(v[0], v[1]) + similar(v[1], v[2]))(vectors)
    expected = np.zeros(params.shape)
    for s in range(3):
        np.add.at(expected[s], np.asarray(out.codes[:, s]), np.asarray(slopes[s]))
    np.testing.assert_allclose(to_params, expected, rtol=1e-3, atol=1e-6)


def test_likeness_counts_only_stages_in_use():
    q = Residual(VQEMA(8), 3, dropout='sample', similarity=1.0)
    z = normal(0, 300, 6)
    params, state = q.init(jax.random.key(0), z)
    out = q.quantize(params, state, z, jax.random.key(1))
    vectors = np.asarray(q.stage_vectors(params, state, out.codes))
    for s in (1, 2):
        used = np.asarray(out.codes[:, s]) >= 0
        expected = brute_force_similarity(vectors[s - 1, used], vectors[s, used])
        assert float(out.losses['similarity'][s]) == pytest.approx(expected, rel=1e-3)


def test_likeness_that_means_nothing_is_refused():
    with pytest.raises(ValueError, match='similarity must be 0 where .* got 0.5'):
        Residual(VQEMA(8), 1, similarity=0.5)
    nested = Residual(Residual(VQEMA(8), 2, similarity=0.1), 2, similarity=0.5)
    with pytest.raises(ValueError, match='similarity must be 0 around a Residual .* got 0.5'):
        nested.quantize(*nested.init(jax.random.key(0), normal(0, 64, 4)), normal(0, 64, 4))


# --- vectors of every stage, dropout of some


def test_vectors_of_the_first_stages_add_up_to_the_decoded_first_codes():
    for q in (Residual(VQEMA(8), 4), Residual((VQ(8), VQEMA(4))), Residual(VQ(8), 3, shared=True)):
        z = normal(0, 2, 30, 5)
        params, state = q.init(jax.random.key(0), z)
        codes = q.quantize(params, state, z).codes.at[0, 0, -1].set(-1)
        vectors = q.stage_vectors(params, state, codes)
        assert vectors.shape == (q.num_stages, 2, 30, 5)
        assert not np.asarray(vectors[-1, 0, 0]).any()
        total = np.zeros_like(vectors[0])
        for n in range(q.num_stages):
            total = total + np.asarray(vectors[n])
            first = jnp.where(jnp.arange(q.num_stages) <= n, codes, -1)
            np.testing.assert_array_equal(total, np.asarray(q.decode(params, state, first)))


@pytest.mark.parametrize(
    'dropout, depths, every',
    [
        (ops.StageDropout(), (1, 2, 3, 4, 5, 6), 0),
        (ops.StageDropout(least=3), (3, 4, 5, 6), 0),
        (ops.StageDropout(multiple=2), (2, 4, 6), 0),
        (ops.StageDropout('sample', least=3, multiple=3, share=0.5), (3, 6), 0.5),
    ],
    ids=repr,
)
def test_depths_are_drawn_alike_from_what_there_is(dropout, depths, every):
    q = Residual(VQEMA(4), 6, dropout=dropout)
    z = normal(0, 6000, 2)
    params, state = q.init(jax.random.key(0), z)
    codes = np.asarray(q.quantize(params, state, z, jax.random.key(1)).codes)
    used = codes >= 0
    assert (used == np.sort(used, axis=-1)[:, ::-1]).all()
    found, counts = np.unique(used.sum(-1), return_counts=True)
    assert tuple(found) == depths == dropout.depths(6)
    expected = np.full(len(depths), (1 - every) / len(depths))
    expected[-1] += every
    np.testing.assert_allclose(counts / counts.sum(), expected, atol=0.02)
    assert make(to_spec(q)) == q and to_spec(q)['dropout']['least'] == dropout.least
    assert (q.quantize(params, state, z).codes >= 0).all()


@pytest.mark.parametrize(
    'fields, text',
    [
        ({'by': 'vector'}, "by must be one of .*, got 'vector'"),
        ({'least': 0}, 'least must be an integer from 1 .* got 0'),
        ({'least': 7}, 'least=7 exceeds num_stages=6'),
        ({'multiple': 4}, 'multiple=4 must divide num_stages=6'),
        ({'share': 0.0}, 'share must be above 0 and at most 1, got 0.0'),
        ({'share': float('nan')}, 'share must be .* got nan'),
    ],
)
def test_dropout_that_the_stages_do_not_fit_is_refused(fields, text):
    with pytest.raises(ValueError, match=text):
        Residual(VQEMA(4), 6, dropout=ops.StageDropout(**fields))


# --- logits


@pytest.mark.parametrize(
    'q', [VQEMA(8), VQ(8, metric='cosine'), GumbelSoftmax(8)], ids=lambda q: type(q).__name__
)
def test_the_largest_logit_is_the_code(q):
    z = normal(0, 4, 50, 3)
    params, state = q.init(jax.random.key(0), z)
    logits = q.logits(params, state, z)
    assert logits.shape == (4, 50, 8) and logits.dtype == jnp.float32
    codes = np.asarray(q.quantize(params, state, z).codes)
    np.testing.assert_array_equal(np.asarray(logits).argmax(-1), codes)
    if isinstance(q, VQEMA):
        difference = np.float64(z)[..., None, :] - np.float64(q.read_codebook(params, state))
        np.testing.assert_allclose(logits, -np.sum(difference**2, axis=-1), rtol=1e-4, atol=1e-4)
