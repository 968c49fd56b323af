"""The codec: as good as faiss after the fact, exact round trips, and the codec of a run."""

import dataclasses
import json
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqjax import (
    FSQ,
    VQ,
    VQEMA,
    Product,
    Projected,
    RandomProjection,
    Residual,
    SimVQ,
)
from vqjax.codec import Codec, fit, load
from vqjax.quantizers import VQEMAState

KEY = jax.random.key(0)
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


@pytest.mark.slow
def test_product_is_as_good_as_faiss(product):
    faiss = pytest.importorskip('faiss')
    z = vectors()
    theirs = faiss.ProductQuantizer(64, 4, 8)
    theirs.train(z)
    error = np.mean((theirs.decode(theirs.compute_codes(z)) - z) ** 2)
    assert product.error(z) == pytest.approx(product.info['error'])
    assert product.error(z) <= 1.02 * error
    assert product.info['relative_error'] == pytest.approx(product.error(z) / z.var(0).mean())


@pytest.mark.slow
def test_a_wider_beam_and_whole_vectors_are_better(product, residual):
    def error(beam):
        quantizer = dataclasses.replace(residual.quantizer, beam=beam)
        return Codec(quantizer, residual.params, residual.state).error(vectors(500))

    assert residual.bits == product.bits == 32
    greedy = error(1)
    assert error(10) < error(2) < greedy < product.error(vectors(500))


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


def test_long_arrays_go_through_in_batches(product):
    z = np.broadcast_to(vectors(70), (600, 70, 64))
    codes = product.encode(z)
    assert codes.shape == (600, 70, 4) and codes.dtype == np.int32
    assert (codes == codes[0]).all()
    assert np.array_equal(codes[0], product.encode(vectors(70)))
    assert product.decode(codes[:, 0]).shape == (600, 64)
    assert product.encode(vectors(0)).shape == (0, 4)
    assert np.array_equal(product.encode(vectors(3)[1]), codes[0, 1])


def as_mapped(z, folder):
    np.save(folder / 'z.npy', z)
    return np.load(folder / 'z.npy', mmap_mode='r')


FORMS = {
    'big-endian': lambda z, _: z.astype('>f4'),
    'float64': lambda z, _: z.astype(np.float64),
    'big-endian float64': lambda z, _: z.astype('>f8'),
    'every second': lambda z, _: np.repeat(z, 2, axis=1)[:, ::2],
    'fortran order': lambda z, _: np.asfortranarray(z),
    'mapped file': as_mapped,
    'jax': lambda z, _: jnp.asarray(z),
    'lists': lambda z, _: z.tolist(),
}


@pytest.mark.parametrize('form', FORMS)
def test_any_form_of_the_same_numbers_gives_the_same_codes(form, product, tmp_path):
    z = vectors(64)
    codes = product.encode(z)
    given = FORMS[form](z, tmp_path)
    assert np.array_equal(product.encode(given), codes)
    assert product.error(given) == product.error(z)


def test_halves_are_the_numbers_they_hold(product):
    for half in (np.float16, '>f2', jnp.bfloat16):
        z = vectors(64).astype(half)
        assert np.array_equal(product.encode(z), product.encode(z.astype(np.float32)))


def test_fitting_reads_other_byte_orders_too():
    z = vectors(64, 4)
    kwargs = dict(steps=4, batch_size=16)
    one = fit(VQEMA(8), KEY, z, **kwargs)
    for other in (z.astype('>f4'), iter([z.astype('>f8')])):
        assert np.isfinite(fit(VQEMA(8), KEY, other, **kwargs).info['error'])
    same = fit(VQEMA(8), KEY, z.astype('>f4'), **kwargs)
    assert np.array_equal(one.encode(z), same.encode(z)) and one.info == same.info


def test_one_vector_and_none(product):
    leaf = Codec(SimVQ(8), jnp.eye(3), jnp.ones((8, 3)))
    for codec, dim in ((product, 64), (leaf, 3)):
        shape = codec.quantizer.code_shape
        assert codec.encode(np.ones(dim, np.float32)).shape == shape
        assert codec.decode(codec.encode(np.ones(dim, np.float32))).shape == (dim,)
        assert codec.encode(np.ones((0, 5, dim), np.float32)).shape == (0, 5, *shape)
        assert codec.decode(np.zeros((0, 5, *shape), np.int16)).shape == (0, 5, dim)
        assert codec.decode([]).shape == (0, dim)
        codes = codec.encode(vectors(6, dim))
        for dtype in ('>i4', '>i8', 'u1', 'u8'):
            assert np.array_equal(codec.decode(codes.astype(dtype)), codec.decode(codes))
        assert np.isnan(codec.error(np.ones((0, dim), np.float32)))


