"""Codes in use and error against the number of codes, after figure 3 of FSQ (arXiv:2309.15505).

    python benchmarks/codebook_size.py --data-dir FOLDER_OF_PREPARED_SETS

Patches of 8 x 8 grey pixels of CIFAR-10, 64 features, less their mean and in one unit. Every
quantizer is inside an autoencoder that learns with it: a hidden layer (--hidden) on each side, and
between them 16 features for a codebook, one for each entry of FSQ's levels; `standardized` features
have the mean 0 and the variance 1 in every batch. The paper has a convolutional autoencoder of
ImageNet images and reports FID. Used codes are counted on 524,288 test patches, 32 for each of
16,384 codes, and on the first 32,768 of them. Rows that are already in the JSON are not measured
again. Minutes on two cores, most for 16,384 codes; --quick takes seconds, with patches of noise.
"""

from __future__ import annotations

import functools
import json

import common
import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
from distortion import noise
from matplotlib.figure import Figure
from usage import patches

from vqjax import ops
from vqjax.quantizers import FSQ, VQ, VQEMA

SIDE = 8  # of a patch, pixels
RATE = 3e-3  # Adam's at first, falling to 0 along a cosine
FEATURES = 16  # of the vectors that a codebook quantizes
TESTS = 524_288
FEW = 32_768  # of them, on which use is counted too
# Number of codes -> levels; from 256 on those of table 1 of the paper, whose product is near it.
LEVELS = {
    16: (4, 4), 64: (8, 8), 256: (8, 6, 5), 1024: (8, 5, 5, 5), 4096: (7, 5, 5, 5, 5),
    16_384: (8, 8, 8, 6, 5), 65_536: (8, 8, 8, 5, 5, 5),
}  # fmt: skip


def methods(num_codes):
    """Name -> (quantizer, features, whether they are standardized)."""
    levels = LEVELS[num_codes]
    return {
        'VQ': (VQ(num_codes, init=ops.normal, revival=None), FEATURES, False),
        'VQ-EMA': (VQEMA(num_codes, init=ops.batch_rows, revival=None), FEATURES, False),
        'VQ-EMA, revival': (VQEMA(num_codes, init=ops.batch_rows), FEATURES, False),
        'FSQ': (FSQ(levels), len(levels), False),
        'FSQ, standardized': (FSQ(levels), len(levels), True),
    }


class Layers(nn.Module):
    """Linear maps to these sizes, with ReLU between them."""

    sizes: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        for size in self.sizes[:-1]:
            x = nn.relu(nn.Dense(size)(x))
        return nn.Dense(self.sizes[-1])(x)


def fitted(quantizer, features, standardized, train, seed, options):
    """A function from vectors to their codes and what is decoded of them."""
    encoder = Layers((*options.hidden, features))
    decoder = Layers((*options.hidden[::-1], train.shape[1]))
    first, second, third, last = jax.random.split(jax.random.key(seed), 4)
    rng = np.random.default_rng(seed)
    optimizer = optax.adam(optax.cosine_decay_schedule(RATE, options.steps))

    def encode(before, rows, statistics=None):
        z = encoder.apply(before, rows)
        if not standardized:
            return z
        mean, variance = (z.mean(0), z.var(0)) if statistics is None else statistics
        return (z - mean) * jax.lax.rsqrt(variance + 1e-5)

    @jax.jit
    def init(rows):
        before = encoder.init(first, rows)
        inner, state = quantizer.init(third, encode(before, rows))
        params = before, inner, decoder.init(second, jnp.zeros((1, features)))
        return params, state, optimizer.init(params)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(carry, rows, key):
        params, state, memory = carry

        def loss(params):
            before, inner, after = params
            z = encode(before, rows)
            out = quantizer.quantize(inner, state, z, key)
            decoded = decoder.apply(after, out.z_q)
            return ((rows - decoded) ** 2).mean() + out.loss, (z, out.codes)

        slope, (z, codes) = jax.grad(loss, has_aux=True)(params)
        state = quantizer.update(params[1], state, z, codes, key)
        updates, memory = optimizer.update(slope, memory)
        return optax.apply_updates(params, updates), state, memory

    # Codebooks start from rows, and there are more codes than rows of a batch.
    carry = init(train[: max(options.batch, 4 * quantizer.num_codes)])
    for number in range(options.steps):
        rows = train[rng.integers(len(train), size=options.batch)]
        carry = step(carry, rows, jax.random.fold_in(last, number))
    (before, inner, after), state, _ = carry
    z = encoder.apply(before, train)
    statistics = z.mean(0), z.var(0)

    @jax.jit
    def apply(rows):
        out = quantizer.quantize(inner, state, encode(before, rows, statistics))
        return out.codes, decoder.apply(after, out.z_q)

    return apply


