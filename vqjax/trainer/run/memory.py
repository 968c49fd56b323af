"""What a model needs of memory before anything is computed, and whether it can have it."""

import os
from typing import Any

import jax
import numpy as np

from vqjax import quantizers
from vqjax.trainer.config.settings import Method
from vqjax.trainer.errors import RunError
from vqjax.trainer.step import starts
from vqjax.trainer.step.task import Task

# Below these no device is too small, and a model is not traced only to be measured.
_SMALL_SIDE, _SMALL_CODES = 4096, 2**20


def may_be_large(own: Method) -> bool:
    """Whether a method has a field so large that `check_memory` is worth its trace."""
    codes = 0 if own.quantizer is None else _codes(own.quantizer)
    return max(own.features, own.width) > _SMALL_SIDE or codes > _SMALL_CODES


def check_memory(own: Method, task: Task, image_shape: tuple[int, ...]) -> None:
    """Checks that the state of a run, its gradient and the counts of its codes fit at all.

    A bound from below: activations come on top, so a model that passes may still be too large.

    Raises:
      RunError: they do not, with the largest array.
    """
    too_large = 'lower features, width or the number of codes'
    try:
        state = starts.state_shapes(task, image_shape, 1)
    except (OverflowError, TypeError, MemoryError) as error:
        raise RunError(
            f'a model of features {own.features} and width {own.width} has arrays larger than any '
            f'there are ({str(error).strip().splitlines()[0][:200]}): {too_large}'
        ) from error
    leaves = jax.tree_util.tree_leaves_with_path((state, state.params))
    needed = sum(_bytes(leaf) for _, leaf in leaves)
    if own.quantizer is not None:
        needed += 12 * _codes(own.quantizer)  # counts of a batch, and of a split
    device = jax.local_devices()[0]
    if device.platform == 'cpu':
        needed *= jax.local_device_count()  # the devices share one memory
        there = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    else:
        there = (device.memory_stats() or {}).get('bytes_limit', 2**63)
    if needed > there:
        path, largest = max(leaves, key=lambda leaf: _bytes(leaf[1]))
        name = jax.tree_util.keystr(path[1:], simple=True, separator='/')
        raise RunError(
            f'the model and its optimizer need {_gigabytes(needed)}, and there are '
            f'{_gigabytes(there)}; the largest array is {name} of shape {largest.shape}: '
            f'{too_large}'
        )


def _codes(quantizer: Any) -> int:
    return quantizers.stages(quantizer) * quantizer.num_codes


def _bytes(leaf: Any) -> int:
    return int(np.prod(leaf.shape, dtype=object)) * np.dtype(leaf.dtype).itemsize


def _gigabytes(number: int) -> str:
    return f'{number / 1e9:,.1f} GB'
