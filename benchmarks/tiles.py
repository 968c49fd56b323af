"""Sizes of the search's tiles on a CPU: python benchmarks/tiles.py

Sizes of tiles, and numbers of codes that share a minimum, are compared with what
`vqjax/ops/nearest.py` chooses, in the same round. What turns out to be the same program is timed
too: its ratio to the choice is the noise. Two minutes on two cores; --quick takes seconds.
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
GROUPS = [1, 16, 32]


def searcher(tile):
    """The search with these tiles, else as `nearest_codes` on a CPU."""
    way = nearest._FOLDED
    return jax.jit(lambda z, c: nearest._search(z, c, 'euclidean', 'highest', way, tile))


def searchers(sizes, groups):
    """The search as chosen, and each other one by its name in the table."""
    chosen = nearest._TILE_CPU
    found = {CHOSEN: searcher(chosen)}
    for codes, rows in sizes:
        size = chosen._replace(codes=codes, rows=lambda *_, rows=rows: rows)
        found[f'{codes:,} x {rows:,}'] = searcher(size)
    for group in groups:
        size = chosen._replace(group=lambda _, group=group: group)
        found[f'groups of {group}'] = searcher(size)
    return found


def measure(n, d, k, sizes, groups, repeats):
    """One row: of each its time as a multiple of the chosen one's, (median, least, most)."""
    given = jax.device_put(search._data(n, d, k))
    functions = searchers(sizes, groups)
    programs = {name: function.lower(*given).as_text() for name, function in functions.items()}
    runs = {
        name: lambda f=function: jax.block_until_ready(f(*given))
        for name, function in functions.items()
    }
    times, floor = common.measure_with_floor(runs, repeats, CHOSEN, [common.Products(n, d, k)])
    row = {'N': n, 'D': d, 'K': k, 'runs': common.summary(times), **floor, 'of_the_rule': {}}
    for name in list(runs)[1:]:
        ratio = np.divide(times[name], times[CHOSEN])
        row['of_the_rule'][name] = {
            'ratio': [round(float(f(ratio)), 3) for f in (np.median, np.min, np.max)],
            'same_program': programs[name] == programs[CHOSEN],
        }
    print(f'{n} x {d} x {k}:', row['ratio_to_floor'], row['of_the_rule'])
    return row


def main(argv=None):
    """Measure, write tiles.json."""
    options = common.arguments(common.parser(__doc__), argv)
    shapes, sizes, groups, repeats = (
        ([(1_000, 8, 300)], SIZES[:2], GROUPS[:1], 1)
        if options.quick
        else (SHAPES, SIZES, GROUPS, 9)
    )
    rows = [measure(*shape, sizes, groups, repeats) for shape in shapes]
    common.write(options.out, 'tiles', {'rows': rows})


if __name__ == '__main__':
    main()
