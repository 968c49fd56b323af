"""Run by test_sharding in a process with 8 CPU devices: what it finds, as JSON on the last line.

Its arguments are the parts to run.
"""

import contextlib
import json
import math
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

sys.path[:0] = [str(pathlib.Path(__file__).parents[1]), str(pathlib.Path(__file__).parent)]

from support import first_of_their_kind, table  # noqa: E402

from vqjax import (  # noqa: E402
    FSP,
    FSQ,
    IBQ,
    LFQ,
    VQ,
    VQEMA,
    Banked,
    BinaryMapper,
    Conditioned,
    Guarded,
    GumbelSoftmax,
    LatentQuantization,
    MultiScale,
    Product,
    Projected,
    QINCo,
    RandomProjection,
    Residual,
    Rotated,
    SimVQ,
    SphericalLattice,
    TurboQuant,
    VariableRate,
    codec,
    ops,
)
from vqjax.quantizers import device_mesh, shardings  # noqa: E402

# More than a tile of rows on CPU (8,192): below that the compiler finds nothing to gather. With
# lanes that ignore the mesh every search here gathers its rows.
N, D, K = 10_240, 16, 16
EAGER = ops.Revival(below=0.9, every=1)
KMEANS = ops.Revival(below=0.9, every=1, source=ops.kmeans_rows)
# Rows of the batch to start from: what a stage leaves of integers is integers again.
BLOCK = VQEMA(K, decay=0.8, init=ops.batch_rows, revival=EAGER)


def collapsed(key, z, k, mask=None, axis_name=None):
    """A start with one code for everything, so that a guard has something to do."""
    del key, mask, axis_name
    return ops.Start(1e3 * jnp.ones((k, z.shape[-1])).at[0].set(0.0), jnp.ones(k))


# Those that take little to compile, and the others.
QUICK = [
    VQEMA(K, decay=0.8, revival=EAGER),
    VQEMA(
        K,
        metric='cosine',
        init=ops.batch_rows,
        gradient=ops.rotate,
        revival=ops.Revival(0.9, 1, ops.anchors),
    ),
    VQ(
        K,
        init=ops.batch_rows,
        diversity=0.1,
        orthogonality=0.1,
        revival=ops.Revival(0.9, 1, ops.error_rows),
    ),
    SimVQ(K),
    SimVQ(K, assignment=ops.Sinkhorn(), length=1.0),  # shorter codes, closer calls
    IBQ(K, init=ops.batch_rows, entropy=0.1),
    FSQ((3,) * D),
    LatentQuantization((3,) * D),
    RandomProjection(K, 4),
    Guarded(VQEMA(K, init=collapsed, revival=None), least=16.0, cooldown=1),
    Projected(Product(SimVQ(K), 2, shared=True), 4),
]
PRODUCTS = Residual(Product(VQ(K, init=ops.batch_rows, revival=EAGER), 2), 2)
OTHERS = [
    LFQ(D),
    Rotated(FSP((3,) * D)),
    BinaryMapper(4),
    QINCo(K, 2, hidden=8),
    TurboQuant(D),
    Product(SphericalLattice(8), 2),
    Residual(Conditioned(FSQ((3,) * D)), 2),
    VariableRate(Residual(BLOCK, 2), level=1.13),
    GumbelSoftmax(K, diversity=0.1),
    Banked(VQEMA(K, init=ops.batch_rows, revival=KMEANS), size=256, fresh=64),
    Residual(BLOCK, 2, beam=3),
    PRODUCTS,
    Product(Residual(BLOCK, 2, dropout='sample'), 2),
    MultiScale(BLOCK, (1, 2, 4, 8), phi=(0.5, 0.5)),
]
MOVES = ('all-gather', 'all-to-all', 'collective-permute')
COLLECTIVE = re.compile(rf'= (.*?) ({"|".join(MOVES)}|all-reduce|reduce-scatter)(?:-start)?\(')
KEY = jax.random.key(1)


def mesh(kind, shape=(4, 2)):
    return jax.make_mesh(shape, ('data', 'model'), axis_types=(kind,) * 2)


def batch(n=N, dim=D, seed=0):
    """Integers: their sums are exact in any order, so a choice has no excuse to differ."""
    return jnp.round(4 * jax.random.normal(jax.random.key(seed), (n, dim)))


def collectives(compiled):
    """(kind, elements of its largest result) of each collective in a compiled program."""
    found = []
    for line in compiled.as_text().splitlines():
        if match := COLLECTIVE.search(line):
            shapes = re.findall(r'\[([\d,]*)\]', match[1])
            found.append((match[2], max(int(np.prod(json.loads(f'[{s}]'))) for s in shapes)))
    return found


def moved(compiled, share):
    """Collectives that carry at least `share` elements; sums of a codebook's size are not z's."""
    return [c for c in collectives(compiled) if c[1] >= share]