def test_nothing_is_drawn_where_there_is_no_terminal(capfd):
    fit(SimVQ(8), KEY, vectors(50, 4), steps=3)
    assert capfd.readouterr() == ('', '')
    pytest.importorskip('rich')
    fit(SimVQ(8), KEY, vectors(50, 4), steps=3, progress=True)
    assert '3/3' in capfd.readouterr().err


def test_what_fit_refuses():
    with pytest.raises(ValueError, match='steps must be an integer from 0'):
        fit(VQEMA(8), KEY, vectors(), steps=-1)
    with pytest.raises(ValueError, match='identical'):
        fit(VQEMA(8), KEY, np.ones((20, 4)))
    with pytest.raises(ValueError, match=r'mesh must be a jax.sharding.Mesh.* got 8'):
        fit(VQEMA(8), KEY, vectors(), mesh=8)
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


def test_params_and_state_of_another_quantizer_are_refused(product):
    with pytest.raises(ValueError, match=r'state.counts is float32\[4, 256\], needs float32\[256'):
        Codec(VQEMA(256), product.params, product.state, dim=16)
    with pytest.raises(ValueError, match=r'do not fit VQEMA.*state.counts.*float32\[4, 256\]'):
        Codec(VQEMA(256), product.params, product.state)
    with pytest.raises(ValueError, match='params is missing, needs float32'):
        Codec(SimVQ(256), (), jnp.zeros((256, 8)), dim=8)


def test_what_encode_and_decode_refuse(product):
    with pytest.raises(ValueError, match=r'z must have 64 features.*\(3, 4\)'):
        product.encode(np.zeros((3, 4)))
    with pytest.raises(ValueError, match='from -1 to 255, got 0 to 256'):
        product.decode([[0, 0, 0, 256]])
    with pytest.raises(ValueError, match='integers'):
        product.decode(np.zeros((3, 4)))
    for wrong in (np.ones((3, 64), int), np.ones((3, 64), bool), np.ones((3, 64), complex), 'z'):
        with pytest.raises(ValueError, match='must be floating point, got .*: codes go to decode'):
            product.encode(wrong)
    with pytest.raises(ValueError, match=r'z must be vectors \[..., D\]'):
        product.encode([[1.0], [1.0, 2.0]])
    mixed = Residual((VQEMA(8), VQEMA(2)), 2)
    codec = Codec(mixed, *mixed.init(KEY, jnp.asarray(vectors(20, 2))))
    with pytest.raises(ValueError, match='from -1 to 1 or 7, by stage'):
        codec.decode([[0, 2]])
    assert np.array_equal(product.decode([[-1] * 4]), np.zeros((1, 64)))


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    """A finished run of two epochs on digits, residual codes, one seed."""
    for name in ('orbax.checkpoint', 'sklearn', 'ml_collections', 'matplotlib'):
        pytest.importorskip(name)
    from vqjax.trainer import experiment

    path = pathlib.Path(__file__).parent.parent / 'configs' / 'base.py'
    config = runpy.run_path(str(path))['get_config']()
    inner = {'name': 'vq_ema', 'num_codes': 32, 'revival': None}
    config.quantizers = {
        'none': None,
        'rvq': {'name': 'residual', 'num_stages': 2, 'inner': inner},
    }
    config.methods, config.seeds, config.epochs, config.batch_size = 'rvq', 1, 2, 512
    config.features, config.ema_decay, config.warmup_epochs, config.guard = 8, 0.5, 0.0, True
    config.width = 8
    folder = tmp_path_factory.mktemp('runs') / 'digits'
    experiment.run(config.to_dict(), str(folder))
    return folder


@pytest.mark.slow
def test_the_codec_of_a_run_gives_the_codes_the_run_counted(workdir, tmp_path):
    from vqjax.results.records import read_counts
    from vqjax.trainer.data import batches, sets

    images = Codec.from_workdir(workdir, 'rvq')
    split = sets.load('digits').splits['test']
    raw = split.read(np.arange(360))[0]
    assert raw.dtype == np.uint8
    codes = images.encode(raw)
    assert codes.shape == (360, 1, 1, 2)
    record = json.loads((workdir / 'finished' / 'rvq' / 'seed_0.json').read_text())['result']
    counted = [np.bincount(codes[..., s].ravel(), minlength=32).tolist() for s in range(2)]
    np.testing.assert_array_equal(counted, read_counts(record))
    assert images.info['test_accuracy'] == record['accuracy']
    batch = next(iter(batches.eval_batches(sets.load('digits'), 'test', 360)))
    assert np.array_equal(images.encode(batch['image']), codes)
    images.save(tmp_path / 'codec')
    after = load(tmp_path / 'codec')
    assert np.array_equal(after.encode(raw), codes)
    assert np.array_equal(after.decode(codes), images.decode(codes))


@pytest.mark.slow
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
