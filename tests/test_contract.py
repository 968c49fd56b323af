"""The contract that every quantizer keeps, one table over all of them (ACCEPTANCE, properties).

A new quantizer is judged by adding one line to `support.table`.
"""

import functools
import inspect
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import SHIPPED, table

import vqjax
from vqjax import ops
from vqjax.quantizers import Codebook, make, to_spec

TABLE = table()
SHAPE = (4, 24, 8)
every_quantizer = pytest.mark.parametrize(
    'q',
    [pytest.param(q, id=name) for name, q in TABLE.items()],
)


def batch(seed, shape=SHAPE):
    return jax.random.normal(jax.random.key(seed), shape)


class Step:
    """The compiled steps of a quantizer, shared by its tests: compiling is most of their time."""

    def __init__(self, q):
        self.q = q
        self.traces = 0
        self.params, self.state = jax.jit(q.init)(jax.random.key(0), batch(0))
        self.run = jax.jit(self._run)
        self.plain = jax.jit(self._plain)
        # As users compile, each on its own: what is fused differs, what they compute may not.
        self.quantize = jax.jit(q.quantize, compiler_options=SHIPPED)
        self.decode = jax.jit(q.decode, compiler_options=SHIPPED)

    def _run(self, state, z, mask, key):
        """A training step with gradients: (to params, to state, to z), out, decoded, new state."""
        self.traces += 1
        q = self.q
        leaves, structure = jax.tree.flatten(state)
        learnable = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]

        def loss(params, floats, z):
            given = iter(floats)
            mixed = [
                next(given) if ok else leaf for ok, leaf in zip(learnable, leaves, strict=True)
            ]
            out = q.quantize(params, jax.tree.unflatten(structure, mixed), z, key, mask)
            return jnp.sum(jnp.sin(out.z_q.astype(jnp.float32))) + out.loss, out

        floats = [leaf for ok, leaf in zip(learnable, leaves, strict=True) if ok]
        grads, out = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(self.params, floats, z)
        decoded = q.decode(self.params, state, out.codes)
        return grads, out, decoded, q.update(self.params, state, z, out.codes, key, mask)

    def _plain(self, z):
        """A training step without mask and randomness: out, new state."""
        out = self.q.quantize(self.params, self.state, z)
        return out, self.q.update(self.params, self.state, z, out.codes)


step_of = functools.cache(Step)
ALL = jnp.ones(SHAPE[:-1], bool)
KEY = jax.random.key(7)


def finite(tree):
    return all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(tree))


def assert_same(a, b, exact=True):
    chex.assert_trees_all_equal_structs(a, b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if exact:
            np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
        else:
            np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=2e-5, atol=2e-5)


@every_quantizer
def test_codes_decode_to_z_q_to_the_bit(q):
    step = step_of(q)
    z = batch(1)
    out = step.quantize(step.params, step.state, z, KEY)
    decoded = step.decode(step.params, step.state, out.codes)
    assert out.codes.shape == z.shape[:-1] + q.code_shape
    assert out.codes.dtype == jnp.int32
    assert out.loss.shape == () and out.loss.dtype == jnp.float32
    codes = np.asarray(out.codes)
    dropped = getattr(q, 'dropout', None) is not None
    assert codes.max() < q.num_codes and codes.min() >= (-1 if dropped else 0)
    assert q.bits > 0
    np.testing.assert_array_equal(np.asarray(decoded), np.asarray(out.z_q))
    # The same in one program with a training step, and without jit.
    _, out, decoded, _ = step.run(step.state, z, ALL, KEY)
    np.testing.assert_array_equal(np.asarray(decoded), np.asarray(out.z_q))
    np.testing.assert_array_equal(
        np.asarray(q.decode(step.params, step.state, out.codes)), np.asarray(out.z_q)
    )


