"""Features of images from a network that is trained here to classify them: a set of distortion.py.

No file of weights comes with it, so that one command makes the figures. A seed fixes everything,
but for what another processor or number of cores changes in the order of a sum.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from vqjax.encoders import ResNet9

SEED = 0


class Classifier(nn.Module):
    """Images float32 [B, H, W, C] to logits [B, classes] and the pooled features [B, 8 * width]."""

    classes: int
    width: int

    @nn.compact
    def __call__(self, images, *, train):
        pooled = ResNet9(self.width)(images, train=train).mean((1, 2))
        return nn.Dense(self.classes)(pooled), pooled


def learned(images, labels, others, other_labels, width=8, epochs=2, batch=128, rate=3e-3):
    """(features of images, of others, accuracy on others) after training on the images.

    images, others: uint8 [n, H, W, C]; labels: int [n]. Features are float32 [n, 8 * width].
    """
    network = Classifier(int(labels.max()) + 1, width)
    steps = epochs * (len(images) // batch)
    optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0.0, rate, steps // 4, steps))

    def scaled(images):
        return (images.astype(jnp.float32) - 127.5) / 64

    @jax.jit
    def step(carry, images, labels):
        variables, memory = carry

        def loss(params):
            found, changed = network.apply(
                {**variables, 'params': params}, scaled(images), train=True, mutable='batch_stats'
            )
            wrong = optax.softmax_cross_entropy_with_integer_labels(found[0], labels)
            return wrong.mean(), changed

        slope, changed = jax.grad(loss, has_aux=True)(variables['params'])
        updates, memory = optimizer.update(slope, memory)
        return {'params': optax.apply_updates(variables['params'], updates), **changed}, memory

    @jax.jit
    def features(variables, images):
        logits, pooled = network.apply(variables, scaled(images), train=False)
        return logits.argmax(-1), pooled

    def of(images):
        parts = np.array_split(images, -(-len(images) // 1000))
        found = zip(*(features(variables, part) for part in parts), strict=True)
        return [np.concatenate(part) for part in found]

    variables = jax.jit(network.init, static_argnames='train')(
        jax.random.key(SEED), scaled(images[:batch]), train=True
    )
    carry = variables, optimizer.init(variables['params'])
    rng = np.random.default_rng(SEED)
    for _ in range(epochs):
        order = rng.permutation(len(images))
        for first in range(0, len(images) - batch + 1, batch):
            rows = order[first : first + batch]
            carry = step(carry, images[rows], labels[rows])
    variables, _ = carry
    guesses, tested = of(others)
    return of(images)[1], tested, float((guesses == other_labels).mean())
