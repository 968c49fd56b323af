"""Several processes: only the first reads and writes files, and all have to know."""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from vqjax.settings import RunError


def agree(value: Any) -> Any:
    """Plain data of process 0 on every process."""
    if jax.process_count() == 1:
        return value
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(text.size)))
    padded = np.zeros(length, np.uint8)
    if jax.process_index() == 0:
        padded[:] = text
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes())


def agree_arrays(tree: Any) -> Any:
    """A pytree of NumPy arrays of process 0 on every process."""
    return tree if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(tree)


def on_first_process(make: Callable[[], Any]) -> Any:
    """make() on process 0, None elsewhere; its RunError is raised everywhere."""
    made, problem = None, None
    if jax.process_index() == 0:
        try:
            made = make()
        except RunError as error:
            problem = str(error)
    problem = agree(problem)
    if problem is not None:
        raise RunError(problem)
    return made
