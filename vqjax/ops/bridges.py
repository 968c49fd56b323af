"""Bridges: pure functions from a codebook to the codebook that is searched, of the same shape.

A bridge is anything hashable with two methods, `init(key, codes) -> params` and `apply(params,
codes) -> codes`, codes float32 [K, D]; a Linen module is one. It moves codes that no vector chose
along with those that were, because they share its parameters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from vqjax.ops.fields import check_count, make_plain

PyTree = Any


def _product(form, a, b):
    return jnp.einsum(form, a, b, precision=lax.Precision.HIGHEST)


class BridgeLike(Protocol):
    """What a bridge is: hashable, with these two methods; `Bridge`, a Linen module, your own."""

    @property
    def init(self) -> Callable[..., PyTree]: ...

    @property
    def apply(self) -> Callable[..., Any]: ...


@dataclasses.dataclass(frozen=True)
class Bridge:
    """A bridge of your own, of two pure functions.

    init: (key, codes [K, D]) -> params. apply: (params, codes [K, D]) -> float32 [K, D].
    """

    init: Callable[[jax.Array, jax.Array], PyTree]
    apply: Callable[[PyTree, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Linear:
    """C W with W float32 [D, D], the identity at first (SimVQ, arXiv:2411.02038)."""

    def init(self, key: jax.Array, codes: jax.Array) -> jax.Array:
        """The identity [D, D]."""
        del key
        return jnp.eye(codes.shape[1], dtype=jnp.float32)

    def apply(self, params: jax.Array, codes: jax.Array) -> jax.Array:
        """codes [K, D] -> float32 [K, D]."""
        return _product('kd,de->ke', codes, params)


@dataclasses.dataclass(frozen=True)
class LowRank:
    """C + C A B with A [D, rank] random and B [rank, D], zero at first: 2 D rank parameters.

    Raises ValueError for a rank below 1, and at trace time for one above D.
    """

    rank: int

    def __post_init__(self) -> None:
        make_plain(self)
        check_count('rank', self.rank)

    def init(self, key: jax.Array, codes: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(A, B)."""
        dim = codes.shape[1]
        if self.rank > dim:
            raise ValueError(f'rank={self.rank} is above the {dim} features of the codes')
        narrow = jax.random.normal(key, (dim, self.rank), jnp.float32) / dim**0.5
        return narrow, jnp.zeros((self.rank, dim), jnp.float32)

    def apply(self, params: tuple[jax.Array, jax.Array], codes: jax.Array) -> jax.Array:
        """codes [K, D] -> float32 [K, D]."""
        narrow = _product('kd,dr->kr', codes, params[0])
        return _product('kr,rd->kd', narrow, params[1]) + codes


@dataclasses.dataclass(frozen=True)
class VQBridge:
    """Compress, process, recover: transformer blocks over a codebook cut into patches.

    FVQ (arXiv:2509.10140): every `patch` codes become one token of `width` features by a linear
    map, `depth` blocks of attention and of a hidden layer let all tokens read each other, a linear
    map makes `patch` codes of each token again. Ours, where the paper's text leaves it open: no
    position is added (the codes tell tokens apart), and what comes out is added to the codes that
    went in, from a last map of zeros, so that training starts at the given codes.

    The attention holds heads (K / patch)^2 numbers. Raises ValueError for a field below 1 or
    heads that do not divide the width, and at trace time for a patch that does not divide K.
    """

    patch: int = 16
    width: int = 128
    depth: int = 2
    heads: int = 4

    def __post_init__(self) -> None:
        make_plain(self)
        for field in dataclasses.fields(self):
            check_count(field.name, getattr(self, field.name))
        if self.width % self.heads:
            raise ValueError(f'heads={self.heads} must divide width={self.width}')

    def _patches(self, codes):
        num_codes, dim = codes.shape
        if num_codes % self.patch:
            raise ValueError(f'patch={self.patch} must divide the {num_codes} codes')
        return codes.reshape(num_codes // self.patch, self.patch * dim)

    def init(self, key: jax.Array, codes: jax.Array) -> dict[str, PyTree]:
        """Its maps; those of the blocks are stacked [depth, ...]."""
        size, width = self._patches(codes).shape[1], self.width
        keys = jax.random.split(key, 5)

        def random(key, *shape):
            return jax.random.normal(key, shape, jnp.float32) / shape[-2] ** 0.5

        blocks = {
            'gain': jnp.ones((self.depth, 2, width), jnp.float32),
            'read': random(keys[1], self.depth, width, 3 * width),
            'write': random(keys[2], self.depth, width, width),
            'widen': random(keys[3], self.depth, width, 4 * width),
            'narrow': random(keys[4], self.depth, 4 * width, width),
        }
        return {
            'compress': random(keys[0], size, width),
            'blocks': blocks,
            'recover': jnp.zeros((width, size), jnp.float32),
        }

    def apply(self, params: dict[str, PyTree], codes: jax.Array) -> jax.Array:
        """codes [K, D] -> float32 [K, D]."""
        tokens = _product('td,dw->tw', _standardized(self._patches(codes)), params['compress'])

        def block(tokens, maps):
            tokens += self._attention(_standardized(tokens) * maps['gain'][0], maps)
            wide = _product('tw,wh->th', _standardized(tokens) * maps['gain'][1], maps['widen'])
            return tokens + _product('th,hw->tw', jax.nn.gelu(wide), maps['narrow']), None

        tokens, _ = lax.scan(block, tokens, params['blocks'])
        change = _product('tw,wd->td', _standardized(tokens), params['recover'])
        return codes + change.reshape(codes.shape)

    def _attention(self, tokens, maps):
        joint = _product('tw,wx->tx', tokens, maps['read'])
        query, key, value = jnp.split(joint.reshape(len(tokens), self.heads, -1), 3, axis=-1)
        scores = _product('qhw,khw->hqk', query, key) / query.shape[-1] ** 0.5
        mixed = _product('hqk,khw->qhw', jax.nn.softmax(scores), value)
        return _product('tw,wx->tx', mixed.reshape(tokens.shape), maps['write'])


def _standardized(x):
    """Rows of mean 0 and variance 1."""
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)


# What a spec may name.
BRIDGES = {'linear': Linear, 'low_rank': LowRank, 'vq_bridge': VQBridge}
