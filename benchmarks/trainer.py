"""The trainer beside a bare loop of the same network: python benchmarks/trainer.py

    python benchmarks/trainer.py --data-dir FOLDER_OF_PREPARED_SETS

A turn of the trainer takes steps as `train.py` does: batches from Grain, metrics of every step,
records, TensorBoard events, progress. A turn of the bare loop takes as many steps of a jitted
function that has the same network and optimizer, on one batch that stays on the device, and reads
nothing back. Compilation, evaluations and checkpoints are in neither. About ten minutes on two
cores; --quick takes seconds; --sets digits/recordings measures these and keeps the other rows.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import common
import jax
import jax.numpy as jnp
import optax

from vqjax.trainer import experiment
from vqjax.trainer.config import settings
from vqjax.trainer.data import batches, sets
from vqjax.trainer.files.display import Display
from vqjax.trainer.files.workdir import Workdir
from vqjax.trainer.run import tasks
from vqjax.trainer.run.context import Context
from vqjax.trainer.run.runs import Run
from vqjax.trainer.run.stopping import StopRequest
from vqjax.trainer.step import starts
from vqjax.trainer.step.task import Task

sys.path.insert(0, str(common.RESULTS.parents[1]))  # configs

TRAINER, BARE, INPUT = 'trainer', 'bare loop', 'input alone'
NAMES = ('none', 'VQ-EMA', 'RVQ', 'FSQ')
_AHEAD, _SETTLE_S = 4, 0.1  # batches that the trainer reads ahead, and time to read them


class Case(NamedTuple):
    """A configuration, its methods in the order of NAMES, and the steps of a turn.

    decoded: images are decoded for every batch, not once.
    """

    config: str
    methods: tuple[str, ...]
    steps: int
    decoded: bool = False


_COMPARED = ('none', 'vq_ema', 'rvq', 'fsq')
_SCRATCH = ('none', 'vq_ema-8', 'rvq-16', 'fsq-16')
CASES = {
    'digits': Case('digits', _COMPARED, 128),
    'recordings': Case('recordings', _COMPARED, 160),
    'cifar10': Case('cifar10_scratch', _SCRATCH, 10),
    'cifar10, decoded': Case('cifar10_scratch', _SCRATCH, 10, decoded=True),
}


def _settings(case: Case, data_dir: str, quick: bool) -> settings.Settings:
    config = importlib.import_module(f'configs.{case.config}').get_config().to_dict()
    # So many epochs that no run ends.
    config |= {'methods': ','.join(case.methods), 'seeds': 1, 'folds': 0, 'epochs': 1000}
    if config['dataset'] not in ('digits', 'basic_motions'):
        config['data_dir'] = data_dir
    if quick:
        config |= {'width': 4, 'features': 8, 'batch_size': 32, 'init_batch_size': 512}
    return settings.check(config)


@contextlib.contextmanager
def opened(case: Case, data_dir: str, quick: bool = False) -> Iterator[Context]:
    """What `experiment.execute` makes of a configuration, in a folder that is removed."""
    given, before = _settings(case, data_dir, quick), sets.IN_MEMORY_BYTES
    sets.IN_MEMORY_BYTES = 0 if case.decoded else before
    try:
        dataset = sets.load_dataset(
            given.dataset, given.data_dir, settings.cutting(given.config), given.image_size
        )
    finally:
        sets.IN_MEMORY_BYTES = before
    given = tasks.fit_quantizers(given, dataset)
    form = experiment.make_form(given.parallel, given.mesh_shape)
    with tempfile.TemporaryDirectory() as folder, Display(10**9) as display, StopRequest() as stop:
        workdir = Workdir(folder, given.config)
        try:
            yield Context(given, dataset, workdir, display, stop, form)
        finally:
            workdir.close()


def bare_step(task: Task) -> Callable:
    """A step (state, batch) -> (state, loss) as anybody writes it with Flax and optax."""
    model = task.model.clone(axis_name=None)

    def step(state: Any, batch: Any) -> Any:
        params, stats, moments, key, number = state

        def loss_fn(params: Any) -> Any:
            output, changed = model.apply(
                {'params': params, **stats},
                batch['image'],
                train=True,
                mutable=list(stats),
                rngs={'quantizer': jax.random.fold_in(key, number)},
            )
            entropy = optax.softmax_cross_entropy_with_integer_labels(output.logits, batch['label'])
            loss = jnp.mean(entropy)
            if output.quantized is not None:
                loss += output.quantized.loss
            return loss, changed

        (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, moments = task.optimizer.update(grads, moments, params)
        return (optax.apply_updates(params, updates), stats, moments, key, number + 1), loss

    return jax.jit(step, donate_argnums=0)


def start_bare(run: Run) -> tuple[Callable, Any, Any]:
    """The bare step of a run, the state before its first step and its first batch."""
    task, own = run.stages[False].task, run.settings
    images = batches.init_batch(run.dataset, own.init_batch_size, run.seed)['image']
    state = starts.init_state(task, run.seed, images)
    key = jax.random.wrap_key_data(state.key)
    first = next(batches.train_batches(run.dataset, own.batch_size, run.seed, augment=own.augment))
    held = (state.params, state.stats, state.opt_state, key, jnp.zeros((), jnp.int32))
    return bare_step(task), held, jax.device_put(first)


def _turns(
    runs: Mapping[str, Callable[[int], None]], steps: int, repeats: int
) -> dict[str, list[float]]:
    """Milliseconds a step of each run, in turns; the first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(repeats + 1):
        for name, run in runs.items():
            # Batches that were read ahead during another's turn are used up first, and those that
            # are read ahead in this turn are none that the next one waits for.
            run(_AHEAD)
            start = common.clock()
            run(steps)
            if round_:
                times[name].append((common.clock() - start) * 1e3 / steps)
            time.sleep(_SETTLE_S)
    return times


