"""Files larger than memory, and search over codes: brute force in float64, and faiss."""

import functools
import tracemalloc

import jax
import numpy as np
import pytest

from vqjax import FSQ, VQEMA, Product, Projected, RandomProjection, Residual
from vqjax.codec import Codec, fit, recall, retrieval, search, search_packed

KEY = jax.random.key(0)


def vectors(number, dim=8, seed=0):
    return np.random.default_rng(seed).normal(size=(number, dim)).astype(np.float32)


@functools.cache
def fitted(quantizer, dim=8):
    return fit(quantizer, KEY, vectors(600, dim), steps=0, progress=False)


def brute_force(codec, queries, codes, k):
    """(ids, distances) in float64, equal distances in the order of the rows."""
    items = codec.decode(codes).astype(np.float64)
    distances = ((queries[:, None].astype(np.float64) - items) ** 2).sum(-1)
    ids = np.argsort(distances, axis=1, kind='stable')[:, :k]
    return ids, np.take_along_axis(distances, ids, axis=1)


def check_found(found, codec, queries, codes, k):
    """The distances are those of the nearest, and belong to the ids."""
    ids, distances = found
    assert (
        ids.dtype == np.int32 and distances.dtype == np.float32 and ids.shape == (len(queries), k)
    )
    np.testing.assert_allclose(distances, brute_force(codec, queries, codes, k)[1], rtol=1e-5)
    own = ((queries[:, None] - codec.decode(codes)[ids]) ** 2).sum(-1)
    np.testing.assert_allclose(distances, own, rtol=1e-5)
    assert all(len(set(row)) == k for row in ids.tolist())


QUANTIZERS = [
    VQEMA(16),
    Product(VQEMA(16), 4),
    Residual(VQEMA(16), 3),
    Product(Residual(VQEMA(8), 2), 2),
    Projected(FSQ((5, 5, 5)), 3),  # 125 codes: no whole number of bits
]


@pytest.mark.parametrize('quantizer', QUANTIZERS, ids=repr)
def test_search_finds_what_brute_force_in_float64_finds(quantizer, monkeypatch):
    # Several tiles, the last of which is not full, and several blocks of queries.
    monkeypatch.setattr(retrieval, '_TILE', 64)
    monkeypatch.setattr(retrieval, '_QUERIES', 16)
    codec, queries = fitted(quantizer), vectors(20, seed=1)
    codes = codec.encode(vectors(200, seed=2))
    found = search(codec, queries, codes, 5)
    check_found(found, codec, queries, codes, 5)
    packed = search_packed(codec, queries, codec.pack(codes), 200, 5)
    np.testing.assert_array_equal(packed.ids, found.ids)
    np.testing.assert_array_equal(packed.distances, found.distances)
    # Few queries: tables, where the quantizer has them.
    check_found(search(codec, queries[:3], codes, 5), codec, queries[:3], codes, 5)


@pytest.mark.parametrize('few', [0, 16])
def test_items_at_the_same_distance_are_in_the_order_of_their_rows(few, monkeypatch):
    monkeypatch.setattr(retrieval, '_FEW', few)
    monkeypatch.setattr(retrieval, '_TILE', 8)
    codec = fitted(VQEMA(4))
    codes = np.random.default_rng(0).integers(0, 4, 40)  # about ten items of each code
    queries = vectors(6, seed=1)
    ids, _ = search(codec, queries, codes, 25)
    np.testing.assert_array_equal(ids, brute_force(codec, queries, codes, 25)[0])


def test_distances_far_from_the_origin_keep_their_digits():
    # Squared norms of 8e6, where float32 has steps of 0.5, and distances of about 1.
    codec = fit(VQEMA(64), KEY, 1000 + vectors(600), steps=0, progress=False)
    codes, queries = np.arange(64), 1000 + vectors(20, seed=1)
    ids, distances = search(codec, queries, codes, 3)
    true_ids, true = brute_force(codec, queries, codes, 3)
    np.testing.assert_allclose(distances, true, rtol=1e-4)
    np.testing.assert_array_equal(ids, true_ids)


def test_a_code_of_none_is_zeros_in_a_table_too(monkeypatch):
    codec, queries = fitted(Product(VQEMA(16), 4)), vectors(3, seed=1)
    codes = codec.encode(vectors(50, seed=2))
    codes[::2, 1], codes[7] = -1, -1
    by_tables = search(codec, queries, codes, 50)
    monkeypatch.setattr(retrieval, '_FEW', 0)
    by_products = search(codec, queries, codes, 50)
    np.testing.assert_array_equal(by_tables.ids, by_products.ids)
    np.testing.assert_allclose(by_tables.distances, by_products.distances, rtol=1e-5)
    assert (by_tables.ids[:, -1] == -1).all() and 7 not in by_tables.ids


def test_items_and_queries_that_are_not_finite_have_no_neighbours():
    codec = fitted(Residual(VQEMA(16), 3))
    items = vectors(5, seed=2)
    items[1] = np.nan
    codes = codec.encode(items)
    codes[3, 2] = -1  # a dropped stage: the sum of the other two
    queries = np.stack([items[0], np.full(8, np.nan), items[2]])
    ids, distances = search(codec, queries, codes, 6)
    assert (ids[1] == -1).all() and np.isinf(distances[1]).all()
    for row in (0, 2):
        assert sorted(ids[row]) == [-1, -1, 0, 2, 3, 4]
        assert np.isinf(distances[row][-2:]).all() and np.isfinite(distances[row][:4]).all()
    np.testing.assert_allclose(
        distances[0][ids[0] == 3], ((queries[0] - codec.decode(codes[3])) ** 2).sum(), rtol=1e-5
    )
    none = search(codec, queries, codes[:0], 2)
    assert (none.ids == -1).all() and np.isinf(none.distances).all()
    assert search(codec, queries[:0], codes, 2).ids.shape == (0, 2)


