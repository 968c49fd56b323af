"""Sentences 23, 24 and 28 of the answer: what a code holds, what D does, one broken group.

    python docs/answer/dimensions.py

Digits, a small network (64 -> 128 -> D, features of mean 0 and variance 1, a head with a hidden
layer), `VQEMA(256)` by default, five seeds; writes dimensions.json beside this file after every
run and goes on from there. Two minutes on two idle CPU cores.
"""

import json
import pathlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from vqjax import VQEMA, Product

DIMS = (8, 16, 32, 64, 128, 256, 512)
SEEDS, STEPS, BATCH, HELD_OUT = 5, 400, 256, 360
OUT = pathlib.Path(__file__).with_suffix('.json')


def start(key, dim):
    """The network's parameters."""
    sizes = {'a': (64, 128), 'b': (128, dim), 'c': (dim, 128), 'd': (128, 10)}
    keys = jax.random.split(key, len(sizes))
    return {
        name: (jax.random.normal(k, size) * (2 / size[0]) ** 0.5, jnp.zeros(size[1]))
        for k, (name, size) in zip(keys, sizes.items(), strict=True)
    }


def layer(params, x):
    """An affine map."""
    return x @ params[0] + params[1]


def encode(params, x):
    """Standardised features [n, D]."""
    z = layer(params['b'], jax.nn.relu(layer(params['a'], x)))
    return (z - z.mean(0)) / (z.std(0) + 1e-5)


def head_loss(params, z, y):
    """Cross-entropy of each image [n], and whether it is told rightly."""
    logits = layer(params['d'], jax.nn.relu(layer(params['c'], z)))
    return optax.softmax_cross_entropy_with_integer_labels(logits, y), logits.argmax(-1) == y


def break_group(state):
    """All codes of the first group at the same place, for good."""
    return state._replace(sums=state.sums.at[0].set(0.0))


@partial(jax.jit, static_argnames=('q', 'broken'))
def train_step(q, broken, params, opt, state, x, y):
    """One step of Adam, then the quantizer's statistics."""

    def loss(params):
        z = encode(params, x)
        z_q, codes, extra = z, None, 0.0
        if q is not None:
            out = q.quantize((), state, z)
            z_q, codes, extra = out.z_q, out.codes, out.loss
        return head_loss(params, z_q, y)[0].mean() + extra, (z, codes)

    grads, (z, codes) = jax.grad(loss, has_aux=True)(params)
    updates, opt = optax.adam(1e-3).update(grads, opt)
    if q is not None:
        state = q.update((), state, z, codes)
        state = break_group(state) if broken else state
    return optax.apply_updates(params, updates), opt, state


@partial(jax.jit, static_argnames='q')
def measure(q, params, state, x, y):
    """Codes, and 1 - cosine of the gradients at z_q (what straight-through hands on) and at z."""
    z = encode(params, x)
    out = q.quantize((), state, z)

    def slope(z):
        return jax.grad(lambda z: head_loss(params, z, y)[0].sum())(z)

    return out.codes, 1 - optax.cosine_similarity(slope(out.z_q), slope(z), epsilon=1e-12)


def run(dim, seed, q, broken=False):
    """Figures of one run."""
    rng = np.random.default_rng(seed)
    images, labels = load_digits(return_X_y=True)
    order = rng.permutation(len(labels))
    x, y = jnp.asarray(images[order] / 16, jnp.float32), jnp.asarray(labels[order])
    test, train = (x[:HELD_OUT], y[:HELD_OUT]), (x[HELD_OUT:], y[HELD_OUT:])
    params = start(jax.random.key(seed), dim)
    opt, state = optax.adam(1e-3).init(params), None
    if q is not None:
        state = q.init(jax.random.key(seed), encode(params, train[0][:1024]))[1]
        state = break_group(state) if broken else state
    changed, disagree = [], []
    watched = train[0][:512], train[1][:512]
    for step in range(STEPS):
        rows = rng.integers(0, len(train[1]), BATCH)
        look = q is not None and not broken and step >= STEPS // 2 and step % 20 == 0
        if look:
            before, error = measure(q, params, state, *watched)
            disagree.append(float(error.mean()))
        params, opt, state = train_step(
            q, broken, params, opt, state, train[0][rows], train[1][rows]
        )
        if look:
            after, _ = measure(q, params, state, *watched)
            changed.append(float((before != after).reshape(512, -1).any(-1).mean()))

    def accuracy(state):
        z = encode(params, test[0])
        if q is not None:
            z = q.quantize((), state, z).z_q
        return float(head_loss(params, z, test[1])[1].mean())

    found = {'accuracy': accuracy(state)}
    if q is None or broken:
        return found
    found |= {'gradient_error': np.mean(disagree), 'changed': np.mean(changed)}
    if isinstance(q, Product):
        return found | {'accuracy_broken_at_the_end': accuracy(break_group(state))}
    codes = np.asarray(measure(q, params, state, *train)[0])
    votes = np.zeros((q.num_codes, 10))
    np.add.at(votes, (codes, np.asarray(train[1])), 1)
    shares = votes.sum(1)
    shares = shares[shares > 0] / shares.sum()
    found['other_class'] = 1 - votes.max(1).sum() / votes.sum()
    found['perplexity'] = np.exp(-np.sum(shares * np.log(shares)))
    return {name: float(value) for name, value in found.items()}


if __name__ == '__main__':
    vq, product = VQEMA(256, decay=0.95), Product(VQEMA(256, decay=0.95), 8)
    plan = [(f'vq_ema_{dim}', dim, vq, False) for dim in DIMS]
    plan += [('none', 128, None, False), ('product', 128, product, False)]
    plan += [('product_broken', 128, product, True)]
    kept = json.loads(OUT.read_text()) if OUT.exists() else {}
    for name, *given in plan:
        runs = kept.setdefault(name, [])
        for seed in range(len(runs), SEEDS):
            runs.append({'seed': seed} | run(given[0], seed, *given[1:]))
            OUT.write_text(json.dumps(kept, indent=1) + '\n')
            print(name, runs[-1], flush=True)
