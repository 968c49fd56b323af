"""How far a step moves the parameters of a model."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))


@jax.jit
def compare(old: Any, new: Any) -> dict[str, jax.Array]:
    """How far one step moved the matrices of a model, relative to their length.

    Vectors (biases, scales) are left out unless there is nothing else: many start at 0.
    """
    pairs = [
        (jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))
        for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True)
        if jnp.issubdtype(jnp.result_type(a), jnp.floating)
    ]
    pairs = [pair for pair in pairs if pair[0].ndim > 1] or pairs
    if not pairs:
        return {}
    moved = jnp.stack([jnp.linalg.norm((b - a).reshape(-1)) for a, b in pairs])
    length = jnp.stack([jnp.linalg.norm(a.reshape(-1)) for a, _ in pairs])
    ratios = jnp.where(length > 0, moved / length, jnp.nan)
    return {
        'update_ratio': jnp.nanmedian(ratios),
        'update_ratio_most': jnp.nanmax(ratios),
        'model_norm': jnp.linalg.norm(length),
        'still_arrays': jnp.sum(moved == 0, dtype=jnp.float32),
        'arrays': jnp.float32(len(pairs)),
    }
