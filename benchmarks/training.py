"""Whole training steps of a small model, against PyTorch: python benchmarks/training.py

An autoencoder of patches (two dense layers, quantizer, two dense layers; Adam; float32) trained
with vqjax and Flax, and the same model with vector-quantize-pytorch: forward, backward, optimizer
and statistics. About two minutes on two cores; --quick takes seconds.
"""

from __future__ import annotations

import contextlib

import common
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from vqjax.nn import Quantize
from vqjax.quantizers import FSQ, VQEMA, Residual

OURS, PEER = 'vqjax + Flax', 'vector-quantize-pytorch'
PATCH, HIDDEN = 48, 256
LEVELS = (8, 5, 5, 5)


class Autoencoder(nn.Module):
    """Dense, relu, dense, quantizer, dense, relu, dense."""

    quantizer: object
    dim: int

    @nn.compact
    def __call__(self, x, train):
        z = nn.Dense(self.dim)(nn.relu(nn.Dense(HIDDEN)(x)))
        loss = 0.0
        if self.quantizer is not None:
            z, _, loss, _ = Quantize(self.quantizer)(z, train)
        return nn.Dense(PATCH)(nn.relu(nn.Dense(HIDDEN)(z))), loss


def our_run(quantizer, dim, x):
    """(a function that trains for one step, seconds to compile it)."""
    model, optimizer = Autoencoder(quantizer, dim), optax.adam(1e-3)
    x = jax.device_put(x)
    variables = jax.jit(model.init, static_argnums=2)(jax.random.key(0), x, False)
    params, stats = variables['params'], variables.get('codebook_stats', {})

    def step(held, x, key):
        params, stats, moments = held

        def loss(params):
            (y, extra), changed = model.apply(
                {'params': params, 'codebook_stats': stats},
                x,
                True,
                mutable=['codebook_stats'],
                rngs={'quantizer': key},
            )
            return jnp.mean((y - x) ** 2) + extra, changed.get('codebook_stats', {})

        gradients, stats = jax.grad(loss, has_aux=True)(params)
        updates, moments = optimizer.update(gradients, moments)
        return optax.apply_updates(params, updates), stats, moments

    held = {'state': (params, stats, optimizer.init(params)), 'step': 0}
    key = jax.random.key(1)
    start = common.clock()
    compiled = jax.jit(step, donate_argnums=0).lower(held['state'], x, key).compile()
    seconds = common.clock() - start

    def run():
        held['step'] += 1
        held['state'] = compiled(held['state'], x, jax.random.fold_in(key, held['step']))
        jax.block_until_ready(held['state'])

    return run, seconds


def peer_run(make, dim, x):
    """The same step in PyTorch; `make(library)` is the quantizer, or None."""
    import torch
    import vector_quantize_pytorch
    from torch.nn import Linear, ReLU, Sequential

    encoder = Sequential(Linear(PATCH, HIDDEN), ReLU(), Linear(HIDDEN, dim))
    decoder = Sequential(Linear(dim, HIDDEN), ReLU(), Linear(HIDDEN, PATCH))
    quantizer = make(vector_quantize_pytorch) if make else None
    modules = [m for m in (encoder, decoder, quantizer) if m is not None]
    optimizer = torch.optim.Adam([p for m in modules for p in m.parameters()], lr=1e-3)
    x = torch.from_numpy(x)[None]

    def run():
        optimizer.zero_grad(set_to_none=True)
        z, extra = encoder(x), 0.0
        if quantizer is not None:
            z, *rest = quantizer(z)
            extra = rest[-1].sum() if rest[-1].is_floating_point() else 0.0
        loss = ((decoder(z) - x) ** 2).mean() + extra
        loss.backward()
        optimizer.step()

    return run