@pytest.mark.parametrize('few', [0, 32])
def test_distances_are_those_of_faiss_with_the_same_codebooks(few, monkeypatch):
    monkeypatch.setattr(retrieval, '_FEW', few)
    faiss = pytest.importorskip('faiss')
    codec = fitted(Product(VQEMA(16), 4))
    # A codebook of a group: what its codes decode to, in its own features.
    every = codec.decode(np.repeat(np.arange(16)[:, None], 4, axis=1)).reshape(16, 4, 2)
    index = faiss.IndexPQ(8, 4, 4)
    centroids = np.ascontiguousarray(every.transpose(1, 0, 2)).reshape(-1)
    faiss.copy_array_to_vector(centroids, index.pq.centroids)
    index.is_trained = True
    items, queries = vectors(300, seed=2), vectors(20, seed=1)
    index.add(items)
    theirs, their_ids = index.search(queries, 8)
    ids, distances = search(codec, queries, codec.encode(items), 8)
    np.testing.assert_allclose(distances, theirs, rtol=1e-4)
    apart = np.diff(np.c_[theirs, np.full(20, np.inf)], axis=1) > 1e-4
    apart &= np.diff(np.c_[np.full(20, -np.inf), theirs], axis=1) > 1e-4
    np.testing.assert_array_equal(ids[apart], their_ids[apart])


def test_recall_counts_the_true_neighbours_that_were_found():
    assert recall([[1, 2, 3], [4, 5, 6]], [[3, 9, 1], [7, 8, 9]]) == pytest.approx(1 / 3)
    assert recall([[1, 2]], [[2]]) == 1
    assert recall([[-1, -1]], [[-1, 3]]) == 0  # what was not found
    with pytest.raises(ValueError, match=r'for the same queries, got shapes \(2,\) and \(1, 2\)'):
        recall([1, 2], [[1, 2]])


def test_what_search_refuses():
    codec = fitted(Product(VQEMA(16), 4))
    queries, codes = vectors(3), np.zeros((5, 4), np.int32)
    cases = [
        (
            lambda: search(codec, queries[0], codes),
            r'queries must be vectors of shape \[Q, 8\], got',
        ),
        (lambda: search(codec, queries[:, :5], codes), r'queries must be .* got \(3, 5\)'),
        (lambda: search(codec, codes, codes), 'must be floating point'),
        (lambda: search(codec, queries, codes[0]), r'integers \[N, 4\].*goes to search_packed'),
        (lambda: search(codec, queries, codes + 16), 'from -1 to 15'),
        (lambda: search(codec, queries, codes, 0), 'k must be an integer from 1'),
        (lambda: search_packed(codec, queries, codec.pack(codes), 6), 'must be 12 bytes'),
        (lambda: search_packed(codec, queries, codec.pack(codes), -1), 'number must be'),
    ]
    targets = Codec(RandomProjection(16, dim=2), *RandomProjection(16, dim=2).init(KEY, queries), 8)
    cases.append((lambda: search(targets, queries, codes[:, 0]), 'does not decode'))
    for call, says in cases:
        with pytest.raises(ValueError, match=says):
            call()


def peak_of(call):
    """Bytes that NumPy and Python held at most during the call; mapped pages are none of them."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture(scope='module')
def mapped(tmp_path_factory):
    """500,000 vectors of 32 half precision features in a file of 32 MB, 64 MB as float32."""
    path = tmp_path_factory.mktemp('mapped') / 'z.npy'
    block = vectors(50_000, 32).astype(np.float16)
    file = np.lib.format.open_memmap(path, 'w+', np.float16, (500_000, 32))
    for first in range(0, 500_000, 50_000):
        file[first : first + 50_000] = block
    file.flush()
    return np.load(path, mmap_mode='r')


def test_fit_reads_a_sample_and_batches_of_a_file(mapped):
    found = []
    peak = peak_of(
        lambda: found.append(fit(VQEMA(8, revival=None), KEY, mapped, 3, 512, progress=False))
    )
    assert found[0].info['vectors'] == 2**14 and found[0].info['steps'] == 3
    # The sample is 2 MB as float32, and measured in float64; the order of the rows is 4 MB.
    assert peak < 32e6


def test_fit_reads_no_more_batches_than_it_takes(mapped):
    read = []

    def batches():
        for first in range(0, len(mapped), 10_000):
            read.append(first)
            yield mapped[first : first + 10_000]

    peak = peak_of(lambda: fit(VQEMA(8, revival=None), KEY, batches(), 3, progress=False))
    # Two batches for the sample, which the first two steps take again, and one more.
    assert read == [0, 10_000, 20_000]
    assert peak < 32e6


def test_a_file_is_encoded_and_searched_in_batches(mapped):
    codec = fitted(VQEMA(8, revival=None), 32)
    found = []
    peak = peak_of(lambda: found.append(codec.encode(mapped)))
    codes = found[0]
    assert codes.dtype == np.int32 and codes.shape == (500_000,)
    np.testing.assert_array_equal(codes[-50_000:], codec.encode(np.asarray(mapped[:50_000])))
    assert peak < 10e6  # codes of 2 MB, and batches of 2 MB
    packed = codec.pack(codes)
    assert peak_of(lambda: search_packed(codec, vectors(4, 32), packed, 500_000)) < 5e6
