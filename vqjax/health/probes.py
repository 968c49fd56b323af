"""Measurements of a step that a training loop does not have at hand; `vqjax.health` reads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


def gradient_flow(
    quantize: Callable[[jax.Array], Any], task_loss: Callable[[jax.Array], jax.Array], z: jax.Array
) -> dict[str, jax.Array]:
    """How the gradient passes a quantizer, on one batch.

    Args:
      quantize: z -> Quantized, with params and state bound.
      task_loss: z_q -> [], what follows the quantizer.
      z: [..., D].

    Returns:
      float32 []: gradient_at_codes and gradient_at_input, norms of the task's gradient after and
      before the quantizer; quantizer_gradient, norm at z of that of the quantizer's own loss;
      quantizer_loss; of a leaf with these terms commitment_weight and codebook_weight, which that
      loss really gives to mean (z - sg(z_q))^2 and mean (sg(z) - z_q)^2.
    """

    return flow_of(z, *gradients_at(quantize, task_loss, z))


class Gradients(NamedTuple):
    """What a quantizer makes of z, and three gradients: of the task at z_q and at z, and at z of
    the quantizer's own loss.
    """

    out: Any
    at_codes: jax.Array
    at_input: jax.Array
    own: jax.Array


def gradients_at(
    quantize: Callable[[jax.Array], Any], task_loss: Callable[[jax.Array], jax.Array], z: jax.Array
) -> Gradients:
    """The gradients on one batch; arguments as in `gradient_flow`."""

    def outputs(z):
        out = quantize(z)
        return (out.z_q, out.loss), out

    (z_q, loss), pullback, out = jax.vjp(outputs, z, has_aux=True)
    at_codes = jax.grad(task_loss)(z_q)
    (at_input,) = pullback((at_codes, jnp.zeros_like(loss)))
    (own,) = pullback((jnp.zeros_like(z_q), jnp.ones_like(loss)))
    return Gradients(out, at_codes, at_input, own)


def flow_of(
    z: jax.Array, out: Any, at_codes: jax.Array, at_input: jax.Array, own: jax.Array
) -> dict[str, jax.Array]:
    """The results of `gradient_flow`, of gradients that are known."""
    found = {
        'gradient_at_codes': _norm(at_codes),
        'gradient_at_input': _norm(at_input),
        'quantizer_gradient': _norm(own),
        'quantizer_loss': out.loss,
    }
    if out.codes.ndim == z.ndim - 1 and 'commitment' in out.losses:
        difference = (z - out.z_q).astype(jnp.float32)
        error = jnp.maximum(jnp.mean(difference**2), 1e-30)
        # The gradient of b mean(difference^2) is 2 b difference / size: its part along difference.
        found['commitment_weight'] = jnp.sum(own * difference) / (2 * error)
        if set(out.losses) == {'commitment', 'codebook'}:
            found['codebook_weight'] = out.loss / error - found['commitment_weight']
    return found


def _norm(x):
    return jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32))))


def codebook_events(
    older: jax.Array, old: jax.Array, new: jax.Array, counts: jax.Array
) -> dict[str, jax.Array]:
    """What a step did to a codebook, read from outside.

    Args:
      older, old, new: float32 [K, D], before the last step, before this one and after it.
      counts: float32 [K], vectors that this step assigned to each code.

    Returns:
      float32 []: revived, codes without a vector that moved all the same; reverted, those of them
      that went back to where they were a step earlier; codebook_norm, mean length of the codes
      before this step; max_code_norm, length of the longest one.
    """
    jumped, back = jumps(older, old, new, counts)
    lengths = jnp.linalg.norm(old, axis=-1)
    return {
        'revived': jnp.sum(jumped & ~back, dtype=jnp.float32),
        'reverted': jnp.sum(back, dtype=jnp.float32),
        'codebook_norm': jnp.mean(lengths),
        'max_code_norm': jnp.max(lengths),
    }


def jumps(
    older: jax.Array, old: jax.Array, new: jax.Array, counts: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Codes that moved without a vector, and those of them that went back, bool [K] each.

    Arguments as in `codebook_events`.
    """
    scale = jnp.sqrt(jnp.mean(jnp.sum(old**2, -1)))
    moved = jnp.linalg.norm(new - old, axis=-1)
    # Averages of an unused code keep their ratio; smoothing shrinks one by a few percent at most.
    jumped = (counts == 0) & (moved > 0.2 * scale)
    back = jumped & (jnp.linalg.norm(new - older, axis=-1) < 0.2 * moved)
    return jumped, back
