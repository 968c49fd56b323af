"""Faults that hostile use found: what was silently wrong, and what was a traceback."""

import json
import os
import stat

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vqjax
from vqjax import FSQ, IBQ, LFQ, VQEMA, MultiScale, Product, Residual, codec
from vqjax.hsmm import HSMM

KEY = jax.random.key(0)
Z = np.asarray(jax.random.normal(KEY, (64, 8)))
MODEL = HSMM(2, 4, phases=2)
CODES = np.array([0, 1, 1, 2, 3, 3, 3, 0, 1])
PARAMS = MODEL.init(KEY, CODES)


@pytest.mark.parametrize('dtype', ['uint8', 'uint16', 'uint32', 'uint64', 'int8'])
def test_codes_of_any_integers_have_the_likelihood_of_int32(dtype):
    mask = np.arange(len(CODES)) % 3 > 0
    expected = MODEL.log_likelihood(PARAMS, CODES.astype('int32'), mask)
    assert MODEL.log_likelihood(PARAMS, CODES.astype(dtype), mask) == expected
    window = MODEL.filter_init(PARAMS)
    first, _ = MODEL.filter_step(PARAMS, window, CODES.astype(dtype)[0], np.array(False))
    np.testing.assert_array_equal(first.begun, [False])


@pytest.mark.parametrize(
    'q', [Residual(FSQ((5,) * 8), 2), MultiScale(FSQ((5,) * 8), (1, 2)), Product(FSQ((5,) * 4), 2),
          Residual(FSQ((5,) * 8, symmetric=True), 2), Residual(Product(FSQ((5,) * 4), 2), 2)],
    ids=repr,
)  # fmt: skip
def test_an_infinite_vector_has_no_code_behind_a_bound(q):
    z = jnp.asarray(Z[:4]).reshape(-1, *q.grid, 8)
    params, state = q.init(KEY, z)
    plain = q.quantize(params, state, z).codes
    for bad in (np.inf, -np.inf, np.nan):
        codes = np.asarray(q.quantize(params, state, z.at[0, ..., 1].set(bad)).codes)
        assert (codes[0] == -1).any()
        if not isinstance(q, Product) and not isinstance(getattr(q, 'inner', None), Product):
            assert (codes[0] == -1).all()
        np.testing.assert_array_equal(codes[1:], plain[1:])


def test_a_step_of_the_filter_refuses_what_the_class_says_it_does():
    window = MODEL.filter_init(PARAMS)
    with pytest.raises(ValueError, match='codes holds 4 at .* num_codes is 4'):
        MODEL.filter_step(PARAMS, window, 4)
    MODEL.filter_step(PARAMS, window, -1)
    with pytest.raises(ValueError, match=r'filter_init\(params, lag, \(3,\)\)'):
        MODEL.filter_step(PARAMS, window, np.zeros(3, int))
    other = HSMM(3, 4, phases=2)
    with pytest.raises(ValueError, match='window must be what filter_init'):
        MODEL.filter_step(PARAMS, other.filter_init(other.init(KEY, CODES)), 0)
    with pytest.raises(ValueError, match='window must be'):
        MODEL.filter_step(PARAMS, None, 0)


def test_params_of_a_model_may_come_as_a_dict_or_a_list():
    expected = MODEL.log_likelihood(PARAMS, CODES)
    plain = PARAMS._asdict() | {'emit': {'0': np.asarray(PARAMS.emit[0])}}
    for given in (PARAMS._asdict(), tuple(PARAMS), list(PARAMS), plain):
        assert MODEL.log_likelihood(given, CODES) == expected
        assert MODEL.filter_step(given, MODEL.filter_init(given), 0)[1] >= -1
    for wrong in (None, PARAMS[:3], {'start': 0}, 'params'):
        with pytest.raises(ValueError, match=r'params must be HSMMParams\(start, stay'):
            MODEL.log_likelihood(wrong, CODES)


def test_arguments_of_fit_are_checked_and_none_is_ignored():
    for field, value in {
        'tol': -1.0, 'dtype': jnp.int32, 'restarts': 0, 'key': 3, 'iters': 0,
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=f'{field} must be'):
            MODEL.fit(**{'key': KEY, 'codes': CODES, field: value})
    with pytest.raises(ValueError, match='tol must be'):
        MODEL.fit(KEY, CODES, tol=float('nan'))
    with pytest.raises(ValueError, match='restarts must be 1'):
        MODEL.fit(KEY, CODES, params=PARAMS, restarts=4)
    with pytest.raises(ValueError, match='dtype must be None or that of the given params'):
        MODEL.fit(KEY, CODES, params=PARAMS, dtype=jnp.bfloat16)
    assert MODEL.fit(None, CODES, params=PARAMS, iters=2).trace.shape == (2,)


