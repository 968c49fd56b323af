"""Each fault does what the implementation it is taken from did, and nothing else."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import configuration

from vqjax import FSQ, VQ, VQEMA, Projected, nn, ops, quantizers
from vqjax.studies.autopsy import faults

K, D, N = 16, 8, 96
QUICK = {'init': 'normal', 'revival': None}  # where the start does not matter


def batch(seed=0):
    centres = jax.random.normal(jax.random.key(9), (12, D))
    noise = 0.1 * jax.random.normal(jax.random.key(seed), (N, D))
    return centres[jnp.arange(N) % 12] + noise


@functools.partial(
    jax.jit, static_argnums=0, compiler_options={'xla_backend_optimization_level': 0}
)
def start(quantizer):
    return quantizer.init(jax.random.key(1), batch())


@functools.partial(jax.jit, static_argnums=0)
def one_step(quantizer, params, state, step):
    z = batch(step)
    codes = quantizer.quantize(params, state, z).codes
    return quantizer.update(params, state, z, codes, jax.random.key(step))


def after_updates(quantizer, num_steps):
    params, state = start(quantizer)
    for step in range(num_steps):
        state = one_step(quantizer, params, state, step)
    return params, state


def gradient_of(quantizer, of):
    params, state = start(quantizer)
    return jax.jit(jax.grad(lambda z: of(quantizer.quantize(params, state, z))))(batch(3))


def test_a_stored_codebook_is_that_of_vqema_as_long_as_nothing_is_wrong():
    fields = {'decay': 0.9, 'init': 'batch_rows'}
    stored, derived = faults.StoredVQEMA(K, **fields), VQEMA(K, **fields)
    (p, s), (q, t) = after_updates(stored, 12), after_updates(derived, 12)
    np.testing.assert_array_equal(stored.read_codebook(p, s), derived.read_codebook(q, t))


@pytest.mark.parametrize('kind', [faults.DiscardedInit, faults.ZeroCounts])
def test_a_lost_start_reads_as_the_healthy_one_until_the_first_update(kind):
    quantizer, healthy = kind(K, decay=0.95), VQEMA(K, decay=0.95)
    np.testing.assert_array_equal(
        quantizer.read_codebook(*start(quantizer)), healthy.read_codebook(*start(healthy))
    )


def lengths(quantizer, state):
    return np.linalg.norm(quantizer.read_codebook((), state), axis=-1)


def test_a_discarded_start_is_erased_by_the_first_update():
    quantizer = faults.DiscardedInit(K, decay=0.95, revival=None)
    params, state = start(quantizer)
    codes = quantizer.quantize(params, state, batch()).codes
    counts = np.asarray(ops.code_counts(codes, K))
    before, after = lengths(quantizer, state), lengths(quantizer, after_updates(quantizer, 1)[1])
    # A code with c vectors keeps (1 - g) c / (g + (1 - g) c) of its length.
    kept = 0.05 * counts / (0.95 + 0.05 * counts)
    np.testing.assert_allclose(after, kept * before, rtol=0.02, atol=1e-3)


def test_counts_from_zero_inflate_a_code_by_the_factor_of_the_formula():
    quantizer = faults.ZeroCounts(K, decay=0.99, revival=None)
    params, state = start(quantizer)
    codes = quantizer.quantize(params, state, batch()).codes
    counts = np.asarray(ops.code_counts(codes, K))
    before, after = lengths(quantizer, state), lengths(quantizer, after_updates(quantizer, 1)[1])
    used = counts > 0
    factor = (0.99 + 0.01 * counts[used]) / (0.01 * counts[used])
    np.testing.assert_allclose(after[used], factor * before[used], rtol=0.01)


def test_a_stale_revival_is_taken_back_by_the_next_update():
    fields = {'decay': 0.9, 'init': 'normal', 'revival': ops.Revival(below=0.5, every=4)}
    taken_back = {}
    for kind in (faults.StaleRevival, faults.StoredVQEMA):
        quantizer = kind(K, **fields)
        before = quantizer.read_codebook(*after_updates(quantizer, 3))
        params, state = after_updates(quantizer, 4)
        at_look = quantizer.read_codebook(params, state)
        # A batch that gives the revived codes nothing: code 0 takes all of it.
        state = quantizer.update(params, state, batch(7), jnp.zeros(N, jnp.int32))
        after = quantizer.read_codebook(params, state)
        revived = np.linalg.norm(at_look - before, axis=-1) > 0.5
        assert revived.sum() >= 4
        taken_back[kind] = np.linalg.norm(after - at_look, axis=-1)[revived] > 0.5
    assert taken_back[faults.StaleRevival].all()
    assert not taken_back[faults.StoredVQEMA][1:].any()


def test_without_straight_through_no_task_gradient_reaches_z():
    of = lambda out: jnp.sum(out.z_q**2)  # noqa: E731
    assert not gradient_of(faults.NoStraightThrough(K, **QUICK), of).any()
    assert gradient_of(VQEMA(K, **QUICK), of).all()


@pytest.mark.parametrize('weight', [0.01, 0.25, 4.0])
def test_a_detached_commitment_is_a_number_without_gradient_whatever_its_weight(weight):
    of = lambda out: out.loss  # noqa: E731
    assert not gradient_of(faults.DetachedCommitment(K, commitment=weight, **QUICK), of).any()
    assert gradient_of(VQEMA(K, commitment=weight, **QUICK), of).any()


def test_a_clamped_loss_stands_at_100_without_gradient_while_the_real_one_runs_away():
    quantizer = faults.ClampedLoss(K, decay=0.95)
    params, state = start(quantizer)
    out = quantizer.quantize(params, state, batch())
    assert float(out.loss) == 100.0
    assert 0.25 * float(out.losses['commitment']) > 100.0
    assert not gradient_of(quantizer, lambda out: out.loss).any()


def test_swapped_coefficients_exchange_the_gradients_of_the_two_sides():
    params, state = VQ(K, **QUICK).init(jax.random.key(1), batch())

    def both(quantizer):
        run = lambda p, z: quantizer.quantize(p, state, z).loss  # noqa: E731
        return jax.jit(jax.grad(run, argnums=(0, 1)))(params, batch(3))

    (code, vector), (code_swapped, vector_swapped) = (
        both(VQ(K, **QUICK)),
        both(faults.SwappedCoefficients(K, **QUICK)),
    )
    np.testing.assert_allclose(code_swapped, code / 4, rtol=1e-5)
    np.testing.assert_allclose(vector_swapped, vector * 4, rtol=1e-5)


def test_a_codebook_weight_has_no_gradient_under_ema():
    one, quarter = (faults.WeightedVQEMA(K, codebook=w, **QUICK) for w in (1.0, 0.25))
    of = lambda out: out.loss  # noqa: E731
    np.testing.assert_array_equal(gradient_of(one, of), gradient_of(quarter, of))


@pytest.mark.parametrize('revival', [
    faults.AbsoluteThreshold(every=1),
    faults.AbsoluteThreshold(every=1, least=0.01, of_total=True),
])  # fmt: skip
def test_an_absolute_threshold_calls_uniform_use_dead(revival):
    num_codes = 256
    codebook = jax.random.normal(jax.random.key(0), (num_codes, D))
    rows = jax.random.normal(jax.random.key(1), (num_codes, D))
    given = ops.Batch(rows, jnp.arange(num_codes), jnp.ones(num_codes, bool), codebook)
    counts = jnp.full(num_codes, 64 / num_codes)
    assert revival(None, given, codebook, counts, jnp.int32(1)).changed.all()
    relative = ops.Revival(every=1)
    assert not relative(None, given, codebook, counts, jnp.int32(1)).changed.any()


def test_revival_at_every_step_replaces_what_one_batch_did_not_use():
    codebook = jax.random.normal(jax.random.key(0), (K, D))
    codes = jnp.arange(N) % 4
    given = ops.Batch(batch(), codes, jnp.ones(N, bool), codebook)
    revived = faults.EveryStep()(None, given, codebook, jnp.ones(K), jnp.int32(3))
    np.testing.assert_array_equal(revived.changed, np.arange(K) >= 4)


def test_viewing_features_as_two_tokens_interleaves_them():
    quantizer = faults.ReshapedFeatures(VQEMA(K), 2, shared=True)
    z = jnp.arange(8.0)[None]
    np.testing.assert_array_equal(quantizer._grouped(z)[0], [[0, 2, 4, 6], [1, 3, 5, 7]])


def test_fsq_on_tiny_features_has_one_code():
    z = jax.random.normal(jax.random.key(0), (512, D))
    for kind, least, most in ((faults.UnscaledFSQ, 1, 1), (FSQ, 100, 512)):
        quantizer = Projected(kind((8, 8, 8, 5)), 4)
        params, state = quantizer.init(jax.random.key(1), z)
        codes = np.unique(quantizer.quantize(params, state, z).codes)
        assert least <= len(codes) <= most


def test_faults_overrule_one_method_each():
    for kind in (
        faults.MissingTotal, faults.DiscardedInit, faults.ZeroCounts, faults.StaleRevival,
        faults.NoStraightThrough, faults.DetachedCommitment, faults.ClampedLoss,
        faults.SwappedCoefficients, faults.AbsoluteThreshold, faults.EveryStep,
        faults.ReshapedFeatures, faults.UnscaledFSQ,
    ):  # fmt: skip
        own = [n for n, f in vars(kind).items() if inspect.isfunction(f)]
        # A start of its own has shapes that `Base` finds out.
        own = [n for n in own if n == '__call__' or not n.startswith('__') and n != 'shapes']
        assert len(own) == 1, (kind, own)


def test_a_spec_names_a_fault_and_gives_back_the_healthy_quantizer_it_stands_in_for():
    specs = configuration('autopsy')['quantizers']
    for name, given in specs.items():
        made = faults.make(given)
        inner = getattr(made, 'inner', made)
        if given['name'] in faults.KINDS:
            assert type(made) is faults.KINDS[given['name']], name
        healthy = quantizers.make(faults.spec(made))
        assert type(healthy) in quantizers.REGISTRY.values() and isinstance(made, type(healthy))
        assert healthy.num_codes == made.num_codes and healthy.bits == made.bits, name
        assert getattr(healthy, 'decay', None) == getattr(made, 'decay', None), name
        revival = (given.get('revival') or {}).get('name')
        assert revival is None or type(inner.revival) is faults.REVIVALS[revival]
        updates = isinstance(made, faults.EvalUpdated)
        assert faults.bridge(made) is (faults.EvalUpdates if updates else nn.Quantize), name
    assert faults.make(specs['vq_ema']) == VQEMA(256, decay=0.95)
    assert faults.make(specs['codebook_weight_quarter']).codebook == 0.25
    assert type(faults.make(specs['unscaled_fsq']).inner) is faults.UnscaledFSQ
    assert faults.make(specs['absolute_threshold_share']).revival.of_total
    with pytest.raises(ValueError, match='missing_totl'):
        faults.make({'name': 'missing_totl', 'num_codes': 4})
