"""Codes as bytes: exact round trips, sizes near the entropy, and damage that is refused."""

import struct
import zlib

import numpy as np
import pytest

from vqjax import FSQ, VQEMA, MultiScale, Product, Residual, metrics
from vqjax.codec import (
    Codec,
    code_entropy,
    code_widths,
    coded_size,
    compress,
    decompress,
    pack,
    unpack,
)

constriction = pytest.importorskip('constriction')

MODELS = ('fixed', 'static', 'adaptive')
MIXED = Residual((VQEMA(300), VQEMA(5), VQEMA(1)), 3)
THOUSAND = FSQ((8, 5, 5, 5))


def draw(quantizer, number, seed=0, power=2.0):
    """Codes [number, *code_shape] of uneven use: the k-th of probability about 1 / k^power."""
    rng = np.random.default_rng(seed)
    sizes = np.asarray(quantizer.code_sizes)
    share = rng.random((number, *quantizer.code_shape)) ** power
    return np.minimum((share * sizes).astype(np.int32), sizes - 1)


def drop(codes, seed=1):
    """The same with every fourth vector masked, and stages after a random one dropped."""
    rng = np.random.default_rng(seed)
    codes = codes.copy()
    if codes.ndim > 1:
        kept = rng.integers(1, codes.shape[-1] + 1, codes.shape[:-1] + (1,))
        codes[np.broadcast_to(np.arange(codes.shape[-1]) >= kept, codes.shape)] = -1
    codes[::4] = -1
    return codes


@pytest.mark.parametrize('model', MODELS)
@pytest.mark.parametrize(
    'quantizer', [VQEMA(16), VQEMA(1), THOUSAND, MIXED, Product(Residual(VQEMA(7), 3), 2)], ids=repr
)
def test_codes_come_back_exactly(quantizer, model):
    for number in (0, 1, 600):
        codes = draw(quantizer, number)
        for given in (codes, drop(codes), codes.reshape(1, number, 1, *quantizer.code_shape)):
            found = decompress(quantizer, compress(quantizer, given, model))
            assert found.dtype == np.int32
            np.testing.assert_array_equal(found, given)


def test_places_of_a_grid_share_a_histogram():
    quantizer = MultiScale(VQEMA(64), scales=(1, 2, 4))
    codes = draw(quantizer, 50)
    for model in MODELS:
        np.testing.assert_array_equal(
            decompress(quantizer, compress(quantizer, codes, model)), codes
        )
    counts = np.bincount(codes.ravel(), minlength=64)
    entropy = np.log2(metrics.perplexity(counts))
    np.testing.assert_allclose(code_entropy(quantizer, codes), codes.shape[-1] * entropy, rtol=1e-5)


@pytest.mark.parametrize('model', ['static', 'adaptive'])
@pytest.mark.parametrize('quantizer', [THOUSAND, Residual(VQEMA(256), 4)], ids=repr)
def test_sizes_are_within_two_percent_of_the_entropy(quantizer, model):
    codes = draw(quantizer, 150_000)
    columns = codes.reshape(len(codes), -1)
    # The empirical entropy by its definition, in float64.
    entropy = 0.0
    for column in columns.T:
        share = np.unique(column, return_counts=True)[1] / len(column)
        entropy -= (share * np.log2(share)).sum()
    size = coded_size(quantizer, codes, model)
    np.testing.assert_allclose(size.entropy_bits, entropy, rtol=1e-12)
    assert size.coded_bytes == len(compress(quantizer, codes, model))
    assert entropy < size.coded_bits < 1.02 * entropy
    assert size.fixed_bits == code_widths(quantizer).sum() > entropy


@pytest.mark.parametrize('model', ['static', 'adaptive'])
def test_dropped_stages_cost_their_entropy(model):
    # Of 4 stages a uniform number is kept, so a vector takes 2 bits for it, and 8 a kept stage.
    quantizer, number = Residual(VQEMA(256), 4), 60_000
    codes = draw(quantizer, number, power=1.0)
    kept = np.random.default_rng(3).integers(1, 5, number)
    codes[np.arange(4) >= kept[:, None]] = -1
    size = coded_size(quantizer, codes, model)
    np.testing.assert_allclose(size.entropy_bits, 2 + 8 * kept.mean(), rtol=0.01)
    assert size.coded_bits < 1.02 * size.entropy_bits
    assert size.fixed_bits == 4 * 9


def test_the_entropy_is_the_logarithm_of_the_perplexity():
    codes = draw(VQEMA(64), 500)
    perplexity = metrics.perplexity(np.bincount(codes, minlength=64))
    np.testing.assert_allclose(code_entropy(VQEMA(64), codes), np.log2(perplexity), rtol=1e-6)


def markov(number, seed=0):
    """Codes of 8 that follow each other, and log-probabilities of the next given the last."""
    rng = np.random.default_rng(seed)
    table = rng.dirichlet(np.full(8, 0.2), 8)
    codes = [0]
    for draw in rng.random(number - 1):
        codes.append(min(int(np.searchsorted(table[codes[-1]].cumsum(), draw)), 7))
    return np.array(codes, np.int32), np.log(table).astype(np.float32)


