"""Residual quantization: each stage quantizes what the stages before it left."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from vqjax import ops
from vqjax.ops import AxisName, StageDropout
from vqjax.ops.compiling import compiled_once
from vqjax.quantizers.base import (
    Base,
    PyTree,
    Quantized,
    Quantizer,
    check,
    check_count,
    check_features,
    check_flag,
    check_inner,
    check_positive,
    check_start,
    check_weight,
    checked,
    shapes_of,
    stacked,
)
from vqjax.quantizers.beam import beam_codes
from vqjax.quantizers.codebook import Codebook
from vqjax.quantizers.inner_quantizers import (
    completed_to,
    dropout_of,
    merge_losses,
    quantize_detached,
)
from vqjax.quantizers.sums_of_stages import (
    Sums,
    estimator_of,
    noise_key,
    vectors_of,
    with_slope,
    without_slope,
)


@dataclass(frozen=True, repr=False)
class Residual(Base):
    """Residual quantization (SoundStream, arXiv:2107.03312 algorithm 1).

    z_q is the sum of the stages' vectors. Stages are detached from each other: the loss of each
    reaches z, and one estimator (the inner quantizer's, else straight-through) stands around the
    whole, so dz_q/dz is 1 and not the number of stages. Of `ops.DiVeQ` and `ops.directional`, which
    train codes, the codes of all stages get the gradient along the whole error, and that of
    `sync_nu` is left out. `loss` is the sum over stages. Stages run
    as one `lax.scan`, so compile time does not grow with their number. A fixed grid (FSQ, LFQ)
    shrinks from stage to stage and takes its input unbounded: it then covers [-1, 1].

    Fields:
      inner: the quantizer of every stage, or a tuple with one for each.
      num_stages: S; may be left out with a tuple.
      shared: one codebook for all stages, updated once a step with the vectors of all of them.
      dropout: with a key, only the first n ~ U{1..S} stages are used: 'sample' draws n for each
        entry of z's first axis, 'batch' once; codes of the others are -1. Which n there
        are says an `ops.StageDropout`.
      beam: codes are chosen among this many partial sums, by the final residual (1: greedily), or
        by the errors after all stages, an `ops.Beam`.
      similarity: weight of `ops.structural_similarity` of each stage's vectors and those of the
        stage before (ERVQ, arXiv:2410.12359); its gradient goes to what the vectors are made of
        and straight through each to z. They are then all held, S N D numbers.

      scale: what a stage's input and vectors are scaled by more than those of the stage before: one
        number or one a feature; None: the inner's `stage_scale`.

    Params and state are the inner's with leading axis [S], the inner's own if shared, tuples for a
    tuple. Codes get a trailing axis [S], losses a leading one.

    Raises:
      ValueError: for a field out of range, a beam over an inner without an explicit codebook, or
        an inner whose z_q is not in the space of z.
    """

    inner: Quantizer | tuple[Quantizer, ...]
    num_stages: int = cast(int, None)  # then told by the tuple
    shared: bool = False
    dropout: StageDropout | str | None = None
    beam: int | ops.Beam = 1
    similarity: float = 0.0
    scale: float | tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_flag('shared', self.shared)
        inners = self._inners
        for inner in inners:
            check_inner(type(self).__name__, inner)
        if isinstance(self.inner, tuple):
            check(len(inners) > 0, 'inner', inners, 'a quantizer or a tuple of at least one')
            check(not self.shared, 'shared', self.shared, 'False with a different inner per stage')
            if self.num_stages is None:
                object.__setattr__(self, 'num_stages', len(inners))
            need = f'{len(inners)}, the number of inner quantizers'
            check(self.num_stages == len(inners), 'num_stages', self.num_stages, need)
            shapes = [inner.code_shape for inner in inners]
            check(len(set(shapes)) == 1, 'inner', inners, f'of one code_shape, not {shapes}')
        check_count('num_stages', self.num_stages)
        object.__setattr__(self, 'dropout', dropout_of(self.dropout, self.num_stages))
        if isinstance(self.beam, ops.Beam):
            need = f'with {self.num_stages} weights, one a stage'
            check(len(self.beam.weights) == self.num_stages, 'beam', self.beam, need)
        else:
            check_count('beam', self.beam)
        explicit = all(isinstance(inner, Codebook) for inner in inners)
        need = '1 where an inner quantizer has no explicit codebook'
        check(self.beam == 1 or explicit, 'beam', self.beam, need)
        check_weight('similarity', self.similarity)
        given = (
            self.scale
            if isinstance(self.scale, tuple)
            else (self.scale,) * (self.scale is not None)
        )
        for number in given:
            check_positive('scale', number)
        need = '0 where there is one stage alone'
        check(not self.similarity or self.num_stages > 1, 'similarity', self.similarity, need)

    @property
    def _inners(self) -> tuple[Quantizer, ...]:
        return self.inner if isinstance(self.inner, tuple) else (self.inner,)

    @property
    def _by_stage(self) -> tuple[Quantizer, ...]:
        inners = self._inners
        return inners if isinstance(self.inner, tuple) else inners * self.num_stages

    @property
    def num_codes(self) -> int:  # type: ignore[override]
        """K of a stage (the largest where they differ)."""
        return max(inner.num_codes for inner in self._inners)

    @property
    def code_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """The inner's, and S."""
        return (*self._inners[0].code_shape, self.num_stages)

    @property
    def bits(self) -> float:
        """The stages' bits together."""
        return sum(inner.bits for inner in self._by_stage)

    @property
    def code_sizes(self) -> np.ndarray:
        """K of each stage's codes, int32 [*inner, S]."""
        return np.stack([inner.code_sizes for inner in self._by_stage], axis=-1)

    def completed(self, codes: jax.Array) -> jax.Array:
        """Codes [..., *inner, n] of the first n stages with -1 for the others: [..., *inner, S]."""
        return completed_to(codes, self.num_stages)

    def first_stages(
        self, num: int, params: PyTree, state: PyTree
    ) -> tuple[Quantizer, PyTree, PyTree]:
        """(Residual, params, state) of the first `num` stages, see `Base.first_stages`.

        Raises:
          ValueError: for a number that is not from 1 to S.
        """
        check_count('num', num, most=self.num_stages)
        fields: dict[str, Any] = {'num_stages': num}
        if isinstance(self.inner, tuple):
            fields['inner'] = self.inner[:num]
        if num == 1:
            fields['similarity'] = 0.0
        if isinstance(self.beam, ops.Beam):
            weights = self.beam.weights[:num]
            fields['beam'] = ops.Beam(self.beam.size, weights) if any(weights) else self.beam.size
        if (dropout := dropout_of(self.dropout, self.num_stages)) is not None:
            multiple = 1 if num % dropout.multiple else dropout.multiple
            least = min(dropout.least, num)
            fields['dropout'] = dataclasses.replace(dropout, least=least, multiple=multiple)

        def cut(tree):
            if self.shared:
                return tree
            if isinstance(self.inner, tuple):
                return tree[:num]
            return jax.tree.map(lambda x: x[:num], tree)

        return dataclasses.replace(self, **fields), cut(params), cut(state)

    @property
    def starts_from_data(self) -> bool:  # type: ignore[override]
        """Whether any stage's init reads the values of z."""
        return any(inner.starts_from_data for inner in self._inners)

    @property
    def _scales(self):
        """What each stage's vectors are multiplied by, float32 [S] or [S, D]."""
        if self.scale is not None:
            powers = np.arange(self.num_stages).reshape(-1, *[1] * isinstance(self.scale, tuple))
            return (np.asarray(self.scale, np.float64) ** powers).astype(np.float32)
        scales: list[Any] = [np.float32(1)]
        for inner in self._by_stage[:-1]:
            scales.append(scales[-1] * np.asarray(inner.stage_scale, np.float32))
        if len({scale.size for scale in scales if scale.ndim}) > 1:
            raise ValueError(f'inner={self.inner!r} has grids of different numbers of features')
        return np.stack(np.broadcast_arrays(*scales))

    def _scales_for(self, z):
        """`_scales`, which z [..., D] must fit."""
        scales = self._scales
        if scales.ndim > 1:
            check_features(z, scales.shape[1], f'inner={self.inner!r}, scale={self.scale!r}')
        return scales

    def _stages(self, body, carry, *xs, params: Any = None, state: Any = None) -> Any:
        """(carry, outputs) of body(inner, carry, params, state, *x) run over the stages."""
        if isinstance(self.inner, tuple):
            outputs = []
            for s, inner in enumerate(self.inner):
                # A tree without leaves may arrive as (): nothing to take a part of.
                part = [tree[s] if jax.tree.leaves(tree) else () for tree in (params, state)]
                carry, output = body(inner, carry, *part, *jax.tree.map(lambda x, s=s: x[s], xs))
                outputs.append(output)
            return carry, tuple(outputs)
        if self.shared:
            return lax.scan(lambda c, x: body(self.inner, c, params, state, *x), carry, xs)
        return lax.scan(lambda c, x: body(self.inner, c, *x), carry, (params, state, *xs))

    def shapes(self, dim: int) -> tuple[PyTree, PyTree]:
        """The inner's, stacked unless shared; tuples for a tuple."""
        if isinstance(self.inner, tuple):
            return shapes_of(self.inner, dim)
        trees = self.inner.shapes(dim)
        return trees if self.shared else stacked(self.num_stages, trees)

    @checked
    def init(
        self,
        key: jax.Array,
        z: jax.Array,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> tuple[PyTree, PyTree]:
        """(params, state): each stage starts from what the ones before it left of z [..., D].

        Raises:
          ValueError: for a batch of identical, zero or non-finite vectors (outside jit).
        """
        check_start(self, z, mask)
        z = z.astype(jnp.float32)
        if self.shared:
            return self._inners[0].init(key, z, mask, axis_name)

        keys, scales = jax.random.split(key, self.num_stages), self._scales_for(z)
        if isinstance(self.inner, tuple):
            started = self._started(keys, z, scales, mask, axis_name)
            return tuple(p for p, _ in started), tuple(s for _, s in started)
        return compiled_once(Residual._started)(self, keys, z, scales, mask, axis_name)

    def _started(self, keys, z, scales, mask, axis_name):
        """(params, state) of each stage."""

        def start(inner, residual, params, state, key, scale):
            del params, state
            scaled = inner.unbound(residual / scale)
            params, state = inner.init(key, scaled, mask, axis_name)
            codes = inner.quantize(params, state, scaled, None, mask, axis_name).codes
            residual -= inner.decode(params, state, codes) * scale
            return residual, (params, state)

        return self._stages(start, z, keys, scales)[1]

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
        """Codes [..., S] and the summed vectors of z [..., D]."""
        used = self._used(key, z, mask, axis_name)
        return self.quantize_stages(params, state, z, key, used, axis_name)

    def quantize_stages(
        self,
        params: PyTree,
        state: PyTree,
        z: jax.Array,
        key: jax.Array | None,
        used: jax.Array | None,
        axis_name: AxisName = None,
    ) -> Quantized:
        """`quantize` where bool [S, ...] says which vectors of z [..., D] each stage sees."""
        x = z.astype(jnp.float32)
        learns = bool(jax.tree.leaves(params))
        # One device and nothing but z to train: the loss's gradient is summed on the way forward.
        # Backward through the scan would keep [S, ..., D] for it. Across devices what a mean's
        # gradient is depends on the kind of mapping, so there the scan is left to find out.
        ahead = axis_name is None and not learns
        estimator = estimator_of(self._inners[0])

        def stage(inner, sums, params, state, key, used, chosen, scale):
            def quantize(residual):
                scaled = inner.unbound(residual / scale)
                return quantize_detached(inner, params, state, scaled, key, used, axis_name, chosen)

            out, slope = (with_slope if ahead else without_slope)(quantize, sums.residual)
            vectors = vectors_of(estimator, inner, params, state, out)
            return sums.with_stage(vectors * scale, slope), (out.codes, out.loss, out.losses)

        keys = None if key is None else jax.random.split(key, self.num_stages)
        chosen = self._chosen(params, state, x)
        xs = (keys, used, chosen, self._scales_for(x))
        begin = Sums.nothing(x, learns, ahead)
        sums, outputs = self._stages(stage, begin, *xs, params=params, state=state)
        codes, loss, losses = _merge(outputs) if isinstance(outputs[0], tuple) else outputs
        codes = jnp.moveaxis(codes, 0, -1)
        total = sums.loss(x, jnp.sum(loss))
        if self.similarity:
            check('similarity' not in losses, 'similarity', self.similarity, _NESTED)
            vectors = self.stage_vectors(params, state, codes)
            losses['similarity'] = _similarity(vectors, x, used, axis_name)
            total += self.similarity * jnp.sum(losses['similarity'])
        alive = jnp.any(codes.reshape(*x.shape[:-1], -1) >= 0, axis=-1)
        seen = None if used is None else jnp.any(used, axis=0)
        z_q = sums.z_q(x, estimator, noise_key(key, self.num_stages), seen, axis_name)
        z_q = jnp.where(alive[..., None], z_q, 0).astype(z.dtype)
        return Quantized(z_q, codes, total, losses)

    def _chosen(self, params, state, x):
        """Codes [S, ...] chosen for all stages together; None where each takes its nearest."""
        if self.beam == 1:
            return None
        run = functools.partial(self._stages, params=params, state=state)
        return jnp.moveaxis(beam_codes(run, x, self._scales, self.beam), -1, 0)

    def _used(self, key, x, mask, axis_name):
        """Mask of each stage, bool [S, ...], or None where every stage sees all of x."""
        if key is None or self.dropout is None:
            return None if mask is None else jnp.stack([mask] * self.num_stages)
        key = jax.random.fold_in(key, self.num_stages)
        dropout = dropout_of(self.dropout, self.num_stages)
        assert dropout is not None
        return dropout.used(key, x.shape[:-1], self.num_stages, mask, axis_name)

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
        """Each stage's state after seeing what the stages before it left of z [..., D]."""
        codes = jnp.moveaxis(codes, -1, 0)
        keys = None if key is None else jax.random.split(key, self.num_stages)
        z = lax.stop_gradient(z).astype(jnp.float32)

        def stage(inner, residual, params, state, codes, key, scale):
            value = inner.decode(params, state, codes) * scale
            if self.shared:
                return residual - value, inner.unbound(residual / scale)
            scaled = inner.unbound(residual / scale)
            moved = inner.update(params, state, scaled, codes, key, mask, axis_name, weights)
            return residual - value, moved

        _, outputs = self._stages(
            stage, z, codes, keys, self._scales_for(z), params=params, state=state
        )
        if not self.shared:
            return outputs
        # Vectors of all stages in one update: the averages decay once a step, not S times. The
        # stage is the last axis of them, so that replicas hold consecutive rows of the whole.
        mask, weights = (
            None if x is None else jnp.stack([x] * self.num_stages, axis=-1)
            for x in (mask, weights)
        )
        rows, codes = jnp.moveaxis(outputs, 0, -2), jnp.moveaxis(codes, 0, z.ndim - 1)
        inner = self._inners[0]
        return inner.update(params, state, rows, codes, key, mask, axis_name, weights)

    @checked
    def stage_vectors(self, params: PyTree, state: PyTree, codes: jax.Array) -> jax.Array:
        """What each stage adds, float32 [S, ..., D], of codes [..., S]; zeros for -1.

        Summed over the first n stages they are the vectors of the first n codes, over all what
        `decode` gives.
        """

        def stage(inner, carry, params, state, codes, scale):
            return carry, inner.decode(params, state, codes) * scale

        xs = jnp.moveaxis(codes, -1, 0), self._scales
        _, vectors = self._stages(stage, None, *xs, params=params, state=state)
        return jnp.stack(vectors) if isinstance(vectors, tuple) else vectors

    @checked
    def decode(self, params: PyTree, state: PyTree, codes: jax.Array) -> jax.Array:
        """Sum of the stages' vectors, float32 [..., D], of codes [..., S]; -1 adds nothing."""
        codes = jnp.moveaxis(codes, -1, 0)

        def stage(inner, total, params, state, codes, scale):
            return total + inner.decode(params, state, codes) * scale, None

        example = jax.eval_shape(
            lambda p, s, c: self._inners[0].decode(p, s, c),
            *self._first(params, state),
            codes[0],
        )
        total = jnp.broadcast_to(
            jnp.where(False, codes[0], 0.0).reshape(*example.shape[:-1], -1)[..., :1], example.shape
        )
        return self._stages(stage, total, codes, self._scales, params=params, state=state)[0]

    def _first(self, params, state):
        if self.shared:
            return params, state
        if isinstance(self.inner, tuple):
            return params[0], state[0]
        return jax.tree.map(lambda x: x[0], (params, state))


_NESTED = '0 around a Residual that has one itself'


def _similarity(vectors, x, used, axis_name):
    """Likeness of the stages' vectors [S, ..., D] with those before, float32 [S]: 0 of the first.

    Its gradient goes to what the vectors are made of, and straight through each of them to z = x.
    """
    vectors = ops.graft(vectors, vectors + x)
    masks = None if used is None else used[1:]

    def likeness(before, vectors, mask):
        return ops.structural_similarity(before, vectors, mask, axis_name)

    found = jax.vmap(likeness)(vectors[:-1], vectors[1:], masks)
    return jnp.concatenate([jnp.zeros(1, jnp.float32), found])


def _merge(outputs):
    """Stack the outputs of stages of different kinds."""
    codes = jnp.stack([codes for codes, _, _ in outputs])
    loss = jnp.stack([loss for _, loss, _ in outputs])
    return codes, loss, merge_losses([losses for _, _, losses in outputs])
