"""Semantic IDs: the codes of an item's embedding as its name in a recommender or a search index.

After TIGER (Rajput et al. 2023, arXiv:2305.05065): similar items share a prefix, and a last number
separates items that share all codes. The arrays are NumPy's; nothing here runs on a device.
"""

from __future__ import annotations

import numpy as np


def collision_rate(ids: np.ndarray) -> float:
    """Share of the items whose ID belongs to another item too.

    Args:
      ids: integers [N, L], the codes of each item; N at least 1.

    Returns:
      From 0 to 1.

    Raises:
      ValueError: for ids of another shape or type.
    """
    _, owners, sizes = _groups(ids)
    return float(np.mean(sizes[owners] > 1))


def add_suffix(ids: np.ndarray) -> np.ndarray:
    """IDs that are unique: a last number counts the items with the same codes (TIGER section 3.1).

    It counts in the order of the items, so IDs stay as they are when new items are appended, and
    change when items are removed or reordered. The last position needs a vocabulary of its own, of
    size `result[:, -1].max() + 1`.

    Args:
      ids: integers [N, L], the codes of each item; N at least 1.

    Returns:
      int32 [N, L + 1]; the last column is 0 for the first item of its codes, then 1, 2, ...

    Raises:
      ValueError: for ids of another shape or type, or beyond int32.
    """
    ids, owners, sizes = _groups(ids)
    if not np.array_equal(ids, ids.astype(np.int32)):
        raise ValueError(f'ids must fit int32, got {ids.min()} to {ids.max()}')
    # Sorted by owner, stably: an item's number is its place minus the first place of its owner.
    order = np.argsort(owners, kind='stable')
    first = np.cumsum(sizes) - sizes
    suffix = np.empty(len(ids), np.int32)
    suffix[order] = np.arange(len(ids)) - first[owners[order]]
    return np.concatenate([ids.astype(np.int32), suffix[:, None]], axis=1)


def item_table(ids: np.ndarray) -> dict[tuple[int, ...], int]:
    """From an ID to its item: {(code, code, ..., suffix): row of ids}.

    The other way is `ids` itself: `ids[item]` is the ID of an item. An ID that a model made up is
    not in the table, `table.get(tuple(made), -1)`.

    Args:
      ids: integers [N, L], all different, as `add_suffix` gives them.

    Raises:
      ValueError: for ids of another shape or type, and where two items have the same ID.
    """
    ids, owners, sizes = _groups(ids)
    if sizes.max() > 1:
        one, other = np.flatnonzero(owners == np.argmax(sizes > 1))[:2]
        raise ValueError(
            f'ids must be unique, but items {one} and {other} both have '
            f'{tuple(ids[one].tolist())}: separate them by add_suffix(ids)'
        )
    return {tuple(row): item for item, row in enumerate(ids.tolist())}


def _groups(ids):
    """ids as an array, the group [N] of items with the same ID, and the size of each group."""
    ids = np.asarray(ids)
    if ids.ndim != 2 or not ids.size or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(
            f'ids must be integers [N, L], one row of codes an item, got {ids.dtype} of shape '
            f'{ids.shape}'
        )
    if ids.min() < 0:
        item = int(np.argmax(ids.min(1) < 0))
        raise ValueError(
            f'ids must not be negative, got {ids[item].tolist()} for item {item}: its embedding '
            'was not finite or was masked, so leave the item out'
        )
    _, owners, sizes = np.unique(ids, axis=0, return_inverse=True, return_counts=True)
    return ids, owners.reshape(-1), sizes
