"""The codec: as good as faiss after the fact, exact round trips, files that cannot deceive."""

import dataclasses
import json
import pathlib
import runpy
import struct
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqjax import (
    FSQ,
    LFQ,
    VQ,
    VQEMA,
    GumbelSoftmax,
    Product,
    Projected,
    RandomProjection,
    Residual,
    SimVQ,
)
from vqjax.codec import Codec, code_widths, fit, load, pack, save, unpack
from vqjax.quantizers import VQEMAState

KEY = jax.random.key(0)
# With --dist loadgroup what these tests share is made in one process.
fitted = pytest.mark.xdist_group('codec_fitted')
trained = pytest.mark.xdist_group('codec_trained')
pytest.importorskip('safetensors')


def vectors(number=2000, dim=64, seed=0):
    return np.random.default_rng(seed).normal(size=(number, dim)).astype(np.float32)


def grid_codec(stages=3, base=4):
    """Residual codes that are the digits of an integer grid: every sum of them is exact."""
    side = np.arange(base, dtype=np.float32)
    square = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    sums = jnp.stack([square * base ** (stages - 1 - s) for s in range(stages)])
    # Counts of 1 and no smoothing: the codebook is the sums, to the bit. Digits are nearest only
    # about 0, so each level is centred.
    sums -= (
        (base - 1)
        / 2
        * jnp.asarray([float(base ** (stages - 1 - s)) for s in range(stages)])[:, None, None]
    )
    state = VQEMAState(jnp.ones((stages, base**2)), sums, jnp.zeros(stages, jnp.int32))
    return Codec(Residual(VQEMA(base**2, eps=0.0, revival=None), stages), (), state)


@pytest.fixture(scope='module')
def product():
    return fit(Product(VQEMA(256), 4), KEY, vectors(), steps=20)


@pytest.fixture(scope='module')
def residual():
    return fit(Residual(VQEMA(256), 4), KEY, vectors(), steps=0)


@fitted
def test_product_is_as_good_as_faiss(product):
    faiss = pytest.importorskip('faiss')
    z = vectors()
    theirs = faiss.ProductQuantizer(64, 4, 8)
    theirs.train(z)
    error = np.mean((theirs.decode(theirs.compute_codes(z)) - z) ** 2)
    assert product.error(z) == pytest.approx(product.info['error'])
    assert product.error(z) <= 1.02 * error
    assert product.info['relative_error'] == pytest.approx(product.error(z) / z.var(0).mean())


@fitted
def test_a_wider_beam_and_whole_vectors_are_better(product, residual):
    def error(beam):
        quantizer = dataclasses.replace(residual.quantizer, beam=beam)
        return Codec(quantizer, residual.params, residual.state).error(vectors(500))

    assert residual.bits == product.bits == 32
    greedy = error(1)
    assert error(10) < error(2) < greedy < product.error(vectors(500))


@fitted
def test_sums_of_centroids_come_back_to_the_bit(product):
    rng = np.random.default_rng(1)
    z = product.decode(rng.integers(256, size=(500, 4)))
    assert np.array_equal(product.decode(product.encode(z)), z)
    grid = grid_codec()
    codes = rng.integers(16, size=(500, 3))
    assert np.array_equal(grid.encode(grid.decode(codes)), codes)
    assert grid.error(grid.decode(codes)) == 0


# Quantizers that gradients train, the scale of z, and the error after over that before.
FITTED = [
    (VQ(32, init='batch_rows'), 1e-3, 0.9),
    (VQ(32, init='batch_rows', revival=None, affine=True), 30.0, 0.95),
    (SimVQ(32), 1e-3, 0.9),
    (Projected(VQEMA(32, revival=None), 2), 30.0, 0.8),
]


@pytest.mark.parametrize('quantizer, scale, gain', FITTED, ids=lambda x: repr(x))
def test_gradients_improve_on_the_start(quantizer, scale, gain):
    # A random projection of vectors that lie close to a plane misses much of them.
    z = scale * vectors(600, 8, seed=2) * np.array([2, 2, *[0.3] * 6], np.float32)
    before = fit(quantizer, KEY, z, steps=0).error(z)
    after = fit(quantizer, KEY, z, steps=100).error(z)
    assert after < gain * before


def test_iterators_and_arrays_of_several_batches():
    z = vectors(3000, 8, seed=3)
    z[17] = np.nan
    quantizer = VQEMA(64, decay=0.9, revival=None)
    whole = fit(quantizer, KEY, z.reshape(30, 100, 8), steps=40, batch_size=500)
    parts = fit(quantizer, KEY, (z[i : i + 500] for i in range(0, 3000, 500)), steps=40)
    assert parts.info['steps'] == 6 and whole.info['steps'] == 40
    assert parts.info['vectors'] == whole.info['vectors'] == 2999
    assert abs(parts.info['relative_error'] - whole.info['relative_error']) < 0.02
    assert whole.info['relative_error'] < 0.5
    assert whole.encode(z)[17] == -1 and (np.delete(whole.encode(z), 17) >= 0).all()


@fitted
def test_long_arrays_go_through_in_batches(product):
    z = np.broadcast_to(vectors(70), (600, 70, 64))
    codes = product.encode(z)
    assert codes.shape == (600, 70, 4) and codes.dtype == np.int32
    assert (codes == codes[0]).all()
    assert np.array_equal(codes[0], product.encode(vectors(70)))
    assert product.decode(codes[:, 0]).shape == (600, 64)
    assert product.encode(vectors(0)).shape == (0, 4)
    assert np.array_equal(product.encode(vectors(3)[1]), codes[0, 1])


