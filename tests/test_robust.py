"""Whatever it is given: a sentence that names it, or a result that keeps the contract.

Generated specs, shapes, dtypes and masks, most of them traced and not computed; JAX's debugging
flags; and scales at which squares leave float32.
"""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import every_entry

from vqjax import (
    FSQ,
    LFQ,
    VQ,
    VQEMA,
    Banked,
    Guarded,
    GumbelSoftmax,
    RandomProjection,
    Residual,
    make,
    ops,
)
from vqjax.quantizers import REGISTRY

KEY = jax.random.key(0)
PARTS = [
    *REGISTRY.values(),
    *ops.BRIDGES.values(),
    ops.Sinkhorn,
    ops.StageDropout,
    ops.DiVeQ,
    ops.Beam,
]
NAMES = re.compile(
    r'\b(spec|inner|z|mask|schedule|below|every|source|'
    + '|'.join({f for kind in PARTS for f in kind.__dataclass_fields__})
    + r')\b'
)


def often(good, *bad):
    """Nearly always one of `good`, one time in 25 what no such field may hold."""
    return st.sampled_from([*good * 24 * len(bad), *bad * len(good)])


COUNT = often([2, 4, 8], 0, -1, True, 2.0, math.nan, '4', None)
WEIGHT = often([0.0, 0.5, 1], -1.0, math.nan, math.inf, True, '1', None)
FLAG = often([True, False], 'no', 1, None)
ASSIGNMENT = often(
    ['nearest_assignment', {'epsilon': 0.5}, {'iters': 2}],
    {'epsilon': 0.0}, {'iters': 0}, {'iters': 2.5}, {'steps': 1}, 'sinkhorn', 3,
)  # fmt: skip
DROPOUT = often(
    [None, 'sample', 'batch', {'share': 0.5}, {'by': 'batch', 'least': 2}, {'multiple': 2}],
    {'share': 0.0}, {'least': 9}, {'multiple': 3.0}, {'by': 'row'}, {'stages': 1}, 0.5,
)  # fmt: skip
CODEBOOK = {
    'num_codes': COUNT,
    'decay': often([0.0, 0.9], 1.0, math.nan, True),
    'commitment': WEIGHT,
    'metric': often(['euclidean', 'cosine'], 'manhattan'),
    'init': often(['kmeans', 'normal', 'batch_rows'], 'zeros', 3),
    'assignment': ASSIGNMENT,
    'gradient': often(
        ['straight_through', 'rotate', 'directional', {'variance': 0.1}], 'none', {'variance': -1}
    ),
    'temperature': WEIGHT,
    'revival': often(
        [None, {'below': 0.5, 'every': 1, 'source': 'split'}, {'source': 'error_rows'}],
        {'below': math.nan},
        {'every': 0.5},
        {'speed': 1},
        2,
    ),
}
SHARE = often([0.0, 0.0, 0.5, 1.0], -0.1, 1.5, True, math.nan)
LEVELS = often([(3, 4, 5, 3), (4, 4), (3,) * 8], (), (2, math.nan), 5, (0, 3), ('3',))
BRIDGE = often(
    [
        {'name': 'linear'}, {'name': 'low_rank', 'rank': 2},
        {'name': 'vq_bridge', 'patch': 2, 'width': 4, 'depth': 1, 'heads': 2},
        {'name': 'vq_bridge', 'patch': 4, 'width': 4, 'depth': 1, 'heads': 1},
    ],
    {'name': 'low_rank', 'rank': 0}, {'name': 'vq_bridge', 'heads': 5}, {'name': 'square'}, None,
    {'rank': 2},
)  # fmt: skip
SCHEDULE = {'schedule': 'exponential_decay', 'init_value': 2.0, 'transition_steps': 3}
FIELDS = {
    'vq_ema': CODEBOOK
    | {'eps': WEIGHT, 'balance': WEIGHT, 'diversity': WEIGHT, 'cross_entropy': WEIGHT},
    'vq': CODEBOOK
    | {
        'codebook': WEIGHT,
        'diversity': WEIGHT,
        'affine': FLAG,
        'sync_nu': WEIGHT,
        'balance': WEIGHT,
        'wasserstein': WEIGHT,
        'orthogonality': WEIGHT,
        'active_orthogonality': WEIGHT,
        'cross_entropy': WEIGHT,
    },
    'sim_vq': {'num_codes': COUNT, 'commitment': WEIGHT, 'assignment': ASSIGNMENT},
    'bridged': {
        'num_codes': COUNT,
        'bridge': BRIDGE,
        'learned': FLAG,
        'commitment': WEIGHT,
        'codebook': WEIGHT,
        'assignment': ASSIGNMENT,
        'gradient': CODEBOOK['gradient'],
    },
    'ibq': {
        'num_codes': COUNT,
        'entropy': WEIGHT,
        'index': WEIGHT,
        'commitment': WEIGHT,
        'metric': often(['dot', 'euclidean'], 'cosine'),
        'inv_temperature': WEIGHT,
        'init': CODEBOOK['init'],
    },
    'space_filling': {
        'num_codes': often([4, 8], 3, 0),
        'points': often([1, 2, 4], 0, 1.5),
        'variance': WEIGHT,
        'init': CODEBOOK['init'],
    },
    'latent_quantization': {
        'levels': often([(3,) * 8, (4, 4), (3, 4, 5, 3)], (), 5, (0, 3), (2, math.nan), ('3',)),
        'commitment': WEIGHT,
        'codebook': WEIGHT,
    },
    'qinco': {
        'num_codes': COUNT,
        'num_stages': often([1, 2, 3], 0, 1.5, True),
        'hidden': often([4], 0, 2.5),
        'blocks': often([1, 0], -1, '1'),
        'partial_sums': WEIGHT,
        'candidates': often([None, 1], 99, True),
    },
    'fsq': {
        'levels': LEVELS,
        'symmetric': FLAG,
        'noise': WEIGHT,
        'bound': often(['tanh', 'ifsq'], 'relu', 1.6, None),
        'perturbed': SHARE,
    },
    'fsp': {
        'levels': LEVELS,
        'bound': often(['tanh', 'erf', 'laplace'], 'cauchy', 'relu', None),
        'inverse': FLAG,
        'perturbed': SHARE,
        'mean': WEIGHT,
        'kurtosis': WEIGHT,
    },
    'lfq': {
        'num_bits': often([4, 8], 0, 31, True, 4.0),
        'entropy': WEIGHT,
        'spherical': FLAG,
        'scale': often([0.5, 2.0], 0.0, math.inf),
        'bits_per_code': often([1, 3, 30], 0, 31),
    },
    'binary_mapper': {'num_bits': often([1, 4], 0, 21, 2.5), 'kl': WEIGHT, 'free_bits': WEIGHT},
    'gumbel': {
        'num_codes': COUNT,
        'diversity': WEIGHT,
        'temperature': often(
            [1.0, SCHEDULE | {'decay_rate': 0.5}], 0.0, math.nan, SCHEDULE, {'schedule': 'adam'}
        ),
    },
    'random_projection': {'num_codes': COUNT, 'dim': COUNT},
}
BEAM = often([1, 1, 2, {'size': 2, 'weights': (1.0, 0.5)}], 0, {'size': 1, 'weights': (1.0,)})
OUTER = {
    'residual': {'num_stages': often([1, 2, 3], 0, 1.5, True), 'shared': FLAG,
                 'dropout': DROPOUT, 'beam': BEAM, 'similarity': WEIGHT},
    'product': {'num_groups': often([1, 2, 4], 3, 0, True), 'shared': FLAG},
    'projected': {'dim': often([4, 2], 0, math.nan), 'normalize': FLAG,
                  'hidden': often([0, 4], -1, True), 'dropout': often([0.0], 0.5, 1.0, '')},
    'rotated': {},
    'banked': {'size': often([16], 0), 'fresh': often([4], 99)},
    'guarded': {'least': often([2.0], math.nan, 0.5), 'cooldown': often([1], 0)},
}  # fmt: skip


