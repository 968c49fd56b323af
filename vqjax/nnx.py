"""Quantizers as NNX modules: statistics in Variables of their own, gradients in Params."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vqjax.ops import AxisName
from vqjax.quantizers import Quantized, Quantizer
from vqjax.quantizers.base import PyTree, check


class CodebookStats(nnx.Variable):
    """What a quantizer tracks by statistics; `nnx.grad` and `nnx.Optimizer` take Params only."""


class Quantize(nnx.Module):
    """Any quantizer as an NNX module.

    `params` is what gradients train and `stats` what statistics track: pytrees as the quantizer's
    protocol has them, with a Param or a CodebookStats for each array. Training updates the
    statistics in place. Randomness comes from the stream `quantizer` where `rngs` has one.

    Made in training mode, as NNX's own layers are. `model.eval()` and `model.train()` set
    `use_running_average` (True: the statistics stay as they are) and `deterministic` (True: no
    randomness); `started` is False while the codebook waits for `start`.
    """

    def __init__(
        self,
        quantizer: Quantizer,
        z: jax.Array | int,
        mask: jax.Array | None = None,
        *,
        axis_name: AxisName = None,
        use_running_average: bool = False,
        deterministic: bool = False,
        rngs: nnx.Rngs,
    ):
        """Make the variables, from data where the quantizer starts from data.

        Args:
          quantizer: a quantizer of `vqjax.quantizers`.
          z: [..., D], a large batch of real encoder outputs: the codebook starts from it. Or D,
            where there is none yet: a quantizer that starts from data then waits for `start`.
            This does no collective, so give every replica the same batch.
          mask: bool [...], True = real.
          axis_name: mapped axis or axes over which statistics are summed in training.
          use_running_average: whether calls leave the statistics as they are.
          deterministic: whether calls do without randomness.
          rngs: `params` for the start, and `quantizer`, only if given by that name, for calls.

        Raises:
          ValueError: for what is no quantizer, a z that is neither a batch nor a number of
            features, `rngs` without a stream for the start, and where the quantizer does, e.g.
            for a batch of identical vectors.
        """
        is_quantizer = isinstance(quantizer, Quantizer) and not isinstance(quantizer, type)
        check(is_quantizer, 'quantizer', quantizer, 'a quantizer of vqjax.quantizers')
        has_params = isinstance(rngs, nnx.Rngs) and ('params' in rngs or 'default' in rngs)
        check(has_params, 'rngs', rngs, "an nnx.Rngs with a stream 'params', or a default one")
        self.quantizer = quantizer
        self.axis_name = axis_name
        self.use_running_average = use_running_average
        self.deterministic = deterministic
        key = rngs.params()
        if isinstance(z, jax.Array | np.ndarray):
            self.started = True
            params, state = quantizer.init(key, z, mask)
        else:
            self.started = not quantizer.starts_from_data
            params, state = _without_data(quantizer, key, z)
        self.params = nnx.data(jax.tree.map(nnx.Param, params))
        self.stats = nnx.data(jax.tree.map(CodebookStats, state))
        # Not the default stream: with it a plain `Rngs(0)` would make every call random.
        self.rngs = rngs['quantizer'].fork() if 'quantizer' in rngs else nnx.data(None)

    def __call__(
        self,
        z: jax.Array,
        mask: jax.Array | None = None,
        *,
        use_running_average: bool | None = None,
        deterministic: bool | None = None,
        weights: jax.Array | None = None,
    ) -> Quantized:
        """Quantize, and in training update the statistics afterwards.

        Args:
          z: [..., D].
          mask: bool [...], True = real.
          use_running_average: instead of the attribute, where given.
          deterministic: instead of the attribute, where given.
          weights: float [...], what each vector counts for in the statistics; None = 1.

        Returns:
          Quantized.

        Raises:
          ValueError: where the codebook has not started, and where the quantizer does.
        """
        keep = _first('use_running_average', use_running_average, self.use_running_average)
        deterministic = _first('deterministic', deterministic, self.deterministic)
        params, state = self.read()
        quantize_key, update_key = None, None
        if self.rngs is not None and not deterministic:
            quantize_key, update_key = jax.random.split(self.rngs())
        out = self.quantizer.quantize(params, state, z, quantize_key, mask, self.axis_name)
        if not keep and jax.tree.leaves(state):
            state = self.quantizer.update(
                params, state, z, out.codes, update_key, mask, self.axis_name, weights
            )
            _write(self.stats, state)
        return out

    def start(
        self,
        key: jax.Array,
        z: jax.Array,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> None:
        """Start, or start again, from data: the quantizer's `init`, written into the variables.

        Make the optimizer after it, which else keeps moments of the old parameters. Call it
        outside of transformations: those that pass on Variables only leave `started` as it was.

        Args:
          key: a key.
          z: [..., D], a large batch of real encoder outputs.
          mask: bool [...], True = real.
          axis_name: mapped axis or axes over which the batch is spread.

        Raises:
          ValueError: for another D than before, and where the quantizer does.
        """
        params, state = self.quantizer.init(key, z, mask, axis_name)
        for old, new in ((self.params, params), (self.stats, state)):
            if jax.tree.map(jnp.shape, _values(old)) != jax.tree.map(jnp.shape, new):
                raise ValueError(
                    f'z of shape {z.shape} does not fit the variables of {self.quantizer!r}, made '
                    'for another number of features; make a new Quantize'
                )
        _write(self.params, params)
        _write(self.stats, state)
        self.started = True

    def read(self) -> tuple[PyTree, PyTree]:
        """(params, state), arrays as the methods of the quantizer take them.

        Raises:
          ValueError: where the codebook has not started.
        """
        if not self.started:
            raise ValueError(
                f'started is False: {self.quantizer!r} starts from data and has seen none; call '
                'start(key, z) with a large batch of encoder outputs, or set started = True after '
                'loading its variables'
            )
        return _values(self.params), _values(self.stats)

    def decode(self, codes: jax.Array) -> jax.Array:
        """Vectors float32 [..., D] of codes [..., *code_shape]; zeros for -1."""
        return self.quantizer.decode(*self.read(), codes)

    def set_view(
        self, use_running_average: bool | None = None, deterministic: bool | None = None
    ) -> None:
        """For `nnx.view`.

        Args:
          use_running_average: whether calls leave the statistics as they are.
          deterministic: whether calls do without randomness.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average
        if deterministic is not None:
            self.deterministic = deterministic


def _without_data(quantizer, key, z):
    """(params, state) for z = D features; zeros to be replaced where data is needed."""
    if not isinstance(z, int | np.integer) or isinstance(z, bool) or z < 1:
        raise ValueError(
            f'z must be a batch [..., D] of encoder outputs or the number of features D, got {z!r}'
        )
    batch = jnp.zeros((1, *quantizer.grid, z))
    if not quantizer.starts_from_data:
        return quantizer.init(key, batch)
    shapes = jax.eval_shape(lambda z: quantizer.init(key, z), batch)
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def _first(name, given, own):
    """The call's value, else the module's own."""
    value = own if given is None else given
    if value is None:
        raise ValueError(f'{name} is None in the module and in the call; give True or False')
    return value


def _is_variable(x):
    return isinstance(x, nnx.Variable)


def _values(variables):
    return jax.tree.map(lambda v: v.get_value(), variables, is_leaf=_is_variable)


def _write(variables, values):
    jax.tree.map(lambda v, x: v.set_value(x), variables, values, is_leaf=_is_variable)
