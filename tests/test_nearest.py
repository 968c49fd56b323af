"""The nearest-code search: exact choices, ties, transformations, memory, and what it lowers to."""

import functools
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from support import SHIPPED

from vqjax.ops import nearest, nearest_codes

# N, D, K: one tile, several tiles of rows, of codes, of both; nothing a multiple of anything.
SHAPES = [(1, 1, 1), (10, 3, 5), (1025, 16, 513), (3000, 7, 1111), (37, 33, 20_011), (2100, 64, 96)]


def _data(n, d, k, seed=0):
    rng = np.random.default_rng(seed)
    return (
        rng.standard_normal((n, d), np.float32),
        rng.standard_normal((k, d), np.float32),
    )


def _scores64(z, codebook, metric):
    """What the search minimises, in float64: half the squared distance less half |z|^2."""
    z, codebook = np.asarray(z, np.float64), np.asarray(codebook, np.float64)
    if metric == 'cosine':
        z, codebook = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (z, codebook))
        return -z @ codebook.T
    return 0.5 * (codebook**2).sum(-1) - z @ codebook.T


@pytest.mark.parametrize('metric', ['euclidean', 'cosine'])
@pytest.mark.parametrize('shape', SHAPES)
def test_every_disagreement_with_float64_is_rounding(shape, metric):
    z, codebook = _data(*shape)
    codes = np.asarray(nearest_codes(z, codebook, metric))
    scores = _scores64(z, codebook, metric)
    assert codes.dtype == np.int32 and codes.shape == (shape[0],)
    excess = scores[np.arange(len(z)), codes] - scores.min(-1)
    size = 1.0 if metric == 'cosine' else np.linalg.norm(z, axis=-1) * np.abs(codebook).max()
    bound = np.finfo(np.float32).eps * np.sqrt(shape[1]) * (size + np.abs(scores).max())
    assert (excess <= bound).all()
    assert (codes != scores.argmin(-1)).mean() < 1e-3


@pytest.mark.parametrize('shape', SHAPES)
def test_a_repeated_code_is_never_chosen_over_its_first_copy(shape):
    z, codebook = _data(*shape)
    codes = np.asarray(nearest_codes(z, np.concatenate([codebook] * 3)))
    assert codes.max() < len(codebook)
    np.testing.assert_array_equal(codes, np.asarray(nearest_codes(z, codebook)))


def test_equidistant_integer_codes_go_to_the_lowest_index():
    rng = np.random.default_rng(0)
    z = rng.integers(-4, 5, (3000, 4)).astype(np.float32)
    codebook = rng.integers(-4, 5, (1500, 4)).astype(np.float32)
    squared = ((z[:, None] - codebook) ** 2).sum(-1)
    np.testing.assert_array_equal(nearest_codes(z, codebook), squared.argmin(-1))


def test_rows_that_are_not_finite_get_no_code_and_touch_no_other():
    z, codebook = _data(3000, 8, 700)
    bad = {3: np.nan, 1500: np.inf, 2999: -np.inf}
    dirty = z.copy()
    for row, value in bad.items():
        dirty[row, row % 8] = value
    expected = np.asarray(nearest_codes(z, codebook)).copy()
    expected[list(bad)] = -1
    np.testing.assert_array_equal(nearest_codes(dirty, codebook), expected)


@pytest.mark.parametrize('metric', ['euclidean', 'cosine'])
def test_a_code_that_is_not_finite_is_never_chosen(metric):
    z, codebook = _data(50, 8, 70)
    codebook[5, 2], codebook[69, 0], codebook[0, 1] = np.nan, np.inf, 1e30
    others = np.delete(np.arange(70), [0, 5, 69])
    expected = others[nearest_codes(z, codebook[others], metric)]
    np.testing.assert_array_equal(nearest_codes(z, codebook, metric), expected)
    assert (np.asarray(nearest_codes(z, codebook * np.nan, metric)) == -1).all()


def test_leading_axes_and_dtypes():
    z, codebook = _data(60, 8, 50)
    codes = nearest_codes(z, codebook)
    np.testing.assert_array_equal(nearest_codes(z.reshape(3, 4, 5, 8), codebook).ravel(), codes)
    assert nearest_codes(z[0], codebook) == codes[0]
    assert nearest_codes(z[:0], codebook).shape == (0,)
    half, half_codes = jnp.asarray(z, jnp.bfloat16), jnp.asarray(codebook, jnp.bfloat16)
    exact = nearest_codes(half.astype(jnp.float32), half_codes.astype(jnp.float32))
    np.testing.assert_array_equal(nearest_codes(half, half_codes), exact)


def _each(zs, codebooks):
    return np.stack([nearest_codes(z, c) for z, c in zip(zs, codebooks, strict=True)])


