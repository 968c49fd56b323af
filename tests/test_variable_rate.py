"""VariableRate: which stages a vector uses, how that learns, and what it costs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqjax import VQEMA, Residual, VariableRate
from vqjax.codec import code_entropy

RVQ = Residual(VQEMA(8), 4)


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.fixture(scope='module')
def started():
    z = normal(0, 200, 6)
    params, state = VariableRate(RVQ).init(jax.random.key(1), z)
    return z, params._replace(kernel=normal(2, 6), bias=jnp.float32(0.3)), state


def test_stages_used_are_those_below_the_level_times_the_importance(started):
    z, params, state = started
    whole = np.asarray(RVQ.quantize(params.inner, state, z).codes)
    score = np.asarray(z, np.float64) @ np.asarray(params.kernel, np.float64) + 0.3
    importance = 1 / (1 + np.exp(-score))
    np.testing.assert_allclose(VariableRate(RVQ).importance(params, z), importance, rtol=1e-4)
    for level in (None, 2.5, 0.5, 9.0):
        q = VariableRate(RVQ, level=level)
        out = q.quantize(params, state, z)
        number = np.minimum(np.floor(importance * (level or 4)) + 1, 4)
        np.testing.assert_array_equal((np.asarray(out.codes) >= 0).sum(-1), number)
        kept = np.where(np.arange(4) < number[:, None], whole, -1)
        np.testing.assert_array_equal(np.asarray(out.codes), kept)
        np.testing.assert_allclose(out.losses['rate'], importance.mean(), rtol=1e-4)


def test_the_step_has_the_slope_of_the_smooth_one(started):
    """Of every stage, used or not: its vector times s'(level p - k) level p (1 - p)."""
    z, params, state = started
    a, level = 1.5, 2.5
    q = VariableRate(RVQ, level=level, sharpness=a)
    cotangent = normal(3, *z.shape)

    def task(bias):
        return jnp.sum(cotangent * q.quantize(params._replace(bias=bias), state, z).z_q)

    vectors = RVQ.stage_vectors(params.inner, state, RVQ.quantize(params.inner, state, z).codes)
    p = np.asarray(q.importance(params, z), np.float64)
    x = level * p - np.arange(4)[:, None]
    slope = (np.tanh(a * (x + 0.5)) - np.tanh(a * (x - 0.5))) / 2
    gains = np.sum(np.asarray(vectors * cotangent, np.float64), -1)
    expected = np.sum(slope * gains * level * p * (1 - p))
    np.testing.assert_allclose(jax.grad(task)(params.bias), expected, rtol=1e-3)


def test_vectors_that_need_fewer_stages_come_to_use_fewer():
    """Half the vectors are nearly constant: their later stages have nothing to add."""
    loud = jnp.arange(400) < 200
    z = normal(0, 400, 6) * jnp.where(loud, 1.0, 0.02)[:, None]
    z = z.at[:, 0].set(jnp.where(loud, 2.0, -2.0))
    q = VariableRate(RVQ, rate=0.3)
    params, state = q.init(jax.random.key(1), z)

    @jax.jit
    def step(params, state):
        def objective(heads):
            out = q.quantize(params._replace(kernel=heads[0], bias=heads[1]), state, z)
            return jnp.mean((out.z_q - z) ** 2) + out.loss, out

        slopes, out = jax.grad(objective, has_aux=True)((params.kernel, params.bias))
        state = q.update(params, state, z, out.codes)
        return (
            params._replace(kernel=params.kernel - slopes[0], bias=params.bias - slopes[1]),
            state,
            out.codes,
        )

    for _ in range(150):
        params, state, codes = step(params, state)
    number = (np.asarray(codes) >= 0).sum(-1)
    assert number[:200].mean() > 3 and number[200:].mean() < 2
    # And fewer stages are fewer bits once codes are coded.
    whole = q.inner.quantize(params.inner, state, z).codes
    assert code_entropy(q, codes) < code_entropy(q, whole) - 0.5


def test_levels_are_drawn_with_a_key_alone(started):
    z, params, state = started
    q = VariableRate(RVQ, drawn=(0.25, 8.0))
    codes = [q.quantize(params, state, z, key).codes for key in (None, jax.random.key(0))]
    plain = VariableRate(RVQ).quantize(params, state, z, jax.random.key(0)).codes
    np.testing.assert_array_equal(np.asarray(codes[0]), np.asarray(plain))
    assert (np.asarray(codes[1]) != np.asarray(codes[0])).any()
    lower = dataclasses.replace(q, level=1.0).quantize(params, state, z).codes
    assert (np.asarray(lower)[:, 1:] == -1).all()
    one = q.quantize(params, state, z[0], jax.random.key(0))
    assert one.codes.shape == (4,)


def test_first_stages_and_what_is_refused(started):
    z, params, state = started
    first, *trees = VariableRate(RVQ).first_stages(2, params, state)
    codes = VariableRate(RVQ).quantize(params, state, z).codes
    np.testing.assert_array_equal(np.asarray(first.quantize(*trees, z).codes), codes[:, :2])
    for inner in (VQEMA(8), Residual(VQEMA(8), 2, dropout='sample')):
        with pytest.raises(ValueError, match='inner must be a Residual with dropout=None'):
            VariableRate(inner)
    for fields in ({'level': 0.0}, {'drawn': (2.0, 1.0)}, {'drawn': 1.0}, {'sharpness': 0}):
        with pytest.raises(ValueError, match=next(iter(fields))):
            VariableRate(RVQ, **fields)
