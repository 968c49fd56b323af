"""How many of very many codes training uses, with and without a bridge.

    python benchmarks/usage.py --data-dir FOLDER_OF_PREPARED_SETS --codes 16384
    python benchmarks/usage.py --data-dir FOLDER_OF_PREPARED_SETS --codes 262144 --steps 60 \\
        --tests 1 --evaluations 3

Patches of 4 x 4 grey pixels of CIFAR-10, 16 features, less the mean patch and in one unit; codes
are trained by Adam on the quantizer's own loss, from random codes except for VQ-EMA's rows of the
batch. Used codes are counted on patches that are not trained on, `--tests` of them for each code;
the even use of all codes would find 1 - e^-tests of them. No encoder moves here, so this shows
what the codebook does, not a whole model. Twelve minutes at 16,384 codes on one core; --quick
takes seconds, with patches of noise.
"""

from __future__ import annotations

import functools
import json

import common
import jax
import matplotlib as mpl
import numpy as np
import optax
from matplotlib.figure import Figure

from vqjax import ops
from vqjax.quantizers import IBQ, VQ, VQEMA, Bridged

SIDE = 4  # of a patch, pixels


def methods(num_codes):
    """Name -> quantizer."""
    bridge = ops.VQBridge(patch=max(num_codes // 512, 1), width=128, depth=2, heads=4)
    return {
        'VQ': VQ(num_codes, init=ops.normal, revival=None),
        'VQ-EMA, revival': VQEMA(num_codes, init=ops.batch_rows),
        'IBQ': IBQ(num_codes, init=ops.normal, metric='euclidean'),
        'linear (SimVQ)': Bridged(num_codes, bridge=ops.Linear()),
        'low rank, 4': Bridged(num_codes, bridge=ops.LowRank(4)),
        'VQBridge, codes frozen': Bridged(num_codes, bridge=bridge),
        'VQBridge, codes learned': Bridged(num_codes, bridge=bridge, learned=True),
    }


def patches(data_dir, split, number, seed, side=SIDE):
    """[number, side * side] float32: patches of images at random places."""
    from vqjax.trainer.data import sets

    images, _, _ = sets.load('cifar10', data_dir).splits[split].read(np.arange(10_000))
    rng = np.random.default_rng(seed)
    return common.random_patches(images, rng.integers(len(images), size=number), side, rng)


def curve(q, train, test, steps, batch, rate, evaluations):
    """(step, share of codes used, squared error as a share of the variance) while it trains."""
    optimizer = optax.adam(rate)

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(params, state, moments, z, key):
        def loss(params):
            out = q.quantize(params, state, z, key)
            return out.loss, out.codes

        slope, codes = jax.grad(loss, has_aux=True)(params)
        state = q.update(params, state, z, codes, key)
        change, moments = optimizer.update(slope, moments)
        return optax.apply_updates(params, change), state, moments

    @jax.jit
    def evaluate(params, state, z):
        out = q.quantize(params, state, z)
        return out.codes, ((z - out.z_q) ** 2).sum()

    def look(params, state, done):
        used, error = set(), 0.0
        for rows in np.array_split(test, -(-len(test) // 65_536)):
            codes, wrong = evaluate(params, state, rows)
            used.update(np.unique(np.asarray(codes)).tolist())
            error += float(wrong)
        total = float(((test - test.mean(0)) ** 2).sum())
        return done, round(len(used) / q.num_codes, 4), round(error / total, 5)

    rng, key = np.random.default_rng(0), jax.random.key(0)
    params, state = jax.jit(q.init)(key, train[rng.integers(len(train), size=max(batch, 1))])
    moments, found = optimizer.init(params), []
    looks = set(np.linspace(0, steps, evaluations, dtype=int).tolist())
    begin = common.clock()
    for done in range(steps + 1):
        if done in looks:
            found.append(look(params, state, done))
        if done < steps:
            rows = train[rng.integers(len(train), size=batch)]
            chosen = jax.random.fold_in(key, done)
            params, state, moments = step(params, state, moments, rows, chosen)
    return found, common.clock() - begin


def plot(path, rows, even):
    """Use and error against steps, a line a method."""
    with mpl.rc_context(common.PLAIN):
        figure = Figure(figsize=(9, 3.8), layout='constrained')
        use, error = figure.subplots(1, 2)
        for row, colour in zip(rows, mpl.colormaps['tab10'].colors, strict=False):
            steps, shares, errors = zip(*row['curve'], strict=True)
            use.plot(steps, shares, color=colour, marker='o', markersize=3.5, label=row['method'])
            error.plot(steps, errors, color=colour, marker='o', markersize=3.5)
        use.axhline(even, color='black', linestyle='--', linewidth=1, label='all codes alike')
        use.set(xlabel='steps', ylabel='share of the codes used', ylim=(0, 1.03))
        error.set(xlabel='steps', ylabel='squared error, share of the variance', yscale='log')
        error.yaxis.set_major_formatter(lambda value, _: f'{value:g}')
        error.yaxis.set_minor_formatter(lambda value, _: f'{value:g}')
        figure.legend(loc='outside right center', frameon=False)
        figure.savefig(path, dpi=150, facecolor='white')
    print(f'wrote {path}')


def main(argv=None):
    """Train each method that is not in the JSON yet, write usage_K.json and usage_K.png."""
    parser = common.parser(__doc__, timed=False)
    parser.add_argument('--data-dir', help='folder of prepared TFDS sets, for CIFAR-10')
    parser.add_argument('--codes', type=int, default=16_384)
    parser.add_argument('--steps', type=int, default=1000)
    parser.add_argument('--batch', type=int, default=4096)
    parser.add_argument('--tests', type=int, default=8, help='test vectors for each code')
    parser.add_argument('--evaluations', type=int, default=6, help='from the start to the end')
    parser.add_argument('--rate', type=float, default=1e-3, help="Adam's learning rate")
    parser.add_argument('--methods', help='separated by ;, default: all')
    options = common.arguments(parser, argv)
    num_codes = 64 if options.quick else options.codes
    if options.quick:
        options.steps, options.batch = 10, 64
        rng = np.random.default_rng(0)
        train, test = (rng.standard_normal((n, SIDE**2), np.float32) for n in (1000, 512))
    else:
        train = patches(options.data_dir, 'train', 1_000_000, 0)
        test = patches(options.data_dir, 'test', options.tests * num_codes, 1)
        mean = train.mean(0)
        unit = (train - mean).std()
        train, test = (train - mean) / unit, (test - mean) / unit
    even = 1 - (1 - 1 / num_codes) ** len(test)
    results = {'K': num_codes, 'D': SIDE**2, 'N_test': len(test), 'even_use': round(even, 4)}
    results |= {name: getattr(options, name) for name in ('steps', 'batch', 'rate')}
    name = f'usage_{num_codes}'
    path = options.out / f'{name}.json'
    before = json.loads(path.read_text()) if path.exists() else {}
    rows = before['rows'] if all(before.get(k) == v for k, v in results.items()) else []
    table = methods(num_codes)
    for method in options.methods.split(';') if options.methods else table:
        if method in {row['method'] for row in rows}:
            continue
        how = options.steps, options.batch, options.rate, options.evaluations
        found, seconds = curve(table[method], train, test, *how)
        print(f'{method:24} used {found[-1][1]:.4f}  error {found[-1][2]:.4f}  {seconds:.0f} s')
        rows.append(
            {'method': method, 'quantizer': repr(table[method]), 'curve': found}
            | {'seconds': round(seconds, 1)}
        )
        common.write(options.out, name, results | {'rows': rows})
    common.write(options.out, name, results | {'rows': rows})
    plot(options.out / f'{name}.png', rows, even)


if __name__ == '__main__':
    main()