@every_quantizer
def test_masked_vectors_count_nowhere(q):
    step = step_of(q)
    z, mask = batch(1), np.array(ALL)
    mask[1:3, 5:] = False
    mask[3] = False
    garbage = (
        jnp.where(jnp.asarray(mask)[..., None], z, jnp.nan).at[3].set(jnp.inf).at[3, 0].set(1e6)
    )
    grads, out, _, after = step.run(step.state, z, jnp.asarray(mask), KEY)
    grads_other, other, _, after_other = step.run(step.state, garbage, jnp.asarray(mask), KEY)
    to_z = grads[2]
    hidden = np.asarray(out.codes)[~mask]
    assert (hidden == -1).all()
    assert (np.asarray(out.z_q)[~mask] == 0).all()
    assert (np.asarray(to_z)[~mask] == 0).all()
    # What stands at masked positions changes nothing...
    np.testing.assert_array_equal(np.asarray(out.codes), np.asarray(other.codes))
    assert_same((out.loss, grads), (other.loss, grads_other))
    assert finite((out.loss, grads))
    assert_same(after, after_other)


@every_quantizer
def test_a_masked_batch_equals_the_batch_without_those_rows(q):
    step = step_of(q)
    z = batch(1)
    masked = jnp.broadcast_to(jnp.arange(SHAPE[0])[:, None] < 2, SHAPE[:-1])
    short = jax.jit(
        lambda z: (
            (out := q.quantize(step.params, step.state, z, KEY)),
            q.update(step.params, step.state, z, out.codes, KEY),
        )
    )
    _, out, _, after = step.run(step.state, z, masked, KEY)
    alone, after_alone = short(z[:2])
    np.testing.assert_array_equal(np.asarray(out.codes[:2]), np.asarray(alone.codes))
    np.testing.assert_allclose(out.loss, alone.loss, rtol=1e-4, atol=1e-5)
    assert_same(after, after_alone, exact=False)


@every_quantizer
def test_a_batch_without_any_real_vector_changes_no_statistics(q):
    step = step_of(q)
    _, out, _, after = step.run(step.state, batch(1), jnp.zeros_like(ALL), KEY)
    for before, now in zip(jax.tree.leaves(step.state), jax.tree.leaves(after), strict=True):
        if jnp.issubdtype(before.dtype, jnp.floating):
            np.testing.assert_allclose(np.asarray(now), np.asarray(before), rtol=1e-4, atol=1e-5)
    assert finite((out.loss, out.z_q))


@every_quantizer
def test_update_keeps_the_state_s_form_and_three_steps_trace_once(q):
    step = step_of(q)
    state = step.state
    for seed in range(3):
        _, _, _, after = step.run(state, batch(seed), ALL, jax.random.key(seed))
        chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
        assert finite(after)
        state = after
    assert step.traces == 1


@every_quantizer
def test_gradients_reach_z_and_never_the_state(q):
    step = step_of(q)
    (to_params, to_state, to_z), _, _, _ = step.run(step.state, batch(1), ALL, KEY)
    assert finite((to_params, to_z))
    for leaf in jax.tree.leaves(to_state):
        assert not np.asarray(leaf).any()
    assert np.asarray(to_z).any() != q.targets_only
    if jax.tree.leaves(to_params):
        assert any(np.asarray(leaf).any() for leaf in jax.tree.leaves(to_params))


@every_quantizer
def test_replicas_agree_with_one_device(q):
    """Four replicas under vmap against the whole batch, one of them with nothing but padding."""
    params, state = step_of(q).params, step_of(q).state
    # Integers: sums are exact in any order.
    z = jnp.round(4 * batch(2))
    mask = jnp.ones(SHAPE[:-1], bool).at[2].set(False)

    def run(z, mask):
        out = q.quantize(params, state, z, KEY, mask, 'i')
        return out.codes, out.loss, q.update(params, state, z, out.codes, KEY, mask, 'i')

    _, whole, _, after = step_of(q).run(state, z, mask, KEY)
    codes, loss, shard_after = jax.jit(jax.vmap(run, axis_name='i'))(z[:, None], mask[:, None])
    np.testing.assert_array_equal(np.asarray(codes[:, 0]), np.asarray(whole.codes))
    np.testing.assert_allclose(np.mean(loss), whole.loss, rtol=1e-4, atol=1e-5)
    for replica in range(SHAPE[0]):
        assert_same(jax.tree.map(lambda x, r=replica: x[r], shard_after), after, exact=False)


