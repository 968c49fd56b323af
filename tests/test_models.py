"""Models of all methods are alike, and normalised so that bounded quantizers stay alive."""

import functools

import jax
import numpy as np

from vqjax import FSQ, Projected
from vqjax.trainer.step import network


def images(*shape):
    return jax.random.normal(jax.random.key(0), shape)


def test_every_method_starts_from_the_same_encoder_and_head():
    x = images(32, 8, 8, 1)
    params = []
    for quantizer in (None, Projected(FSQ((5, 5)), 2)):
        model = network.Classifier(10, quantizer, features=16)
        variables = jax.jit(functools.partial(model.init, train=True))(jax.random.key(3), x)
        params.append({k: v for k, v in variables['params'].items() if k != 'quantize'})
    jax.tree.map(np.testing.assert_array_equal, *params)


def test_fsq_codes_of_a_fresh_model_spread_however_small_its_features():
    """Bounded quantizers round tiny or shared features to one code: the collapse that was seen."""
    x = images(256, 8, 8, 1)
    model = network.Classifier(10, Projected(FSQ((8, 8, 8, 5, 5, 5)), 6), features=16)
    variables = jax.jit(functools.partial(model.init, train=True))(jax.random.key(0), x)
    shrunk = jax.tree.map(lambda p: p, variables['params'])
    shrunk['encode']['Dense_0']['kernel'] *= 0.05
    apply = jax.jit(functools.partial(model.apply, train=True, mutable=['batch_stats']))
    out, _ = apply(variables | {'params': shrunk}, x)
    assert len(np.unique(out.quantized.codes)) > 100
