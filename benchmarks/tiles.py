"""Sizes of the search's tiles on a CPU: python benchmarks/tiles.py

Each size is compared with what the rule of `vqjax/ops/nearest.py` chooses, in the same round. About
a minute on two cores; --quick takes seconds.
"""

from __future__ import annotations

import common
import jax
import nearest as search
import numpy as np

from vqjax.ops import nearest

CHOSEN = 'as chosen'
SHAPES = [*search.SHAPES[:4], (50_000, 16, 256)]
# Codes and rows of a tile, at most.
SIZES = [(1024, 256), (1024, 384), (1024, 512), (1024, 1024), (2048, 384), (2048, 768), (256, 4096)]


def searcher(tile):
    """The search with these tiles, else as `nearest_codes` on a CPU."""
    way = nearest._FOLDED._replace(group=nearest._group_on_cpu)
    return jax.jit(lambda z, c: nearest._search(z, c, 'euclidean', 'highest', way, tile))


def measure(n, d, k, sizes, repeats):
    """One row: of each size its time as a multiple of the rule's, (median, least, most)."""
    given = jax.device_put(search._data(n, d, k))
    tiles = {CHOSEN: nearest._TILE_CPU}
    for codes, rows in sizes:
        size = nearest._Tile(codes, lambda *_, rows=rows: rows, nearest._TILE_CPU.scores)
        tiles[f'{codes:,} x {rows:,}'] = size
    functions = {name: searcher(tile) for name, tile in tiles.items()}
    runs = {
        name: lambda f=function: jax.block_until_ready(f(*given))
        for name, function in functions.items()
    }
    times, floor = common.measure_with_floor(runs, repeats, CHOSEN, [common.Products(n, d, k)])
    ratios = {name: np.divide(times[name], times[CHOSEN]) for name in runs if name != CHOSEN}
    row = {'N': n, 'D': d, 'K': k, 'runs': common.summary(times), **floor}
    row['of_the_rule'] = {
        name: [round(float(f(ratio)), 3) for f in (np.median, np.min, np.max)]
        for name, ratio in ratios.items()
    }
    print(f'{n} x {d} x {k}:', row['ratio_to_floor'], row['of_the_rule'])
    return row


def main(argv=None):
    """Measure, write tiles.json."""
    options = common.arguments(common.parser(__doc__), argv)
    shapes, sizes, repeats = (
        ([(1_000, 8, 300)], SIZES[:2], 1) if options.quick else (SHAPES, SIZES, 9)
    )
    rows = [measure(*shape, sizes, repeats) for shape in shapes]
    common.write(options.out, 'tiles', {'rows': rows})


if __name__ == '__main__':
    main()
