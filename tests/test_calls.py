"""What a call is refused for, in a sentence and before it is traced; what is taken as it is."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import every_entry

from vqjax import FSQ, LFQ, VQ, VQEMA, GumbelSoftmax, Product, Projected, Residual, SimVQ, ops
from vqjax.quantizers import REGISTRY, checking
from vqjax.testing import tools

KEY = jax.random.key(0)
Z = jax.random.normal(KEY, (64, 8))
EMA = VQEMA(32, init=ops.batch_rows)
_, STATE = EMA.init(KEY, Z)
SMALL = VQEMA(16, init=ops.batch_rows).init(KEY, Z)[1]
CODES = jnp.zeros(64, jnp.int32)
STAGES = Residual(VQEMA(32, init=ops.batch_rows), 2)
_, STAGED = STAGES.init(KEY, Z)


def quantize(z=Z, key=None, mask=None, state=STATE):
    return EMA.quantize((), state, z, key, mask)


REFUSED = {
    r'mask must be bool of shape \(64,\).* got bool\[64, 1\]': lambda: quantize(
        mask=jnp.ones((64, 1), bool)
    ),
    r'mask must be bool of shape \(64,\).* got int32\[64\]': lambda: quantize(
        mask=jnp.ones(64, jnp.int32)
    ),
    r'codes must have shape \(64,\).* got \(1,\)': lambda: EMA.update((), STATE, Z, CODES[:1]),
    r'codes must have shape \(64,\).* got \(8, 8\)': lambda: EMA.update(
        (), STATE, Z, CODES.reshape(8, 8)
    ),
    r'codes must have shape \(64, 2\)': lambda: STAGES.update((), STAGED, Z, CODES),
    r'codes must have shape \[..., 2\].* got \(3, 3\)': lambda: STAGES.decode(
        (), STAGED, jnp.zeros((3, 3), jnp.int32)
    ),
    r'codes must be integers, got dtype float32': lambda: EMA.decode((), STATE, Z[:, 0]),
    r'codes must be integers, got dtype bool': lambda: FSQ((4,) * 8).decode((), (), Z[:, 0] > 0),
    r'got dtype int32; convert it, z.astype\(jnp.float32\)': lambda: quantize(CODES[:, None]),
    r'got dtype bool; convert it': lambda: LFQ(8).init(KEY, Z > 0),
    r'got dtype complex64; convert it': lambda: quantize(Z + 0j),
    r'got dtype <U1|z must be an array': lambda: quantize([['a'] * 8]),
    r'z must be an array.*inhomogeneous': lambda: quantize([[1.0, 2.0], [3.0]]),
    r'at least one vector .* got z of shape \(0, 8\)': lambda: LFQ(8).quantize((), (), Z[:0]),
    r'got z of shape \(3, 0, 8\)': lambda: STAGES.quantize((), STAGED, jnp.zeros((3, 0, 8))),
    r'at least one feature, got z of shape \(64, 0\)': lambda: Product(VQEMA(4), 2).init(
        KEY, Z[:, :0]
    ),
    r'got z of shape \(\)': lambda: EMA.init(KEY, jnp.zeros(())),
    r'got z of shape \(0, 16\)': lambda: EMA.update((), STATE, jnp.zeros((0, 16)), CODES[:0]),
    r'key must be one random key.* got 3': lambda: quantize(key=3),
    r'key must be one random key': lambda: quantize(key=jax.random.split(KEY, 2)),
    r'2147483647 codes of 1000 features take 8,589.9 GB, and the devices': lambda: jax.eval_shape(
        VQEMA(2**31 - 1).init, KEY, jnp.ones((2, 1000))
    ),
    r'2147483647 codes of 1000 features take': lambda: jax.eval_shape(
        SimVQ(2**31 - 1).init, KEY, jnp.ones((2, 1000))
    ),
    # Another quantizer's state, and another number of features.
    r'do not fit VQEMA\(num_codes=32, .* z of 8 features: state.counts is float32\[16\] where '
    r'float32\[32\] is needed; state.sums is float32\[16, 8\]': lambda: quantize(state=SMALL),
    r'VQEMA\(.*state.counts is float32\[16\]': lambda: EMA.decode((), SMALL, CODES),
    r'Residual\(.*state.counts is float32\[16\]': lambda: STAGES.decode(
        (), SMALL, jnp.zeros((3, 2), jnp.int32)
    ),
    r'z of 4 features: state.sums is float32\[32, 8\] where float32\[32, 4\]': lambda: EMA.update(
        (), STATE, Z[:, :4], CODES
    ),
    r'params is float32\[32, 8\] where nothing is needed': lambda: EMA.quantize(
        STATE.sums, STATE, Z
    ),
    r'state.counts is nothing where float32\[32\] is needed': lambda: quantize(state=()),
    r'state.counts is bfloat16\[32\]': lambda: quantize(
        state=jax.tree.map(lambda x: x.astype(jnp.bfloat16), STATE)
    ),
    r'state.step is float32\[\] where int32\[\]': lambda: quantize(
        state=STATE._replace(step=jnp.zeros(()))
    ),
}


@pytest.mark.parametrize('message', REFUSED)
def test_a_wrong_argument_is_named(message):
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()


@pytest.mark.parametrize('q', every_entry())
def test_every_quantizer_refuses_no_vectors_and_a_mask_of_another_shape(q):
    none, some = (jax.ShapeDtypeStruct((n, *q.grid, 8), jnp.float32) for n in (0, 4))
    made = jax.eval_shape(q.init, KEY, some)
    codes = jax.ShapeDtypeStruct((0, *q.code_shape), jnp.int32)
    with pytest.raises(ValueError, match='at least one vector'):
        jax.eval_shape(q.init, KEY, none)
    with pytest.raises(ValueError, match='at least one vector'):
        jax.eval_shape(q.quantize, *made, none)
    with pytest.raises(ValueError, match='at least one vector'):
        jax.eval_shape(q.update, *made, none, codes)
    with pytest.raises(ValueError, match='mask must be bool'):
        jax.eval_shape(
            lambda p, s, z: q.quantize(p, s, z, None, jnp.ones((*z.shape[:-1], 1), bool)),
            *made,
            some,
        )


def test_what_is_no_code_decodes_to_zeros():
    """Also where 64 bits hold what 32 would wrap into a code."""
    lost = np.array([-1, -7, 2**31 - 1, 2**33 + 3, 2**32, -(2**33)])
    for q in (EMA, FSQ((4,) * 8), LFQ(8), GumbelSoftmax(4), Residual(EMA, 2), Product(LFQ(4), 2)):
        params, state = q.init(KEY, Z)
        codes = np.broadcast_to(lost.reshape(-1, *[1] * len(q.code_shape)), (6, *q.code_shape))
        assert not np.asarray(q.decode(params, state, codes)).any()
        assert not np.asarray(q.decode(params, state, np.full(q.code_shape, q.num_codes))).any()
    counted = EMA.update((), STATE, Z, np.full(64, 32))
    np.testing.assert_allclose(counted.counts, STATE.counts)


def test_arrays_of_numpy_and_lists_are_taken_whatever_their_layout():
    """Big-endian, strided and float64 arrays, lists, and a state as a checkpoint restores it."""
    z, mask = np.asarray(Z), np.arange(64) % 3 > 0
    expected = quantize(Z, mask=jnp.asarray(mask))
    padded = np.zeros((64, 16), np.float32)
    padded[:, ::2] = z
    restored = jax.tree.map(lambda x: np.asarray(x).astype(x.dtype.newbyteorder('>')), STATE)
    for given in (z, z.astype('>f4'), z.astype('>f8'), padded[:, ::2], z.tolist()):
        for m in (mask, mask.tolist()):
            out = quantize(given, mask=m, state=restored)
            np.testing.assert_array_equal(out.codes, expected.codes)
            np.testing.assert_array_equal(out.z_q, expected.z_q)
    codes = np.asarray(expected.codes)
    once = EMA.update((), STATE, Z, expected.codes)
    for dtype in ('>i8', 'i2', 'u4'):
        given = np.where(codes < 0, 99, codes).astype(dtype)
        again = EMA.update((), restored, z, given)
        np.testing.assert_array_equal(again.sums, once.sums)


@pytest.mark.parametrize(
    'q', [VQ(8), GumbelSoftmax(8), Projected(VQ(8), 4), Residual(VQ(8), 2)], ids=repr
)
def test_params_may_be_kept_in_half_precision(q):
    """They are computed with as the float32 of the same values, and get gradients of their own."""
    params, state = q.init(KEY, Z)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    same = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    out, full = q.quantize(half, state, Z), q.quantize(same, state, Z)
    np.testing.assert_array_equal(out.z_q, full.z_q)
    np.testing.assert_array_equal(q.decode(half, state, out.codes), out.z_q)
    grads = jax.grad(lambda p: jnp.sum(q.quantize(p, state, Z).z_q))(half)
    assert {x.dtype for x in jax.tree.leaves(grads)} == {jnp.dtype(jnp.bfloat16)}


def test_the_check_neither_computes_nor_traces_a_start():
    """The form of params and state is told: a decode in a new process does not trace k-means."""
    traced = []

    def start(key, z, k, mask=None, axis_name=None):
        traced.append(z.shape)
        return ops.normal(key, z, k, mask, axis_name)

    q = Residual(Product(VQEMA(4, init=start), 2), 2)
    params, state = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), q.shapes(8))
    codes = q.quantize(params, state, Z).codes
    q.update(params, state, Z, codes)
    assert q.decode(params, state, codes).shape == Z.shape
    assert traced == []
    program = jax.jit(lambda s, z: EMA.quantize((), s, z).codes).lower(STATE, Z).as_text()
    bare = jax.jit(lambda s, z: ops.nearest_codes(z, EMA.read_codebook((), s)))
    assert program.count('\n') == bare.lower(STATE, Z).as_text().count('\n')


def test_every_method_of_the_library_says_that_it_is_checked():
    """Where it is written: what `Base` adds is for quantizers of one's own."""
    for kind in {base for q in REGISTRY.values() for base in q.__mro__}:
        source = inspect.getsource(kind) if kind.__module__.startswith('vqjax') else ''
        for name in checking.OUT_SPECS.keys() & vars(kind).keys():
            if source:
                assert f'    @checked\n    def {name}(' in source, (kind, name)


