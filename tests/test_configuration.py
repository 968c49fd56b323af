"""What a quantizer refuses, by name: fields, shapes, and batches that cannot start a codebook."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import table

from vqjax import (
    FSQ,
    LFQ,
    VQ,
    VQEMA,
    GumbelSoftmax,
    Parallel,
    Product,
    Projected,
    RandomProjection,
    Residual,
    SimVQ,
    make,
    ops,
    to_spec,
)

NAN = float('nan')


def schedule(**changes):
    fields = {'init_value': 2.0, 'transition_steps': 10, 'decay_rate': 0.5}
    return ops.Schedule('exponential_decay', **(fields | changes))


BAD = {
    'num_codes must be an integer from 1': lambda: VQEMA(0),
    'decay must be in': lambda: VQEMA(8, decay=1.0),
    'metric must be one of': lambda: VQ(8, metric='manhattan'),
    'levels must be an integer from 3': lambda: FSQ((8, 2)),
    'levels must be an integer from 2': lambda: FSQ((8, 1), symmetric=True),
    'levels must multiply to at most': lambda: FSQ((8,) * 11),
    'levels must be a list': lambda: FSQ(()),
    'num_bits must be an integer from 1': lambda: LFQ(0),
    'bits_per_code must be an integer from 1 to 30': lambda: LFQ(64, bits_per_code=32),
    'inv_temperature must be above 0': lambda: LFQ(4, inv_temperature=0.0),
    'temperature must be above 0': lambda: GumbelSoftmax(4, temperature=0.0),
    'below must lie in': lambda: ops.Revival(below=2.0),
    'every must be an integer from 1': lambda: ops.Revival(every=0),
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
    'beam must be with 2 weights': lambda: Residual(VQEMA(4), 2, beam=ops.Beam(2, (1.0,))),
    'weights must be a tuple of numbers': lambda: ops.Beam(2, (0.0, 0.0)),
    'size must be an integer from 2': lambda: ops.Beam(1, (1.0,)),
    'inner must be a quantizer': lambda: Product(256, 2),
    'cannot stand in Residual': lambda: Residual(RandomProjection(8, 2), 2),
    'cannot stand in Residual: in training': lambda: Residual(GumbelSoftmax(8, hard=False), 2),
    'inner must be all of them for targets': lambda: Parallel((RandomProjection(8, 2), VQEMA(8))),
    'cannot stand in Projected': lambda: Projected(RandomProjection(8, 2), 2),
    'of one code_shape': lambda: Residual((VQEMA(8), Product(VQEMA(8), 2))),
    "has no field 'codes'": lambda: make({'name': 'vq_ema', 'num_codes': 8, 'codes': 8}),
    'name must be one of': lambda: make({'name': 'vqema', 'num_codes': 8}),
    "a mapping with a 'name'": lambda: make(['vq_ema']),
    'missing 1 required': lambda: make({'name': 'vq_ema'}),
    'schedule must be the name': lambda: ops.Schedule('no_such_schedule'),
    'does not take': lambda: ops.Schedule('exponential_decay', speed=1),
    'schedule must be the name of an optax schedule, got .adam': lambda: ops.Schedule('adam'),
    'init_value must be a finite number, got nan': lambda: schedule(init_value=NAN),
    "init_value must be a finite number, got '1'": lambda: schedule(init_value='1'),
    'transition_steps must be above 0': lambda: schedule(transition_steps=0),
    'staircase must be True or False': lambda: schedule(staircase='no'),
    'temperature must be above 0, or a schedule that never': lambda: GumbelSoftmax(
        4, temperature=schedule(init_value=-1.0)
    ),
    'decay_steps': lambda: ops.Schedule(
        'warmup_cosine_decay_schedule', init_value=0, peak_value=1, warmup_steps=5, decay_steps=5
    ),
    'it has no spec': lambda: to_spec(VQEMA(8, gradient=lambda z, z_q: z_q)),
}


@pytest.mark.parametrize('message', BAD)
def test_bad_configuration_is_named(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()


def numeric_fields():
    """Every numeric or true-or-false field of every quantizer of the table, and of a revival."""
    seen = {}
    for q in [*table().values(), ops.Revival()]:
        for field in dataclasses.fields(q):
            if field.init and isinstance(getattr(q, field.name), bool | int | float):
                seen.setdefault((type(q).__name__, field.name), q)
    return seen


@pytest.mark.parametrize('kind, field', numeric_fields())
def test_a_field_refuses_what_is_no_number(kind, field):
    q = numeric_fields()[kind, field]
    value = getattr(q, field)
    bad = [NAN, math.inf, -math.inf, -1, '1', 'nan', [1], np.nan, np.float32('inf')]
    bad += [0.5, 1, None] if isinstance(value, bool) else [True, np.bool_(True)]
    for wrong in bad:
        with pytest.raises(ValueError, match=f'^{field} must'):
            dataclasses.replace(q, **{field: wrong})
    # A scalar of NumPy or JAX is the Python one: equal, of one hash, and plain data.
    array = np.asarray(value, np.float64 if isinstance(value, float) else None)
    for scalar in (array, array[()]):
        same = dataclasses.replace(q, **{field: scalar})
        assert same == q and hash(same) == hash(q) and repr(same) == repr(q)
        assert type(getattr(same, field)) is type(value)


def test_levels_may_be_an_array():
    q = FSQ(np.array([8, 5, 5]))
    assert q == FSQ((8, 5, 5)) == FSQ([8, 5, np.int64(5)])
    assert json.loads(json.dumps(to_spec(q)))['levels'] == [8, 5, 5]


def test_a_schedule_s_equality_is_that_of_its_numbers():
    a = ops.Schedule('linear_schedule', init_value=np.float64(2), end_value=1, transition_steps=3)
    b = ops.Schedule('linear_schedule', transition_steps=3.0, end_value=1.0, init_value=2.0)
    assert a == b and hash(a) == hash(b) and json.dumps(a.spec())


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
