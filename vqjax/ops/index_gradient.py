"""The gradient of a softmax over all codes, in tiles: no N x K matrix in either direction."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import sequential_vmap

from vqjax.ops.meshes import automatic, default_promotion, rows_spec, varying_as, whole_features
from vqjax.ops.scores import bias_and_codes, usable_codes
from vqjax.ops.tiles import cut, in_lanes, join_tiles, row_lanes, starts

# A tile: at most so many codes, rows and scores. The backward pass holds four of them, 16 MB.
_CODES, _ROWS, _SCORES = 1024, 2**13, 2**20


@automatic(lambda z, *_: rows_spec(z, None))
def soft_index(z: jax.Array, codebook: jax.Array, metric: str = 'dot') -> jax.Array:
    """Zeros with the gradient that the code vector has through its index.

    That of softmax(scores) sg(codebook), where scores are z.c ('dot', arXiv:2412.02692) or minus
    the squared distance ('euclidean'): it reaches z and every code. Forward nothing is computed;
    backward takes six products of N x K x D and holds a few tiles.

    z [..., D], codebook [K, D] -> float32 [..., D], to be added to the vectors of chosen codes.
    Vectors and codes that are not finite have and give no gradient. Reverse mode and first
    derivatives only (`jax.custom_vjp`).
    """
    rows = z.astype(jnp.float32).reshape(-1, z.shape[-1])
    rows = jnp.where(jnp.all(jnp.isfinite(rows), axis=-1, keepdims=True), rows, 0.0)
    bias, keys = bias_and_codes(codebook, metric)
    if metric == 'euclidean':
        # |z - c|^2 = |z|^2 - 2 z.c + |c|^2, and the first term is the same for every code.
        rows, bias = 2 * rows, 2 * bias
    values = lax.stop_gradient(usable_codes(bias, codebook.astype(jnp.float32)))
    keys, bias = varying_as(usable_codes(bias, keys), rows), varying_as(bias, rows)
    rows = whole_features(rows)
    return _carrier(rows, keys, bias, varying_as(values, rows)).reshape(z.shape)


@jax.custom_vjp
def _carrier(rows, keys, bias, values):
    """Zeros [N, D] with the gradient of softmax(rows keys^T - bias) values but for values."""
    # Made from the rows: under vmap constants are one for all, and so would be their cotangents.
    return 0.0 * rows


def _forward(rows, keys, bias, values):
    return _carrier(rows, keys, bias, values), (rows, keys, bias, values)


def _backward(inputs, cotangent):
    with default_promotion():  # traced where the user differentiates
        return (*_gradients(*inputs, cotangent), None)


_carrier.defvjp(_forward, _backward)


@functools.partial(jax.jit, inline=True)
@sequential_vmap
def _gradients(rows, keys, bias, values, cotangent):
    """What `_carrier` hands to rows [N, D], keys [K, D] and bias [K].

    With p the softmax of a row and s = cotangent.values, the scores' gradient is
    p (s - sum p s). The first pass over the codes finds each row's normaliser and that sum, the
    second adds up the products. Rows are cut into lanes, so that each device takes its own.
    """
    n, num_codes = rows.shape[0], keys.shape[0]
    code_size, code_starts = starts(num_codes, _CODES)
    lanes, whole = row_lanes(n, rows, keys)
    most = max(min(_SCORES // code_size, _ROWS) * whole // lanes, 1)
    row_size, row_starts = starts(n // lanes, most)
    rows, cotangent = in_lanes(rows, lanes), in_lanes(cotangent, lanes)
    code_tiles = (jnp.arange(len(code_starts)), code_starts)

    def code_tile(at):
        """Keys, values and bias of a tile; infinite where the tile before had them already."""
        number, start = at
        parts = [lax.dynamic_slice_in_dim(x, start, code_size) for x in (keys, values, bias)]
        fresh = start + jnp.arange(code_size) >= number * code_size
        return parts[0], parts[1], jnp.where(fresh, parts[2], jnp.inf)

    def summary(start):
        tile, to_tile = cut(rows, start, row_size), cut(cotangent, start, row_size)

        def add(carry, at):
            largest, total, weighted = carry
            some_keys, some_values, offset = code_tile(at)
            scores = _dots(tile, some_keys) - offset
            larger = jnp.maximum(largest, jnp.max(scores, axis=-1))
            weights = jnp.exp(scores - larger[:, None])
            keep = jnp.exp(largest - larger)
            total = keep * total + jnp.sum(weights, axis=-1)
            products = jnp.sum(weights * _dots(to_tile, some_values), axis=-1)
            return (larger, total, keep * weighted + products), None

        zeros = varying_as(jnp.zeros(tile.shape[0], jnp.float32), tile, keys)
        lowest = jnp.full_like(zeros, jnp.finfo(jnp.float32).min)
        (largest, total, weighted), _ = lax.scan(add, (lowest, zeros, zeros), code_tiles)
        some = total > 0
        safe = jnp.where(some, total, 1.0)
        # Without a usable code a row has no softmax: all its weights are zero.
        normaliser = jnp.where(some, largest + jnp.log(safe), jnp.inf)
        return in_lanes(jnp.stack([normaliser, weighted / safe], axis=-1), lanes)

    summaries = in_lanes(join_tiles(lax.map(summary, row_starts), n), lanes)

    def add_codes(to_rows, at):
        some_keys, some_values, offset = code_tile(at)

        def add_rows(carry, row_at):
            to_rows, to_keys, to_bias = carry
            number, start = row_at
            tile, to_tile = cut(rows, start, row_size), cut(cotangent, start, row_size)
            normaliser, mean = jnp.moveaxis(cut(summaries, start, row_size), -1, 0)
            fresh = jnp.tile(start + jnp.arange(row_size) >= number * row_size, lanes)
            weights = jnp.exp(
                _dots(tile, some_keys) - offset - jnp.where(fresh, normaliser, jnp.inf)[:, None]
            )
            to_scores = weights * (_dots(to_tile, some_values) - mean[:, None])
            more = in_lanes(_product('rk,kd->rd', to_scores, some_keys), lanes)
            before = lax.dynamic_slice_in_dim(to_rows, start, row_size, axis=1)
            to_rows = lax.dynamic_update_slice_in_dim(to_rows, before + more, start, axis=1)
            if lanes == 1:
                to_keys += _product('rk,rd->kd', to_scores, tile)[None]
            else:
                by_lane = in_lanes(to_scores, lanes), in_lanes(tile, lanes)
                to_keys += _product('lrk,lrd->lkd', *by_lane)
            return (to_rows, to_keys, to_bias - jnp.sum(in_lanes(to_scores, lanes), axis=1)), None

        zeros = varying_as(jnp.zeros((lanes, *some_keys.shape), jnp.float32), rows, keys)
        start = (to_rows, zeros, zeros[..., 0])
        row_tiles = (jnp.arange(len(row_starts)), row_starts)
        (to_rows, to_keys, to_bias), _ = lax.scan(add_rows, start, row_tiles)
        return to_rows, (jnp.sum(to_keys, axis=0), jnp.sum(to_bias, axis=0))

    to_rows, tiles = lax.scan(add_codes, varying_as(jnp.zeros_like(rows), rows, keys), code_tiles)
    to_keys, to_bias = (join_tiles(x[:, None], num_codes) for x in tiles)
    return to_rows.reshape(n, -1), to_keys, to_bias


def _product(form, a, b):
    return jnp.einsum(form, a, b, precision=lax.Precision.HIGHEST)


def _dots(a, b):
    """[n, D], [m, D] -> [n, m]."""
    return _product('nd,md->nm', a, b)
