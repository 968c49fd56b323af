"""The codec of recordings: codes of pieces are those of the whole, to the bit; its file; errors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqjax import FSQ, VQEMA, MultiScale, Projected, Residual, sensors
from vqjax.codec import Codec, streams
from vqjax.codec.streams import SensorEncoder
from vqjax.encoders import Encoder

SENSORS, DIM = 3, 8


def signals(steps, seed=0, missing=()):
    """A random walk of three sensors, float32 [steps, 3]; some stretches of one sensor missing."""
    rng = np.random.default_rng(seed)
    x = np.cumsum(rng.normal(size=(steps, SENSORS)), axis=0).astype(np.float32)
    for first, last in missing:
        x[first:last, 1] = np.nan
    return x


def codec_of(bottleneck='grid', quantizer=None, **fields):
    """A codec with an encoder of random numbers: of windows of 20 steps, every 6."""
    quantizer = quantizer or Residual(VQEMA(16), 2)
    model = Encoder('sensor', DIM, bottleneck, width=2)
    key = jax.random.key(3)
    windows = jax.random.normal(key, (64, 1, 20, SENSORS))
    z, variables = jax.jit(lambda x: model.init_with_output(key, x, train=True))(windows)
    params, state = quantizer.init(key, z.reshape(-1, DIM))
    size = (1, 20, SENSORS)
    mean, std = (0.5, -1.0, 2.0), (3.0, 2.0, 4.0)
    fields = {'width': 2, 'hop': 6, 'rate': 50.0, 'labels': ('rest', 'run')} | fields
    encoder = SensorEncoder(
        'sensor', DIM, bottleneck, 'float32', size, mean, std, variables, **fields
    )
    return Codec(quantizer, params, state, DIM, {}, encoder)


CODECS = {
    'grid': codec_of(),
    'windows': codec_of('vector'),
    'padded': codec_of('vector', pad=True),
    'apart': codec_of('vector', hop=33),
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks so small that short recordings have several."""
    monkeypatch.setattr(streams, '_PLACES', 16)
    monkeypatch.setattr(streams, '_WINDOWS', 4)


def in_pieces(codec, x, cuts):
    """Codes of a recording cut at those places."""
    stream, found = codec.stream_init(), []
    for piece in np.split(x, cuts):
        stream, codes = codec.stream_step(stream, piece)
        found.append(codes)
    return np.concatenate([*found, codec.stream_finish(stream)])


