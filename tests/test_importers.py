"""Checkpoints of other libraries give their codes and vectors, and train on as they did."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import golden

from vqjax import FSQ, VQEMA, Product, Projected, Residual, ops
from vqjax.importers import from_encodec, from_haiku, from_vector_quantize_pytorch


def torch_layer(codebook, counts, sums, stem='', started='initted'):
    """One layer's buffers, as a state dict of vector-quantize-pytorch names them."""
    names = {'cluster_size': counts, 'embed_avg': sums, 'embed': codebook}
    entries = {f'{stem}_codebook.{name}': np.asarray(x)[None] for name, x in names.items()}
    return {f'{stem}_codebook.{started}': np.asarray(True)} | entries


def random_layer(seed, num_codes=16, dim=8, scale=1.0):
    """A codebook with averages that belong to it, counts uneven."""
    rng = np.random.default_rng(seed)
    counts = rng.exponential(size=num_codes).astype(np.float32)
    codebook = (scale * rng.normal(size=(num_codes, dim))).astype(np.float32)
    total = counts.sum()
    smoothed = (counts + 1e-5) / (total + num_codes * 1e-5) * total
    return codebook, counts, (codebook * smoothed[:, None]).astype(np.float32)


def ulps(actual, expected):
    return np.max(np.abs(np.asarray(actual) - expected) / np.spacing(np.abs(expected)))


def nearest(z, codebook):
    return np.argmin(((z[..., None, :] - codebook) ** 2).sum(-1), axis=-1)


