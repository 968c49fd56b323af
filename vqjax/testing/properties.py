"""The properties that every quantizer keeps, each a function of a `Trial`."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import vqjax
from vqjax import ops
from vqjax.quantizers import REGISTRY, make, to_spec
from vqjax.testing import claims
from vqjax.testing.trial import KEY, Trial, assert_finite, assert_same

# What draws random numbers in a traced program.
_DRAWS = ('random_', 'threefry', 'rng_')


def codes_decode_to_z_q_to_the_bit(trial: Trial) -> None:
    """`decode(codes)` is `z_q`, under jit and not, beside a training step or alone."""
    q = trial.q
    out = trial.quantize(trial.params, trial.state, trial.batch(6, trial.many))
    assert out.codes.shape == trial.codes_of(trial.many), out.codes.shape
    assert out.codes.dtype == jnp.int32, out.codes.dtype
    assert out.loss.shape == () and out.loss.dtype == jnp.float32, out.loss
    assert q.bits > 0, f'bits is {q.bits}'
    codes = np.asarray(out.codes)
    # Where vectors say themselves how many stages they use, the other codes are -1.
    least = -1 if 'VariableRate(' in repr(q) else 0
    assert codes.max() < q.num_codes and codes.min() >= least
    assert np.asarray(q.coded(out.codes)).all(), 'a vector without any code'
    decoded = trial.decode(trial.params, trial.state, out.codes)
    np.testing.assert_array_equal(np.asarray(decoded), np.asarray(out.z_q))
    taken = trial.run(trial.batch(1))
    np.testing.assert_array_equal(np.asarray(taken.decoded), np.asarray(taken.out.z_q))
    bare = trial.on_rows.decode(trial.params, trial.state, taken.out.codes)
    np.testing.assert_array_equal(np.asarray(bare), np.asarray(taken.out.z_q))


def masked_vectors_count_nowhere(trial: Trial) -> None:
    """Code -1 and zeros where the mask hides; what stands there changes nothing."""
    z, mask = trial.batch(1), _holes(trial)
    garbage = jnp.where(jnp.asarray(mask)[..., None], z, jnp.nan)
    garbage = garbage.at[3].set(jnp.inf).at[3, 0].set(1e6)
    taken = trial.run(z, jnp.asarray(mask))
    other = trial.run(garbage, jnp.asarray(mask))
    hidden = np.asarray(trial.by_vector(taken.out.codes))[~mask]
    assert (hidden == -1).all(), 'a masked vector has a code'
    may, must = claims.places(trial.q, mask.reshape(-1, *getattr(trial.q, 'grid', ())))
    # Whatever other axes codes have, that of the places is the last one.
    codes = np.asarray(taken.out.codes)
    coded = np.any(codes.reshape(len(may), -1, *may.shape[1:]) >= 0, axis=1)
    assert not (coded & ~may).any(), 'a place without any real vector has a code'
    assert not (must & ~coded).any(), 'a place with a real vector has no code'
    assert (np.asarray(taken.out.z_q)[~mask] == 0).all(), 'a masked z_q is not zero'
    if trial.on_rows is trial.q:  # codes cut off after a scale decode to a coarse picture
        assert (np.asarray(taken.decoded)[~mask] == 0).all(), 'a code of -1 is not the zero vector'
    assert (np.asarray(taken.gradients.z)[~mask] == 0).all(), 'a gradient reaches masked z'
    np.testing.assert_array_equal(np.asarray(taken.out.codes), np.asarray(other.out.codes))
    assert_same(taken.out.loss, other.out.loss, 'loss')
    assert_same(taken.gradients, other.gradients, 'gradients')
    assert_finite((taken.out.loss, taken.gradients), 'loss and gradients')
    assert_same(taken.after, other.after, 'state')


def _holes(trial):
    """A mask with single holes, ends and a whole row hidden."""
    mask = np.ones(trial.rows, bool)
    mask[0, ::5] = False
    mask[1:3, 5:] = False
    mask[3] = False
    return mask


def a_masked_batch_equals_the_batch_without_those_rows(trial: Trial) -> None:
    """Half the batch masked is the other half alone."""
    taken, (_, alone, after) = trial.same_in_whole(), trial.half()
    np.testing.assert_array_equal(np.asarray(taken.out.codes[:2]), np.asarray(alone.codes))
    np.testing.assert_allclose(taken.out.loss, alone.loss, rtol=1e-4, atol=1e-5)
    assert_same(taken.after, after, 'state', exact=False)


def a_batch_without_any_real_vector_changes_no_statistics(trial: Trial) -> None:
    """Nothing but padding moves nothing."""
    taken = trial.run(trial.batch(1), jnp.zeros_like(trial.all))
    for before, now in zip(jax.tree.leaves(trial.state), jax.tree.leaves(taken.after), strict=True):
        if jnp.issubdtype(before.dtype, jnp.floating):
            np.testing.assert_allclose(np.asarray(now), np.asarray(before), rtol=1e-4, atol=1e-5)
    assert_finite((taken.out.loss, taken.out.z_q), 'output')


def update_keeps_the_state_s_form_and_three_steps_trace_once(trial: Trial) -> None:
    """Structure, shapes and dtypes of the state stay, so that nothing is compiled again."""
    state = trial.state
    for seed in range(3):
        after = trial.run(trial.batch(seed), key=jax.random.key(seed), state=state).after
        assert jax.tree.structure(state) == jax.tree.structure(after), after
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype), (a, b)
        assert_finite(after, 'state')
        state = after
    assert trial.traces == 1, f'traced {trial.traces} times'


def gradients_reach_z_and_never_the_state(trial: Trial) -> None:
    """Finite to params and z, some to each of both, none to the state."""
    slopes = trial.run(trial.batch(1)).gradients
    assert_finite((slopes.params, slopes.z), 'gradient')
    for leaf in slopes.state:
        assert not np.asarray(leaf).any(), 'a gradient reaches the state'
    reaches, targets = np.asarray(slopes.z).any(), getattr(trial.q, 'targets_only', False)
    assert reaches != targets, f'a gradient reaches z: {reaches}, targets_only={targets}'
    leaves = jax.tree.leaves(slopes.params)
    assert not leaves or any(np.asarray(leaf).any() for leaf in leaves), (
        'no gradient reaches params'
    )


def order_of_the_batch_does_not_matter(trial: Trial) -> None:
    """Rows (or grids) in another order: their codes in that order, and the same state."""
    z = trial.batch(6, trial.many)
    out, after = trial.without_key(trial.params, trial.state, z)
    codes = out.codes
    order = np.random.default_rng(0).permutation(codes.shape[1])
    rows = (order[:, None] * trial.places + np.arange(trial.places)).ravel()
    shuffled, other = trial.without_key(trial.params, trial.state, z[:, rows])
    np.testing.assert_array_equal(np.asarray(shuffled.codes), np.asarray(codes[:, order]))
    assert_same(after, other, 'state', exact=False)


def half_precision_inputs(trial: Trial) -> None:
    """The codes of the same values in float32, z_q in the input's dtype, the loss in float32."""
    for seed in range(16):  # few vectors each, of which rounding decides about one in a hundred
        z, out, _ = trial.half(seed)
        full = trial.same_in_whole(seed).out
        np.testing.assert_array_equal(np.asarray(out.codes), np.asarray(full.codes[:2]))
        assert out.z_q.dtype == z.dtype and out.loss.dtype == jnp.float32, out
        expected = np.asarray(full.z_q[:2].astype(z.dtype))
        np.testing.assert_array_equal(np.asarray(out.z_q), expected)


