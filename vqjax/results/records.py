"""What results.json keeps of one run: use of codes, and which test examples were right."""

import base64
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


def pack_correct(correct: np.ndarray) -> dict[str, Any]:
    """bool [n] as plain data: their number, and the bits in base64, the first one the highest."""
    bits = np.packbits(np.asarray(correct, bool)).tobytes()
    return {'examples': len(correct), 'bits': base64.b64encode(bits).decode()}


def read_correct(result: Mapping[str, Any]) -> np.ndarray | None:
    """bool [n] of a seed of results.json, in the order of the test split; None where it has none.

    So are results of before, and tokenizers.

    Raises:
      ValueError: `correct` is damaged: another number of bits than examples, or other right ones
        than the accuracy says.
    """
    kept = result.get('correct')
    if kept is None:
        return None
    try:
        number = kept['examples']
        raw = np.frombuffer(base64.b64decode(kept['bits'], validate=True), np.uint8)
        if len(raw) != -(-number // 8):
            raise ValueError(f'{8 * len(raw)} bits of {number} examples')
        correct = np.unpackbits(raw, count=number).astype(bool)
        told, accuracy = float(correct.mean()), result.get('accuracy')
        if accuracy is not None and not abs(told - accuracy) < 1e-5:
            raise ValueError(f'{told:.4f} of them are right, and accuracy is {accuracy:.4f}')
        return correct
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f'correct of seed {result.get("seed")} is damaged: {type(error).__name__}, {error}'
        ) from error
