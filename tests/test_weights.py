"""Weights of vectors in the statistics: 2 is twice, 0 is masked, nothing else changes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vqjax import VQ, VQEMA, Banked, Guarded, GumbelSoftmax, Product, Projected, Residual, ops
from vqjax.nn import COLLECTION, Quantize
from vqjax.nnx import Quantize as NNXQuantize
from vqjax.quantizers.base import Base

KEY = jax.random.key(0)
Z = jnp.round(4 * jax.random.normal(KEY, (24, 8)))
WEIGHTS = np.arange(24) % 4
EAGER = ops.Revival(below=0.9, every=1)
EMA = VQEMA(4, decay=0.5, revival=None, init='batch_rows')
GRADIENT = VQ(4, decay=0.5, revival=None, init='batch_rows')


def updated(q, started, z, weights=None, mask=None):
    params, state = started
    codes = q.quantize(params, state, z, None, mask).codes
    weights = None if weights is None else jnp.asarray(weights, jnp.float32)
    return q.update(params, state, z, codes, KEY, mask, weights=weights)


@pytest.mark.parametrize(
    'q',
    [
        EMA,
        GRADIENT,
        Guarded(EMA, least=1.0),
        Residual(EMA, 2),
        Residual(EMA, 2, shared=True),
        Residual((EMA, GRADIENT)),
        Product(EMA, 2),
        Product(GRADIENT, 2, shared=True),
        Projected(Product(EMA, 2), 4),
        GumbelSoftmax(4),
    ],
    ids=repr,
)
def test_a_weight_of_two_is_the_vector_twice(q):
    started = q.init(KEY, Z)
    weighted = updated(q, started, Z, WEIGHTS)
    repeated = updated(q, started, np.repeat(Z, WEIGHTS, axis=0))
    plain = updated(q, started, Z)
    for a, b in zip(jax.tree.leaves(weighted), jax.tree.leaves(repeated), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-5)
    moved = zip(jax.tree.leaves(weighted), jax.tree.leaves(plain), strict=True)
    assert any((np.asarray(a) != np.asarray(b)).any() for a, b in moved) != isinstance(
        q, GumbelSoftmax
    )


@pytest.mark.parametrize(
    'q',
    [VQEMA(8, revival=EAGER), Banked(VQ(8, revival=EAGER), size=16, fresh=4),
     Guarded(VQEMA(8, revival=EAGER), least=8.0, cooldown=1)],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize('nothing', [0.0, -1.0, np.nan, np.inf])
def test_a_weight_of_zero_is_a_mask_to_revival_too(q, nothing):
    """And so is what is no weight, which only the device knows."""
    started = q.init(KEY, Z)
    zeros = updated(q, started, Z, np.where(WEIGHTS > 0, 1.0, nothing))
    masked = updated(q, started, Z, mask=jnp.asarray(WEIGHTS > 0))
    for a, b in zip(jax.tree.leaves(zeros), jax.tree.leaves(masked), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_weights_are_summed_over_replicas():
    params, state = EMA.init(KEY, Z)
    weights = jnp.asarray(WEIGHTS, jnp.float32)
    codes = EMA.quantize(params, state, Z).codes
    whole = EMA.update(params, state, Z, codes, weights=weights)

    def run(z, codes, weights):
        return EMA.update(params, state, z, codes, axis_name='i', weights=weights)

    parts = (x.reshape(4, 6, *x.shape[1:]) for x in (Z, codes, weights))
    for a, b in zip(jax.vmap(run, axis_name='i')(*parts), whole, strict=True):
        np.testing.assert_allclose(np.asarray(a[3]), np.asarray(b), rtol=1e-6)


def test_the_modules_hand_weights_on():
    weights = jnp.asarray(WEIGHTS, jnp.float32)
    module = Quantize(EMA)
    variables = module.init(KEY, Z, train=False)
    _, moved = module.apply(variables, Z, train=True, weights=weights, mutable=[COLLECTION])
    expected = updated(EMA, ((), variables[COLLECTION]['state']), Z, WEIGHTS)
    np.testing.assert_array_equal(moved[COLLECTION]['state'].sums, expected.sums)
    layer = NNXQuantize(EMA, Z, rngs=nnx.Rngs(0))
    started = layer.read()
    layer(Z, weights=weights)
    np.testing.assert_array_equal(layer.read()[1].sums, updated(EMA, started, Z, WEIGHTS).sums)


@dataclasses.dataclass(frozen=True, repr=False)
class Untracked(Base):
    """Written before there were weights."""

    num_codes = 4

    def init(self, key, z, mask=None, axis_name=None):
        return (), ()

    def update(self, params, state, z, codes, key=None, mask=None, axis_name=None):
        return state


@pytest.mark.parametrize(
    ('weights', 'message'),
    [
        (np.ones((24, 1)), r'weights must be floating point of shape \(24,\).* float32\[24, 1\]'),
        (np.ones(24, bool), r'floating point of shape \(24,\).* bool\[24\]'),
        (-np.ones(24), 'weights must be finite and not negative'),
        (np.full(24, np.nan), 'weights must be finite and not negative'),
    ],
)
def test_wrong_weights_are_named(weights, message):
    params, state = EMA.init(KEY, Z)
    codes = jnp.zeros(24, jnp.int32)
    with pytest.raises(ValueError, match=message):
        EMA.update(params, state, Z, codes, weights=weights)
    with pytest.raises(ValueError, match='weights must be None: the update of'):
        Untracked().update((), (), Z, codes, weights=np.ones(24))
    assert Untracked().update((), (), Z, codes) == ()