def non_finite_vectors_do_not_poison_the_state(trial: Trial) -> None:
    """NaN and infinities get code -1, the state of the batch without them, no others' gradient."""
    z = trial.batch(5).at[0, 3, 2].set(jnp.nan).at[1, 4].set(jnp.inf).at[2, 0, 0].set(-jnp.inf)
    taken = trial.run(z)
    assert_finite(taken.after, 'state')
    bad = np.zeros(trial.rows, bool)
    bad[0, 3] = bad[1, 4] = bad[2, 0] = True
    codes = np.asarray(trial.by_vector(taken.out.codes)).reshape(*trial.rows, -1)
    assert (codes[bad] == -1).any(axis=-1).all()
    assert np.isfinite(np.asarray(taken.out.z_q)[~bad]).all(), 'a bad vector spoils others'
    # The loss may show them; what others learn from does not.
    assert_finite((taken.gradients.params, taken.gradients.z[~bad]), 'gradients of the others')
    masked = trial.run(trial.batch(5), jnp.asarray(~bad))
    if 'Product(' not in repr(trial.q):  # a group without the bad feature still counts
        assert_same(taken.after, masked.after, 'state', exact=False)


def only_a_key_draws(trial: Trial) -> None:
    """No random number is drawn without a key: programs are traced, not run."""
    if _fits_by_kmeans(trial.q):
        return  # whose seeding has a key of its own
    z = trial.batch(6, trial.many)
    program = trial.without_key.trace(trial.params, trial.state, z)
    drawn = sorted({p for p in _primitives(program.jaxpr.jaxpr) if p.startswith(_DRAWS)})
    assert not drawn, f'random numbers are drawn without a key: {drawn}'


