"""The properties that JAX's own tools ask for: export, donation, restoring, calls outside jit."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from vqjax.testing.trial import KEY, Trial, assert_same

# How many vectors (or grids) an exported program is tried on.
SIZES = (1, 7, 64)
_compilations = [0]


def programs_take_any_batch_and_come_from_a_file(trial: Trial) -> None:
    """`jax.export` of a step, the batch symbolic, params and state arguments: codes of any size."""
    q = trial.q
    grid = tuple(getattr(q, 'grid', ()))
    rows = trial.batch(6, (1, SIZES[-1] * trial.places))
    # As many of the same vectors as the other checks have compiled for.
    whole = jnp.resize(rows, (*trial.many, trial.dim))
    codes = np.asarray(trial.plain(whole).codes).reshape(-1, *q.code_shape)[: SIZES[-1]]
    z = rows.reshape(-1, *grid, trial.dim)
    (batch,) = export.symbolic_shape('batch')
    shape = jax.ShapeDtypeStruct((batch, *z.shape[1:]), z.dtype)

    def step(params, state, z):
        out = q.quantize(params, state, z)
        return out, q.decode(params, state, out.codes), q.update(params, state, z, out.codes)

    written = export.export(jax.jit(step))(trial.params, trial.state, shape).serialize()
    program = export.deserialize(written)
    for number in SIZES:
        out, decoded, after = program.call(trial.params, trial.state, z[:number])
        np.testing.assert_array_equal(
            np.asarray(out.codes), codes[:number], err_msg=f'codes of a batch of {number}'
        )
        np.testing.assert_array_equal(np.asarray(decoded), np.asarray(out.z_q))
        assert jax.tree.structure(after) == jax.tree.structure(trial.state), after


def a_start_may_be_donated(trial: Trial) -> None:
    """No two arrays that `init` makes share a buffer, with each other or with z."""
    z = trial.batch(0)
    made = trial.on_rows.init(jax.random.key(0), z)
    places: dict[int, str] = {}
    for path, leaf in [*jax.tree_util.tree_leaves_with_path(made), ((), z)]:
        place = leaf.unsafe_buffer_pointer()
        name = jax.tree_util.keystr(path) or 'z'
        assert not leaf.size or place not in places, f'{name} and {places[place]} share a buffer'
        places[place] = name


def params_and_state_come_back_without_a_target(trial: Trial) -> None:
    """What a checkpoint restores, dicts and lists of NumPy arrays, is taken as params and state."""
    q, z = trial.on_rows, trial.batch(1)
    plain = _as_restored((trial.params, trial.state))
    out = q.quantize(*plain, z)
    expected = q.quantize(trial.params, trial.state, z)
    assert_same(out, expected, 'output')
    assert_same(q.decode(*plain, out.codes), expected.z_q, 'decoded')
    after = q.update(*plain, z, out.codes, KEY)
    assert jax.tree.structure(after) == jax.tree.structure(trial.state), after
    flat = [_named(tree) for tree in (trial.params, trial.state)]
    assert_same(q.decode(*flat, out.codes), expected.z_q, 'decoded with flat names')


def calls_outside_jit_are_compiled_once(trial: Trial) -> None:
    """The second call of every method compiles nothing, nor does its gradient."""
    q, z = trial.on_rows, trial.batch(1)

    def step(key):
        codes = q.quantize(trial.params, trial.state, z, key).codes
        q.update(trial.params, trial.state, z, codes, key)
        q.decode(trial.params, trial.state, codes)
        q.quantize(trial.params, trial.state, z)
        return jax.grad(lambda z: q.quantize(trial.params, trial.state, z, key).loss)(z)

    step(KEY)
    before = compilations()
    step(KEY)
    number = compilations() - before
    assert not number, f'{number} programs are compiled anew at every call outside jit'


def compilations() -> int:
    """Programs that this process has compiled since the first call of this function."""
    if not _compilations[0]:
        _compilations[0] = 1
        jax.monitoring.register_event_duration_secs_listener(_count)
    return _compilations[0]


def _count(event: str, seconds: float, **_: Any) -> None:
    del seconds
    if event == '/jax/core/compile/backend_compile_duration':
        _compilations[0] += 1


def _as_restored(tree: Any) -> Any:
    """The tree as orbax or flax's msgpack give it back where no target is given."""
    if isinstance(tree, tuple) and hasattr(tree, '_fields'):
        return {name: _as_restored(part) for name, part in tree._asdict().items()}
    if isinstance(tree, tuple | list):
        return [_as_restored(part) for part in tree]
    if isinstance(tree, dict):
        return {name: _as_restored(part) for name, part in tree.items()}
    return np.asarray(tree)


def _named(tree: Any) -> Any:
    """Arrays by joined names, as a file of safetensors has them; a lone array as it is."""
    found = jax.tree_util.tree_leaves_with_path(tree)
    if len(found) == 1 and not found[0][0]:
        return np.asarray(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator='.'): np.asarray(leaf)
        for path, leaf in found
    }