def train(q, axis_name=None):
    """A start and a step: z to codes, (loss, gradient), state."""

    def run(z):
        params, state = q.init(jax.random.key(0), z, None, axis_name)
        return step(q, axis_name)(params, state, z)

    return run


def step(q, axis_name=None):
    def run(params, state, z):
        def loss(z):
            out = q.quantize(params, state, z, KEY, None, axis_name)
            total = jnp.sum(out.z_q) / z.size + out.loss
            return total, (out.codes, out.loss)

        slope, (codes, value) = jax.grad(loss, has_aux=True)(z)
        return codes, (value, slope), q.update(params, state, z, codes, KEY, None, axis_name)

    return run


def compiled(function, *args):
    return jax.jit(function).lower(*args).compile()


def difference(expected, got):
    """[codes that differ, the largest relative difference of anything else]."""
    worst = 0.0
    for a, b in zip(jax.tree.leaves(expected[1:]), jax.tree.leaves(got[1:]), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        worst = max(worst, float(np.max(np.abs(a - b) / np.maximum(np.abs(a), 1), initial=0)))
    return [int((np.asarray(expected[0]) != np.asarray(got[0])).sum()), worst]


def search():
    """The search over every split of rows and codes: by kind of axes, with the mesh set or not."""
    z, codebook = batch(), batch(1024, seed=1)
    expected = np.asarray(ops.nearest_codes(z, codebook))
    splits = {
        'rows over data': (P('data'), P()),
        'rows over both': (P(('data', 'model')), P()),
        'codes over model': (P('data'), P('model')),
        'codes over both': (P(), P(('data', 'model'))),
    }
    rows = []
    for kind in (AxisType.Auto, AxisType.Explicit):
        on = mesh(kind)
        for name, specs in splits.items():
            args = [
                jax.device_put(x, NamedSharding(on, spec))
                for x, spec in zip((z, codebook), specs, strict=True)
            ]
            for given in (False, True):
                if (given or kind == AxisType.Explicit) and name == 'codes over both':
                    continue
                with jax.set_mesh(on) if given else contextlib.nullcontext():
                    run = compiled(ops.nearest_codes, *args)
                    codes = run(*args)
                rows.append(
                    {
                        'case': f'{kind.name}, {name}, set_mesh={given}',
                        'wrong': int((np.asarray(codes) != expected).sum()),
                        'collectives': collectives(run),
                        'spec': [str(codes.sharding.spec), str(specs[0])],
                    }
                )
    # The mesh named by in_shardings alone: nothing in the types says that there is one.
    on = mesh(AxisType.Auto)
    named = jax.jit(ops.nearest_codes, in_shardings=(NamedSharding(on, P('data')), None))
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (z, codebook)]
    unknown = collectives(named.lower(*shapes).compile())
    # Features split: the rows are made whole, not the scores added up.
    args = [jax.device_put(z, NamedSharding(on, P('data', 'model'))), codebook]
    features = collectives(compiled(ops.nearest_codes, args[0], jax.device_put(codebook)))
    return {'rows': rows, 'in_shardings': unknown, 'features': features}


