"""The optimizer of every run: AdamW with warm-up, clipping and a frozen encoder."""

import functools
from typing import Any

import jax
import optax

from vqjax.runfiles import ENCODER, QUANTIZER


def make_optimizer(
    learning_rate: float,
    num_steps: int,
    warmup_steps: int = 0,
    weight_decay: float = 0.0,
    clip_norm: float = 0.0,
    schedule: str = 'cosine',
    frozen_steps: int = 0,
    quantizer_rate: float = 1.0,
) -> optax.GradientTransformation:
    """AdamW with linear warm-up, then cosine decay to 0 over num_steps or a constant rate.

    Args:
      learning_rate: the peak.
      weight_decay: decoupled, on kernels only (arrays of rank 2 and more); 0 = off.
      clip_norm: largest global norm of the gradient; 0 = off.
      schedule: 'cosine' or 'constant'.
      frozen_steps: first steps in which the encoder does not move; -1 = it never does.
      quantizer_rate: factor on the rate of the quantizer's parameters (arXiv:2005.08520 section 3).
    """
    # A warm-up as long as the run would leave the decay no steps.
    warmup_steps = min(warmup_steps, num_steps - 1)
    if schedule == 'cosine':
        rate = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup_steps, num_steps)
    else:
        rate = optax.constant_schedule(learning_rate)
        if warmup_steps:  # a warm-up of no steps would be a rate of 0 for good
            rate = optax.warmup_constant_schedule(0.0, learning_rate, warmup_steps)
    parts = [
        optax.adamw(
            rate,
            weight_decay=weight_decay,
            mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        )
    ]
    if clip_norm:
        parts.insert(0, optax.clip_by_global_norm(clip_norm))
    if quantizer_rate != 1:
        parts.append(
            optax.masked(optax.scale(quantizer_rate), functools.partial(within, name=QUANTIZER))
        )
    if frozen_steps:
        thaw = optax.join_schedules(
            [optax.constant_schedule(0.0), optax.constant_schedule(1.0)],
            [num_steps if frozen_steps < 0 else frozen_steps],
        )
        encoder = functools.partial(within, name=ENCODER)
        parts.append(optax.masked(optax.scale_by_schedule(thaw), encoder))
    return parts[0] if len(parts) == 1 else optax.chain(*parts)


def within(tree: Any, name: str) -> Any:
    """Bools like tree: whether a leaf lies below an entry of this name."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: any(getattr(part, 'key', None) == name for part in path), tree
    )
