"""MultiScale against its algorithm in float64 and PyTorch's arrays, and what only grids have."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec
from support import golden, golden_case

from vqjax import (
    FSQ,
    LFQ,
    VQEMA,
    GumbelSoftmax,
    MultiScale,
    Product,
    Projected,
    Residual,
    SimVQ,
    ops,
)
from vqjax import nnx as vq_nnx
from vqjax.quantizers import MultiScaleParams, RandomProjection, VQEMAState, shardings

SCALES = (1, (2, 3), (3, 4), (5, 5), (6, 8))


def close(actual, expected, tolerance=1e-5):
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=tolerance, atol=tolerance)


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def from_golden(g, scales, phi):
    """The quantizer with a golden's codebook, kernels and biases: (q, params, state)."""
    q = MultiScale(VQEMA(len(g['codebook']), revival=None), scales, phi)
    state = VQEMAState(jnp.ones(q.num_codes), jnp.asarray(g['codebook']), jnp.zeros((), jnp.int32))
    kernels = jnp.asarray(g['kernels' if 'kernels' in g else 'kernel'])
    biases = jnp.asarray(g['biases' if 'biases' in g else 'bias'])
    shape = (len(phi), *kernels.shape[-4:])
    return q, MultiScaleParams(kernels.reshape(shape), biases.reshape(len(phi), -1), ()), state


# PyTorch's arrays.


@pytest.mark.parametrize(
    'enlarge, grid, size',
    [
        (ops.bicubic, (2, 3), (4, 6)),
        (ops.bicubic, (5, 5), (7, 16)),
        (ops.bicubic, (4, 6), (4, 6)),
        (ops.multilinear, (1, 3, 2), (2, 3, 4)),
    ],
)
def test_convolving_on_the_small_grid_is_convolving_what_was_made_larger(enlarge, grid, size):
    z, kernel = normal(0, 2, 3, *grid, 5), normal(1, *(3,) * len(size), 5, 7)
    large = enlarge(z, size).reshape(-1, *size, 5)
    highest = jax.lax.Precision.HIGHEST
    expected = ops.convolve(large, kernel, (1,) * len(size), 'SAME', precision=highest)
    found = ops.convolve_enlarged(enlarge, z, kernel, size)
    close(found, expected.reshape(found.shape))


@pytest.mark.parametrize('kernel', [(1, 1, 5, 7), (5, 5, 5, 7), (3, 3, 4, 7), (3, 5, 7)])
@pytest.mark.parametrize('size', [(2, 3), (4, 6)])
def test_convolving_refuses_kernels_of_another_shape(kernel, size):
    with pytest.raises(ValueError, match=r'kernel must be \[3, 3, 5, F\]'):
        ops.convolve_enlarged(ops.bicubic, normal(0, 2, 2, 3, 5), jnp.zeros(kernel), size)