def measured(how, train, test, seed, options):
    """Shares of the codes in use, of all test vectors and of few, and the relative error."""
    apply, num_codes = fitted(*how, train, seed, options), how[0].num_codes
    found, error = [], 0.0
    for rows in np.array_split(test, -(-len(test) // 65_536)):
        codes, decoded = apply(rows)
        found.append(np.asarray(codes))
        error += float(((rows - decoded) ** 2).sum())
    found = np.concatenate(found)
    used, few = (round(len(np.unique(codes)) / num_codes, 4) for codes in (found, found[:FEW]))
    variance = float(((test - test.mean(0)) ** 2).sum())
    return {'used': used, 'used_few': few, 'error': round(error / variance, 5)}


def plot(path, rows):
    """Use and error against the number of codes, a line a method."""
    with mpl.rc_context(common.PLAIN):
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
    """Train each method with the seeds that are missing, write codebook_size.json and a plot."""
    parser = common.parser(__doc__, timed=False)
    parser.add_argument('--data-dir', help='folder of prepared TFDS sets, for CIFAR-10')
    parser.add_argument('--steps', type=int, default=2000)
    parser.add_argument('--batch', type=int, default=1024)
    parser.add_argument('--hidden', type=int, nargs='*', default=[64], help='widths')
    parser.add_argument('--seeds', type=int, default=1, help='those of a row that are missing')
    parser.add_argument('--sizes', type=int, nargs='+', choices=LEVELS, default=list(LEVELS)[1:-1])
    parser.add_argument('--methods', help='separated by ;, default: all')
    options = common.arguments(parser, argv)
    if options.quick:
        options.steps, options.batch, options.sizes = 20, 256, [16, 256]
        train, test = noise(2000, 0), noise(1024, 1)
    else:
        train = patches(options.data_dir, 'train', 200_000, 0, SIDE)
        test = patches(options.data_dir, 'test', TESTS, 1, SIDE)
    mean = train.mean(0)
    unit = (train - mean).std()
    train, test = (train - mean) / unit, (test - mean) / unit
    results = {'N': len(train), 'N_test': len(test), 'D': train.shape[1], 'rate': RATE}
    results |= {name: getattr(options, name) for name in ('steps', 'batch', 'hidden')}
    path = options.out / 'codebook_size.json'
    before = json.loads(path.read_text()) if path.exists() else {}
    rows = before['rows'] if all(before.get(k) == v for k, v in results.items()) else []
    for num_codes in options.sizes:
        for method, how in methods(num_codes).items():
            if options.methods and method not in options.methods.split(';'):
                continue
            place = {'method': method, 'K': num_codes, 'quantizer': repr(how[0])}
            row = next((row for row in rows if place.items() <= row.items()), None)
            if row is None:
                row = place | {'used': [], 'used_few': [], 'error': [], 'seconds': []}
                rows.append(row)
            for seed in range(len(row['used']), options.seeds):
                begin = common.clock()
                found = measured(how, train, test, seed, options)
                found['seconds'] = round(common.clock() - begin, 1)
                for name, value in found.items():
                    row[name].append(value)
                print(f'{method:18} {num_codes:6}  {found}', flush=True)
                common.write(options.out, 'codebook_size', results | {'rows': rows})
    plot(options.out / 'codebook_size.png', rows)


if __name__ == '__main__':
    main()
