"""Search and argmin in one Pallas kernel for CUDA (Triton): no score leaves the chip.

Not yet run on a GPU. Checked: its results in interpret mode on CPU; that it lowers for CUDA; that
Triton 3.9 compiles what is lowered for Hopper (sm_90a: 48 wgmma, codes copied two tiles ahead,
149 registers, nothing spilled, 192 KB of shared memory, so a GPU with less cannot run it). Until
it has run, `nearest_codes` uses it only where `VQJAX_FUSED_SEARCH=1` asks for it.

float32 products on tensor cores: each factor is the sum of three bfloat16 numbers (24 bits), and
the six products of the larger parts leave an error of about 2^-23 |z||c|, that of a float32 sum.
The codebook is split once outside, a tile of rows once before the loop over codes.

Ceiling and prediction for one H200 at N = 262,144, D = 128, K = 8,192 (5.5e11 float32
operations): six products at 990e12 bfloat16 operations a second take 3.3 ms; the minimum and
comparison, about 5 operations a score, 0.4 ms if nothing hides them; the split codebook read from
the second-level cache by each of 2,048 tiles of rows, 13 GB, 2.4 ms under the products. The
compiled loop waits for each product, because its rows pass through registers, so half to two
thirds of the ceiling is expected: 5 to 7 ms. A float32 `z @ c.T` at 67e12 takes 8.2 ms and
writes 8.6 GB. Beyond inputs and output: 6 bytes an element of the codebook, 6 MB. Outcome: not
measured.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from vqjax.ops.scores import bias_and_codes, usable_codes

# Chosen by arithmetic: split rows (96 KB) and two stages of split codes (48 KB each) fit the
# 227 KB of shared memory, and 128 x 64 sums take 32 registers of each of 256 threads.
_ROWS = 128
_CODES = 64
_FEATURES = 128
_WARPS = 8
_STAGES = 2

# bfloat16 numbers that make up a factor. Two leave 2^-16, more exact than the TF32 they stand for.
_PARTS = {'highest': 3, 'default': 2, 'bfloat16': 1}


def fused_search(
    rows: jax.Array,
    codebook: jax.Array,
    metric: str = 'euclidean',
    precision: str = 'highest',
    interpret: bool = False,
) -> jax.Array:
    """What `nearest_codes` computes, for [N, D] rows, by the fused kernel.

    Args:
      rows: [N, D] any float dtype, N and D at least 1.
      codebook: [K, D] any float dtype.
      metric: as in `nearest_codes`.
      precision: as in `nearest_codes`.
      interpret: run on any platform, slowly, for tests.

    Returns:
      int32 [N]; -1 for a row that is not finite, or not once it is rounded to bfloat16. Under
      'cosine' a row whose squares overflow gets a code, where `nearest_codes` gives -1.
    """
    n, dim = rows.shape
    parts = _PARTS[precision]
    bias, codebook = bias_and_codes(codebook, metric)
    num_codes = codebook.shape[0]
    # Triton's tiles are powers of two, and a product needs 16.
    features = min(_FEATURES, max(16, pl.next_power_of_2(dim)))
    padded_dim = pl.cdiv(dim, features) * features
    padded_codes = pl.cdiv(num_codes, _CODES) * _CODES
    more = padded_codes - num_codes
    codebook = jnp.pad(usable_codes(bias, codebook), ((0, more), (0, padded_dim - dim)))
    # Padding codes are infinitely far.
    bias = jnp.pad(bias, (0, more), constant_values=jnp.inf)
    kernel = functools.partial(_kernel, n=n, dim=dim, features=features, parts=parts)
    # Under shard_map the output must say over which axes it varies: as a sum of the inputs would.
    out_shape = jax.eval_shape(lambda r, c: (r[:, 0] + c[0, 0]).astype(jnp.int32), rows, codebook)
    return pl.pallas_call(
        kernel,
        grid=(pl.cdiv(n, _ROWS),),
        in_specs=[
            pl.BlockSpec((_ROWS, padded_dim), lambda i: (i, 0)),
            pl.BlockSpec(),
            pl.BlockSpec(),
        ],
        out_specs=pl.BlockSpec((_ROWS,), lambda i: (i,)),
        out_shape=out_shape,
        compiler_params=pltriton.CompilerParams(num_warps=_WARPS, num_stages=_STAGES),
        interpret=interpret,
        name='nearest_codes',
    )(rows, jnp.stack(_split(codebook, parts)), bias)


def _split(x, parts):
    """float32 as a sum of `parts` bfloat16 arrays, largest first."""
    out = []
    for _ in range(parts):
        out.append(x.astype(jnp.bfloat16))
        x = x - out[-1].astype(jnp.float32)
    return out


def _kernel(rows_ref, codes_ref, bias_ref, out_ref, *, n, dim, features, parts):
    """One tile of rows against all codes, the running minimum in registers."""
    row = pl.program_id(0) * _ROWS + jnp.arange(_ROWS, dtype=jnp.int32)
    chunks = codes_ref.shape[2] // features

    def load_rows(chunk):
        start = chunk * features
        here = (row < n)[:, None] & (start + jnp.arange(features) < dim)[None, :]
        window = rows_ref.at[:, pl.ds(start, features)]
        return pltriton.load(window, mask=here, other=0.0).astype(jnp.float32)

    def products(rows, code_start, chunk):
        codes = [
            codes_ref[part, pl.ds(code_start, _CODES), pl.ds(chunk * features, features)]
            for part in range(parts)
        ]
        total = jnp.zeros((_ROWS, _CODES), jnp.float32)
        # Smallest first, so that their bits are not lost under the large ones.
        for order in reversed(range(parts)):
            for i in range(order + 1):
                total += lax.dot_general(
                    rows[i],
                    codes[order - i],
                    (((1,), (1,)), ((), ())),
                    precision=lax.Precision.HIGHEST,
                    preferred_element_type=jnp.float32,
                )
        return total

    def bad(chunk):
        rows = load_rows(chunk)
        return jnp.sum(jnp.where(rows - rows == 0, 0.0, 1.0), axis=1)

    if chunks == 1:
        rows = _split(load_rows(0), parts)
        invalid = bad(0)
        dots = functools.partial(products, rows, chunk=0)
    else:
        invalid = lax.fori_loop(
            0, chunks, lambda chunk, total: total + bad(chunk), jnp.zeros(_ROWS, jnp.float32)
        )

        def dots(code_start):
            def add(chunk, total):
                return total + products(_split(load_rows(chunk), parts), code_start, chunk)

            return lax.fori_loop(0, chunks, add, jnp.zeros((_ROWS, _CODES), jnp.float32))

    index = jnp.arange(_CODES, dtype=jnp.int32)[None, :]

    def step(tile, carry):
        best, code = carry
        start = tile * _CODES
        score = bias_ref[pl.ds(start, _CODES)][None, :] - dots(start)
        least = jnp.min(score, axis=1)
        first = jnp.min(jnp.where(score == least[:, None], index, _CODES), axis=1)
        # Strictly: of equal codes the one in the earlier tile stays.
        better = least < best
        return jnp.where(better, least, best), jnp.where(better, start + first, code)

    start = (jnp.full(_ROWS, jnp.inf, jnp.float32), jnp.full(_ROWS, -1, jnp.int32))
    best, code = lax.fori_loop(0, codes_ref.shape[1] // _CODES, step, start)
    code = jnp.where((invalid == 0) & (best > -jnp.inf), code, -1)
    pltriton.store(out_ref.at[:], code, mask=row < n)