def test_logits_of_a_model_take_its_cross_entropy():
    codes, table = markov(40_000)
    logits = table[np.concatenate([[0], codes[:-1]])]
    size = coded_size(VQEMA(8), codes, logits)
    expected = -np.take_along_axis(logits, codes[:, None], 1).mean() / np.log(2)
    np.testing.assert_allclose(size.entropy_bits, expected, rtol=1e-4)
    assert size.coded_bits < 1.02 * expected < coded_size(VQEMA(8), codes).entropy_bits
    data = compress(VQEMA(8), codes, logits)
    np.testing.assert_array_equal(decompress(VQEMA(8), data, logits), codes)
    with pytest.raises(ValueError, match='logits must be those that the codes were written with'):
        decompress(VQEMA(8), data, np.roll(logits, 1, axis=0))
    with pytest.raises(ValueError, match='needs the logits'):
        decompress(VQEMA(8), data)


def test_a_function_of_the_codes_so_far_gives_the_logits():
    codes, table = markov(300)
    codes[[5, 6]] = -1

    def following(before):
        return table[before[-1] if len(before) else 0]

    data = compress(VQEMA(8), codes, following)
    np.testing.assert_array_equal(decompress(VQEMA(8), data, following), codes)


def test_logits_of_stages_and_those_that_hold_for_all():
    codes = drop(draw(MIXED, 400))
    for shape in ((400, 3, 300), (3, 300), (400, 1, 1)):
        logits = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        data = compress(MIXED, codes, logits)
        np.testing.assert_array_equal(decompress(MIXED, data, logits), codes)


def test_masked_codes_pack_in_as_many_bits_as_one_code_more():
    assert code_widths(THOUSAND) == code_widths(THOUSAND, masked=True) == 10
    assert code_widths(VQEMA(1024)) == 10 and code_widths(VQEMA(1024), masked=True) == 11
    for quantizer in (THOUSAND, VQEMA(1024), MIXED):
        codes = drop(draw(quantizer, 100))
        packed = pack(quantizer, codes, masked=True)
        assert packed.nbytes == -(-100 * code_widths(quantizer, masked=True).sum() // 8)
        np.testing.assert_array_equal(unpack(quantizer, packed, 100, masked=True), codes)


@pytest.fixture
def codec():
    quantizer = Residual(VQEMA(16), 2)
    z = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    import jax

    return Codec(quantizer, *quantizer.init(jax.random.key(0), z))


def test_a_file_of_codes(codec, tmp_path):
    codes = draw(codec.quantizer, 5000)
    path = tmp_path / 'codes.bin'
    size = codec.save_codes(path, codes)
    assert size.coded_bytes == path.stat().st_size < size.fixed_bytes == 5000
    assert str(size).startswith(f'{size.coded_bytes:,} bytes for 5,000 vectors')
    np.testing.assert_array_equal(codec.load_codes(path), codes)
    before = path.read_bytes()
    with pytest.raises(ValueError, match='codes must be'):
        codec.save_codes(path, codes + 16)
    with pytest.raises(ValueError, match="model must be one of .* got 'best'"):
        codec.save_codes(path, codes, 'best')
    assert path.read_bytes() == before
    path.write_bytes(before[:-1])
    with pytest.raises(ValueError, match='codes.bin: the coded codes are cut short'):
        codec.load_codes(path)


@pytest.mark.parametrize('model', MODELS)
def test_damage_is_refused_wherever_it_is(model):
    quantizer = Residual(VQEMA(16), 2)
    whole = compress(quantizer, drop(draw(quantizer, 40)), model)
    for end in range(len(whole)):
        with pytest.raises(ValueError, match='these are no codes|the coded codes are cut short'):
            decompress(quantizer, whole[:end])
    for place in range(len(whole)):
        damaged = whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :]
        with pytest.raises(ValueError, match='these are no codes|the coded codes '):
            decompress(quantizer, damaged)


@pytest.mark.parametrize('model', MODELS)
def test_bytes_whose_checksum_was_made_anew_are_refused_too(model):
    quantizer = VQEMA(16)
    codes = drop(draw(quantizer, 40))
    whole = compress(quantizer, codes, model)[:-4]
    rng = np.random.default_rng(0)
    for place in range(len(b'vqjaxcod') + 1, len(whole)):
        forged = bytearray(whole)
        forged[place] ^= 1 << rng.integers(7)
        forged = bytes(forged) + struct.pack('<I', zlib.crc32(bytes(forged)))
        try:
            found = decompress(quantizer, forged)
        except ValueError as error:
            assert '\n' not in str(error)
        else:  # what the change left as it was: bits after the last word that matters
            np.testing.assert_array_equal(found.ravel(), codes)


def test_codes_of_another_quantizer_and_another_format_are_refused():
    data = compress(VQEMA(16), draw(VQEMA(16), 40))
    with pytest.raises(ValueError, match=r'are of \[16\] codes a place'):
        decompress(VQEMA(17), data)
    with pytest.raises(ValueError, match='takes no logits'):
        decompress(VQEMA(16), data, np.zeros(16, np.float32))
    newer = data[:8] + bytes([9]) + data[9:]
    with pytest.raises(ValueError, match='format 9, this vqjax reads up to 1'):
        decompress(VQEMA(16), newer)
    for wrong in (np.zeros((3, 16), np.float32), np.zeros(16, int), np.full(16, np.nan)):
        with pytest.raises(ValueError, match='logits must'):
            compress(VQEMA(16), draw(VQEMA(16), 40), wrong)


def test_fixed_width_needs_no_library(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'constriction', None)
    codes = draw(THOUSAND, 100)
    np.testing.assert_array_equal(decompress(THOUSAND, compress(THOUSAND, codes, 'fixed')), codes)
    with pytest.raises(ImportError, match=r"pip install 'vqjax\[entropy\]'"):
        compress(THOUSAND, codes)
