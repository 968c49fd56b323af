"""How often every code was used, as results keep it: only the codes that were used at all."""

from collections.abc import Mapping
from typing import Any

import numpy as np


def pack_counts(counts: np.ndarray) -> dict[str, list[int]]:
    """Counts [..., K] as plain data: their shape, the used codes, and the uses of each.

    Codes of several stages are numbered through: code c of stage s is s * K + c.
    """
    flat = np.asarray(counts).reshape(-1)
    used = np.flatnonzero(flat)
    return {
        'shape': list(np.shape(counts)),
        'codes': used.tolist(),
        'uses': flat[used].astype(int).tolist(),
    }


def read_counts(result: Mapping[str, Any]) -> np.ndarray | None:
    """Counts float64 [..., K] of a seed of results.json; None of a method without codes.

    Takes the lists with every zero that results held before, too.

    Raises:
      ValueError: `counts` is neither, or its parts do not fit together.
    """
    kept = result.get('counts')
    if kept is None:
        return None
    try:
        if not isinstance(kept, Mapping):
            return np.asarray(kept, np.float64)
        counts = np.zeros(kept['shape'])
        counts.reshape(-1)[np.asarray(kept['codes'], int)] = kept['uses']
        return counts
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise ValueError(
            f'counts of seed {result.get("seed")} are damaged: {type(error).__name__}, {error}'
        ) from error
