"""Memory of a training step against vector-quantize-pytorch: python benchmarks/memory.py

The rows are those of quantizers.py. A step runs in a process of its own, after one that warms up:
its memory is the peak of what is resident (VmHWM of Linux) less what was resident before it, which
has libraries, inputs and the quantizer's state. So it is what the step computes and returns: codes,
vectors, gradients. About three minutes on two cores; --quick takes seconds.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import common
import jax
import quantizers

OURS, PEER = quantizers.OURS, quantizers.PEER
_FULL, _QUICK = (16_384, 128, 1_024, 8), (256, 8, 16, 2)
_QUICK_ROWS = ('VQ-EMA', 'FSQ')
# Large arrays are given back to the system when they are freed, by both libraries: what is resident
# is then what is held.
_ALLOCATOR = {'MALLOC_MMAP_THRESHOLD_': '65536', 'MALLOC_TOP_PAD_': '65536'}


def _status(field: str) -> int:
    """Bytes that /proc/self/status has for VmRSS or VmHWM."""
    return int(re.search(rf'{field}:\s*(\d+) kB', Path('/proc/self/status').read_text())[1]) * 1024


def peak(run: Callable[[], object]) -> int:
    """Bytes that `run` has resident at most, beyond what is resident before it."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path('/proc/self/clear_refs').write_text('5')  # the peak is now what is resident
    before = _status('VmRSS')
    run()
    return _status('VmHWM') - before


def _our_step(quantizer, z, cotangent):
    """A function that trains for one step, and what XLA says of its memory."""
    key = jax.random.key(0)
    params, state = jax.jit(quantizer.init)(key, z)
    z, cotangent = jax.device_put((z, cotangent))
    step = jax.jit(quantizers.training_step(quantizer), donate_argnums=1)
    compiled = step.lower(params, state, z, cotangent, key).compile()
    held = [state]

    def run():
        out, held[0] = compiled(params, held[0], z, cotangent, key)
        jax.block_until_ready((out, held))

    return run, compiled.memory_analysis()


def measure(name: str, side: str, quick: bool) -> dict:
    """Bytes of a step of one row; in a process of its own."""
    n, dim, k, stages = _QUICK if quick else _FULL
    case = quantizers.cases(n, dim, k, stages)[name]
    z, cotangent = quantizers.inputs(case, n)
    found = {}
    if side == OURS:
        run, analysis = _our_step(case.quantizer, z, cotangent)
        found['temporary'] = analysis.temp_size_in_bytes
        found['output'] = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    else:
        run = quantizers.peer_step(case.peer, z, cotangent, case.quantizer.targets_only)
    run()
    if side == PEER:
        import torch

        for x in gc.get_objects():  # those of the step before
            if issubclass(type(x), torch.Tensor) and x.is_leaf and x.grad is not None:
                x.grad = None
    return found | {'peak': peak(run)}


def _in_a_process(name: str, side: str, quick: bool) -> dict:
    command = [sys.executable, __file__, '--row', name, '--side', side] + ['--quick'] * quick
    said = subprocess.check_output(command, env={**os.environ, **_ALLOCATOR}, text=True)
    return json.loads(said.splitlines()[-1])


def compare(name: str, case, quick: bool, peers: bool) -> dict:
    """One row of the table."""
    n = (_QUICK if quick else _FULL)[0]
    sides = [OURS] + [PEER] * (peers and case.peer is not None)
    row = {'quantizer': repr(case.quantizer), 'N': n, 'D': case.dim}
    row['inputs'] = sum(x.nbytes for x in quantizers.inputs(case, n))
    row['runs'] = {side: _in_a_process(name, side, quick) for side in sides}
    shown = {side: round(found['peak'] / 1e6, 1) for side, found in row['runs'].items()}
    print(f'{name:24} {shown} MB, inputs {row["inputs"] / 1e6:.1f} MB, {row["runs"][OURS]}')
    return row


def main(argv=None):
    """Measure and write memory.json."""
    parser = common.parser(__doc__)
    parser.add_argument('--row', help='measure this row here, and print it')
    parser.add_argument('--side', choices=(OURS, PEER), default=OURS, help='of that row')
    options = common.arguments(parser, argv)
    if options.row:
        print(json.dumps(measure(options.row, options.side, options.quick)))
        return
    if not Path('/proc/self/clear_refs').exists():
        sys.exit('error: the peak is read from /proc, which this system has not: run it on Linux')
    peers = common.available(options.quick, 'torch', PEER)
    table = quantizers.cases(*(_QUICK if options.quick else _FULL))
    if options.quick:
        table = {name: table[name] for name in _QUICK_ROWS}
    rows = {name: compare(name, case, options.quick, peers) for name, case in table.items()}
    common.write(options.out, 'memory', {'rows': rows})


if __name__ == '__main__':
    main()
