"""What combinators do with the quantizers in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vqjax.ops import AxisName, StageDropout
from vqjax.ops.dropping import UNITS
from vqjax.quantizers.base import Base, Quantized, check, hide
from vqjax.quantizers.protocol import PyTree


class Around(Base):
    """A combinator around one quantizer, `inner`, whose codes are its codes."""

    inner: Any

    @property
    def num_codes(self) -> int:  # type: ignore[override]
        """The inner's."""
        return self.inner.num_codes

    @property
    def code_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """The inner's."""
        return self.inner.code_shape

    @property
    def grid(self) -> tuple[int, ...]:  # type: ignore[override]
        """The inner's."""
        return self.inner.grid

    @property
    def bits(self) -> float:
        """The inner's."""
        return self.inner.bits

    @property
    def code_sizes(self) -> np.ndarray:
        """The inner's."""
        return self.inner.code_sizes

    @property
    def starts_from_data(self) -> bool:  # type: ignore[override]
        """The inner's."""
        return self.inner.starts_from_data

    @property
    def coded_in_training(self) -> bool:  # type: ignore[override]
        """The inner's."""
        return self.inner.coded_in_training

    def by_codebook(self, codes: jax.Array) -> jax.Array:
        """The inner's."""
        return self.inner.by_codebook(codes)

    def coded(self, codes: jax.Array) -> jax.Array:
        """The inner's."""
        return self.inner.coded(codes)

    def code_shape_of(self, codes: jax.Array) -> tuple[int, ...]:
        """The inner's."""
        return self.inner.code_shape_of(codes)

    def completed(self, codes: jax.Array) -> jax.Array:
        """The inner's."""
        return self.inner.completed(codes)


def quantize_chosen(
    inner: Any,
    params: PyTree,
    state: PyTree,
    z: jax.Array,
    key: jax.Array | None,
    mask: jax.Array | None,
    axis_name: AxisName,
    chosen: jax.Array | None = None,
) -> Quantized:
    """What `inner` makes of z [..., D]; of the codes `chosen` int32 [...], where they are given."""
    if chosen is None:
        return inner.quantize(params, state, z, key, mask, axis_name)
    return inner.read(params, state, z, hide(chosen, mask), mask, axis_name)


def quantize_detached(
    inner: Any,
    params: PyTree,
    state: PyTree,
    z: jax.Array,
    key: jax.Array | None,
    mask: jax.Array | None,
    axis_name: AxisName,
    chosen: jax.Array | None = None,
) -> Quantized:
    """`quantize_chosen` whose z_q hands its gradient to params alone, and its losses to both.

    Where there are params, reverse mode and first derivatives only (`jax.custom_vjp`).
    """
    if not jax.tree.leaves(params):
        out = quantize_chosen(inner, params, state, z, key, mask, axis_name, chosen)
        return out._replace(z_q=lax.stop_gradient(out.z_q))

    def run(params, z, state, key, mask, chosen):
        out = quantize_chosen(inner, params, state, z, key, mask, axis_name, chosen)
        return (out.z_q, out.loss, out.losses), out.codes

    call = jax.custom_vjp(run)

    def forward(params, z, *rest):
        outputs, pullback, codes = jax.vjp(lambda p, x: run(p, x, *rest), params, z, has_aux=True)
        return (outputs, codes), pullback

    def backward(pullback, cotangents):
        z_q, loss, losses = cotangents[0]
        to_params, _ = pullback((z_q, loss, losses))
        _, to_z = pullback((jnp.zeros_like(z_q), loss, losses))
        return to_params, to_z, None, None, None, None

    call.defvjp(forward, backward)
    (z_q, loss, losses), codes = call(params, z, state, key, mask, chosen)
    return Quantized(z_q, codes, loss, losses)


def dropout_of(value: StageDropout | str | None, num_stages: int) -> StageDropout | None:
    """The field `dropout`: one of UNITS is that of `StageDropout`.

    Raises:
      ValueError: for anything else, and for one that the number of stages does not fit.
    """
    dropout: Any = value
    if isinstance(value, str) and value in UNITS:
        dropout = StageDropout(value)
    need = f'one of {UNITS}, a StageDropout or None'
    check(dropout is None or isinstance(dropout, StageDropout), 'dropout', value, need)
    if dropout is not None:
        dropout.depths(num_stages)
    return dropout


def completed_to(codes: jax.Array, number: int) -> jax.Array:
    """Codes [..., n] of the first n stages of `number`, with -1 for the others: [..., number].

    As they came where there is no such axis, or more of them.
    """
    missing = number - codes.shape[-1] if codes.ndim else 0
    if missing <= 0 or missing == number or codes.dtype.kind not in 'iu':
        return codes
    if codes.dtype.kind == 'u':  # which has no -1
        codes = jnp.minimum(codes, np.iinfo(np.int32).max).astype(jnp.int32)
    return jnp.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, missing)], constant_values=-1)


def stack_rows(rows: Sequence[jax.Array]) -> jax.Array:
    """Rows of codes [..., N] of several quantizers, -1 at the ends of short ones: [..., n, N]."""
    longest = max(row.shape[-1] for row in rows)
    padded = [
        jnp.pad(row, [(0, 0)] * (row.ndim - 1) + [(0, longest - row.shape[-1])], constant_values=-1)
        for row in rows
    ]
    return jnp.stack(padded, axis=-2)


def merge_losses(losses: Sequence[dict[str, jax.Array]]) -> dict[str, jax.Array]:
    """The terms of several quantizers, stacked by name; one that a quantizer lacks is 0 there."""
    terms = {name: term for held in losses for name, term in held.items()}
    return {
        name: jnp.stack([held.get(name, jnp.zeros_like(term)) for held in losses])
        for name, term in terms.items()
    }
