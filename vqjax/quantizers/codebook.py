"""What the quantizers with an explicit codebook share: the choice of a code and reading it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vqjax import ops
from vqjax.ops import AxisName
from vqjax.quantizers.base import (
    Base,
    Quantized,
    check,
    check_count,
    check_weight,
    checked,
    hide,
    is_number,
    look_up,
)
from vqjax.quantizers.protocol import PyTree


class Codebook(Base):
    """A leaf with a codebook [K, D], and fields metric, temperature, assignment, start and
    the weights of `assignment_losses`.

    Subclasses give `read_codebook` and `read`.
    """

    metric: str = 'euclidean'
    unit_values: bool = True
    temperature: float = 0.0
    assignment: Callable[..., jax.Array] = staticmethod(ops.nearest_assignment)
    balance: float = 0.0
    diversity: float = 0.0
    cross_entropy: float = 0.0
    decay: float
    start: Any
    revival: ops.Revival | None
    gradient: Any

    @property
    def starts_from_data(self) -> bool:  # type: ignore[override]
        """Whether init reads the values of z."""
        return self.start not in ops.BLIND_STARTS

    def read_codebook(self, params: PyTree, state: PyTree) -> jax.Array:
        """The vectors that codes stand for, float32 [K, D]."""
        raise NotImplementedError

    def read(
        self,
        params: PyTree,
        state: PyTree,
        z: jax.Array,
        codes: jax.Array,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
        key: jax.Array | None = None,
    ) -> Quantized:
        """What quantize returns for z [..., D] once the codes [...] are chosen.

        The key is that of quantize, for an estimator that draws; others are called without it.
        """
        raise NotImplementedError

    @property
    def unit_length(self) -> bool:
        """Whether vectors and codes are brought to unit length, not for the search alone."""
        return self.metric == 'cosine' and self.unit_values

    def prepare(self, z: jax.Array) -> jax.Array:
        """z as it is compared: float32, of unit length for the cosine metric."""
        z = z.astype(jnp.float32)
        return ops.normalize(z) if self.unit_length else z

    def assignment_losses(
        self,
        x: jax.Array,
        codebook: jax.Array,
        codes: jax.Array,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> dict[str, jax.Array]:
        """The terms of softmax(-squared distance) whose weight is not 0.

        Of prepared x [..., D] and its codes [...]: `ops.code_balance`, `ops.imbalance` of the mean
        assignment (diversity) and `ops.code_cross_entropy`.
        """
        losses, given = {}, (1.0, self.metric, mask, axis_name)
        if self.balance:
            losses['balance'] = ops.code_balance(x, codebook, *given)
        if self.diversity:
            losses['diversity'] = ops.imbalance(ops.mean_assignment(x, codebook, *given))
        if self.cross_entropy:
            losses['cross_entropy'] = ops.code_cross_entropy(x, codebook, codes, *given)
        return losses

    def observe(
        self,
        counts: jax.Array,
        z: jax.Array,
        codes: jax.Array,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
        weights: jax.Array | None = None,
    ) -> Any:
        """What a training step saw of z [..., D] and its codes [...], for the statistics.

        Returns the rows as they are compared, float32 [N, D]; their codes, int32 [N], -1 where
        masked or not finite; which rows count, bool [N]; the share of its past that an average
        keeps, float32 [], all of it where no replica holds anything; and the average `counts`
        moved towards the batch's, float32 [K].
        """
        rows, valid = ops.flat_rows(self.prepare(z), mask)
        codes = jnp.where(valid, codes.reshape(-1), -1)
        batch_counts = ops.code_counts(codes, self.num_codes, None, axis_name, weights)
        keep = jnp.where(jnp.sum(batch_counts) > 0, self.decay, 1.0)
        return rows, codes, valid, keep, keep * counts + (1 - keep) * batch_counts

    def candidates(self, params: PyTree, state: PyTree, z: jax.Array, num: int) -> jax.Array:
        """The `num` nearest codes of z [..., D], nearest first, int32 [..., num]."""
        return ops.nearest_candidates(z, self.read_codebook(params, state), num, self.metric)

    @checked
    def logits(self, params: PyTree, state: PyTree, z: jax.Array) -> jax.Array:
        """Minus the squared distance of z [..., D] to every code, float32 [..., K].

        Largest for the code that `quantize` takes, softmax(logits / temperature) what it draws
        from; cross-entropy to given codes trains whatever made z, and the codebook where gradients
        do. All N x K of them: no other method holds as many.
        """
        return ops.code_logits(z, self.read_codebook(params, state), self.metric)

    def choose(
        self,
        codebook: jax.Array,
        z: jax.Array,
        key: jax.Array | None,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> jax.Array:
        """A code of the codebook [K, D] for each vector of z [..., D], int32 [...]."""
        if key is None:
            return ops.nearest_codes(z, codebook, self.metric)
        if self.temperature > 0:
            return ops.sample_codes(
                key, z, codebook, self.temperature, self.metric, mask, axis_name
            )
        return self.assignment(key, z, codebook, self.metric, mask, axis_name)

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
        """Nearest code of z [..., D]; with a key the assignment's, or at a temperature a sample."""
        codes = hide(self.choose(self.read_codebook(params, state), z, key, mask, axis_name), mask)
        if isinstance(getattr(self, 'gradient', None), ops.DiVeQ):
            return self.read(params, state, z, codes, mask, axis_name, key)
        return self.read(params, state, z, codes, mask, axis_name)

    @checked
    def decode(self, params: PyTree, state: PyTree, codes: jax.Array) -> jax.Array:
        """Codebook rows float32 [..., D] of codes [...]; zeros for -1."""
        return look_up(self.read_codebook(params, state), codes)


