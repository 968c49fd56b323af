"""Where arrays live: the forms of data parallelism that the loop can take."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vqjax import quantizers
from vqjax.runfiles import QUANTIZER, quantizer_variables
from vqjax.trainer.step.task import AXIS, Task, TrainState


class Pmap:
    """One replica a device under `jax.pmap`: every array of the state has a leading device axis.

    Collectives are the program's own, over the axis `axis`.
    """

    axis: str | None = AXIS

    @property
    def local_replicas(self) -> int:
        """Parts that this process splits its rows of a batch into."""
        return jax.local_device_count()

    def compile(self, fn: Callable, donate: bool = False) -> Callable:
        """fn(state, ...) on every replica."""
        return jax.pmap(fn, axis_name=AXIS, donate_argnums=(0,) if donate else ())

    def place(self, state: TrainState, task: Task) -> TrainState:
        """One copy of every array for each device, placed as pmap returns it."""
        del task
        # NumPy arrays would do, but their first step would be compiled apart from the rest.
        mesh = jax.sharding.Mesh(np.array(jax.devices()), (AXIS,))

        def copy(x: Any) -> jax.Array:
            copies = np.stack([np.asarray(x)] * self.local_replicas)
            return jax.make_array_from_process_local_data(NamedSharding(mesh, P(AXIS)), copies)

        return jax.tree.map(copy, state)

    def read(self, tree: Any) -> Any:
        """The first local copy of replicated arrays, in NumPy; waits for them."""
        return jax.tree.map(lambda x: np.asarray(x.addressable_shards[0].data)[0], tree)

    def plain(self, tree: Any) -> Any:
        """The arrays as a function outside the loop takes them."""
        return self.read(tree)

    def constant(self, x: np.ndarray) -> np.ndarray:
        """A number that all replicas get."""
        return np.stack([x] * self.local_replicas)

    def shard(self, batch: dict[str, np.ndarray], axis: int = 0) -> dict[str, np.ndarray]:
        """Splits `axis`, the rows of this process, over its devices, as a new leading axis."""

        def split(x: np.ndarray) -> np.ndarray:
            x = x.reshape(*x.shape[:axis], self.local_replicas, -1, *x.shape[axis + 1 :])
            return np.moveaxis(x, axis, 0)

        return {name: split(x) for name, x in batch.items()}


class Jit:
    """`jax.jit` over a mesh of all devices: rows split over 'data', codebooks over 'model'.

    Collectives are the compiler's; the program knows no axis.

    Args:
      shape: (data, model); -1 for one of them takes all devices that are left.

    Raises:
      ValueError: the shape does not match the devices, or the processes.
    """

    axis: str | None = None

    def __init__(self, shape: Sequence[int]):
        data, model = shape
        if data >= 0 and model < 0:
            model = max(jax.device_count() // max(data, 1), 1)
        try:
            self.mesh = quantizers.device_mesh(None if data < 0 else data, model)
        except ValueError as error:
            raise ValueError(
                f'mesh_shape={tuple(shape)} does not match the {jax.device_count()} devices: '
                'data x model must be their number, -1 takes what is left'
            ) from error
        self.model_axis = 'model' if self.mesh.shape['model'] > 1 else None
        if self.mesh.shape['data'] % jax.process_count():
            raise ValueError(
                f'mesh_shape={tuple(shape)} splits rows into {self.mesh.shape["data"]} parts, no '
                f'multiple of the {jax.process_count()} processes: give more to the data axis'
            )

    @property
    def local_replicas(self) -> int:
        """Parts that this process splits its rows of a batch into."""
        return self.mesh.shape['data'] // jax.process_count()

    def compile(self, fn: Callable, donate: bool = False) -> Callable:
        """fn(state, ...) -> (state or part of it, metrics); the state stays where it is."""
        compiled = functools.lru_cache(maxsize=4)(functools.partial(self._compile, fn, donate))

        def call(state: TrainState, *args: Any) -> Any:
            leaves, tree = jax.tree.flatten(jax.tree.map(lambda x: x.sharding, state))
            return compiled(tree, tuple(leaves))(state, *args)

        return call

    def _compile(self, fn: Callable, donate: bool, tree: Any, leaves: tuple[Any, ...]) -> Callable:
        places, whole = jax.tree.unflatten(tree, leaves), NamedSharding(self.mesh, P())

        def stay(state: TrainState, *args: Any) -> Any:
            new, measured = fn(state, *args)
            if isinstance(new, TrainState):
                new = jax.lax.with_sharding_constraint(new, places)
            elif new:
                kept = {collection: places.stats[collection] for collection in new}
                new = jax.lax.with_sharding_constraint(new, kept)
            return new, jax.lax.with_sharding_constraint(
                measured, jax.tree.map(lambda _: whole, measured)
            )

        return jax.jit(stay, donate_argnums=(0,) if donate else ())

    def place(self, state: TrainState, task: Task) -> TrainState:
        """The state on the mesh: what has an axis of K codes split over 'model', the rest whole.

        Raises:
          ValueError: K is no multiple of the model axis.
        """
        variables = {'params': state.params, **state.stats}
        own = {}
        if task.model.quantizer is not None:
            places = quantizers.shardings(
                task.model.quantizer, *quantizer_variables(variables), self.mesh, self.model_axis
            )
            for kind, tree in zip(('quantizer', 'state'), places, strict=True):
                for path, place in jax.tree_util.tree_leaves_with_path(tree):
                    own[kind, *_names(path)] = place
        whole = NamedSharding(self.mesh, P())

        def put(path: Any, x: Any) -> jax.Array:
            # The quantizer's arrays stand below its name, and so do the optimizer's moments of
            # them; a recorded codebook is split as they are.
            names = _names(path)
            place = whole
            if QUANTIZER in names:
                place = own.get(names[names.index(QUANTIZER) + 1 :], whole)
            elif names[:1] == ('codebook',) and self.model_axis:
                place = NamedSharding(self.mesh, P(self.model_axis))
            x = np.asarray(x)
            return jax.make_array_from_callback(x.shape, place, lambda index: x[index])

        return jax.tree_util.tree_map_with_path(put, state)

    def read(self, tree: Any) -> Any:
        """Whole arrays, in NumPy; waits for them."""

        def whole(x: jax.Array) -> np.ndarray:
            if x.is_fully_replicated:
                return np.asarray(x.addressable_data(0))
            if x.is_fully_addressable:
                return np.asarray(x)
            return np.asarray(multihost_utils.process_allgather(x, tiled=True))

        return jax.tree.map(whole, tree)

    def plain(self, tree: Any) -> Any:
        """The arrays as a function outside the loop takes them."""
        return tree

    def constant(self, x: np.ndarray) -> np.ndarray:
        """A number that all devices get."""
        return x

    def shard(self, batch: dict[str, np.ndarray], axis: int = 0) -> dict[str, jax.Array]:
        """Arrays with `axis`, which holds the rows of this process, split over 'data'."""
        place = NamedSharding(self.mesh, P(*[None] * axis, 'data'))
        return {name: jax.make_array_from_process_local_data(place, x) for name, x in batch.items()}


def _names(path: Any) -> tuple[str, ...]:
    """A path in a pytree as names, whatever its containers."""
    return tuple(
        str(getattr(part, 'key', getattr(part, 'name', getattr(part, 'idx', '')))) for part in path
    )


def make_form(name: str, mesh_shape: Sequence[int]) -> Pmap | Jit:
    """The form of that name; `mesh_shape` is read by 'jit' alone."""
    return Pmap() if name == 'pmap' else Jit(mesh_shape)
