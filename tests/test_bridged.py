"""Bridged codebooks: what a bridge may be, that all codes move, and that it is taken once."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import SHIPPED

from vqjax import Bridged, SimVQ, make, ops, to_spec

KEY = jax.random.key(0)
Z = jax.random.normal(jax.random.key(1), (48, 8))


class Hidden(nn.Module):
    """A bridge of a user: a Linen module is one as it is."""

    @nn.compact
    def __call__(self, codes):
        return codes + nn.Dense(codes.shape[-1])(nn.tanh(nn.Dense(16)(codes)))


OWN = ops.Bridge(lambda key, codes: jnp.ones(codes.shape[1:]), lambda scale, codes: scale * codes)
SHORTER = ops.Bridge(lambda key, codes: (), lambda params, codes: codes[1:])
BRIDGES = [
    ops.Linear(),
    ops.LowRank(3),
    ops.VQBridge(patch=4, width=8, depth=2, heads=2),
    Hidden(),
    OWN,
]


@pytest.mark.parametrize('learned', [False, True])
@pytest.mark.parametrize('bridge', BRIDGES, ids=lambda b: type(b).__name__)
def test_a_step_moves_every_code(bridge, learned):
    """More codes than vectors: most are unused, and yet none stays where it was."""
    q = Bridged(64, bridge=bridge, learned=learned)
    params, state = q.init(KEY, Z[:16])

    @jax.jit
    def step(params):
        gradients = jax.grad(lambda p: q.quantize(p, state, Z[:16]).loss)(params)
        # Two steps: maps that start at zero hand nothing back to the ones before them.
        return jax.tree.map(lambda p, g: p - 0.5 * g, params, gradients)

    before = q.read_codebook(params, state)
    after = q.read_codebook(step(step(params)), state)
    assert len(np.unique(q.quantize(params, state, Z[:16]).codes)) <= 16
    assert (jnp.max(jnp.abs(after - before), axis=-1) > 0).all()
    assert isinstance(state, tuple) == learned


def test_sim_vq_is_the_linear_bridge():
    q = SimVQ(16)
    kernel, codes = q.init(KEY, Z)
    general = Bridged(16, bridge=ops.Linear())
    params, state = general.init(KEY, Z)
    np.testing.assert_array_equal(
        np.asarray(q.read_codebook(kernel, codes)), general.read_codebook(params, state)
    )
    same = params._replace(bridge=kernel)
    one, other = q.quantize(kernel, codes, Z), general.quantize(same, codes, Z)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize('bridge', BRIDGES[1:4], ids=lambda b: type(b).__name__)
def test_bridges_start_at_the_codes_given_or_are_free_to(bridge):
    q = Bridged(16, bridge=bridge)
    params, codes = q.init(KEY, Z)
    codebook = q.read_codebook(params, codes)
    if isinstance(bridge, nn.Module):
        assert (codebook != codes).any()
    else:
        np.testing.assert_array_equal(np.asarray(codebook), np.asarray(codes))


def test_vq_bridge_lets_all_codes_read_each_other():
    """Not a map of single codes: moving one code moves all that come out."""
    bridge = ops.VQBridge(patch=4, width=8, depth=1, heads=2)
    codes = jax.random.normal(KEY, (16, 3))
    params = bridge.init(KEY, codes)
    params['recover'] = jax.random.normal(KEY, params['recover'].shape)
    change = bridge.apply(params, codes.at[0, 0].add(1.0)) - bridge.apply(params, codes)
    assert (jnp.max(jnp.abs(change), axis=-1) > 0).all()


def products(run, *args):
    """The matrix products in the compiled program, by the shape of their result."""
    text = jax.jit(run, compiler_options=SHIPPED).lower(*args).compile().as_text()
    shapes = re.findall(r'= f32\[([\d,]*)\]\S* (?:dot|custom-call)\(', text)
    return sorted(shapes)


@pytest.mark.parametrize('bridge', BRIDGES[:3], ids=lambda b: type(b).__name__)
def test_the_codebook_is_made_once_a_step(bridge):
    """quantize, decode and update in one program take the bridge as often as reading it does."""
    num_codes = 96
    q = Bridged(num_codes, bridge=bridge)
    params, state = q.init(KEY, Z)

    def step(params, z):
        out = q.quantize(params, state, z)
        new = q.update(params, state, z, out.codes)
        return out, q.decode(params, new, out.codes), q.read_codebook(params, new)

    taken = products(step, params, Z)
    once = products(lambda params, z: q.read_codebook(params, state), params, Z)
    search = products(lambda codebook, z: ops.nearest_codes(z, codebook), state, Z)
    assert len(once) >= 1 and len(search) == 1
    assert taken == sorted(once + search)


def test_specs_name_the_bridges_of_the_library():
    spec = {'name': 'bridged', 'num_codes': 16, 'bridge': {'name': 'vq_bridge', 'patch': 8}}
    q = make(spec)
    assert q == Bridged(16, bridge=ops.VQBridge(patch=8))
    assert make(to_spec(q)) == q and to_spec(q)['bridge']['width'] == 128
    with pytest.raises(ValueError, match='is none of .* it has no spec'):
        to_spec(Bridged(16, bridge=OWN))


@pytest.mark.parametrize(
    'call, message',
    [
        (lambda: Bridged(16, bridge='linear'), "bridge must be an object with .* got 'linear'"),
        (lambda: ops.LowRank(0), 'rank must be an integer from 1 .* got 0'),
        (lambda: ops.VQBridge(width=10, heads=4), 'heads=4 must divide width=10'),
        (lambda: Bridged(16, bridge=ops.VQBridge(5)).init(KEY, Z), 'patch=5 must divide the 16'),
        (lambda: Bridged(16, bridge=ops.LowRank(9)).init(KEY, Z), 'rank=9 is above the 8'),
        (
            lambda: Bridged(16, bridge=nn.Dense(4)).init(KEY, Z),
            r'(?s)bridge=Dense.*must keep the shape .*\(16, 8\), got \(16, 4\)',
        ),
        (
            lambda: Bridged(16, bridge=SHORTER).init(KEY, Z),
            r'must keep the shape .*\(16, 8\), got \(15, 8\)',
        ),
        (
            lambda: make({'name': 'bridged', 'num_codes': 4, 'bridge': {'name': 'mlp'}}),
            "bridge must name one of .* got {'name': 'mlp'}",
        ),
    ],
)
def test_bad_bridges_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize('scale', [1e-3, 30.0])
def test_random_codes_start_where_the_nearest_of_them_is_nearest(scale):
    """K random directions in D features: their best cosine is about sqrt(2 ln K / D)."""
    num_codes, dim = 256, 128
    # As an encoder's first features: few directions, all of variance 1.
    few = jax.random.normal(KEY, (2000, 6)) @ jax.random.normal(jax.random.key(1), (6, dim))
    z = scale * few / jnp.std(few, axis=0)

    def outcome(length):
        q = SimVQ(num_codes, length=length)
        params, state = q.init(jax.random.key(2), z)
        out = q.quantize(params, state, z)
        error = jnp.mean((z - out.z_q) ** 2) / jnp.mean(z**2)
        return len(np.unique(out.codes)), float(error), q.read_codebook(params, state)

    used, error, codes = outcome(None)
    best = (2 * np.log(num_codes) / dim) ** 0.5
    lengths = np.linalg.norm(codes, axis=-1) / np.sqrt(np.mean(np.sum(np.square(z), axis=-1)))
    assert np.sqrt(np.mean(lengths**2)) == pytest.approx(best, rel=0.02)
    assert error < 1 and all(error < outcome(factor * best)[1] for factor in (0.4, 2.5))
    long_used, long_error, _ = outcome(1.0)
    # Codes as long as z are farther from it than 0 is, and few short ones take all vectors.
    assert long_error > 1 and used > long_used


def test_codes_are_as_long_as_z_at_most():
    """Where K codes reach in all directions, D = 4, they have the length of z itself."""
    q, z = SimVQ(4096), jax.random.normal(KEY, (512, 4))
    codes = q.read_codebook(*q.init(KEY, z))
    power, expected = (float(jnp.mean(jnp.sum(x**2, axis=-1))) for x in (codes, z))
    assert power == pytest.approx(expected, rel=0.1)
    with pytest.raises(ValueError, match=r'length must be finite and above 0, got 0'):
        SimVQ(8, length=0)
