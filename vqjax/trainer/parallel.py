"""Where arrays live: the forms of data parallelism that the loop can take."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from vqjax.trainer.steps import AXIS


class Pmap:
    """One replica a device under `jax.pmap`: every array of the state has a leading device axis."""

    axis: str | None = AXIS

    @property
    def local_replicas(self) -> int:
        """Replicas that this process feeds."""
        return jax.local_device_count()

    def constant(self, x: np.ndarray) -> np.ndarray:
        """A number that all replicas get."""
        return np.stack([x] * self.local_replicas)

    def compile(self, fn: Callable, donate: bool = False) -> Callable:
        """fn(state, batch, ...) on every replica; further arguments are the same on all."""
        return jax.pmap(fn, axis_name=AXIS, donate_argnums=(0,) if donate else ())

    def place(self, tree: Any) -> Any:
        """One copy of every array for each device, placed as pmap returns it."""
        # NumPy arrays would do, but their first step would be compiled apart from the rest.
        mesh = jax.sharding.Mesh(np.array(jax.devices()), (AXIS,))
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))
        n = jax.local_device_count()

        def copy(x: Any) -> jax.Array:
            copies = np.stack([np.asarray(x)] * n)
            return jax.make_array_from_process_local_data(sharding, copies)

        return jax.tree.map(copy, tree)

    def read(self, tree: Any) -> Any:
        """The first local copy of replicated arrays, in NumPy; waits for them."""
        return jax.tree.map(lambda x: np.asarray(x.addressable_shards[0].data)[0], tree)

    def shard(self, batch: dict[str, np.ndarray], axis: int = 0) -> dict[str, np.ndarray]:
        """Splits `axis` over the local devices, as a new leading axis."""
        n = jax.local_device_count()

        def split(x: np.ndarray) -> np.ndarray:
            x = x.reshape(*x.shape[:axis], n, -1, *x.shape[axis + 1 :])
            return np.moveaxis(x, axis, 0)

        return {name: split(x) for name, x in batch.items()}
