"""What a quantizer refuses, by name: fields, shapes, and batches that cannot start a codebook."""

import dataclasses

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
    make,
    ops,
    to_spec,
)

BAD = {
    'num_codes must be an integer from 1': lambda: VQEMA(0),
    'decay must be in': lambda: VQEMA(8, decay=1.0),
    'metric must be one of': lambda: VQ(8, metric='manhattan'),
    'levels must be an integer from 3': lambda: FSQ((8, 2)),
    'levels must be an integer from 2': lambda: FSQ((8, 1), symmetric=True),
    'levels must multiply to at most': lambda: FSQ((8,) * 11),
    'levels must be a list': lambda: FSQ(()),
    'num_bits must be an integer from 1 to 30': lambda: LFQ(31),
    'inv_temperature must be finite': lambda: LFQ(4, inv_temperature=0.0),
    'temperature must be above 0': lambda: GumbelSoftmax(4, temperature=0.0),
    'below must lie in': lambda: ops.Revival(below=2.0),
    'every must be at least 1': lambda: ops.Revival(every=0),
    'source must be one of': lambda: ops.Revival(source='nothing'),
    'gradient must be one of': lambda: VQEMA(8, gradient='none'),
    'init must be one of': lambda: VQEMA(8, init='zeros'),
    'revival must be a Revival or None': lambda: VQEMA(8, revival=2),
    'commitment must be finite': lambda: VQEMA(8, commitment=-1.0),
    'num_stages must be an integer': lambda: Residual(VQEMA(8), 0),
    'num_stages must be 2': lambda: Residual((VQEMA(8), VQEMA(4)), 3),
    'shared must be False': lambda: Residual((VQEMA(8), VQEMA(4)), shared=True),
    'dropout must be one of': lambda: Residual(VQEMA(8), 2, dropout=0.5),
    'beam must be 1': lambda: Residual(LFQ(4), 2, beam=2),
    'inner must be a quantizer': lambda: Product(256, 2),
    'cannot stand in Residual': lambda: Residual(RandomProjection(8, 2), 2),
    'cannot stand in Residual: with hard=False': lambda: Residual(GumbelSoftmax(8, hard=False), 2),
    'cannot stand in Projected': lambda: Projected(RandomProjection(8, 2), 2),
    'of one code_shape': lambda: Residual((VQEMA(8), Product(VQEMA(8), 2))),
    "has no field 'codes'": lambda: make({'name': 'vq_ema', 'num_codes': 8, 'codes': 8}),
    'name must be one of': lambda: make({'name': 'vqema', 'num_codes': 8}),
    "a mapping with a 'name'": lambda: make(['vq_ema']),
    'missing 1 required': lambda: make({'name': 'vq_ema'}),
    'schedule must be the name': lambda: ops.Schedule('no_such_schedule'),
    'does not take': lambda: ops.Schedule('exponential_decay', speed=1),
    'it has no spec': lambda: to_spec(VQEMA(8, gradient=lambda z, z_q: z_q)),
}


@pytest.mark.parametrize('message', BAD)
def test_bad_configuration_is_named(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()


def test_bad_shapes_are_named_at_trace_time():
    with pytest.raises(ValueError, match='num_groups=3 must divide'):
        jax.eval_shape(Product(VQEMA(8), 3).init, jax.random.key(0), jnp.zeros((4, 8)))
    with pytest.raises(ValueError, match='must have 3 features'):
        jax.eval_shape(lambda z: FSQ((3, 5, 4)).quantize((), (), z), jnp.zeros((4, 8)))
    with pytest.raises(ValueError, match='must have 6 features'):
        LFQ(6).init(jax.random.key(0), jnp.zeros((4, 8)))


@pytest.mark.parametrize(
    'q', [VQEMA(4), VQ(4), SimVQ(4), GumbelSoftmax(4), Residual(VQEMA(4), 2), Product(VQ(4), 2)]
)
@pytest.mark.parametrize('z', [np.zeros((9, 4)), np.ones((9, 4)), np.full((9, 4), np.nan)])
def test_an_init_batch_that_cannot_start_a_codebook_is_refused(q, z):
    with pytest.raises(ValueError, match='identical|not finite'):
        q.init(jax.random.key(0), jnp.asarray(z))


def test_a_start_that_reads_no_data_takes_any_batch():
    VQEMA(4, init=ops.normal).init(jax.random.key(0), jnp.zeros((9, 4)))
    FSQ((3, 4)).init(jax.random.key(0), jnp.zeros((9, 2)))


def test_replace_keeps_the_start():
    q = dataclasses.replace(VQEMA(8, init=ops.normal), num_codes=4)
    assert q == VQEMA(4, init='normal') and q.start is ops.normal
    assert dataclasses.replace(q, init=ops.kmeans) == VQEMA(4)
