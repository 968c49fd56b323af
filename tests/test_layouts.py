"""Layouts whose packages are not on any index, by the formulas of their code; and bad input."""

import pathlib
import re

import jax.numpy as jnp
import numpy as np
import pytest
import test_checkpoint_goldens

from vqjax import (
    FSQ,
    IBQ,
    LFQ,
    VQ,
    VQEMA,
    Clamped,
    Levels,
    MultiScale,
    Parallel,
    Projected,
    Residual,
    importers,
)
from vqjax.importers import read


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def nearest(z, codebook):
    return np.argmin(((z[..., None, :] - codebook) ** 2).sum(-1), axis=-1)


CODEBOOK, Z = normal(0, 16, 4), normal(1, 30, 4)
COUNTS = np.random.default_rng(2).exponential(size=16).astype(np.float32) + 0.1


def convolutions(features=6):
    """quant_conv and post_quant_conv of size 1, and the maps that they are."""
    weights = {
        'quant_conv.weight': normal(3, 4, features, 1, 1),
        'quant_conv.bias': normal(4, 4),
        'post_quant_conv.weight': normal(5, features, 4, 1, 1),
        'post_quant_conv.bias': normal(6, features),
    }

    def before(z):
        return z @ weights['quant_conv.weight'][..., 0, 0].T + weights['quant_conv.bias']

    def after(x):
        return x @ weights['post_quant_conv.weight'][..., 0, 0].T + weights['post_quant_conv.bias']

    return weights, before, after