def test_vmap_over_rows_codebooks_and_both():
    z, codebook = _data(4 * 300, 8, 4 * 40)
    z, codebook = z.reshape(4, 300, 8), codebook.reshape(4, 40, 8)
    both = _each(z, codebook)
    np.testing.assert_array_equal(jax.vmap(nearest_codes)(z, codebook), both)
    np.testing.assert_array_equal(jax.vmap(jax.vmap(nearest_codes, (0, None)))(z, codebook), both)
    np.testing.assert_array_equal(
        jax.vmap(nearest_codes, (0, None))(z, codebook[0]), nearest_codes(z, codebook[0])
    )
    np.testing.assert_array_equal(
        jax.vmap(nearest_codes, (None, 0))(z[0], codebook), _each([z[0]] * 4, codebook)
    )


def test_scan_remat_and_grad():
    z, codebook = _data(4 * 300, 8, 40)
    z = z.reshape(4, 300, 8)
    _, codes = jax.lax.scan(lambda c, rows: (c, nearest_codes(rows, codebook)), 0, z)
    np.testing.assert_array_equal(codes, nearest_codes(z, codebook))

    def loss(z, codebook):
        return jnp.sum(codebook[nearest_codes(z, codebook)] * z)

    z_grad, codebook_grad = jax.jit(jax.checkpoint(jax.grad(loss, (0, 1))))(z[0], codebook)
    np.testing.assert_array_equal(z_grad, codebook[codes[0]])
    counts = np.bincount(codes[0], minlength=40)
    assert (np.asarray(codebook_grad)[counts == 0] == 0).all()


@pytest.mark.parametrize('specs', [(P('b'), P()), (P(), P('b')), (P('b'), P('b'))])
def test_shard_map_with_replication_check(specs):
    n = jax.device_count()
    z, codebook = _data(96 * n, 8, 64 * n)
    mesh = Mesh(np.array(jax.devices()), ('b',))
    sharded = jax.shard_map(nearest_codes, mesh=mesh, in_specs=specs, out_specs=P('b'))
    zs = np.split(z, n) if specs[0] == P('b') else [z] * n
    books = np.split(codebook, n) if specs[1] == P('b') else [codebook] * n
    np.testing.assert_array_equal(jax.jit(sharded)(z, codebook), _each(zs, books).ravel())


def test_pmap():
    n = jax.device_count()
    z, codebook = _data(96 * n, 8, 64)
    codes = jax.pmap(nearest_codes, in_axes=(0, None))(z.reshape(n, 96, 8), codebook)
    np.testing.assert_array_equal(codes.ravel(), nearest_codes(z, codebook))


def test_one_trace_serves_all_batches():
    traces = []

    @jax.jit
    def search(z, codebook):
        traces.append(1)
        return nearest_codes(z, codebook)

    for seed in range(3):
        search(*_data(200, 8, 64, seed))
    assert len(traces) == 1


def test_reduced_precision_is_asked_for_and_close():
    z, codebook = _data(4096, 32, 512)
    exact = np.asarray(nearest_codes(z, codebook))
    codes = np.asarray(nearest_codes(z, codebook, precision='bfloat16'))
    scores = _scores64(z, codebook, 'euclidean')
    rows = np.arange(len(z))
    assert 0 < (codes != exact).mean() < 0.05
    # Two factors rounded to 8 bits: relative error below 2^-7 of |z||c|.
    sizes = np.linalg.norm(z, axis=-1) * np.linalg.norm(codebook, axis=-1).max()
    assert (scores[rows, codes] - scores[rows, exact] <= 2 * 2**-7 * sizes).all()


@pytest.mark.parametrize('n, k', [(262_144, 8_192), (4_096, 2**18)])
def test_memory_beyond_inputs_and_output_is_below_64_mb(n, k):
    shapes = [jax.ShapeDtypeStruct((size, 128), jnp.float32) for size in (n, k)]
    for metric in ('euclidean', 'cosine'):
        search = jax.jit(nearest_codes, static_argnums=2, compiler_options=SHIPPED)
        compiled = search.lower(*shapes, metric).compile()
        extra = compiled.memory_analysis().temp_size_in_bytes
        # Cosine holds the unit codebook, K x D: it is not a part of N x K.
        assert extra - (k * 128 * 4 if metric == 'cosine' else 0) < 16e6


def test_codes_do_not_depend_on_the_tile():
    z, codebook = _data(5000, 16, 3000)
    found = [
        np.asarray(nearest._search(z, codebook, 'euclidean', 'highest', way, tile))
        for way, tile in [
            (nearest._APART, nearest._TILE),
            (nearest._FOLDED, nearest._TILE_CPU),
            (nearest._FOLDED, nearest._Tile(256, lambda codes, n: 250, 2**16)),
        ]
    ]
    assert (found[0] == found[1]).all() and (found[0] == found[2]).all()


