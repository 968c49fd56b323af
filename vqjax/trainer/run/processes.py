"""Several processes: only the first reads and writes files, and all have to know."""

import json
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from vqjax.trainer.errors import RunError


def connect(address: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins the other processes; before anything else asks JAX for devices.

    Args:
      address: 'host:port' of process 0; None on one host, a TPU pod or under Slurm, where JAX
        finds out itself.

    Raises:
      RunError: the three are not given together, or the others cannot be reached.
    """
    given = [x is not None for x in (address, num_processes, process_id)]
    if any(given) and not all(given):
        raise RunError(
            '--coordinator_address, --num_processes and --process_id go together: give all or none'
        )
    on_a_cluster = int(os.environ.get('SLURM_NTASKS', '1')) > 1 or ',' in os.environ.get(
        'TPU_WORKER_HOSTNAMES', ''
    )
    if not any(given) and not on_a_cluster:
        return
    try:
        jax.distributed.initialize(address, num_processes, process_id)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RunError(f'cannot join the other processes at {address}: {reason}') from error


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
