"""The fused kernel in interpret mode against the tiles, and what it lowers to for CUDA."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from support import cuda_device

from vqjax.ops import nearest_codes
from vqjax.ops.nearest_pallas import _split, fused_search

# N, D, K against tiles of 128 rows, 64 codes and up to 128 features.
SHAPES = [(1, 1, 1), (128, 16, 64), (257, 96, 130), (130, 200, 70)]


def _data(n, d, k):
    rng = np.random.default_rng(0)
    return (
        rng.standard_normal((n, d), np.float32),
        rng.standard_normal((k, d), np.float32),
    )


def _excess(z, codebook, codes):
    """How much farther than the nearest code the chosen one is, in float64, as a share of |z||c|"""
    z, codebook = np.asarray(z, np.float64), np.asarray(codebook, np.float64)
    scores = 0.5 * (codebook**2).sum(-1) - z @ codebook.T
    size = np.linalg.norm(z, axis=-1) * np.linalg.norm(codebook, axis=-1).max()
    return (scores[np.arange(len(z)), codes] - scores.min(-1)) / size


@pytest.mark.parametrize('shape', SHAPES)
def test_choices_are_those_of_float32(shape):
    z, codebook = _data(*shape)
    codes = np.asarray(fused_search(z, codebook, interpret=True))
    assert codes.dtype == np.int32 and codes.shape == (shape[0],)
    assert (_excess(z, codebook, codes) <= 2**-22).all()
    assert (codes == nearest_codes(z, codebook)).mean() > 0.99


def test_cosine_and_bfloat16_rows():
    z, codebook = _data(100, 24, 90)
    z = jnp.asarray(z, jnp.bfloat16)
    codes = fused_search(z, codebook, 'cosine', interpret=True)
    np.testing.assert_array_equal(codes, nearest_codes(z, codebook, 'cosine'))


def test_equidistant_codes_go_to_the_lowest_index_across_tiles():
    rng = np.random.default_rng(0)
    z = rng.integers(-2, 3, (200, 3)).astype(np.float32)
    codebook = rng.integers(-2, 3, (300, 3)).astype(np.float32)
    squared = ((z[:, None] - codebook) ** 2).sum(-1)
    np.testing.assert_array_equal(
        fused_search(z, codebook, interpret=True), squared.argmin(-1).astype(np.int32)
    )


@pytest.mark.parametrize('dim', [20, 150])
def test_rows_that_are_not_finite_get_no_code_and_touch_no_other(dim):
    z, codebook = _data(140, dim, 70)
    expected = np.asarray(nearest_codes(z, codebook)).copy()
    for row, value in {3: np.nan, 127: np.inf, 139: -np.inf}.items():
        z[row, row % dim] = value
        expected[row] = -1
    np.testing.assert_array_equal(fused_search(z, codebook, interpret=True), expected)


def test_a_code_that_is_not_finite_is_never_chosen():
    z, codebook = _data(50, 8, 70)
    codebook[5, 2], codebook[69, 0] = np.nan, np.inf
    others = np.delete(np.arange(70), [5, 69])
    np.testing.assert_array_equal(
        fused_search(z, codebook, interpret=True), others[nearest_codes(z, codebook[others])]
    )


@pytest.mark.parametrize('parts, bits', [(1, 8), (2, 16), (3, 24)])
def test_parts_leave_what_their_bits_say(parts, bits):
    x = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    whole = sum(np.asarray(part, np.float64) for part in _split(jnp.asarray(x), parts))
    assert (np.abs(whole - x) <= 2.0**-bits * np.abs(x)).all()


@pytest.mark.parametrize('precision, bound', [('default', 2**-14), ('bfloat16', 2**-6)])
def test_reduced_precision_is_close(precision, bound):
    z, codebook = _data(256, 32, 200)
    codes = np.asarray(fused_search(z, codebook, precision=precision, interpret=True))
    assert (_excess(z, codebook, codes) <= bound).all()


def _for_cuda(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    allowed = [export.DisabledSafetyCheck.custom_call('__gpu$xla.gpu.triton')]
    lower = export.export(jax.jit(function), platforms=['cuda'], disabled_checks=allowed)
    with cuda_device():
        return lower(*arguments).mlir_module()


def test_cuda_gets_the_kernel_only_on_request(monkeypatch):
    shapes = (262_144, 128), (8_192, 128)
    monkeypatch.delenv('VQJAX_FUSED_SEARCH', raising=False)
    assert 'triton' not in _for_cuda(lambda z, c: nearest_codes(z, c), *shapes)
    monkeypatch.setenv('VQJAX_FUSED_SEARCH', '1')
    text = _for_cuda(lambda z, c: nearest_codes(z, c), *shapes)
    assert text.count('custom_call @__gpu$xla.gpu.triton') == 1
    # The largest array is the input: neither scores nor a padded copy of z.
    sizes = [np.prod([int(n) for n in t.split('x')]) for t in re.findall(r'tensor<([\dx]+)x', text)]
    assert max(sizes) == 262_144 * 128
    assert text.count('tensor<262144x128xf32>') > 0
    # Elsewhere the request changes nothing.
    z, codebook = _data(20, 8, 10)
    assert nearest_codes(z, codebook).shape == (20,)


def test_lowers_for_cuda_under_vmap(monkeypatch):
    monkeypatch.setenv('VQJAX_FUSED_SEARCH', '1')
    assert 'triton' in _for_cuda(jax.vmap(nearest_codes), (3, 32, 8), (3, 16, 8))


@pytest.mark.skipif(
    jax.__version_info__ >= (0, 12), reason='its mesh has to be of GPUs, which there are none of'
)
@pytest.mark.parametrize('specs', [(P('b'), P()), (P(), P('b'))])
def test_lowers_for_cuda_under_shard_map(specs, monkeypatch):
    monkeypatch.setenv('VQJAX_FUSED_SEARCH', '1')
    n = jax.device_count()
    mesh = Mesh(np.array(jax.devices()), ('b',))
    sharded = jax.shard_map(
        lambda z, c: nearest_codes(z, c), mesh=mesh, in_specs=specs, out_specs=P('b')
    )
    assert 'triton' in _for_cuda(sharded, (32 * n, 300), (16 * n, 300))
