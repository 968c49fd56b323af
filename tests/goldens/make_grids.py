"""Writes tests/goldens/scalar_grids.npz: grids and bits as vector-quantize-pytorch 1.32.0 has them.

Run in an environment of its own; the tests read the arrays and need none of this:

    pip install torch==2.13.0 vector-quantize-pytorch==1.32.0
    python tests/goldens/make_grids.py

Entries are CASE:NAME, with `z`, what the library makes of it (`z_q`, `codes`, and `loss` where it
has one), `cotangent` and the gradient `z_grad` of sum(cotangent z_q) + loss.
"""

import math
import pathlib

import numpy as np
import torch
import vector_quantize_pytorch as peer

PATH = pathlib.Path(__file__).parent / 'scalar_grids.npz'


def normal(seed, *shape, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def case(run, z, **more):
    """What `run`, z -> (z_q, codes, loss), gives, and its gradient."""
    z.requires_grad_()
    z_q, codes, loss = run(z)
    cotangent = normal(99, *z_q.shape)
    (torch.sum(cotangent * z_q) + loss).backward()
    found = {'z': z, 'z_q': z_q, 'codes': codes, 'loss': loss, 'cotangent': cotangent}
    found |= {'z_grad': z.grad, **more}
    return {name: torch.as_tensor(x).detach().numpy() for name, x in found.items()}


def fsp():
    cases = {}
    for act, inverse, norm in (
        ('tanh', False, 'var_tanh'),
        ('sigmoid', True, 'var_sigmoid'),
        ('normal', False, 'kurt'),
        ('laplace', False, 'var_laplace'),
        ('cauchy', True, 'none'),
    ):
        # Rounded in training as in evaluation.
        module = peer.FSP(
            [5, 4, 2, 7], act_name=act, need_inv_act=inverse, vector_norm=norm, quantize_rate=1.0
        )
        run = lambda z, m=module: m.train()(z)[:3]  # noqa: E731
        cases[f'fsp_{act}'] = case(run, normal(1, 64, 4, scale=1.5))
    return cases


def fsq():
    cases = {}
    for name, levels, options in (
        ('fsq_clamp', [5, 4, 3, 8], {}),
        ('fsq_clamp_symmetric', [5, 4, 3, 2], {'preserve_symmetry': True}),
    ):
        module = peer.FSQ(levels, bound_hard_clamp=True, **options)
        run = lambda z, m=module: (*m(z), torch.zeros(()))  # noqa: E731
        cases[name] = case(run, normal(2, 2, 32, 4))
    torch.manual_seed(0)
    module = peer.FSQ([5] * 4, orthogonal_rotation=True)
    run = lambda z: (*module(z), torch.zeros(()))  # noqa: E731
    cases['fsq_rotated'] = case(run, normal(3, 2, 32, 4), rotation=module.orthogonal_rot)
    return cases


def lfq():
    cases = {}
    for name, options in (
        ('lfq_scale', {'codebook_scale': 0.5}),
        ('lfq_scale_spherical', {'codebook_scale': 0.5, 'spherical': True}),
        ('lfq_rotated', {'orthogonal_rotation': True}),
    ):
        torch.manual_seed(0)
        module = peer.LFQ(codebook_size=64, commitment_loss_weight=0.25, **options).train()
        more = {'rotation': module.orthogonal_rot} if name == 'lfq_rotated' else {}
        cases[name] = case(
            lambda z, m=module: m(z, inv_temperature=1.5), normal(4, 2, 32, 6, scale=0.5), **more
        )
    return cases


def residual_lfq():
    torch.manual_seed(0)
    module = peer.ResidualLFQ(
        dim=6, codebook_size=64, num_quantizers=3, soft_clamp_input_value=1.5
    ).eval()
    z = normal(7, 2, 24, 6)
    z_q, codes, _ = module(z)
    found = {'z': z, 'z_q': z_q, 'codes': codes}
    return {'residual_lfq_clamped': {name: x.detach().numpy() for name, x in found.items()}}


def binary_mapper():
    module = peer.BinaryMapper(bits=4, kl_loss_threshold=0.5 * math.log(2)).train()
    codebook = normal(5, 16, 4)

    def run(z):
        one_hot, codes, loss = module(z, deterministic=True, return_indices=True)
        return one_hot @ codebook, codes, loss

    return {'binary_mapper': case(run, normal(6, 48, 4, scale=2.0), codebook=codebook)}


def main():
    cases = fsp() | fsq() | lfq() | residual_lfq() | binary_mapper()
    flat = {f'{name}:{key}': x for name, entries in cases.items() for key, x in entries.items()}
    np.savez_compressed(PATH, **flat)
    print(f'{PATH.name}: {len(cases)} cases, {PATH.stat().st_size / 1024:.0f} KB')


if __name__ == '__main__':
    main()
