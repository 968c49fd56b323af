"""Fitting product and residual codes against faiss at equal bits: python benchmarks/fit.py

Codebooks of 256 codes are fitted to one set of vectors and the squared error measured on another:
time and error of `init` (k-means in each group or stage) beside faiss ProductQuantizer and
ResidualQuantizer. faiss runs its own number of iterations from a random start, which sets the
error; ours, and faiss from its k-means++, run the fewest iterations whose error is not above that.
Errors are means over twenty random starts. Then both encode a million vectors, without a beam.
Data: a Gaussian mixture with correlated features. Ten minutes on two cores; --quick takes seconds.
"""

from __future__ import annotations

import bisect
import functools
import statistics
from collections.abc import Callable
from typing import NamedTuple

import common
import jax
import jax.numpy as jnp
import numpy as np

from vqjax import ops
from vqjax.codec import Codec
from vqjax.quantizers import VQEMA, Product, Residual

OURS, FAISS, PLUS = 'vqjax', 'faiss', 'faiss, k-means++'
# k-means iterations: faiss's defaults, and the most that are tried.
PRODUCT_ITERATIONS, RESIDUAL_ITERATIONS = 25, 10
_PART = 10  # iterations of which the time of one is told
STARTS = 20  # random starts, over which errors are averaged


def data(n, dim, seed):
    """[n, dim] float32: 64 clusters whose features are mixed, so that groups are not alone."""
    rng = np.random.default_rng(0)
    centres, mixing = rng.standard_normal((64, dim)), rng.standard_normal((dim, dim)) / dim**0.5
    rng = np.random.default_rng(seed)
    rows = centres[rng.integers(64, size=n)] + 0.7 * rng.standard_normal((n, dim))
    return (rows @ mixing).astype(np.float32)


def leaf(iterations):
    """256 codes from k-means of so many iterations."""

    def start(key, z, k, mask=None, axis_name=None):
        return ops.kmeans(key, z, k, iterations, mask, axis_name)

    return VQEMA(256, init=start)


def squared_error(z, decoded):
    """Squared error as a share of the variance of z."""
    return float(((z - decoded) ** 2).sum() / ((z - z.mean(0)) ** 2).sum())


class Fit(NamedTuple):
    """What is timed of a quantizer and what its error is computed by."""

    run: Callable
    error: Callable
    encode: Callable


def our_fit(quantizer, train, test):
    """Functions that fit from a seed, give the last fit's error on the test set, and encode."""
    fit, quantize = jax.jit(quantizer.init), jax.jit(quantizer.quantize)
    train, held = jax.device_put(train), []

    def run(seed=0):
        held[:] = [jax.block_until_ready(fit(jax.random.key(seed), train))]

    def error():
        params, state = held[0]
        return squared_error(test, np.asarray(quantize(params, state, jnp.asarray(test)).z_q))

    return Fit(run, error, lambda items: Codec(quantizer, *held[0]).encode(items))


def faiss_fit(make, train, test):
    """The same functions for a faiss quantizer."""
    held = []

    def run(seed=0):
        quantizer = make()
        quantizer.cp.seed = seed + 1
        quantizer.train(train)
        held[:] = [quantizer]

    def error():
        return squared_error(test, held[0].decode(held[0].compute_codes(test)))

    return Fit(run, error, lambda items: held[0].compute_codes(items))


def mean_error(fit):
    """Over the random starts."""
    found = []
    for seed in range(STARTS):
        fit.run(seed)
        found.append(fit.error())
    return float(np.mean(found))


def fewest_iterations(make, most, goal):
    """(iterations that are enough where one less is not, else `most`; that fit; its error).

    Enough is an error of at most `goal`. By bisection: these are the fewest, as far as the error
    falls with iterations.
    """

    @functools.cache
    def found(iterations):
        fit = make(iterations)
        return fit, mean_error(fit)

    enough = bisect.bisect_left(range(1, most), True, key=lambda i: found(i)[1] <= goal)
    return 1 + enough, *found(1 + enough)


def parts(our, repeats):
    """Milliseconds of the first centroids with the codes' last assignment, and of an iteration."""
    times = common.measure({n: our(n).run for n in (0, _PART)}, repeats)
    start, whole = (statistics.median(times[n]) for n in (0, _PART))
    return {'start_ms': round(start, 2), 'iteration_ms': round((whole - start) / _PART, 2)}


def _clustering(quantizer, iterations, plus):
    """Sets how a faiss quantizer clusters."""
    import faiss

    quantizer.cp.niter = iterations
    if plus:
        quantizer.cp.init_method = faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS
    return quantizer


def faiss_product(dim, parts):
    """A ProductQuantizer of 8 bits a group."""
    import faiss

    return faiss.ProductQuantizer(dim, parts, 8)


