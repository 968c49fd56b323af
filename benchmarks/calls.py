"""Calls of one or a few vectors outside jit: python benchmarks/calls.py

A robot, or a service that codes one item per request, calls `quantize`, `decode` and `update` with
few vectors, so what Python does before the program starts is a large part of the time. "Unchecked"
is the same method under `jax.jit`, whose arguments are checked only when it is traced. Quantizers
are those of the contract's table in `tests/support.py` (which needs pytest), the first of each
kind; --every takes the whole table, a quarter of an hour on one core. Else about a minute;
--quick takes seconds.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import common
import jax
import numpy as np

sys.path.append(str(Path(__file__).parent.parent / 'tests'))

CALL, UNCHECKED = 'call', 'unchecked'
_DIM = 8
_VECTORS = (1, 8)
_WARM = 20  # turns before those that count


def measure(function, args, turns):
    """Microseconds of each call and of each unchecked call, which take turns."""
    runs = {CALL: function, UNCHECKED: jax.jit(function)}
    times = {name: [] for name in runs}
    for round_ in range(turns + _WARM):
        for name, run in runs.items():
            start = common.clock()
            jax.block_until_ready(run(*args))
            if round_ >= _WARM:
                times[name].append(1e6 * (common.clock() - start))
    return times


def compare(name, quantizer, number, turns):
    """A row for each method: microseconds of a call, and the ratio to the unchecked call."""
    z = jax.random.normal(jax.random.key(0), (64, *quantizer.grid, _DIM))
    params, state = quantizer.init(jax.random.key(1), z)
    some = z[:number]
    codes = quantizer.quantize(params, state, some).codes
    sent = np.asarray(some)  # as they come from a sensor
    calls = {
        'quantize': (quantizer.quantize, (params, state, some)),
        'quantize, NumPy': (quantizer.quantize, (params, state, sent)),
        'decode': (quantizer.decode, (params, state, codes)),
        'update': (quantizer.update, (params, state, some, codes)),
    }
    rows = []
    for method, (function, args) in calls.items():
        times = measure(function, args, turns)
        row = {'quantizer': name, 'vectors': number, 'method': method}
        row['us'] = {k: round(statistics.median(t), 2) for k, t in times.items()}
        row['ratio'] = common.ratio(times, CALL, UNCHECKED)
        rows.append(row)
    return rows


def main(argv=None):
    """Measure, write calls.json."""
    parser = common.parser(__doc__)
    parser.add_argument('--every', action='store_true', help='the whole table of the contract')
    options = common.arguments(parser, argv)
    from support import first_of_their_kind, table

    first = first_of_their_kind(table())
    entries = table() if options.every else first
    if options.quick:
        entries = dict(list(entries.items())[:2])
    rows = []
    for name, quantizer in entries.items():
        for number in _VECTORS:
            found = compare(name, quantizer, number, 3 if options.quick else 300)
            ratios = ', '.join(f'{row["method"]} {row["ratio"]}' for row in found)
            print(f'{name:60.60} {number} vectors: {ratios}', flush=True)
            rows += [row | {'first_of_its_kind': name in first} for row in found]
    worst = max(rows, key=lambda row: row['ratio'])
    common.write(options.out, 'calls', {'rows': rows, 'worst': worst})


if __name__ == '__main__':
    main()
