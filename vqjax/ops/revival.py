"""What happens to codes that (almost) nothing uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vqjax.ops.fields import check_count, is_number, make_plain
from vqjax.ops.kmeans import kmeans
from vqjax.ops.names import named_function
from vqjax.ops.nearest import nearest_codes
from vqjax.ops.rows import gumbel_rows, top_rows, uniform_rows
from vqjax.ops.serialization import exported
from vqjax.ops.statistics import AxisName, code_sums, psum


@exported
class Batch(NamedTuple):
    """What a source may look at: rows [N, D], their codes [N] (-1 = none), which count [N]."""

    rows: jax.Array
    codes: jax.Array
    valid: jax.Array
    assigned: jax.Array  # [K, D], the codebook that the codes refer to


@exported
class Revived(NamedTuple):
    """Codebook [K, D], counts [K], and the entries that changed, bool [K]."""

    codebook: jax.Array
    counts: jax.Array
    changed: jax.Array


# (key or None, batch, codebook [K, D], counts [K], dead bool [K], axis_name) -> Revived
Source = Callable[..., Revived]


def _fill(rows, priority, codebook, counts, dead, axis_name) -> Revived:
    """The j-th dead code takes the j-th best row and the count of uniform use."""
    chosen, ok = top_rows(rows, priority, codebook.shape[0], axis_name)
    rank = jnp.maximum(jnp.cumsum(dead) - 1, 0)
    changed = dead & ok[rank]
    return Revived(
        jnp.where(changed[:, None], chosen[rank], codebook),
        jnp.where(changed, jnp.mean(counts), counts),
        changed,
    )


def largest_error(
    key: jax.Array | None,
    batch: Batch,
    codebook: jax.Array,
    counts: jax.Array,
    dead: jax.Array,
    axis_name: AxisName = None,
) -> Revived:
    """Dead codes take the vectors that the codebook serves worst: deterministic, no key needed."""
    del key
    squared = jnp.sum((batch.rows - batch.assigned[batch.codes]) ** 2, axis=-1)
    # A vector that a code meets exactly needs no second one.
    priority = jnp.where(batch.valid & (squared > 0), squared, -jnp.inf)
    return _fill(batch.rows, priority, codebook, counts, dead, axis_name)


def random_rows(
    key: jax.Array | None,
    batch: Batch,
    codebook: jax.Array,
    counts: jax.Array,
    dead: jax.Array,
    axis_name: AxisName = None,
) -> Revived:
    """Dead codes take random vectors of the batch (Jukebox, arXiv:2005.00341).

    Without a key: the vectors with the largest error.
    """
    if key is None:
        return largest_error(key, batch, codebook, counts, dead, axis_name)
    priority = jnp.where(batch.valid, uniform_rows(key, batch.valid, axis_name), -jnp.inf)
    return _fill(batch.rows, priority, codebook, counts, dead, axis_name)


def error_rows(
    key: jax.Array | None,
    batch: Batch,
    codebook: jax.Array,
    counts: jax.Array,
    dead: jax.Array,
    axis_name: AxisName = None,
) -> Revived:
    """Dead codes take vectors drawn by squared error, as k-means++ seeds are.

    Without a key: the vectors with the largest error.
    """
    if key is None:
        return largest_error(key, batch, codebook, counts, dead, axis_name)
    squared = jnp.sum((batch.rows - batch.assigned[batch.codes]) ** 2, axis=-1)
    noise = gumbel_rows(key, batch.valid, axis_name)
    priority = jnp.where(batch.valid & (squared > 0), jnp.log(squared) + noise, -jnp.inf)
    return _fill(batch.rows, priority, codebook, counts, dead, axis_name)


def kmeans_rows(
    key: jax.Array | None,
    batch: Batch,
    codebook: jax.Array,
    counts: jax.Array,
    dead: jax.Array,
    axis_name: AxisName = None,
) -> Revived:
    """Dead codes take k-means centroids of the vectors, those of the largest error mass first.

    K centroids are fitted; the mass of one is the squared error that its vectors have now. Meant
    for `Banked`, where there are more vectors than codes. Without a key: k-means from a fixed one.
    """
    num_codes = codebook.shape[0]
    key = jax.random.key(0) if key is None else key
    centroids, members, _ = kmeans(key, batch.rows, num_codes, 10, batch.valid, axis_name)
    nearest = jnp.where(batch.valid, nearest_codes(batch.rows, centroids), -1)
    squared = jnp.sum((batch.rows - batch.assigned[batch.codes]) ** 2, axis=-1)
    mass = code_sums(squared[:, None], nearest, num_codes, None, axis_name)[:, 0]
    priority = jnp.where((members > 0) & (mass > 0), mass, -jnp.inf)
    # The same on every replica already.
    return _fill(centroids, priority, codebook, counts, dead, None)


def split(
    key: jax.Array | None,
    batch: Batch,
    codebook: jax.Array,
    counts: jax.Array,
    dead: jax.Array,
    axis_name: AxisName = None,
) -> Revived:
    """Dead codes take half of the most used ones (UViM, arXiv:2205.10337), both moved apart.

    The two halves stand 1/512 of the codebook's scale from each other, in a random direction of
    signs with a key and in an alternating one without.
    """
    del batch, axis_name
    num_codes, dim = codebook.shape
    _, order = lax.top_k(counts, num_codes)
    rank = jnp.maximum(jnp.cumsum(dead) - 1, 0)
    donor = order[rank]
    changed = dead & ~dead[donor]
    signs = jnp.where(jnp.arange(dim) % 2, -1.0, 1.0)
    if key is not None:
        signs = jax.random.rademacher(key, (num_codes, dim), jnp.float32)
    offset = jnp.sqrt(jnp.mean(codebook**2)) / 1024 * jnp.broadcast_to(signs, codebook.shape)
    # Each donor gives once: ranks are distinct, so `gave` marks at most one receiver a donor.
    slot = jnp.where(changed, donor, num_codes)
    gave = jnp.zeros(num_codes + 1, bool).at[slot].set(True)[:num_codes]
    moved = jnp.where(gave[:, None], codebook - offset, codebook)
    halved = jnp.where(gave, counts / 2, counts)
    return Revived(
        jnp.where(changed[:, None], codebook[donor] + offset[donor], moved),
        jnp.where(changed, halved[donor], halved),
        changed | gave,
    )


def anchors(
    key: jax.Array | None,
    batch: Batch,
    codebook: jax.Array,
    counts: jax.Array,
    dead: jax.Array,
    axis_name: AxisName = None,
) -> Revived:
    """Dead codes move to their nearest vector of the batch, at every look until they are used.

    The closest anchors of CVQ-VAE (arXiv:2307.15139). Its eq. 4 weights the move by use, with an
    average that starts at 0: a code that was never used moves at once, by a weight of 1. Counts
    here start at those of the initialisation, of which that weight makes 1e-43 at a tenth of
    uniform use and .4 at a thousandth: 700 steps later at a decay of .99. So `below` alone says
    which codes move, all the way but for a 1,024th: codes with one nearest vector stay apart, where
    otherwise rounding would decide which of them takes what. Costs a search of K codes among N
    vectors.
    """
    del key
    # Rows that do not count are infinitely far: NaN to the search would poison every minimum.
    far = jnp.where(batch.valid[:, None], batch.rows, 1e18)
    nearest = nearest_codes(codebook, far)
    anchor = batch.rows[nearest]
    distance = jnp.sum((codebook - far[nearest]) ** 2, axis=-1)
    found = batch.valid[nearest]
    if axis_name is not None:
        distance = jnp.where(found, distance, jnp.inf)
        everywhere = lax.all_gather(distance, axis_name)
        mine = found & (jnp.argmin(everywhere, axis=0) == lax.axis_index(axis_name))
        anchor = psum(jnp.where(mine[:, None], anchor, 0.0), axis_name)
        found = psum(mine.astype(jnp.int32), axis_name) > 0
    changed = dead & found
    moved = anchor + (codebook - anchor) / 1024
    return Revived(jnp.where(changed[:, None], moved, codebook), counts, changed)


# What a spec may name.
SOURCES = {
    f.__name__: f for f in (random_rows, largest_error, error_rows, kmeans_rows, split, anchors)
}


@dataclass(frozen=True)
class Revival:
    """When a code counts as dead, how often that is looked at, and what it becomes.

    Fields:
      below: a code is dead when its count is below this share of uniform use, sum(counts) / K:
        relative, so it means the same for every batch size and codebook.
      every: steps between two looks, at least 1.
      source: `random_rows`, `largest_error`, `error_rows`, `kmeans_rows`, `split`, `anchors` or a
        function of the same signature.

    Raises:
      ValueError: for `below` outside (0, 1), an `every` that is no integer from 1.
    """

    below: float = 0.1
    every: int = 10
    source: Source = random_rows

    def __post_init__(self) -> None:
        make_plain(self)
        if not (is_number(self.below) and 0 < self.below < 1):
            raise ValueError(
                f'below must lie in (0, 1), a share of uniform use, got {self.below!r}; '
                'for no revival give revival=None'
            )
        check_count('every', self.every)
        object.__setattr__(self, 'source', named_function('source', self.source, SOURCES))

    def __repr__(self) -> str:
        return f'Revival(below={self.below!r}, every={self.every!r}, source={self.source.__name__})'

    def __call__(
        self,
        key: jax.Array | None,
        batch: Batch,
        codebook: jax.Array,
        counts: jax.Array,
        step: jax.Array,
        axis_name: AxisName = None,
    ) -> Any:
        """Revive what is dead at this step.

        Args:
          key: random key, the same on every replica, or None.
          batch: the step's vectors.
          codebook, counts: float32 [K, D] and [K] after the step's update.
          step: int32 [], steps taken with this one.

        Returns:
          Revived. The work is skipped (by `lax.cond`) where nothing is dead.
        """
        return _compiled(self, key, batch, codebook, counts, step, axis_name)


def revive(
    revival: Any,
    key: jax.Array | None,
    batch: Batch,
    codebook: jax.Array,
    counts: jax.Array,
    step: jax.Array,
    axis_name: AxisName,
) -> Any:
    """What calling a Revival does, for a caller that is compiled anyway."""
    dead = counts < revival.below * jnp.mean(counts)
    # A batch of nothing but padding, on all replicas, is no reason to revive.
    held = psum(jnp.any(batch.valid).astype(jnp.int32), axis_name) > 0
    due = (step % revival.every == 0) & jnp.any(dead) & held
    same = Revived(codebook, counts, jnp.zeros(counts.shape, bool))
    return lax.cond(
        due,
        lambda: revival.source(key, batch, codebook, counts, dead, axis_name),
        lambda: same,
    )


# Compiled once for a Revival: outside jit, lax.cond would be compiled anew at every call.
_compiled = jax.jit(revive, static_argnames=('revival', 'axis_name'), inline=True)
