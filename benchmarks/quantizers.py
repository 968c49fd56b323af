"""Training steps against vector-quantize-pytorch: python benchmarks/quantizers.py

A step is what a training loop pays for the quantizer: codes and vectors, the gradient to its
input (and parameters), and the update of the statistics, revival included. Same data, bits and
gradient estimator on both sides, float32. The floor of a step is the matrix products that it cannot
avoid, or for grids the memory traffic, in the same rounds. About four minutes on two cores; --quick
takes seconds.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import NamedTuple

import common
import jax
import jax.numpy as jnp
import numpy as np

import vqjax
from vqjax import ops

OURS, PEER, SEARCH = 'vqjax', 'vector-quantize-pytorch', 'search'
_BATCH = 16  # grids or sequences that the N vectors come in


class Case(NamedTuple):
    """A quantizer, its features, and a function that makes the peer's (None: it has none).

    products: those a step cannot avoid; none: its floor is the memory traffic.
    side: of the square grids that z holds, for quantizers of pictures.
    """

    quantizer: vqjax.quantizers.Quantizer
    dim: int
    peer: Callable | None
    products: tuple[common.Products, ...] = ()
    side: int | None = None


def cases(n: int, dim: int, k: int, stages: int) -> dict[str, Case]:
    """Every quantizer beside its peer. A peer's dead code threshold 2 is its advised revival."""
    import vqjax.quantizers as ours

    vq = {'dim': dim, 'codebook_size': k, 'decay': 0.99, 'rotation_trick': False}
    ema = {**vq, 'kmeans_init': True, 'threshold_ema_dead_code': 2}
    gradient = {**vq, 'ema_update': False, 'learnable_codebook': True}
    bits = k.bit_length() - 1
    levels = (8, 5, 5, 5)
    side = math.isqrt(n // _BATCH)
    scales = tuple(2**i for i in range(side.bit_length()))
    sizes = n // _BATCH // 4, n // _BATCH * 3 // 4

    search = common.Products(n, dim, k)

    def several(number):
        return (search._replace(number=number),)

    def multi_scale(scales, dim, k):
        """Searches, and convolutions with their two gradients, on the grid of each scale."""
        tokens = sum(scale**2 for scale in scales) * _BATCH
        return common.Products(tokens, dim, k), common.Products(tokens, 9 * dim, dim, 3)

    def residual(lib):
        return lib.ResidualVQ(num_quantizers=stages, **ema)

    def product(lib):
        return lib.GroupedResidualVQ(groups=stages, num_quantizers=1, **ema)

    def hierarchical(lib, scales=scales, **other):
        grids = {'scales': scales, 'channel_first': False, 'accept_image_fmap': True}
        shared = {name: value for name, value in ema.items() if name != 'rotation_trick'}
        return lib.HierarchicalVQ(**shared | other, **grids)

    # arXiv:2404.02905: 680 tokens an image.
    of_var, var_k, var_dim = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16), 4_096, 32

    def projection(lib):
        return lib.RandomProjectionQuantizer(dim=dim, codebook_size=k, codebook_dim=16)

    return {
        'VQ-EMA': Case(ours.VQEMA(k), dim, lambda lib: lib.VectorQuantize(**ema), (search,)),
        'VQ-EMA, cosine': Case(
            ours.VQEMA(k, metric='cosine'),
            dim,
            lambda lib: lib.VectorQuantize(**ema, use_cosine_sim=True),
            (search,),
        ),
        'VQ': Case(ours.VQ(k), dim, lambda lib: lib.VectorQuantize(**gradient), (search,)),
        f'Residual {stages} x VQ-EMA': Case(
            ours.Residual(ours.VQEMA(k), stages), dim, residual, several(stages)
        ),
        f'Product {stages} x VQ-EMA': Case(
            ours.Product(ours.VQEMA(k), stages),
            dim,
            product,
            (common.Products(n, dim // stages, k, stages),),
        ),
        'MultiScale': Case(
            ours.MultiScale(ours.VQEMA(k), scales, phi=(0.5,)),
            dim,
            hierarchical,
            multi_scale(scales, dim, k),
            side,
        ),
        'MultiScale, grids of VAR': Case(
            ours.MultiScale(ours.VQEMA(var_k), of_var, phi=(0.5,)),
            var_dim,
            lambda lib: hierarchical(lib, of_var, dim=var_dim, codebook_size=var_k),
            multi_scale(of_var, var_dim, var_k),
            of_var[-1],
        ),
        'Levels, two': Case(ours.Levels((ours.VQEMA(k),) * 2, sizes), dim, None, (search,)),
        'SimVQ': Case(
            ours.SimVQ(k),
            dim,
            lambda lib: lib.SimVQ(dim=dim, codebook_size=k, rotation_trick=False),
            (search, common.Products(k, dim, dim, 3)),  # the map of the codes and its gradients
        ),
        'Bridged, VQBridge': Case(ours.Bridged(k), dim, None, (search,)),
        'VQ-EMA, Sinkhorn': Case(ours.VQEMA(k, assignment=ops.Sinkhorn()), dim, None, (search,)),
        'IBQ': Case(ours.IBQ(k), dim, None, several(3)),  # scores, and their gradients to both
        'LFQ': Case(ours.LFQ(bits), bits, lambda lib: lib.LFQ(dim=bits, codebook_size=2**bits)),
        'FSQ': Case(ours.FSQ(levels), len(levels), lambda lib: lib.FSQ(list(levels))),
        # Its peer's values get no gradient: not the same step.
        'LatentQuantization': Case(ours.LatentQuantization(levels), len(levels), None),
        'RandomProjection': Case(
            ours.RandomProjection(k, 16),
            dim,
            projection,
            (common.Products(n, dim, 16), common.Products(n, 16, k)),
        ),
        # Scores, and two gradients of the scores and two of the mixture of codes, which itself is
        # not needed: z_q is the code that was drawn.
        'GumbelSoftmax': Case(ours.GumbelSoftmax(k), dim, None, several(5)),
    }


def training_step(quantizer):
    """The step (params, state, z, cotangent, key) -> (gradients and codes, new state)."""

    # z is an argument, not a constant: XLA folds what it knows at compile time.
    def step(params, state, z, cotangent, key):
        def loss(params, z):
            out = quantizer.quantize(params, state, z, key)
            return jnp.sum(out.z_q * cotangent) + out.loss, out.codes

        # A quantizer of targets has no gradient to hand on, and its z_q other features.
        if quantizer.targets_only:
            codes, gradients = quantizer.quantize(params, state, z, key).codes, ()
        else:
            gradients, codes = jax.grad(loss, (0, 1), has_aux=True)(params, z)
        return (gradients, codes), quantizer.update(params, state, z, codes, key)

    return step


def our_step(quantizer, z, cotangent):
    """(a function that trains for one step, seconds to the end of the first step)."""
    step = training_step(quantizer)
    key = jax.random.key(0)
    params, state = jax.jit(quantizer.init)(key, z)
    jax.block_until_ready((params, state))
    start = common.clock()
    z, cotangent = jax.device_put((z, cotangent))
    compiled = jax.jit(step, donate_argnums=1).lower(params, state, z, cotangent, key).compile()
    seconds = common.clock() - start
    held = {'state': state, 'step': 0}

    def run():
        held['step'] += 1
        step_key = jax.random.fold_in(key, held['step'])
        out, held['state'] = compiled(params, held['state'], z, cotangent, step_key)
        jax.block_until_ready((out, held['state']))

    return run, seconds


def peer_step(make, z, cotangent, targets_only):
    """The same step of the peer: forward in training mode, and backward."""
    import torch
    import vector_quantize_pytorch

    module = make(vector_quantize_pytorch).train()
    z, cotangent = torch.from_numpy(z).requires_grad_(), torch.from_numpy(cotangent)

    def run():
        out = module(z)
        if targets_only:
            return
        z_q, *rest = out if isinstance(out, tuple) else (out,)
        loss = (z_q * cotangent).sum()
        # FSQ returns no loss; LFQ and the others return it last.
        if rest and rest[-1].is_floating_point():
            loss = loss + rest[-1].sum()
        z.grad = None
        module.zero_grad(set_to_none=True)
        loss.backward()

    return run


def inputs(case, n):
    """n vectors as the quantizer takes them, and what their gradient starts from."""
    rng = np.random.default_rng(0)
    places = (case.side, case.side) if case.side else (n // _BATCH,)
    z = rng.standard_normal((_BATCH, *places, case.dim), np.float32)
    return z, rng.standard_normal(z.shape, np.float32) / z.size


def search_alone(vectors, dim, codes):
    """A function that searches so many codes for so many vectors."""
    rng = np.random.default_rng(0)
    z, codebook = (jnp.asarray(rng.standard_normal((m, dim), np.float32)) for m in (vectors, codes))
    return lambda: jax.block_until_ready(ops.nearest_codes(z, codebook))


def peer_of(name, sizes):
    """The peer's step of a case of `cases(*sizes)`."""
    case = cases(*sizes)[name]
    return peer_step(case.peer, *inputs(case, sizes[0]), case.quantizer.targets_only)


def compare(name, sizes, repeats, peers, title=''):
    """One row of the table: a case of `cases(*sizes)`; the peer has a process of its own."""
    case = cases(*sizes)[name]
    z, cotangent = inputs(case, sizes[0])
    run, seconds = our_step(case.quantizer, z, cotangent)
    runs = {OURS: run}
    with contextlib.ExitStack() as stack:
        if case.peer is not None and peers:
            runs[PEER] = stack.enter_context(common.elsewhere(peer_of, name, sizes))
        if case.side:  # the tokens of all scales
            tokens = case.products[0]
            runs[SEARCH] = search_alone(tokens.n, tokens.d, tokens.k)
        traffic = None if case.products else z
        times, floor = common.measure_with_floor(runs, repeats, OURS, case.products, traffic)
    speedup = common.ratio(times, PEER, OURS)
    row = {'quantizer': repr(case.quantizer), 'N': z.size // case.dim, 'D': case.dim}
    searched = common.ratio(times, OURS, SEARCH)
    times.pop(SEARCH, None)
    row |= {'runs': common.summary(times), 'compile_s': round(seconds, 2), 'speedup': speedup}
    row |= floor | ({'ratio_to_search': searched} if searched else {})
    shown = f'{speedup} x the peer, {row["ratio_to_floor"]} of the floor, compile {seconds:.2f} s'
    print(f'{title or name:24} {row["runs"][OURS]["median_ms"]:9.2f} ms  {shown}')
    return row


def sweep(n, k, repeats, peers):
    """The VQ-EMA row for another N and K, for the plot."""
    row = compare('VQ-EMA', (n, 64, k, 2), repeats, peers, f'VQ-EMA N={n} K={k}')
    return row | {'K': k}


def main(argv=None):
    """Measure, write quantizers.json and quantizers.png."""
    options = common.arguments(common.parser(__doc__), argv)
    quick = options.quick
    peers = common.available(quick, 'torch', PEER)
    sizes = n, _, k, _ = (256, 8, 16, 2) if quick else (16_384, 128, 1_024, 8)
    repeats = 1 if quick else 9
    names = ('RandomProjection', 'LFQ', 'FSQ') if quick else cases(*sizes)
    steps = {name: compare(name, sizes, repeats, peers) for name in names}
    codes = [16] if quick else [2**i for i in range(6, 15, 2)]
    batches = [2**i for i in range(10, 17, 2)]
    by_k = [sweep(n // 4, size, min(repeats, 3), peers) for size in codes]
    by_n = by_k if quick else [sweep(batch, k, min(repeats, 3), peers) for batch in batches]
    results = {'steps': steps, 'against_K': by_k, 'against_N': by_n}
    common.write(options.out, 'quantizers', results)
    panels = [
        (f'VQ-EMA step, {n // 4:,} vectors of 64', 'codes K', common.lines(by_k, 'K')),
        (f'VQ-EMA step, {k:,} codes of 64', 'vectors N', common.lines(by_n, 'N')),
    ]
    common.plot_times(options.out / 'quantizers.png', panels)


if __name__ == '__main__':
    main()
