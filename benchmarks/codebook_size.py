"""Codes in use and error against the number of codes, after figure 3 of FSQ (arXiv:2309.15505).

    python benchmarks/codebook_size.py --data-dir FOLDER_OF_PREPARED_SETS

Patches of 8 x 8 grey pixels of CIFAR-10, 64 features, less their mean and in one unit. Every
quantizer is between two linear maps that learn with it, as a small autoencoder: 16 features for a
codebook, one for each entry of FSQ's levels. The paper has a convolutional autoencoder of ImageNet
images and reports FID. Used codes are counted on test patches, 2 for each code of the largest
codebook, the same for all. Rows that are already in the JSON are not measured again. Six minutes
of processor time; --quick takes seconds, with patches of noise.
"""

from __future__ import annotations

import json

import common
import jax
import matplotlib as mpl
import numpy as np
import optax
from distortion import noise, share
from matplotlib.figure import Figure
from usage import patches

from vqjax import codec, ops
from vqjax.quantizers import FSQ, VQ, VQEMA, Projected

SIDE = 8  # of a patch, pixels
FEATURES = 16  # between the maps, of a codebook
# Number of codes -> levels; from 256 on those of table 1 of the paper, whose product is near it.
LEVELS = {
    16: (4, 4), 256: (8, 6, 5), 1024: (8, 5, 5, 5), 4096: (7, 5, 5, 5, 5),
    16_384: (8, 8, 8, 6, 5),
}  # fmt: skip


def methods(num_codes):
    """Name -> quantizer."""
    levels = LEVELS[num_codes]
    found = {
        'VQ': VQ(num_codes, init=ops.normal, revival=None),
        'VQ-EMA': VQEMA(num_codes, init=ops.batch_rows, revival=None),
        'VQ-EMA, revival': VQEMA(num_codes, init=ops.batch_rows),
    }
    found = {name: Projected(leaf, FEATURES) for name, leaf in found.items()}
    return found | {'FSQ': Projected(FSQ(levels), len(levels))}


def optimizer(steps):
    """`fit`'s own, three times as fast: its steps are many fewer here than a projection needs."""
    return optax.chain(
        optax.scale_by_adam(),
        optax.scale_by_param_block_rms(1e-6),
        optax.scale_by_learning_rate(optax.cosine_decay_schedule(0.03, steps)),
    )


def measured(quantizer, train, test, options):
    """Shares of the codes in use and of the variance in the error, one of each for a seed."""
    used, errors = [], []
    for seed in range(options.seeds):
        how = options.steps, options.batch, optimizer(options.steps)
        fitted = codec.fit(quantizer, jax.random.key(seed), train, *how, progress=False)
        codes = fitted.encode(test)
        used.append(round(len(np.unique(codes)) / quantizer.num_codes, 4))
        errors.append(round(share(test, fitted.decode(codes)), 5))
    return {'used': used, 'error': errors}


def plot(path, rows):
    """Use and error against the number of codes, a line a method."""
    with mpl.rc_context({'font.size': 10, 'axes.spines.top': False, 'axes.spines.right': False}):
        figure = Figure(figsize=(9, 3.8), layout='constrained')
        use, error = figure.subplots(1, 2)
        for name, (colour, marker) in zip(
            dict.fromkeys(r['method'] for r in rows), common.STYLES, strict=False
        ):
            found = sorted((r for r in rows if r['method'] == name), key=lambda r: r['K'])
            sizes = [r['K'] for r in found]
            for axis, what in ((use, 'used'), (error, 'error')):
                means = [np.mean(r[what]) for r in found]
                axis.plot(sizes, means, color=colour, marker=marker, markersize=5, label=name)
        for axis in (use, error):
            axis.set_xscale('log', base=2)
            axis.set_xlabel('codes')
            axis.grid(color='#E5E5E5')
            axis.set_axisbelow(True)
        use.set(ylabel='share of the codes used', ylim=(0, 1.03))
        error.set(ylabel='squared error / variance', ylim=(0, None))
        handles, names = use.get_legend_handles_labels()
        figure.legend(handles, names, loc='outside lower center', ncols=len(names), frameon=False)
        figure.savefig(path, dpi=150, facecolor='white')
    print(f'wrote {path}')


def main(argv=None):
    """Fit each method that is not in the JSON yet, write codebook_size.json and its plot."""
    parser = common.parser(__doc__, timed=False)
    parser.add_argument('--data-dir', help='folder of prepared TFDS sets, for CIFAR-10')
    parser.add_argument('--steps', type=int, default=400)
    parser.add_argument('--batch', type=int, default=1024)
    parser.add_argument('--seeds', type=int, default=1)
    parser.add_argument('--sizes', type=int, nargs='+', choices=LEVELS, default=list(LEVELS))
    options = common.arguments(parser, argv)
    if options.quick:
        options.steps, options.batch, options.sizes = 20, 256, [16, 256]
        train, test = noise(2000, 0), noise(1024, 1)
    else:
        train = patches(options.data_dir, 'train', 200_000, 0, SIDE)
        test = patches(options.data_dir, 'test', 2 * max(LEVELS), 1, SIDE)
    mean = train.mean(0)
    unit = (train - mean).std()
    train, test = (train - mean) / unit, (test - mean) / unit
    results = {'N': len(train), 'N_test': len(test), 'D': train.shape[1]}
    results |= {name: getattr(options, name) for name in ('steps', 'batch', 'seeds')}
    path = options.out / 'codebook_size.json'
    before = json.loads(path.read_text()) if path.exists() else {}
    rows = before['rows'] if all(before.get(k) == v for k, v in results.items()) else []
    for num_codes in options.sizes:
        for method, quantizer in methods(num_codes).items():
            place = {'method': method, 'K': num_codes, 'quantizer': repr(quantizer)}
            if any(place.items() <= row.items() for row in rows):
                continue
            begin = common.clock()
            row = place | measured(quantizer, train, test, options)
            row['seconds'] = round(common.clock() - begin, 1)
            used, error = row['used'], row['error']
            print(f'{method:16} {num_codes:6}  used {used}  error {error}', flush=True)
            rows.append(row)
            common.write(options.out, 'codebook_size', results | {'rows': rows})
    plot(options.out / 'codebook_size.png', rows)


if __name__ == '__main__':
    main()
