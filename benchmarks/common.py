"""What the benchmarks share: interleaved timing, floors, the machine, JSON and plots."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import math
import multiprocessing
import os
import platform
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
from jax import lax
from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / 'results'
PACKAGES = (
    'jax', 'jaxlib', 'numpy', 'faiss-cpu', 'torch', 'vector-quantize-pytorch', 'hmmlearn',
)  # fmt: skip
# Okabe and Ito, told apart by colour-blind readers; a marker each, for print.
STYLES = [('#0072B2', 'o'), ('#D55E00', 's'), ('#009E73', '^'), ('#CC79A7', 'D'), ('#999999', 'v')]
# The style of every plot.
PLAIN = {'font.size': 10, 'axes.spines.top': False, 'axes.spines.right': False}
# Thread pools of the peers and of NumPy spin for a while after a call; nobody pays for another's.
_REST_S = 0.05
_CLOCK = [time.perf_counter]


def parser(doc: str, timed: bool = True) -> argparse.ArgumentParser:
    """--quick (small shapes, torch left out: seconds), --cpu-time and --out (JSON and plots).

    timed: figures are those of one machine, in a folder of its own.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument('--quick', action='store_true', help='small shapes, without torch')
    folder = RESULTS / machine() if timed else RESULTS
    parser.add_argument('--out', type=Path, default=folder, help='folder for JSON and plots')
    parser.add_argument(
        '--cpu-time',
        action='store_true',
        help='seconds of processor, not of the wall: for a busy machine, with `taskset -c 0`',
    )
    return parser