def faiss_residual(dim, parts, beam):
    """A ResidualQuantizer of 8 bits a stage, with a beam of that size."""
    import faiss

    quantizer = faiss.ResidualQuantizer(dim, parts, 8)
    # k-means at every stage, as ours, and not faiss's progressive refinement of dimensions.
    quantizer.train_type = faiss.ResidualQuantizer.Train_default
    quantizer.max_beam_size = beam
    return quantizer


def products(quantizer, n, dim, iterations=1):
    """Those of so many searches of all vectors, as each k-means iteration is one."""
    if isinstance(quantizer, Product):
        groups = quantizer.num_groups
        return [common.Products(n, dim // groups, 256, groups * iterations)]
    return [common.Products(n, dim, 256, quantizer.num_stages * iterations)]


def encoding(fits, items, quantizer, repeats):
    """Time to encode the items, NumPy arrays."""
    runs = {key: functools.partial(fit.encode, items) for key, fit in fits.items()}
    times, floor = common.measure_with_floor(runs, repeats, OURS, products(quantizer, *items.shape))
    row = {'runs': common.summary(times), 'speedup': common.ratio(times, FAISS, OURS), **floor}
    print(f'  encode {row["speedup"]} x faiss, {row["ratio_to_floor"]} of the floor', row['runs'])
    return row


def compare(name, ours, faiss, most, train, test, items, repeats, peers):
    """One row: time and error of each; `ours` a quantizer of a leaf, `faiss` a new one."""

    def our(iterations):
        return our_fit(ours(leaf(iterations)), train, test)

    def plus(iterations):
        return faiss_fit(lambda: _clustering(faiss(), iterations, True), train, test)

    if peers:
        fit = faiss_fit(lambda: _clustering(faiss(), most, False), train, test)
        goal = mean_error(fit)
        found = {OURS: fewest_iterations(our, most, goal), FAISS: (most, fit, goal)}
        found[PLUS] = fewest_iterations(plus, most, goal)
    else:
        fit = our(most)
        found = {OURS: (most, fit, mean_error(fit))}
    fits = {key: fit for key, (_, fit, _) in found.items()}
    runs, quantizer = {key: fit.run for key, fit in fits.items()}, ours(leaf(found[OURS][0]))
    searches = products(quantizer, *train.shape, found[OURS][0])
    times, floor = common.measure_with_floor(runs, repeats, OURS, searches)
    row = {'quantizer': repr(quantizer), 'bits': quantizer.bits, 'runs': common.summary(times)}
    row['iterations'] = {key: iterations for key, (iterations, _, _) in found.items()}
    row['error'] = {key: round(error, 5) for key, (_, _, error) in found.items()}
    row |= {'speedup': common.ratio(times, FAISS, OURS), **floor}
    row['parts'] = parts(our, repeats)
    row['speedup_with_plus'] = common.ratio(times, PLUS, OURS)
    shown = f'{row["speedup"]}, {row["speedup_with_plus"]} x faiss, {row["ratio_to_floor"]}'
    print(f'{name:20} {shown} of the floor', row['iterations'], row['error'], row['runs'])
    if 'beam' not in name:
        kept = {key: fit for key, fit in fits.items() if key != PLUS}
        row['encode'] = encoding(kept, items, quantizer, repeats)
    return row


def main(argv=None):
    """Measure, write fit.json."""
    options = common.arguments(common.parser(__doc__), argv)
    peers = common.available(options.quick, 'faiss-cpu')
    n, dim, parts, repeats = (2_000, 8, 2, 1) if options.quick else (50_000, 64, 4, 5)
    train, test, items = data(n, dim, 1), data(n // 5, dim, 2), data(20 * n, dim, 3)
    rows = {
        'product': (
            lambda inner: Product(inner, parts),
            lambda: faiss_product(dim, parts),
            PRODUCT_ITERATIONS,
        ),
        'residual, greedy': (
            lambda inner: Residual(inner, parts),
            lambda: faiss_residual(dim, parts, 1),
            RESIDUAL_ITERATIONS,
        ),
        'residual, beam 5': (
            lambda inner: Residual(inner, parts, beam=5),
            lambda: faiss_residual(dim, parts, 5),
            RESIDUAL_ITERATIONS,
        ),
    }
    if options.quick:
        rows = {name: rows[name] for name in ('product', 'residual, greedy')}
    results = {
        'N': n,
        'D': dim,
        'starts': STARTS,
        'encoded': len(items),
        'fits': {
            name: compare(name, *row, train, test, items, repeats, peers)
            for name, row in rows.items()
        },
    }
    common.write(options.out, 'fit', results)


if __name__ == '__main__':
    main()
