"""What only a GPU or TPU can tell: python benchmarks/accelerator.py --data-dir FOLDER

It takes the platform that JAX finds. Parts, each with a JSON of its own, written when it is done,
after which it is not run again: `search`, tiles, bare product and on CUDA the fused kernel, choices
checked, and which should be the default; `steps`, training steps; `train`, configs/cifar10.py for
as many epochs as fit. On a machine without an accelerator it says what it would do. --quick runs
all of it, small, on any machine.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import accelerator_search
import accelerator_train
import common
import jax
import numpy as np


class Part(NamedTuple):
    """`run(options)` measures it; the rest is said where there is no accelerator."""

    run: Callable
    does: str
    lasts: str
    needs: str


def step_cases(quick: bool) -> tuple[dict, tuple[int, int]]:
    """The quantizers of the part `steps`, and the shape of their vectors."""
    import vqjax.quantizers as ours

    n, dim, k, per_stage, bits = (64, 16, 16, 8, 4) if quick else (65_536, 128, 8_192, 1_024, 13)
    levels = (8, 5, 5, 5)
    cases = {
        f'VQ-EMA {k:,}': ours.VQEMA(k),
        f'Residual 8 x VQ-EMA {per_stage:,}': ours.Residual(ours.VQEMA(per_stage), 8),
        # Their features are their bits: a projection takes the vectors there and back.
        f'LFQ {bits} bits, projected': ours.Projected(ours.LFQ(bits), bits),
        'FSQ 8 x 5 x 5 x 5, projected': ours.Projected(ours.FSQ(levels), len(levels)),
    }
    if quick:
        cases = dict(list(cases.items())[:1] + list(cases.items())[-1:])
    return cases, (n, dim)


def steps(options) -> dict:
    """Training steps at 65,536 x 128: quantize, gradient, statistics and revival."""
    import quantizers as peers

    quick = options.quick
    cases, (n, dim) = step_cases(quick)
    rng = np.random.default_rng(0)
    z = rng.standard_normal((n, dim), np.float32)
    cotangent = rng.standard_normal(z.shape, np.float32) / z.size
    made = {name: peers.our_step(quantizer, z, cotangent) for name, quantizer in cases.items()}
    runs = {name: run for name, (run, _) in made.items()}
    rounds = (1, 1) if quick else accelerator_search.ROUNDS
    times = common.measure_for(runs, accelerator_search.SECONDS, *rounds)
    rows = {}
    for name, row in common.summary(times).items():
        rows[name] = {'quantizer': repr(cases[name]), 'N': n, 'D': dim} | row
        rows[name] |= {
            'vectors_per_s': round(n / statistics.median(times[name]) * 1e3),
            'compile_s': round(made[name][1], 2),
        }
        print(f'  {name:32} {row["median_ms"]:9.3f} ms  {rows[name]["vectors_per_s"]:,} vectors/s')
    fused = os.environ.get('VQJAX_FUSED_SEARCH') == '1'
    return {'rows': rows, 'search': accelerator_search.FUSED if fused else accelerator_search.TILES}


PARTS = {
    'search': Part(
        accelerator_search.search,
        'nearest_codes at 262,144 x 128 x 8,192, float32 and bfloat16: fused kernel (CUDA), tiles, '
        "bare product and XLA's argmin in turns, choices checked, memory, and which should be the "
        'default',
        'at most 2 minutes of rounds, and compiling',
        'CUDA and 192 KB of shared memory (Hopper) for the kernel, 12 GB of memory for the '
        'products; what fails is left out and named',
    ),
    'steps': Part(
        steps,
        'training steps of VQEMA, Residual, LFQ and FSQ at 65,536 x 128: ms and vectors a second',
        'at most 20 s of rounds, or five rounds, and compiling',
        'nothing more',
    ),
    'train': Part(
        accelerator_train.train,
        'configs/cifar10.py with one seed, for as many epochs as a short first run says will fit',
        '{minutes:g} minutes (--minutes), then it is stopped, and the same command goes on',
        "pip install 'vqjax[train]' and --data-dir with TFDS's cifar10 as array_record",
    ),
}


def _path(options, part: str) -> Path:
    """The part's JSON, called after the platform that JAX finds: gpu, tpu or (--quick) cpu."""
    return options.out / f'{jax.default_backend()}_{part}.json'


def _finished(options, part: str) -> bool:
    """Whether the part's JSON is there and whole.

    Raises:
      accelerator_train.Unfinished: --quick would take the place of a real result.
    """
    path = _path(options, part)
    try:
        results = json.loads(path.read_text())
    except (OSError, ValueError):
        return False
    if options.quick and not results.get('quick'):
        raise accelerator_train.Unfinished(f'{path} holds a full run: give --quick another --out')
    return results.get('quick') == options.quick and not options.again


def _arguments(argv):
    parser = common.parser(__doc__, timed=False)
    parser.add_argument('--parts', default=','.join(PARTS), help='which, comma-separated')
    parser.add_argument('--again', action='store_true', help='run finished parts again')
    parser.add_argument('--minutes', type=float, default=7.0, help='of the part train')
    parser.add_argument('--data-dir', default='', help='folder of prepared TFDS sets')
    parser.error = lambda message: sys.exit(f'error: {message}')
    options = common.arguments(parser, argv)
    options.parts = [part.strip() for part in options.parts.split(',')]
    for part in options.parts:
        if part not in PARTS:
            parser.error(f'unknown part {part!r}: choose among {", ".join(PARTS)}')
    if not (math.isfinite(options.minutes) and options.minutes > 0):
        parser.error(f'--minutes is {options.minutes}: give more than 0')
    if options.cpu_time:
        parser.error('--cpu-time leaves out what the accelerator does: do without it')
    return options


def _fails(name: str, why: str) -> bool:
    print(f'error: {name}: {why}', file=sys.stderr)
    return True


def main(argv=None):
    """Run the parts that are not finished, or say what they would do."""
    options = _arguments(argv)
    sys.path.insert(0, str(common.RESULTS.parents[1]))  # configs
    here = jax.devices()[0].device_kind
    if jax.default_backend() == 'cpu' and not options.quick:
        print(
            f'No GPU or TPU here ({here}): nothing is run or written. With one, this command does:'
        )
        for name in options.parts:
            part = PARTS[name]
            lasts = part.lasts.format(minutes=options.minutes)
            print(f'{name}: {part.does}\n  lasts: {lasts}\n  needs: {part.needs}')
            print(f'  writes: {options.out}/(gpu or tpu)_{name}.json, once; --again repeats it')
        return
    failed = False
    for name in options.parts:
        try:
            if _finished(options, name):
                print(f'{name}: done before, in {_path(options, name)}')
                continue
            print(f'{name}: on {here}')
            results = PARTS[name].run(options)
            common.write(options.out, _path(options, name).stem, {'quick': options.quick} | results)
        except accelerator_train.Unfinished as error:
            failed = _fails(name, str(error))
        except Exception as error:  # whatever it is, the other parts are worth the machine's time
            failed = _fails(name, accelerator_search.one_line(error))
    if failed:
        sys.exit(1)


if __name__ == '__main__':
    main()
