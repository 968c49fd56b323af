"""State dicts of the libraries themselves: their codes, their vectors, their next training step.

The arrays are those that `goldens/make_checkpoints.py` wrote; no test here needs torch.
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from vqjax import VQ, Clamped, MultiScale, Parallel, Product, Projected, QINCo, Residual, Strided
from vqjax.importers import read

FOLDER = pathlib.Path(__file__).parent / 'goldens' / 'checkpoints'
# Of groups of codes the last axis here and the first there; one code a feature here.
GROUPED = {
    'grouped_rvq',
    'grouped_rvq_codebook_dim',
    'grouped_residual_fsq',
    'grouped_residual_lfq',
}
JOINT = {'latent', 'latent_projected'}


@functools.cache
def library(name):
    """The cases of a file, by name."""
    cases = {}
    with np.load(FOLDER / f'{name}.npz') as file:
        for key in file.files:
            case, entry = key.split(':', 1)
            cases.setdefault(case, {})[entry] = file[key]
    return cases


def state_dict(case):
    return {k.removeprefix('state/'): v for k, v in case.items() if k.startswith('state/')}


def told(case):
    return json.loads(str(case['told']))


ALL = {
    f'{path.stem}-{name}': (path.stem, name)
    for path in sorted(FOLDER.glob('*.npz'))
    for name in library(path.stem)
    if path.stem != 'random_projection'
}


def steps(q):
    """z and what to train on -> (Quantized, decoded, Quantized after a training step)."""

    @jax.jit
    def run(params, state, z, train_z):
        out = q.quantize(params, state, z)
        decoded = q.decode(params, state, out.codes)
        codes = q.quantize(params, state, train_z).codes
        after = q.update(params, state, train_z, codes)
        return out, decoded, q.quantize(params, after, z)

    return run


@pytest.mark.parametrize('library_name, name', ALL.values(), ids=ALL)
def test_codes_vectors_and_the_next_step_are_the_library_s(library_name, name):
    case = library(library_name)[name]
    q, params, state = read(state_dict(case), **told(case))
    train_z = case.get('train_z', case['z'])
    out, decoded, after = steps(q)(params, state, case['z'], train_z)
    expected = np.moveaxis(case['codes'], 0, -1) if name in GROUPED else case.get('codes')
    if expected is not None and name not in JOINT:
        np.testing.assert_array_equal(out.codes, expected)
    np.testing.assert_allclose(out.z_q, case['z_q'], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(decoded, out.z_q, atol=1e-6)
    if 'after_z_q' in case:
        expected = case['after_codes']
        expected = np.moveaxis(expected, 0, -1) if name in GROUPED else expected
        np.testing.assert_array_equal(after.codes, expected)
        np.testing.assert_allclose(after.z_q, case['after_z_q'], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', ['vq_learnable', 'vq_learnable_revived'])
def test_a_learned_codebook_gets_the_gradient_that_it_got(name):
    case = library('vector_quantize')[name]
    q, params, state = read(state_dict(case), **told(case))
    assert isinstance(q, VQ)

    def loss(params):
        return q.quantize(params, state, case['train_z']).loss

    np.testing.assert_allclose(jax.grad(loss)(params), case['codebook_grad'], rtol=1e-4, atol=1e-7)


def test_var_s_loss_and_its_gradients():
    """That of PyTorch's autograd, to codebook, convolution and z."""
    case = library('images')['var']
    q, params, state = read(state_dict(case), **told(case))

    def loss(params, z):
        return q.quantize(params, state, z).loss

    run = jax.jit(jax.value_and_grad(loss, (0, 1)))
    value, (slopes, z_grad) = run(params, jnp.asarray(case['z']))
    np.testing.assert_allclose(value, case['loss'], rtol=1e-5)
    np.testing.assert_allclose(slopes.inner, case['codebook_grad'], rtol=1e-4, atol=1e-6)
    kernel_grad = case['phi_grad'].transpose(2, 3, 1, 0)
    np.testing.assert_allclose(slopes.kernels[0], kernel_grad, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(z_grad, case['z_grad'], rtol=1e-4, atol=1e-7)


def test_dac_s_losses_and_fewer_stages():
    case = library('transformers')['dac']
    q, params, state = read(state_dict(case))
    assert isinstance(q, Residual) and q.inner.bias
    out = q.quantize(params, state, case['z'])
    # There the sum over stages, of each sample.
    for name in ('commitment', 'codebook'):
        np.testing.assert_allclose(jnp.sum(out.losses[name]), case[name].mean(), rtol=1e-5)
    two, first_params, first_state = q.first_stages(2, params, state)
    coarse = two.quantize(first_params, first_state, case['z'])
    np.testing.assert_allclose(coarse.z_q, case['two_stages'], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(coarse.codes, out.codes[..., :2])
    shorter = q.decode(params, state, out.codes[..., :2])
    np.testing.assert_allclose(shorter, case['two_stages'], rtol=1e-5, atol=1e-6)
    told_two = read(state_dict(case), num_quantizers=2)[0]
    assert told_two == two
    with pytest.raises(ValueError, match='num_quantizers does not fit.*from 1 to 3'):
        read(state_dict(case), num_quantizers=4)


def test_snac_s_codes_at_every_stride_and_length():
    for name in ('snac', 'snac_four'):
        case = library('codecs')[name]
        q, params, state = read(state_dict(case), **told(case))
        assert isinstance(q, Strided)
        out = q.quantize(params, state, case['z'])
        stages = q.to_stages(out.codes)
        for i, stage in enumerate(stages):
            np.testing.assert_array_equal(stage, case[f'codes_{i}'])
        np.testing.assert_array_equal(q.from_stages(stages), out.codes)
        # The strides are not in the file; the model around the quantizer is SNAC's.
        assert read(state_dict(case))[0] == q
        assert read(state_dict(case), layout='SNAC')[0] == q
        alone = {k: v for k, v in state_dict(case).items() if k.startswith('quantizer.')}
        assert isinstance(read(alone)[0], Residual)


def test_random_projection_codes():
    case = library('random_projection')['random_projection']
    q, params, state = read(state_dict(case))
    np.testing.assert_array_equal(q.quantize(params, state, case['z']).codes, case['codes'])


KINDS = {
    ('residual_vq', 'rvq_implicit'): QINCo,
    ('grids', 'residual_fsq'): Clamped,
    ('grids', 'grouped_residual_fsq'): Product,
    ('transformers', 'mimi'): Parallel,
    ('images', 'var'): MultiScale,
    ('images', 'vqgan'): Projected,
}


def test_what_layouts_become():
    for (name, case), kind in KINDS.items():
        entries = library(name)[case]
        assert isinstance(read(state_dict(entries), **told(entries))[0], kind), case
    shared = library('residual_vq')['rvq_shared']
    assert read(state_dict(shared))[0].shared


SOME = [
    ('vector_quantize', 'vq_layer_norm'),
    ('residual_vq', 'rvq_sizes'),
    ('grids', 'lfq_projected'),
    ('transformers', 'encodec'),
    ('transformers', 'mimi'),
    ('codecs', 'dac'),
    ('images', 'var'),
]


def wrapped(entries):
    """As a script saves it that trains in parallel, with its optimizer and discriminators."""
    model = {f'module.codec.{k}': v for k, v in entries.items()}
    model['module.decoder.attention.mask'] = np.ones(4, bool)
    optimizer = {'state': {0: {'exp_avg': np.zeros(3)}}, 'param_groups': [{'lr': 1e-3}]}
    return {'epoch': 3, 'model': model, 'optimizer': optimizer, 'config': {'name': 'codec'}}


@pytest.mark.parametrize('name, case', SOME)
def test_wrapped_prefixed_and_in_half_precision(name, case):
    entries = library(name)[case]
    whole = state_dict(entries)
    q, params, state = read(whole, **told(entries))
    for other in (
        read(wrapped(whole), **told(entries)),
        read(wrapped(whole), prefix='model.module.codec.', **told(entries)),
        read({k: jnp.asarray(v) for k, v in whole.items()}, **told(entries)),
    ):
        assert other[0] == q
        jax.tree.map(np.testing.assert_array_equal, other[1:], (params, state))

    def halved(v):
        return v.astype(ml_dtypes.bfloat16) if v.dtype == np.float32 else v

    half = {k: halved(v) for k, v in whole.items()}
    back = {k: np.asarray(v, np.float32) if v.dtype != bool else v for k, v in half.items()}
    found, expected = (read(x, **told(entries)) for x in (half, back))
    assert found[0] == expected[0]
    jax.tree.map(np.testing.assert_array_equal, found[1:], expected[1:])


def test_files_by_path_and_no_pickles(tmp_path):
    from safetensors.flax import save_file

    entries = library('transformers')['dac']
    whole = state_dict(entries)
    q, params, state = read(whole)
    path = tmp_path / 'model.safetensors'
    save_file({k: jnp.asarray(v) for k, v in whole.items()}, path)
    np.savez(tmp_path / 'model.npz', **whole)
    for source in (path, str(path), tmp_path / 'model.npz'):
        found = read(source)
        assert found[0] == q
        jax.tree.map(np.testing.assert_array_equal, found[1:], (params, state))
    for name, content in (
        ('model.pt', b'\x80\x02}q\x00.'), ('model.bin', b'PK\x03\x04'), ('x.pkl', b'cos\nsystem\n'),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content)
    import zipfile

    with zipfile.ZipFile(tmp_path / 'model.bin', 'w') as archive:  # as torch.save writes
        archive.writestr('archive/data.pkl', b'\x80\x02}q\x00.')
    np.savez(tmp_path / 'objects.npz', a=np.array([{}], object))
    (tmp_path / 'cut.safetensors').write_bytes(path.read_bytes()[:200])
    whole_npz = (tmp_path / 'model.npz').read_bytes()
    (tmp_path / 'cut.npz').write_bytes(whole_npz[: len(whole_npz) // 2])
    flipped = bytearray(whole_npz)
    flipped[len(flipped) // 3] ^= 1
    (tmp_path / 'flipped.npz').write_bytes(flipped)
    for name, message in (
        ('model.pt', 'is a pickle, which runs code'),
        ('model.bin', 'is a pickle'),
        ('x.pkl', 'is a pickle'),
        ('objects.npz', 'no plain array'),
        ('cut.safetensors', 'cut short or damaged'),
        ('cut.npz', r'cut\.npz is cut short or damaged'),
        ('flipped.npz', r'flipped\.npz is damaged'),
    ):
        with pytest.raises(ValueError, match=message):
            read(tmp_path / name)