def test_what_numpy_masks_is_missing_or_refused():
    q = VQEMA(8)
    made = codec.Codec(q, *q.init(KEY, Z))
    masked = np.ma.masked_array(Z, np.arange(64)[:, None] % 4 == 0 * Z.astype(bool))
    codes = made.encode(masked)
    assert (codes[::4] == -1).all() and (codes[1::4] >= 0).all()
    assert (made.decode(np.ma.masked_array(codes, codes == codes[1]))[1] == 0).all()
    with pytest.raises(ValueError, match='z is a masked array of NumPy'):
        q.quantize((), made.state, masked)
    hidden = np.ma.masked_array(CODES, CODES == 3)
    shown = np.where(CODES == 3, -1, CODES)
    assert MODEL.log_likelihood(PARAMS, hidden) == MODEL.log_likelihood(PARAMS, shown)


def test_a_star_leaves_the_names_of_flax_alone():
    names: dict = {'nn': 'flax.linen', 'nnx': 'flax.nnx'}
    exec('from vqjax import *', names)
    assert names['nn'] == 'flax.linen' and names['nnx'] == 'flax.nnx'
    assert names['VQEMA'] is VQEMA and vqjax.nn.Quantize


@pytest.mark.parametrize(
    'change', [{'steps': 2.5}, {'steps': True}, {'steps': -1}, {'batch_size': 0}, {'key': 0},
               {'z': None}, {'z': 3}, {'quantizer': 'vq'}, {'quantizer': VQEMA}],
    ids=repr,
)  # fmt: skip
def test_fit_names_the_argument_that_it_refuses(change):
    given = {'quantizer': VQEMA(8), 'key': KEY, 'z': Z} | change
    with pytest.raises(ValueError, match=f'{next(iter(change))} must be'):
        codec.fit(**given)


def test_linen_refuses_what_is_no_quantizer():
    for wrong in ('vq', VQEMA, None):
        with pytest.raises(ValueError, match='quantizer must be a quantizer'):
            vqjax.nn.Quantize(wrong)


@pytest.mark.parametrize('kind', [IBQ, LFQ])
def test_a_temperature_beyond_float32_is_refused(kind):
    with pytest.raises(ValueError, match='inv_temperature must be above 0 and at most 1e6'):
        kind(8, inv_temperature=1e30)
    q = kind(8, entropy=0.1, inv_temperature=1e6)
    params, state = q.init(KEY, Z)
    slopes = jax.grad(lambda p, z: q.quantize(p, state, z).loss, (0, 1))(params, jnp.asarray(Z))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(slopes))


def saved(path, **info):
    codec.Codec(FSQ((5,) * 8), (), (), 8, info).save(path)
    return codec.Codec.load(path).info


def test_info_is_saved_as_plain_data(tmp_path):
    given = {'a': np.float32(0.5), 'b': np.arange(2), 'c': {1: np.int64(2), 'd': jnp.ones(())}}
    info = saved(tmp_path / 'codec', **given)
    assert info == {'a': 0.5, 'b': [0, 1], 'c': {'1': 2, 'd': 1.0}}
    assert json.dumps(info)
    with pytest.raises(ValueError, match=r"info\['a'\] must be plain data"):
        saved(tmp_path / 'codec', a=object())
    with pytest.raises(ValueError, match=r"info\['a'\] must have keys that differ as text"):
        saved(tmp_path / 'codec', a={1: 0, '1': 1})


def test_a_codec_is_saved_as_any_file_is(tmp_path):
    link = tmp_path / 'link'
    link.symlink_to(tmp_path / 'target')
    saved(link)
    assert link.is_symlink() and (tmp_path / 'target').is_file()
    before = os.umask(0o077)
    try:
        saved(tmp_path / 'private')
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / 'private').stat().st_mode) == 0o600
    (tmp_path / 'private').chmod(0o640)
    saved(tmp_path / 'private')
    assert stat.S_IMODE((tmp_path / 'private').stat().st_mode) == 0o640
    with pytest.raises(FileNotFoundError, match=r'no folder .*/nowhere to write codec to: make it'):
        saved(tmp_path / 'nowhere' / 'codec')
    assert sorted(x.name for x in tmp_path.iterdir()) == ['link', 'private', 'target']


def test_a_filtered_batch_that_is_empty_says_what_to_do():
    with pytest.raises(ValueError, match='keep its shape and hide vectors by mask='):
        FSQ((5,) * 8).quantize((), (), Z[:0])
