"""Training steps fed by the data pipeline against one batch on the device.

    python benchmarks/pipeline.py --data-dir FOLDER_OF_PREPARED_SETS

The loop of `train.py` (Grain, augmentation, metrics read back) beside the same compiled step on a
batch that never moves, for configs/mnist.py and configs/cifar10.py with the small conv encoder.
About two minutes on two cores; --quick takes seconds and images of its own.
"""

from __future__ import annotations

import functools
import importlib
import sys
from pathlib import Path

import common
import jax
import numpy as np

from vqjax.trainer.config import settings
from vqjax.trainer.data import records, sets
from vqjax.trainer.data.batches import init_batch, train_batches
from vqjax.trainer.run import runs, tasks
from vqjax.trainer.run.plan import plan
from vqjax.trainer.step import starts
from vqjax.trainer.step.parallel import Pmap
from vqjax.trainer.step.steps import train_steps

sys.path.insert(0, str(Path(__file__).parents[1]))  # configs

PIPELINE, RESIDENT = 'pipeline', 'resident batch'
METHOD = 'vq_ema'
# Fields that let the GPU configuration run on a CPU, as its docstring says.
ON_CPU = {'mnist': {}, 'cifar10': {'encoder': 'conv', 'dtype': 'float32'}}


def configuration(name: str, data_dir: str, **changes) -> settings.Settings:
    """The checked configuration of configs/NAME.py for a CPU."""
    config = importlib.import_module(f'configs.{name}').get_config().to_dict()
    return settings.check(config | ON_CPU[name] | {'data_dir': data_dir} | changes)


def compare(name, given, dataset, steps, repeats):
    """One row: milliseconds a step of both."""
    form, own = Pmap(), given.methods[METHOD]
    task = tasks.make_task(given, METHOD, dataset)
    step = form.compile(functools.partial(train_steps, task), donate=True)
    start = init_batch(dataset, own.init_batch_size, 0)
    held = {'state': form.place(starts.init_state(task, 0, start['image']), task)}
    batches = train_batches(dataset, own.batch_size, 0, augment=own.augment)
    size = plan(own, dataset).steps_per_call
    stacked = runs.stack([next(batches) for _ in range(size)], size)
    stop = {'stop': np.zeros((size, form.local_replicas), bool)}
    batch = jax.tree.map(jax.device_put, form.shard(stacked | stop, axis=1))
    count = form.constant(np.int32(size))

    def pipeline():
        held['state'], _ = runs.fit(
            step, held['state'], batches, steps, lambda measured: None, steps_per_call=size
        )
        jax.block_until_ready(held['state'])

    def resident():
        for _ in range(0, steps, size):
            held['state'], _ = step(held['state'], batch, count)
        jax.block_until_ready(held['state'])

    steps = -(-steps // size) * size
    times = common.measure({PIPELINE: pipeline, RESIDENT: resident}, repeats)
    times = {run: [t / steps for t in taken] for run, taken in times.items()}
    row = {'batch_size': own.batch_size, 'image': list(dataset.info.image_shape)}
    row |= {'runs': common.summary(times), 'ratio': common.ratio(times, PIPELINE, RESIDENT)}
    print(
        f'{name:8} {row["runs"][PIPELINE]["median_ms"]:8.2f} ms a step, {row["ratio"]} x resident'
    )
    return row


def noise(shape: tuple[int, ...]) -> records.Dataset:
    """A small set of random images, for --quick."""
    images = np.random.default_rng(0).integers(0, 256, (600, *shape), np.uint8)
    return sets.from_arrays(
        'noise', 10, dict.fromkeys(('train', 'validation', 'test'), (images, np.arange(600) % 10))
    )


def main(argv=None):
    """Measure and write pipeline.json."""
    parser = common.parser(__doc__)
    parser.add_argument('--data-dir', default='', help='folder of prepared TFDS sets')
    options = common.arguments(parser, argv)
    rows = {}
    for name, shape in (('mnist', (28, 28, 1)), ('cifar10', (32, 32, 3))):
        quick = (
            {'batch_size': 32, 'init_batch_size': 256, 'steps_per_call': 2} if options.quick else {}
        )
        given = configuration(name, options.data_dir, **quick)
        dataset = noise(shape) if options.quick else sets.load_dataset(name, options.data_dir)
        rows[name] = compare(
            name, given, dataset, 2 if options.quick else 20, 1 if options.quick else 9
        )
    common.write(options.out, 'pipeline', {'rows': rows})


if __name__ == '__main__':
    main()
