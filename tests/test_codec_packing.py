"""Codes as bits: exact round trips, as wide as documented, and what is refused."""

import numpy as np
import pytest

from vqjax import FSQ, LFQ, VQ, VQEMA, Product, Projected, Residual
from vqjax.codec import code_widths, pack, unpack
from vqjax.codec.packing import code_numbers

QUANTIZERS = [
    VQEMA(16),
    FSQ((8, 5, 5, 5)),
    LFQ(4),
    Residual((VQEMA(256), VQEMA(5)), 2),
    Product(Residual(FSQ((3, 3)), 3), 2),
    Projected(Product(VQEMA(7), 2), 4),
    VQEMA(1),
]
MIXED = Residual((VQEMA(8), VQEMA(2)), 2)


@pytest.mark.parametrize('quantizer', QUANTIZERS, ids=repr)
@pytest.mark.parametrize('number', [0, 1, 7, 3 * 2**14 + 5])
def test_packing_is_exact(quantizer, number):
    rng = np.random.default_rng(4)
    codes = rng.integers(code_numbers(quantizer), size=(number, *quantizer.code_shape))
    packed = pack(quantizer, codes)
    bits = int(code_widths(quantizer).sum())
    assert packed.nbytes == -(-number * bits // 8)
    assert np.array_equal(unpack(quantizer, packed, number), codes)


def test_other_byte_orders_and_bytes_give_the_same_stream():
    codes = np.random.default_rng(0).integers(0, 256, 50)
    packed = pack(VQEMA(256), codes)
    for dtype in ('>i4', '>u2', 'i8', 'u1'):
        assert np.array_equal(pack(VQEMA(256), codes.astype(dtype)), packed)
    assert np.array_equal(unpack(VQEMA(256), packed.tobytes(), 50), codes)
    assert pack(MIXED, []).shape == (0,) and unpack(MIXED, b'', 0).shape == (0, 2)


def test_widths_are_the_bits_where_codes_are_powers_of_two():
    assert code_widths(FSQ((8, 5, 5, 5))) == 10  # 1000 codes, 9.97 bits
    for quantizer in (VQEMA(256), Product(Residual(VQEMA(4), 3), 2), Residual((VQ(8), VQ(2)), 2)):
        assert code_widths(quantizer).shape == quantizer.code_shape
        assert code_widths(quantizer).sum() == quantizer.bits


def test_packed_bits_are_those_documented():
    # Most significant bit first, vector after vector: 3, 7 of 3 bits and 1 of 1 bit.
    quantizer = Residual((VQEMA(8), VQEMA(2)), 2)
    assert pack(quantizer, [[3, 1], [7, 0]]).tolist() == [0b01111110]
    assert unpack(quantizer, np.array([0b01111110], np.uint8), (1, 2)).tolist() == [
        [[3, 1], [7, 0]]
    ]


@pytest.mark.parametrize(
    'call, message',
    [
        (lambda: pack(VQEMA(8), [3, -1]), 'from 0 to 7, got -1 to 3'),
        (lambda: pack(VQEMA(8), [8]), 'from 0 to 7'),
        (lambda: pack(VQEMA(8), [1.0]), 'integers'),
        (lambda: pack(Product(VQEMA(8), 2), [[1, 2, 3]]), r'shape \[\.\.\., 2\]'),
        (lambda: unpack(VQEMA(8), np.zeros(3, np.uint8), 3), 'must be 2 bytes'),
        (lambda: unpack(FSQ((3,)), np.array([255], np.uint8), 4), 'from 0 to 2, got 3'),
        (lambda: pack(MIXED, [[7, 2]]), 'from 0 to 1 or 7, by stage'),
        (lambda: pack(VQEMA(8), [True]), 'integers'),
        (lambda: unpack(VQEMA(8), np.array([1], np.uint8), 2), 'bits after its last code'),
        (lambda: unpack(VQEMA(8), np.zeros((1, 2), np.uint8), 4), r'got uint8 of shape \(1, 2\)'),
        (lambda: unpack(VQEMA(8), [0, 0], 4), 'must be 2 bytes'),
        (lambda: unpack(VQEMA(8), b'', -1), 'shape must be a number'),
        (lambda: unpack(VQEMA(8), b'', 1.0), 'shape must be a number'),
        (lambda: unpack(VQEMA(8), b'', True), 'shape must be a number'),
        (lambda: unpack(VQEMA(8), b'', 10**18), 'must be 375000000000000000 bytes'),
    ],
)
def test_what_packing_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()