def cases(dim, k, stages):
    """Quantizer, features, and the peer's: the same data, bits and gradient estimator."""
    vq = {'dim': dim, 'codebook_size': k, 'decay': 0.99, 'kmeans_init': True}
    vq |= {'threshold_ema_dead_code': 2, 'rotation_trick': False}
    return {
        'no quantizer': (None, dim, None),
        'VQ-EMA': (VQEMA(k), dim, lambda lib: lib.VectorQuantize(**vq)),
        f'Residual {stages} x VQ-EMA': (
            Residual(VQEMA(k), stages),
            dim,
            lambda lib: lib.ResidualVQ(num_quantizers=stages, **vq),
        ),
        'FSQ': (FSQ(LEVELS), len(LEVELS), lambda lib: lib.FSQ(list(LEVELS))),
    }


def products(quantizer, n, dim):
    """Those of a step: three a dense layer (two in the first) and the searches of the quantizer."""
    found = [
        common.Products(n, PATCH, HIDDEN, 2 + 3),
        common.Products(n, HIDDEN, dim, 3 + 3),
    ]
    leaf, number = (quantizer, 1)
    if isinstance(quantizer, Residual):
        leaf, number = quantizer.inner, quantizer.num_stages
    if isinstance(leaf, VQEMA):
        found.append(common.Products(n, dim, leaf.num_codes, number))
    return found


def patches(n):
    """The data of a step."""
    return np.random.default_rng(0).standard_normal((n, PATCH), np.float32)


def peer_of(name, n, sizes):
    """The peer's step of a case of `cases(*sizes)`."""
    _, dim, make = cases(*sizes)[name]
    return peer_run(make, dim, patches(n))


def compare(name, n, sizes, repeats, peers, title=''):
    """One row: times of a step, and how many times faster it is than the peer's.

    A case of `cases(*sizes)`; the peer has a process of its own.
    """
    quantizer, dim, _ = cases(*sizes)[name]
    run, seconds = our_run(quantizer, dim, patches(n))
    runs = {OURS: run}
    with contextlib.ExitStack() as stack:
        if peers:
            runs[PEER] = stack.enter_context(common.elsewhere(peer_of, name, n, sizes))
        floor_of = products(quantizer, n, dim)
        times, floor = common.measure_with_floor(runs, repeats, OURS, floor_of)
    speedup = common.ratio(times, PEER, OURS)
    shown = f'{speedup} x the peer, {floor["ratio_to_floor"]} of the floor'
    print(f'{title or name:24} {min(times[OURS]):9.2f} ms  {shown}, compile {seconds:.2f} s')
    row = {'N': n, 'D': dim, 'quantizer': repr(quantizer), 'runs': common.summary(times)}
    return row | {'compile_s': round(seconds, 2), 'speedup': speedup, **floor}


def main(argv=None):
    """Measure, write training.json and training.png."""
    options = common.arguments(common.parser(__doc__), argv)
    quick = options.quick
    peers = common.available(quick, 'torch', PEER)
    n, *sizes = (128, 8, 16, 2) if quick else (16_384, 64, 1_024, 4)
    dim, k, stages = sizes
    repeats = 1 if quick else 5
    names = ('no quantizer', 'FSQ') if quick else cases(*sizes)
    steps = {name: compare(name, n, sizes, repeats, peers) for name in names}

    def sweep(n, k):
        given, title = (dim, k, stages), f'N={n} K={k}'
        return compare('VQ-EMA', n, given, min(repeats, 3), peers, title) | {'K': k}

    codes = [16] if quick else [2**i for i in range(6, 15, 2)]
    by_k = [sweep(n // 4, size) for size in codes]
    by_n = by_k if quick else [sweep(2**i, k) for i in range(10, 17, 2)]
    results = {'steps': steps, 'against_K': by_k, 'against_N': by_n}
    common.write(options.out, 'training', results)
    panels = [
        (f'{n // 4:,} patches a step', 'codes K', common.lines(by_k, 'K')),
        (f'{k:,} codes', 'patches a step N', common.lines(by_n, 'N')),
    ]
    common.plot_times(options.out / 'training.png', panels)


if __name__ == '__main__':
    main()
