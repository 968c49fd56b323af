"""Several quantizers of the same vectors, whose vectors are added."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from vqjax import ops
from vqjax.ops import AxisName
from vqjax.quantizers.base import (
    Base,
    PyTree,
    Quantized,
    Quantizer,
    check,
    check_count,
    check_inner,
    check_start,
    checked,
    part_of,
    shapes_of,
)
from vqjax.quantizers.inner_quantizers import completed_to


@dataclass(frozen=True, repr=False)
class Parallel(Base):
    """A sum of quantizers that all see z, and not what the others left of it.

    Mimi's (arXiv:2410.00037 section 3.3.2): `Parallel((Projected(Residual(VQEMA(2048), 1), 256),
    Projected(Residual(VQEMA(2048), 7), 256)))`, one semantic code and seven acoustic ones, each
    branch with projections of its own. `loss` is the sum over branches, and so is dz_q/dz: each
    branch hands on its own. Targets of several codebooks (USM, arXiv:2303.01037) are
    `Parallel((RandomProjection(K, dim),) * 16)`: 16 codes a vector, z_q in the projected space.

    Fields:
      inner: the quantizer of each branch; their code_shape may differ in its last entry, and a leaf
        has one code. Either all of them are for targets or none is.

    Params and state are tuples of the branches'. The codes of the branches follow each other along
    their last axis, and so do the entries of losses along the first one.

    Raises:
      ValueError: for a field out of range, or an inner that quantizes whole grids; at trace time
        for branches that decode to different numbers of features.
    """

    inner: tuple[Quantizer, ...]

    def __post_init__(self):
        check(
            isinstance(self.inner, tuple | list) and len(self.inner) > 0,
            'inner',
            self.inner,
            'a tuple',
        )
        object.__setattr__(self, 'inner', tuple(self.inner))
        for inner in self.inner:
            check_inner(type(self).__name__, inner)
        shapes = [_axes(inner) for inner in self.inner]
        targets = {inner.targets_only for inner in self.inner}
        check(len(targets) == 1, 'inner', self.inner, 'all of them for targets, or none')
        same = len({shape[:-1] for shape in shapes}) == 1
        check(
            same, 'inner', self.inner, f'of code shapes that differ in the last entry, not {shapes}'
        )

    @property
    def num_codes(self) -> int:  # type: ignore[override]
        """K of the branch that has most."""
        return max(inner.num_codes for inner in self.inner)

    @property
    def lengths(self) -> tuple[int, ...]:
        """How many codes along the last axis each branch has."""
        return tuple(_axes(inner)[-1] for inner in self.inner)

    @property
    def code_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """The branches', with their last entries added up."""
        return (*_axes(self.inner[0])[:-1], sum(self.lengths))

    @property
    def code_sizes(self) -> np.ndarray:
        """The branches', int32 [*code_shape]."""
        sizes = [inner.code_sizes.reshape(_axes(inner)) for inner in self.inner]
        return np.concatenate(sizes, axis=-1)

    @property
    def bits(self) -> float:
        """The branches' bits together."""
        return sum(inner.bits for inner in self.inner)

    @property
    def coded_in_training(self) -> bool:  # type: ignore[override]
        """Whether every branch is."""
        return all(inner.coded_in_training for inner in self.inner)

    @property
    def targets_only(self) -> bool:  # type: ignore[override]
        """Whether the branches are."""
        return self.inner[0].targets_only

    @property
    def starts_from_data(self) -> bool:  # type: ignore[override]
        """Whether any branch's init reads the values of z."""
        return any(inner.starts_from_data for inner in self.inner)

    def completed(self, codes: jax.Array) -> jax.Array:
        """Codes [..., n] of the first n with -1 for the others."""
        return completed_to(codes, self.code_shape[-1])

    def first_stages(
        self, num: int, params: PyTree, state: PyTree
    ) -> tuple[Quantizer, PyTree, PyTree]:
        """(Parallel, params, state) of the first `num` codes, see `Base.first_stages`.

        Raises:
          ValueError: for a number out of range, or one that cuts a branch without stages.
        """
        check_count('num', num, most=sum(self.lengths))
        kept = []
        for i, (inner, length) in enumerate(zip(self.inner, self.lengths, strict=True)):
            branch = inner, self.branch(params, i), self.branch(state, i)
            if num > 0:
                kept.append(branch if num >= length else inner.first_stages(num, *branch[1:]))
            num -= length
        quantizers = tuple(kind for kind, *_ in kept)
        return Parallel(quantizers), tuple(p for _, p, _ in kept), tuple(s for *_, s in kept)

    def branch(self, tree: PyTree, i: int) -> PyTree:
        """The params or the state of one branch: of a tree without arrays ()."""
        return part_of(tree, i)

    def cut(self, codes: jax.Array) -> list[jax.Array]:
        """The codes of each branch, as it has them: [..., *inner, L] -> [..., *its code_shape]."""
        ends = np.cumsum(self.lengths)[:-1]
        parts = jnp.split(codes, ends, axis=-1)
        return [
            part if inner.code_shape else part[..., 0]
            for inner, part in zip(self.inner, parts, strict=True)
        ]

    def shapes(self, dim: int) -> tuple[PyTree, PyTree]:
        """The branches' ones, as tuples."""
        return shapes_of(self.inner, dim)

    @checked
    def init(
        self,
        key: jax.Array,
        z: jax.Array,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> tuple[PyTree, PyTree]:
        """(params, state), tuples: each branch starts from z [..., D] itself.

        Raises:
          ValueError: for a batch of identical, zero or non-finite vectors (outside jit).
        """
        check_start(self, z, mask)
        keys = jax.random.split(key, len(self.inner))
        started = [
            inner.init(key, z, mask, axis_name) for inner, key in zip(self.inner, keys, strict=True)
        ]
        return tuple(p for p, _ in started), tuple(s for _, s in started)

    @checked
    def quantize(
        self,
        params: PyTree,
        state: PyTree,
        z: jax.Array,
        key: jax.Array | None = None,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> Quantized:
        """Codes [..., L] and the summed vectors of z [..., D]."""
        x = z.astype(jnp.float32)
        keys = [None] * len(self.inner) if key is None else jax.random.split(key, len(self.inner))
        outs = [
            inner.quantize(
                self.branch(params, i), self.branch(state, i), x, keys[i], mask, axis_name
            )
            for i, inner in enumerate(self.inner)
        ]
        codes = [
            out.codes if inner.code_shape else out.codes[..., None]
            for inner, out in zip(self.inner, outs, strict=True)
        ]
        z_q = _added([out.z_q for out in outs]).astype(z.dtype)
        loss = sum((out.loss for out in outs[1:]), outs[0].loss)
        losses = _joined([out.losses for out in outs], self.lengths)
        return Quantized(z_q, jnp.concatenate(codes, axis=-1), loss, losses)

    @checked
    def update(
        self,
        params: PyTree,
        state: PyTree,
        z: jax.Array,
        codes: jax.Array,
        key: jax.Array | None = None,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
        weights: jax.Array | None = None,
    ) -> PyTree:
        """Each branch's state after z [..., D]."""
        keys = [None] * len(self.inner) if key is None else jax.random.split(key, len(self.inner))
        return tuple(
            inner.update(
                self.branch(params, i), self.branch(state, i),
                z, part, keys[i], mask, axis_name, weights,
            )
            for i, (inner, part) in enumerate(zip(self.inner, self.cut(codes), strict=True))
        )  # fmt: skip

    @checked
    def decode(self, params: PyTree, state: PyTree, codes: jax.Array) -> jax.Array:
        """Sum of the branches' vectors, float32 [..., D], of codes [..., L]; -1 adds nothing."""
        return _added(
            [
                inner.decode(self.branch(params, i), self.branch(state, i), part)
                for i, (inner, part) in enumerate(zip(self.inner, self.cut(codes), strict=True))
            ]
        )


def _axes(inner):
    return inner.code_shape or (1,)


def _added(vectors: Sequence[jax.Array]) -> jax.Array:
    """Their sum, each rounded before it: the same bits whatever they are computed with."""
    widths = {part.shape[-1] for part in vectors}
    if len(widths) > 1:
        raise ValueError(
            f'inner must decode to one number of features, to be added, got {sorted(widths)}'
        )
    total = ops.rounded(vectors[0])
    for part in vectors[1:]:
        total = total + ops.rounded(part)
    return total


def _joined(losses, lengths):
    """The terms of the branches one after the other; zeros where a branch lacks one."""
    entries = [{k: jnp.atleast_1d(v) for k, v in held.items()} for held in losses]
    names = {name: term for held in entries for name, term in held.items()}
    joined = {}
    for name, term in names.items():
        parts = []
        for held, length in zip(entries, lengths, strict=True):
            size = next((len(own) for own in held.values()), length)
            parts.append(held.get(name, jnp.zeros((size, *term.shape[1:]), term.dtype)))
        joined[name] = jnp.concatenate(parts)
    return joined