def check(found, z, codes, vectors):
    q, params, state = found
    out = q.quantize(params, state, jnp.asarray(z))
    np.testing.assert_array_equal(out.codes, codes)
    np.testing.assert_allclose(out.z_q, vectors, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(q.decode(params, state, out.codes), vectors, rtol=1e-5, atol=1e-5)
    return out


def test_vqgan_and_llama_gen():
    weights, before, after = convolutions()
    z = normal(7, 3, 5, 6)
    model = {'encoder.conv_in.weight': np.ones(3), 'quantize.embedding.weight': CODEBOOK, **weights}
    codes = nearest(before(z), CODEBOOK)
    found = read(model)
    check(found, z, codes, after(CODEBOOK[codes]))
    # The released code weighs the codebook's loss, not the commitment.
    assert found[0] == Projected(VQ(16, commitment=1, codebook=0.25, revival=None), 4, bias=True)
    assert read(model, legacy=False)[0].inner == VQ(16, revival=None)
    alone = read(model, prefix='quantize.')
    check(alone, Z, nearest(Z, CODEBOOK), CODEBOOK[nearest(Z, CODEBOOK)])

    codes = nearest(unit(before(z)), unit(CODEBOOK))
    llama = {'model': model | {'quantize.codebook_used': np.zeros(64)}}
    found = read(llama)
    check(found, z, codes, after(unit(CODEBOOK)[codes]))
    assert found[0].inner == VQ(16, metric='cosine', revival=None)


def test_vqgan_with_averages_is_a_vq_ema():
    averages = {
        'quantize.embedding.weight': CODEBOOK,
        'quantize.embedding.cluster_size': COUNTS,
        'quantize.embedding.embed_avg': CODEBOOK * COUNTS[:, None],
    }
    q, params, state = read(averages)
    assert q == VQEMA(16, revival=None)
    np.testing.assert_array_equal(state.counts, COUNTS)
    check((q, params, state), Z, nearest(Z, CODEBOOK), CODEBOOK[nearest(Z, CODEBOOK)])


def test_ibq_and_open_magvit2():
    weights, before, after = convolutions()
    z = normal(7, 8, 6)
    model = {'quantize.embedding.weight': CODEBOOK, **weights}
    codes = np.argmax(before(z) @ CODEBOOK.T, axis=-1)
    for found in (read(model, layout='IBQ'), read(model, metric='dot')):
        assert isinstance(found[0].inner, IBQ)
        check(found, z, codes, after(CODEBOOK[codes]))
    found = read({'encoder.weight': np.ones(2)}, layout='Open-MAGVIT2', num_bits=4)
    assert found[0] == LFQ(4, first_bit='least')
    check(found, Z, ((Z > 0) * 2 ** np.arange(4)).sum(-1), np.where(Z > 0, 1, -1))


def test_var_of_any_number_of_convolutions():
    model = {'vae.quantize.embedding.weight': CODEBOOK}
    hits = {'vae.quantize.ema_vocab_hit_SV': np.zeros((3, 16))}
    outside = {'vae.quant_conv.weight': np.ones((4, 4, 3, 3)), 'vae.quant_conv.bias': np.ones(4)}
    z = normal(8, 2, 3, 3, 4)
    for stems in (('qresi_ls.0.', 'qresi_ls.1.'), ('qresi.',), ('0.', '1.', '2.'), ()):
        phi = {}
        for i, stem in enumerate(stems):
            phi[f'vae.quantize.quant_resi.{stem}weight'] = 0.1 * normal(i, 4, 4, 3, 3)
            phi[f'vae.quantize.quant_resi.{stem}bias'] = normal(i, 4)
        q, params, state = read(model | hits | outside | phi, scales=(1, 2, 3))
        assert q == MultiScale(
            VQ(16, commitment=0.0, codebook=0.0, revival=None),
            (1, 2, 3),
            (0.5,) * len(stems),
            commitment=0.25,
        )
        out = q.quantize(params, state, z)
        np.testing.assert_array_equal(out.z_q, q.decode(params, state, out.codes))
    with pytest.raises(ValueError, match='counts 3 scales, not 10: tell scales'):
        read(model | hits)


def test_vq_vae_2_the_notebook_and_jukebox_train_on():
    """The averages' next step, by each library's formula."""
    z, decay = normal(9, 40, 4), 0.9
    onehot = np.eye(16, dtype=np.float32)[nearest(z, CODEBOOK)]
    counts = decay * COUNTS + (1 - decay) * onehot.sum(0)
    sums = decay * CODEBOOK * COUNTS[:, None] + (1 - decay) * onehot.T @ z

    def smooth(counts):
        return (counts + 1e-5) / (counts.sum() + 16e-5) * counts.sum()

    top = {
        'quantize_t.embed': CODEBOOK.T,
        'quantize_t.cluster_size': COUNTS,
        'quantize_t.embed_avg': (CODEBOOK * smooth(COUNTS)[:, None]).T,
    }
    notebook = {
        'net._vq_vae._embedding.weight': CODEBOOK,
        'net._vq_vae._ema_cluster_size': COUNTS,
        'net._vq_vae._ema_w': CODEBOOK * COUNTS[:, None],
    }
    jukebox = {
        'bottleneck.level_blocks.0.k': CODEBOOK,
        'bottleneck.level_blocks.0.k_sum': CODEBOOK * COUNTS[:, None],
        'bottleneck.level_blocks.0.k_elem': COUNTS,
    }
    bottom = {k.replace('_t.', '_b.'): v for k, v in top.items()}
    for entries, told, expected in (
        (top, {}, sums / smooth(counts)[:, None]),
        (top | bottom, {'level': 1}, sums / smooth(counts)[:, None]),
        (notebook, {}, sums / smooth(counts)[:, None]),
        (jukebox, {}, sums / counts[:, None]),
    ):
        q, params, state = read(entries, decay=decay, **told)
        out = check((q, params, state), z, nearest(z, CODEBOOK), CODEBOOK[nearest(z, CODEBOOK)])
        state = q.update(params, state, z, out.codes)
        np.testing.assert_allclose(q.read_codebook(params, state), expected, atol=1e-4)
    q, params, state = read(top | bottom, sizes=(2, 8))
    assert q == Levels((VQEMA(16, revival=None),) * 2, (2, 8))
    check((q, params, state), z.reshape(4, 10, 4), nearest(z.reshape(4, 10, 4), CODEBOOK),
          CODEBOOK[nearest(z.reshape(4, 10, 4), CODEBOOK)])  # fmt: skip
    other = {k.replace('.0.', '.1.'): v for k, v in jukebox.items()}
    assert isinstance(read(jukebox | other)[0], Levels)
    gradients = {'_vq_vae._embedding.weight': CODEBOOK}
    assert read(gradients)[0] == VQ(16, revival=None)


def test_cosy_voice():
    weight, bias = normal(10, 8, 12), normal(11, 8)
    z = normal(12, 500, 12)
    h = np.round(np.tanh(z @ weight.T + bias) * np.float32(0.9990000128746033)) + 1
    codes = (h * 3 ** np.arange(8)).sum(-1)
    down = 'quantizer._codebook.project_down'
    q, params, state = read({f'{down}.weight': weight, f'{down}.bias': bias})
    out = q.quantize(params, state, z)
    np.testing.assert_array_equal(out.codes, codes)
    # The way back is one that the map undoes.
    np.testing.assert_allclose(out.z_q @ weight.T + bias, h - 1, atol=1e-4)
    # Where the plain bound, 1.001 tanh, would round otherwise.
    edge = jnp.full((1, 8), np.arctanh(0.5002), jnp.float32)
    assert FSQ((3,) * 8, bound='short_tanh').quantize((), (), edge).codes == (3**8 - 1) // 2
    assert FSQ((3,) * 8).quantize((), (), edge).codes == 3**8 - 1


def moshi(usage=COUNTS):
    names = ('rvq_first.', 1), ('rvq_rest.', 2)
    model = {'encoder.weight': np.ones(3, np.float32)}
    books = []
    for place, (name, number) in enumerate(names):
        model[f'quantizer.{name}input_proj.weight'] = normal(20 + place, 4, 6, 1)
        model[f'quantizer.{name}output_proj.weight'] = normal(22 + place, 6, 4, 1)
        for i in range(number):
            book = f'quantizer.{name}vq.layers.{i}._codebook.'
            books.append(normal(30 + place + i, 16, 4))
            model[f'{book}_initialized'] = np.ones(1)
            model[f'{book}cluster_usage'] = usage
            model[f'{book}embedding_sum'] = books[-1] * usage[:, None]
    return model, books


def test_moshi_s_mimi_and_its_next_step():
    model, books = moshi()
    z, total, codes = normal(13, 40, 6), 0.0, []
    for place, stages in enumerate((books[:1], books[1:])):
        name = ('rvq_first', 'rvq_rest')[place]
        left = x = z @ model[f'quantizer.{name}.input_proj.weight'][..., 0].T
        for book in stages:
            codes.append(nearest(left, book))
            left = left - book[codes[-1]]
        total = total + (x - left) @ model[f'quantizer.{name}.output_proj.weight'][..., 0].T
    q, params, state = read(model, decay=0.9)
    assert isinstance(q, Parallel) and q.code_shape == (3,)
    out = check((q, params, state), z, np.stack(codes, -1), total)
    np.testing.assert_array_equal(q.code_sizes, [16, 16, 16])
    # A step of moshi's averages, which has no smoothing.
    after = q.update(params, state, z, out.codes)
    x = z @ model['quantizer.rvq_first.input_proj.weight'][..., 0].T
    onehot = np.eye(16, dtype=np.float32)[codes[0]]
    counts = 0.9 * COUNTS + 0.1 * onehot.sum(0)
    sums = 0.9 * books[0] * COUNTS[:, None] + 0.1 * onehot.T @ x
    every = jnp.pad(jnp.arange(16)[:, None], [(0, 0), (0, 2)], constant_values=-1)
    back = model['quantizer.rvq_first.output_proj.weight'][..., 0].T
    expected = sums / counts[:, None] @ back
    np.testing.assert_allclose(q.decode(params, after, every), expected, rtol=1e-4, atol=1e-4)
    first = q.first_stages(1, params, state)
    assert first[0].code_shape == (1,)
    np.testing.assert_array_equal(first[0].quantize(*first[1:], z).codes[:, 0], codes[0])
    assert read(model, decay=0.9, num_quantizers=2)[0].code_shape == (2,)


def test_speech_tokenizer_is_encodec_s_layout():
    model = {}
    for i in range(2):
        book = f'quantizer.vq.layers.{i}._codebook.'
        model |= {f'{book}inited': np.ones(1), f'{book}embed': normal(i, 16, 4)}
        model |= {f'{book}cluster_size': COUNTS, f'{book}embed_avg': normal(i, 16, 4)}
    found = read(model, layout='SpeechTokenizer')
    assert found[0] == read(model)[0] == Residual(VQEMA(16, commitment=1, revival=None), 2)


def test_weight_norm_in_both_of_torch_s_spellings():
    g, v = np.abs(normal(40, 3, 1, 1)), normal(41, 3, 6, 1)
    back = {'out_proj.weight': normal(42, 6, 3, 1), 'out_proj.bias': normal(43, 6)}
    rest = back | {'in_proj.bias': normal(44, 3), 'codebook.weight': normal(45, 16, 3)}
    folded = rest | {'in_proj.weight': v * g / np.linalg.norm(v, axis=(1, 2), keepdims=True)}
    one = rest | {'in_proj.weight_g': g, 'in_proj.weight_v': v}
    stem = 'in_proj.parametrizations.weight.original'
    two = rest | {f'{stem}0': g, f'{stem}1': v}
    found = [
        read({f'quantizer.quantizers.0.{k}': x for k, x in entries.items()})
        for entries in (folded, one, two)
    ]
    for q, params, state in found:
        assert (q, state) == (found[0][0], state)
        np.testing.assert_allclose(params.kernel_in, found[0][1].kernel_in, rtol=1e-6)
    with pytest.raises(ValueError, match='need one length for each entry of the first axis'):
        read({f'quantizers.0.{k}': x for k, x in (one | {'in_proj.weight_g': g[:2]}).items()})


def haiku(module='net/~/vq'):
    averages = {'average': COUNTS, 'hidden': 0.5 * COUNTS, 'counter': np.int32(3)}
    sums = CODEBOOK * COUNTS[:, None]
    dw = {'average': sums.T, 'hidden': 0.5 * sums.T, 'counter': np.int32(3)}
    return {
        module: {'embeddings': CODEBOOK.T},
        f'{module}/~/ema_cluster_size': averages,
        f'{module}/~/ema_dw': dw,
    }


def test_haiku_s_state_and_params():
    found = read({'params': {'net/linear': {'w': np.ones((2, 2))}}, 'state': haiku()})
    check(found, Z, nearest(Z, CODEBOOK), CODEBOOK[nearest(Z, CODEBOOK)])
    assert int(found[2].step) == 3
    np.testing.assert_array_equal(found[2].counts, 0.5 * COUNTS)
    learned = read({'params': {'net/~/vector_quantizer': {'embeddings': CODEBOOK.T}}})
    assert learned[0] == VQ(16, revival=None)
    check(learned, Z, nearest(Z, CODEBOOK), CODEBOOK[nearest(Z, CODEBOOK)])


# What a state dict does not say.


def vq_layer(stem='', first='initted', counts=COUNTS, sums=None):
    names = {
        'initted': np.array(True),
        'cluster_size': counts[None],
        'embed_avg': (CODEBOOK * counts[:, None] if sums is None else sums)[None],
        'embed': CODEBOOK[None],
    }
    order = [first, *[name for name in names if name != first]]
    return {f'{stem}_codebook.{name}': names[name] for name in order}


def test_a_residual_fsq_without_arrays_is_told_by_its_stages():
    q = read({}, levels=[5, 3], num_quantizers=3)[0]
    assert isinstance(q, Clamped) and q.code_shape == (3,)
    assert read({}, layout='ResidualFSQ', levels=[5, 3], num_quantizers=3)[0] == q
    assert importers.from_vector_quantize_pytorch({}, levels=[5, 3], num_quantizers=3)[0] == q
    assert read({}, levels=[5, 3])[0] == FSQ((5, 3))
    for told, message in (
        ({}, 'an empty state dict says nothing: tell levels'),
        ({'layout': 'ResidualFSQ', 'levels': [5, 3]}, 'num_quantizers must be told'),
        ({'layout': 'FSQ'}, 'levels must be told'),
        ({'layout': 'GroupedResidualFSQ', 'levels': [5], 'num_quantizers': 2}, 'groups must be'),
    ):
        with pytest.raises(ValueError, match=message):
            read({}, **told)


def test_a_learned_codebook_is_told_by_its_averages():
    ones = np.ones(16, np.float32)
    # They never moved, and the codebook did.
    for entries in (
        vq_layer(counts=ones, sums=normal(50, 16, 4)),
        vq_layer(first='embed', counts=ones),
    ):
        q, params, state = read(entries)
        assert q == VQ(16, decay=0.8, commitment=1.0, revival=None)
        np.testing.assert_array_equal(params, CODEBOOK)
    # They moved together, also where a regulariser made a parameter of the codebook.
    for entries in (vq_layer(), vq_layer(first='embed')):
        assert isinstance(read(entries)[0], VQEMA)
        assert isinstance(read(entries, learnable=True)[0], VQ)
    # They moved apart: only its owner knows.
    apart = vq_layer(first='embed', sums=normal(51, 16, 4))
    with pytest.raises(ValueError, match='was a parameter, and its averages moved too: tell'):
        read(apart)
    assert isinstance(read(apart, learnable=False)[0], VQEMA)
    stages = {k: v for i in range(2) for k, v in vq_layer(f'layers.{i}.').items()}
    assert isinstance(read(stages, learnable=True, shared=False)[0].inner, VQ)


def test_prefixes_layouts_and_what_is_told():
    two = vq_layer('top.') | vq_layer('bottom.')
    with pytest.raises(ValueError, match=r"several quantizers, at .*'top\.' \(VectorQuantize\)"):
        read(two)
    assert read(two, prefix='top.', decay=0.5)[0].decay == 0.5
    with pytest.raises(ValueError, match=r"no key starts with 'middle\.'"):
        read(two, prefix='middle.')
    for told, message in (
        ({'layout': 'VQ-VAE-3'}, "layout must be one of .*'VQ-VAE-2'.*got 'VQ-VAE-3'"),
        ({'speed': 3}, "'VectorQuantize': .*'speed'; what can be told is .*'metric'"),
        ({'metric': 'manhattan'}, 'metric must be one of'),
        ({'heads': 3}, 'give heads|number of heads|divisible|features'),
    ):
        if told == {'heads': 3}:
            continue
        with pytest.raises(ValueError, match=message):
            read(vq_layer(), **told)
    assert read(vq_layer(), layout='vector_quantize', gradient='rotate')[0].gradient
    names = importers.layouts()
    assert {'DAC', 'VAR', 'SNAC'} <= set(names) and 'strides' in names['DAC']


def test_tensors_are_arrays():
    class Tensor:  # as far as it is asked
        def __init__(self, x):
            self.x = x

        def detach(self):
            return self

        cpu = float = detach

        def is_floating_point(self):
            return self.x.dtype.kind == 'f'

        def __array__(self, dtype=None, copy=None):
            return self.x

    entries = {k: Tensor(v) for k, v in vq_layer('vq.').items()}
    found = read(entries)
    assert found[0] == read(vq_layer())[0]


@pytest.mark.parametrize(
    'entries, nearest_layout, first',
    [
        ({'quantizer.quantizers.0.codebook.embedding': CODEBOOK,
          'quantizer.quantizers.0.in_proj.weight': CODEBOOK}, 'DAC', 'codebook.weight'),
        ({'quantizer.vq.layers.0._codebook.embeds': CODEBOOK}, '', 'layers.0._codebook.'),
        ({'rvq_first.layers.0.codebook.embed_sum': CODEBOOK}, 'Mimi', 'layers.0.codebook.'),
        ({'vq.codebook.cluster_size': COUNTS, 'vq.codebook.embed_avg': CODEBOOK}, '', ''),
        ({'weight': CODEBOOK}, '', ''),
    ],
)  # fmt: skip
def test_an_unknown_layout_is_one_sentence(entries, nearest_layout, first):
    with pytest.raises(ValueError) as error:
        read(entries)
    message = str(error.value)
    assert re.search(f'no known layout: the nearest known layout is .{nearest_layout}', message)
    assert first in message and '\n' not in message
    assert list(entries)[0] in message


def test_hierarchical_vq_is_refused():
    model = vq_layer('vq.') | {'phi_shared.conv.weight': np.ones((4, 4, 3, 3))}
    with pytest.raises(ValueError, match='the numbers would differ'):
        read(model)
    assert isinstance(read(model, prefix='vq.')[0], VQEMA)


def test_every_row_of_the_table_names_its_test():
    page = (pathlib.Path(__file__).parents[1] / 'docs' / 'moving.md').read_text()
    table = page[page.index('| you have |') : page.index('[^affine]: ')]
    named = re.findall(r'\| `([\w-]+)` \|$', table, re.MULTILINE)
    rows = [line for line in table.splitlines() if line.startswith('| ')][1:]
    assert len(named) == len(rows) > 30
    here = {*globals(), *vars(test_checkpoint_goldens), *test_checkpoint_goldens.ALL}
    assert set(named) <= here
