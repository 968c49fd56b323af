"""The part `search` of accelerator.py: fused kernel, tiles, bare products, choices checked."""

from __future__ import annotations

import contextlib
import functools
import os
import statistics
import sys
from collections.abc import Mapping

import common
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vqjax.ops import nearest_codes

FUSED, TILES = 'fused', 'tiles'
PRODUCT, ARGMIN = 'bare product z @ c.T', 'XLA argmin over N x K'
# Of the inputs, and of the product in the search.
CASES = [('float32', 'highest'), ('bfloat16', 'highest'), ('bfloat16', 'bfloat16')]
SHAPE, QUICK_SHAPE = (262_144, 128, 8_192), (300, 16, 70)
# Rounds of a comparison: as many as fit into the seconds, between these.
ROUNDS, SECONDS = (5, 30), 20.0
# A choice is right where it is farther than the nearest code by at most so many times the
# rounding of float32, 2^-24 |z||c|: both searches promise no more.
_ROUNDINGS = 4.0


def one_line(error: BaseException) -> str:
    """Type and message of an error, cut short."""
    return f'{type(error).__name__}: {" ".join(str(error).split())}'[:300]


@contextlib.contextmanager
def _fused(asked: bool):
    """`nearest_codes` traced in here uses the fused kernel, or tiles."""
    name = 'VQJAX_FUSED_SEARCH'
    before = os.environ.get(name)
    os.environ[name] = '1' if asked else '0'
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def _product(z, codebook, out=None):
    exact = lax.Precision.HIGHEST if z.dtype == jnp.float32 else None
    return jnp.matmul(z, codebook.T, precision=exact, preferred_element_type=out)


def _argmin(z, codebook):
    squares = jnp.sum(codebook.astype(jnp.float32) ** 2, -1)
    return jnp.argmin(0.5 * squares - _product(z, codebook, jnp.float32), -1)


def lower(name, z, codebook, precision, interpret=False, platform=None):
    """The search of this name, lowered for a platform, None for that of this machine.

    Raises whatever a compiler raises, and ValueError where no kernel came of `FUSED`.
    """
    function = {PRODUCT: _product, ARGMIN: _argmin}.get(name)
    if function is None:
        function = functools.partial(nearest_codes, precision=precision)
    if name == FUSED and interpret:
        from vqjax.ops.nearest_pallas import fused_search

        function = functools.partial(fused_search, precision=precision, interpret=True)
    with _fused(name == FUSED):
        platforms = None if platform is None else (platform,)
        lowered = jax.jit(function).trace(z, codebook).lower(lowering_platforms=platforms)
    if name == FUSED and not interpret and 'triton' not in lowered.as_text():
        raise ValueError(f'no kernel for {jax.devices()[0].device_kind}: it is for CUDA')
    return lowered


def _excess(z, codebook, codes):
    """float64 [n]: how much farther than the nearest the code is, in roundings of float32.

    `codes` int [n], or [2, n]: then how much farther the first is than the second.
    """
    z, codebook = np.asarray(z).astype(np.float64), np.asarray(codebook).astype(np.float64)
    halves = 0.5 * (codebook**2).sum(-1)
    size = np.linalg.norm(z, axis=-1) * np.linalg.norm(codebook, axis=-1).max()
    chosen = halves[codes] - (z * codebook[codes]).sum(-1)
    if np.ndim(codes) == 2:
        return (chosen[0] - chosen[1]) / size * 2**24
    return (chosen - (halves - z @ codebook.T).min(-1)) / size * 2**24


def _checks(z, codebook, codes: Mapping[str, np.ndarray]) -> dict:
    """Choices of all against float64 on some rows, and of the kernel against tiles on every row."""
    some = 4096
    found = {
        name: round(float(_excess(z[:some], codebook, c[:some]).max()), 3)
        for name, c in codes.items()
    }
    checks = {'largest_excess_in_roundings': found, 'rows_against_float64': min(some, len(z))}
    if {FUSED, TILES} <= codes.keys():
        rows = np.flatnonzero(codes[FUSED] != codes[TILES])
        both = np.stack([codes[FUSED][rows], codes[TILES][rows]])
        apart = np.abs(_excess(np.asarray(z)[rows], codebook, both))
        checks |= {
            'rows': len(z),
            'fused_differs': len(rows),
            'fused_differs_beyond_ties': int((apart > _ROUNDINGS).sum()),
        }
    return checks


