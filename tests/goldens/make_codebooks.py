"""Writes tests/goldens/codebooks.npz: what classes of vector-quantize-pytorch do with codebooks.

Run in an environment of its own; the tests read the arrays and need none of this:

    pip install torch==2.13.0 vector-quantize-pytorch==1.32.0
    python tests/goldens/make_codebooks.py

Arrays are named CASE:NAME. What a class draws at random is recorded with what came of it.
"""

import pathlib
import unittest.mock

import numpy as np
import torch
import vector_quantize_pytorch as peer
from vector_quantize_pytorch import vector_quantize_pytorch as module

K, D, N, STAGES = 8, 4, 24, 3


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def diveq():
    """The estimator alone: its noise is the v of z_q - z + v."""
    z, z_q = normal(0, N, D).requires_grad_(), normal(1, N, D).requires_grad_()
    drawn, cotangent, variance = normal(2, N, D), normal(3, N, D), 5e-3
    with unittest.mock.patch.object(torch, 'randn_like', lambda x: drawn):
        out = module.directional_reparam(z, z_q, variance)
    (out * cotangent).sum().backward()
    noise = variance**0.5 * drawn
    return {
        'z': z, 'z_q': z_q, 'noise': noise, 'cotangent': cotangent, 'out': out,
        'z_grad': z.grad, 'z_q_grad': z_q.grad,
    }  # fmt: skip


def diveq_residual():
    """ResidualVQ(diveq=True): the gradient to z and to the codebooks of all stages."""
    q = peer.ResidualVQ(
        dim=D, codebook_size=K, num_quantizers=STAGES, diveq=True, threshold_ema_dead_code=0
    ).train()
    for stage, layer in enumerate(q.layers):
        layer._codebook.embed.data.copy_(normal(10 + stage, 1, K, D) / (stage + 1))
    z, drawn, cotangent = (
        normal(4, 1, N, D).requires_grad_(),
        normal(5, 1, N, D),
        normal(6, 1, N, D),
    )
    with unittest.mock.patch.object(torch, 'randn_like', lambda x: drawn):
        z_q, codes, _ = q(z)
    (z_q * cotangent).sum().backward()
    embeds = [layer._codebook.embed for layer in q.layers]
    return {
        'z': z[0], 'noise': 5e-3**0.5 * drawn[0], 'cotangent': cotangent[0], 'codes': codes[0],
        'codebooks': torch.cat([x.detach() for x in embeds]), 'z_grad': z.grad[0],
        'codebook_grads': torch.cat([x.grad for x in embeds]),
    }  # fmt: skip


CASES = (diveq, diveq_residual)


def main():
    flat = {
        f'{case.__name__}:{name}': np.asarray(value.detach() if torch.is_tensor(value) else value)
        for case in CASES
        for name, value in case().items()
    }
    path = pathlib.Path(__file__).parent / 'codebooks.npz'
    np.savez_compressed(path, **flat)
    print(f'{path.name}: {len(CASES)} cases, {path.stat().st_size / 1024:.0f} KB')


if __name__ == '__main__':
    main()
