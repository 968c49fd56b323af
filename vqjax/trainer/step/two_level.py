"""Two levels of codes in one model: the top's are chosen before the bottom's vectors are known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vqjax import nn, quantizers
from vqjax.encoders import Size, repeat_to, two_level_grids
from vqjax.quantizers import Levels, Quantized

NAMES = ('top', 'bottom')


def pack(levels: Sequence[jax.Array]) -> jax.Array:
    """Grids [B, h, w, D], one after the other: [B, 1, L, D]."""
    return jnp.concatenate([x.reshape(len(x), 1, -1, x.shape[-1]) for x in levels], axis=2)


def unpack(x: jax.Array, grids: Sequence[Size]) -> list[jax.Array]:
    """The inverse of `pack`."""
    ends = [sum(math.prod(grid) for grid in grids[: i + 1]) for i in range(len(grids) - 1)]
    parts = zip(jnp.split(x, ends, axis=2), grids, strict=True)
    return [part.reshape(len(x), *grid, x.shape[-1]) for part, grid in parts]


def side_by_side(x: jax.Array, grids: Sequence[Size]) -> jax.Array:
    """What head and decoder read of packed vectors: [B, h, w, 2 D], the top's repeated."""
    top, bottom = unpack(x, grids)
    return jnp.concatenate([repeat_to(top, grids[1]), bottom], axis=-1)


class QuantizeLevels(nn.Quantize):
    """The Linen module around `Levels`, whose second level depends on the codes of the first."""

    def in_order(
        self,
        top: jax.Array,
        bottom: Callable[[jax.Array], jax.Array],
        train: bool,
        mask: jax.Array | None = None,
    ) -> tuple[jax.Array, Quantized]:
        """Quantizes the top, then what `bottom` makes of its vectors.

        Args:
          top: z of the top, [B, h, w, D].
          bottom: vectors of the top [B, h, w, D] -> z of the bottom.
          train: whether to update the statistics afterwards.
          mask: bool [B], True = real.

        Returns:
          z and Quantized of both, packed as `pack` does.
        """
        levels: Any = self.quantizer  # a Levels
        first, second = levels.inner
        starting = self.is_initializing()
        axis_name = None if starting else self.axis_name
        key, update_key = self.draw_keys()
        keys = [None, None] if key is None else jax.random.split(key)
        rows = pack([top])
        real = None if mask is None else jnp.broadcast_to(mask[:, None, None], rows.shape[:-1])
        params, state = ((), ()) if starting else self.held()
        if starting:
            start = first.init(self.make_rng('params'), rows, real)
        else:
            start = levels.level(params, 0), levels.level(state, 0)
        outs = [first.quantize(*start, rows, keys[0], real, axis_name)]
        z = pack([top, bottom(outs[0].z_q.reshape(top.shape))])
        rows = levels.cut(z, -2)[1]
        real = None if mask is None else jnp.broadcast_to(mask[:, None, None], rows.shape[:-1])
        if starting:
            more = second.init(self.make_rng('params'), rows, real)
            self.held(((start[0], more[0]), (start[1], more[1])))
        else:
            more = levels.level(params, 1), levels.level(state, 1)
        outs.append(second.quantize(*more, rows, keys[1], real, axis_name))
        out = levels.join(outs)
        if train:
            real = None if mask is None else jnp.broadcast_to(mask[:, None, None], z.shape[:-1])
            self.learn(z, codes=out.codes, key=update_key, mask=real)
        return z, out


def both(spec: Any, make: Callable[[Any], Any]) -> tuple[Any, Any]:
    """The quantizers of top and bottom that a spec means: one for both, or one each by name.

    Raises:
      ValueError: for names that are not `top` and `bottom`, and where `make` does.
    """
    if isinstance(spec, dict) and 'name' not in spec:
        if sorted(spec) != sorted(NAMES):
            raise ValueError(
                f'give {" and ".join(NAMES)}, or one spec for both, got {sorted(spec)}'
            )
        return tuple(make(spec[name]) for name in NAMES)
    return make(spec), make(spec)


def over(pair: tuple[Any, Any], encoder: str, image_shape: Sequence[int]) -> quantizers.Quantizer:
    """`Levels` of these two, for the grids that an encoder has for images (H, W, C)."""
    return Levels(pair, tuple(math.prod(grid) for grid in two_level_grids(encoder, image_shape)))
