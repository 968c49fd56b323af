"""The arrays that vector-quantize-pytorch 1.32.0 wrote: codes equal, everything else to 1e-5.

Those of `ibq` are of the authors' code (TencentARC/SEED-Voken, IndexPropagationQuantize).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import golden

from vqjax import FSQ, IBQ, LFQ, VQEMA, Residual, SimVQ, ops
from vqjax.quantizers import VQEMAState

FSQS = ['3x4', '7x5x5x5x5', '8x5x5x5', '8x8x8x5x5x5']


def close(actual, expected, tolerance=1e-5):
    np.testing.assert_allclose(
        np.asarray(actual), expected, rtol=tolerance, atol=tolerance, equal_nan=False
    )


def ema_state(codebook, counts, eps=1e-5):
    """State from VQPT's codebook: its sums start at the codebook itself, so they are given."""
    return VQEMAState(jnp.asarray(counts), jnp.asarray(codebook), jnp.zeros((), jnp.int32))


@pytest.mark.parametrize('symmetric', [False, True])
@pytest.mark.parametrize('name', FSQS)
def test_fsq(name, symmetric):
    g = golden(f'fsq_{name}' + ('_symmetric' if symmetric else ''))
    q = FSQ(tuple(int(level) for level in g['levels']), symmetric=symmetric)
    out, pullback = jax.vjp(lambda z: q.quantize((), (), z).z_q, jnp.asarray(g['z']))
    close(out, g['z_q'])
    close(pullback(jnp.asarray(g['cotangent']))[0], g['z_grad'])
    assert (np.asarray(q.quantize((), (), jnp.asarray(g['z'])).codes) == g['codes']).all()
    close(q.decode((), (), jnp.asarray(g['codes'])), g['z_q'])


@pytest.mark.parametrize('name', ['ema', 'ema_slow', 'ema_cosine'])
def test_vq_ema_every_step(name):
    g = golden(name)
    metric = 'cosine' if 'cosine' in name else 'euclidean'
    q = VQEMA(
        len(g['codebook0']),
        decay=float(g['decay']),
        eps=float(g['eps']),
        metric=metric,
        commitment=1.0,
        revival=None,
    )
    # Its averages start apart from its codebook, so the first step reads codebook0 as given.
    read = VQEMAState(jnp.ones(q.num_codes), jnp.asarray(g['codebook0']), jnp.zeros((), jnp.int32))
    state = VQEMAState(jnp.asarray(g['counts0']), jnp.asarray(g['sums0']), read.step)

    @jax.jit
    def step(read, state, z, cotangent):
        def loss(z):
            out = q.quantize((), read, z)
            return jnp.vdot(out.z_q, cotangent) + out.loss, out

        grad, out = jax.grad(loss, has_aux=True)(z)
        return grad, out, q.update((), state, z, out.codes)

    for i in range(len(g['z'])):
        grad, out, state = step(read, state, g['z'][i], g['cotangent'][i])
        assert (np.asarray(out.codes) == g['codes'][i]).all()
        close(out.z_q, g['z_q'][i])
        close(out.losses['commitment'], g['commitment'][i])
        close(grad, g['z_grad'][i])
        close(state.counts, g['counts'][i])
        close(state.sums, g['sums'][i])
        close(q.read_codebook((), state), g['codebook'][i])
        read = state
    out = q.quantize((), state, g['eval_z'])
    assert (np.asarray(out.codes) == g['eval_codes']).all()
    close(out.z_q, g['eval_z_q'])


def test_vq_ema_mask():
    g = golden('ema_mask')
    q = VQEMA(len(g['codebook0']), decay=float(g['decay']), eps=float(g['eps']), revival=None)
    state = VQEMAState(jnp.ones(q.num_codes), jnp.asarray(g['codebook0']), jnp.zeros((), jnp.int32))
    out = q.quantize((), state, g['z'], mask=g['mask'])
    assert (np.asarray(out.codes) == g['codes']).all()
    close(out.z_q, g['z_q'])
    close(out.losses['commitment'], g['commitment'])
    state = q.update((), state, g['z'], out.codes, mask=g['mask'])
    close(state.counts, g['counts'])
    close(state.sums, g['sums'])
    close(q.read_codebook((), state), g['codebook'])


