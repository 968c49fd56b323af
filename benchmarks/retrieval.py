"""Search over codes against faiss at equal bytes: python benchmarks/retrieval.py

Codebooks of 256 codes are fitted to one set of vectors, a second set is encoded, and the nearest of
its items to queries of a third are searched by their codes alone: recall@10 of the items that are
nearest before quantization, the share of items with the codes of another one, and times, beside
faiss IndexPQ and IndexResidualQuantizer. Data: Gaussian vectors, and vectors made to be like
embeddings of text. About a minute on two cores; --quick takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import common
import fit as fits
import jax
import numpy as np

from vqjax import codec
from vqjax.quantizers import Product, Residual

OURS, FAISS = 'vqjax', 'faiss'
FOUND = 10
BEAM = 5  # faiss's default


def gaussian(rng, n, dim):
    """Independent features: nothing to learn but the scale."""
    return rng.standard_normal((n, dim)).astype(np.float32)


def text_like(rng, n, dim):
    """Unit vectors of 1,000 topics, few of which are common, in a narrow cone.

    Topics are used as often as words are (Zipf), the standard deviation of the principal directions
    falls with the square root of their number, and all vectors share a mean as long as the rest.
    """
    shared = np.random.default_rng(0)  # the same for all three sets
    spread = np.sqrt(1 / np.arange(1, dim + 1))
    axes = np.linalg.qr(shared.standard_normal((dim, dim)))[0]
    topics = shared.standard_normal((1000, dim))
    mean = shared.standard_normal(dim)
    often = 1 / np.arange(1, 1001)
    which = rng.choice(1000, n, p=often / often.sum())
    rows = (topics[which] + 0.7 * rng.standard_normal((n, dim))) * spread @ axes
    rows += mean * np.sqrt((spread**2).sum() / dim)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


DATA = {'Gaussian': gaussian, 'like text': text_like}


class Searcher(NamedTuple):
    """Functions without arguments, called in this order.

    fit: trains on the first set.
    encode: the codes of the items, integers [N, bytes].
    search: ids [Q, FOUND].
    """

    fit: Callable
    encode: Callable
    search: Callable


def ours(quantizer, train, items, queries):
    """The codec: k-means in each group or stage, and search over packed codes."""
    held = {}

    def fit():
        held['codec'] = codec.fit(quantizer, jax.random.key(0), train, steps=0, progress=False)

    def encode():
        codes = held['codec'].encode(items)
        held['packed'] = held['codec'].pack(codes)
        return codes

    def search():
        return codec.search_packed(held['codec'], queries, held['packed'], len(items), FOUND).ids

    return Searcher(fit, encode, search)


def theirs(index, train, items, queries):
    """An index of faiss."""
    import faiss

    def encode():
        index.reset()
        index.add(items)
        return faiss.vector_to_array(index.codes).reshape(len(items), -1)

    return Searcher(lambda: index.train(train), encode, lambda: index.search(queries, FOUND)[1])


def index_product(dim, parts):
    """IndexPQ of 8 bits a group."""
    import faiss

    index = faiss.IndexPQ(dim, parts, 8)
    index.pq.cp.niter = fits.PRODUCT_ITERATIONS
    return index


def index_residual(dim, parts):
    """IndexResidualQuantizer of 8 bits a stage.

    Without stored norms, which take more bytes, it decodes every item for every query.
    """
    import faiss

    index = faiss.IndexResidualQuantizer(dim, parts, 8, faiss.METRIC_L2)
    index.rq.train_type = faiss.ResidualQuantizer.Train_default
    index.rq.cp.niter = fits.RESIDUAL_ITERATIONS
    index.rq.max_beam_size = BEAM
    return index


def nearest(items, queries):
    """Ids [Q, FOUND] of the items nearest to each query, in float64."""
    items, queries = items.astype(np.float64), queries.astype(np.float64)
    distances = (items**2).sum(1) - 2 * queries @ items.T
    return np.argpartition(distances, FOUND, axis=1)[:, :FOUND]


def seconds_of(run):
    """(seconds, result) of one call; of vqjax's first, compilation included."""
    start = common.clock()
    result = run()
    return round(common.clock() - start, 3), result


def compare(searchers, true_ids, repeats):
    """Recall, collisions and times of each searcher."""
    row = {'recall': {}, 'collisions': {}, 'fit_s': {}, 'encode_s': {}}
    for name, searcher in searchers.items():
        row['fit_s'][name], _ = seconds_of(searcher.fit)
        row['encode_s'][name], codes = seconds_of(searcher.encode)
        row['collisions'][name] = round(codec.collision_rate(codes), 5)
        row['recall'][name] = round(codec.recall(searcher.search(), true_ids), 4)
    times = common.measure({name: s.search for name, s in searchers.items()}, repeats)
    return row | {'runs': common.summary(times), 'ratio_to_faiss': common.ratio(times, OURS, FAISS)}


def main(argv=None):
    """Measure, write retrieval.json."""
    options = common.arguments(common.parser(__doc__), argv)
    peers = common.available(options.quick, 'faiss-cpu')
    n, dim, asked, repeats = (2_000, 8, 50, 1) if options.quick else (20_000, 32, 100, 2)
    product, residual = fits.leaf(fits.PRODUCT_ITERATIONS), fits.leaf(fits.RESIDUAL_ITERATIONS)
    kinds = {
        'product': (lambda parts: Product(product, parts), index_product),
        'residual, beam 5': (lambda parts: Residual(residual, parts, beam=BEAM), index_residual),
    }
    rows = []
    for data, make in DATA.items():
        train, items, queries = (
            make(np.random.default_rng(seed), size, dim)
            for seed, size in enumerate((n // 2, n, asked), 1)
        )
        true_ids = nearest(items, queries)
        for codes, (quantizer, index) in kinds.items():
            for parts in (2,) if options.quick else (4, 8):
                searchers = {OURS: ours(quantizer(parts), train, items, queries)}
                if peers:
                    searchers[FAISS] = theirs(index(dim, parts), train, items, queries)
                row = compare(searchers, true_ids, repeats)
                rows.append({'data': data, 'codes': codes, 'bytes': parts} | row)
                print(f'{data}, {codes}, {parts} bytes:', row)
    results = {'N': n, 'D': dim, 'queries': asked, 'fitted to': n // 2, 'rows': rows}
    common.write(options.out, 'retrieval', results)


if __name__ == '__main__':
    main()
