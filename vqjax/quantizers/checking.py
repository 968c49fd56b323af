"""How a call of a quantizer is checked: the decorator `checked`, and all that it does.

    class VQEMA(Codebook):
        @checked
        def quantize(self, params, state, z, key=None, mask=None, axis_name=None): ...

The decorator stands on every method of the protocol. A call from outside is checked once, before
anything is traced: what is wrong with an argument is one sentence. Calls that quantizers make of
each other are not checked again. Shapes and dtypes are known then, values mostly are not: all that
the checks add to a compiled program is the selection that puts zeros where a mask hides z.

Outside jit a call is compiled as a whole, once for each quantizer and each set of shapes. The
checks of shapes and dtypes are part of what is traced for that, so a later call with the same
quantizer and arrays of the same shapes costs little more than a call of the jitted function. Params
and state must have the form that the quantizer tells by `shapes`; no start is traced to find out.
"""

from __future__ import annotations

import functools
import inspect
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import core
from jax.sharding import PartitionSpec as P

from vqjax import ops
from vqjax.ops import AxisName
from vqjax.ops.compiling import compiled, is_staged
from vqjax.ops.fields import check_key
from vqjax.ops.serialization import export_all
from vqjax.quantizers.protocol import PyTree, Quantized, Quantizer

Arguments = ParamSpec('Arguments')
Result = TypeVar('Result')
_REQUIRED = inspect.Parameter.empty
# What the methods of the protocol take as arrays; anything else is static under jit.
_ARRAYS = ('params', 'state', 'z', 'codes', 'key', 'mask', 'weights', 'share')
# Those whose values are checked where they are not JAX's.
_WITH_VALUES = ('weights', 'share')


def _quantized_specs(quantizer, params, state, z, *_):
    rows = ops.spec_of(z)[: z.ndim - 1 - len(quantizer.grid)]
    trailing = [None] * len(quantizer.code_shape)
    z_q = ops.rows_spec(z, None) if quantizer.targets_only else ops.spec_of(z)
    specs: Any = z_q, P(*rows, *trailing), P(), P()
    return Quantized(*specs)


def _decoded_specs(quantizer, params, state, codes, *_):
    rows = ops.spec_of(codes)
    trailing = [None] * (len(quantizer.grid) + 1)
    return P(*rows[: codes.ndim - len(quantizer.code_shape)], *trailing)


# The methods that are checked, and how what they return is sharded over Explicit axes: codes and
# z_q as z is, statistics as those that came in. (Over Auto axes the compiler finds that out.)
OUT_SPECS: dict[str, Any] = {
    'init': P(),
    'quantize': _quantized_specs,
    'update': lambda quantizer, params, state, *_: jax.tree.map(ops.spec_of, state),
    'decode': _decoded_specs,
    # Of some quantizers only.
    'logits': lambda quantizer, params, state, z: ops.rows_spec(z, None),
    'stage_vectors': lambda *args: P(None, *_decoded_specs(*args)),
    'next_inputs': lambda quantizer, params, state, codes: ops.rows_spec(codes, None, None),
    'self_correction': lambda *args: (_quantized_specs(*args).codes,) * 2,
}