@pytest.mark.parametrize('n', [1, 700, 1500, 3000])
@pytest.mark.parametrize('k', [256, 300, nearest._MANY, 1000, 2049])
def test_the_least_of_groups_is_the_least_with_ties_and_rows_that_are_not_finite(n, k):
    """Integers, so that scores are exact and half of the rows have ties."""
    rng = np.random.default_rng(0)
    z = rng.integers(-4, 5, (n, 3)).astype(np.float32)
    codebook = rng.integers(-4, 5, (k, 3)).astype(np.float32)
    codebook[::7] = np.nan
    z[::5, 0] = np.nan
    expected = np.nan_to_num(((z[:, None] - codebook) ** 2).sum(-1), nan=np.inf).argmin(-1)
    expected[::5] = -1
    np.testing.assert_array_equal(nearest_codes(z, codebook), expected)
    np.testing.assert_array_equal(nearest_codes(z, np.full_like(codebook, np.inf)), -1)


@pytest.mark.parametrize(
    'n, k', [(1024, 16384), (2048, 16384), (800, 12000), (4096, 262144), (4096, 500)]
)
def test_tiles_of_many_codes_are_whole_groups(n, k):
    """Else the minimum of groups, and what it saves, would be left out without a word."""
    shapes = [jax.ShapeDtypeStruct((rows, 8), jnp.float32) for rows in (n, k)]
    assert 'optimization_barrier' in str(jax.make_jaxpr(nearest_codes)(*shapes))


def test_peak_memory_of_a_process_is_below_64_mb_beyond_its_arrays():
    code = """
import resource, jax, jax.numpy as jnp
from vqjax.ops import nearest, nearest_codes
z = jnp.ones((65_536, 64)) * jnp.arange(65_536)[:, None]
codebook = jnp.ones((8_192, 64)) * jnp.arange(8_192)[:, None]
search = jax.jit(nearest_codes)
search(z[:2048], codebook[:1024]).block_until_ready()
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
search(z, codebook).block_until_ready()
print((peak() - before) / 1024)
"""
    # Compiled as users do: without the suite's settings.
    command, env = [sys.executable, '-c', code], os.environ | {'XLA_FLAGS': ''}
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert float(run.stdout) < 64


def _products(platform, precision):
    """Operand and result types and precision of each product the search lowers to."""
    z = jax.ShapeDtypeStruct((262_144, 128), jnp.bfloat16)
    codebook = jax.ShapeDtypeStruct((8_192, 128), jnp.float32)
    search = functools.partial(nearest_codes, precision=precision)
    text = export.export(jax.jit(search), platforms=[platform])(z, codebook).mlir_module()
    products = []
    for line in text.splitlines():
        if 'stablehlo.dot_general' in line:
            asked = re.search(r'precision = \[(\w+), \w+\]', line)
            types = re.findall(r'tensor<\w+>', line)
            products.append((asked and asked[1], *types))
    return products


@pytest.mark.parametrize('platform', ['tpu', 'cuda', 'rocm'])
def test_lowers_to_one_static_float32_product_at_highest_precision(platform):
    tile = 'tensor<2048x128xf32>'
    assert _products(platform, 'highest') == [('HIGHEST', tile, tile, 'tensor<2048x2048xf32>')]


def test_lowers_to_a_reduced_product_with_float32_sums_where_asked():
    half = 'tensor<2048x128xbf16>'
    [(_, left, right, result)] = _products('tpu', 'bfloat16')
    assert (left, right, result) == (half, half, 'tensor<2048x2048xf32>')
    [(precision, *_)] = _products('tpu', 'default')
    assert precision in (None, 'DEFAULT')


@pytest.mark.parametrize(
    'arguments, message',
    [
        ((np.zeros((3, 4)), np.zeros((5, 3))), r'agree in D.*\(3, 4\) and \(5, 3\)'),
        ((np.zeros((3, 4)), np.zeros((0, 4))), r'\(0, 4\)'),
        ((np.zeros((3, 0)), np.zeros((5, 0))), r'at least 1.*\(3, 0\) and \(5, 0\)'),
        ((np.zeros((3, 4)), np.zeros((5, 4)), 'manhattan'), 'metric.*manhattan'),
        ((np.zeros((3, 4)), np.zeros((5, 4)), 'cosine', 'fp8'), 'precision.*fp8'),
    ],
)
def test_bad_arguments_name_the_value(arguments, message):
    with pytest.raises(ValueError, match=message):
        nearest_codes(*arguments)
