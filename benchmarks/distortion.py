"""Distortion against bits a vector, for every quantizer and combinator, beside faiss.

    python benchmarks/distortion.py --data-dir FOLDER_OF_PREPARED_SETS
    python benchmarks/distortion.py --set normal      # or embeddings: nothing to download

Four sets, each less its mean and in one unit. `patches`: 8 x 8 grey pixels of CIFAR-10, 64
features, 40,000 of training images to fit to and 10,000 of test images to measure on. `features`:
the 64 pooled features of a ResNet-9 of width 8, of the same numbers of images; the network is
trained here for two epochs, and its seed is the same in every run. `normal`: 16 independent normal
features, whose bound is known exactly. `embeddings`: 128 features with the unit norm and the
decaying spectrum of sentence embeddings; they are drawn at random, not made from text.

Every quantizer is fitted by `vqjax.codec.fit` with three seeds: 200 steps after k-means where
statistics are all that moves, 2,000 where gradients have something to learn (100 and 500 for all
sets but the patches, and 500 for the Leech lattice everywhere, whose steps take longest). The
seconds stand beside. At most 12 bits go into one codebook. Rows that are already in the JSON are
not measured again. The patches take about an hour on two cores, the others less; --quick takes
seconds, with some families and few vectors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import NamedTuple

import common
import image_features
import jax
import matplotlib as mpl
import numpy as np
import scipy.stats
from matplotlib.figure import Figure

from vqjax import codec, ops
from vqjax.quantizers import (
    FSP,
    FSQ,
    IBQ,
    LFQ,
    VQ,
    VQEMA,
    Bridged,
    Conditioned,
    GumbelSoftmax,
    LatentQuantization,
    Product,
    Projected,
    QINCo,
    Quantizer,
    Residual,
    SimVQ,
    SphericalLattice,
    TurboQuant,
)

BITS = (4, 6, 8, 10, 12, 16, 20, 24, 32)
LEECH_BITS = 18
SIDE = 8  # of a patch, pixels
# bits -> parts of equal bits, at most 8 each and, for groups, a divisor of the features.
STAGES = {4: 2, 6: 2, 8: 2, 10: 2, 12: 2, 16: 2, 20: 4, 24: 3, 32: 4, 128: 16}
GROUPS = STAGES | {24: 4}
EMBEDDED = 128  # features of an embedding
BATCH = 2048
QUICK_BITS = (4, 8)
QUICK = {
    'patches': ('VQ-EMA', 'FSQ, projected', 'Product', 'Residual', 'faiss PQ'),
    'features': ('VQ-EMA', 'faiss PQ'),
    'normal': ('VQ-EMA', 'faiss PQ'),
    'embeddings': ('VQ-EMA', 'faiss PQ'),
}


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


def grid_levels(bits):
    """4 levels, 2 bits, a feature; the first has 8 where bits are odd."""
    return (8,) * (bits % 2) + (4,) * (bits // 2 - bits % 2)


def grid(bits, kind=FSQ, **fields):
    """FSQ, or FSP, of 4 levels a projected feature."""

    def inner(part):
        levels = grid_levels(part)
        return kind(levels, **fields), len(levels)

    return projected(bits, inner)


def residual_grid(bits):
    """RFSQ: two stages of FSQ on the same projected features, half of the bits each."""
    levels = grid_levels(bits // 2)
    return Projected(Residual(Conditioned(FSQ(levels)), 2), len(levels))


def lattice(bits):
    """E8's 240 vectors, 7.9 bits, for each 8 projected features."""
    groups = bits // 8
    if bits % 8:
        return None
    leaf = SphericalLattice(8)
    return Projected(Product(leaf, groups) if groups > 1 else leaf, 8 * groups)


