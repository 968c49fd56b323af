"""Seconds of `make compare` with an empty and with a full compilation cache.

    python benchmarks/compare.py
    python benchmarks/compare.py --against CHECKOUT    # beside another version

Runs `train.py` of this checkout in fresh workdirs: with an empty cache of compiled programs, then
again with the cache that the first run left. With --against the `train.py` of another checkout
takes turns with both, with an empty cache of its own. One to five minutes a run on two cores;
--quick trains one method for a few epochs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import common
import matplotlib as mpl

HERE = Path(__file__).absolute().parents[1]
EMPTY, FULL, OTHER = 'empty cache', 'full cache', 'other checkout'
QUICK = ('--config.methods=none', '--config.seeds=1', '--config.epochs=4')
# Where the environment would choose another cache, or none.
_OURS = ('JAX_COMPILATION_CACHE_DIR', 'JAX_ENABLE_COMPILATION_CACHE', 'JAX_PERSISTENT_CACHE_')


def train(checkout: Path, workdir: Path, caches: Path, flags: Sequence[str]) -> dict[str, Any]:
    """One run of a checkout's train.py.

    Args:
      caches: XDG_CACHE_HOME of the run.

    Returns:
      seconds of the wall, cpu_seconds of all threads, programs that XLA was asked for, and how many
      of them were compiled and not read from the cache.
    """
    environ = {k: v for k, v in os.environ.items() if not k.startswith(_OURS)}
    environ |= {'PYTHONPATH': str(checkout), 'XDG_CACHE_HOME': str(caches), 'JAX_LOG_COMPILES': '1'}
    environ['MPLCONFIGDIR'] = mpl.get_cachedir()  # the list of fonts is found, whatever the caches
    before = len(list(caches.rglob('*-cache')))
    command = [sys.executable, str(checkout / 'train.py'), f'--workdir={workdir}', *flags]
    log = workdir.with_suffix('.log')
    with log.open('w') as out:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=checkout, env=environ, stdout=out, stderr=out)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
    said = log.read_text()
    if process.returncode:
        sys.exit(f'{" ".join(command)} ended with {process.returncode}:\n{said[-2000:]}')
    programs, after = said.count('Finished XLA compilation of'), len(list(caches.rglob('*-cache')))
    return {
        'seconds': round(seconds, 2),
        'cpu_seconds': round(used.ru_utime + used.ru_stime, 2),
        'programs': programs,
        'compiled': after - before if after else programs,
    }


def numbers(value: Any, name: str = '') -> Iterator[tuple[str, float]]:
    """The numbers of a results.json with their names, all but the seconds."""
    if isinstance(value, dict):
        for key, part in value.items():
            if key not in ('seconds', 'environment'):
                yield from numbers(part, f'{name}.{key}')
    elif isinstance(value, list):
        for i, part in enumerate(value):
            yield from numbers(part, f'{name}.{i}')
    elif isinstance(value, int | float):
        yield name, float(value)


def largest_difference(first: Path, second: Path) -> float:
    """Of the numbers that two workdirs hold of their methods, as a share.

    Relative to the larger of 1 and the number; infinite where they are not the same numbers.
    """
    # Of the methods alone: a configuration may have fields that an earlier version has not.
    a, b = (
        dict(numbers(json.loads((p / 'results.json').read_text())['methods']))
        for p in (first, second)
    )
    if a.keys() != b.keys():
        return float('inf')
    return max(abs(a[name] - b[name]) / max(1.0, abs(a[name])) for name in a)


def main(argv=None):
    """Measure and write compare.json."""
    parser = common.parser(__doc__)
    parser.add_argument('--against', type=Path, help='another checkout, which takes turns')
    parser.add_argument('--rounds', type=int, default=1, help='of one run each')
    options = common.arguments(parser, argv)
    flags = QUICK if options.quick else ()
    runs: dict[str, list[dict[str, Any]]] = {}
    differences: dict[str, float] = {}
    for round_ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            (root / 'ours').mkdir()
            (root / 'other').mkdir()
            turns = {
                OTHER: (options.against, root / 'other'),
                EMPTY: (HERE, root / 'ours'),
                FULL: (HERE, root / 'ours'),
            }
            workdirs = {}
            for name, (checkout, caches) in turns.items():
                if checkout is None:
                    continue
                workdir = root / name.replace(' ', '_')
                took = train(checkout.absolute(), workdir, caches, flags)
                runs.setdefault(name, []).append(took)
                print(f'{round_ + 1}: {name:14} {took}', flush=True)
                workdirs[name] = workdir
            for name, workdir in workdirs.items():
                if name != EMPTY:
                    found = largest_difference(workdirs[EMPTY], workdir)
                    differences[name] = max(differences.get(name, 0.0), found)
    base = OTHER if options.against is not None else EMPTY
    ratios = {}
    for clock in ('seconds', 'cpu_seconds'):
        times = {name: [took[clock] for took in each] for name, each in runs.items()}
        ratios[clock] = {name: common.ratio(times, name, base) for name in runs if name != base}
    results = {'runs': runs, 'base': base, 'ratios': ratios, 'largest_difference': differences}
    print(json.dumps({'ratios': ratios, 'largest_difference': differences}))
    common.write(options.out, 'compare', results)


if __name__ == '__main__':
    main()