@pytest.mark.parametrize('name', CODECS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_codes_of_pieces_are_those_of_the_whole_to_the_bit(name, data):
    codec, steps = CODECS[name], data.draw(st.integers(20, 400))
    stretch = st.tuples(st.integers(1, 399), st.integers(1, 399)).map(sorted)
    x = signals(steps, seed=steps, missing=data.draw(st.lists(stretch, max_size=3)))
    cuts = sorted(data.draw(st.lists(st.integers(0, steps), max_size=30)))
    whole = codec.encode_recording(x)
    assert whole.shape == (codec.encoder.places(steps), 2) and whole.dtype == np.int32
    np.testing.assert_array_equal(in_pieces(codec, x, cuts), whole)


@pytest.mark.parametrize('name', CODECS)
def test_one_step_at_a_time(name):
    x = signals(90, missing=[(30, 44)])
    found = in_pieces(CODECS[name], x, np.arange(1, 90))
    np.testing.assert_array_equal(found, CODECS[name].encode_recording(x))


def test_vectors_are_those_of_the_network_over_the_whole_recording_at_once():
    encoder, x = CODECS['grid'].encoder, signals(333, missing=[(50, 60), (200, 201)])
    scaled = (x - np.float32(encoder.mean)) / np.float32(encoder.std)
    direct = encoder._model.apply(encoder.variables, scaled[None, None], train=False)[0, 0]
    there = np.isfinite(encoder(x)).all(-1)
    # Steps 52 to 59 are places 13 and 14; of 50, 51 and 200 places hold other steps too.
    np.testing.assert_array_equal(np.flatnonzero(~there), [13, 14])
    np.testing.assert_allclose(encoder(x)[there], direct[there], atol=1e-5)


@pytest.mark.parametrize('name', ['windows', 'padded', 'apart'])
def test_windows_are_those_of_the_network_one_by_one(name):
    encoder, x = CODECS[name].encoder, signals(75)
    scaled = (x - np.float32(encoder.mean)) / np.float32(encoder.std)
    starts = [s for s in range(0, 75, encoder.hop) if s + 20 <= 75]
    if encoder.pad and starts[-1] + 20 < 75:
        starts.append(starts[-1] + encoder.hop)
    found = encoder(x)
    assert len(found) == len(starts)
    for start, z in zip(starts, found, strict=True):
        window = scaled[None, None, start : start + 20]
        direct = encoder._model.apply(encoder.variables, window, train=False)
        np.testing.assert_allclose(z, direct[0, 0, 0], atol=1e-5)


def test_a_place_sees_five_steps_on_either_side_of_its_four_and_is_told_once_they_are_there():
    model, x = Encoder('sensor', DIM, 'grid', width=2), signals(64)[None, None]
    variables = model.init(jax.random.key(0), x, train=True)

    def place(x):
        return jnp.sum(model.apply(variables, x, train=False)[0, 0, 7] ** 2)

    seen = np.flatnonzero(np.abs(jax.grad(place)(x)[0, 0]).sum(-1))
    assert (seen.min(), seen.max()) == (4 * 7 - sensors.REACH, 4 * 7 + 3 + sensors.REACH)
    codec, lag = CODECS['grid'], CODECS['grid'].encoder.lag
    stream = codec.stream_init()
    told = []
    for step in signals(64):
        stream, codes = codec.stream_step(stream, step[None])
        told.append(len(codes))
    # Step number `lag` (from 1) is the last one that place 0 sees.
    np.testing.assert_array_equal(np.flatnonzero(told), np.arange(lag - 1, 64, 4))


def test_a_state_is_plain_bounded_and_may_be_gone_on_from_twice():
    codec, x = CODECS['grid'], signals(3000)
    stream, sizes = codec.stream_init(), []
    for piece in np.split(x, 300):
        stream, _ = codec.stream_step(stream, piece)
        sizes.append(len(stream.steps))
    assert max(sizes) <= 16 * 4 + 2 * 8 + 10
    assert stream.seen == 3000 and isinstance(stream.done, int)
    copy = stream._replace(steps=stream.steps.copy())
    first, again = (codec.stream_step(stream, x[:50])[1] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(stream.steps, copy.steps)


def test_missing_stretches_have_no_code_and_their_values_do_not_matter():
    x = signals(200)
    lost, worse = x.copy(), x.copy()
    lost[80:120, 0] = np.nan
    worse[80:120] = [1e30, np.inf, 5.0]
    codes = CODECS['grid'].encode_recording(lost)
    assert (codes[20:30] == -1).all() and (np.delete(codes, range(20, 30), 0) >= 0).all()
    np.testing.assert_array_equal(CODECS['grid'].encode_recording(worse), codes)
    assert not CODECS['grid'].decode(codes)[20:30].any()


def test_integers_are_signals_and_encode_takes_a_recording():
    codec, x = CODECS['grid'], np.round(signals(60)).astype(np.int16)
    np.testing.assert_array_equal(codec.encode(x), codec.encode_recording(x.astype(np.float64)))


@pytest.mark.parametrize('name', ['grid', 'padded'])
def test_a_file_gives_the_same_codes(tmp_path, name):
    pytest.importorskip('safetensors')
    before, x = CODECS[name], signals(150)
    before.save(tmp_path / 'codec.safetensors')
    after = Codec.load(tmp_path / 'codec.safetensors')
    np.testing.assert_array_equal(after.encode_recording(x), before.encode_recording(x))
    plain = [dataclasses.asdict(c.encoder) | {'variables': 0} for c in (before, after)]
    assert plain[0] == plain[1] and isinstance(after.encoder, SensorEncoder)


@pytest.mark.parametrize(
    'change, message',
    [
        ({'hop': 0}, 'hop must be'),
        ({'pad': 1}, 'pad True or False'),
        ({'rate': -1.0}, 'rate must be'),
        ({'labels': (1,)}, 'labels must be'),
        ({'bottleneck': 'two_level'}, 'bottleneck'),
        ({'image_shape': (2, 20, 3)}, 'image_shape|windows'),
    ],
)
def test_a_forged_file_is_refused(tmp_path, change, message):
    pytest.importorskip('safetensors')
    path = tmp_path / 'codec.safetensors'
    codec = CODECS['grid']
    forged = dataclasses.replace(codec.encoder, **change)
    dataclasses.replace(codec, encoder=forged).save(path)
    with pytest.raises(ValueError, match=f'no codec can be made of.*({message})'):
        Codec.load(path)


BAD = {
    'steps x sensors, got shape': lambda: CODECS['grid'].encode_recording(np.zeros((9, 4))),
    'got shape .9,.': lambda: CODECS['grid'].encode_recording(np.zeros(9)),
    'must be real numbers': lambda: CODECS['grid'].encode_recording(np.zeros((9, 3), complex)),
    'signals must be .T, C.': lambda: CODECS['grid'].encode_recording([[1, 2, 3], [1]]),
    'no step with all sensors': lambda: CODECS['grid'].encode(np.full((9, 3), np.nan)),
    r'shape \(0, 3\) have no step': lambda: CODECS['grid'].encode(np.zeros((0, 3))),
    '19 steps, fewer than the window, 20': lambda: CODECS['windows'].encode(signals(19)),
    'use encode_recording': lambda: CODECS['grid'].encode_images(np.zeros((2, 1, 20, 3))),
    'of no recordings': lambda: Codec(FSQ((3, 3)), (), ()).stream_init(),
    'need|steps x sensors': lambda: CODECS['grid'].stream_step(
        CODECS['grid'].stream_init(), np.zeros((9, 4))
    ),
}


@pytest.mark.parametrize('message', BAD)
def test_bad_input_is_a_sentence(message):
    with pytest.raises(ValueError, match=message) as error:
        BAD[message]()
    assert '\n' not in str(error.value)


def test_a_recording_shorter_than_a_window_is_padded_where_the_run_padded():
    assert CODECS['padded'].encode_recording(signals(19)).shape == (1, 2)
    assert CODECS['grid'].encode_recording(signals(1)).shape == (1, 2)


def test_an_empty_stream_has_no_codes():
    for codec in CODECS.values():
        stream, codes = codec.stream_step(codec.stream_init(), np.zeros((0, SENSORS)))
        assert codes.shape == (0, 2) and codec.stream_finish(stream).shape == (0, 2)


def test_a_quantizer_of_grids_is_refused():
    grids = MultiScale(Projected(FSQ((3, 3)), 2), ((1, 5),))
    params, state = grids.init(jax.random.key(0), jnp.asarray(signals(40).reshape(8, 1, 5, 3)))
    codec = Codec(grids, params, state, 3, {}, CODECS['grid'].encoder)
    with pytest.raises(ValueError, match='quantizes whole windows'):
        codec.encode_recording(signals(60))