def leech(bits):
    """The 196,560 shortest vectors of the Leech lattice, 17.6 bits, for 24 projected features."""
    return Projected(SphericalLattice(24), 24) if bits == LEECH_BITS else None


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
    'FSP, projected': lambda bits: grid(bits, FSP, bound=ops.erf),
    'LFQ, projected': signs,
    'Latent quantization, projected': values,
    'RFSQ, projected': residual_grid,
    'E8, projected': lattice,
    'Leech, projected': leech,
    # 15 bits for the length and whole bits a feature: far above the other rates.
    'TurboQuant': lambda bits: (
        TurboQuant(EMBEDDED, (bits - 15) // EMBEDDED) if bits >= 15 + EMBEDDED else None
    ),
    'Product': lambda bits: Product(VQEMA(2 ** (bits // GROUPS[bits])), GROUPS[bits]),
    'Residual': residual,
    'Residual, beam 5': lambda bits: residual(bits, beam=5),
    # A code costs a network here: above 12 bits a fit takes minutes.
    'QINCo': lambda bits: QINCo(2 ** (bits // 2), 2) if bits <= 12 else None,
    'Residual in Product': lambda bits: (
        Product(Residual(VQEMA(2 ** (bits // 4)), 2), 2) if bits % 4 == 0 else None
    ),
}


# Steps of a family whose steps take too long for those of the set.
STEPS = {'Leech, projected': 500}

# What tells a row from others.
KEYS = ('set', 'family', 'bits', 'quantizer')


def faiss_families(dim):
    """Name -> (bits, seed) -> a quantizer of faiss of so many features."""
    import faiss

    def product(bits, seed):
        made = faiss.ProductQuantizer(dim, GROUPS[bits], bits // GROUPS[bits])
        made.cp.seed = seed
        return made

    def residual(bits, seed):
        made = faiss.ResidualQuantizer(dim, STAGES[bits], bits // STAGES[bits])
        made.cp.seed = seed
        return made

    def local_search(bits, seed):
        made = faiss.LocalSearchQuantizer(dim, STAGES[bits], bits // STAGES[bits])
        made.random_seed = seed
        return made

    return {'faiss PQ': product, 'faiss RQ': residual, 'faiss LSQ': local_search}


def images(data_dir, split, number):
    """The first images of a split of CIFAR-10, uint8 [number, 32, 32, 3], and their labels."""
    from vqjax.trainer.data import sets

    found, labels, _ = sets.load('cifar10', data_dir).splits[split].read(np.arange(number))
    return found, labels


def patches(data_dir, split, number):
    """[number, 64] float32 from 0 to 1: one patch of each of the first images, at random places."""
    rng = np.random.default_rng(len(split))
    return common.random_patches(images(data_dir, split, number)[0], np.arange(number), SIDE, rng)


def features(seen, unseen, **settings):
    """float32 features of (images, labels) that a network is trained on, and of others."""
    fitted, tested, accuracy = image_features.learned(*seen, *unseen, **settings)
    print(f'the network has an accuracy of {accuracy:.1%} on the test images', flush=True)
    return fitted, tested


def stripes(number, seed):
    """Images of 8 x 8 and their labels, for --quick: noise with a stripe across or down."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=number)
    found = rng.integers(128, size=(number, SIDE, SIDE, 3), dtype=np.uint8)
    at = rng.integers(SIDE, size=number)
    for image, label, place in zip(found, labels, at, strict=True):
        (image[place] if label else image[:, place])[:] += 100
    return found, labels


def embeddings(number, seed):
    """[number, 128] float32 of unit length: normal vectors with variances 1 / i along random axes.

    In place of sentence embeddings, whose variances fall likewise; they have no topics.
    """
    dim = EMBEDDED
    axes, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((dim, dim)))
    z = np.random.default_rng(seed).standard_normal((number, dim)) / np.sqrt(1 + np.arange(dim))
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    return (z @ axes.T).astype(np.float32)


def noise(number, seed):
    """Patches of correlated noise, for --quick."""
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


class Vectors(NamedTuple):
    """A set: (vectors to fit to, to test on) from --data-dir, how to fit, and what at which rate.

    Steps are those of quantizers with statistics alone and of those with gradients.
    """

    read: Callable[[str | None], tuple[np.ndarray, np.ndarray]]
    quick: Callable[[], tuple[np.ndarray, np.ndarray]]
    steps: tuple[int, int]
    rates: dict[str, tuple[int, ...]]


def normal(number, seed):
    """[number, 16] float32 of independent normal features."""
    return np.random.default_rng(seed).standard_normal((number, 16)).astype(np.float32)


PEERS = ('faiss PQ', 'faiss RQ', 'faiss LSQ')
# At fewer rates than all.
LEECH = {'Leech, projected': (LEECH_BITS,)}
PATCHES = dict.fromkeys(('FSP, projected', 'E8, projected'), (8, 16, 32))
PATCHES |= {'RFSQ, projected': (16, 32), 'TurboQuant': ()} | LEECH
CODES = ('Product', 'Residual', 'Residual, beam 5', *PEERS)
DRAWN = {'VQ-EMA': (4, 8, 12)}
DRAWN |= dict.fromkeys(
    ('FSQ, projected', 'FSP, projected', 'LFQ, projected', 'Latent quantization, projected'),
    (8, 16, 32),
)
DRAWN |= dict.fromkeys(('RFSQ, projected', 'E8, projected'), (8, 16, 32))
DRAWN |= dict.fromkeys(CODES, (4, 8, 12, 16, 24, 32))
LEARNED = dict.fromkeys(('VQ-EMA, Sinkhorn', 'VQ', 'SimVQ'), (4, 8, 12)) | LEECH
SETS = {
    'patches': Vectors(
        lambda folder: (patches(folder, 'train', 40_000), patches(folder, 'test', 10_000)),
        lambda: (noise(2000, 0), noise(500, 1)),
        (200, 2000),
        {family: PATCHES.get(family, BITS) for family in (*FAMILIES, *PEERS)},
    ),
    'features': Vectors(
        lambda folder: features(images(folder, 'train', 40_000), images(folder, 'test', 10_000)),
        lambda: features(stripes(2000, 0), stripes(500, 1), width=2, epochs=1),
        (100, 500),
        {family: (DRAWN | LEARNED).get(family, ()) for family in (*FAMILIES, *PEERS)},
    ),
    'normal': Vectors(
        lambda _: (normal(20_000, 0), normal(5000, 1)),
        lambda: (normal(2000, 0), normal(500, 1)),
        (100, 500),
        DRAWN,
    ),
    'embeddings': Vectors(
        lambda _: (embeddings(20_000, 0), embeddings(5000, 1)),
        lambda: (embeddings(2000, 0), embeddings(500, 1)),
        (100, 500),
        dict.fromkeys(DRAWN, (16, 32))
        | {'VQ-EMA': (8, 12), 'Product': (16, 32, 128), 'RFSQ, projected': (16,)}
        | LEECH
        | {'TurboQuant': (15 + EMBEDDED, 15 + 2 * EMBEDDED)},
    ),
}  # fmt: skip


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


def row(place, runs):
    """Mean error with its 95% t interval over seeds, medians of the seconds after the first."""
    errors, fit, encode = (np.array(column) for column in zip(*runs, strict=True))
    fit, encode = float(np.median(fit[1:])), float(np.median(encode[1:]))
    half = scipy.stats.t.ppf(0.975, len(errors) - 1) * errors.std(ddof=1) / math.sqrt(len(errors))
    found = dict(zip(KEYS, place, strict=True)) | {'error': round(errors.mean(), 5)}
    found |= {'half_interval': round(half, 5), 'errors': errors.round(5).tolist()}
    found |= {'fit_s': round(fit, 3), 'encode_s': round(encode, 4)}
    where, family, bits, _ = place
    error = f'{errors.mean():.4f} +- {half:.4f}'
    print(f'{where} {family:20} {bits:2} bits  error {error}  fit {fit:.2f} s', flush=True)
    return found


# A panel each: families by kind, and in each panel no more lines than can be told apart.
KINDS = {
    'one codebook': ('VQ-EMA', 'VQ-EMA, Sinkhorn', 'VQ', 'SimVQ', 'Gumbel-Softmax', 'IBQ',
                     'Bridged, low rank'),
    'one grid': ('FSQ, projected', 'iFSQ, projected', 'LFQ, projected',
                 'Latent quantization, projected', 'FSP, projected'),
    'residual grid, lattice': ('RFSQ, projected', 'E8, projected', 'Leech, projected',
                               'FSQ, projected'),
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
    rows = [r | {'bits': r.get('exact_bits', r['bits'])} for r in rows if r['bits'] <= max(BITS)]
    errors = [r['error'] for r in rows] + [error for _, error in bound]
    span = math.log(max(errors) / min(errors))
    named = '2346' if span > 1.5 else '234567'  # digits of the labels between powers of ten
    families = list(dict.fromkeys(r['family'] for r in rows))
    kinds = {kind: [f for f in names if f in families] for kind, names in KINDS.items()}
    kinds = {kind: names for kind, names in kinds.items() if names}
    with mpl.rc_context(common.PLAIN):
        lines = math.ceil(len(kinds) / 2)
        figure = Figure(figsize=(10.5, 4.6 * lines), layout='constrained')
        axes = figure.subplots(lines, 2, sharey=True, squeeze=False).ravel()
        for axis in axes[len(kinds) :]:
            axis.set_axis_off()
        for axis, (kind, names) in zip(axes, kinds.items(), strict=False):
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
            heights = apart([math.log(error) for _, error, _ in ends.values()], 0.04 * span)
            for (family, (bits, error, colour)), height in zip(ends.items(), heights, strict=True):
                place = (1.06 * most, math.exp(height))
                axis.annotate(
                    family.removesuffix(', projected'), (bits, error), place,
                    color=colour, fontsize=9, va='center', annotation_clip=False,
                    arrowprops={'arrowstyle': '-', 'color': colour, 'linewidth': 0.5},
                )  # fmt: skip
            axis.set_title(kind, loc='left', fontsize=11, fontweight='bold')
            axis.set_xticks([bits for bits in (4, 8, 12, 16, 20, 24, 32) if bits <= most])
            axis.set_xlabel('bits per vector')
            axis.yaxis.set_major_formatter(lambda value, _: f'{value:g}')
            axis.yaxis.set_minor_formatter(
                lambda value, _: f'{value:g}' if f'{value:e}'[0] in named else ''
            )
            axis.grid(color='#E5E5E5', which='both')
            axis.set_axisbelow(True)
        figure.supylabel('squared error / variance (log scale)', fontsize=10)
        figure.supxlabel(
            'Gaussian bound: a Gaussian of the same covariance in long blocks; dotted: faiss',
            fontsize=9, color='#666666',
        )  # fmt: skip
        figure.savefig(path, dpi=150, facecolor='white')
    print(f'wrote {path}')


def picture(name):
    """The file of a set's plot, without its ending."""
    return 'distortion' if name == 'patches' else f'distortion_{name}'


def steps_of(family, steps):
    """(statistics, gradients) steps of a family on a set of so many."""
    return tuple(min(number, STEPS.get(family, number)) for number in steps)


def measure(options, name, results):
    """Add to `results` what is missing of a set, and write after every row."""
    vectors = SETS[name]
    train, test = vectors.quick() if options.quick else vectors.read(options.data_dir)
    # A linear map of frozen codes (SimVQ) has no offset, and grids have a scale: as a network's
    # features would come, without the mean.
    mean = train.mean(0)
    unit = (train - mean).std()
    train, test = (train - mean) / unit, (test - mean) / unit
    seeds, steps = (range(2), (5, 5)) if options.quick else (range(3), vectors.steps)
    header = {'N': len(train), 'N_test': len(test), 'D': train.shape[1], 'batch': BATCH}
    header |= {'statistics_steps': steps[0], 'gradient_steps': steps[1], 'seeds': len(seeds)}
    before = results['sets'].get(name, {})
    if any(before.get(key) != value for key, value in header.items()):
        results['rows'] = [r for r in results['rows'] if r['set'] != name]
    bound = {bits: round(gaussian_bound(test, bits), 5) for bits in sorted((*BITS, LEECH_BITS))}
    header['gaussian'] = list(bound.items())
    results['sets'][name] = header
    families = dict(FAMILIES)
    if common.available(options.quick, 'faiss-cpu'):
        families |= faiss_families(train.shape[1])
    chosen = QUICK[name] if options.quick else families
    if options.families:
        chosen = options.families.split(';')
    kept = {tuple(r[key] for key in KEYS): r for r in results['rows']}
    found = {place: r for place, r in kept.items() if place[0] != name}
    for family, rates in vectors.rates.items():
        make, peer = families.get(family), family.startswith('faiss')
        for bits in QUICK_BITS if options.quick else rates:
            quantizer = family if peer else make(bits)
            place = (name, family, bits, str(quantizer))
            if place in kept:
                found[place] = kept[place]
            elif quantizer is not None and family in chosen and make is not None:
                runs = (
                    theirs(make, bits, train, test, seeds)
                    if peer
                    else ours(quantizer, steps_of(family, steps), train, test, seeds)
                )
                found[place] = row(place, runs)
                if not peer and round(quantizer.bits, 1) != bits:
                    found[place]['exact_bits'] = round(quantizer.bits, 1)
                results['rows'] = list((kept | found).values())
                common.write(options.out, 'distortion', results)
    results['rows'] = list(found.values())


def main(argv=None):
    """Measure what is missing, write distortion.json and a plot for each set."""
    parser = common.parser(__doc__, timed=False)
    parser.add_argument('--data-dir', help='folder of prepared TFDS sets, for CIFAR-10')
    parser.add_argument('--set', choices=SETS, help='one of the sets, default: all')
    parser.add_argument('--families', help='separated by ;, default: all')
    options = common.arguments(parser, argv)
    path = options.out / 'distortion.json'
    results = json.loads(path.read_text()) if path.exists() else {'sets': {}, 'rows': []}
    for name in [options.set] if options.set else SETS:
        measure(options, name, results)
        common.write(options.out, 'distortion', results)
        rows = [r for r in results['rows'] if r['set'] == name]
        plot(options.out / f'{picture(name)}.png', rows, results['sets'][name]['gaussian'])


if __name__ == '__main__':
    main()
