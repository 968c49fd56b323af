"""Search over codes: the vectors nearest to a query among those that codes stand for.

Distances are asymmetric (Jegou et al. 2011, doi:10.1109/TPAMI.2010.57): the query stays floating
point and only the items are quantized. The search is exhaustive and needs no index. It decodes one
tile of the codes at a time, so any quantizer works and memory does not grow with the items. Where a
vector has one code, or one for each group of a `Product`, few queries read their distances from
tables of the codes instead.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vqjax.codec import packing
from vqjax.codec.tokenizer import Codec, check_floating
from vqjax.ops.fields import check, check_count
from vqjax.quantizers import Product, Quantizer

# Items that are decoded at once, a multiple of 8: in a packed stream every tile begins on a byte.
_TILE = 2**13
# Queries whose distances to a tile are held at once.
_QUERIES = 2**10
# Up to so many queries tables are faster than products on a CPU: a decoded tile serves all queries,
# a table one. Larger codebooks than this one have no tables.
_FEW, _TABLE = 16, 2**16


class Neighbours(NamedTuple):
    """The items nearest to each query, the nearest first.

    ids: int32 [Q, k], rows of the codes; -1 where there are fewer items, or a query is not finite.
    distances: float32 [Q, k], squared Euclidean distances to the decoded items; infinite for -1.
    """

    ids: np.ndarray
    distances: np.ndarray


def search(codec: Codec, queries: np.ndarray, codes: np.ndarray, k: int = 10) -> Neighbours:
    """The k items whose decoded vectors are nearest to each query, by exhaustive search.

    Args:
      codec: what made the codes.
      queries: vectors [Q, D], floating point.
      codes: integers [N, *code_shape], the codes of the items, an array or a mapped file. Items
        with all codes -1 are not found; where stages were dropped, the others' sum is.
      k: neighbours of each query.

    Returns:
      Neighbours; items at the same distance are in the order of their rows.

    Raises:
      ValueError: for queries or codes of another shape or type, k below 1, or a quantizer of grids
        or one that does not decode into the space of the queries.
    """
    shape = codec.quantizer.code_shape
    codes = np.asarray(codes)
    if codes.ndim != 1 + len(shape):
        raise ValueError(
            f'codes must be integers [N{"".join(f", {size}" for size in shape)}], got '
            f'{codes.dtype} of shape {codes.shape}; a packed stream goes to search_packed'
        )

    def tile(first: int, last: int) -> np.ndarray:
        return packing.check_codes(codec.quantizer, codes[first:last])

    return _search(codec, queries, tile, len(codes), k)


def search_packed(
    codec: Codec, queries: np.ndarray, packed: np.ndarray, number: int, k: int = 10
) -> Neighbours:
    """`search` over a stream that `codec.pack` wrote, of which one tile is unpacked at a time.

    Args:
      codec: what made the codes.
      queries: vectors [Q, D], floating point.
      packed: uint8 [n], an array or a mapped file, packed without `masked`.
      number: of the items in it.
      k: neighbours of each query.

    Returns:
      Neighbours, as `search` finds them in the same codes.

    Raises:
      ValueError: as `search`, and for a stream of another length than `number` items have.
    """
    check_count('number', number, 0)
    packed, bits = np.asarray(packed), codec.bits
    expected = -(-number * bits // 8)
    if packed.dtype != np.uint8 or packed.shape != (expected,):
        raise ValueError(
            f'packed must be {expected} bytes (uint8) for {number} items of {bits} bits, got '
            f'{packed.dtype} of shape {packed.shape}'
        )

    def tile(first: int, last: int) -> np.ndarray:
        part = packed[first * bits // 8 : -(-last * bits // 8)]
        return codec.unpack(part, last - first)

    return _search(codec, queries, tile, number, k)


def recall(ids: np.ndarray, true_ids: np.ndarray) -> float:
    """Share of the true neighbours that were found, averaged over queries: recall@k.

    Args:
      ids: integers [Q, k], the items found for each query; -1, for none, counts as not found.
      true_ids: integers [Q, n], the items to be found, for recall@k the k nearest before
        quantization.

    Returns:
      From 0 to 1.

    Raises:
      ValueError: for arrays of other shapes.
    """
    ids, true_ids = np.asarray(ids), np.asarray(true_ids)
    if ids.ndim != 2 or true_ids.ndim != 2 or len(ids) != len(true_ids) or not true_ids.size:
        raise ValueError(
            'ids and true_ids must be [Q, k] and [Q, n] for the same queries, got shapes '
            f'{ids.shape} and {true_ids.shape}'
        )
    # By query: all pairs of all queries would take Q k n bytes.
    found = [np.isin(true, one[one >= 0]).mean() for one, true in zip(ids, true_ids, strict=True)]
    return float(np.mean(found))


def _search(codec, queries, tile: Callable[[int, int], np.ndarray], number, k):
    """Neighbours among `number` items, whose codes tile(first, last) gives."""
    check_count('k', k)
    if codec.quantizer.grid or codec.decoded_dim != codec.dim:
        raise ValueError(
            f'search compares vectors, and {codec.quantizer!r} does not decode codes into vectors '
            'of the space of the queries'
        )
    queries = np.asarray(check_floating(queries), np.float32)
    fits = queries.ndim == 2 and queries.shape[1] == codec.dim
    check(fits, 'queries', queries.shape, f'vectors of shape [Q, {codec.dim}]')
    finite = np.isfinite(queries).all(-1)
    ids = np.full((len(queries), k), -1, np.int32)
    distances = np.full((len(queries), k), np.inf, np.float32)
    if not (finite.any() and number):
        return Neighbours(ids, distances)
    size, most = _padded(number, _TILE), min(k, number)
    asked = queries[finite]
    # Distances do not change where the origin moves, and products round less close to it.
    centre = jnp.asarray(asked.mean(0, dtype=np.float64), jnp.float32)
    blocks = list(_blocks(asked, _padded(len(asked), _QUERIES)))
    best = [_nothing(len(block), most) for block in blocks]
    of_codec = (codec.quantizer, codec.params, codec.state)
    tabulated = len(asked) <= _FEW and _has_tables(codec.quantizer, number)
    if tabulated:
        blocks = [_tables(*of_codec, block) for block in blocks]
    else:
        blocks = [block - centre for block in blocks]
    for first in range(0, number, size):
        codes = tile(first, min(first + size, number))
        filled = np.full((size, *codec.quantizer.code_shape), -1, np.int32)
        filled[: len(codes)] = codes
        if tabulated:
            best = [_by_tables(*pair, filled, first) for pair in zip(best, blocks, strict=True)]
        else:
            items = _items(*of_codec, centre, filled)
            best = [_by_products(*pair, items, first) for pair in zip(best, blocks, strict=True)]
    found = [np.concatenate(part)[: len(asked)] for part in zip(*best, strict=True)]
    ids[finite, :most], distances[finite, :most] = found
    return Neighbours(ids, distances)


def _padded(number, most):
    """A power of two of at least `number` and 8, at most `most`: few shapes, few compilations."""
    return min(most, max(8, 1 << (number - 1).bit_length()))


def _blocks(rows: np.ndarray, size: int) -> Iterator[jax.Array]:
    """Blocks of so many rows, the last filled up with zeros."""
    for first in range(0, len(rows), size):
        block = np.zeros((size, rows.shape[1]), np.float32)
        part = rows[first : first + size]
        block[: len(part)] = part
        yield jnp.asarray(block)


def _nothing(number, k):
    """No neighbours yet, for so many queries."""
    return jnp.full((number, k), -1, jnp.int32), jnp.full((number, k), jnp.inf)


def _has_tables(quantizer: Quantizer, number: int) -> bool:
    """Whether squared distances are sums over the codes of a vector, each with a small table."""
    groups = isinstance(quantizer, Product) and not quantizer.inner.code_shape
    return (groups or not quantizer.code_shape) and quantizer.num_codes <= min(number, _TABLE)


@functools.partial(jax.jit, static_argnums=0)
def _tables(quantizer, params, state, queries):
    """Squared distances [Q, G, K + 1] of each group of the queries to no code, and to each code."""
    codes = jnp.arange(-1, quantizer.num_codes)
    groups = math.prod(quantizer.code_shape)
    every = jnp.broadcast_to(
        codes.reshape(-1, *[1] * len(quantizer.code_shape)), (len(codes), *quantizer.code_shape)
    )
    vectors = quantizer.decode(params, state, every).reshape(len(codes), groups, -1)
    differences = queries.reshape(len(queries), 1, groups, -1) - vectors
    return jnp.sum(differences**2, axis=-1).swapaxes(1, 2)


@jax.jit
def _by_tables(best, tables, codes, first):
    """(ids, distances) [Q, k] of the nearest of those so far and a tile of codes."""
    columns = codes.reshape(len(codes), -1).T
    distances = sum(tables[:, g][:, column + 1] for g, column in enumerate(columns))
    distances = jnp.where(jnp.all(columns < 0, axis=0), jnp.inf, distances)
    nearest, at = lax.top_k(-distances, min(best[0].shape[1], len(codes)))
    return _merge(best, at, -nearest, first)


@functools.partial(jax.jit, static_argnums=0)
def _items(quantizer, params, state, centre, codes):
    """(vectors [T, D] of a tile about the centre, their squared norms; infinite for none)."""
    vectors = quantizer.decode(params, state, codes) - centre
    missing = jnp.all(codes.reshape(len(codes), math.prod(quantizer.code_shape)) < 0, axis=-1)
    return vectors, jnp.where(missing, jnp.inf, jnp.sum(vectors**2, axis=-1))


@jax.jit
def _by_products(best, queries, items, first):
    """(ids, distances) [Q, k] of the nearest of those so far and a tile of decoded items."""
    vectors, norms = items
    # |q|^2 changes no order. The k of the tile are chosen by products and measured by differences.
    products = jnp.matmul(queries, vectors.T, precision=lax.Precision.HIGHEST)
    scores, at = lax.top_k(2 * products - norms, min(best[0].shape[1], len(vectors)))
    distances = jnp.sum((queries[:, None] - vectors[at]) ** 2, axis=-1)
    return _merge(best, at, jnp.where(scores > -jnp.inf, distances, jnp.inf), first)


def _merge(best, at, distances, first):
    """The nearest of those so far and of a tile: rows `at` of it, infinitely far where none."""
    k = best[0].shape[1]
    ids = jnp.concatenate([best[0], jnp.where(jnp.isinf(distances), -1, at + first)], axis=1)
    distances = jnp.concatenate([best[1], distances], axis=1)
    # Stable: of equal distances the item of the earlier row comes first.
    distances, ids = lax.sort((distances, ids), dimension=1, is_stable=True, num_keys=1)
    return ids[:, :k], distances[:, :k]