@every_quantizer
def test_order_of_the_batch_does_not_matter(q):
    step = step_of(q)
    z = batch(3)
    order = np.random.default_rng(0).permutation(SHAPE[1])
    out, after = step.plain(z)
    shuffled, after_shuffled = step.plain(z[:, order])
    np.testing.assert_array_equal(np.asarray(shuffled.codes), np.asarray(out.codes[:, order]))
    assert_same(after, after_shuffled, exact=False)


@every_quantizer
def test_half_precision_inputs(q):
    """The codes of the same values in float32, z_q in the input's dtype, the loss in float32."""
    step = step_of(q)
    z = batch(4).astype(jnp.bfloat16)
    out = jax.jit(lambda z: q.quantize(step.params, step.state, z))(z)
    full, _ = step.plain(z.astype(jnp.float32))
    np.testing.assert_array_equal(np.asarray(out.codes), np.asarray(full.codes))
    assert out.z_q.dtype == z.dtype and out.loss.dtype == jnp.float32
    np.testing.assert_array_equal(np.asarray(out.z_q), np.asarray(full.z_q.astype(z.dtype)))


@every_quantizer
def test_non_finite_vectors_do_not_poison_the_state(q):
    step = step_of(q)
    z = batch(5).at[0, 3, 2].set(jnp.nan).at[1, 4].set(jnp.inf).at[2, 0, 0].set(-jnp.inf)
    (to_params, _, to_z), out, _, after = step.run(step.state, z, ALL, KEY)
    assert finite(after)
    bad = np.zeros(SHAPE[:-1], bool)
    bad[0, 3] = bad[1, 4] = bad[2, 0] = True
    codes = np.asarray(out.codes).reshape(*SHAPE[:-1], -1)
    assert (codes[bad] == -1).any(axis=-1).all()
    assert np.isfinite(np.asarray(out.z_q)[~bad]).all()
    # The loss may show them; what others learn from does not.
    assert finite((to_params, to_z[~bad]))
    # The rest is counted as if those vectors were masked.
    _, _, _, masked = step.run(step.state, batch(5), jnp.asarray(~bad), KEY)
    if 'Product(' not in repr(q):  # a group without the bad feature still counts
        assert_same(after, masked, exact=False)


@every_quantizer
def test_plain_data_and_back(q):
    spec = to_spec(q)
    again = make(spec)
    assert again == q and hash(again) == hash(q)
    assert to_spec(again) == spec
    assert pickle.loads(pickle.dumps(q)) == q
    names = {**vars(vqjax), **vars(ops)}
    assert eval(repr(q), names) == q  # noqa: S307 - our own repr


@every_quantizer
def test_argument_names_are_the_protocol_s(q):
    names = {
        'init': ['key', 'z', 'mask', 'axis_name'],
        'quantize': ['params', 'state', 'z', 'key', 'mask', 'axis_name'],
        'update': ['params', 'state', 'z', 'codes', 'key', 'mask', 'axis_name', 'weights'],
        'decode': ['params', 'state', 'codes'],
    }
    for method, expected in names.items():
        assert list(inspect.signature(getattr(q, method)).parameters) == expected
    assert isinstance(q, vqjax.Quantizer)


@pytest.mark.parametrize('scale', [0.125, 16.0])
def test_vq_ema_scales_with_its_inputs(scale):
    """All inputs times s: the codebook times s, the same codes (powers of two: to the bit)."""
    q = vqjax.VQEMA(8, revival=ops.Revival(below=0.5, every=1))

    def train(scale):
        _, state = q.init(jax.random.key(0), scale * batch(0))
        for seed in range(4):
            codes = q.quantize((), state, scale * batch(seed)).codes
            state = q.update((), state, scale * batch(seed), codes, jax.random.key(seed))
        return codes, q.read_codebook((), state)

    codes, codebook = train(1.0)
    scaled_codes, scaled_codebook = train(scale)
    np.testing.assert_array_equal(np.asarray(codes), np.asarray(scaled_codes))
    np.testing.assert_array_equal(np.asarray(codebook * scale), np.asarray(scaled_codebook))


def test_every_named_quantizer_is_in_the_table():
    kinds = {type(q) for q in TABLE.values()}
    assert kinds == set(vqjax.quantizers.REGISTRY.values())
    assert issubclass(vqjax.VQEMA, Codebook)
