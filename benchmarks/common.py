"""What the benchmarks share: interleaved timing, the machine, JSON and plots."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / 'results'
PACKAGES = (
    'jax', 'jaxlib', 'numpy', 'faiss-cpu', 'torch', 'vector-quantize-pytorch', 'hmmlearn',
)  # fmt: skip
# Okabe and Ito, told apart by colour-blind readers; a marker each, for print.
STYLES = [('#0072B2', 'o'), ('#D55E00', 's'), ('#009E73', '^'), ('#CC79A7', 'D'), ('#999999', 'v')]
# Thread pools of the peers spin for some milliseconds after a call; nobody pays for another's.
_REST_S = 0.01
_CLOCK = [time.perf_counter]


def parser(doc: str) -> argparse.ArgumentParser:
    """--quick (small shapes, torch left out: seconds), --cpu-time and --out (JSON and plots)."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument('--quick', action='store_true', help='small shapes, without torch')
    parser.add_argument('--out', type=Path, default=RESULTS, help='folder for JSON and plots')
    parser.add_argument(
        '--cpu-time',
        action='store_true',
        help='seconds of processor, not of the wall: for a busy machine, with `taskset -c 0`',
    )
    return parser


def arguments(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """What was asked for; from here on the clock is the one asked for."""
    options = parser.parse_args(argv)
    _CLOCK[:] = [time.process_time if options.cpu_time else time.perf_counter]
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


def measure(runs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each run, one after the other in every round, the first of which warms up.

    Neighbours on the machine then slow all of them alike: compare within a round, by `ratio`.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(repeats + 1):
        for name, run in runs.items():
            time.sleep(_REST_S)
            start = clock()
            run()
            elapsed = (clock() - start) * 1e3
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


def environment() -> dict:
    """Machine, device, load and versions, for the JSON."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if 'model name' in line]
        model = names[0].split(':')[1].strip() if names else model
    return {
        'cpu': model,
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
    }


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
    style = {'font.size': 10, 'axes.spines.top': False, 'axes.spines.right': False}
    with mpl.rc_context(style):
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
