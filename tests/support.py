"""Where the shared reference data is, and what tests of quantizers and of runs have in common."""

import atexit
import contextlib
import functools
import importlib.metadata
import io
import json
import os
import pathlib
import pickle
import re
import runpy
import struct
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
# Compiles as users do, for what is compared to the bit; the rest of the suite compiles cheaply, see
# conftest.py. To be given to `jax.jit`.
SHIPPED = {'xla_backend_optimization_level': 3, 'xla_llvm_disable_expensive_passes': False}
# Later versions have one way to compile fusions, and end a process that names the choice.
HAS_TWO_EMITTERS = importlib.metadata.version('jaxlib').startswith('0.10.')
if HAS_TWO_EMITTERS:
    SHIPPED['xla_cpu_use_fusion_emitters'] = True

SHARED = pathlib.Path(os.environ.get('VQJAX_SHARED', pathlib.Path(__file__).parents[2] / 'shared'))


def shared(*parts: str) -> pathlib.Path:
    """A path in the shared reference data; the test is skipped where it is missing."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f'no reference data at {path}; set VQJAX_SHARED to the folder that has it')
    return path


@contextlib.contextmanager
def cuda_device():
    """Kernels lowered for CUDA in here are for an H200: later versions of JAX ask for which GPU."""
    import jax

    if jax.__version_info__ < (0, 12):
        yield
        return
    device = jax.sharding.AbstractDevice('NVIDIA H200', None, platform='gpu')
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        yield


def read_results(plain):
    """`Results` of plain data; what a test leaves out of them is filled in."""
    from vqjax.results.records import Results

    method = {'spec': None, 'bits': 8.0, 'params': 1, 'seconds': 1.0, 'summary': {}, 'seeds': []}
    methods = {}
    for name, found in plain.get('methods', {}).items():
        methods[name] = method | found
        methods[name]['seeds'] = [{'seed': i} | s for i, s in enumerate(methods[name]['seeds'])]
    whole = {'schema': 1, 'config': {}, 'environment': {}} | plain | {'methods': methods}
    return Results.read(whole)


def seeds_of(plain):
    """The seeds of a method in plain data."""
    return read_results({'methods': {'one': {'seeds': plain}}}).methods['one'].seeds


def summary_of(plain):
    """What results.json says of these seeds together."""
    from vqjax.results.summaries import summarise

    return {name: x._asdict() for name, x in summarise(seeds_of(plain)).items()}


def flags_of(devices: int) -> str:
    """XLA_FLAGS of a process with that many CPU devices, which compiles as this one does."""
    return f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count={devices}'


def run_on(devices: int, *arguments: str) -> str:
    """What Python with these arguments prints in a process with that many CPU devices."""
    run = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ
        | {'XLA_FLAGS': flags_of(devices), 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    return run.stdout


@functools.cache
def _two_devices():
    """The process of replicas.py, which ends with this one."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, str(pathlib.Path(__file__).parent / 'replicas.py')],
        env=os.environ
        | {'XLA_FLAGS': flags_of(2), 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT)},
        stdin=pipe,
        stdout=pipe,
    )
    atexit.register(process.wait)
    atexit.register(process.stdin.close)  # first: at the end of its input it ends
    return process


def on_two_devices(q, *arguments):
    """`vqjax.testing.trial.replicated` in a process with two CPU devices, started once.

    A quantizer that cannot be sent there, such as one of a class in a function, runs under vmap.
    """
    import jax

    from vqjax.testing.trial import replicated

    arrays = jax.tree.map(np.asarray, arguments)
    try:
        payload = pickle.dumps((q, *arrays))
    except (pickle.PicklingError, AttributeError, TypeError):
        return replicated(q, *arguments)
    process, message = _two_devices(), pickle.dumps((sys.path, payload))
    process.stdin.write(struct.pack('<Q', len(message)) + message)
    process.stdin.flush()
    said, answer = pickle.loads(process.stdout.read(*struct.unpack('<Q', process.stdout.read(8))))
    if said == 'unknown':
        return replicated(q, *arguments)
    assert said == 'done', f'on two devices: {answer}'
    return answer


def golden(name: str) -> dict[str, np.ndarray]:
    """Arrays of a golden: the copy in tests/goldens, so it runs everywhere, else the shared one."""
    copied = pathlib.Path(__file__).parent / 'goldens' / f'{name}.npz'
    return dict(np.load(copied if copied.exists() else shared('goldens', f'{name}.npz')))


def golden_case(name: str, case: str) -> dict[str, np.ndarray]:
    """The arrays CASE:NAME of a golden that holds several cases."""
    arrays = golden(name).items()
    return {key.partition(':')[2]: x for key, x in arrays if key.startswith(f'{case}:')}


