"""Distortion against bits a vector, for every quantizer and combinator, beside faiss.

    python benchmarks/distortion.py --data-dir FOLDER_OF_PREPARED_SETS

Patches of 8 x 8 grey pixels of CIFAR-10, 64 features: 40,000 of training images to fit to, 10,000
of test images to measure on, less the mean patch and in one unit. Every quantizer is fitted by
`vqjax.codec.fit`, three seeds each: 200 steps after k-means where statistics are all that moves,
2,000 where gradients have something to learn; the seconds stand beside. At most 12 bits go into one
codebook. Rows that are already in the JSON are not measured again. About half an hour on two
cores; --quick takes seconds, with some families and patches of noise.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable

import common
import jax
import matplotlib as mpl
import numpy as np
import scipy.stats
from matplotlib.figure import Figure

from vqjax import codec, ops
from vqjax.quantizers import (
    FSQ,
    IBQ,
    LFQ,
    VQ,
    VQEMA,
    Bridged,
    GumbelSoftmax,
    LatentQuantization,
    Product,
    Projected,
    QINCo,
    Quantizer,
    Residual,
    SimVQ,
)

BITS = (4, 6, 8, 10, 12, 16, 20, 24, 32)
SIDE = 8  # of a patch, pixels
# bits -> parts of equal bits, at most 8 each and, for groups, a divisor of 64.
STAGES = {4: 2, 6: 2, 8: 2, 10: 2, 12: 2, 16: 2, 20: 4, 24: 3, 32: 4}
GROUPS = STAGES | {24: 4}
STATISTICS_STEPS, GRADIENT_STEPS, BATCH = 200, 2000, 2048
QUICK = ('VQ-EMA', 'FSQ, projected', 'Product', 'Residual', 'faiss PQ')


def largest(bits, most):
    """2^bits codes where that is not more than 2^most."""
    return 2**bits if bits <= most else None


def leaf(kind, most=12, **fields):
    """A family of one codebook."""

    def make(bits):
        codes = largest(bits, most)
        return codes and kind(codes, **fields)

    return make


def projected(bits, inner):
    """`inner` of so many bits behind a learned projection to so many features, in groups of 8."""

    groups = next(n for n in range(1, bits) if bits % n == 0 and bits // n <= 8)
    leaf, features = inner(bits // groups)
    return Projected(Product(leaf, groups) if groups > 1 else leaf, features * groups)


def grid(bits, **fields):
    """FSQ of 4 levels, 2 bits, a projected feature; the first has 8 where bits are odd."""

    def inner(part):
        levels = (8,) * (part % 2) + (4,) * (part // 2 - part % 2)
        return FSQ(levels, **fields), len(levels)

    return projected(bits, inner)


def values(bits):
    """4 learned values, 2 bits, for each projected feature."""
    return Projected(LatentQuantization((4,) * (bits // 2)), bits // 2)


def signs(bits):
    """LFQ: the sign of each projected feature."""
    return projected(bits, lambda part: (LFQ(part), part))


def residual(bits, **fields):
    """Stages of equal bits."""
    return Residual(VQEMA(2 ** (bits // STAGES[bits])), STAGES[bits], **fields)


FAMILIES: dict[str, Callable[[int], Quantizer | None]] = {
    'VQ-EMA': leaf(VQEMA),
    'VQ-EMA, Sinkhorn': leaf(VQEMA, assignment=ops.Sinkhorn()),
    'VQ': leaf(VQ),
    'SimVQ': leaf(SimVQ),
    'IBQ': leaf(IBQ),
    'Bridged, low rank': leaf(Bridged, bridge=ops.LowRank(8)),
    'Gumbel-Softmax': leaf(GumbelSoftmax, most=10),
    'FSQ, projected': grid,
    'iFSQ, projected': lambda bits: grid(bits, bound=ops.ifsq),
    'LFQ, projected': signs,
    'Latent quantization, projected': values,
    'Product': lambda bits: Product(VQEMA(2 ** (bits // GROUPS[bits])), GROUPS[bits]),
    'Residual': residual,
    'Residual, beam 5': lambda bits: residual(bits, beam=5),
    # A code costs a network here: above 12 bits a fit takes minutes.
    'QINCo': lambda bits: QINCo(2 ** (bits // 2), 2) if bits <= 12 else None,
    'Residual in Product': lambda bits: (
        Product(Residual(VQEMA(2 ** (bits // 4)), 2), 2) if bits % 4 == 0 else None
    ),
}


def faiss_families():
    """Name -> (bits, seed) -> a quantizer of faiss."""
    import faiss

    def product(bits, seed):
        made = faiss.ProductQuantizer(SIDE**2, GROUPS[bits], bits // GROUPS[bits])
        made.cp.seed = seed
        return made

    def residual(bits, seed):
        made = faiss.ResidualQuantizer(SIDE**2, STAGES[bits], bits // STAGES[bits])
        made.cp.seed = seed
        return made

    def local_search(bits, seed):
        made = faiss.LocalSearchQuantizer(SIDE**2, STAGES[bits], bits // STAGES[bits])
        made.random_seed = seed
        return made

    return {'faiss PQ': product, 'faiss RQ': residual, 'faiss LSQ': local_search}


def patches(data_dir, split, number):
    """[number, 64] float32 from 0 to 1: one patch of each of the first images, at random places."""
    from vqjax.trainer.data import sets

    images, _, _ = sets.load('cifar10', data_dir).splits[split].read(np.arange(number))
    rng = np.random.default_rng(len(split))
    return common.random_patches(images, np.arange(number), SIDE, rng)


def noise(number, seed):
    """The same of correlated noise, for --quick."""
    rng = np.random.default_rng(seed)
    steps = rng.standard_normal((number, SIDE, SIDE)).cumsum(1).cumsum(2)
    return (steps / steps.std()).reshape(number, -1).astype(np.float32)


def gaussian_bound(z, bits):
    """Least error, as a share of the variance, of any code of a Gaussian with z's covariance.

    Reverse water-filling (Cover and Thomas, Elements of Information Theory, theorem 10.3.3).
    Patches are no Gaussian and can be coded better; a block of one vector is short and does worse.
    """
    spectrum = np.linalg.eigvalsh(np.cov(z.T.astype(np.float64))).clip(1e-12)
    low, high = 0.0, spectrum.max()
    for _ in range(100):
        level = (low + high) / 2
        rate = 0.5 * np.log2(np.maximum(spectrum / level, 1)).sum()
        low, high = (level, high) if rate > bits else (low, level)
    return float(np.minimum(spectrum, level).sum() / spectrum.sum())


def share(z, decoded):
    """Squared error as a share of the variance of z."""
    return float(((z - decoded) ** 2).sum() / ((z - z.mean(0)) ** 2).sum())


def ours(quantizer, steps, train, test, seeds):
    """(error, seconds to fit, seconds to encode) of each seed; the first of them compiles."""
    params, _ = jax.eval_shape(quantizer.init, jax.random.key(0), train[:64])
    steps = steps[bool(jax.tree.leaves(params))]

    def run(seed):
        begin = common.clock()
        fitted = codec.fit(quantizer, jax.random.key(seed), train, steps, BATCH, progress=False)
        middle = common.clock()
        codes = fitted.encode(test)
        return share(test, fitted.decode(codes)), middle - begin, common.clock() - middle

    return [run(seed) for seed in seeds]


def theirs(make, bits, train, test, seeds):
    """The same of a quantizer of faiss."""

    def run(seed):
        quantizer = make(bits, seed)
        begin = common.clock()
        quantizer.train(train)
        middle = common.clock()
        codes = quantizer.compute_codes(test)
        encoded = common.clock()
        return share(test, quantizer.decode(codes)), middle - begin, encoded - middle

    return [run(seed) for seed in seeds]


def row(family, bits, name, runs):
    """Mean error with its 95% t interval over seeds, medians of the seconds after the first."""
    errors, fit, encode = (np.array(column) for column in zip(*runs, strict=True))
    fit, encode = float(np.median(fit[1:])), float(np.median(encode[1:]))
    half = scipy.stats.t.ppf(0.975, len(errors) - 1) * errors.std(ddof=1) / math.sqrt(len(errors))
    found = {'family': family, 'bits': bits, 'quantizer': name, 'error': round(errors.mean(), 5)}
    found |= {'half_interval': round(half, 5), 'errors': errors.round(5).tolist()}
    found |= {'fit_s': round(fit, 3), 'encode_s': round(encode, 4)}
    error = f'{errors.mean():.4f} +- {half:.4f}'
    print(f'{family:20} {bits:2} bits  error {error}  fit {fit:.2f} s  encode {encode:.3f} s')
    return found


# A panel each: families by kind, and in each panel no more lines than can be told apart.
KINDS = {
    'one codebook': ('VQ-EMA', 'VQ-EMA, Sinkhorn', 'VQ', 'SimVQ', 'Gumbel-Softmax', 'IBQ',
                     'Bridged, low rank'),
    'a grid without a codebook': ('FSQ, projected', 'iFSQ, projected', 'LFQ, projected',
                                  'Latent quantization, projected'),
    'several codes per vector': ('Product', 'faiss PQ', 'Residual in Product', 'Residual',
                                 'Residual, beam 5', 'QINCo', 'faiss RQ', 'faiss LSQ'),
}  # fmt: skip
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#8C564B', '#333333')


def apart(values, gap):
    """Places for labels at these values, in their order and at least a gap from each other."""
    order = np.argsort(values)
    places = np.array(values, float)[order]
    for _ in range(200):
        close = gap - np.diff(places)
        if not (close > 1e-9).any():
            break
        push = np.maximum(close, 0) / 2
        places[1:] += push
        places[:-1] -= push
    found = np.empty_like(places)
    found[order] = places
    return found


def plot(path, rows, bound):
    """Error against bits on a logarithmic axis: a panel a kind, every line named at its end."""
    families = list(dict.fromkeys(r['family'] for r in rows))
    kinds = {kind: [f for f in names if f in families] for kind, names in KINDS.items()}
    kinds = {kind: names for kind, names in kinds.items() if names}
    with mpl.rc_context({'font.size': 10, 'axes.spines.top': False, 'axes.spines.right': False}):
        figure = Figure(figsize=(4.1 * len(kinds), 4.8), layout='constrained')
        axes = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
        for axis, (kind, names) in zip(axes, kinds.items(), strict=True):
            shown = {f: [r for r in rows if r['family'] == f] for f in names}
            most = max(r['bits'] for found in shown.values() for r in found)
            ends = {}
            for colour, (family, found) in zip(COLOURS, shown.items(), strict=False):
                axis.errorbar(
                    [r['bits'] for r in found], [r['error'] for r in found],
                    [r['half_interval'] for r in found], capsize=2, linewidth=1.4, color=colour,
                    linestyle=':' if family.startswith('faiss') else '-', marker='o', markersize=3,
                )  # fmt: skip
                ends[family] = (found[-1]['bits'], found[-1]['error'], colour)
            limit = [(bits, error) for bits, error in bound if bits <= most]
            axis.plot(*zip(*limit, strict=True), color='black', linewidth=1, linestyle='--')
            ends['Gaussian bound'] = (*limit[-1], 'black')
            axis.set_yscale('log')
            heights = apart([math.log(error) for _, error, _ in ends.values()], 0.09)
            for (family, (bits, error, colour)), height in zip(ends.items(), heights, strict=True):
                place = (1.06 * most, math.exp(height))
                axis.annotate(
                    family.removesuffix(', projected'), (bits, error), place,
                    color=colour, fontsize=9, va='center', annotation_clip=False,
                    arrowprops={'arrowstyle': '-', 'color': colour, 'linewidth': 0.5},
                )  # fmt: skip
            axis.set_title(kind, loc='left', fontsize=11, fontweight='bold')
            axis.set_xticks(sorted({r['bits'] for found in shown.values() for r in found}))
            axis.set_xlabel('bits per vector')
            axis.yaxis.set_major_formatter(lambda value, _: f'{value:g}')
            axis.yaxis.set_minor_formatter(
                lambda value, _: f'{value:g}' if f'{value:e}'[0] in '2346' else ''
            )
            axis.grid(color='#E5E5E5', which='both')
            axis.set_axisbelow(True)
        axes[0].set_ylabel('squared error / variance (log scale)')
        figure.supxlabel(
            'Gaussian bound: a Gaussian of the same covariance in long blocks; dotted: faiss',
            fontsize=9, color='#666666',
        )  # fmt: skip
        figure.savefig(path, dpi=150, facecolor='white')
    print(f'wrote {path}')


def main(argv=None):
    """Measure what is missing, write distortion.json and distortion.png."""
    parser = common.parser(__doc__)
    parser.add_argument('--data-dir', help='folder of prepared TFDS sets, for CIFAR-10')
    parser.add_argument('--families', help='separated by ;, default: all')
    options = common.arguments(parser, argv)
    if options.quick:
        train, test, seeds, steps, rates = noise(2000, 0), noise(500, 1), (0, 1), (5, 5), (4, 8)
    else:
        train = patches(options.data_dir, 'train', 40_000)
        test = patches(options.data_dir, 'test', 10_000)
        # A linear map of frozen codes (SimVQ) has no offset, and grids have a scale: as a network's
        # features would come, without the mean.
        mean = train.mean(0)
        unit = (train - mean).std()
        train, test = (train - mean) / unit, (test - mean) / unit
        seeds, steps, rates = range(3), (STATISTICS_STEPS, GRADIENT_STEPS), BITS
    results = {'N': len(train), 'N_test': len(test), 'D': SIDE**2, 'batch': BATCH}
    results |= {'statistics_steps': steps[0], 'gradient_steps': steps[1], 'seeds': len(seeds)}
    results['gaussian'] = [(bits, round(gaussian_bound(test, bits), 5)) for bits in rates]
    path = options.out / 'distortion.json'
    before = json.loads(path.read_text()) if path.exists() else {}
    same = all(before.get(name) == results[name] for name in list(results) if name != 'gaussian')
    kept = {(r['family'], r['bits'], r['quantizer']): r for r in before['rows']} if same else {}
    families = dict(FAMILIES)
    if common.available(options.quick, 'faiss-cpu'):
        families |= faiss_families()
    chosen = QUICK if options.quick else families
    if options.families:
        chosen = options.families.split(';')
    found = {}
    for family, bits in itertools.product(families, rates):
        make, peer = families[family], family.startswith('faiss')
        quantizer = family if peer else make(bits)
        place = (family, bits, str(quantizer))
        if place in kept:
            found[place] = kept[place]
        elif quantizer is not None and family in chosen:
            runs = (
                theirs(make, bits, train, test, seeds)
                if peer
                else ours(quantizer, steps, train, test, seeds)
            )
            found[place] = row(*place, runs)
            rows = list((kept | found).values())
            common.write(options.out, 'distortion', results | {'rows': rows})
    rows = list(found.values())
    common.write(options.out, 'distortion', results | {'rows': rows})
    plot(options.out / 'distortion.png', rows, results['gaussian'])


if __name__ == '__main__':
    main()