def spec(kinds, required=(), **more):
    """A mapping of one of these kinds, some of its optional fields left out."""
    must = {
        'num_codes', 'levels', 'num_bits', 'dim', 'num_stages', 'num_groups', 'bridge', 'scales',
        'sizes', *required,
    }  # fmt: skip

    def of(name):
        fields = kinds[name] | more
        held = {k: v for k, v in fields.items() if k in must}
        free = {k: v for k, v in fields.items() if k not in must}
        return st.fixed_dictionaries({'name': st.just(name), **held}, optional=free)

    return st.sampled_from(sorted(kinds)).flatmap(of)


LEAF = spec(FIELDS)
NESTED = spec(OUTER, ['inner'], inner=LEAF)
# Of grids: z is [..., 2, 3, D], or [..., 6, D].
SCALES = {
    'scales': often([(1, (2, 3)), ((2, 3),), ((1, 1), (1, 3), (2, 3))], (), (2, 1), 4, (0, 2)),
    'phi': often([(), (0.5,), (1.0, 0.25)], (0.0,), (0.5,) * 4, 0.5, (math.nan,)),
    'dropout': DROPOUT,
}
SIZES = {'sizes': often([(2, 4), (5, 1)], (2,), (0, 6), 6, (2.0, 4))}
INNER = st.one_of(LEAF, LEAF, NESTED)
GRIDS = st.one_of(
    spec({'multi_scale': SCALES}, ['inner'], inner=INNER),
    spec({'levels': SIZES}, ['inner'], inner=st.tuples(INNER, INNER)),
    spec({'levels': SIZES}, ['inner'], inner=INNER.map(lambda plain: (plain, plain))),
)
AROUND = spec({'projected': OUTER['projected']}, ['inner'], inner=GRIDS)
SPECS = st.one_of(
    LEAF, NESTED, spec(OUTER, ['inner'], inner=NESTED), GRIDS, AROUND,
    spec(OUTER, ['inner'], inner=GRIDS),
)  # fmt: skip
VECTORS, BAD_SHAPES = [(8,), (6, 8), (2, 3, 8), (6, 4), (6, 2)], [(), (0, 8), (6, 0), (6, 7)]


