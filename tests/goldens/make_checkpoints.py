"""Writes tests/goldens/checkpoints/*.npz: small state dicts of other libraries and what they do.

Run in an environment of its own; the tests read the arrays and need none of this:

    pip install torch==2.13.0 vector-quantize-pytorch==1.32.0 transformers==5.24.0 encodec==0.1.1 \
        snac==1.2.1 descript-audio-codec==1.0.0 diffusers
    python tests/goldens/make_checkpoints.py

Each case has `state/NAME` (the state dict, in its order), `z` [B, T, D], what the library makes of
it (`codes`, `z_q`), and where it trains by averages `train_z` and the same two after a training
step on it (`after_codes`, `after_z_q`). `told` is what `read` is told, as JSON.
"""

import json
import pathlib
import sys
import unittest.mock

import numpy as np
import torch

FOLDER = pathlib.Path(__file__).parent / 'checkpoints'
K, D, SMALL, BATCH, TIME = 16, 8, 4, 2, 12


def vectors(seed, dim=D, time=TIME, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(BATCH, time, dim, generator=generator)


def array(value):
    value = value.detach()
    return value.numpy() if value.dtype != torch.bfloat16 else value.float().numpy()


def entry(state, told=None, **arrays):
    """What is kept of a case."""
    entries = {f'state/{name}': array(value) for name, value in state.items()}
    entries['told'] = np.array(json.dumps(told or {}))
    return entries | {
        name: array(value) if torch.is_tensor(value) else value for name, value in arrays.items()
    }


def save(library, cases):
    FOLDER.mkdir(exist_ok=True)
    flat = {f'{case}:{name}': v for case, entries in cases.items() for name, v in entries.items()}
    path = FOLDER / f'{library}.npz'
    np.savez_compressed(path, **flat)
    print(f'{path.name}: {len(cases)} cases, {path.stat().st_size / 1024:.0f} KB')


def vector_quantize_pytorch():
    import vector_quantize_pytorch as peer

    quiet = {'threshold_ema_dead_code': 0}

    def case(make, told=None, steps=3, trains=False, seed=0, dim=D, first=False, gradient=False):
        torch.manual_seed(seed)
        module = make().train()

        def run(z):
            if first:  # channels are the axis after the batch
                out = module(z.movedim(-1, 1))
                return out[0].movedim(1, -1), out[1]
            out = module(z)
            return out[0], out[1]

        for step in range(steps):
            run(vectors(100 + step, dim, 64))
        module.eval()
        z = vectors(seed + 1, dim)
        z_q, codes = run(z)
        # Behind it: with affine_param the running mean follows in eval mode too.
        state = {name: value.clone() for name, value in module.state_dict().items()}
        found = {'z': z, 'z_q': z_q, 'codes': codes}
        if gradient:
            module.train()
            module.zero_grad()
            found['train_z'] = vectors(seed + 2, dim)
            module(found['train_z'])[-1].sum().backward()
            found['codebook_grad'] = module._codebook.embed.grad[0]
        if trains:
            module.train()
            found['train_z'] = vectors(seed + 2, dim, 24)
            run(found['train_z'])
            module.eval()
            found['after_z_q'], found['after_codes'] = run(z)
        return entry(state, told, **found)

    vq, rvq = peer.VectorQuantize, peer.ResidualVQ
    base = {'dim': D, 'codebook_size': K, **quiet}
    stages = {**base, 'num_quantizers': 3}
    ema = {'trains': True}
    levels = [5, 5, 3, 3]
    save(
        'vector_quantize',
        {
            'vq': case(lambda: vq(**base, kmeans_init=True), {'decay': 0.8}, **ema),
            'vq_decay': case(lambda: vq(**base, decay=0.95), {'decay': 0.95}, **ema),
            'vq_cosine': case(
                lambda: vq(**base, use_cosine_sim=True), {'metric': 'cosine'}, **ema
            ),
            'vq_codebook_dim': case(lambda: vq(**base, codebook_dim=SMALL), **ema),
            'vq_layer_norm': case(
                lambda: vq(**base, codebook_dim=SMALL, layernorm_after_project_in=True), **ema
            ),
            'vq_heads': case(
                lambda: vq(**base, heads=2, codebook_dim=SMALL, separate_codebook_per_head=True),
                {'heads': 2}, **ema,
            ),
            'vq_heads_shared': case(
                lambda: vq(**base, heads=2, codebook_dim=SMALL), {'heads': 2}, **ema
            ),
            'vq_heads_projected': case(
                lambda: vq(**base, heads=3, codebook_dim=SMALL, separate_codebook_per_head=True),
                **ema,
            ),
            'vq_heads_shared_projected': case(
                lambda: vq(**base, heads=3, codebook_dim=SMALL), **ema
            ),
            'vq_affine': case(lambda: vq(**base, affine_param=True)),
            'vq_learnable': case(
                lambda: vq(**base, learnable_codebook=True, ema_update=False), gradient=True
            ),
            'vq_learnable_revived': case(
                lambda: vq(
                    dim=D, codebook_size=K, learnable_codebook=True, ema_update=False,
                    threshold_ema_dead_code=1,
                ),
                {'learnable': True}, gradient=True,
            ),
        },
    )  # fmt: skip
    save(
        'residual_vq',
        {
            'rvq': case(lambda: rvq(**stages, kmeans_init=True), **ema),
            'rvq_cosine': case(
                lambda: rvq(**stages, use_cosine_sim=True), {'metric': 'cosine'}, **ema
            ),
            'rvq_codebook_dim': case(lambda: rvq(**stages, codebook_dim=SMALL), **ema),
            'rvq_sizes': case(lambda: rvq(dim=D, codebook_size=(16, 8, 4), **quiet), **ema),
            'rvq_shared': case(lambda: rvq(**stages, shared_codebook=True)),
            'rvq_implicit': case(
                lambda: rvq(
                    **stages, implicit_neural_codebook=True,
                    mlp_kwargs={'dim_hidden': 12, 'depth': 2},
                ),
            ),
            'grouped_rvq': case(
                lambda: peer.GroupedResidualVQ(**{**stages, 'groups': 2}), **ema
            ),
            'grouped_rvq_codebook_dim': case(
                lambda: peer.GroupedResidualVQ(**{**stages, 'groups': 2}, codebook_dim=3), **ema
            ),
        },
    )  # fmt: skip
    save(
        'grids',
        {
            'fsq': case(lambda: peer.FSQ(levels), {'levels': levels}, dim=4),
            'fsq_symmetric': case(
                lambda: peer.FSQ(levels, preserve_symmetry=True),
                {'levels': levels, 'symmetric': True}, dim=4,
            ),
            'fsq_projected': case(lambda: peer.FSQ(levels, dim=D), {'levels': levels}),
            'fsq_codebooks': case(
                lambda: peer.FSQ(levels, dim=6, num_codebooks=2), {'levels': levels}, dim=6
            ),
            'fsq_codebooks_alone': case(
                lambda: peer.FSQ(levels, num_codebooks=2),
                {'levels': levels, 'num_codebooks': 2},
            ),
            'fsq_rotated': case(
                lambda: peer.FSQ([5] * 4, dim=D, orthogonal_rotation=True), {'levels': [5] * 4}
            ),
            'residual_fsq': case(
                lambda: peer.ResidualFSQ(levels=levels, num_quantizers=3),
                {'levels': levels, 'num_quantizers': 3}, dim=4,
            ),
            'residual_fsq_projected': case(
                lambda: peer.ResidualFSQ(levels=levels, num_quantizers=3, dim=D),
                {'levels': levels, 'num_quantizers': 3},
            ),
            'grouped_residual_fsq': case(
                lambda: peer.GroupedResidualFSQ(dim=D, groups=2, levels=[5, 3], num_quantizers=2),
                {'levels': [5, 3], 'num_quantizers': 2, 'groups': 2},
            ),
            'fsp_projected': case(
                lambda: peer.FSP(levels, dim=D, act_name='normal', need_inv_act=True),
                {'layout': 'FSP', 'levels': levels, 'bound': 'erf', 'inverse': True},
            ),
            'lfq': case(lambda: peer.LFQ(codebook_size=256)),
            'lfq_projected': case(lambda: peer.LFQ(codebook_size=16, dim=D)),
            'lfq_spherical': case(
                lambda: peer.LFQ(codebook_size=256, spherical=True), {'spherical': True}
            ),
            'lfq_codebooks': case(
                lambda: peer.LFQ(codebook_size=16, dim=6, num_codebooks=2), dim=6
            ),
            'residual_lfq': case(
                lambda: peer.ResidualLFQ(dim=D, codebook_size=256, num_quantizers=3)
            ),
            'residual_lfq_projected': case(
                lambda: peer.ResidualLFQ(dim=D, codebook_size=16, num_quantizers=2)
            ),
            'grouped_residual_lfq': case(
                lambda: peer.GroupedResidualLFQ(
                    dim=D, groups=2, codebook_size=16, num_quantizers=2
                )
            ),
            'sim_vq': case(lambda: peer.SimVQ(dim=D, codebook_size=K)),
            'sim_vq_frozen_dim': case(
                lambda: peer.SimVQ(dim=D, codebook_size=K, frozen_codebook_dim=SMALL)
            ),
            'residual_sim_vq': case(
                lambda: peer.ResidualSimVQ(dim=D, codebook_size=K, num_quantizers=3)
            ),
            'latent': case(lambda: peer.LatentQuantize(levels=[5, 4, 3], dim=3), dim=3, first=True),
            'latent_projected': case(
                lambda: peer.LatentQuantize(levels=[5, 4, 3], dim=D), first=True
            ),
        },
    )  # fmt: skip

    torch.manual_seed(0)
    module = peer.RandomProjectionQuantizer(dim=D, codebook_size=K, codebook_dim=SMALL)
    z = vectors(1)
    codes = module(z)
    projection = entry(module.state_dict(), z=z, codes=codes)
    save('random_projection', {'random_projection': projection})


def transformers():
    from transformers import DacConfig, DacModel, EncodecConfig, EncodecModel, MimiConfig, MimiModel

    cases = {}
    torch.manual_seed(0)
    config = EncodecConfig(
        num_filters=2, hidden_size=D, codebook_dim=D, codebook_size=K, num_lstm_layers=1,
        upsampling_ratios=[2, 2], sampling_rate=800, target_bandwidths=[2.4],
    )  # fmt: skip
    model = EncodecModel(config).eval()
    layers = model.quantizer.layers
    for i, layer in enumerate(layers):
        layer.codebook.embed.copy_(vectors(i, D, K)[0] / (1 + i))
        layer.codebook.embed_avg.copy_(layer.codebook.embed * 3)
        layer.codebook.cluster_size.fill_(3)
    z = vectors(5)
    codes = model.quantizer.encode(z.movedim(-1, 1))
    z_q = model.quantizer.decode(codes).movedim(1, -1)
    state = _part(model, 'quantizer.')
    cases['encodec'] = entry(state, z=z, z_q=z_q, codes=codes.movedim(0, -1))

    for name, dims in (('dac', {}), ('dac_one_stage', {'n_codebooks': 1})):
        torch.manual_seed(0)
        config = DacConfig(
            encoder_hidden_size=2, downsampling_ratios=[2, 2], decoder_hidden_size=4,
            n_codebooks=3, codebook_size=K, codebook_dim=SMALL, hidden_size=D,
        )  # fmt: skip
        config = DacConfig(**{**config.to_dict(), **dims})
        model = DacModel(config).eval()
        for i, stage in enumerate(model.quantizer.quantizers):
            stage.codebook.weight.data = vectors(i, SMALL, K)[0]
            for part in (*stage.in_proj.parameters(), *stage.out_proj.parameters()):
                part.normal_(std=0.5)
        z = vectors(6)
        z_q, codes, _, commitment, codebook = model.quantizer(z.movedim(-1, 1))
        two = model.quantizer(z.movedim(-1, 1), n_quantizers=2)[0]
        cases[name] = entry(
            _part(model, 'quantizer.'), z=z, z_q=z_q.movedim(1, -1), codes=codes.movedim(1, -1),
            two_stages=two.movedim(1, -1), commitment=commitment, codebook=codebook,
        )  # fmt: skip

    for name, dims in (('mimi', {}), ('mimi_unprojected', {'codebook_dim': D, 'vq': D})):
        torch.manual_seed(0)
        size = dims.get('vq', SMALL)
        config = MimiConfig(
            hidden_size=D, num_filters=2, upsampling_ratios=[2, 2], codebook_size=K,
            codebook_dim=size, vector_quantization_hidden_dimension=size, num_quantizers=4,
            num_semantic_quantizers=1, num_hidden_layers=1, intermediate_size=8,
            num_attention_heads=2, num_key_value_heads=2, head_dim=4, upsample_groups=D,
            sampling_rate=800, frame_rate=100.0,
        )  # fmt: skip
        model = MimiModel(config).eval()
        quantizer = model.quantizer
        both = (
            *quantizer.semantic_residual_vector_quantizer.layers,
            *quantizer.acoustic_residual_vector_quantizer.layers,
        )
        for i, layer in enumerate(both):
            usage = torch.rand(K, generator=torch.Generator().manual_seed(i)) * 5
            usage[3] = 0  # a code that was never used
            layer.codebook.cluster_usage.copy_(usage)
            layer.codebook.embed_sum.copy_(vectors(i, size, K)[0] * usage[:, None])
        z = vectors(7)
        codes = quantizer.encode(z.movedim(-1, 1))
        z_q = quantizer.decode(codes.movedim(0, 1)).movedim(1, -1)
        cases[name] = entry(_part(model, 'quantizer.'), z=z, z_q=z_q, codes=codes.movedim(0, -1))
    save('transformers', cases)


def _part(model, prefix, others=2):
    """The entries under a prefix, and a few others, since a whole model is what people have."""
    state = model.state_dict()
    kept = [name for name in state if name.startswith(prefix)]
    return {name: state[name] for name in [n for n in state if n not in kept][:others] + kept}


def codecs():
    # Read by both packages for sound files, which none are here; its build may not fit torch's.
    sys.modules.setdefault('torchaudio', unittest.mock.MagicMock())
    from dac.nn.quantize import ResidualVectorQuantize as Dac
    from encodec.quantization import ResidualVectorQuantizer
    from snac import SNAC

    cases = {}
    torch.manual_seed(0)
    module = ResidualVectorQuantizer(
        dimension=D, n_q=3, bins=K, kmeans_init=True, kmeans_iters=5, threshold_ema_dead_code=0
    )
    for step in range(3):
        module.train()(vectors(100 + step, D, 64).movedim(-1, 1), 50)
    state = {f'quantizer.{k}': v.clone() for k, v in module.state_dict().items()}

    def eval_encodec(z):
        codes = module.eval().encode(z.movedim(-1, 1), 50)
        return module.decode(codes).movedim(1, -1), codes.movedim(0, -1)

    z, train_z = vectors(1), vectors(2, D, 24)
    z_q, codes = eval_encodec(z)
    module.train()(train_z.movedim(-1, 1), 50)
    after_z_q, after_codes = eval_encodec(z)
    cases['encodec'] = entry(
        state, z=z, z_q=z_q, codes=codes, train_z=train_z, after_z_q=after_z_q,
        after_codes=after_codes,
    )  # fmt: skip

    for name, dims in (('dac', SMALL), ('dac_sizes', [4, 3, 2])):
        torch.manual_seed(0)
        module = Dac(input_dim=D, n_codebooks=3, codebook_size=K, codebook_dim=dims).eval()
        state = {f'quantizer.{k}': v for k, v in module.state_dict().items()}
        z = vectors(3)
        z_q, codes, _, commitment, codebook = module(z.movedim(-1, 1))
        cases[name] = entry(
            state, z=z, z_q=z_q.movedim(1, -1), codes=codes.movedim(1, -1),
            commitment=commitment, codebook=codebook,
        )  # fmt: skip

    for name, strides in (('snac', [4, 2, 1]), ('snac_four', [8, 4, 2, 1])):
        torch.manual_seed(0)
        model = SNAC(
            encoder_dim=2, encoder_rates=[2, 2], decoder_dim=4, decoder_rates=[2, 2],
            attn_window_size=None, codebook_size=K, codebook_dim=SMALL, vq_strides=strides,
            latent_dim=D,
        ).eval()  # fmt: skip
        z = vectors(4, D, 3 * strides[0])
        z_q, codes = model.quantizer(z.movedim(-1, 1))
        keys = model.state_dict()
        state = {
            k: v
            for k, v in keys.items()
            if k.startswith('quantizer.') or (k.startswith('encoder.block.1.') and 'weight' in k)
        }
        codes = {f'codes_{i}': stage for i, stage in enumerate(codes)}
        told = {'strides': strides}
        cases[name] = entry(state, told, z=z, z_q=z_q.movedim(1, -1), **codes)
    save('codecs', cases)


def images():
    from diffusers import VQModel

    torch.manual_seed(0)
    model = VQModel(
        block_out_channels=(4,), latent_channels=3, num_vq_embeddings=K, norm_num_groups=2,
        vq_embed_dim=SMALL, layers_per_block=1,
    ).eval()  # fmt: skip
    model.quantize.embedding.weight.data.normal_()
    z = torch.randn(2, 3, 4, 4)
    quantized, _, (_, _, codes) = model.quantize(model.quant_conv(z))
    z_q = model.post_quant_conv(quantized)
    state = _part(model, ('quantize.', 'quant_conv.', 'post_quant_conv.'))
    vqgan = entry(
        state, {'legacy': False}, z=z.movedim(1, -1), z_q=z_q.movedim(1, -1),
        codes=codes.reshape(2, 4, 4),
    )  # fmt: skip
    with torch.enable_grad():
        found = var()
    save('images', {'vqgan': vqgan, 'var': found})


def var():
    """PyTorch's interpolate and conv2d in the order of FoundationVision/VAR's VectorQuantizer2."""
    import torch.nn.functional as F

    torch.manual_seed(0)
    scales, ratio, beta = (1, 2, 3, 5), 0.5, 0.25
    codebook = torch.randn(K, D, requires_grad=True)
    phis = [torch.nn.Conv2d(D, D, 3, padding=1) for _ in range(2)]
    z = torch.randn(2, D, 5, 5, requires_grad=True)
    fixed, left, total, loss, codes = z.detach(), z.detach().clone(), 0.0, 0.0, []
    for k, size in enumerate(scales):
        means = F.interpolate(left, size=(size, size), mode='area') if size < 5 else left
        found = torch.cdist(means.permute(0, 2, 3, 1).reshape(1, -1, D), codebook[None]).argmin(-1)
        codes.append(found.reshape(2, -1))
        grown = F.embedding(found.reshape(2, size, size), codebook).permute(0, 3, 1, 2)
        if size < 5:
            grown = F.interpolate(grown, size=(5, 5), mode='bicubic')
        ticks = np.linspace(1 / 2 / len(phis), 1 - 1 / 2 / len(phis), len(phis))
        phi = phis[np.argmin(np.abs(ticks - k / (len(scales) - 1)))]
        grown = grown * (1 - ratio) + phi(grown) * ratio
        total = total + grown
        left = left - grown.detach()
        loss = loss + beta * F.mse_loss(total.detach(), z) + F.mse_loss(total, fixed)
    loss = loss / len(scales)
    grads = torch.autograd.grad(loss, [codebook, z, phis[0].weight])
    state = {
        'quantize.embedding.weight': codebook,
        'quantize.ema_vocab_hit_SV': torch.zeros(len(scales), K),
    }
    for i, phi in enumerate(phis):
        for name, value in phi.state_dict().items():
            state[f'quantize.quant_resi.qresi_ls.{i}.{name}'] = value
    return entry(
        state, {'scales': scales}, z=z.movedim(1, -1), z_q=total.movedim(1, -1),
        codes=torch.cat(codes, -1), loss=loss, codebook_grad=grads[0],
        z_grad=grads[1].movedim(1, -1), phi_grad=grads[2],
    )  # fmt: skip


if __name__ == '__main__':
    torch.set_num_threads(1)
    with torch.no_grad():
        transformers()
        codecs()
    vector_quantize_pytorch()
    with torch.no_grad():
        images()
