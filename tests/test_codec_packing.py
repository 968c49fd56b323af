"""Codes as bits: exact round trips, as wide as documented, and what is refused."""

import numpy as np
import pytest

from vqjax import FSQ, LFQ, VQ, VQEMA, Product, Projected, Residual
from vqjax.codec import code_widths, pack, unpack

QUANTIZERS = [
    VQEMA(16),
    FSQ((8, 5, 5, 5)),
    LFQ(4),
    Residual((VQEMA(256), VQEMA(5)), 2),
    Product(Residual(FSQ((3, 3)), 3), 2),
    Projected(Product(VQEMA(7), 2), 4),
    VQEMA(1),
]


@pytest.mark.parametrize('quantizer', QUANTIZERS, ids=repr)
@pytest.mark.parametrize('number', [0, 1, 7, 3 * 2**14 + 5])
def test_packing_is_exact(quantizer, number):
    rng = np.random.default_rng(4)
    sizes = 2.0 ** code_widths(quantizer)
    highest = np.minimum(sizes, quantizer.num_codes)
    codes = (rng.random((number, *quantizer.code_shape)) * highest).astype(np.int32)
    packed = pack(quantizer, codes)
    bits = int(code_widths(quantizer).sum())
    assert packed.nbytes == -(-number * bits // 8)
    assert np.array_equal(unpack(quantizer, packed, number), codes)


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
    ],
)
def test_what_packing_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()