def the_same_call_gives_the_same_program(trial: Trial) -> None:
    """Traced again after all that: nothing was kept from the calls before."""
    arguments = trial.params, trial.state, trial.half()[0], KEY
    first = trial.with_key.trace(*arguments).jaxpr  # the program that ran
    second = jax.jit(lambda *args: trial._only_key(*args)).trace(*arguments).jaxpr
    assert str(first) == str(second), 'a second trace gives another program'
    for a, b in zip(first.consts, second.consts, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def replicas_agree_with_one_device(trial: Trial) -> None:
    """Two replicas, one of them with next to nothing but padding, against the whole batch.

    They are two devices under `shard_map` where there are two, else `vmap`'s.
    """
    # Integers: sums are exact in any order.
    z, mask = jnp.round(4 * trial.batch(2)), trial.all.at[2].set(False).at[3, 1:].set(False)
    whole = trial.run(z, mask)
    split = [x.reshape(2, -1, *x.shape[1:]) for x in (z, mask)]
    codes, loss, after = trial.replicate(trial.on_rows, trial.params, trial.state, *split)
    np.testing.assert_array_equal(codes.reshape(whole.out.codes.shape), np.asarray(whole.out.codes))
    for replica in range(2):
        np.testing.assert_allclose(loss[replica], whole.out.loss, rtol=1e-4, atol=1e-5)
        part = jax.tree.map(lambda x, r=replica: x[r], after)
        assert_same(part, whole.after, f'state of replica {replica}', exact=False)


def plain_data_and_back(trial: Trial) -> None:
    """`make(to_spec(q)) == q`; q pickles, hashes, and its repr reads as the call."""
    q = trial.q
    with _registered(q) as kinds:
        spec = to_spec(q)
        again = make(spec)
        assert again == q and hash(again) == hash(q), f'{spec} makes {again!r}'
        assert to_spec(again) == spec, f'{spec} becomes {to_spec(again)}'
    if not any('<locals>' in kind.__qualname__ for kind in kinds.values()):
        assert pickle.loads(pickle.dumps(q)) == q, 'another comes out of its pickle'
    names = {**vars(vqjax), **vars(ops), **kinds}
    assert eval(repr(q), names) == q, repr(q)  # noqa: S307 - a repr of a frozen dataclass


def argument_names_are_the_protocol_s(trial: Trial) -> None:
    """Every method takes its arguments by the names of the protocol."""
    names = {
        'init': ['key', 'z', 'mask', 'axis_name'],
        'quantize': ['params', 'state', 'z', 'key', 'mask', 'axis_name'],
        'update': ['params', 'state', 'z', 'codes', 'key', 'mask', 'axis_name', 'weights'],
        'decode': ['params', 'state', 'codes'],
    }
    for method, expected in names.items():
        found = list(inspect.signature(getattr(trial.q, method)).parameters)
        assert found == expected, f'{method} takes {found}, not {expected}'
    assert isinstance(trial.q, vqjax.Quantizer)


def kinds_in(q: Any) -> dict[str, type]:
    """Classes of a quantizer and of those inside it, by name."""
    inner = getattr(q, 'inner', ())
    found = {type(q).__name__: type(q)}
    for part in inner if isinstance(inner, tuple) else (inner,):
        found |= kinds_in(part)
    return found


@contextlib.contextmanager
def _registered(q):
    """Kinds of your own under their class's name in REGISTRY, as long as it takes."""
    kinds = kinds_in(q)
    added = {name: kind for name, kind in kinds.items() if kind not in REGISTRY.values()}
    REGISTRY.update(added)
    try:
        yield kinds
    finally:
        for name in added:
            del REGISTRY[name]


def _fits_by_kmeans(q):
    """Whether an update may run k-means, by `Guarded` or `ops.kmeans_rows`."""
    if not dataclasses.is_dataclass(q):
        return False
    if isinstance(q, vqjax.Guarded) or getattr(q, 'source', None) is ops.kmeans_rows:
        return True
    values = [getattr(q, field.name) for field in dataclasses.fields(q)]
    return any(_fits_by_kmeans(x) for v in values for x in (v if isinstance(v, tuple) else (v,)))


def _primitives(jaxpr):
    """Names of the primitives of a traced program, those inside others too."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        inner = jax.tree.leaves(list(equation.params.values()), is_leaf=_is_program)
        for program in filter(_is_program, inner):
            yield from _primitives(getattr(program, 'jaxpr', program))


def _is_program(x):
    return hasattr(x, 'eqns') or hasattr(x, 'jaxpr')