def checked(method: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """A method of the protocol that checks its arguments, runs over any mesh and is compiled once.

    `Base` puts it on those of your own quantizer that are without it. Of the name of the method it
    depends what is checked; see `OUT_SPECS` for those it may have.
    """
    if is_checked(method):
        return method
    name = method.__name__
    plain: Callable[..., Any] = method
    if name == 'update' and 'weights' not in inspect.signature(method).parameters:
        plain = _without_weights(method)
    signature = inspect.signature(plain)
    hiding = {'quantize': _without_hidden, 'update': _without_weightless}
    run = ops.automatic(OUT_SPECS[name])(plain)
    outermost = ops.automatic(OUT_SPECS[name])(hiding[name](plain)) if name in hiding else run

    _, *parameters = signature.parameters.values()
    names = [parameter.name for parameter in parameters]
    required = sum(parameter.default is _REQUIRED for parameter in parameters)
    values_at = next((i for i, x in enumerate(names) if x in _WITH_VALUES), len(names))
    # By the id of a quantizer that has been called: a reference to it, and its jitted function.
    known: dict[int, tuple[weakref.ref[Any], Callable[..., Any]]] = {}

    def checked_run(quantizer, given):
        """The call, once its arguments are arrays: the form of params and state is checked here."""
        if 'params' in given and 'state' in given:
            dim = given['z'].shape[-1] if 'z' in given else None
            trees = fitting(quantizer, (given['params'], given['state']), dim)
            given = given | dict(zip(('params', 'state'), trees, strict=True))
        with _inside.a_call():
            return outermost(quantizer, **given)

    def traced(quantizer, static, *arrays):
        """What is compiled outside jit: all checks but those of values."""
        given = dict(zip(names, arrays, strict=False)) | dict(static)
        _check_arguments(quantizer, name, given)
        return checked_run(quantizer, given)

    def program(quantizer, static):
        """The jitted function of the arrays, which equal quantizers share."""
        made = compiled(traced, (quantizer, static))
        if not static:
            at = id(quantizer)
            known[at] = weakref.ref(quantizer, lambda _: known.pop(at, None)), made
        return made

    def by_position(args, kwargs):
        """The arguments in the order of the signature, up to the last that is given."""
        rest = parameters[len(args) :]
        values = [kwargs.get(parameter.name, parameter.default) for parameter in rest]
        unknown = kwargs.keys() - {parameter.name for parameter in rest}
        if unknown or len(args) > len(names) or any(value is _REQUIRED for value in values):
            signature.bind(None, *args, **kwargs)  # which says what is wrong
        while values and rest[len(values) - 1].name not in kwargs:
            values.pop()
        return (*args, *values)

    @functools.wraps(plain)
    def call(quantizer, /, *args, **kwargs):
        if _inside.call:
            return run(quantizer, *args, **kwargs)
        plainly = not kwargs and required <= len(args) <= len(names)
        values = args if plainly else by_position(args, kwargs)
        # Hashing and comparing a quantizer costs more than a small program: it is known by its id.
        found = known.get(id(quantizer))
        if found is not None and found[0]() is quantizer and _ready(values, values_at):
            return found[1](*values)
        given = dict(zip(names, values, strict=False))
        _check_arguments(quantizer, name, given)
        # A start may read values; and where jit is at work already, there is nothing to compile.
        if name == 'init':
            made = unshared(checked_run(quantizer, given), given)
            export_all(made)
            return made
        static = {k: v for k, v in given.items() if not _may_be_traced(k, v)}
        arrays = [None if k in static else v for k, v in given.items()]
        if is_staged(arrays):
            return checked_run(quantizer, given)
        return program(quantizer, tuple(static.items()))(*arrays)

    call.is_checked = True  # type: ignore[attr-defined]
    return cast(Callable[Arguments, Result], call)


# The types of JAX's arrays that hold values, found as they come: tracers are of other types.
_HELD: set[type] = set()
# What jit takes of NumPy as `as_array` does.
_TAKEN = frozenset(map(np.dtype, ('float32', 'int32', 'bool')))


def _ready(values, values_at):
    """Whether these are arrays, all of them, that nothing but jit need look at before a call."""
    leaves = jax.tree.leaves(values)
    if _HELD.issuperset(map(type, leaves)):
        return True
    # Of weights and shares in NumPy the values are checked.
    known = values[values_at] if values_at < len(values) else None
    return not isinstance(known, np.ndarray) and all(map(_is_ready, leaves))


def _is_ready(leaf):
    if type(leaf) is np.ndarray:
        return leaf.dtype in _TAKEN
    if isinstance(leaf, jax.Array) and not isinstance(leaf, core.Tracer):
        _HELD.add(type(leaf))
    return type(leaf) in _HELD


def _may_be_traced(name, value):
    return name in _ARRAYS or value is None or isinstance(value, jax.Array)


def is_checked(method: Callable[..., Any]) -> bool:
    """Whether `checked` has been put on the method."""
    return getattr(method, 'is_checked', False)


class _Inside(threading.local):
    """Whether this thread is within a call, whose own calls need no second check."""

    call = False

    @contextmanager
    def a_call(self):
        before, self.call = self.call, True
        try:
            yield
        finally:
            self.call = before


_inside = _Inside()


def _without_hidden(quantize):
    """Zeros for the vectors that a mask hides: no NaN among them meets a product or a gradient."""
    signature = inspect.signature(quantize)

    @functools.wraps(quantize)
    def call(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        mask = bound.arguments.get('mask')
        if mask is not None:
            bound.arguments['z'] = jnp.where(mask[..., None], bound.arguments['z'], 0)
        return quantize(*bound.args, **bound.kwargs)

    return call


def _without_weightless(update):
    """Masks vectors whose weight is not above 0, for all that an update does with vectors."""
    signature = inspect.signature(update)

    @functools.wraps(update)
    def call(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        weights, mask = (bound.arguments.get(name) for name in ('weights', 'mask'))
        if weights is not None:
            heavy = (weights > 0) & jnp.isfinite(weights)
            bound.arguments['mask'] = heavy if mask is None else heavy & mask
        return update(*bound.args, **bound.kwargs)

    return call


def _without_weights(update):
    """An update written without the argument `weights`, which refuses it where it is given."""

    def call(self, params, state, z, codes, key=None, mask=None, axis_name=None, weights=None):
        if weights is not None:
            raise ValueError(f'weights must be None: the update of {self!r} takes none')
        return update(self, params, state, z, codes, key, mask, axis_name)

    call.__name__, call.__doc__ = update.__name__, update.__doc__
    return call


# --- What a method is given


def _check_arguments(quantizer, name, given):
    """Check what a method is given, by name, and put arrays in the place of what can be one."""
    check_axis(given.get('axis_name'))
    z, shape = None, None
    if 'z' in given:
        z = given['z'] = as_array('z', given['z'])
        _check_vectors(z)
        shape = z.shape[:-1]
    if given.get('mask') is not None:
        mask = given['mask'] = as_array('mask', given['mask'])
        if mask.dtype != bool or mask.shape != shape:
            raise ValueError(
                f'mask must be bool of shape {shape}, one entry for each vector of z '
                f'{None if z is None else z.shape}, got {describe(mask)}'
            )
    # What is quantized grid by grid has codes of a grid, not of a vector.
    rows = None
    if shape is not None and not given.keys().isdisjoint({'codes', 'share'}):
        rows = shape[: len(shape) - len(quantizer.grid)]
    if 'codes' in given:
        codes = _within_int32(given['codes'])
        if name == 'decode' and isinstance(codes, jax.Array | np.ndarray):
            codes = quantizer.completed(codes)
        given['codes'] = _codes(codes, rows, quantizer.code_shape_of(codes))
    if given.get('weights') is not None:
        given['weights'] = _weights(given['weights'], shape)
    if 'share' in given:
        given['share'] = _share(given['share'], rows)
    if given.get('key') is not None or name == 'self_correction':
        check_key(given['key'])
    for name in ('params', 'state'):
        if name in given:
            what = f'an array of {name}'
            given[name] = jax.tree.map(lambda x, what=what: as_array(what, x), given[name])


def check_axis(axis_name: AxisName) -> None:
    """Raise ValueError where `axis_name` is not a mapped axis."""
    try:
        if axis_name is not None:
            jax.lax.axis_size(axis_name)
    except NameError:
        raise ValueError(
            f'axis_name={axis_name!r} is no mapped axis here: give it to pmap, vmap or shard_map '
            'around this call, or leave it None under jit over sharded arrays'
        ) from None


def _check_vectors(z):
    if not jnp.issubdtype(z.dtype, jnp.floating):
        raise ValueError(
            f'z must be real floating point vectors, got dtype {z.dtype}; convert it, '
            'z.astype(jnp.float32), or give real and imaginary parts as features'
        )
    if z.ndim < 1 or 0 in z.shape:
        raise ValueError(
            f'z must be [..., D] with at least one vector of at least one feature, got z of shape '
            f'{z.shape}; where a batch may be filtered to nothing, keep its shape and hide vectors '
            'by mask=, or skip the step'
        )


def _codes(codes, shape, code_shape):
    """Codes int32; where int32 cannot hold one, it is no code and stays none."""
    codes = as_array('codes', codes)
    if not jnp.issubdtype(codes.dtype, jnp.integer):
        raise ValueError(f'codes must be integers, got dtype {codes.dtype}')
    first = codes.ndim - len(code_shape)
    trailing = first >= 0 and codes.shape[first:] == code_shape
    if not trailing or shape not in (None, codes.shape[:first]):
        need = '[..., ' + ', '.join(map(str, code_shape)) + ']' if code_shape else '[...]'
        need = need if shape is None else str(tuple(shape) + code_shape)
        raise ValueError(
            f'codes must have shape {need}, the leading axes of z and code_shape={code_shape}, '
            f'got {codes.shape}'
        )
    if codes.dtype == jnp.int32:
        return codes
    if codes.dtype.itemsize >= 4:
        codes = jnp.minimum(codes, np.iinfo(np.int32).max)
    if codes.dtype == jnp.int64:
        codes = jnp.maximum(codes, -1)
    return codes.astype(jnp.int32)


def _within_int32(codes):
    """NumPy's integers as int32, before JAX takes the lower half of 64 bits."""
    if isinstance(codes, np.ndarray) and codes.dtype.kind in 'iu':
        return np.clip(codes, -1, np.iinfo(np.int32).max).astype(np.int32)
    return codes


def _weights(weights, shape):
    if not isinstance(weights, jax.Array):  # values are known here
        weights = np.asarray(weights)
        if weights.dtype.kind == 'f' and not (np.isfinite(weights) & (weights >= 0)).all():
            raise ValueError(f'weights must be finite and not negative, got {weights!r:.200}')
    weights = as_array('weights', weights)
    if not jnp.issubdtype(weights.dtype, jnp.floating) or weights.shape != shape:
        raise ValueError(
            f'weights must be floating point of shape {shape}, one for each vector of z, got '
            f'{describe(weights)}'
        )
    return weights.astype(jnp.float32)


def _share(share, shape):
    """Shares float32, a number or one for each grid."""
    if not isinstance(share, jax.Array):  # values are known here
        try:
            values = np.asarray(share, np.float32)
        except (TypeError, ValueError):
            values = np.asarray(np.nan)
        if isinstance(share, bool) or not ((values >= 0) & (values <= 1)).all():
            raise ValueError(f'share must be from 0 to 1, got {share!r:.200}')
        share = jnp.asarray(values)
    if not jnp.issubdtype(share.dtype, jnp.floating) or share.shape not in ((), shape):
        raise ValueError(
            f'share must be floating point, a number or one for each grid of z, {shape}, got '
            f'{describe(share)}'
        )
    return share.astype(jnp.float32)


def as_array(name: str, value: Any) -> jax.Array:
    """`value` as an array of JAX; NumPy's keep their values whatever their byte order."""
    if isinstance(value, jax.Array):
        return value
    if isinstance(value, np.ma.MaskedArray):
        raise ValueError(
            f'{name} is a masked array of NumPy, whose own mask would be lost: give {name}.data, '
            'and mask=~numpy.ma.getmaskarray(...) with one entry for each vector'
        )
    try:
        value = np.asarray(value)
        return jnp.asarray(value.astype(value.dtype.newbyteorder('='), copy=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f'{name} must be an array, got {value!r:.100}: {error}') from None


# --- The form of params and state


def fitting(
    quantizer: Quantizer, trees: tuple[PyTree, PyTree], dim: int | None = None
) -> tuple[PyTree, PyTree]:
    """(params, state) in the form that `init` gives them, which they must have.

    Other containers are taken where the names in them are the same. Params may be kept in any
    floating dtype, and are computed with in float32. Statistics may not: half precision would lose
    counts.

    Args:
      quantizer: tells the form by `shapes`.
      trees: (params, state), of arrays.
      dim: D; None where z is not at hand.

    Raises:
      ValueError: naming what does not fit.
    """
    given = {**_leaves('params', trees[0]), **_leaves('state', trees[1])}
    closest: list[str] | None = None
    for size in [dim] if dim is not None else _possible_dims(quantizer, trees):
        try:
            expected = quantizer.shapes(size)
        except ValueError:  # not divisible by the groups, say, which the method itself will tell
            continue
        except jax.errors.JAXTypeError:  # an init of your own that reads values
            return trees
        needed = {**_leaves('params', expected[0]), **_leaves('state', expected[1])}
        wrong = _misfits(given, needed)
        if not wrong:
            ordered = [given[name].astype(like.dtype) for name, like in needed.items()]
            return jax.tree.unflatten(jax.tree.structure(tuple(expected)), ordered)
        if closest is None or len(wrong) < len(closest):
            closest = wrong
    if closest is None:
        return trees
    vectors = f' and z of {dim} features' if dim else ''
    more = f', and {len(closest) - 4} more' if len(closest) > 4 else ''
    raise ValueError(
        f'params and state do not fit {quantizer!r}{vectors}: '
        f'{"; ".join(closest[:4])}{more}; both come from its own init'
    )


def restore(quantizer: Quantizer, params: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
    """(params, state) in the containers that `init` makes, from what a checkpoint gave back.

    Restored without a target, tuples come back as dicts or lists, and an empty tree as nothing.
    Every method takes them so; what `update` returns has its own containers, though, so that a
    training loop under `lax.scan` or a state to be compared needs these.

    Args:
      quantizer: the quantizer that was saved.
      params, state: trees of arrays with the names that `init` gives; names joined by '.' or '/'
        (`{'inner.counts': ...}`) are taken as well.

    Raises:
      ValueError: naming every array that is missing, left over, or of another shape or dtype.
    """
    params, state = jax.tree.map(lambda x: as_array('an array', x), (params, state))
    return fitting(quantizer, (params, state))


def traced_shapes(quantizer: Quantizer, dim: int) -> tuple[PyTree, PyTree]:
    """What `init` makes of vectors of `dim` features, by tracing it: nothing is computed."""
    z = jax.ShapeDtypeStruct((1, *quantizer.grid, dim), jnp.float32)
    return jax.eval_shape(lambda z: quantizer.init(jax.random.key(0), z), z)


def array_shape(*shape: int, dtype: Any = jnp.float32) -> Any:
    """A `jax.ShapeDtypeStruct`, which stands for an array in the trees of `shapes`."""
    return jax.ShapeDtypeStruct(shape, dtype)


# The number of training steps so far.
STEP = array_shape(dtype=jnp.int32)


def shapes_of(inners: Sequence[Quantizer], dim: int) -> tuple[PyTree, PyTree]:
    """(params, state) of several quantizers side by side: tuples of theirs."""
    params, state = zip(*(inner.shapes(dim) for inner in inners), strict=True)
    return params, state


def part_of(tree: PyTree, i: int) -> Any:
    """The params or the state of one of several; a tree without leaves may arrive as ()."""
    return tree[i] if jax.tree.leaves(tree) else ()


def stacked(number: int, trees: PyTree) -> PyTree:
    """Shapes with a leading axis of this many."""
    return jax.tree.map(lambda x: array_shape(number, *x.shape, dtype=x.dtype), trees)


def _possible_dims(quantizer, trees) -> Iterator[int]:
    """Numbers of features that params and state may be for, where only codes are known."""
    leaves = sorted(jax.tree.leaves(trees), key=lambda x: -x.ndim)
    sizes = [size for leaf in leaves for size in leaf.shape[::-1]] or [1]
    groups = _groups(quantizer)
    return iter(dict.fromkeys(size * number for size in (*sizes, 1) for number in groups))


def _groups(quantizer) -> list[int]:
    """In how many parts features are cut, by this quantizer or one inside it."""
    inner = getattr(quantizer, 'inner', None)
    inside = inner if isinstance(inner, tuple) else (inner,)
    below = {n for part in inside if part is not None for n in _groups(part)} | {1}
    own = getattr(quantizer, 'num_groups', 1)
    return sorted({own * n for n in below}, reverse=True)


def _misfits(given, needed):
    """What is wrong with the leaves of (params, state), a phrase each; [] where they fit."""
    return [
        f'{name} is {describe(given.get(name))} where {describe(needed.get(name))} is needed'
        for name in needed | given
        if not _fits(name, given.get(name), needed.get(name))
    ]


def _fits(name, leaf, like):
    if leaf is None or like is None or leaf.shape != like.shape:
        return False
    kept = name.startswith('params') and jnp.issubdtype(like.dtype, jnp.floating)
    return leaf.dtype == like.dtype or (kept and jnp.issubdtype(leaf.dtype, jnp.floating))


def _leaves(name, tree):
    """Arrays by name, such as 'state.counts'."""
    return {
        '.'.join([name, *(jax.tree_util.keystr((part,), simple=True) for part in path)]).replace(
            '/', '.'
        ): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def describe(x: Any) -> str:
    """Dtype and shape, such as 'float32[4, 8]'."""
    return 'nothing' if x is None else f'{x.dtype}{list(x.shape)}'


# --- Arrays that share memory


def unshared(tree: PyTree, others: PyTree = ()) -> PyTree:
    """The tree, no two arrays of which share a buffer, nor one with those of `others`.

    So that it may be donated whole. Inside jit the compiler sees to that.
    """
    seen = {place for leaf in jax.tree.leaves(others) for place in _buffers(leaf)}

    def own(leaf):
        if seen.intersection(_buffers(leaf)):
            leaf = jnp.array(leaf, copy=True)
        seen.update(_buffers(leaf))
        return leaf

    return jax.tree.map(own, tree)


def _buffers(x) -> list[int]:
    """Where the parts of an array are in memory; [] where that is not known."""
    if not isinstance(x, jax.Array) or isinstance(x, core.Tracer) or not x.size:
        return []
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return [id(x)]
    return [shard.data.unsafe_buffer_pointer() for shard in x.addressable_shards]