def compare(context: Context, method: str, steps: int, repeats: int) -> dict:
    """One cell of the table: milliseconds a step of both, and of the batches alone."""
    run = Run.start(context, method, 0, experiment.stages(context, method))
    step, state, batch = start_bare(run)
    own = run.settings
    alone = batches.train_batches(run.dataset, own.batch_size, 1, augment=own.augment)
    held = {'state': state}

    def trainer(number: int) -> None:
        if run.take(number):
            sys.exit('error: asked to stop, nothing is written')
        jax.block_until_ready(run.state)

    def bare(number: int) -> None:
        for _ in range(number):
            held['state'], _ = step(held['state'], batch)
        jax.block_until_ready(held['state'])

    def read(number: int) -> None:
        for _ in range(number):
            next(alone)

    try:
        times = _turns({TRAINER: trainer, BARE: bare, INPUT: read}, steps, repeats)
    finally:
        run.recorder.close()
        run.checkpoints.close()
    rounds = [a / b for a, b in zip(times[TRAINER], times[BARE], strict=True)]
    return {
        'batch_size': own.batch_size,
        'runs': common.summary(times),
        'images_per_s': {
            name: round(own.batch_size / statistics.median(times[name]) * 1e3)
            for name in (TRAINER, BARE)
        },
        'ratio': common.ratio(times, TRAINER, BARE),
        'range': [round(min(rounds), 3), round(max(rounds), 3)],
    }


def main(argv=None):
    """Measure and write trainer.json."""
    parser = common.parser(__doc__)
    parser.add_argument('--data-dir', default='', help='folder of prepared TFDS sets')
    parser.add_argument('--sets', default='/'.join(CASES), help='which, separated by /')
    parser.add_argument('--methods', default=','.join(NAMES), help='which, comma-separated')
    parser.add_argument('--repeats', type=int, default=7, help='rounds of turns')
    options = common.arguments(parser, argv)
    chosen = ['digits'] if options.quick else options.sets.split('/')
    methods = options.methods.split(',')
    for flag, given, known in (('--sets', chosen, CASES), ('--methods', methods, NAMES)):
        if unknown := [name for name in given if name not in known]:
            parser.error(f'{flag}: {unknown[0]!r} is none of {", ".join(known)}')
    path = options.out / 'trainer.json'
    rows = json.loads(path.read_text())['rows'] if path.exists() and not options.quick else {}
    for name in chosen:
        case = CASES[name]
        with opened(case, options.data_dir, options.quick) as context:
            for title, method in zip(NAMES, case.methods, strict=True):
                if title not in methods:
                    continue
                steps, repeats = (8, 1) if options.quick else (case.steps, options.repeats)
                row = compare(context, method, steps, repeats)
                rows.setdefault(name, {})[title] = row
                shown = {n: r['median_ms'] for n, r in row['runs'].items()}
                print(f'{name:18} {title:8} {shown} {row["ratio"]} {row["range"]}')
                jax.clear_caches()
    common.write(options.out, 'trainer', {'rows': rows})


if __name__ == '__main__':
    main()