def with_shape(plain):
    """A spec and the shape of a z, nearly always one that its grids fit."""
    fit = VECTORS
    if 'multi_scale' in str(plain):
        fit = [(2, 3, 8), (2, 2, 3, 8), (2, 2, 3, 4)]
    elif "'name': 'levels'" in str(plain):
        fit = [(6, 8), (2, 6, 8), (2, 6, 4)]
    return st.tuples(st.just(plain), often(fit * 4, *BAD_SHAPES, *VECTORS))


DTYPES = often(['float32', 'float32', 'bfloat16', 'float16'], 'int32', 'bool', 'complex64')
MASKS = st.sampled_from(['none', 'none', 'right', 'right', 'wide', 'whole'])


def program(q, masked, z, mask, key):
    """All of the protocol once; what the result must look like is in `check`."""
    mask = mask if masked else None
    params, state = q.init(KEY, z, mask)

    def loss(params, z):
        out = q.quantize(params, state, z, key, mask)
        return out.loss + jnp.sum(out.z_q.astype(jnp.float32)), out

    grads, out = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, z)
    after = q.update(params, state, z, out.codes, key, mask)
    return params, state, out, grads, after, q.decode(params, state, out.codes)


def check(q, z, result):
    params, state, out, grads, after, decoded = result
    rows = z.shape[: z.ndim - 1 - len(q.grid)]
    assert out.codes.shape == rows + q.code_shape and out.codes.dtype == jnp.int32
    assert out.z_q.shape[:-1] == z.shape[:-1] and out.z_q.dtype == z.dtype
    assert q.targets_only or out.z_q.shape == z.shape
    assert decoded.shape == out.z_q.shape and decoded.dtype == jnp.float32
    assert out.loss.shape == () and out.loss.dtype == jnp.float32
    assert {x.dtype for x in out.losses.values()} <= {jnp.dtype(jnp.float32)}
    same = [(state, after), (params, grads[0]), (z, grads[1])]
    for a, b in same:
        assert jax.tree.map(lambda x: (x.shape, x.dtype), a) == jax.tree.map(
            lambda x: (x.shape, x.dtype), b
        )