@pytest.mark.parametrize('name', ['ema', 'ema_slow', 'ema_cosine'])
def test_golden_checkpoints_quantize_and_train_on_as_in_torch(name):
    g = golden(name)
    metric = 'cosine' if 'cosine' in name else 'euclidean'
    settings = {'metric': metric, 'decay': float(g['decay']), 'eps': float(g['eps'])}

    def load(step):
        layer = torch_layer(g['codebook'][step], g['counts'][step], g['sums'][step])
        return from_vector_quantize_pytorch(layer, **settings)

    q, params, state = load(-1)
    assert q.metric == metric and q.num_codes == len(g['codebook0'])
    np.testing.assert_array_equal(state.counts, g['counts'][-1])
    assert ulps(q.read_codebook(params, state), g['codebook'][-1]) <= (4 if 'cosine' in name else 1)
    out = q.quantize(params, state, jnp.asarray(g['eval_z']))
    np.testing.assert_array_equal(out.codes, g['eval_codes'])
    np.testing.assert_allclose(out.z_q, g['eval_z_q'], atol=1e-6)
    # A checkpoint of step 2, trained on, arrives at the checkpoint of step 3.
    q, params, state = load(2)
    z = jnp.asarray(g['z'][3])
    out = q.quantize(params, state, z)
    np.testing.assert_array_equal(out.codes, g['codes'][3])
    state = q.update(params, state, z, out.codes)
    np.testing.assert_allclose(state.counts, g['counts'][3], rtol=1e-5)
    np.testing.assert_allclose(state.sums, g['sums'][3], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(q.read_codebook(params, state), g['codebook'][3], atol=1e-5)


def test_golden_residual_checkpoint():
    g = golden('residual')
    layers = {}
    for i, codebook in enumerate(g['codebook'][-1]):
        layers |= torch_layer(codebook, np.ones(len(codebook)), codebook, f'layers.{i}.')
    q, params, state = from_vector_quantize_pytorch(layers)
    out = q.quantize(params, state, jnp.asarray(g['eval_z']))
    np.testing.assert_array_equal(out.codes, g['eval_codes'])
    np.testing.assert_allclose(out.z_q, g['eval_z_q'], atol=1e-6)


@pytest.mark.parametrize('symmetric', [False, True])
def test_golden_fsq_checkpoint(symmetric):
    g = golden('fsq_8x5x5x5' + ('_symmetric' if symmetric else ''))
    q, params, state = from_vector_quantize_pytorch({}, levels=g['levels'], symmetric=symmetric)
    out = q.quantize(params, state, jnp.asarray(g['z']))
    np.testing.assert_array_equal(out.codes, g['codes'])
    np.testing.assert_allclose(out.z_q, g['z_q'], atol=1e-6)


def test_one_layer_of_a_larger_model():
    codebook, counts, sums = random_layer(0)
    layer = {f'bottleneck.vq.{k}': v for k, v in torch_layer(codebook, counts, sums).items()}
    model = layer | {'encoder.weight': np.zeros(3)}
    q, params, state = from_vector_quantize_pytorch(model, prefix='bottleneck.vq.', decay=0.9)
    assert q == VQEMA(16, decay=0.9, commitment=1.0, revival=None)
    z = np.random.default_rng(1).normal(size=(5, 7, 8)).astype(np.float32)
    out = q.quantize(params, state, jnp.asarray(z))
    np.testing.assert_array_equal(out.codes, nearest(z, codebook))
    assert ulps(out.z_q, codebook[nearest(z, codebook)]) <= 1


def test_averages_that_contradict_the_codebook_give_way_to_it():
    # After k-means encodec leaves the sums at the codebook, without the counts.
    codebook, counts, _ = random_layer(2)
    q, params, state = from_vector_quantize_pytorch(torch_layer(codebook, 50 * counts, codebook))
    assert ulps(q.read_codebook(params, state), codebook) <= 1
    z = jnp.asarray(codebook + 0.01)
    moved = q.update(params, state, z, q.quantize(params, state, z).codes)
    change = np.abs(np.asarray(q.read_codebook(params, moved)) - codebook)
    assert change.max() <= 0.0101


def test_an_unused_code_keeps_its_place_when_training_goes_on():
    codebook, counts, sums = random_layer(3)
    counts[4] = 0
    q, params, state = from_vector_quantize_pytorch(torch_layer(codebook, counts, sums))
    z = jnp.asarray(np.delete(codebook, 4, axis=0))
    for _ in range(20):
        state = q.update(params, state, z, q.quantize(params, state, z).codes)
    moved = np.asarray(q.read_codebook(params, state))[4]
    assert np.linalg.norm(moved) <= 1.001 * np.linalg.norm(codebook[4])


@pytest.mark.parametrize('shared', [False, True])
def test_heads(shared):
    books = [random_layer(seed) for seed in range(1 if shared else 2)]
    stacked = [
        np.concatenate([np.asarray(x)[None] for x in arrays]) for arrays in zip(*books, strict=True)
    ]
    layer = {k: v[0] if v.ndim else v for k, v in torch_layer(*stacked).items()}
    q, params, state = from_vector_quantize_pytorch(layer, heads=2)
    assert isinstance(q, Product) and q.shared == shared
    z = np.random.default_rng(4).normal(size=(9, 16)).astype(np.float32)
    expected = [nearest(z[:, 8 * h : 8 * h + 8], books[-h if shared else h][0]) for h in (0, 1)]
    codes = q.quantize(params, state, jnp.asarray(z)).codes
    np.testing.assert_array_equal(codes, np.stack(expected, -1))


def test_layers_of_one_codebook_become_a_shared_residual():
    codebook, counts, sums = random_layer(5)
    layers = {}
    for i in range(3):
        layers |= torch_layer(codebook, counts, sums, f'layers.{i}.')
    q, params, state = from_vector_quantize_pytorch(layers)
    assert q.shared and q.num_stages == 3 and state.counts.shape == (16,)
    z = residual = np.random.default_rng(6).normal(size=(40, 8)).astype(np.float32)
    for stage in range(3):
        codes = nearest(residual, codebook)
        np.testing.assert_array_equal(q.quantize(params, state, z).codes[:, stage], codes)
        residual = residual - codebook[codes]


def test_projections_with_and_without_bias():
    rng = np.random.default_rng(7)
    kernels = {
        'project_in.weight': rng.normal(size=(4, 10)).astype(np.float32),
        'project_out.weight': rng.normal(size=(10, 4)).astype(np.float32),
    }
    biases = {
        'project_in.bias': rng.normal(size=4).astype(np.float32),
        'project_out.bias': rng.normal(size=10).astype(np.float32),
    }
    z = rng.normal(size=(30, 10)).astype(np.float32)
    for entries in (kernels, kernels | biases):
        q, params, state = from_vector_quantize_pytorch(entries, levels=[8, 5, 5, 5])
        assert q == Projected(FSQ((8, 5, 5, 5)), 4, bias='project_in.bias' in entries)
        before, after = (entries.get(f'project_{end}.bias', 0) for end in ('in', 'out'))
        x = z @ kernels['project_in.weight'].T + before
        plain = FSQ((8, 5, 5, 5)).quantize((), (), jnp.asarray(x))
        out = q.quantize(params, state, jnp.asarray(z))
        np.testing.assert_array_equal(out.codes, plain.codes)
        expected = np.asarray(plain.z_q) @ kernels['project_out.weight'].T + after
        np.testing.assert_allclose(out.z_q, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(q.decode(params, state, jnp.array([-1])), np.zeros((1, 10)))


def test_encodec():
    books = [random_layer(seed, scale=1 / (1 + seed)) for seed in range(4)]
    model = {'encoder.model.0.weight': np.zeros(2)}
    for i, (codebook, counts, sums) in enumerate(books):
        layer = torch_layer(codebook, counts, sums, f'quantizer.vq.layers.{i}.', 'inited')
        model |= {k: v[0] if v.ndim > 1 else v for k, v in layer.items()}
    q, params, state = from_encodec(model)
    assert q == Residual(VQEMA(16, commitment=1.0, revival=None), 4)
    z = residual = np.random.default_rng(8).normal(size=(2, 20, 8)).astype(np.float32)
    out = q.quantize(params, state, jnp.asarray(z))
    total = np.zeros_like(z)
    for stage, (codebook, _, _) in enumerate(books):
        codes = nearest(residual, codebook)
        np.testing.assert_array_equal(out.codes[..., stage], codes)
        total, residual = total + codebook[codes], residual - codebook[codes]
    np.testing.assert_allclose(out.z_q, total, atol=1e-6)
    # A lower bandwidth: the first two stages only.
    first = books[0][0][out.codes[..., 0]] + books[1][0][out.codes[..., 1]]
    np.testing.assert_allclose(q.decode(params, state, out.codes[..., :2]), first, atol=1e-6)
    two, few_params, few_state = q.first_stages(2, params, state)
    np.testing.assert_allclose(two.quantize(few_params, few_state, z).z_q, first, atol=1e-6)


def haiku_state(
    hidden_counts, hidden_sums, decay, step, eps=1e-5, name='net/~/vector_quantizer_ema'
):
    """The state that haiku 0.0.17 has after `step` steps with these plain averages."""
    unbias = 1 - decay**step
    counts, sums = hidden_counts / unbias, hidden_sums / unbias
    total = counts.sum()
    smoothed = (counts + eps) / (total + len(counts) * eps) * total
    return {
        name: {'embeddings': (sums / smoothed[:, None]).T},
        f'{name}/~/ema_cluster_size': {
            'average': counts, 'hidden': hidden_counts, 'counter': np.int32(step),
        },
        f'{name}/~/ema_dw': {
            'average': sums.T, 'hidden': hidden_sums.T, 'counter': np.int32(step),
        },
    }  # fmt: skip


def test_haiku_trains_on_as_its_debiased_averages_do():
    decay, rng = 0.9, np.random.default_rng(9)
    counts, sums = np.zeros(16, np.float32), np.zeros((16, 8), np.float32)
    codebook = rng.normal(size=(16, 8)).astype(np.float32)
    for step in range(1, 9):
        z = rng.normal(size=(64, 8)).astype(np.float32)
        if step == 4:
            q, params, state = from_haiku(haiku_state(counts, sums, decay, 3), decay=decay)
            assert int(state.step) == 3
            assert ulps(q.read_codebook(params, state), codebook) <= 1
            np.testing.assert_array_equal(state.counts, np.where(counts > 0, counts, 1e-5))
        codes = nearest(z, codebook)
        if step >= 4:
            out = q.quantize(params, state, jnp.asarray(z))
            np.testing.assert_array_equal(out.codes, codes)
            state = q.update(params, state, jnp.asarray(z), out.codes)
        one_hot = np.eye(16, dtype=np.float32)[codes]
        counts = decay * counts + (1 - decay) * one_hot.sum(0)
        sums = decay * sums + (1 - decay) * one_hot.T @ z
        after = haiku_state(counts, sums, decay, step)
        codebook = after['net/~/vector_quantizer_ema']['embeddings'].T.astype(np.float32)
    np.testing.assert_allclose(q.read_codebook(params, state), codebook, atol=2e-4)


def test_imports_run_under_jit_and_can_get_revival():
    codebook, counts, sums = random_layer(10)
    q, params, state = from_vector_quantize_pytorch(torch_layer(codebook, counts, sums))
    revived = dataclasses.replace(q, revival=ops.Revival())
    assert revived.revival == ops.Revival() and revived.num_codes == 16
    z = jnp.asarray(codebook)
    np.testing.assert_array_equal(
        jax.jit(q.quantize)(params, state, z).z_q, q.quantize(params, state, z).z_q
    )


def broken(change):
    layer = torch_layer(*random_layer(11))
    change(layer)
    return layer


@pytest.mark.parametrize(
    'entries, message',
    [
        (broken(lambda d: d.pop('_codebook.embed')), "missing ['_codebook.embed']"),
        (broken(lambda d: d.update(extra=0)), "unknown ['extra']"),
        (broken(lambda d: d.update({'_codebook.initted': False})), 'never initialised'),
        (broken(lambda d: d['_codebook.embed'].fill(np.nan)), 'not finite'),
        (broken(lambda d: d.update({'_codebook.cluster_size': np.ones((1, 3))})), 'fit together'),
        ({}, "missing ['_codebook.initted', '_codebook.cluster_size'"),
        (
            {'layers.0._codebook.embed': 0, 'layers.2._codebook.embed': 0},
            "unknown ['layers.2._codebook.embed']",
        ),
    ],
)
def test_entries_that_do_not_fit_are_named(entries, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        from_vector_quantize_pytorch(entries)


def projected_layer(dim=8, features=12, **changes):
    """A layer whose codebook has 8 features, between projections."""
    weights = {
        'project_in.weight': np.ones((dim, features), np.float32),
        'project_out.weight': np.ones((features, dim), np.float32),
    }
    return torch_layer(*random_layer(11)) | weights | changes


SIZE, EMBED, AVERAGE = (f'_codebook.{name}' for name in ('cluster_size', 'embed', 'embed_avg'))
FULL = np.float32(3e38)


@pytest.mark.parametrize(
    'entries, message',
    [
        (projected_layer(dim=7), 'vq.project_in.weight (7, 12) projects to 7 features, but the co'),
        (projected_layer(**{'project_out.weight': np.ones((8, 12))}), 'do not fit together'),
        (projected_layer(**{'project_in.weight': np.ones(8)}), 'need [dim, D] and [D, dim]'),
        (
            projected_layer(**{'project_out.weight': np.full((12, 8), np.nan)}),
            'vq.project_out.weight holds values that are not finite',
        ),
        (projected_layer(**{'project_in.bias': 'none'}), 'vq.project_in.bias must be an array of'),
        (broken(lambda d: d[SIZE].fill(FULL)), f'vq.{SIZE} sums to 4.8e+39'),
        (broken(lambda d: d[SIZE].fill(-1)), f'vq.{SIZE} holds -1.0: it counts'),
        (broken(lambda d: d.update({SIZE: np.full((1, 16), 1e39)})), f'vq.{SIZE} holds values tha'),
        (broken(lambda d: d[AVERAGE].fill(np.inf)), f'vq.{AVERAGE} holds values that are not fin'),
        (broken(lambda d: d.update({EMBED: np.ones(16)})), f'vq.{EMBED} (16,)'),
        (broken(lambda d: d.update({EMBED: None})), f'vq.{EMBED} must be an array of numbers, got'),
        (broken(lambda d: d.update({EMBED: [[1], [2, 3]]})), f'vq.{EMBED} must be an array of num'),
        (broken(lambda d: d.update({EMBED: {}})), f'vq.{EMBED} must be an array of numbers, got'),
        (
            broken(lambda d: d.update({SIZE: np.ones((1, 0)), EMBED: np.ones((1, 0, 8))})),
            'do not fit together',
        ),
    ],
)
def test_values_that_cannot_be_used_are_named(entries, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        from_vector_quantize_pytorch({f'vq.{k}': v for k, v in entries.items()}, prefix='vq.')


def test_what_is_no_state_dict_is_one_sentence():
    layer = torch_layer(*random_layer(11))
    for call, message in (
        (lambda: from_vector_quantize_pytorch(layer | {3: 0}), 'names as keys, got 3'),
        (lambda: from_vector_quantize_pytorch([layer]), 'must be a mapping of arrays, got list'),
        (lambda: from_vector_quantize_pytorch(layer, heads=0), 'heads must be an integer'),
        (lambda: from_vector_quantize_pytorch({}, levels=8), 'levels must be a list'),
        (lambda: from_encodec({0: np.ones(3)}), 'names as keys, got 0'),
        (lambda: from_haiku([layer]), 'state must be a mapping of modules, got list'),
        (lambda: from_haiku({0: {}}), 'see 0'),
        (lambda: from_haiku({'a': np.ones(3)}), "see 'a'"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    counts, sums = np.ones(4, np.float32), np.ones((4, 2), np.float32)
    for variable, value in (
        ('a/~/ema_cluster_size', {'counter': np.ones(2)}),
        ('a/~/ema_cluster_size', {'counter': np.nan}),
        ('a/~/ema_cluster_size', {'hidden': np.full(4, FULL)}),
        ('a/~/ema_dw', {'hidden': np.ones(4)}),
        ('a', {'embeddings': np.ones((2, 2, 4))}),
    ):
        state = haiku_state(counts, sums, 0.9, 1, name='a')
        state[variable] = state[variable] | value
        name = f'{variable}/{next(iter(value))}'.replace('/~', '')
        with pytest.raises(ValueError, match=name):
            from_haiku(state)


def test_both_sides_are_listed():
    with pytest.raises(ValueError) as error:
        from_encodec({'quantizer.vq.layers.0._codebook.embeds': np.zeros(3)})
    assert "expected ['layers.0._codebook.inited'" in str(error.value)
    assert "found ['layers.0._codebook.embeds']" in str(error.value)
    with pytest.raises(ValueError, match=r"no key starts with 'quantizer\.vq\.'.*'decoder\.w'"):
        from_encodec({'decoder.w': np.zeros(3)})
    state = haiku_state(np.ones(4, np.float32), np.ones((4, 2), np.float32), 0.9, 1, name='a')
    with pytest.raises(ValueError, match=r"\['b'\] alone has 'embeddings'"):
        from_haiku({'b': {'c': np.zeros(1)}})
    del state['a/~/ema_dw']
    with pytest.raises(ValueError, match=r"missing \['ema_dw/counter', 'ema_dw/hidden'"):
        from_haiku(state)
