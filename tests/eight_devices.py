"""Run by test_transforms in a process with 8 CPU devices: what they compute equals one device's.

Under pmap, as they are trained, and under shard_map, which runs the same collectives. An argument
is how many of the quantizers to try.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, PartitionSpec

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from vqjax import (  # noqa: E402
    FSQ,
    IBQ,
    LFQ,
    VQ,
    VQEMA,
    Banked,
    Conditioned,
    Guarded,
    GumbelSoftmax,
    LatentQuantization,
    Levels,
    MultiScale,
    Product,
    QINCo,
    Residual,
    VariableRate,
    ops,
)

EAGER = ops.Revival(below=0.9, every=1)
STEPS = 20
QUANTIZERS = [
    VQEMA(8, decay=0.9, revival=EAGER),
    VQ(8, decay=0.9, revival=ops.Revival(0.9, 1, ops.error_rows)),
    Residual(VQEMA(8, decay=0.9, revival=EAGER), 3, dropout='sample'),
    VQEMA(8, decay=0.9, revival=ops.Revival(0.9, 1, ops.anchors)),
    Product(VQEMA(8, decay=0.9, revival=ops.Revival(0.9, 1, ops.split)), 2),
    Banked(VQEMA(8, decay=0.9, revival=ops.Revival(0.9, 1, ops.kmeans_rows)), 96, 24),
    Guarded(VQEMA(24, decay=0.9, init='normal', revival=None), least=32.0, cooldown=2),
    VQ(8, decay=0.9, assignment=ops.Sinkhorn()),
    GumbelSoftmax(8, diversity=0.1),
    LFQ(4),
    MultiScale(VQEMA(8, decay=0.9, revival=EAGER), (1, 2, (2, 4)), phi=(0.5,)),
    MultiScale(VQEMA(8, decay=0.9, revival=EAGER), ((1, 2), (2, 4)), dropout='sample'),
    # Two levels of unlike quantizers, statistics and noise: each has a key and sums of its own.
    Levels((VQEMA(8, decay=0.9, revival=EAGER), VQ(6, decay=0.9, temperature=0.1)), (3, 5)),
    LatentQuantization((5, 4, 3, 2)),
    # Started with rows: between centroids of integers there are ties, for rounding to decide.
    VQ(8, init='batch_rows', balance=0.1, revival=None),
    Residual(VQ(8, init='batch_rows', revival=None), 2, similarity=0.1),
    QINCo(4, 2, hidden=8),
    # Running means, and a level that each entry draws.
    Residual(Conditioned(FSQ((5, 4, 3, 5)), decay=0.9), 2),
    VariableRate(Residual(VQEMA(8, decay=0.9), 3), rate=0.1, drawn=(0.5, 4.0)),
    VQ(8, init='batch_rows', wasserstein=0.5, revival=None),
]


def program(q, axis_name):
    """k-means start and 20 training steps: z [20, n, 4] and mask [20, n] to codes, loss, state.

    What is returned has a leading axis of steps.
    """

    def run(z, mask):
        z, mask = (x.reshape(STEPS, -1, *q.grid, *x.shape[2:]) for x in (z, mask))
        params, state = q.init(jax.random.key(0), z[0], mask[0], axis_name)

        def step(carry, inputs):
            state, seed = carry
            z, mask = inputs
            key = jax.random.fold_in(jax.random.key(1), seed)
            out = q.quantize(params, state, z, key, mask, axis_name)
            state = q.update(params, state, z, out.codes, key, mask, axis_name)
            return (state, seed + 1), (out.codes, out.loss, state)

        _, (codes, loss, states) = jax.lax.scan(step, (state, 0), (z, mask))
        return codes, ops.pmean(loss, axis_name), states

    return run


def compare(name, q, expected, codes, loss, state):
    np.testing.assert_array_equal(np.asarray(expected[0]), np.asarray(codes), err_msg=name)
    np.testing.assert_allclose(expected[1], loss, rtol=1e-4, atol=1e-5, err_msg=name)
    for a, b in zip(jax.tree.leaves(expected[2]), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=f'{name} {q}')


def compare_index_gradients(mesh, z, mask):
    """IBQ's own backward pass: its gradient to the codes is summed over replicas."""
    q = IBQ(12, entropy=0.1, inv_temperature=1.0)
    codebook, _ = q.init(jax.random.key(0), z, mask)

    def gradients(codebook, z, mask, axis_name=None):
        def loss(codebook, z):
            out = q.quantize(codebook, (), z, None, mask, axis_name)
            return ops.pmean(jnp.mean(jnp.sin(out.z_q)) + out.loss, axis_name)

        return jax.grad(loss, (0, 1))(codebook, z)

    rows, whole = PartitionSpec('i'), PartitionSpec()
    sharded = jax.shard_map(
        lambda *args: gradients(*args, 'i'),
        mesh=mesh,
        in_specs=(whole, rows, rows),
        out_specs=(whole, rows),
    )
    expected, got = (jax.jit(f)(codebook, z, mask) for f in (gradients, sharded))
    for a, b in zip(expected, got, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6, err_msg=repr(q))


def main():
    assert jax.device_count() == 8
    # 64ths: their sums are exact, and unlike whole numbers they seldom lie between two codes, where
    # the rounding of a product decides.
    z = jnp.round(384 * jax.random.normal(jax.random.key(3), (STEPS, 64, 4))) / 64
    # One device has nothing but padding in every step, another in some.
    mask = jnp.ones((STEPS, 64), bool).at[:, 16:24].set(False).at[5:9, 40:48].set(False)
    mesh = jax.make_mesh((8,), ('i',), axis_types=(AxisType.Auto,))
    split = PartitionSpec(None, 'i')
    asked = QUANTIZERS[: int(sys.argv[1])] if sys.argv[1:] else QUANTIZERS
    for q in asked:
        expected = jax.jit(program(q, None))(z, mask)
        if isinstance(q, Guarded):
            assert int(expected[2].refits[-1]) > 0, 'a guard that does nothing shows nothing'
        shards = (
            jnp.moveaxis(z.reshape(STEPS, 8, 8, 4), 1, 0),
            jnp.moveaxis(mask.reshape(STEPS, 8, 8), 1, 0),
        )
        codes, loss, state = jax.pmap(program(q, 'i'), axis_name='i')(*shards)
        codes = jnp.moveaxis(codes, 0, 1).reshape(expected[0].shape)
        for replica in range(8):
            part = jax.tree.map(lambda x, r=replica: x[r], (loss, state))
            compare('pmap', q, expected, codes, *part)
        sharded = jax.shard_map(
            program(q, 'i'),
            mesh=mesh,
            in_specs=(split, split),
            out_specs=(split, PartitionSpec(), PartitionSpec()),
        )
        compare('shard_map', q, expected, *jax.jit(sharded)(z, mask))
    compare_index_gradients(mesh, z[0], mask[0])
    print(f'agree: {len(asked)} quantizers, {STEPS} steps, 8 devices')


main()