class Wrapped(Codebook):
    """A codebook around another: the field `inner` is used as it is, only its update differs.

    Params are the inner's; the state is a tuple whose field `inner` is the inner's. Subclasses
    give `init` and `update`.
    """

    inner: Any

    @property
    def num_codes(self) -> int:  # type: ignore[override]
        """The inner's."""
        return self.inner.num_codes

    @property
    def metric(self) -> str:  # type: ignore[override]
        """The inner's."""
        return self.inner.metric

    @property
    def unit_values(self) -> bool:  # type: ignore[override]
        """The inner's."""
        return self.inner.unit_values

    @property
    def gradient(self) -> Any:
        """The inner's."""
        return self.inner.gradient

    @property
    def starts_from_data(self) -> bool:  # type: ignore[override]
        """The inner's."""
        return self.inner.starts_from_data

    def prepare(self, z: jax.Array) -> jax.Array:
        """The inner's."""
        return self.inner.prepare(z)

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
        """The inner's."""
        return self.inner.quantize(params, state.inner, z, key, mask, axis_name)

    def read(
        self,
        params: PyTree,
        state: PyTree,
        z: jax.Array,
        codes: jax.Array,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
        key: jax.Array | None = None,
    ) -> Quantized:
        """The inner's."""
        return self.inner.read(params, state.inner, z, codes, mask, axis_name, key)

    def read_codebook(self, params: PyTree, state: PyTree) -> jax.Array:
        """The inner's, float32 [K, D]."""
        return self.inner.read_codebook(params, state.inner)

    @checked
    def decode(self, params: PyTree, state: PyTree, codes: jax.Array) -> jax.Array:
        """The inner's, float32 [..., D]."""
        return self.inner.decode(params, state.inner, codes)


def check_assignment(quantizer: Codebook) -> None:
    """Check the field `assignment`, and put a function where its name was given."""
    given = quantizer.assignment
    function = ops.named_function('assignment', given, ops.ASSIGNMENTS)
    if function is not ops.nearest_assignment and quantizer.temperature > 0:
        raise ValueError(
            f'temperature={quantizer.temperature!r} draws codes, assignment={function!r} chooses '
            'them: only one of the two can, leave the other at its default'
        )
    object.__setattr__(quantizer, 'assignment', function)


def check_codebook_fields(quantizer: Codebook, init: Any) -> None:
    """Check the fields that VQEMA and VQ share, and put functions where names were given."""
    check_count('num_codes', quantizer.num_codes)
    decay = quantizer.decay
    check(is_number(decay) and 0 <= decay < 1, 'decay', decay, 'in [0, 1)')
    check(quantizer.metric in ops.DISTANCES, 'metric', quantizer.metric, f'one of {ops.DISTANCES}')
    check_weight('temperature', quantizer.temperature)
    check_assignment(quantizer)
    revival = quantizer.revival
    check(
        revival is None or isinstance(revival, ops.Revival), 'revival', revival, 'a Revival or None'
    )
    gradient = ops.named_function('gradient', quantizer.gradient, ops.ESTIMATORS)
    object.__setattr__(quantizer, 'gradient', gradient)
    object.__setattr__(quantizer, 'start', given_start(quantizer, init))


def given_start(quantizer: Any, init: Any) -> Any:
    """The start function that the argument `init` of a constructor means.

    `init` names both that argument and the method of the protocol, so the argument is an InitVar:
    left out it arrives as the method (k-means then), and from `dataclasses.replace` as the bound
    method of the quantizer replaced.
    """
    if init is type(quantizer).__dataclass_fields__['init'].default:
        return ops.kmeans
    owner = getattr(init, '__self__', None)
    if isinstance(owner, Codebook):
        return owner.start
    return ops.named_function('init', init, ops.STARTS)
