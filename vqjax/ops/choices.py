"""Codes chosen by logits, with the gradient of their softmax, in tiles: no N x K array is kept."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import export, lax

from vqjax.ops.candidates import likeliest, tile_rows
from vqjax.ops.compiling import compiled_once
from vqjax.ops.gradients import graft
from vqjax.ops.meshes import varying_as
from vqjax.ops.rows import gumbel_noise
from vqjax.ops.serialization import exported
from vqjax.ops.tiles import in_lanes, row_lanes, row_tiles


@exported
class Choices(NamedTuple):
    """Vectors float32 [N, D], codes int32 [N], sum of the probabilities of real rows [K]."""

    vectors: jax.Array
    codes: jax.Array
    total: jax.Array


@compiled_once
def choose_by_logits(
    rows: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    codebook: jax.Array,
    valid: jax.Array,
    temperature: jax.Array | float = 1.0,
    noise: tuple[jax.Array, jax.Array] | None = None,
    soft: bool = False,
    sums: bool = False,
) -> Choices:
    """The code of the largest logit of rows kernel + bias, noise added, and its vector.

    The vector's gradient is that of softmax((logits + noise) / temperature) codebook, with `soft`
    its value too. The backward pass computes each tile's logits again: it costs one product of
    N x K x D more than keeping them, and is faster, as a tile stays in the cache.

    Args:
      rows: float32 [N, D], finite.
      kernel, bias: float32 [D, K] and [K].
      codebook: float32 [K, D].
      valid: bool [N], the rows that `total` counts.
      temperature: above 0; 0 is taken as the smallest float32.
      noise: key and place of each row, int32 [N], of `gumbel_noise`; None for none.
      soft: mix the codes.
      sums: `total` is wanted; otherwise it is 0.
    """
    number, num_codes = rows.shape[0], bias.shape[0]
    temperature = jnp.maximum(temperature, jnp.finfo(jnp.float32).tiny)
    key, places = (None, jnp.zeros(number, jnp.int32)) if noise is None else noise
    lanes, whole = row_lanes(number, rows, kernel)

    def tile(total, inputs):
        x, places, real = (a.reshape(-1, *a.shape[2:]) for a in inputs)
        logits = _product(x, kernel) + bias
        noisy = logits if key is None else logits + gumbel_noise(key, places, num_codes)
        fixed = lax.stop_gradient(noisy)
        codes = likeliest(fixed)
        # Of differences to the largest, which no small temperature takes beyond float32.
        noisy -= jnp.max(fixed, axis=-1, keepdims=True)
        vectors = _product(jax.nn.softmax(noisy / temperature), codebook)
        if not soft:
            vectors = graft(codebook[codes], vectors)
        if sums:
            probabilities = jnp.where(real[:, None], jax.nn.softmax(logits), 0.0)
            total += jnp.sum(in_lanes(probabilities, lanes), axis=1)
        return total, (in_lanes(vectors, lanes), in_lanes(codes, lanes))

    most = max(tile_rows(codebook) * whole // lanes, 1)
    # Of tiles first, of lanes last: the compiler then joins what devices hold once.
    total = varying_as(jnp.zeros((lanes, num_codes), jnp.float32), rows, kernel, bias)
    inputs = [in_lanes(a, lanes) for a in (rows, places, valid)]
    symbolic = export.is_symbolic_dim(number)
    if not symbolic and number <= most * lanes:
        total, found = tile(total, inputs)
    else:
        inputs = [row_tiles(a, most) for a in inputs]
        total, found = lax.scan(jax.checkpoint(tile, prevent_cse=False), total, inputs)
        found = [jnp.moveaxis(a, 0, 1).reshape(lanes, -1, *a.shape[3:]) for a in found]
        fresh = jnp.arange(number) if symbolic else slice(number // lanes)
        found = [a[:, fresh] for a in found]
    vectors, codes = (a.reshape(number, *a.shape[2:]) for a in found)
    return Choices(vectors, codes, jnp.sum(total, axis=0))


def _product(a, b):
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
