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


def trained(z, seed, **options):
    """A VectorQuantize in training, whose codebook stays as it is: it, the loss and its parts."""
    q = peer.VectorQuantize(dim=D, codebook_size=K, rotation_trick=False, **options).train()
    codebook = normal(seed, 1, K, D)
    if options.get('use_cosine_sim'):
        codebook = torch.nn.functional.normalize(codebook, dim=-1)
    q._codebook.embed.data.copy_(codebook)
    _, codes, loss, parts = q(z, return_loss_breakdown=True)
    loss.backward()
    return q._codebook.embed, codes, parts


def cross_entropy():
    """commitment_use_cross_entropy_loss with cosines: the loss and its gradient to z."""
    z = normal(20, 1, N, D).requires_grad_()
    options = {'commitment_use_cross_entropy_loss': True, 'use_cosine_sim': True}
    codebook, codes, parts = trained(z, 21, ema_update=False, **options)
    return {
        'z': z[0], 'codebook': codebook[0], 'codes': codes[0], 'loss': parts.commitment,
        'z_grad': z.grad[0],
    }  # fmt: skip


def active_orthogonality():
    """orthogonal_reg_active_codes_only of a learned codebook: the loss and its gradient."""
    z = normal(22, 1, 5, D).requires_grad_()  # fewer vectors than codes
    options = {'orthogonal_reg_weight': 1.0, 'orthogonal_reg_active_codes_only': True}
    options |= {'learnable_codebook': True, 'ema_update': False, 'commitment_weight': 0.0}
    codebook, codes, parts = trained(z, 23, **options)
    return {
        'z': z[0], 'codebook': codebook[0], 'codes': codes[0], 'loss': parts.orthogonal_reg,
        'codebook_grad': codebook.grad[0],
    }  # fmt: skip


def diversity():
    """codebook_diversity_loss_weight on a batch of single vectors: minus the entropy of use."""
    z, options = normal(24, N, 1, D).requires_grad_(), {'codebook_diversity_temperature': 4.0}
    options |= {'codebook_diversity_loss_weight': 1.0, 'use_cosine_sim': True}
    codebook, _, parts = trained(z, 25, ema_update=False, commitment_weight=0.0, **options)
    return {
        'z': z[:, 0], 'codebook': codebook[0], 'loss': parts.codebook_diversity,
        'z_grad': z.grad[:, 0], 'inv_temperature': np.float32(4.0),
    }  # fmt: skip


def averages(q):
    book = q._codebook
    found = {'counts': book.cluster_size[0], 'sums': book.embed_avg[0], 'codebook': book.embed[0]}
    return {name: value.detach().clone() for name, value in found.items()}


def averaging(*calls):
    """A VectorQuantize by averages, before and after these calls on vectors of their own."""
    torch.manual_seed(0)
    q = peer.VectorQuantize(dim=D, codebook_size=K, decay=0.8, rotation_trick=False).train()
    for seed in (30, 31):  # until counts differ
        q(normal(seed, 1, N, D))
    before = {f'{name}0': value for name, value in averages(q).items()}
    z = torch.stack([normal(40 + i, N, D) for i in range(len(calls))])
    codes = [q(x[None], **options)[1][0] for x, options in zip(z, calls, strict=True)]
    return before | averages(q) | {'z': z, 'codes': torch.stack(codes)}


def weights_of_codes():
    """ema_update_weight: a weight of each code."""
    weights = torch.linspace(0, 1, K)
    return averaging({'ema_update_weight': weights}) | {'weights': weights}


def accumulated():
    """accum_ema_update: two micro-batches kept, all three taken with the last."""
    return averaging({'accum_ema_update': True}, {'accum_ema_update': True}, {})


def beam():
    """ResidualVQ with a beam and weights of the stages, in evaluation."""
    weights = [1.0, 0.5, 0.25]
    q = peer.ResidualVQ(
        dim=D, codebook_size=K, num_quantizers=STAGES, beam_size=3,
        beam_score_quantizer_weights=weights,
    ).eval()  # fmt: skip
    for stage, layer in enumerate(q.layers):
        layer._codebook.embed.data.copy_(normal(50 + stage, 1, K, D) / (stage + 1))
    z = normal(53, 1, 8 * N, D)
    z_q, codes, _ = q(z)
    return {
        'z': z[0], 'z_q': z_q[0], 'codes': codes[0], 'weights': np.float32(weights),
        'codebooks': torch.cat([layer._codebook.embed for layer in q.layers]),
    }  # fmt: skip


def scales_of_videos():
    """HierarchicalVQ on 3-D grids with a codebook a scale: a training step, masked, and phi."""
    scales = ((1, 1, 1), (1, 2, 2), (2, 3, 4))
    torch.manual_seed(1)
    q = peer.HierarchicalVQ(
        dim=D, codebook_size=(4, 6, K), scales=scales, shared_codebook=False, accept_3d_fmap=True,
        channel_first=False, decay=0.8, kmeans_init=False, threshold_ema_dead_code=0,
    ).train()  # fmt: skip
    for k, vq in enumerate(q.vqs):
        vq._codebook.embed.data.copy_(normal(60 + k, *vq._codebook.embed.shape))
        vq._codebook.embed_avg.data.copy_(vq._codebook.embed)
    found = {f'codebook{k}': vq._codebook.embed[0].clone() for k, vq in enumerate(q.vqs)}
    z, mask = normal(63, 3, 2, 3, 4, D), torch.rand(3, 2, 3, 4) < 0.7
    mask[0] = True
    z_q, codes, loss = q(z, mask=mask)
    kernel = q.phi_shared.conv.weight.permute(2, 3, 4, 1, 0)
    found |= {f'counts{k}': vq._codebook.cluster_size[0] for k, vq in enumerate(q.vqs)}
    found |= {f'sums{k}': vq._codebook.embed_avg[0] for k, vq in enumerate(q.vqs)}
    return found | {
        'scales': np.int32(scales), 'z': z, 'mask': mask, 'z_q': z_q, 'loss': loss,
        'codes': torch.cat([grid.flatten(1) for grid in codes], dim=-1), 'kernel': kernel,
        'bias': q.phi_shared.conv.bias, 'ratio': np.float32(q.phi_shared.resi_ratio),
    }  # fmt: skip


CASES = (
    accumulated,
    active_orthogonality,
    beam,
    cross_entropy,
    diveq,
    diveq_residual,
    diversity,
    scales_of_videos,
    weights_of_codes,
)


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