def arguments(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """What was asked for; from here on the clock is the one asked for."""
    options = parser.parse_args(argv)
    # Small shapes are no figures: those of the repository stay. A file of accelerator.py says that
    # it is of a quick run.
    if options.quick and options.out == parser.get_default('out') and 'parts' not in options:
        options.out = Path(tempfile.gettempdir()) / 'vqjax-benchmarks-quick'
        options.out.mkdir(exist_ok=True)
    _CLOCK[:] = [time.process_time if options.cpu_time else time.perf_counter]
    # The time to compile is that of a first run.
    jax.config.update('jax_enable_compilation_cache', False)
    return options


def random_patches(
    images: np.ndarray, which: np.ndarray, side: int, rng: np.random.Generator
) -> np.ndarray:
    """Patches float32 [n, side * side] from 0 to 1, grey, at random places of the images `which`.

    images: uint8 [N, H, W, C]; which: int [n].
    """
    grey = images.astype(np.float32).mean(-1) / 255
    y, x = rng.integers(0, grey.shape[1] - side + 1, (2, len(which)))
    windows = np.lib.stride_tricks.sliding_window_view(grey, (side, side), axis=(1, 2))
    return windows[which, y, x].reshape(len(which), -1)


def version(package: str) -> str | None:
    """The installed version, None where it is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def available(quick: bool, *packages: str) -> bool:
    """Whether these peers are to be measured; says so where they are not."""
    absent = [package for package in packages if version(package) is None]
    # torch takes longer to import than a quick run takes.
    if quick and 'torch' in packages:
        absent = absent or ['torch (--quick)']
    if absent:
        print(f"without {', '.join(packages)}: {', '.join(absent)} (pip install 'vqjax[bench]')")
    return not absent


def clock() -> float:
    """Seconds of the clock that was asked for."""
    return _CLOCK[0]()


class Took(NamedTuple):
    """What a run returns that tells its own time, in milliseconds."""

    ms: float


@contextlib.contextmanager
def elsewhere(make: Callable[..., Callable[[], object]], *arguments: Any) -> Iterator[Callable]:
    """What make(*arguments) returns, in a process of its own, which tells its own time.

    Two libraries in one process share its threads and its memory, and can slow each other. make and
    its arguments have to be picklable.
    """
    context = multiprocessing.get_context('spawn')
    ours, theirs = context.Pipe()
    given = (theirs, _CLOCK[0] is time.process_time, make, arguments)
    process = context.Process(target=_serve, args=given, daemon=True)
    process.start()
    theirs.close()

    def run() -> Took:
        try:
            ours.send(None)
            return Took(ours.recv())
        except (EOFError, OSError):
            raise SystemExit('the process of the peer ended, see above') from None

    try:
        yield run
    finally:
        process.kill()
        process.join()


def _serve(pipe: Any, cpu_time: bool, make: Callable, arguments: Sequence[Any]) -> None:
    _CLOCK[:] = [time.process_time if cpu_time else time.perf_counter]
    run = make(*arguments)
    with contextlib.suppress(EOFError):
        while True:
            pipe.recv()
            start = clock()
            run()
            pipe.send((clock() - start) * 1e3)


def measure(runs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each run, one after the other in every round, the first of which warms up.

    Neighbours on the machine then slow all of them alike: compare within a round, by `ratio`. A run
    that returns `Took` has told its own.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(repeats + 1):
        for name, run in runs.items():
            time.sleep(_REST_S)
            start = clock()
            returned = run()
            elapsed = (clock() - start) * 1e3
            if isinstance(returned, Took):
                elapsed = returned.ms
            if round_:
                times[name].append(elapsed)
    return times


def measure_for(
    runs: Mapping[str, Callable[[], object]], seconds: float, least: int, most: int
) -> dict[str, list[float]]:
    """`measure` for as many rounds as fit into these seconds, between `least` and `most`."""
    for run in runs.values():
        run()
    start = time.perf_counter()
    for run in runs.values():
        run()
    round_s = time.perf_counter() - start + len(runs) * _REST_S
    return measure(runs, max(least, min(most, int(seconds / max(round_s, 1e-6)))))


def summary(times: Mapping[str, Sequence[float]]) -> dict[str, dict]:
    """Median and fastest milliseconds of each run."""
    return {
        name: {'median_ms': round(statistics.median(t), 3), 'min_ms': round(min(t), 3)}
        for name, t in times.items()
    }


def ratio(times: Mapping[str, Sequence[float]], name: str, base: str) -> float | None:
    """Median over rounds of time(name) / time(base); None where either was skipped."""
    if name not in times or base not in times:
        return None
    rounds = zip(times[name], times[base], strict=True)
    return round(statistics.median(a / b for a, b in rounds), 3)


def geometric_mean(values: Sequence[float | None]) -> float | None:
    """The geometric mean, None where a value is missing."""
    if not values or None in values:
        return None
    return round(math.exp(statistics.fmean(math.log(value) for value in values)), 3)


# Floors ----------------------------------------------------------------------------------------

BLAS, XLA, TRAFFIC = 'products, NumPy', 'products, XLA', 'memory traffic'
_TILES_BLAS, _TILES_XLA = ((1024, 256), (4096, 256), (4096, 1024)), ((384, 2048), (1024, 1024))


class Products(NamedTuple):
    """Matrix products [n, d] x [d, k] that a computation cannot avoid, and how many of them."""

    n: int
    d: int
    k: int
    number: float = 1.0


def _blas_products(z: np.ndarray, c: np.ndarray, rows: int, codes: int) -> Callable[[], object]:
    """All products of z [n, d] and c [k, d] in tiles that stay in the cache, by NumPy's BLAS."""
    transposed = np.ascontiguousarray(c.T)
    out = np.empty((min(rows, len(z)), min(codes, len(c))), np.float32)

    def run() -> None:
        for j in range(0, len(c), codes):
            right = transposed[:, j : j + codes]
            for i in range(0, len(z), rows):
                left = z[i : i + rows]
                np.matmul(left, right, out=out[: len(left), : right.shape[1]])

    return run


def _xla_products(z: np.ndarray, c: np.ndarray, rows: int, codes: int) -> Callable[[], object]:
    """The same by XLA's dot; each tile replaces the one before."""
    (n, _), k = z.shape, len(c)
    rows, codes = min(rows, n), min(codes, k)
    row_tiles, code_tiles = -(-n // rows), -(-k // codes)

    @jax.jit
    def products(z: jax.Array, c: jax.Array) -> jax.Array:
        def tile(i: jax.Array, _: jax.Array) -> jax.Array:
            left = lax.dynamic_slice_in_dim(z, i // code_tiles * rows, rows)
            right = lax.dynamic_slice_in_dim(c, i % code_tiles * codes, codes)
            return lax.dot_general(right, left, (((1,), (1,)), ((), ())))

        return lax.fori_loop(0, row_tiles * code_tiles, tile, jnp.zeros((codes, rows)))

    z, c = jax.device_put((z, c))
    return lambda: jax.block_until_ready(products(z, c))


def _fastest(runs: Sequence[Callable[[], object]]) -> Callable[[], object]:
    times = measure(dict(enumerate(runs)), 2)
    return runs[min(times, key=lambda i: min(times[i]))]


def floor_runs(products: Sequence[Products]) -> dict[str, list[Callable[[], object]]]:
    """For BLAS and XLA a run of each of these products once, in the faster of some tiles."""
    rng = np.random.default_rng(0)
    runs: dict[str, list[Callable[[], object]]] = {BLAS: [], XLA: []}
    for n, d, k, _ in products:
        z, c = rng.standard_normal((n, d), np.float32), rng.standard_normal((k, d), np.float32)
        runs[BLAS].append(_fastest([_blas_products(z, c, *tile) for tile in _TILES_BLAS]))
        runs[XLA].append(_fastest([_xla_products(z, c, *tile) for tile in _TILES_XLA]))
    return runs


def traffic_run(z: np.ndarray) -> Callable[[], object]:
    """Two arrays like z are read and one is written: what a quantizer on a grid cannot avoid."""
    a, b = jax.device_put((z, z + 1))
    function = jax.jit(lambda a, b: a * b)
    return lambda: jax.block_until_ready(function(a, b))


def measure_with_floor(
    runs: Mapping[str, Callable[[], object]],
    repeats: int,
    ours: str,
    products: Sequence[Products] = (),
    traffic: np.ndarray | None = None,
) -> tuple[dict[str, list[float]], dict]:
    """`measure`, and the fields `floor_ms`, `floor_by` and `ratio_to_floor` of a row.

    The floor is the time of the products (the faster of NumPy and XLA) or of the memory traffic,
    in the same rounds as the runs. Empty fields where neither is given.
    """
    of = floor_runs(products) if products else {}
    if traffic is not None:
        of = {TRAFFIC: [traffic_run(traffic)]}
    parts = {(name, i): run for name, some in of.items() for i, run in enumerate(some)}
    times = measure({**runs, **parts}, repeats)
    numbers = [p.number for p in products] or [1.0]
    floors = {
        name: [
            sum(number * times[name, i][r] for i, number in enumerate(numbers))
            for r in range(repeats)
        ]
        for name in of
    }
    found = {name: times[name] for name in runs}
    if not floors:
        return found, {}
    by = min(floors, key=lambda name: statistics.median(floors[name]))
    each = [a / b for a, b in zip(found[ours], floors[by], strict=True)]
    return found, {
        'floor_ms': round(statistics.median(floors[by]), 3),
        'floor_by': by,
        'ratio_to_floor': round(statistics.median(each), 3),
    }


# The machine ------------------------------------------------------------------------------------


def _cpuinfo() -> dict[str, str]:
    """The first processor's fields of /proc/cpuinfo, {} where there is none."""
    path = Path('/proc/cpuinfo')
    lines = path.read_text().split('\n\n')[0].splitlines() if path.exists() else []
    return {key.strip(): value.strip() for key, _, value in (x.partition(':') for x in lines)}


def _model() -> str:
    return _cpuinfo().get('model name') or platform.processor() or platform.machine()


def machine() -> str:
    """A name for the kind of processor, the folder of its results: 'amd-epyc-family-25-model-17'.

    Virtual machines hide the model's name, but not its family.
    """
    info = _cpuinfo()
    name = re.sub(r'\(.*?\)|@.*', '', _model())
    if 'cpu family' in info:
        name += f' family {info["cpu family"]} model {info["model"]}'
    return re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')


def _instructions() -> str | None:
    """The widest instructions of the processor that matter to products."""
    flags = _cpuinfo().get('flags', _cpuinfo().get('Features', '')).split()
    known = {'amx_tile': 'AMX', 'avx512f': 'AVX-512', 'avx2': 'AVX2', 'sve': 'SVE', 'asimd': 'NEON'}
    return next((name for flag, name in known.items() if flag in flags), None)


def _caches() -> dict[str, int]:
    """Kilobytes of each cache of the first core: {'L1': 32, 'L2': 1024, 'L3': 32768}."""
    found = {}
    for folder in sorted(Path('/sys/devices/system/cpu/cpu0/cache').glob('index*')):
        level, kind, size = ((folder / x).read_text().strip() for x in ('level', 'type', 'size'))
        if kind != 'Instruction' and size.endswith('K'):
            found[f'L{level}'] = int(size[:-1])
    return found


def _commit() -> str | None:
    """The commit that is measured, with + where files differ from it; None outside git."""

    def git(*arguments: str) -> str:
        command = ['git', '-C', str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # Results are written by what is measured.
        changed = git('status', '--porcelain', '--', ':/', f':!/{RESULTS.parent.name}/results')
        return git('rev-parse', '--short', 'HEAD') + '+' * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return None


def environment() -> dict:
    """Machine, device, load, versions, commit and date, for the JSON."""
    return {
        'cpu': _model(),
        'machine': machine(),
        'instructions': _instructions(),
        'caches_kb': _caches(),
        'cores': os.cpu_count(),
        # Those this process may use: fewer under `taskset`.
        'cores_used': len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else None,
        'clock': _CLOCK[0].__name__,
        # Above the number of cores: neighbours were busy, trust the ratios more than the times.
        'load_average': [round(load, 1) for load in os.getloadavg()],
        'device': jax.devices()[0].device_kind,
        'platform': jax.default_backend(),
        'python': platform.python_version(),
        'versions': {package: version(package) for package in PACKAGES},
        'commit': _commit(),
        'date': date.today().isoformat(),
    }


# Files and plots --------------------------------------------------------------------------------


def write(out: Path, name: str, results: dict) -> None:
    """`results` and the environment as NAME.json."""
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**results, 'environment': environment()}, indent=1)
    # Whole or not at all: a part of accelerator.py whose file is there is not run again.
    temporary = out / f'.{name}.json'
    temporary.write_text(text + '\n')
    temporary.replace(out / f'{name}.json')
    print(f'wrote {out / name}.json')


def lines(rows: Sequence[Mapping], axis: str) -> dict[str, tuple[list, list]]:
    """The fastest milliseconds of each run against `axis`, for `plot_times`."""
    return {
        name: ([row[axis] for row in rows], [row['runs'][name]['min_ms'] for row in rows])
        for name in rows[0]['runs']
    }


def plot_times(
    path: Path, panels: Sequence[tuple[str, str, Mapping[str, tuple[list, list]]]]
) -> None:
    """Log-log panels (title, x label, {name: (x, milliseconds)}) side by side, one legend."""
    with mpl.rc_context(PLAIN):
        figure = Figure(figsize=(4.4 * len(panels), 3.6), layout='constrained')
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, (title, label, lines) in zip(axes, panels, strict=True):
            for (name, (x, y)), (colour, marker) in zip(lines.items(), STYLES, strict=False):
                axis.plot(x, y, color=colour, marker=marker, markersize=5, label=name)
            axis.set_xscale('log', base=2)
            axis.set_yscale('log')
            axis.yaxis.set_major_formatter(lambda value, _: f'{value:g}')
            axis.set_title(title, loc='left', fontweight='bold')
            axis.set_xlabel(label)
            axis.grid(color='#E5E5E5')
            axis.set_axisbelow(True)
        axes[0].set_ylabel('milliseconds, fastest')
        handles, names = axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc='outside lower center', ncols=len(names), frameon=False)
        figure.savefig(path, dpi=150, facecolor='white')
    print(f'wrote {path}')