def test_nothing_is_drawn_where_there_is_no_terminal(capfd):
    fit(SimVQ(8), KEY, vectors(50, 4), steps=3)
    assert capfd.readouterr() == ('', '')
    pytest.importorskip('rich')
    fit(SimVQ(8), KEY, vectors(50, 4), steps=3, progress=True)
    assert '3/3' in capfd.readouterr().err


def test_what_fit_refuses():
    with pytest.raises(ValueError, match='steps=-1'):
        fit(VQEMA(8), KEY, vectors(), steps=-1)
    with pytest.raises(ValueError, match='identical'):
        fit(VQEMA(8), KEY, np.ones((20, 4)))
    with pytest.raises(ValueError, match='no vectors'):
        fit(VQEMA(8), KEY, iter([]))
    with pytest.raises(ValueError, match='must have 4 features'):
        fit(VQEMA(8), KEY, iter([vectors(9, 4), vectors(9, 5)]))


def test_quantizers_without_anything_to_learn_or_to_restore():
    z = vectors(40, 3)
    plain = fit(FSQ((8, 5, 5)), KEY, z)
    assert plain.info['steps'] == 0 and plain.info['error'] > 0
    targets = fit(RandomProjection(16, dim=2), KEY, z)
    assert 'error' not in targets.info and targets.dim == 3
    with pytest.raises(ValueError, match='decodes to 2 features, not the 3'):
        targets.error(z)


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
def saved(tmp_path, residual):
    path = tmp_path / 'codec.safetensors'
    save(residual, path)
    return path


def split(path):
    """Header and data of a safetensors file: 8 bytes of length, JSON, raw arrays."""
    data = path.read_bytes()
    (size,) = struct.unpack('<Q', data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def join(path, header, data):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack('<Q', len(text)) + text + data)


@fitted
def test_files_cut_short_are_refused(saved):
    whole = saved.read_bytes()
    for size in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        saved.write_bytes(whole[:size])
        with pytest.raises(ValueError, match='cut short'):
            load(saved)
    saved.write_bytes(whole + b'\0')
    with pytest.raises(ValueError, match='cut short'):
        load(saved)


@fitted
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


@fitted
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


@fitted
def test_params_and_state_of_another_quantizer_are_refused(product):
    with pytest.raises(ValueError, match=r'state.counts is float32\[4, 256\], needs float32\[256'):
        Codec(VQEMA(256), product.params, product.state, dim=16)
    with pytest.raises(ValueError, match=r'do not fit VQEMA.*state.counts.*float32\[4, 256\]'):
        Codec(VQEMA(256), product.params, product.state)
    with pytest.raises(ValueError, match='params is missing, needs float32'):
        Codec(SimVQ(256), (), jnp.zeros((256, 8)), dim=8)


@fitted
def test_what_encode_and_decode_refuse(product):
    with pytest.raises(ValueError, match=r'z must have 64 features.*\(3, 4\)'):
        product.encode(np.zeros((3, 4)))
    with pytest.raises(ValueError, match='from -1 to 255, got 0 to 256'):
        product.decode([[0, 0, 0, 256]])
    with pytest.raises(ValueError, match='integers'):
        product.decode(np.zeros((3, 4)))
    assert np.array_equal(product.decode([[-1] * 4]), np.zeros((1, 64)))


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    """A finished run of two epochs on digits, residual codes, one seed."""
    for name in ('orbax.checkpoint', 'sklearn', 'ml_collections', 'matplotlib'):
        pytest.importorskip(name)
    from vqjax.trainer import experiment

    path = pathlib.Path(__file__).parent.parent / 'configs' / 'digits.py'
    config = runpy.run_path(str(path))['get_config']()
    inner = {'name': 'vq_ema', 'num_codes': 32, 'revival': None}
    config.quantizers = {
        'none': None,
        'rvq': {'name': 'residual', 'num_stages': 2, 'inner': inner},
    }
    config.methods, config.seeds, config.epochs, config.batch_size = 'rvq', 1, 2, 512
    config.features, config.ema_decay, config.warmup_epochs, config.guard = 8, 0.5, 0.0, True
    folder = tmp_path_factory.mktemp('runs') / 'digits'
    experiment.run(config.to_dict(), str(folder))
    return folder


@trained
def test_the_codec_of_a_run_gives_the_codes_the_run_counted(workdir, tmp_path):
    from vqjax.trainer import data

    images = Codec.from_workdir(workdir, 'rvq')
    split = data.load('digits').splits['test']
    raw = split.read(np.arange(360))[0]
    assert raw.dtype == np.uint8
    codes = images.encode(raw)
    assert codes.shape == (360, 1, 1, 2)
    record = json.loads((workdir / 'finished' / 'rvq' / 'seed_0.json').read_text())['result']
    counted = [np.bincount(codes[..., s].ravel(), minlength=32).tolist() for s in range(2)]
    assert counted == record['counts']
    assert images.info['test_accuracy'] == record['accuracy']
    batches = data.eval_batches(data.load('digits'), 'test', 360)
    assert np.array_equal(images.encode(next(iter(batches))['image']), codes)
    images.save(tmp_path / 'codec')
    after = load(tmp_path / 'codec')
    assert np.array_equal(after.encode(raw), codes)
    assert np.array_equal(after.decode(codes), images.decode(codes))


@trained
def test_what_a_workdir_cannot_give(workdir, tmp_path):
    for arguments, message in (
        ((tmp_path, 'rvq'), 'no workdir of train.py'),
        ((workdir, 'none'), r"one with a quantizer, \['rvq'\], got 'none'"),
        ((workdir, 'rvq', 1), r"seed 1 is not finished.*finished: \['rvq/seed_0.json'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            Codec.from_workdir(*arguments)
    with pytest.raises(ValueError, match=r'images must be \[n, 8, 8, 1\], got shape \(8, 8\)'):
        Codec.from_workdir(workdir, 'rvq').encode(np.zeros((8, 8)))
