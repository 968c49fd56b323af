"""One quantizer on trial: its compiled steps, shared by all properties, and how they compare."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vqjax import ops
from vqjax.quantizers.base import Quantized, Quantizer

# Batches [4, 24, D]; and without randomness [4, 512, D], where one vector in a hundred shows. (Of
# a quantizer of grids as many vectors as make whole grids.)
ROWS, MANY = (4, 24), (4, 512)
KEY, OTHER_KEY = jax.random.key(7), jax.random.key(8)
# The weights of an objective: the task's, the loss's, and those of its terms in order of name.
MOST_TERMS = 8


class Gradients(NamedTuple):
    """Of an objective to params and z (as those are), and to the state's floats (a list)."""

    params: Any
    state: list[jax.Array]
    z: jax.Array


class Taken(NamedTuple):
    """What one training step gave: gradients, output, what decode makes of it, the new state."""

    gradients: Gradients
    out: Quantized
    decoded: jax.Array
    after: Any


class Trial:
    """The compiled steps of a quantizer: compiling is most of the time that its checks take.

    Nothing is compiled or run before a property asks for it.

    Args:
      q: any quantizer.
      dim: D, the features of the vectors it is given.
      compiler_options: of `jax.jit`, for what is compared to the bit.
      replicate: how replicas are run, as `replicated` does it.
      like: the trial of a quantizer with the same params and state, whose own are used instead of
        a start of q.
    """

    def __init__(
        self,
        q: Quantizer,
        dim: int = 8,
        compiler_options: Mapping[str, Any] | None = None,
        replicate: Callable[..., Any] | None = None,
        like: Trial | None = None,
    ):
        self.q, self.dim, self.like = q, dim, like
        grid = getattr(q, 'grid', ())
        # How many vectors one entry of codes stands for.
        self.places = math.prod(grid)
        self.rows = ROWS[0], -(-ROWS[1] // self.places) * self.places
        self.many = MANY[0], max(MANY[1] // self.places, 1) * self.places
        # The quantizer as it is called here, on vectors one after the other.
        self.on_rows = q = OverRows(q) if grid else q
        self.traces = 0
        self.all = jnp.ones(self.rows, bool)
        self.replicate = replicated if replicate is None else replicate
        self._run = jax.jit(self._step)
        self.without_key, self.with_key = jax.jit(self._no_key), jax.jit(self._only_key)
        # As users compile, each on its own: what is fused differs, what they compute may not.
        self.quantize = jax.jit(q.quantize, compiler_options=compiler_options)
        self.decode = jax.jit(q.decode, compiler_options=compiler_options)

    @functools.cached_property
    def _start(self) -> tuple[Any, Any]:
        return jax.jit(self.on_rows.init)(jax.random.key(0), self.batch(0))

    # A start has symmetries that training breaks: kernels that are each other's transposes, shifts
    # that are zero. So everything is tried a step later.
    @functools.cached_property
    def params(self) -> Any:
        """Those of the start, each moved a little."""
        return self.like.params if self.like else jax.tree.map(_moved, self._start[0])

    @functools.cached_property
    def state(self) -> Any:
        """That of the start after a training step."""
        if self.like:
            return self.like.state
        return self.run(self.batch(9), key=OTHER_KEY, state=self._start[1]).after

    def batch(self, seed: int, rows: tuple[int, ...] | None = None) -> jax.Array:
        """Normal vectors [*rows, D]; by default [*self.rows, D]."""
        rows = self.rows if rows is None else rows
        return jax.random.normal(jax.random.key(seed), (*rows, self.dim))

    def codes_of(self, rows: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the codes of vectors [*rows, D]."""
        return (*rows[:-1], rows[-1] // self.places, *self.q.code_shape)

    def by_vector(self, codes: jax.Array) -> jax.Array:
        """The codes that say which vectors are real, [*rows, ...]: of a grid its last ones."""
        if self.on_rows is self.q:
            return codes
        last = jnp.moveaxis(codes[..., -self.places :], -1, codes.ndim - len(self.q.code_shape))
        shape = last.shape[: codes.ndim - len(self.q.code_shape) - 1]
        return last.reshape(*shape, -1, *self.q.code_shape[:-1])

    def run(
        self,
        z: jax.Array,
        mask: jax.Array | None = None,
        key: jax.Array = KEY,
        state: Any = None,
        given: jax.Array | None = None,
        task: float = 1.0,
        loss: float = 1.0,
        **terms: float,
    ) -> Taken:
        """A training step on z [*rows, D]: quantize, gradients, decode, update; compiled once.

        The objective is `task` times sum(cotangent z_q), plus `loss` times the loss, plus the
        terms of `losses` with the weights given by name. `given` are codes
        that update is told instead of those just chosen.
        """
        weights = np.zeros(2 + MOST_TERMS, np.float32)
        weights[:2] = task, loss
        for name, weight in terms.items():
            weights[2 + self.terms.index(name)] = weight
        if given is None:
            given = jnp.full(self.codes_of(self.rows), -2, jnp.int32)
        state = self.state if state is None else state
        mask = self.all if mask is None else mask
        return Taken(*self._run(self.params, state, z, mask, key, weights, given))

    @property
    def terms(self) -> list[str]:
        """Names of the loss's terms."""
        if not hasattr(self, '_terms'):
            self._terms = sorted(self.run(self.batch(1)).out.losses)
        return self._terms

    @staticmethod
    def cotangent(shape: tuple[int, ...]) -> np.ndarray:
        """What the task's gradient to z_q is, float32 of that shape."""
        return np.random.default_rng(0).normal(size=shape).astype(np.float32)

    def _step(self, params, state, z, mask, key, weights, given):
        self.traces += 1
        q = self.on_rows
        leaves, structure = jax.tree.flatten(state)
        learnable = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]

        def objective(params, floats, z):
            floats = iter(floats)
            mixed = [
                next(floats) if ok else leaf for ok, leaf in zip(learnable, leaves, strict=True)
            ]
            out = q.quantize(params, jax.tree.unflatten(structure, mixed), z, key, mask)
            total = weights[0] * jnp.sum(self.cotangent(out.z_q.shape) * out.z_q)
            total += weights[1] * out.loss
            for place, name in enumerate(sorted(out.losses)):
                total += weights[2 + place] * jnp.sum(out.losses[name])
            return total, out

        floats = [leaf for ok, leaf in zip(learnable, leaves, strict=True) if ok]
        slopes, out = jax.grad(objective, argnums=(0, 1, 2), has_aux=True)(params, floats, z)
        decoded = q.decode(params, state, out.codes)
        told = jnp.where(given == -2, out.codes, given)
        return Gradients(*slopes), out, decoded, q.update(params, state, z, told, key, mask)

    def _no_key(self, params, state, z):
        out = self.on_rows.quantize(params, state, z)
        return out, self.on_rows.update(params, state, z, out.codes)

    def _only_key(self, params, state, z, key):
        out = self.on_rows.quantize(params, state, z, key)
        return out, self.on_rows.update(params, state, z, out.codes, key)

    def plain(self, z: jax.Array, trees: tuple[Any, Any] | None = None) -> Quantized:
        """What z [*many, D] becomes without mask and key; params and state its own or `trees`."""
        return self.without_key(*((self.params, self.state) if trees is None else trees), z)[0]

    def half(self, seed: int = 4) -> tuple[jax.Array, Quantized, Any]:
        """The first rows [2, n, D] in bfloat16 by themselves, and what a step makes of them."""
        z = self.batch(seed)[:2].astype(jnp.bfloat16)
        return z, *self.with_key(self.params, self.state, z, KEY)

    def same_in_whole(self, seed: int = 4) -> Taken:
        """A step on the values of `half` in float32, in a batch whose other rows are hidden."""
        z = self.batch(seed).astype(jnp.bfloat16).astype(jnp.float32)
        return self.run(z, jnp.broadcast_to(jnp.arange(self.rows[0])[:, None] < 2, self.rows))


class OverRows:
    """A quantizer of grids over vectors one after the other, [..., n, D] for whole grids of them.

    Its codes are those of the grids.
    """

    def __init__(self, of_grids: Quantizer):
        self.of_grids = of_grids

    def init(self, key, z, mask=None, axis_name=None):
        """(params, state) of the quantizer of grids."""
        return self.of_grids.init(key, *self._as_grids(z, mask), axis_name)

    def quantize(self, params, state, z, key=None, mask=None, axis_name=None) -> Quantized:
        """Its Quantized, z_q in rows."""
        z, mask = self._as_grids(z, mask)
        out = self.of_grids.quantize(params, state, z, key, mask, axis_name)
        return out._replace(z_q=self._as_rows(out.z_q))

    def update(self, params, state, z, codes, key=None, mask=None, axis_name=None, weights=None):
        """Its new state."""
        weights = self._as_grids(z, weights)[1]
        z, mask = self._as_grids(z, mask)
        return self.of_grids.update(params, state, z, codes, key, mask, axis_name, weights)

    def decode(self, params, state, codes) -> jax.Array:
        """Its vectors, in rows."""
        return self._as_rows(self.of_grids.decode(params, state, codes))

    def _as_grids(self, z, mask):
        shape = (*z.shape[:-2], -1, *self.of_grids.grid)
        return z.reshape(*shape, z.shape[-1]), None if mask is None else mask.reshape(shape)

    def _as_rows(self, z):
        lead = z.ndim - 2 - len(self.of_grids.grid)
        return z.reshape(*z.shape[:lead], -1, z.shape[-1])


def replicated(q: Quantizer, params: Any, state: Any, z: jax.Array, mask: jax.Array) -> Any:
    """A step of replicas: (codes, mean loss, state) with a leading axis of replicas.

    By `shard_map` over as many devices where there are so many, else by `vmap`.

    Args:
      q, params, state: a quantizer.
      z: [replicas, ..., D].
      mask: bool [replicas, ...].
    """

    def run(params, state, z, mask):
        out = q.quantize(params, state, z, KEY, mask, 'i')
        after = q.update(params, state, z, out.codes, KEY, mask, 'i')
        return out.codes, ops.pmean(out.loss, 'i'), after

    def shard(params, state, z, mask):
        return jax.tree.map(lambda x: x[None], run(params, state, z[0], mask[0]))

    replicas = len(z)
    if jax.device_count() >= replicas:
        mesh = jax.make_mesh((replicas,), ('i',), axis_types=(jax.sharding.AxisType.Auto,))
        split, same = jax.sharding.PartitionSpec('i'), jax.sharding.PartitionSpec()
        mapped = jax.shard_map(
            shard, mesh=mesh, in_specs=(same, same, split, split), out_specs=split
        )
    else:
        mapped = jax.vmap(run, in_axes=(None, None, 0, 0), axis_name='i')
    return jax.tree.map(np.asarray, jax.jit(mapped)(params, state, z, mask))


def _moved(leaf):
    """The leaf after something like an optimizer's step; zeros move too."""
    leaf = np.asarray(leaf)
    noise = np.random.default_rng(1).normal(size=leaf.shape)
    size = np.sqrt(np.mean(np.square(leaf, dtype=np.float64))) or 1.0
    return jnp.asarray((leaf + 0.05 * size * noise).astype(leaf.dtype))


def assert_finite(tree: Any, what: str) -> None:
    """Every number of the tree is finite."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = what + jax.tree_util.keystr(path)
        assert np.isfinite(np.asarray(leaf, np.float64)).all(), f'{name} is not finite'


def assert_same(a: Any, b: Any, what: str, exact: bool = True) -> None:
    """Trees of one structure with the same numbers: to the bit, or to float32 summation order."""
    assert jax.tree.structure(a) == jax.tree.structure(b), f'{what}: {a} and {b}'
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        name, x, y = what + jax.tree_util.keystr(path), np.asarray(x), np.asarray(y)
        if exact:
            np.testing.assert_array_equal(x, y, err_msg=name)
        else:
            np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5, err_msg=name)