def quantizer_or_sentence(plain, run):
    """What `run` makes of the quantizer of a spec; None where it is refused in a sentence."""
    try:
        q = make(plain)
        return q, run(q)
    except ValueError as error:
        assert NAMES.search(str(error)), f'names nothing: {error}'
        return None


@pytest.mark.parametrize('number', [25, pytest.param(100, marks=pytest.mark.slow)])
def test_any_spec_keeps_the_contract_or_is_refused_in_a_sentence(number):
    given_some = given(SPECS.flatmap(with_shape), DTYPES, MASKS, st.booleans())
    few = settings(max_examples=number, derandomize=True, deadline=None, database=None)
    few(given_some(check_spec))()


def check_spec(spec_and_shape, dtype, mask, keyed):
    plain, shape = spec_and_shape
    z = jax.ShapeDtypeStruct(shape, dtype)
    rows = {'wide': (*shape[:-1], 1), 'whole': shape}.get(mask, shape[:-1])
    masks = jax.ShapeDtypeStruct(rows, bool)
    key = KEY if keyed else None

    def run(q):
        traced = functools.partial(program, q, mask != 'none', key=key)
        return jax.eval_shape(traced, z, masks)

    held = quantizer_or_sentence(plain, run)
    if held is not None:
        check(held[0], z, held[1])
        assert make(plain) == held[0] and hash(make(plain)) == hash(held[0])


@settings(max_examples=6, derandomize=True, deadline=None, database=None)
@given(st.one_of(NESTED, LEAF, GRIDS), st.booleans(), st.booleans())
def test_any_spec_computes_what_it_promises(plain, masked, keyed):
    z = jax.random.normal(jax.random.key(1), (24, 8)).at[3].set(jnp.nan).at[5, 2].set(jnp.inf)
    mask = jnp.ones(24, bool).at[3].set(False).at[5].set(False)
    key = KEY if keyed else None
    z = z if masked else jnp.where(mask[:, None], z, 0.5)

    def run(q):
        grids = (x.reshape(-1, *q.grid, *x.shape[1:]) for x in (z, mask))
        return jax.jit(functools.partial(program, q, masked, key=key))(*grids)

    held = quantizer_or_sentence(plain, run)
    if held is None:
        return
    q, result = held
    check(q, z.reshape(-1, *q.grid, 8), result)
    assert all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(result))
    codes = np.asarray(result[2].codes)
    assert codes.max() < q.num_codes and codes.min() >= -1
    if q.coded_in_training:
        np.testing.assert_allclose(result[-1], result[2].z_q, rtol=1e-5, atol=1e-6)


# --- JAX's flags


def traced(q):
    rows = 4, *(q.grid or (6,))
    z, mask = jax.ShapeDtypeStruct((*rows, 8), jnp.float32), jax.ShapeDtypeStruct(rows, bool)
    return z, jax.eval_shape(functools.partial(program, q, True, key=KEY), z, mask)


@pytest.mark.parametrize('q', every_entry())
def test_every_quantizer_is_traced_under_strict_flags(q):
    """No rank and no dtype promoted by accident, and nothing of 64 bits where there are some."""
    strict = jax.numpy_rank_promotion('raise'), jax.numpy_dtype_promotion('strict')
    with strict[0], strict[1], jax.enable_x64(True):
        z, result = traced(q)
    check(q, z, result)
    wide = {jnp.dtype(jnp.float64), jnp.dtype(jnp.int64)}
    assert not wide & {x.dtype for x in jax.tree.leaves(result)}


@pytest.mark.parametrize('q', every_entry(lambda q: isinstance(q, Banked | Guarded | VQ)))
def test_no_traced_array_outlives_its_trace(q):
    with jax.checking_leaks():
        traced(q)