def _case(shape, dtype, precision, names, quick, interpret):
    """One row: times, memory and choices of these searches; what failed, and how."""
    n, d, k = shape
    rng = np.random.default_rng(0)
    z, codebook = (
        jax.device_put(rng.standard_normal((size, d), np.float32).astype(dtype)) for size in (n, k)
    )
    compiled, failed, codes = {}, {}, {}
    for name in names:
        # A kernel that never ran may fail in any way, the product for want of memory: what the
        # others tell is kept.
        try:
            search = lower(name, z, codebook, precision, interpret).compile()
            found = jax.block_until_ready(search(z, codebook))
            if name != PRODUCT:
                codes[name] = np.asarray(found)
            del found
            compiled[name] = search
        except Exception as error:
            failed[name] = one_line(error)
            print(f'  {name}: {failed[name]}', file=sys.stderr)

    def run(search):
        jax.block_until_ready(search(z, codebook))

    runs = {name: functools.partial(run, s) for name, s in compiled.items()}
    times = common.measure_for(runs, SECONDS, *((1, 1) if quick else ROUNDS))
    row = {'N': n, 'D': d, 'K': k, 'inputs': dtype, 'precision': precision}
    row |= {'runs': common.summary(times), 'rounds': max(map(len, times.values()), default=0)}
    for name, search in compiled.items():
        memory = search.memory_analysis()
        row['runs'][name] |= {
            'tflops': round(2 * n * d * k / statistics.median(times[name]) / 1e9, 3),
            'extra_bytes': memory.temp_size_in_bytes,
            'output_bytes': memory.output_size_in_bytes,
        }
    row['fused_to_tiles'] = common.ratio(times, FUSED, TILES)
    row['fused_to_product'] = common.ratio(times, FUSED, PRODUCT)
    row['tiles_to_product'] = common.ratio(times, TILES, PRODUCT)
    return row | {'checks': _checks(z, codebook, codes), 'failed': failed}


def recommend(rows: list[dict], timed: bool = True) -> dict:
    """Which search should be the default here, None where that cannot be told, and why."""
    for row in rows:
        where = f'{row["inputs"]} inputs, precision {row["precision"]}'
        checks, failed = row['checks'], row['failed']
        excess = checks['largest_excess_in_roundings']
        if TILES in failed:
            return {'default': None, 'why': f'tiles failed ({where}): {failed[TILES]}'}
        if FUSED in failed:
            return {'default': TILES, 'why': f'fused failed ({where}): {failed[FUSED]}'}
        if excess[TILES] > _ROUNDINGS:
            return {'default': None, 'why': f'tiles choose other codes than float64 ({where})'}
        if FUSED in excess and (checks['fused_differs_beyond_ties'] or excess[FUSED] > _ROUNDINGS):
            return {'default': TILES, 'why': f'fused chooses other codes ({where})'}
    if any(FUSED not in row['checks']['largest_excess_in_roundings'] for row in rows):
        return {'default': TILES, 'why': 'the fused kernel is for CUDA'}
    if not timed:
        return {
            'default': None,
            'why': 'times of small shapes or an interpreted kernel say nothing',
        }
    ratios = [row['fused_to_tiles'] for row in rows]
    text = ', '.join(f'{r["fused_to_tiles"]} ({r["inputs"]}, {r["precision"]})' for r in rows)
    name = FUSED if max(ratios) < 1 else TILES
    return {'default': name, 'why': f'fused / tiles, time: {text}'}


def search(options) -> dict:
    """Fused kernel, tiles, bare product and XLA's argmin."""
    quick = options.quick
    interpret = jax.default_backend() == 'cpu'
    shape = QUICK_SHAPE if quick else SHAPE
    rest = [TILES, PRODUCT, ARGMIN]
    # The kernel second: one that upset the device would take the others' figures with it.
    measure = functools.partial(_case, shape, quick=quick, interpret=interpret)
    rows = [measure(*case, names=rest) for case in CASES]
    for i, case in enumerate(CASES):
        try:
            if jax.default_backend() != 'tpu':
                rows[i] = measure(*case, names=[*rest, FUSED])
        except Exception as error:
            rows[i]['failed'][FUSED] = one_line(error)
        print(f'  {case}:', {n: r['median_ms'] for n, r in rows[i]['runs'].items()}, 'ms')
    found = recommend(rows, timed=not (quick or interpret))
    print(f'  default: {found["default"]}, because: {found["why"]}')
    return {'rows': rows, 'interpreted': interpret, 'recommendation': found}