class Own(VQEMA):
    """As someone may write one: nothing is decorated, and its params are not VQEMA's."""

    def init(self, key, z, mask=None, axis_name=None):
        return {'scale': jnp.ones(z.shape[-1])}, super().init(key, z, mask, axis_name)[1]

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None):
        return super().quantize((), state, z * params['scale'], key, mask, axis_name)

    def update(self, params, state, z, codes, key=None, mask=None, axis_name=None):
        return super().update((), state, z * params['scale'], codes, key, mask, axis_name)


def test_a_quantizer_of_one_s_own_is_checked_as_the_library_s():
    q = Own(32, init=ops.batch_rows)
    params, state = q.init(KEY, Z)
    out = q.quantize(params, state, Z, mask=jnp.arange(64) < 9)
    assert (np.asarray(out.codes[9:]) == -1).all()
    assert q.decode(params, state, out.codes).shape == Z.shape
    with pytest.raises(ValueError, match=r'params.scale is nothing where float32\[8\] is needed'):
        q.quantize((), state, Z)
    with pytest.raises(ValueError, match='mask must be bool'):
        q.quantize(params, state, Z, mask=jnp.ones((64, 1), bool))
    with pytest.raises(ValueError, match='weights must be None'):
        q.update(params, state, Z, out.codes, weights=jnp.ones(64))


