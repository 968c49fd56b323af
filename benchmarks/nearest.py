"""Nearest-code search against faiss, torch and a bare product: python benchmarks/nearest.py

Times, ratios to faiss and to the products alone (the floor) in the same round, choices against
float64, memory, and time against K up to 2^18 codes and against N. About two minutes on two cores;
--quick takes seconds.
"""

from __future__ import annotations

import functools

import common
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vqjax.ops import nearest_codes

# N, D, K. In the last products weigh more than the minimum, in the one before less.
SHAPES = [
    (65_536, 64, 1_024),
    (65_536, 128, 1_024),
    (16_384, 128, 8_192),
    (40_000, 48, 3_000),
    (32_768, 256, 4_096),
]
QUICK_SHAPES = [(2_048, 16, 64), (1_000, 24, 300)]
OURS, FAISS, TORCH = 'vqjax', 'faiss IndexFlatL2', 'torch cdist + argmin'
PRODUCT, ARGMIN, HALF = 'bare product z @ c.T', 'XLA argmin over N x K', 'vqjax, bfloat16'


@jax.jit
def _product(z, codebook):
    return jnp.matmul(z, codebook.T, precision=lax.Precision.HIGHEST)


@jax.jit
def _argmin(z, codebook):
    return jnp.argmin(0.5 * jnp.sum(codebook**2, -1) - _product(z, codebook), -1)


def _data(n, d, k):
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, d), np.float32), rng.standard_normal((k, d), np.float32)


def _jax_run(function, z, codebook):
    z, codebook = jax.device_put((z, codebook))
    return lambda: jax.block_until_ready(function(z, codebook))


def _runs(n, d, k, names):
    """The runs of these names, on the same data."""
    z, codebook = _data(n, d, k)
    functions = {
        OURS: jax.jit(nearest_codes),
        HALF: jax.jit(functools.partial(nearest_codes, precision='bfloat16')),
        PRODUCT: _product,
        ARGMIN: _argmin,
    }
    runs = {name: _jax_run(functions[name], z, codebook) for name in names if name in functions}
    if FAISS in names:
        import faiss

        index = faiss.IndexFlatL2(d)
        index.add(codebook)
        runs[FAISS] = lambda: index.search(z, 1)
    if TORCH in names:
        import torch

        torch_z, torch_codebook = torch.from_numpy(z), torch.from_numpy(codebook)
        runs[TORCH] = lambda: torch.cdist(torch_z, torch_codebook).argmin(-1)
    return runs


def against_float64(n, d, k):
    """How often and by how much the chosen code is farther than the nearest in float64."""
    z, codebook = _data(n, d, k)
    z = z[:4096]
    codes = np.asarray(nearest_codes(z, codebook))
    z, codebook = z.astype(np.float64), codebook.astype(np.float64)
    scores = 0.5 * (codebook**2).sum(-1) - z @ codebook.T
    excess = scores[np.arange(len(z)), codes] - scores.min(-1)
    size = np.linalg.norm(z, axis=-1) * np.linalg.norm(codebook, axis=-1).max()
    return {
        'rows': len(z),
        'disagreements': int((codes != scores.argmin(-1)).sum()),
        # In units of float32 rounding, 2^-24 of |z||c|.
        'largest_excess_in_roundings': round(float((excess / size).max() * 2**24), 3),
    }


def memory(n, d, k):
    """Bytes of a compiled search beyond its inputs and output."""
    shapes = [jax.ShapeDtypeStruct((size, d), jnp.float32) for size in (n, k)]
    compiled = jax.jit(nearest_codes).lower(*shapes).compile()
    return {'N': n, 'D': d, 'K': k, 'bytes': compiled.memory_analysis().temp_size_in_bytes}


def search(shapes, repeats, peers):
    """The table of shapes, and the geometric mean of the ratios to faiss."""
    rows = []
    for n, d, k in shapes:
        runs = _runs(n, d, k, [OURS, PRODUCT, ARGMIN, HALF, *peers])
        products = [common.Products(n, d, k)]
        times, floor = common.measure_with_floor(runs, repeats, OURS, products)
        row = {'N': n, 'D': d, 'K': k, 'runs': common.summary(times), **floor}
        row['ratio_to_faiss'] = common.ratio(times, OURS, FAISS)
        row['float64'] = against_float64(n, d, k)
        rows.append(row)
        shown = f'{row["ratio_to_faiss"]} of faiss, {row["ratio_to_floor"]} of the floor'
        print(f'{n} x {d} x {k}: {shown}', row['runs'][OURS])
    return {
        'rows': rows,
        'geometric_mean_ratio_to_faiss': common.geometric_mean([r['ratio_to_faiss'] for r in rows]),
    }


def sweep(shapes, repeats, peers):
    """Time of each shape, for the plots and the table of large codebooks."""
    rows = []
    for n, d, k in shapes:
        times = common.measure(_runs(n, d, k, [OURS, *peers]), repeats)
        row = {'N': n, 'D': d, 'K': k, 'runs': common.summary(times)}
        row['ratio_to_faiss'] = common.ratio(times, OURS, FAISS)
        row['ns_per_score'] = round(row['runs'][OURS]['median_ms'] * 1e6 / (n * k), 4)
        row['extra_bytes'] = memory(n, d, k)['bytes']
        rows.append(row)
        print(n, d, k, row['runs'], row['ns_per_score'])
    return rows


def main(argv=None):
    """Measure, write nearest.json and nearest.png."""
    options = common.arguments(common.parser(__doc__), argv)
    quick = options.quick
    peers = [FAISS] * common.available(quick, 'faiss-cpu')
    peers += [TORCH] * common.available(quick, 'torch')
    repeats = 2 if quick else 7
    codes = [64, 256] if quick else [2**i for i in range(8, 19, 2)]
    rows = [256, 512] if quick else [2**i for i in range(8, 17, 2)]
    results = {
        'search': search(QUICK_SHAPES if quick else SHAPES, repeats, peers),
        'memory': memory(262_144, 128, 8_192),
        'against_K': sweep([(1_024, 64, k) for k in codes], min(repeats, 5), peers),
        'against_N': sweep([(n, 64, 1_024) for n in rows], min(repeats, 5), peers),
    }
    common.write(options.out, 'nearest', results)
    panels = [
        ('1,024 vectors of 64', 'codes K', common.lines(results['against_K'], 'K')),
        ('1,024 codes of 64', 'vectors N', common.lines(results['against_N'], 'N')),
    ]
    common.plot_times(options.out / 'nearest.png', panels)


if __name__ == '__main__':
    main()
