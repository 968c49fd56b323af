"""Meshes at trace time: how far arrays may be sharded, and Explicit axes run as automatic ones."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P


def mesh_size(*arrays: jax.Array) -> int | None:
    """Devices that the compiler may spread these arrays over: 1 inside pmap and shard_map.

    None where nothing is known: the arrays' types name no mesh and none is set. That is one
    device, or jit with `in_shardings` over arrays that are not yet anywhere.
    """
    return max(map(_free_size, _meshes(arrays)), default=None)


def partly_manual(*arrays: jax.Array) -> bool:
    """Whether this is inside a shard_map that leaves some axes of the mesh to the compiler."""
    return any(
        AxisType.Manual in mesh.axis_types and _free_size(mesh) > 1 for mesh in _meshes(arrays)
    )


def _meshes(arrays):
    meshes = [jax.sharding.get_abstract_mesh(), *(jax.typeof(x).sharding.mesh for x in arrays)]
    return [mesh for mesh in meshes if not mesh.empty]


def whole_features(x: jax.Array) -> jax.Array:
    """x [N, D], each row whole on a device, wherever the rows are.

    Products over features that are split would be added up across devices: N x K scores. Nothing
    is said where the mesh is not known.
    """
    context, mesh = jax.sharding.get_abstract_mesh(), jax.typeof(x).sharding.mesh
    mesh = mesh if context.empty else context
    if mesh.empty or AxisType.Auto not in mesh.axis_types:
        return x
    return lax.with_sharding_constraint(x, NamedSharding(mesh, P(P.UNCONSTRAINED, None)))


def varying_as(x: jax.Array, *others: jax.Array) -> jax.Array:
    """x, said to differ between the replicas of a shard_map as these arrays do.

    For what a loop starts from, whose type must be that of what it ends with; and for what is
    read by all, whose gradient is then summed over them. Elsewhere x itself.
    """
    axes = frozenset().union(*map(_varying_axes, others)) - _varying_axes(x)
    return lax.pcast(x, tuple(axes), to='varying') if axes else x


def _varying_axes(x):
    kind = jax.typeof(x)
    # The second name is that of JAX before 0.10.2.
    return kind.manual_axis_type.varying if hasattr(kind, 'manual_axis_type') else kind.vma


def _free_size(mesh):
    return math.prod(
        size
        for size, kind in zip(mesh.axis_sizes, mesh.axis_types, strict=True)
        if kind != AxisType.Manual
    )


def spec_of(x: jax.Array) -> P:
    """How an array is sharded over Explicit axes, one entry an axis of the array."""
    spec = tuple(jax.typeof(x).sharding.spec)
    return P(*spec, *[None] * (x.ndim - len(spec)))


def rows_spec(z: jax.Array, *more: Any) -> P:
    """The sharding of the leading axes of z [..., D], and of `more` trailing ones."""
    return P(*spec_of(z)[:-1], *more)


def automatic(
    out_specs: Callable[..., Any] | P,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: over Explicit axes a function is partitioned by the compiler, as over Auto ones.

    There every gather and scatter would have to name its output's sharding. Instead the function
    is traced with its axes made automatic, and only what it returns is given a sharding. Nothing
    happens where no array and no mesh in force has an Explicit axis.

    Args:
      out_specs: shardings of what the function returns, a prefix of its tree; or the function of
        the same arguments that gives them.
    """

    def decorate(function):
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args, **kwargs):
            mesh = _explicit_mesh((args, kwargs))
            if mesh is None:
                with default_promotion():
                    return function(*args, **kwargs)
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            specs = out_specs(*bound.args, **bound.kwargs) if callable(out_specs) else out_specs
            return _call_automatic(function, mesh, specs, bound.args, bound.kwargs)

        return call

    return decorate


@contextmanager
def default_promotion() -> Any:
    """NumPy's promotion of ranks and dtypes, which this library relies on.

    A user may forbid it (`jax_numpy_rank_promotion='raise'`) to find mistakes in code of their own.
    """
    with jax.numpy_rank_promotion('allow'), jax.numpy_dtype_promotion('standard'):
        yield


def _explicit_mesh(tree):
    """The mesh with an Explicit axis that these arrays are on, or None."""
    context = jax.sharding.get_abstract_mesh()
    meshes = [] if context.empty else [context]
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array):
            mesh = jax.typeof(leaf).sharding.mesh
            if not mesh.empty and mesh not in meshes:
                meshes.append(mesh)
    sizes = {mesh.size for mesh in meshes}
    if len(sizes) > 1:
        raise ValueError(
            f'arrays on meshes of {" and ".join(map(str, sorted(sizes)))} devices do not meet: put '
            'params, state and z on one mesh with jax.device_put'
        )
    return next((mesh for mesh in meshes if AxisType.Explicit in mesh.axis_types), None)


def _call_automatic(function, mesh, specs, args, kwargs):
    leaves, tree = jax.tree.flatten((args, kwargs))
    is_array = tuple(hasattr(leaf, 'shape') for leaf in leaves)
    arrays = [leaf for leaf, ok in zip(leaves, is_array, strict=True) if ok]
    others = tuple(None if ok else leaf for leaf, ok in zip(leaves, is_array, strict=True))
    spec_leaves, spec_tree = jax.tree.flatten(specs, is_leaf=lambda x: isinstance(x, P))
    static = (function, mesh, tuple(spec_leaves), spec_tree, tree, is_array, others)
    return _traced_automatic(static, *arrays)


# Under jit: outside, every operation would be partitioned by itself.
@functools.partial(jax.jit, static_argnums=0, inline=True)
def _traced_automatic(static, *arrays):
    function, mesh, spec_leaves, spec_tree, tree, is_array, others = static
    if jax.sharding.get_abstract_mesh().empty:
        spec_leaves = [NamedSharding(mesh, spec) for spec in spec_leaves]
    explicit = zip(mesh.axis_names, mesh.axis_types, strict=True)
    axes = tuple(name for name, kind in explicit if kind == AxisType.Explicit)

    def run(*arrays):
        given = iter(arrays)
        leaves = [next(given) if ok else x for ok, x in zip(is_array, others, strict=True)]
        args, kwargs = jax.tree.unflatten(tree, leaves)
        with default_promotion():
            return _on_its_devices(function(*args, **kwargs), arrays)

    specs = jax.tree.unflatten(spec_tree, spec_leaves)
    return jax.sharding.auto_axes(run, axes=axes, out_sharding=specs)(*arrays)


def _on_its_devices(outputs, arrays):
    """The outputs, made to depend on an array that is on the mesh.

    jit drops arguments that nothing reads, and with z may go all it knows of the devices (where
    a codebook starts at random, say). XLA drops the selection.
    """
    leaves, tree = jax.tree.flatten(outputs)
    numbers = [x for x in arrays if x.size and jnp.issubdtype(x.dtype, jnp.number)]
    on_mesh = [x for x in numbers if not jax.typeof(x).sharding.mesh.empty]
    for i, leaf in enumerate(leaves):
        if on_mesh and jnp.issubdtype(leaf.dtype, jnp.number):
            one = lax.stop_gradient(on_mesh[0][(0,) * on_mesh[0].ndim])
            leaves[i] = jnp.where(False, one.astype(leaf.dtype), leaf)
            break
    return jax.tree.unflatten(tree, leaves)
