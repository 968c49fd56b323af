"""Where params and state live on a mesh of devices: the codes of a codebook split, or whole."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vqjax.quantizers.base import PyTree, Quantizer
from vqjax.quantizers.multi_scale import MultiScale, MultiScaleParams
from vqjax.quantizers.product import Product
from vqjax.quantizers.residual import Residual


def device_mesh(data: int | None = None, model: int = 1) -> Mesh:
    """All devices as a mesh with the automatic axes 'data' and 'model'.

    Args:
      data: parts that the vectors are split into; None, as many as `model` leaves.
      model: parts that a codebook is split into.

    Raises:
      ValueError: where the two do not multiply to the number of devices.
    """
    devices = jax.device_count()
    size = devices // max(model, 1) if data is None else data
    if size < 1 or model < 1 or size * model != devices:
        raise ValueError(
            f'a mesh of data={data} x model={model} does not match the {devices} devices of this '
            'run: their product must be that number (data=None takes what model leaves)'
        )
    return jax.make_mesh((size, model), ('data', 'model'), axis_types=(AxisType.Auto,) * 2)


def shardings(
    quantizer: Quantizer,
    params: PyTree,
    state: PyTree,
    mesh: Mesh,
    axis: str | tuple[str, ...] | None = None,
) -> tuple[PyTree, PyTree]:
    """Shardings of params and state: every array with an axis of K codes split along it.

    Made for `jax.device_put((params, state), shardings(...))`, and for what jit and a checkpoint
    are told. `update` keeps them.

    Args:
      quantizer: whose arrays they are.
      params, state: arrays, or their shapes (`jax.eval_shape(quantizer.init, key, z)`).
      mesh: of this run's devices.
      axis: the mesh axis or axes that codes are split over; None leaves all arrays whole.

    Returns:
      Trees of NamedSharding like params and state.

    Raises:
      ValueError: for an axis that the mesh does not have, a K that its size does not divide, or a
        mesh of devices that are not this run's.
    """
    missing = set(mesh.devices.flat) - set(jax.devices())
    if missing:
        raise ValueError(
            f'the mesh {dict(mesh.shape)} has {len(missing)} devices that are not among the '
            f'{jax.device_count()} of this run: make it anew with jax.make_mesh'
        )
    axes = () if axis is None else axis if isinstance(axis, tuple) else (axis,)
    for name in axes:
        if name not in mesh.shape:
            raise ValueError(
                f'axis={name!r} is no axis of the mesh: give one of {tuple(mesh.shape)} or None'
            )
    if isinstance(quantizer, MultiScale) and quantizer.phi:
        whole: Any = NamedSharding(mesh, P())
        without = dataclasses.replace(quantizer, phi=())
        inner, placed = shardings(without, params.inner, state, mesh, axis)
        return MultiScaleParams(whole, whole, inner), placed
    inners: Any = getattr(quantizer, 'inner', None)
    if isinstance(quantizer, MultiScale) and not isinstance(inners, tuple):
        return shardings(inners, params, state, mesh, axis)
    if isinstance(inners, tuple):
        stages = [
            shardings(inner, params[s] if params else (), state[s] if state else (), mesh, axis)
            for s, inner in enumerate(inners)
        ]
        return tuple(p for p, _ in stages), tuple(s for _, s in stages)
    parts = math.prod(mesh.shape[name] for name in axes)
    first = _stacked(quantizer)

    def place(x):
        sizes = list(x.shape[first:])
        if not axes or quantizer.num_codes not in sizes:
            return NamedSharding(mesh, P())
        if quantizer.num_codes % parts:
            raise ValueError(
                f'num_codes={quantizer.num_codes} is no multiple of {parts}, the size of axis '
                f'{axis!r}: change one of them, or give axis=None for a codebook on every device'
            )
        before = [None] * (first + sizes.index(quantizer.num_codes))
        return NamedSharding(mesh, P(*before, axis))

    return jax.tree.map(place, (params, state))


def _stacked(quantizer):
    """Axes that combinators put in front of the arrays of the innermost quantizer."""
    inner = getattr(quantizer, 'inner', None)
    if inner is None or isinstance(inner, tuple):
        return 0
    stacks = isinstance(quantizer, Residual | Product) and not quantizer.shared
    return stacks + _stacked(inner)
