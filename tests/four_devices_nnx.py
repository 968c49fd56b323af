"""Run by test_nnx_transforms in a process with 4 CPU devices: together they equal one device."""

import pathlib
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from vqjax import VQ, ops  # noqa: E402
from vqjax.nnx import CodebookStats, Quantize  # noqa: E402

# Parameters, statistics and revival in one.
LEARNED = VQ(8, decay=0.8, revival=ops.Revival(below=0.9, every=1))
MESH = jax.make_mesh((4,), ('i',), axis_types=(AxisType.Auto,))
ROWS, WHOLE = PartitionSpec('i'), PartitionSpec()


def made(axis_name):
    return Quantize(LEARNED, batch(0), axis_name=axis_name, rngs=nnx.Rngs(0))


def batch(seed):
    # Integers: sums are exact in any order.
    return jnp.round(4 * jax.random.normal(jax.random.key(seed), (64, 4)))


def step(model, z):
    """Codes and the gradients of a loss averaged over replicas."""

    def loss(model):
        out = model(z)
        loss = jnp.mean((out.z_q - 1) ** 2) + out.loss
        return ops.pmean(loss, model.axis_name), out.codes

    grads, codes = nnx.grad(loss, has_aux=True)(model)
    return codes, grads


def replica(model, z):
    codes, grads = step(model, z)
    # Under pmap each replica has the gradient of its own share; shard_map has summed them.
    return codes, jax.lax.pmean(grads, 'i')


ONE = nnx.jit(step)
PMAP = nnx.pmap(replica, in_axes=(None, 0), out_axes=(0, None), axis_name='i')
SHARD_MAP = nnx.jit(nnx.shard_map(step, mesh=MESH, in_specs=(WHOLE, ROWS), out_specs=(ROWS, WHOLE)))


def jitted(model, z):
    model.axis_name = None
    return ONE(model, jax.device_put(z, NamedSharding(MESH, ROWS)))


def pmapped(model, z):
    codes, grads = PMAP(model, z.reshape(4, 16, 4))
    return codes.reshape(64, *codes.shape[2:]), grads


def main():
    assert jax.device_count() == 4
    for replicas in (pmapped, SHARD_MAP, jitted):
        one, several = made(None), made('i')
        for seed in range(3):
            codes, grads = ONE(one, batch(seed))
            found, found_grads = replicas(several, batch(seed))
            np.testing.assert_array_equal(np.asarray(codes), np.asarray(found))
            chex.assert_trees_all_close(grads, found_grads, rtol=1e-4, atol=1e-6)
            chex.assert_trees_all_close(
                nnx.state(one, CodebookStats), nnx.state(several, CodebookStats), rtol=1e-5
            )
    print('agree: pmap, shard_map, jit on 4 devices')


main()