def test_a_call_is_refused_after_a_good_one_of_the_same_quantizer():
    """Later calls are checked where their program is found: every wrong one is still named."""
    q = VQEMA(16, init=ops.batch_rows)
    state = q.init(KEY, Z)[1]
    for _ in range(2):
        codes = q.quantize((), state, Z).codes
        q.update((), state, Z, codes)
        q.decode((), state, codes)
    refused = {
        'got dtype int32': lambda: q.quantize((), state, CODES[:, None]),
        'z must be an array': lambda: q.quantize((), state, [['a'] * 8]),
        'masked array': lambda: q.quantize((), state, np.ma.masked_array(Z)),
        'mask must be bool': lambda: q.quantize((), state, Z, mask=CODES),
        'key must be one random key': lambda: q.quantize((), state, Z, 3),
        'is no mapped axis': lambda: q.quantize((), state, Z, axis_name='i'),
        'do not fit': lambda: q.quantize((), STATE, Z),
        r'codes must have shape \(64,\)': lambda: q.update((), state, Z, codes[:1]),
        'weights must be finite': lambda: q.update(
            (), state, Z, codes, weights=np.full(64, -1, np.float32)
        ),
    }
    for message, wrong in refused.items():
        with pytest.raises(ValueError, match=message):
            wrong()
    for wrong in (
        lambda: q.quantize((), state),
        lambda: q.quantize((), state, Z, None, None, None, Z),
        lambda: q.quantize((), state, Z, z=Z),
        lambda: q.quantize((), state, Z, other=Z),
    ):
        with pytest.raises(TypeError):
            wrong()
    # 64 bits that 32 would wrap into a code.
    assert not np.asarray(q.decode((), state, np.array([2**33 + 3]))).any()


def test_every_way_to_give_an_argument_has_one_program():
    """By position or by name, arrays of JAX or of NumPy, and equal quantizers made anew."""
    state = VQEMA(8, init=ops.batch_rows).init(KEY, Z)[1]
    mask = jnp.arange(64) < 9

    def call(*args, **kwargs):
        return VQEMA(8, init=ops.batch_rows).quantize(*args, **kwargs)

    plain, masked = call((), state, Z), call((), state, Z, None, mask)
    # JAX compiles how it takes arrays of NumPy, once for each shape.
    call((), jax.tree.map(np.asarray, state), np.asarray(Z), None, np.asarray(mask))
    before = tools.compilations()
    held = VQEMA(8, init=ops.batch_rows)
    for _ in range(2):
        for q in (call, held.quantize):
            for out in (
                q((), state, Z),
                q((), state, z=Z),
                q(z=Z, state=state, params=()),
                q((), state, np.asarray(Z)),
                q((), jax.tree.map(np.asarray, state), Z),
                q((), state, Z.tolist()),
            ):
                assert isinstance(out.z_q, jax.Array)
                np.testing.assert_array_equal(out.codes, plain.codes)
            np.testing.assert_array_equal(q((), state, Z, mask=mask).codes, masked.codes)
            np.testing.assert_array_equal(q((), state, Z, mask=np.asarray(mask)).z_q, masked.z_q)
    assert tools.compilations() == before