def test_codes_sums_and_gradients_are_those_of_var():
    """PyTorch 2.13's interpolate and conv2d in the order of FoundationVision/VAR models/quant.py.

    Four convolutions for five scales, grids that do not divide each other.
    """
    g = golden('multi_scale')
    scales = tuple(map(tuple, g['scales'].tolist()))
    q, params, state = from_golden(g, scales, (float(g['ratio']),) * 4)

    def loss(params):
        out = q.quantize(params, state, jnp.asarray(g['z']))
        return jnp.mean(out.losses['phi']), out

    (value, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert (np.asarray(out.codes) == g['codes']).all()
    close(out.z_q, g['sums'][-1])
    close(value, g['phi_loss'])
    close(grads.kernels, g['kernels_grad'])
    close(grads.biases, g['biases_grad'])
    close(q.next_inputs(params, state, out.codes), g['next_inputs'])
    for n, expected in enumerate(g['sums']):
        close(q.decode_scales(params, state, out.codes, n + 1), expected)


def test_masks_and_commitment_are_those_of_hierarchical_vq():
    """vector-quantize-pytorch 1.32.0 with a mask, its codebook kept from moving between scales.

    It makes grids larger bilinearly, which from one place is the same.
    """
    g = golden('hierarchical')
    q, params, state = from_golden(g, (1, (6, 8)), (0.5,))
    out = q.quantize(params, state, jnp.asarray(g['z']), mask=jnp.asarray(g['mask']))
    assert (np.asarray(out.codes) == g['codes']).all()
    close(out.z_q, g['z_q'])
    close(jnp.mean(out.losses['commitment']) * 0.25, g['commitment'])


def test_videos_and_a_codebook_a_scale_are_those_of_hierarchical_vq():
    """A training step on masked 3-D grids: codes, sum, loss, and the averages of each scale."""
    g = golden_case('codebooks', 'scales_of_videos')
    scales = tuple(map(tuple, g['scales'].tolist()))
    books = [jnp.asarray(g[f'codebook{k}']) for k in range(3)]
    inner = tuple(VQEMA(len(book), decay=0.8, commitment=1.0, revival=None) for book in books)
    q = MultiScale(inner, scales, (float(g['ratio']),))
    params = MultiScaleParams(g['kernel'][None], g['bias'][None], ((),) * 3)
    state = tuple(VQEMAState(jnp.ones(len(book)), book, jnp.int32(0)) for book in books)
    given = {'mask': jnp.asarray(g['mask'])}
    out = q.quantize(params, state, g['z'], **given)
    assert (np.asarray(out.codes) == g['codes']).all()
    close(out.z_q, g['z_q'])
    close(jnp.mean(out.losses['commitment']), g['loss'])
    for k, after in enumerate(q.update(params, state, g['z'], out.codes, **given)):
        close(after.counts, g[f'counts{k}'])
        close(after.sums, g[f'sums{k}'])
    assert q.bits == pytest.approx(1 * 2 + 4 * np.log2(6) + 24 * 3)
    assert [grid.shape[1:] for grid in q.to_grids(out.codes)] == list(scales)


@pytest.mark.parametrize('inner', [LFQ(6, bits_per_code=1), (VQEMA(8), VQEMA(5), VQEMA(8))])
def test_self_correction_hands_mistakes_to_the_finer_scales(inner):
    """Codes to predict are those of what the mistaken codes of the coarser scales leave."""
    q = MultiScale(inner, (1, 2, 4))
    z = normal(0, 200, 4, 4, 6)
    params, state = q.init(jax.random.key(1), z)
    z = z.at[0, 0, 0].set(jnp.nan)
    shares = jnp.linspace(0, 1, 200)
    goals, given = q.self_correction(params, state, z, jax.random.key(2), shares)
    codes = q.quantize(params, state, z).codes
    assert (goals[0] == codes[0]).all() and (given[0] == codes[0]).all()
    real = np.asarray(goals) >= 0
    assert ((np.asarray(given) >= 0) == real).all() and (goals[-1] != given[-1]).all()
    changed = np.asarray(goals != given)
    # As many as were asked for: 4 deviations of a binomial of 200 grids with 21 places and more.
    assert abs(changed.mean() - shares.mean()) < 4 * np.sqrt(0.25 / changed.size)
    # The coarsest scale sees no mistake; a finer one the residual of the codes as given.
    first, second, _ = (np.asarray(grid) for grid in q.to_grids(goals))
    assert (first == q.to_grids(codes)[0]).all()
    left = jnp.nan_to_num(z - q.decode_scales(params, state, given, 1))[1:]
    alone = MultiScale(inner[1] if isinstance(inner, tuple) else inner, (2, 4))
    own = (params[1], state[1]) if isinstance(inner, tuple) else (params, state)
    assert (second[1:] == alone.to_grids(alone.quantize(*own, left).codes)[0]).all()


@pytest.mark.parametrize(
    'share, message',
    [
        (1.5, 'share must be from 0 to 1, got 1.5'),
        (True, 'share must be from 0 to 1, got True'),
        (np.array([0.5, -0.1], np.float32), 'share must be from 0 to 1, got array'),
        (jnp.full(3, 0.3), r'one for each grid of z, \(2,\), got'),
        (jnp.array(1), 'share must be floating point'),
    ],
)
def test_self_correction_refuses_what_is_no_share(share, message):
    q = MultiScale(LFQ(6, bits_per_code=1), (1, 2, 4))
    with pytest.raises(ValueError, match=message):
        q.self_correction((), (), normal(0, 2, 4, 4, 6), jax.random.key(0), share)
    with pytest.raises(ValueError, match='key'):
        q.self_correction((), (), normal(0, 2, 4, 4, 6), None, 0.3)


def test_shares_of_numpy_lists_and_numbers_are_those_of_jax():
    q, z, key = (
        MultiScale(LFQ(6, bits_per_code=1), (1, 2, 4)),
        normal(0, 2, 4, 4, 6),
        jax.random.key(0),
    )
    for share in ([0.2, 0.4], np.array([0.2, 0.4]), 0.3):
        found = q.self_correction((), (), z, key, share)
        expected = q.self_correction((), (), z, key, jnp.asarray(share))
        assert all((a == b).all() for a, b in zip(found, expected, strict=True))


def test_a_codebook_a_scale_starts_from_what_the_scales_before_left():
    """Stage by stage a smaller error than a shared codebook of as many codes a scale."""
    z = normal(0, 64, 6, 8, 5) + 2 * normal(1, 64, 1, 1, 5)
    one = MultiScale(VQEMA(16), SCALES)
    several = MultiScale((VQEMA(16),) * 5, SCALES)
    errors = []
    for q in (one, several):
        params, state = q.init(jax.random.key(2), z)
        errors.append(float(jnp.mean((q.quantize(params, state, z).z_q - z) ** 2)))
    assert errors[1] < errors[0]
    rows = q.by_codebook(q.quantize(params, state, z).codes)
    assert rows.shape == (5, 64 * 48) and (np.asarray(rows[0, 64:]) == -1).all()
    assert list(q.code_sizes) == [16] * 92


# The algorithm, in float64 and place by place.


def cubic(t):
    t = abs(t)
    if t <= 1:
        return 1.25 * t**3 - 2.25 * t**2 + 1
    return -0.75 * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0


def larger(grid, size):
    out = np.zeros((*size, grid.shape[-1]))
    for i, j in np.ndindex(*size):
        at = [
            (p + 0.5) * n / full - 0.5 for p, n, full in zip((i, j), grid.shape, size, strict=False)
        ]
        first = [int(np.floor(a)) for a in at]
        for u in range(first[0] - 1, first[0] + 3):
            for v in range(first[1] - 1, first[1] + 3):
                row, column = (
                    min(max(p, 0), n - 1) for p, n in zip((u, v), grid.shape, strict=False)
                )
                out[i, j] += cubic(at[0] - u) * cubic(at[1] - v) * grid[row, column]
    return out


def cells(i, coarse, fine):
    return range(int(np.floor(i * fine / coarse)), int(np.ceil((i + 1) * fine / coarse)))


def convolved(grid, kernel, bias):
    height, width, _ = grid.shape
    out = np.tile(bias, (height, width, 1)).astype(float)
    for i, j, u, v in np.ndindex(height, width, 3, 3):
        if 0 <= i + u - 1 < height and 0 <= j + v - 1 < width:
            out[i, j] += grid[i + u - 1, j + v - 1] @ kernel[u, v]
    return out


def brute_force(z, codebook, scales, phi=None, mask=None):
    """Codes and sum of one grid z [H, W, D]; phi is (kernel, bias, ratio) of each scale or None."""
    height, width, dim = z.shape
    mask = np.ones((height, width), bool) if mask is None else mask
    left, total, codes = z.astype(float), np.zeros(z.shape), []
    for k, (h, w) in enumerate(scales):
        vectors = np.zeros((h, w, dim))
        for i, j in np.ndindex(h, w):
            area = [(r, c) for r in cells(i, h, height) for c in cells(j, w, width) if mask[r, c]]
            code = -1
            if area:
                mean = np.mean([left[place] for place in area], axis=0)
                code = int(np.argmin(np.sum((codebook - mean) ** 2, axis=1)))
                vectors[i, j] = codebook[code]
            codes.append(code)
        grown = larger(vectors, (height, width))
        if phi is not None:
            kernel, bias, ratio = phi[k]
            grown = (1 - ratio) * grown + ratio * convolved(grown, kernel, bias)
        left, total = left - grown, total + grown
    return np.array(codes), np.where(mask[..., None], total, 0)


@functools.cache
def trained(phi):
    """A quantizer, its params (convolutions that do something) and state, z, and a mask."""
    q = MultiScale(VQEMA(24), SCALES, phi)
    z = normal(0, 4, 6, 8, 5) + normal(1, 4, 1, 1, 5)
    params, state = q.init(jax.random.key(2), z)
    if phi:
        params = params._replace(
            kernels=params.kernels + 0.1 * normal(3, *params.kernels.shape),
            biases=0.1 * normal(4, *params.biases.shape),
        )
    mask = jnp.asarray(np.random.default_rng(0).random((4, 6, 8)) > 0.4)
    return q, params, state, z, mask.at[1].set(True).at[2, :3].set(False)


@pytest.mark.parametrize('phi', [(), (0.5, 0.25)])
def test_codes_and_sums_are_the_algorithm_s(phi):
    q, params, state, z, mask = trained(phi)
    codebook = np.asarray(q.inner.read_codebook((), state), np.float64)
    convolutions = None
    if phi:  # the first for scales nearer to the coarsest; the middle one is nearer to neither
        which = (0, 0, 0, 1, 1)
        convolutions = [
            (np.asarray(params.kernels[p], float), np.asarray(params.biases[p], float), phi[p])
            for p in which
        ]
    for real in (None, mask):
        out = q.quantize(params, state, z, mask=real)
        for i in range(len(z)):
            given = None if real is None else np.asarray(real[i])
            codes, total = brute_force(np.asarray(z[i]), codebook, q.sizes, convolutions, given)
            assert (np.asarray(out.codes[i]) == codes).all()
            close(out.z_q[i], total)


def test_one_update_holds_the_vectors_of_all_scales():
    q, params, state, z, mask = trained(())
    codes = q.quantize(params, state, z, mask=mask).codes
    plain = MultiScale(VQEMA(24, decay=0.9, revival=None), SCALES)
    after = plain.update(params, state, z, codes, mask=mask)
    used = np.bincount(np.asarray(codes)[np.asarray(codes) >= 0], minlength=24)
    close(after.counts, 0.9 * np.asarray(state.counts) + 0.1 * used)
    # One scale of the grid itself is the codebook alone.
    alone = MultiScale(VQEMA(24), ((6, 8),))
    out, leaf = alone.quantize((), state, z), VQEMA(24).quantize((), state, z)
    assert (np.asarray(out.codes).reshape(4, 6, 8) == np.asarray(leaf.codes)).all()
    close(out.loss, leaf.loss, 1e-6)


def test_a_coarse_vector_weighs_what_the_real_ones_of_its_area_do():
    q, params, state, z, mask = trained(())
    q = MultiScale(VQEMA(24, decay=0.9, revival=None), SCALES)
    codes = q.quantize(params, state, z, mask=mask).codes
    weights = jax.random.uniform(jax.random.key(5), (4, 6, 8))
    after = q.update(params, state, z, codes, mask=mask, weights=weights)
    used = np.zeros(24)
    for i, (h, w) in enumerate(q.sizes):
        grid = np.asarray(q.to_grids(codes)[i])
        for n, r, c in np.argwhere(grid >= 0):
            area = [(n, u, v) for u in cells(r, h, 6) for v in cells(c, w, 8) if mask[n, u, v]]
            used[grid[n, r, c]] += np.mean([weights[place] for place in area])
    close(after.counts, 0.9 * np.asarray(state.counts) + 0.1 * used)


# Codes as grids.


def test_codes_as_grids_and_back():
    q, params, state, z, _ = trained(())
    codes = q.quantize(params, state, z).codes
    grids = q.to_grids(codes)
    assert [grid.shape[1:] for grid in grids] == list(q.sizes)
    assert (np.asarray(q.from_grids(grids)) == np.asarray(codes)).all()
    assert int(grids[2][1, 2, 3]) == int(codes[1, 1 + 6 + 2 * 4 + 3])
    coarse = q.from_grids(grids[:2])
    assert coarse.shape == codes.shape and (np.asarray(coarse)[:, 7:] == -1).all()
    with pytest.raises(ValueError, match='scales=.*got sizes'):
        q.from_grids(grids[1:])
    with pytest.raises(ValueError, match=r'axis of 92.*\(4, 91\)'):
        q.to_grids(codes[:, 1:])


def test_coarse_pictures_come_nearer_with_every_scale():
    q, params, state, z, mask = trained(())
    out = q.quantize(params, state, z, mask=mask)
    errors = []
    for n in range(1, 6):
        picture = q.decode_scales(params, state, out.codes, n)
        errors.append(float(jnp.sum(mask[..., None] * (picture - z) ** 2)))
        # Cut off by hand, the same: the finest scale there is says what is real.
        cut = q.from_grids(q.to_grids(out.codes)[:n])
        assert (np.asarray(q.decode(params, state, cut)) == np.asarray(picture)).all()
        assert np.abs(np.asarray(picture)[np.asarray(mask)]).sum(-1).all()
    assert errors == sorted(errors, reverse=True), errors
    assert (np.asarray(picture) == np.asarray(out.z_q)).all()
    with pytest.raises(ValueError, match='num_scales must be an integer from 1 to 5, got 6'):
        q.decode_scales(params, state, out.codes, 6)


def test_a_scale_without_codes_adds_nothing_not_even_a_bias():
    q, params, state, z, _ = trained((0.5, 0.25))
    grids = list(q.to_grids(q.quantize(params, state, z).codes))
    none = q.from_grids([jnp.full_like(grid, -1) for grid in grids])
    assert not np.asarray(q.decode(params, state, none)).any()
    # In one grid of the batch alone.
    grids[3] = grids[3].at[0].set(-1)
    mixed = q.decode(params, state, q.from_grids(grids))
    left_out = sum(
        q.decode(params, state, q.from_grids([g if i == k else jnp.full_like(g, -1)
                                              for i, g in enumerate(grids)]))
        for k in (0, 1, 2, 4)
    )  # fmt: skip
    close(mixed[0], left_out[0])


def test_phi_starts_as_the_identity_and_learns_from_the_task():
    z = normal(0, 4, 6, 8, 5)
    plain, with_phi = MultiScale(VQEMA(24), SCALES), MultiScale(VQEMA(24), SCALES, (0.5,) * 4)
    params, state = with_phi.init(jax.random.key(0), z)
    out = with_phi.quantize(params, state, z)
    expected = plain.quantize((), plain.init(jax.random.key(0), z)[1], z)
    assert (np.asarray(out.codes) == np.asarray(expected.codes)).all()
    close(out.z_q, expected.z_q, 1e-6)

    def task(params, z):
        return jnp.vdot(with_phi.quantize(params, state, z).z_q, normal(1, *z.shape))

    to_params, to_z = jax.grad(task, argnums=(0, 1))(params, z)
    assert (np.asarray(to_z) == np.asarray(normal(1, *z.shape))).all()
    # Moving every bias moves z_q by the ratio, once for each scale that has this phi.
    times = np.array([1, 1, 2, 1])  # by the places of the convolutions: 0, 1, 2, 2, 3
    close(
        to_params.biases,
        0.5 * times[:, None] * np.asarray(normal(1, *z.shape).sum((0, 1, 2))),
        1e-4,
    )


def test_a_projection_goes_around_and_learned_codebooks_inside():
    z = normal(0, 4, 6, 8, 5)
    q = Projected(MultiScale(SimVQ(16), SCALES), 3)
    params, state = q.init(jax.random.key(0), z)
    out = q.quantize(params, state, z)
    assert out.codes.shape == (4, 92) and q.bits == 92 * 4 and q.grid == (6, 8)
    assert (np.asarray(q.decode(params, state, out.codes)) == np.asarray(out.z_q)).all()
    slope = jax.jit(jax.grad(lambda p: q.quantize(p, state, z).loss))(params)
    assert np.asarray(slope.inner).any()


def test_a_module_of_nnx_may_be_made_before_there_is_data():
    q = MultiScale(VQEMA(16), SCALES, (0.5,))
    module = vq_nnx.Quantize(q, 5, rngs=nnx.Rngs(0))
    z = normal(0, 4, 6, 8, 5)
    module.start(jax.random.key(0), z)
    out = module(z, use_running_average=True)
    assert (np.asarray(module.decode(out.codes)) == np.asarray(out.z_q)).all()


def test_on_a_mesh_codes_are_split_and_convolutions_are_not():
    q = MultiScale(VQEMA(8), SCALES, (0.5,))
    shapes = jax.eval_shape(q.init, jax.random.key(0), jnp.ones((2, 6, 8, 8)))
    params, state = shardings(q, *shapes, jax.make_mesh((1, 1), ('data', 'model')), 'model')
    assert not any(params.kernels.spec) and not any(params.biases.spec)
    assert state.counts.spec == state.sums.spec == PartitionSpec('model')
    own = MultiScale((VQEMA(8), VQEMA(4)), ((2, 3), (6, 8)), (0.5,))
    shapes = jax.eval_shape(own.init, jax.random.key(0), jnp.ones((2, 6, 8, 8)))
    params, state = shardings(own, *shapes, jax.make_mesh((1, 1), ('data', 'model')), 'model')
    assert not any(params.kernels.spec)
    assert all(part.counts.spec == PartitionSpec('model') for part in state)


@pytest.mark.parametrize(
    'make, message',
    [
        (lambda: MultiScale(VQEMA(8), (1, 4, 2)), r'scales must be growing.*\(1, 4, 2\)'),
        (lambda: MultiScale(VQEMA(8), (1, 2, 2)), r'scales must be growing.*\(1, 2, 2\)'),
        (lambda: MultiScale(VQEMA(8), ((1, 4), (2, 3))), 'scales must be growing'),
        (lambda: MultiScale(VQEMA(8), ()), r'scales must be at least one size, got \(\)'),
        (lambda: MultiScale(VQEMA(8), 4), 'scales must be a tuple, got 4'),
        (lambda: MultiScale(VQEMA(8), (0, 4)), 'scales must be an integer from 1.*got 0'),
        (lambda: MultiScale(VQEMA(8), ((1, 2, 3, 4),)), r'pair \(h, w\), got \(1, 2, 3, 4\)'),
        (lambda: MultiScale(VQEMA(8), ((1, 2), (2, 2, 2))), r'triple \(t, h, w\).*got \(1, 2\)'),
        (lambda: MultiScale((VQEMA(8),) * 3, (1, 2)), 'inner must be one quantizer, or 2'),
        (lambda: MultiScale((VQEMA(8), FSQ((3,) * 4), 3), (1, 2, 3)), 'inner must be a quantizer'),
        (lambda: MultiScale(VQEMA(8), (1, 2), (0.5, 1.5)), r'phi must be ratios.*\(0.5, 1.5\)'),
        (lambda: MultiScale(VQEMA(8), (1, 2), (0.5,) * 3), 'phi must be at most one ratio a scale'),
        (lambda: MultiScale(RandomProjection(8, 4), (1, 2)), 'not in the space of z'),
        (lambda: MultiScale(GumbelSoftmax(8, hard=False), (1, 2)), 'hard=True'),
        (lambda: Residual(MultiScale(VQEMA(8), (1, 2)), 2), 'cannot stand in Residual.*grids'),
        (lambda: Product(MultiScale(VQEMA(8), (1, 2)), 2), 'cannot stand in Product.*grids'),
        (lambda: MultiScale(MultiScale(VQEMA(8), (1, 2)), (1, 2)), 'cannot stand in MultiScale'),
        (lambda: MultiScale(LFQ(4), (1, 4)).init(jax.random.key(0), jnp.ones((2, 5, 4, 4))),
         r'grid \(4, 4\), the last of scales=\(1, 4\), got z of shape \(2, 5, 4, 4\)'),
        (lambda: MultiScale(FSQ((3,) * 4), (1, 4)).quantize((), (), jnp.ones((4, 4))),
         r'must be \[..., H, W, D\].*got z of shape \(4, 4\)'),
    ],
)  # fmt: skip
def test_bad_input_is_told_the_field_and_the_value(make, message):
    with pytest.raises(ValueError, match=message):
        make()
