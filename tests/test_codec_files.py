"""Codec files: the same codec comes back, and none that is damaged, edited or foreign."""

import json
import struct
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqjax import (
    FSQ,
    VQ,
    VQEMA,
    GumbelSoftmax,
    Product,
    Projected,
    RandomProjection,
    Residual,
    SimVQ,
)
from vqjax.codec import Codec, load, save

KEY = jax.random.key(0)
pytest.importorskip('safetensors')


def vectors(number, dim, seed):
    return np.random.default_rng(seed).normal(size=(number, dim)).astype(np.float32)


def random_codec(quantizer, dim):
    """A codec of random positive numbers: nothing is computed to make it."""
    rng = np.random.default_rng(6)
    like = jax.eval_shape(lambda: quantizer.init(KEY, jnp.zeros((1, dim))))
    params, state = jax.tree.map(lambda x: rng.gamma(1.0, size=x.shape).astype(x.dtype), like)
    return Codec(quantizer, params, state, dim, {'steps': 3, 'error': 0.1})


SAVED = [
    (VQEMA(16, metric='cosine', gradient='rotate'), 8),
    (VQ(16, affine=True), 8),
    (SimVQ(16), 8),
    (FSQ((8, 5, 5)), 3),
    (GumbelSoftmax(16), 8),
    (RandomProjection(16, dim=4), 8),
    (Product(Residual(VQEMA(8), 2), 2), 8),
    (Projected(Residual((VQEMA(8), FSQ((5,) * 4)), 2), 4), 8),
]


@pytest.mark.parametrize('quantizer, dim', SAVED, ids=lambda x: repr(x))
def test_a_file_gives_the_same_codec(tmp_path, quantizer, dim):
    z = vectors(64, dim, seed=5)
    before = random_codec(quantizer, dim)
    before.save(tmp_path / 'codec.safetensors')
    after = load(tmp_path / 'codec.safetensors')
    assert after.quantizer == quantizer and after.info == before.info and after.dim == dim
    assert jax.tree.structure(after.state) == jax.tree.structure(before.state)
    assert np.array_equal(after.encode(z), before.encode(z))
    assert np.array_equal(after.decode(after.encode(z)), before.decode(before.encode(z)))
    assert [path.name for path in tmp_path.iterdir()] == ['codec.safetensors']


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / 'codec.safetensors'
    save(random_codec(Residual(VQEMA(16), 4), 8), path)
    return path


def split(path):
    """Header and data of a safetensors file: 8 bytes of length, JSON, raw arrays."""
    data = path.read_bytes()
    (size,) = struct.unpack('<Q', data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def join(path, header, data):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack('<Q', len(text)) + text + data)


def test_files_cut_short_are_refused(saved):
    whole = saved.read_bytes()
    for size in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        saved.write_bytes(whole[:size])
        with pytest.raises(ValueError, match='cut short'):
            load(saved)
    saved.write_bytes(whole + b'\0')
    with pytest.raises(ValueError, match='cut short'):
        load(saved)


def test_files_edited_are_refused(saved):
    header, data = split(saved)
    for place in (0, len(data) // 2, len(data) - 1):
        changed = bytearray(data)
        changed[place] ^= 1
        join(saved, header, bytes(changed))
        with pytest.raises(ValueError, match='checksum'):
            load(saved)
    about = header['__metadata__']['about']
    header['__metadata__']['about'] = about.replace('"beam": 1', '"beam": 2')
    assert header['__metadata__']['about'] != about
    join(saved, header, data)
    with pytest.raises(ValueError, match='checksum'):
        load(saved)


def test_files_of_another_kind_or_time_are_refused(saved, tmp_path):
    from safetensors.numpy import save_file

    header, data = split(saved)
    header['__metadata__']['format_version'] = '2'
    join(saved, header, data)
    with pytest.raises(ValueError, match='format 2, this vqjax reads up to 1: install a newer'):
        load(saved)
    header['__metadata__']['format_version'] = 'x'
    join(saved, header, data)
    with pytest.raises(ValueError, match='not a number'):
        load(saved)
    save_file({'a': np.zeros(3)}, tmp_path / 'other')
    with pytest.raises(ValueError, match='no codec'):
        load(tmp_path / 'other')
    with pytest.raises(FileNotFoundError, match='nowhere'):
        load(tmp_path / 'nowhere')


def test_a_function_of_your_own_cannot_be_saved(tmp_path):
    mine = random_codec(VQEMA(4, gradient=lambda z, z_q: z_q), 4)
    with pytest.raises(ValueError, match='has no spec'):
        mine.save(tmp_path / 'codec')
    assert not list(tmp_path.iterdir())


def test_without_safetensors_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'safetensors', None)
    with pytest.raises(ImportError, match=r"pip install 'vqjax\[codec\]'"):
        random_codec(VQEMA(4), 4).save(tmp_path / 'codec')
