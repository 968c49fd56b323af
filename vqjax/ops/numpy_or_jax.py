"""Which of NumPy and JAX computes with given arrays."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def numpy_of(*arrays: Any) -> Any:
    """`jax.numpy` where one of the arrays is of JAX, else NumPy, which compiles nothing."""
    return jnp if any(isinstance(x, jax.Array) for x in arrays) else np