def steps(cases, kind):
    """Start and step of these quantizers, rows over both axes, against one device."""
    on, rows = mesh(kind), {}
    for q in cases:
        z = batch().reshape(-1, *q.grid, D)
        split = jax.device_put(z, NamedSharding(on, P(('data', 'model'))))
        single = jax.device_put(z, jax.devices()[0])
        run = compiled(train(q), split)
        got = run(split)
        rows[repr(q)] = {
            'difference': difference(jax.jit(train(q))(single), got),
            'moved': moved(run, N * D // 8),
            'codes': str(got[0].sharding.spec),
        }
        if isinstance(q, Guarded):
            rows[repr(q)]['refits'] = int(got[2].refits)
    return rows


def partly_manual():
    """shard_map over one axis of two, the other left to the compiler."""
    on, z = mesh(AxisType.Auto), batch()
    rows = {}
    for q in (PRODUCTS,):
        mapped = jax.shard_map(
            lambda z, q=q: train(q, 'data')(z)[::2],
            mesh=on,
            in_specs=P('data'),
            out_specs=(P('data'), P()),
            axis_names={'data'},
        )
        split = jax.device_put(z, NamedSharding(on, P(('data', 'model'))))
        run = compiled(mapped, split)
        rows[repr(q)] = {
            'difference': difference(jax.jit(train(q))(z)[::2], run(split)),
            'moved': moved(run, N * D // 8),
        }
    return rows


def split_codebooks():
    """Steps with the codes over the model axis: the state that comes out is split as it went in."""
    z, rows = batch(), {}
    cases = {
        AxisType.Auto: VQEMA(1024, init=ops.batch_rows, revival=EAGER),
        AxisType.Explicit: Residual(VQ(512, init=ops.batch_rows, revival=EAGER), 2),
    }
    for kind, q in cases.items():
        on = mesh(kind)
        split = jax.device_put(z, NamedSharding(on, P('data')))
        started = jax.jit(q.init)(jax.random.key(0), z)
        placed = jax.device_put(started, shardings(q, *started, on, 'model'))
        run = compiled(step(q), *placed, split)
        got = run(*placed, split)
        before, after = jax.tree.leaves(placed[1]), jax.tree.leaves(got[2])
        rows[f'{kind.name} {q!r}'] = {
            'difference': difference(jax.jit(step(q))(*started, z), got),
            'kept': all(
                a.sharding.is_equivalent_to(b.sharding, a.ndim)
                for a, b in zip(before, after, strict=True)
            ),
            'split': sum(any(x.sharding.spec) for x in after),
            'moved': [c for c in moved(run, N * D // 8) if c[0] in MOVES],
        }
    return rows


def refusals():
    """What bad input is told."""
    on, z = mesh(AxisType.Auto), batch(64, 8)
    q = VQEMA(10)
    shapes = jax.eval_shape(q.init, jax.random.key(0), z)
    state = VQEMA(8).init(jax.random.key(0), z)[1]
    half = jax.make_mesh((4,), ('data',), devices=jax.devices()[:4])
    calls = {
        'codes': lambda: shardings(q, *shapes, jax.make_mesh((2, 4), ('data', 'model')), 'model'),
        'axis': lambda: shardings(q, *shapes, on, 'modle'),
        'mesh': lambda: device_mesh(data=3, model=2),
        'axis_name': lambda: jax.jit(lambda z: VQEMA(8).init(KEY, z, axis_name='batch'))(z),
        'two meshes': lambda: VQEMA(8).quantize(
            (),
            jax.device_put(state, NamedSharding(half, P())),
            jax.device_put(z, NamedSharding(on, P('data'))),
        ),
    }
    told = {}
    for name, call in calls.items():
        try:
            call()
        except ValueError as error:
            told[name] = str(error)
    return told


def explicit_traces(entries):
    """Entries of the contract table over Explicit axes: what does not trace, and says what."""
    on, failed = mesh(AxisType.Explicit), {}
    for name, q in entries.items():
        z = batch(64 * math.prod(q.grid), 8).reshape(64, *q.grid, 8)
        z = jax.device_put(z, NamedSharding(on, P('data')))
        try:
            out = jax.jit(train(q)).trace(z).out_info
            assert jax.typeof(z).sharding.spec[0] == out[0].sharding.spec[0], out[0].sharding
        except Exception as error:  # noqa: BLE001 - all of them are to be reported
            failed[name] = f'{type(error).__name__}: {error}'[:300]
    return failed


def fits():
    """`codec.fit` on the mesh beside one device: (codes that differ, errors of both, steps).

    Neither the sample nor the last batch is a multiple of the devices.
    """
    z = np.asarray(batch(1001, 4))
    cases = {
        AxisType.Auto: VQEMA(8, revival=EAGER),
        AxisType.Explicit: Residual(VQ(4, init=ops.batch_rows), 2),
    }
    found = []
    for kind, q in cases.items():
        one, many = (
            codec.fit(q, KEY, (z[i : i + 400] for i in range(0, 1001, 400)), mesh=on)
            for on in (None, mesh(kind))
        )
        differ = int((one.encode(z) != many.encode(z)).sum())
        found.append((differ, one.info['error'], many.info['error'], many.info['steps']))
    return found


def guide():
    """The programs of docs/parallel.md on these devices: how many ran."""
    page = (pathlib.Path(__file__).parents[1] / 'docs' / 'parallel.md').read_text()
    blocks, names = re.findall(r'^```python\n(.*?)^```', page, re.MULTILINE | re.DOTALL), {}
    for block in blocks:
        assert len(block.splitlines()) <= 25, block
        exec(block, names)
    return len(blocks)


def main():
    parts = {
        'search': search,
        'auto': lambda: steps(QUICK, AxisType.Auto),
        'auto, others': lambda: steps(OTHERS, AxisType.Auto),
        'explicit, others': lambda: steps([Residual(BLOCK, 2, beam=3)], AxisType.Explicit),
        'explicit': lambda: steps([LFQ(D)], AxisType.Explicit),
        'partly manual': partly_manual,
        'split codebooks': split_codebooks,
        'explicit traces': lambda: explicit_traces(first_of_their_kind(table())),
        'all explicit traces': lambda: explicit_traces(table()),
        'refusals': refusals,
        'fits': fits,
        'guide': guide,
    }
    print(json.dumps({name: parts[name]() for name in sys.argv[1:]}))


if __name__ == '__main__':
    assert jax.device_count() == 8
    main()
