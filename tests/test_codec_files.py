"""Codec files: the same codec comes back, and none that is damaged, edited or foreign."""

import json
import struct
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqjax import (
    FSQ,
    LFQ,
    VQ,
    VQEMA,
    BinaryMapper,
    GumbelSoftmax,
    Product,
    Projected,
    RandomProjection,
    Residual,
    Rotated,
    SimVQ,
)
from vqjax.codec import Codec, files, load, save

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
    (Rotated(LFQ(40, bits_per_code=16)), 40),
    (BinaryMapper(4), 8),
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


def forge(path, target, about=None, arrays=None, **metadata):
    """A copy whose metadata and arrays were changed by someone who can compute a checksum."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    with safe_open(path, framework='numpy') as file:
        given, own = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
    own |= arrays or {}
    own = {name: value for name, value in own.items() if value is not None}
    text = given['about'] if about is None else about
    if not isinstance(text, str):
        text = json.dumps(json.loads(given['about']) | text)
    given |= {'about': text, 'sha256': files._digest(text, own), **metadata}
    save_file(own, target, given)


def nested(levels):
    spec = {'name': 'vq_ema', 'num_codes': 8}
    for _ in range(levels):
        spec = {'name': 'residual', 'num_stages': 1, 'inner': spec}
    return spec


def spec_of(**changes):
    return {'spec': {'name': 'residual', 'num_stages': 4, 'inner': {'name': 'vq_ema', **changes}}}


EMPTY = np.zeros((4, 16), np.float32)
FORGED = {
    'a list for the metadata': ({'about': '[1, 2]'}, 'not a mapping'),
    'no JSON': ({'about': '{'}, 'Expecting'),
    'deep JSON': ({'about': '[' * 100_000}, 'recursion|depth'),
    'deep spec': ({'about': {'spec': nested(40)}}, 'nested 32 deep'),
    'a list for a mapping': ({'about': {'info': [1]}}, "its 'info' must be a mapping"),
    'no spec': ({'about': {'spec': None}}, "its 'spec' must be a mapping, got 'None'"),
    'no versions': ({'about': {'versions': None}}, "'versions' must be a mapping"),
    'a string for a number': ({'about': {'dim': '8'}}, "'dim' must be an integer"),
    'a truth for a number': ({'about': {'dim': True}}, "'dim' must be an integer"),
    'no features': ({'about': {'dim': 0}}, 'dim must be from 1'),
    'other features': ({'about': {'dim': 7}}, r'state.sums is float32\[4, 16, 8\], needs'),
    'many features': ({'about': {'dim': 2**40}}, 'dim must be from 1'),
    'unknown name': ({'about': {'spec': {'name': 'pq'}}}, 'name must be one of'),
    'unhashable name': ({'about': {'spec': {'name': ['vq']}}}, 'name must be one of'),
    'a field of another kind': ({'about': spec_of(num_codes='16')}, 'num_codes'),
    'all codes there are': (
        {'about': spec_of(num_codes=2**31 - 1)},
        'state.counts is float32|codes of .* GB',
    ),
    'all stages there are': ({'about': {'spec': nested(1) | {'num_stages': 2**31 - 1}}}, 'codes a'),
    'an encoder of nothing': ({'about': {'encoder': {}}}, 'encoder must be described by'),
    'an encoder as a list': ({'about': {'encoder': [3]}}, 'encoder must be described by'),
    'NaN': ({'arrays': {'state.sums': np.full((4, 16, 8), np.nan, np.float32)}}, 'not finite'),
    'negative counts': ({'arrays': {'state.counts': EMPTY - 1}}, 'state.counts holds -1.0'),
    'negative steps': ({'arrays': {'state.step': np.full(4, -1, np.int32)}}, 'never below 0'),
    'another dtype': ({'arrays': {'state.counts': EMPTY.astype(np.float64)}}, r'float64\[4, 16\]'),
    'another shape': ({'arrays': {'state.counts': EMPTY[:2]}}, r'float32\[2, 16\], needs float32'),
    'one too few': ({'arrays': {'state.counts': None}}, 'needs .*state.counts'),
    'one too many': ({'arrays': {'params.kernel': EMPTY}}, 'holds .*params.kernel'),
    'half an encoder': ({'arrays': {'encoder.params/kernel': EMPTY}}, 'does not describe'),
    'format 0': ({'format_version': '0'}, 'not a number from 1'),
    'format of the future': ({'format_version': '999999999'}, 'install a newer vqjax'),
    'format in other digits': ({'format_version': '²'}, 'not a number from 1'),
}  # fmt: skip


@pytest.mark.parametrize('case', FORGED)
def test_a_forged_file_is_one_sentence(case, saved, tmp_path):
    """A valid checksum over nonsense: ValueError with the file's name, and no memory taken."""
    changes, message = FORGED[case]
    forge(saved, tmp_path / 'forged', **changes)
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path / 'forged')
    assert str(tmp_path / 'forged') in str(error.value) and '\n' not in str(error.value)


LEAVES = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8)
)
VALUES = st.recursive(
    LEAVES | st.sampled_from(['vq_ema', 'fsq', 'product', 'kmeans', 2**31 - 1, 16, 8, 4]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


def places(value, path=()):
    """Paths to everything inside nested mappings and lists."""
    yield path
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(part, (*path, key))


def test_any_forged_file_gives_a_codec_or_a_sentence(tmp_path):
    """Something in the metadata or an array replaced by anything, the checksum made anew."""
    quantizer = Residual((VQEMA(4, revival=None), FSQ((3, 3))), 2)
    save(random_codec(quantizer, 2), tmp_path / 'good')
    header, _ = split(tmp_path / 'good')
    about = json.loads(header['__metadata__']['about'])
    names = [name for name in header if name != '__metadata__']
    arrays = st.builds(
        lambda shape, dtype, fill: np.full(shape, fill, dtype),
        st.lists(st.integers(0, 4), max_size=3),
        st.sampled_from(['float32', 'float64', 'int32', 'bool', 'float16']),
        st.sampled_from([0, 1, -1, np.nan, np.inf]),
    )

    @settings(max_examples=60, deadline=None, database=None, derandomize=True)
    @given(st.data())
    def check(data):
        changes = {}
        if data.draw(st.booleans()):
            changed = json.loads(json.dumps(about))
            *path, last = data.draw(st.sampled_from([p for p in places(about) if p]))
            target = changed
            for key in path:
                target = target[key]
            if data.draw(st.booleans()) and isinstance(target, dict):
                del target[last]
            else:
                target[last] = data.draw(VALUES)
            changes['about'] = json.dumps(changed)
        else:
            name = data.draw(st.sampled_from([*names, 'state', 'encoder.', '']))
            with np.errstate(invalid='ignore'):
                changes['arrays'] = {name: data.draw(arrays | st.none())}
        forge(tmp_path / 'good', tmp_path / 'forged', **changes)
        try:
            codec = load(tmp_path / 'forged')
        except ValueError as error:
            assert str(tmp_path / 'forged') in str(error)
            return
        z = vectors(3, codec.dim, 0)
        assert codec.decode(codec.encode(z)).shape == (3, codec.decoded_dim)

    check()


def test_a_codec_that_no_training_leaves_is_refused_before_it_is_saved():
    good = random_codec(VQEMA(4), 3)
    with pytest.raises(ValueError, match='state.sums holds values that are not finite: the train'):
        Codec(good.quantizer, good.params, good.state._replace(sums=jnp.full((4, 3), jnp.nan)))
