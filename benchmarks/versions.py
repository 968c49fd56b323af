"""This version beside another, in turns: python benchmarks/versions.py --against CHECKOUT

Searches, training steps, fits and calls outside jit of nearest.py, quantizers.py, fit.py and
calls.py. Each version has a process of its own. In every round both do the same work on the same
data, and take turns in who begins; a row has the median and the range over the rounds of the time
of this version divided by that of the other. A fit runs ten iterations in both, and its error
stands beside. What fails in the other version is left out, with its reason. Not measured: whole
models, the trainer, search over codes and the sequence model. About eight minutes on two cores;
--quick takes seconds.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import common

HERE = Path(__file__).resolve().parents[1]
OURS, OTHER = 'this version', 'other version'
_CALLS = 200  # of one vector, within a run
_LEAST_MS = 20  # of a measurement


Run = tuple[Callable[[], object], Callable[[], float] | None]


def work(quick: bool) -> dict[str, Callable[[], Run]]:
    """What is measured: a name, and a function that makes a run of it and, of a fit, its error."""
    import fit
    import jax
    import nearest
    import numpy as np
    import quantizers

    import vqjax.quantizers as q

    n, dim, k, stages = (256, 8, 16, 2) if quick else (16_384, 128, 1_024, 8)
    size = (2_000, 8, 2, 2) if quick else (50_000, 64, 4, 10)

    def search(*shape):
        return nearest._runs(*shape, [nearest.OURS])[nearest.OURS], None

    def step(case):
        return quantizers.our_step(case.quantizer, *quantizers.inputs(case, n))[0], None

    def fitting(kind):
        rows, features, parts, iterations = size
        train, test = fit.data(rows, features, 1), fit.data(rows // 5, features, 2)
        fitted = fit.our_fit(kind(fit.leaf(iterations), parts), train, test)
        return fitted.run, fitted.error

    def calls(quantizer, method):
        z = jax.random.normal(jax.random.key(0), (64, 8))
        params, state = quantizer.init(jax.random.key(1), z)
        codes = quantizer.quantize(params, state, z[:1]).codes
        one = np.asarray(z[:1])
        given = (codes,) if method == 'decode' else (one,) if method == 'quantize' else (one, codes)

        def run():
            for _ in range(_CALLS):
                jax.block_until_ready(getattr(quantizer, method)(params, state, *given))

        return run, None

    shapes = nearest.QUICK_SHAPES if quick else nearest.SHAPES
    found = {
        f'search, {a:,} x {b} x {c:,}': functools.partial(search, a, b, c) for a, b, c in shapes
    }
    cases = quantizers.cases(n, dim, k, stages)
    if quick:
        cases = {'FSQ': cases['FSQ']}
    found |= {f'step, {name}': functools.partial(step, case) for name, case in cases.items()}
    kinds = {'product': q.Product, 'residual': q.Residual}
    found |= {f'fit, {name}': functools.partial(fitting, kind) for name, kind in kinds.items()}
    small = {
        'VQ-EMA': q.VQEMA(16),
        'FSQ': q.Projected(q.FSQ((8, 5, 5)), 3),
        'Residual 4 x VQ-EMA': q.Residual(q.VQEMA(16), 4),
        'Product 2 x VQ-EMA': q.Product(q.VQEMA(16), 2),
    }
    for name, quantizer in small.items():
        for method in ('quantize', 'decode', 'update'):
            what = f'{_CALLS} calls of `{method}`, {name}'
            found[what] = functools.partial(calls, quantizer, method)
    return found


def serve(checkout: Path, quick: bool) -> None:
    """For each line of stdin, a name and how often it is run, a line of JSON on stdout.

    It has the mean milliseconds of a run and, of a fit, its error; or why there is none.
    """
    import vqjax

    if not Path(vqjax.__file__).resolve().is_relative_to(checkout):
        sys.exit(f'{checkout} has no vqjax: {vqjax.__file__} was imported')
    made = work(quick)
    name = run = error = None
    for line in sys.stdin:
        asked, number = json.loads(line)
        try:
            if asked != name:
                name, (run, error) = asked, made[asked]()
                run()
            start = common.clock()
            for _ in range(number):
                run()
            answer = {'ms': 1e3 * (common.clock() - start) / number}
            if error is not None:
                answer['error'] = round(error(), 5)
        except Exception as problem:  # the other version may lack anything
            answer = {'missing': f'{type(problem).__name__}: {str(problem)[:200]}'}
        print(json.dumps(answer), flush=True)


@contextmanager
def version(checkout: Path, options) -> Iterator[Callable[[str, int], dict]]:
    """A process with the vqjax of that checkout: a function that asks it for some runs."""
    command = [sys.executable, __file__, f'--serve={checkout}']
    command += ['--quick'] * options.quick + ['--cpu-time'] * options.cpu_time
    paths = [str(checkout), *filter(None, [os.environ.get('PYTHONPATH')])]
    environ = os.environ | {'PYTHONPATH': os.pathsep.join(paths)}
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, env=environ, stdin=pipe, stdout=pipe, text=True)

    def ask(name: str, number: int) -> dict:
        try:
            print(json.dumps([name, number]), file=process.stdin, flush=True)
            return json.loads(process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError):
            sys.exit(f'the process of {checkout} ended, see above')

    try:
        yield ask
    finally:
        process.kill()
        process.wait()


def compare(name: str, asked: dict[str, Callable[[str, int], dict]], rounds: int) -> dict:
    """A row, or {'missing': why} where the other version cannot do it."""
    number, times, errors = 1, {OURS: [], OTHER: []}, {}
    for round_ in range(rounds + 1):
        for which in sorted(asked, reverse=round_ % 2 == 1):
            answer = asked[which](name, number)
            if 'missing' in answer:
                if which == OURS:
                    sys.exit(f'{name}: {answer["missing"]}')
                return answer
            times[which].append(answer['ms'])
            errors[which] = answer.get('error')
        if not round_:  # the warm-up, which tells how often the same work is to be repeated
            number = max(1, int(_LEAST_MS / max(max(x) for x in times.values())))
            times = {which: [] for which in times}
    each = [a / b for a, b in zip(times[OURS], times[OTHER], strict=True)]
    row = {'runs': common.summary(times), 'ratio': common.ratio(times, OURS, OTHER)}
    row['range'] = [round(min(each), 3), round(max(each), 3)]
    return row | ({'error': errors} if errors[OURS] is not None else {})


def main(argv=None):
    """Measure, write versions.json."""
    parser = common.parser(__doc__)
    parser.add_argument('--against', type=Path, help='another checkout')
    parser.add_argument(
        '--called', default='', help='what the results call it: a commit, a release'
    )
    parser.add_argument('--serve', type=Path, help=argparse.SUPPRESS)  # be one of the two
    options = common.arguments(parser, argv)
    if options.serve is not None:
        serve(options.serve, options.quick)
        return
    if options.against is None:
        parser.error('--against must be the folder of another checkout')
    rows, missing, rounds = {}, {}, 2 if options.quick else 10
    with ExitStack() as stack:
        asked = {
            name: stack.enter_context(version(checkout.resolve(), options))
            for name, checkout in ((OURS, HERE), (OTHER, options.against))
        }
        for name in work(options.quick):
            row = compare(name, asked, rounds)
            (missing if 'missing' in row else rows)[name] = row
            print(f'{name:46} {row}', flush=True)
    found = {'other': options.called or options.against.name, 'rows': rows, 'missing': missing}
    common.write(options.out, 'versions', found)


if __name__ == '__main__':
    main()
