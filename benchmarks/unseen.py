"""How the methods learn two further small image sets.

    python benchmarks/unseen.py --data-dir FOLDER_OF_PREPARED_SETS

Two sets of MNIST's digits, 16 x 16, 1,644 to train and 1,854 to test: `digits` as they are, and
`scenes`, in which each is turned, moved and faint before an uneven background. They are written as
prepared TFDS sets (to --sets, or a folder that is removed) and trained on as `configs/tfds.py`
does, with a network half as wide for --epochs. Half an hour on one core with others beside it;
--quick takes seconds, with noise for images. What is in the JSON is not trained again.
"""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path

import common
import numpy as np
from PIL import Image

from configs import tfds as base
from vqjax.trainer import experiment
from vqjax.trainer.data.sets import load

SIDE = 16  # of an image, pixels
TRAIN = 1644
EARLY = 96  # steps: what a method has learned by then

_VQ = {'name': 'vq_ema', 'num_codes': 256}
_SIM = {'name': 'sim_vq', 'num_codes': 256}


def _fsq(*levels, groups=1):
    """A grid behind a projection; in groups, as counts of 5^12 codes would fill the memory."""
    inner = {'name': 'fsq', 'levels': levels}
    if groups > 1:
        inner = {'name': 'product', 'num_groups': groups, 'inner': inner}
    return {'name': 'projected', 'dim': groups * len(levels), 'inner': inner}


METHODS = {
    'none': None,
    'vq_ema': _VQ | {'decay': 0.95},
    'vq_ema_decay_80': _VQ | {'decay': 0.8},
    'vq_ema_later': _VQ | {'decay': 0.95},
    'rvq': {'name': 'residual', 'num_stages': 4, 'inner': _VQ | {'decay': 0.95, 'commitment': 0.1}},
    'fsq_6': _fsq(8, 8, 8, 5, 5, 5),
    'fsq_6_averages_90': _fsq(8, 8, 8, 5, 5, 5),
    'fsq_8': _fsq(4, 4, 4, 4, 4, 4, 4, 4),
    'fsq_12': _fsq(5, 5, 5, 5, 5, 5, groups=2),
    'fsq_6_fine': _fsq(31, 31, 31, groups=2),
    'sim_vq': _SIM,
    'sim_vq_long': _SIM | {'length': 1.0},
}
OVERRIDES = {
    'vq_ema_later': {'continuous_epochs': 4},
    'fsq_6_averages_90': {'statistics_decay': 0.9},
}


# The sets --------------------------------------------------------------------------------------