@pytest.mark.parametrize(
    'q',
    [VQEMA(4), GumbelSoftmax(4, diversity=0.1), Banked(VQEMA(4), size=8, fresh=4)],
    ids=repr,
)
def test_a_step_runs_without_transfers_and_nan_and_in_64_bits(q):
    z = jax.random.normal(KEY, (24, 8)).at[3].set(jnp.nan)
    mask = jnp.ones(24, bool).at[3].set(False)
    run = jax.jit(functools.partial(program, q, True, key=KEY))
    expected = run(z, mask)
    with jax.transfer_guard('disallow'), jax.debug_nans(True):
        again = run(z, mask)
    with jax.enable_x64(True):
        wide = jnp.asarray(np.asarray(z, np.float64))
        double = jax.jit(functools.partial(program, q, True, key=KEY))(wide, mask)
    assert double[2].z_q.dtype == np.float64
    for a, b, c in zip(*map(jax.tree.leaves, (expected, again, double)), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
        np.testing.assert_allclose(np.asarray(a), np.asarray(c), rtol=1e-5, atol=1e-6)


# --- scales


@pytest.mark.parametrize('scale', [1e15, 1e10, 1e-10, 1e-15])
@pytest.mark.parametrize(
    'q', [VQEMA(8), VQ(8, metric='cosine'), GumbelSoftmax(8), Residual(VQEMA(8), 2)], ids=repr
)
def test_codes_are_right_at_any_scale_whose_squares_fit(q, scale):
    """Against float64; the codes of the same vectors at scale 1 elsewhere."""
    z = np.random.default_rng(0).normal(size=(64, 8))
    large = (z * scale).astype(np.float32)
    params, state = q.init(KEY, large)
    out = q.quantize(params, state, large)
    after = q.update(params, state, large, out.codes, KEY)
    result = (params, state, out.z_q, out.loss, after, q.decode(params, state, out.codes))
    assert all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(result))
    assert len(np.unique(np.asarray(out.codes), axis=0)) > 4
    if isinstance(q, VQEMA | VQ):
        codebook = np.asarray(q.read_codebook(params, state), np.float64)
        rows = large.astype(np.float64)
        if q.metric == 'cosine':
            rows = rows / np.linalg.norm(rows, axis=-1, keepdims=True)
        distance = ((rows[:, None] - codebook) ** 2).sum(-1)
        taken = distance[np.arange(64), np.asarray(out.codes)]
        assert (taken <= distance.min(1) * (1 + 1e-4) + 1e-12 * (q.metric == 'cosine')).all()


@pytest.mark.parametrize('scale', [1e20, 1e17, 1e-17, 1e-40])
@pytest.mark.parametrize('q', [VQEMA(4), VQ(4, metric='cosine'), GumbelSoftmax(4)], ids=repr)
def test_a_start_at_another_scale_is_refused(q, scale):
    z = (np.random.default_rng(0).normal(size=(64, 8)) * scale).astype(np.float32)
    with pytest.raises(ValueError, match='scale z, so that|are identical'):
        q.init(KEY, z)


@pytest.mark.parametrize(
    'q', [VQEMA(4, metric='cosine'), LFQ(8, spherical=True), RandomProjection(4, 4)], ids=repr
)
def test_vectors_beyond_float32_s_squares_are_seen(q):
    z = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
    params, state = q.init(KEY, z)
    out = q.quantize(params, state, (z * 1e30).astype(np.float32))
    assert (np.asarray(out.codes) == -1).all() and not np.asarray(out.z_q).any()
    # Where no length is needed they are as any other: products, signs, and a bounded grid.
    for other in (VQEMA(4), LFQ(8), FSQ((3,) * 8)):
        out = other.quantize(*other.init(KEY, z), (z * 1e30).astype(np.float32))
        assert (np.asarray(out.codes) >= 0).all() and np.isfinite(np.asarray(out.z_q)).all()
        assert np.isinf(float(out.loss)) != isinstance(other, FSQ)
    near = q.quantize(params, state, (z * 1e-30).astype(np.float32))
    assert (np.asarray(near.codes) >= 0).all() and np.isfinite(float(near.loss))


def test_a_revival_and_a_start_take_numbers_only():
    for wrong in (math.nan, True, '3', 0):
        with pytest.raises(ValueError, match='every must be'):
            ops.Revival(every=wrong)
        with pytest.raises(ValueError, match='k must be'):
            ops.kmeans(KEY, jnp.ones((4, 2)), wrong)
