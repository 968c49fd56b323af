"""Fitting product and residual codes against faiss at equal bits: python benchmarks/fit.py

Codebooks of 256 codes are fitted to one set of vectors and the squared error measured on another:
time and error of `init` (k-means in each group or stage) beside faiss ProductQuantizer and
ResidualQuantizer. Data: a Gaussian mixture with correlated features. About two minutes on two
cores; --quick takes seconds.
"""

from __future__ import annotations

import common
import jax
import jax.numpy as jnp
import numpy as np

from vqjax import ops
from vqjax.quantizers import VQEMA, Product, Residual

OURS, FAISS = 'vqjax', 'faiss'
# k-means iterations: faiss's defaults, and ours is told to do as many.
PRODUCT_ITERATIONS, RESIDUAL_ITERATIONS = 25, 10


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


def our_fit(quantizer, train, test):
    """(a function that fits, a function that gives the error on the test set)."""
    fit, quantize = jax.jit(quantizer.init), jax.jit(quantizer.quantize)
    train, key, held = jax.device_put(train), jax.random.key(0), []

    def run():
        held[:] = [jax.block_until_ready(fit(key, train))]

    def error():
        params, state = held[0]
        return squared_error(test, np.asarray(quantize(params, state, jnp.asarray(test)).z_q))

    return run, error


def faiss_fit(make, train, test):
    """The same two functions for a faiss quantizer."""
    held = []

    def run():
        quantizer = make()
        quantizer.train(train)
        held[:] = [quantizer]

    def error():
        return squared_error(test, held[0].decode(held[0].compute_codes(test)))

    return run, error


def faiss_product(dim, parts):
    """A ProductQuantizer of 8 bits a group."""
    import faiss

    quantizer = faiss.ProductQuantizer(dim, parts, 8)
    quantizer.cp.niter = PRODUCT_ITERATIONS
    return quantizer


def faiss_residual(dim, parts, beam):
    """A ResidualQuantizer of 8 bits a stage, with a beam of that size."""
    import faiss

    quantizer = faiss.ResidualQuantizer(dim, parts, 8)
    # k-means at every stage, as ours, and not faiss's progressive refinement of dimensions.
    quantizer.train_type = faiss.ResidualQuantizer.Train_default
    quantizer.cp.niter = RESIDUAL_ITERATIONS
    quantizer.max_beam_size = beam
    return quantizer


def products(quantizer, n, dim):
    """Those of the k-means iterations: a search of all vectors each."""
    if isinstance(quantizer, Product):
        groups = quantizer.num_groups
        return [common.Products(n, dim // groups, 256, groups * PRODUCT_ITERATIONS)]
    return [common.Products(n, dim, 256, quantizer.num_stages * RESIDUAL_ITERATIONS)]


def compare(name, quantizer, make, train, test, repeats, peers):
    """One row: time and error of both."""
    pairs = {OURS: our_fit(quantizer, train, test)}
    if peers:
        pairs[FAISS] = faiss_fit(make, train, test)
    runs = {key: pair[0] for key, pair in pairs.items()}
    searches = products(quantizer, *train.shape)
    times, floor = common.measure_with_floor(runs, repeats, OURS, searches)
    errors = {key: round(pair[1](), 5) for key, pair in pairs.items()}
    row = {'quantizer': repr(quantizer), 'bits': quantizer.bits, 'runs': common.summary(times)}
    row |= {'error': errors, 'speedup': common.ratio(times, FAISS, OURS), **floor}
    shown = f'{row["speedup"]} x faiss, {row["ratio_to_floor"]} of the floor'
    print(f'{name:20} {shown}', errors, row['runs'])
    return row


def main(argv=None):
    """Measure, write fit.json."""
    options = common.arguments(common.parser(__doc__), argv)
    peers = common.available(options.quick, 'faiss-cpu')
    n, dim, parts, repeats = (2_000, 8, 2, 1) if options.quick else (50_000, 64, 4, 3)
    train, test = data(n, dim, 1), data(n // 5, dim, 2)
    product, residual = leaf(PRODUCT_ITERATIONS), leaf(RESIDUAL_ITERATIONS)
    rows = {
        'product': (Product(product, parts), lambda: faiss_product(dim, parts)),
        'residual, greedy': (Residual(residual, parts), lambda: faiss_residual(dim, parts, 1)),
        'residual, beam 5': (
            Residual(residual, parts, beam=5),
            lambda: faiss_residual(dim, parts, 5),
        ),
    }
    if options.quick:
        rows = {name: rows[name] for name in ('product', 'residual, greedy')}
    results = {
        'N': n,
        'D': dim,
        'fits': {
            name: compare(name, quantizer, make, train, test, repeats, peers)
            for name, (quantizer, make) in rows.items()
        },
    }
    common.write(options.out, 'fit', results)


if __name__ == '__main__':
    main()