def configuration(name: str) -> dict:
    """The plain data of configs/NAME.py."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    return importlib.import_module(f'configs.{name}').get_config().to_dict()


SMALL = {'name': 'vq_ema', 'num_codes': 16, 'decay': 0.9}


def small_config(**changes) -> dict:
    """configs/base.py cut to seconds: two epochs of four steps, of two methods and two seeds."""
    fsq = {'name': 'fsq', 'levels': (3,) * 16}
    return configuration('base') | {
        'width': 8,
        'features': 16,
        'quantizers': {'none': None, 'vq_ema': SMALL, 'fsq': fsq},
        'methods': 'none,vq_ema',
        'seeds': 2,
        'epochs': 2,
        'batch_size': 256,
        'eval_every': 1,
        'checkpoint_every': 1,
    } | changes  # fmt: skip


def refuse(text: str, workdir: pathlib.Path, **changes) -> None:
    """Checks that such a run is refused in one line with this text."""
    from vqjax.trainer import errors, experiment

    with pytest.raises(errors.RunError) as error:
        experiment.run(small_config(**changes), str(workdir))
    message = str(error.value)
    assert text in message and '\n' not in message, message


def lines(path: pathlib.Path) -> list[dict]:
    """The objects of a file of lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def trained_steps(workdir: pathlib.Path, method: str = 'vq_ema') -> dict[int, dict]:
    """Training records by step; of a step taken again after a resumption the last."""
    records = [r for r in lines(workdir / 'metrics.jsonl') if r['method'] == method]
    return {r['step']: r for r in records if r.get('split') == 'train'}


def figures(workdir: pathlib.Path) -> list[dict]:
    """What results.json says of every run, but for the time it took."""
    methods = json.loads((workdir / 'results.json').read_text())['methods']
    return [
        {k: v for k, v in seed.items() if k != 'seconds'}
        for method in methods.values()
        for seed in method['seeds']
    ]


# A signal from outside comes too late on a busy machine: the run is over by then.
_ASKED = """
import os, runpy, signal, sys
from vqjax.trainer.run import runs

save, step = runs.Run._save, int(sys.argv[1])

def save_and_ask(run, score):
    save(run, score)
    if run.step == step:
        os.kill(os.getpid(), signal.SIGTERM)

runs.Run._save = save_and_ask
del sys.argv[:2]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


def start(workdir: pathlib.Path, *flags: str, devices: int = 1, sigterm_at: int | None = None):
    """The command `train.py` in a process of its own, where that is the point (see `command`).

    With sigterm_at it gets a SIGTERM when its checkpoint of that step is on its way.
    """
    environment = os.environ | {
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': flags_of(devices),
        'NO_COLOR': '1',
    }
    asked = [] if sigterm_at is None else ['-c', _ASKED, str(sigterm_at)]
    command = [sys.executable, *asked, str(ROOT / 'train.py'), '--workdir', str(workdir), *flags]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True, cwd=ROOT)


class Said(NamedTuple):
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


def command(*flags: str, folder: pathlib.Path = ROOT) -> Said:
    """The command `train.py` with these flags, run in this process from this folder."""
    from absl.flags import FLAGS

    from vqjax.trainer.run import compilation

    out, err, code = io.StringIO(), io.StringIO(), 0
    hook = sys.unraisablehook
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, 'argv', [str(ROOT / 'train.py'), *flags])
        patch.setenv('NO_COLOR', '1')
        # The cache of the tests stays in place.
        patch.setattr(compilation, 'cache_programs', lambda: None)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                runpy.run_path(sys.argv[0], run_name='__main__')
        except SystemExit as ended:
            code = ended.code or 0
            if not isinstance(code, int):  # a message, which the interpreter prints
                err.write(f'{code}\n')
                code = 1
        finally:  # the flags are defined anew at every start
            sys.unraisablehook = hook
            script = str(ROOT / 'train.py')
            for name in set(FLAGS):
                if name.startswith('config') or FLAGS.find_module_defining_flag(name) == script:
                    delattr(FLAGS, name)
    return Said(code, out.getvalue(), err.getvalue())


def first_of_their_kind(entries):
    """Entries with a kind of quantizer, as itself or inside, that none before them has."""
    from vqjax.quantizers import REGISTRY

    quantizers = {kind.__name__ for kind in REGISTRY.values()}
    seen, first = set(), {}
    for name, q in entries.items():
        kinds = quantizers.intersection(re.findall(r'\w+(?=\()', name))
        if kinds - seen:
            first[name] = q
        seen |= kinds
    return first


def every_entry(among=lambda q: True):
    """The table's entries for `pytest.mark.parametrize`: `make test` has the first of each kind."""
    entries = {name: q for name, q in table().items() if among(q)}
    soon = first_of_their_kind(entries)
    return [
        pytest.param(q, id=name, marks=() if name in soon else pytest.mark.slow)
        for name, q in entries.items()
    ]


