"""Calls of one or a few vectors outside jit: python benchmarks/calls.py

A robot, or a service that codes one item per request, calls `quantize`, `decode` and `update` with
few vectors, so what Python does before the program starts is a large part of the time. "Unchecked"
is the same method under `jax.jit`, whose arguments are checked only when it is traced. Quantizers
are those of the contract's table in `tests/support.py` (which needs pytest), the first of each
kind; --every takes the whole table. About three minutes on two cores; --quick takes seconds.
"""

from __future__ import annotations

import sys
from pathlib import Path

import common
import jax
import numpy as np

sys.path.append(str(Path(__file__).parent.parent / 'tests'))

CALL, UNCHECKED = 'call', 'unchecked'
_DIM = 8
_VECTORS = (1, 8)
_CALLS = 50  # in one measurement: one call is too short for the clock


def repeated(function, *args):
    """A run of many calls, the result of each awaited."""

    def run():
        for _ in range(_CALLS):
            jax.block_until_ready(function(*args))

    return run


def compare(name, quantizer, number, repeats):
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
        unchecked = jax.jit(function)
        runs = {CALL: repeated(function, *args), UNCHECKED: repeated(unchecked, *args)}
        times = common.measure(runs, repeats)
        row = {'quantizer': name, 'vectors': number, 'method': method}
        # Programs that use all cores take either of two times, so that medians jump.
        row['us'] = {k: round(1e3 * min(t) / _CALLS, 2) for k, t in times.items()}
        row['ratio'] = round(min(times[CALL]) / min(times[UNCHECKED]), 3)
        rows.append(row)
    return rows


def main(argv=None):
    """Measure, write calls.json."""
    parser = common.parser(__doc__)
    parser.add_argument('--every', action='store_true', help='the whole table of the contract')
    options = common.arguments(parser, argv)
    from support import first_of_their_kind, table

    entries = table() if options.every else first_of_their_kind(table())
    if options.quick:
        entries = dict(list(entries.items())[:2])
    rows = []
    for name, quantizer in entries.items():
        for number in _VECTORS:
            found = compare(name, quantizer, number, 1 if options.quick else 5)
            ratios = ', '.join(f'{row["method"]} {row["ratio"]}' for row in found)
            print(f'{name:60.60} {number} vectors: {ratios}', flush=True)
            rows += found
    worst = max(rows, key=lambda row: row['ratio'])
    common.write(options.out, 'calls', {'rows': rows, 'worst': worst})


if __name__ == '__main__':
    main()