def test_residual():
    g = golden('residual')
    stages, num_codes, _ = g['codebook0'].shape
    inner = VQEMA(num_codes, decay=float(g['decay']), eps=float(g['eps']), revival=None)
    q = Residual(inner, stages)
    state = VQEMAState(
        jnp.ones((stages, num_codes)), jnp.asarray(g['codebook0']), jnp.zeros(stages, jnp.int32)
    )
    for i in range(len(g['z'])):
        out = q.quantize((), state, g['z'][i])
        assert (np.asarray(out.codes) == g['codes'][i]).all()
        close(out.z_q, g['z_q'][i])
        close(out.losses['commitment'], g['commitment'][i])
        state = q.update((), state, g['z'][i], out.codes)
        close(jax.vmap(lambda s: inner.read_codebook((), s))(state), g['codebook'][i])
    out = q.quantize((), state, g['eval_z'])
    assert (np.asarray(out.codes) == g['eval_codes']).all()
    close(out.z_q, g['eval_z_q'])


def test_rotation():
    g = golden('rotation')
    out, pullback = jax.vjp(lambda z: ops.rotate(z, jnp.asarray(g['z_q'])), jnp.asarray(g['z']))
    close(out, g['rotated'])
    assert (np.asarray(out) == g['z_q']).all()
    close(pullback(jnp.asarray(g['cotangent']))[0], g['z_grad'])


def test_sim_vq():
    g = golden('sim_vq')
    q = SimVQ(len(g['frozen']), gradient=ops.rotate)
    # torch keeps a kernel as [out, in].
    kernel = jnp.asarray(g['kernel'].T)

    def loss(kernel, z):
        out = q.quantize(kernel, jnp.asarray(g['frozen']), z)
        return out.loss, out

    (to_kernel, to_z), out = jax.grad(loss, argnums=(0, 1), has_aux=True)(
        kernel, jnp.asarray(g['z'])
    )
    assert (np.asarray(out.codes) == g['codes']).all()
    close(out.z_q, g['z_q'])
    close(out.loss, g['loss'])
    close(to_kernel.T, g['kernel_grad'])
    close(to_z, g['z_grad'])


@pytest.mark.parametrize('spherical', [False, True])
def test_lfq(spherical):
    g = golden('lfq_spherical' if spherical else 'lfq')
    q = LFQ(
        g['z'].shape[-1],
        entropy=float(g['entropy_weight']),
        commitment=float(g['commitment_weight']),
        inv_temperature=float(g['inv_temperature']),
        spherical=spherical,
    )
    out = q.quantize((), (), jnp.asarray(g['z']))
    assert (np.asarray(out.codes) == g['codes']).all()
    close(out.z_q, g['z_q'])
    for name in ('per_sample_entropy', 'batch_entropy', 'commitment'):
        close(out.losses[name], g[name])
    close(out.loss, g['aux'])
    close(q.decode((), (), out.codes), g['z_q'])


@pytest.mark.parametrize('name', ['plain', 'entropy'])
def test_ibq(name):
    arrays = golden('ibq').items()
    g = {key.removeprefix(name + '_'): x for key, x in arrays if key.startswith(name)}
    q = IBQ(len(g['codebook']), entropy=0.5 if name == 'entropy' else 0.0, inv_temperature=10.0)

    def loss(codebook, z):
        out = q.quantize(codebook, (), z)
        return jnp.vdot(out.z_q, g['cotangent']) + out.loss, out

    (to_codebook, to_z), out = jax.grad(loss, (0, 1), has_aux=True)(g['codebook'], g['z'])
    assert (np.asarray(out.codes) == g['codes']).all()
    close(out.z_q, g['z_q'])
    # Theirs adds 1e-5 inside two logarithms.
    tolerance = 1e-5 if name == 'plain' else 5e-4
    close(out.loss, g['loss'], tolerance)
    close(to_codebook, g['codebook_grad'], tolerance)
    close(to_z, g['z_grad'], tolerance)
    if name == 'entropy':
        close(out.losses['per_sample_entropy'], g['single'], 1e-4)
        close(out.losses['batch_entropy'], g['batch'], 5e-4)


def test_orthogonality():
    g = golden('orthogonality')
    close(ops.orthogonality(jnp.asarray(g['codebook'])), g['loss'])