def table():
    """Every quantizer and the nestings, by name: what each contract test runs over."""
    from vqjax import (
        FSP,
        FSQ,
        IBQ,
        LFQ,
        VQ,
        VQEMA,
        Banked,
        BinaryMapper,
        Bridged,
        Clamped,
        Conditioned,
        Guarded,
        GumbelSoftmax,
        LatentQuantization,
        Levels,
        MultiScale,
        Parallel,
        Product,
        Projected,
        QINCo,
        RandomProjection,
        Residual,
        Rotated,
        SimVQ,
        SpaceFilling,
        SphericalLattice,
        Strided,
        TurboQuant,
        VariableRate,
        ops,
    )

    # Revival at every step and generous, so that the contract is tested with codes being revived.
    eager = ops.Revival(below=0.9, every=1)
    banked = ops.Revival(below=0.9, every=1, source=ops.kmeans_rows)
    ema = VQEMA(8, decay=0.8, revival=eager)
    vq = VQ(8, decay=0.8, revival=eager)
    entries = [
        ema,
        VQEMA(8, metric='cosine', gradient=ops.rotate, revival=eager),
        VQEMA(8, init=ops.normal, revival=ops.Revival(below=0.9, every=1, source=ops.split)),
        VQEMA(8, init=ops.batch_rows, temperature=0.5, revival=None),
        VQEMA(8, revival=ops.Revival(below=0.9, every=1, source=ops.anchors)),
        vq,
        VQ(8, metric='cosine', affine=True, gradient=ops.directional, revival=eager),
        VQ(8, orthogonality=0.1, diversity=0.1, sync_nu=0.5, revival=eager),
        VQ(8, metric='cosine', unit_values=False, revival=eager),
        VQ(8, balance=0.1, cross_entropy=0.1, active_orthogonality=0.1, revival=eager),
        VQEMA(8, metric='cosine', balance=0.1, diversity=0.1, cross_entropy=0.2, revival=eager),
        VQ(8, commitment=0, codebook=0, gradient=ops.DiVeQ(0.01), revival=eager),
        SpaceFilling(8, points=2),
        VQ(8, wasserstein=0.5, revival=eager),
        SimVQ(8, gradient=ops.rotate),
        VQEMA(8, decay=0.8, revival=eager, assignment=ops.Sinkhorn()),
        SimVQ(8, assignment=ops.Sinkhorn(epsilon=0.2, iters=2)),
        Bridged(8, bridge=ops.LowRank(2)),
        Bridged(8, bridge=ops.VQBridge(4, 8, 2, 2), learned=True, gradient=ops.rotate),
        IBQ(8),
        IBQ(8, metric='euclidean', entropy=0.1, inv_temperature=10.0, init=ops.normal),
        FSQ((8, 5, 4, 3, 3, 3, 4, 3)),
        FSQ((2, 3, 4, 5, 2, 2, 2, 2), symmetric=True, noise=1.0),
        FSQ((8, 5, 4, 3, 3, 3, 4, 3), bound=ops.ifsq),
        FSQ((3,) * 8, bound=ops.short_tanh),
        FSQ((3,) * 8, symmetric=True, bound=ops.clamp),
        FSP((8, 5, 4, 3, 2, 2, 4, 3), perturbed=0.0),
        FSP((3,) * 8, bound=ops.erf, inverse=True, perturbed=0.0, skewness=0.1, kurtosis=0.1),
        LFQ(8),
        LFQ(8, spherical=True, gamma=0.5, first_bit='least'),
        LFQ(8, spherical=True, scale=0.5, bits_per_code=3),
        LFQ(8, first_bit='least', bits_per_code=1),
        LatentQuantization((5,) * 8),
        LatentQuantization((5, 4, 3, 2, 5, 4, 3, 2)),
        SphericalLattice(8),
        TurboQuant(8),
        TurboQuant(8, num_bits=3, residual=True),
        GumbelSoftmax(8, diversity=0.1),
        BinaryMapper(4, free_bits=0.1),
        RandomProjection(8, 4),
        QINCo(8, 3, hidden=16, blocks=2),
        QINCo(8, 2, hidden=16, activation='silu', bias=True),
        QINCo(8, 3, hidden=16, candidates=3),
        # Bounds that make it re-fit at once.
        Guarded(ema, least=8.0, cooldown=1),
        Product(Guarded(vq, least=8.0, cooldown=1), 2),
        Banked(ema, size=32, fresh=8),
        Guarded(Banked(VQ(8, decay=0.8, revival=banked), size=48, fresh=16), least=8.0),
        Residual(ema, 3),
        Residual(ema, 3, shared=True),
        Residual(ema, 3, dropout='sample'),
        Residual(vq, 2, dropout='batch'),
        Residual(ema, 4, dropout=ops.StageDropout('sample', least=2, multiple=2, share=0.5)),
        Residual(ema, 3, beam=3),
        Residual(ema, 3, beam=ops.Beam(3, (1.0, 0.5, 0.25))),
        Residual(vq, 3, similarity=0.1),
        Residual(VQ(8, gradient=ops.DiVeQ(0.01), revival=eager), 3),
        Residual(SpaceFilling(8, points=2), 2),
        Residual(ema, 3, dropout='sample', similarity=0.1),
        Residual((VQEMA(8), VQ(4), FSQ((3,) * 8))),
        Product(ema, 2),
        Product(vq, 2, shared=True),
        Projected(FSQ((8, 5, 5)), 3),
        Projected(VQEMA(8, metric='cosine', revival=eager), 4, normalize=True),
        Projected(VQ(8, metric='cosine', unit_values=False), 4, bias=True, layer_norm=True),
        Projected(FSQ((8, 5, 5)), 3, hidden=12),
        Projected(VQEMA(8, revival=eager), 3, hidden=12, dropout=0.25),
        Parallel((Projected(Residual(ema, 1), 4), Projected(Residual(ema, 2), 4, bias=True))),
        Parallel((Residual(FSQ((3,) * 8), 2), vq)),
        Parallel((RandomProjection(8, 4),) * 3),
        Clamped(
            Residual(FSQ((5,) * 8, symmetric=True, bound=ops.clamp), 3, scale=0.2), (1.25,) * 8
        ),
        Rotated(FSQ((5,) * 8)),
        Rotated(Residual(ema, 2)),
        Product(Rotated(LFQ(4)), 2),
        Residual(Conditioned(FSQ((8, 5, 4, 3, 3, 3, 4, 3))), 3),
        Conditioned(FSQ((5,) * 8), decay=0.5),
        Residual(Conditioned(ema, decay=None), 2, dropout='sample'),
        VariableRate(Residual(ema, 3), level=2.27, rate=0.1),
        VariableRate(Residual(vq, 3), drawn=(0.5, 3.0)),
        Strided(ema, (4, 2, 1)),
        Strided((Projected(vq, 4, bias=True), FSQ((3,) * 8), VQ(4)), (6, 2, 1)),
        Levels((ema, VQ(4), FSQ((3,) * 8)), (8, 1, 15)),
        Levels((Product(SimVQ(8), 2),), (24,)),
        MultiScale(ema, (1, (2, 3), (4, 6))),
        MultiScale(vq, (1, (3, 4), (4, 6)), phi=(0.5, 0.25)),
        MultiScale(FSQ((5,) * 8, noise=1.0), ((2, 3), (4, 6)), phi=(1.0,)),
        MultiScale(VQ(8, commitment=0, codebook=0), (1, (4, 6)), phi=(0.5,), commitment=0.25),
        MultiScale(Product(vq, 2), (1, (2, 3), (4, 6)), phi=(0.5,), dropout='sample'),
        MultiScale((vq, VQ(4)), (1, (4, 6)), phi=(0.5,), commitment=0.25),
        MultiScale((ema, VQ(4), FSQ((3,) * 8)), (1, (1, 3, 2), (2, 3, 4))),
        MultiScale(ema, (1, (2, 3, 4)), phi=(0.5,), dropout='batch'),
        # Nestings of two combinators.
        Residual(Residual(ema, 2), 2),
        Residual(Product(vq, 2), 2),
        Residual(Projected(ema, 4), 2),
        Product(Residual(ema, 2), 2),
        Product(Product(LFQ(2), 2), 2),
        Product(Projected(FSQ((5, 4)), 2), 2),
        Product(Residual(LatentQuantization((3, 4, 3, 4)), 2), 2),
        Projected(Residual(GumbelSoftmax(4), 2), 4),
        Residual(BinaryMapper(3, kl=0.1, free_bits=0.0), 2),
        Projected(Product(SimVQ(4), 2, shared=True), 4),
        Projected(Projected(ema, 4), 4),
        Projected(MultiScale(SimVQ(8), ((2, 3), (4, 6)), phi=(0.5,)), 4, bias=True),
        Projected(Clamped(Strided(ema, (2, 1)), (2.0,) * 8), 8),
    ]
    return {repr(q).replace('num_codes=', ''): q for q in entries}