def _halved(images):
    """[n, 2 h, 2 w] -> [n, h, w], means of 2 x 2."""
    n, height, width = images.shape
    return images.reshape(n, height // 2, 2, width // 2, 2).mean((2, 4))


def _digits(data_dir):
    """Digits of MNIST, 32 x 32 with their margins, halved."""
    images, labels = _read('mnist', data_dir, TRAIN + 2060)
    return _halved(np.pad(images[..., 0], ((0, 0), (2, 2), (2, 2)))), labels


def _scenes(data_dir):
    """The same digits, each turned, scaled, moved and faint before a background of its own."""
    from scipy import ndimage

    images, labels = _read('mnist', data_dir, TRAIN + 2060)
    rng, scenes = np.random.default_rng(0), []
    for image in images[..., 0] / 255:
        angle, zoom = np.deg2rad(rng.uniform(-10, 10)), rng.uniform(1.9, 2.4)
        turn = zoom * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        middle = (SIDE - 1) / 2 + rng.uniform(-0.5, 0.5, 2)
        shape = (SIDE, SIDE)
        digit = ndimage.affine_transform(image, turn, 13.5 - turn @ middle, shape, order=1)
        cloud = ndimage.gaussian_filter(rng.standard_normal(shape), SIDE / 8, mode='wrap')
        scene = 0.35 + rng.uniform(-0.1, 0.1) + 0.03 * rng.uniform(0.3, 1) * cloud / cloud.std()
        scenes.append(scene + rng.uniform(0.4, 0.6) * digit + 0.03 * rng.standard_normal(shape))
    return 255 * np.clip(scenes, 0, 1), labels


def _noise(_):
    """Labels told by the brightness of noise, for --quick."""
    rng = np.random.default_rng(0)
    labels = np.arange(600) % 3
    return labels[:, None, None] * 80.0 + rng.uniform(0, 60, (600, SIDE, SIDE)), labels


SETS = {'scenes': _scenes, 'digits': _digits}


def _read(name, data_dir, number):
    images, labels, _ = load(name, data_dir).splits['train'].read(np.arange(number))
    return images, labels


def prepare(folder, name, images, labels, train):
    """Writes a prepared TFDS set: `train` images to train on, 206 to validate, the rest to test."""
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_generated_pb2 as example
    from tensorflow_datasets.proto import tf_feature_generated_pb2 as feature

    folder = Path(folder) / name / '1.0.0'
    folder.mkdir(parents=True, exist_ok=True)
    splits = np.split(np.arange(len(images)), [train, train + 206])
    sizes = dict(zip(('train', 'validation', 'test'), splits, strict=True))
    for split, rows in sizes.items():
        writer = ArrayRecordWriter(
            str(folder / f'{name}-{split}.array_record-00000-of-00001'), 'group_size:1'
        )
        for row in rows:
            png = io.BytesIO()
            Image.fromarray(np.round(images[row]).astype(np.uint8)).save(png, 'png')
            features = {
                'image': feature.Feature(bytes_list=feature.BytesList(value=[png.getvalue()])),
                'label': feature.Feature(int64_list=feature.Int64List(value=[int(labels[row])])),
            }
            record = example.Example(features=feature.Features(feature=features))
            writer.write(record.SerializeToString())
        writer.close()
    template = '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'
    info = {'name': name, 'version': '1.0.0', 'fileFormat': 'array_record', 'moduleName': 'x'}
    info['splits'] = [
        {'name': split, 'shardLengths': [str(len(rows))], 'filepathTemplate': template}
        for split, rows in sizes.items()
    ]
    shape = [str(n) for n in (*images.shape[1:], 1)]
    kinds = {
        'image': ('image_feature.Image', {'dtype': 'uint8', 'shape': {'dimensions': shape}}),
        'label': ('class_label_feature.ClassLabel', {'numClasses': str(int(labels.max()) + 1)}),
    }
    package = 'tensorflow_datasets.core.features.'
    fields = {
        key: {
            'pythonClassName': package + kind,
            {'image': 'image', 'label': 'classLabel'}[key]: content,
        }
        for key, (kind, content) in kinds.items()
    }
    described = {'featuresDict': {'features': fields}}
    described['pythonClassName'] = package + 'features_dict.FeaturesDict'
    (folder / 'dataset_info.json').write_text(json.dumps(info))
    (folder / 'features.json').write_text(json.dumps(described))


# The runs --------------------------------------------------------------------------------------


def settings(name, methods, folder, options):
    """The configuration of one set, plain data."""
    config = base.get_config()
    config.dataset, config.data_dir = f'unseen_{name}', str(folder)
    config.methods = methods
    config.width, config.steps, config.epochs = 16, 0, options.epochs
    config.seeds, config.eval_every = options.seeds, 2.0
    config.checkpoint_every, config.writers = 0, ''
    return config.to_dict() | {'quantizers': METHODS, 'overrides': OVERRIDES}


def summary(results, folder, method):
    """What one method came to on one set: test accuracies, else means over seeds."""
    of_seeds = results.methods[method].seeds
    histories = [folder.finished_run(method, seed.seed).history for seed in of_seeds]
    seeds = [seed.figures for seed in of_seeds]
    end = histories[0][-1]['step']
    found = {'accuracy': [round(seed['accuracy'], 4) for seed in seeds]}
    for when, step in {'early': min(EARLY, end), 'halfway': end / 2, 'end': end}.items():
        records = [next(r for r in history if r['step'] >= step) for history in histories]
        found[when] = {
            name: round(float(np.mean([record[name] for record in records])), 4)
            for name in ('train_accuracy', 'accuracy')
        }
    if 'active_codes' in seeds[0]:
        for name in ('perplexity', 'active_codes'):
            found[name] = round(float(np.mean([seed[name] for seed in seeds])), 1)
    return found | {'seconds': round(float(np.mean([seed['seconds'] for seed in seeds])), 1)}


def main(argv=None):
    """Train each method on each set that is not in the JSON yet, write unseen.json."""
    parser = common.parser(__doc__, timed=False)
    parser.add_argument('--data-dir', help='folder of prepared TFDS sets, for MNIST')
    parser.add_argument('--sets', type=Path, help='folder to keep the sets in, for train.py')
    parser.add_argument('--epochs', type=int, default=20, help='of 12 steps')
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--names', help='sets, separated by commas, default: all')
    parser.add_argument('--methods', help='separated by commas, default: all')
    options = common.arguments(parser, argv)
    sets, train = (SETS, TRAIN) if not options.quick else ({'noise': _noise}, 256)
    if options.names:
        sets = {name: sets[name] for name in options.names.split(',')}
    if options.quick:
        options.epochs, options.seeds = 4, 2
    path = options.out / 'unseen.json'
    results = {'epochs': options.epochs, 'seeds': options.seeds}
    before = json.loads(path.read_text()) if path.exists() else {}
    rows = before['rows'] if all(before.get(k) == v for k, v in results.items()) else {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.sets or Path(temporary) / 'sets'
        for name, make in sets.items():
            if not (folder / f'unseen_{name}').exists():
                prepare(folder, f'unseen_{name}', *make(options.data_dir), train)
            done = rows.setdefault(name, {})
            for method in options.methods.split(',') if options.methods else METHODS:
                if method in done:
                    continue
                config = settings(name, method, folder, options)

                def conclude(found, workdir, done=done, method=method):
                    done[method] = summary(found, workdir, method)
                    return found

                experiment.run(config, f'{temporary}/{name}_{method}', conclude)
                common.write(options.out, 'unseen', results | {'rows': rows})
    common.write(options.out, 'unseen', results | {'rows': rows})


if __name__ == '__main__':
    main()
