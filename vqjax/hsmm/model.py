"""A hidden semi-Markov model of codes: one frozen dataclass, pure functions, params handed in."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from vqjax.hsmm import chain, filtering, fitting, priors, starts, viterbi
from vqjax.hsmm.filtering import Window
from vqjax.hsmm.sessions import Codes, arranged, as_codes, check_codes, check_values, restored
from vqjax.ops.fields import (
    check,
    check_count,
    check_flag,
    check_key,
    check_positive,
    check_weight,
    is_number,
    make_plain,
)
from vqjax.ops.serialization import exported


@exported
class HSMMParams(NamedTuple):
    """Probabilities, of one floating dtype, in which everything is computed.

    start: [L], the first state of a session.
    stay: [L], a phase of a state kept for one more step: durations are r / (1 - stay) on average.
    move: [L, L], what follows a segment; its diagonal is not read.
    emit: for each axis of the codes [L, K], the codes of a state.
    base: [L], weights that `start` and the rows of `move` share in the prior; only `fit` reads it.
    """

    start: jax.Array
    stay: jax.Array
    move: jax.Array
    emit: tuple[jax.Array, ...]
    base: jax.Array


@exported
class Fitted(NamedTuple):
    """params, and the objective after each step of EM [iters]; after the last step its value."""

    params: HSMMParams
    trace: jax.Array


def as_params(params: Any) -> HSMMParams:
    """HSMMParams of what a checkpoint may restore: a dict of their names, a tuple or a list.

    Raises:
      ValueError: for anything else.
    """
    if isinstance(params, Mapping) and set(params) == set(HSMMParams._fields):
        params = HSMMParams(**params)
    if not isinstance(params, tuple | list) or len(params) != len(HSMMParams._fields):
        names = ', '.join(HSMMParams._fields)
        raise ValueError(f'params must be HSMMParams({names}), got {type(params).__name__}')
    start, stay, move, emit, base = params
    if isinstance(emit, Mapping):  # a tuple as flax's msgpack restores it
        emit = [emit[name] for name in sorted(emit, key=int)]
    return HSMMParams(
        *map(jnp.asarray, (start, stay, move)), tuple(map(jnp.asarray, emit)), jnp.asarray(base)
    )


def _floating(dtype):
    try:
        kind = jnp.dtype(dtype)
    except TypeError:
        kind = None
    known = kind is not None and jnp.issubdtype(kind, jnp.floating)
    check(known, 'dtype', dtype, 'a floating point dtype, such as jnp.float32')
    return kind


def _compiled(*static: str) -> Callable:
    return functools.partial(jax.jit, static_argnames=('self', *static), inline=True)


@dataclasses.dataclass(frozen=True)
class HSMM:
    """States that last, and emit codes: a sticky HDP-HSMM's weak limit, its estimate found by EM.

    A session is a sequence of segments. A state i lasts r + NB(r, 1 - stay_i) steps, the sum of r
    geometric durations: an exact chain of L r states in linear time, without a longest duration
    (Johnson and Willsky 2013). Each step emits a code for each axis of the codes, independently.
    A session is cut out of a longer life: its first segment may have begun before it (by the
    equilibrium law of renewals), its last one may go on. With one phase it is an HMM.

    Prior: base ~ Dirichlet(gamma / L), the weak limit of stick-breaking over at most L states;
    start and rows of move ~ Dirichlet(concentration * base), without the diagonal; rows of emit
    ~ Dirichlet(emission / K); stay ~ Beta((duration - r) w, r w), as after w segments of that
    mean duration. With one phase this is stickiness: kappa of Fox et al. (2011) is
    w (duration - 1). With duration None a move to the state itself is one as any other.

    Codes are integers [..., T] with num_codes an integer, or [..., T, C] with one for each of C
    axes (the codes of `Product` and `Residual`); -1 is missing. mask: bool [..., T], True = real.
    A session lasts from its first code to its last: what is masked or -1 before and after changes
    nothing, and in between time passes without evidence. Leading axes are sessions.

    Fields:
      num_states: L, the number of states, or the most that are looked for.
      num_codes: K, or one for each axis of the codes.
      phases: r; 1 makes durations geometric.
      duration: steps that the prior expects a segment to last, above r; None (with one phase):
        no stickiness.
      duration_weight: w, how many segments this expectation counts as.
      gamma: of the base weights; None holds them equal, for a number of states that is given.
      concentration: of start and of each row of move.
      emission: of each row of emit.
      estimate: 'variational' or 'map', what EM raises: a bound of the log evidence with a Dirichlet
        for every vector of probabilities, or the log posterior density over their logarithms. See
        `vqjax.hsmm.priors`.

    Methods are pure, run under jit and vmap, and trace once for a shape. They raise ValueError
    for fields out of range, for codes or masks of other shapes or dtypes and, where values are
    known (not under jit), for codes beyond K and sessions without one; under jit a code beyond K
    is missing.
    """

    num_states: int
    num_codes: int | tuple[int, ...]
    phases: int = 4
    duration: float | None = 16.0
    duration_weight: float = 1.0
    gamma: float | None = 1.0
    concentration: float = 1.0
    emission: float = 1.0
    estimate: str = 'variational'

    def __post_init__(self):
        make_plain(self)
        check_count('num_states', self.num_states, most=2**15)
        check(self.num_codes != (), 'num_codes', self.num_codes, 'a number, or one for each axis')
        for size in self.sizes:
            check_count('num_codes', size)
        check_count('phases', self.phases, most=2**10)
        if self.duration is None:
            need = 'a number of steps above phases: None is for phases=1'
            check(self.phases == 1, 'duration', self.duration, need)
        else:
            ok = is_number(self.duration) and self.duration > self.phases
            check(ok, 'duration', self.duration, f'steps, above phases={self.phases}')
        for name in ('duration_weight', 'concentration', 'emission'):
            check_positive(name, getattr(self, name))
        if self.gamma is not None:
            check_positive('gamma', self.gamma)
        known = self.estimate in priors.ESTIMATES
        check(known, 'estimate', self.estimate, f'one of {priors.ESTIMATES}')

    @property
    def sizes(self) -> tuple[int, ...]:
        """K of each axis of the codes."""
        return self.num_codes if isinstance(self.num_codes, tuple) else (self.num_codes,)

    @property
    def _single(self) -> bool:
        return not isinstance(self.num_codes, tuple)

    def _taken(self, codes, mask):
        """Codes and mask as arrays, checked."""
        codes = as_codes(codes)
        mask = mask if mask is None or hasattr(mask, 'dtype') else jnp.asarray(mask)
        check_codes(codes, mask, self.sizes, self._single)
        check_values(codes, mask, self.sizes, self._single)
        return jnp.asarray(codes), mask if mask is None else jnp.asarray(mask)

    def _arranged(self, codes, mask):
        return arranged(codes, mask, self.sizes, self._single)

    def _weights(self, params: HSMMParams) -> chain.Weights:
        """Logarithms of params, normalized."""
        shapes = [x.shape for x in (params.start, params.stay, params.move, *params.emit)]
        states = self.num_states
        need = [(states,), (states,), (states,) * 2, *((states, size) for size in self.sizes)]
        if shapes != need:
            raise ValueError(f'params must be of shapes {need}, those of {self!r}, got {shapes}')

        def log(p, allowed=True):
            p = jnp.where(allowed, p, 0)
            return chain.safe_log(p / jnp.sum(p, -1, keepdims=True))

        emit = tuple(map(log, params.emit))
        move = log(params.move, chain.others(states))
        stay, leave = chain.safe_log(params.stay), chain.safe_log(1 - params.stay)
        return chain.Weights(log(params.start), stay, leave, move, emit)

    def init(
        self,
        key: jax.Array,
        codes: Codes,
        mask: ArrayLike | None = None,
        dtype: DTypeLike = jnp.float32,
    ) -> HSMMParams:
        """Params to start from: emissions of clusters of windows, everything else even."""
        check_key(key)
        codes, mask = self._taken(codes, mask)
        return self._init(key, codes, mask, dtype=_floating(dtype))

    @_compiled('dtype')
    def _init(self, key, codes, mask, dtype):
        sessions, _ = self._arranged(codes, mask)
        states = self.num_states
        # Windows of half a segment lie within one more often than not.
        width = 8 if self.duration is None else max(1, round(self.duration / 2))
        counts = starts.emission_counts(key, sessions, self.sizes, states, width, dtype)
        # A code that a cluster lacks is not ruled out.
        emit = tuple((n + 1 / n.shape[1]) / (jnp.sum(n, -1, keepdims=True) + 1) for n in counts)
        even = jnp.full(states, 1 / states, dtype)
        allowed = chain.others(states).astype(dtype)
        lasting = 2 * width if self.duration is None else self.duration
        stay = jnp.full(states, 1 - self.phases / lasting, dtype)
        return HSMMParams(even, stay, allowed / jnp.sum(allowed, -1, keepdims=True), emit, even)

    def fit(
        self,
        key: jax.Array | None,
        codes: Codes,
        mask: ArrayLike | None = None,
        params: HSMMParams | None = None,
        iters: int = 300,
        tol: float = 1e-6,
        restarts: int = 1,
        merge: bool = True,
        dtype: DTypeLike | None = None,
    ) -> Fitted:
        """EM from `init` (the best of `restarts` starts), or from params -> Fitted.

        The objective is log likelihood plus log prior, or its variational bound (`estimate`), and
        no step lowers it but by rounding; EM ends when a step raises it by less than tol times
        its size. Where the number of states is to be found (gamma) and merge is True, alike
        states are then merged as long as that raises it. The params are the Dirichlets' means.

        `key` and dtype (None: float32) are of the start. Given params, there is none: `key` is
        then not read and may be None, and `restarts` and another dtype are refused.
        """
        check_count('iters', iters)
        check_count('restarts', restarts)
        check_flag('merge', merge)
        check_weight('tol', tol)
        codes, mask = self._taken(codes, mask)
        merge = merge and self.gamma is not None and self.num_states > 1
        if params is not None:
            params = as_params(params)
            self._weights(params)
            check(restarts == 1, 'restarts', restarts, '1 where params say where EM starts')
            own = params.base.dtype
            same = dtype is None or _floating(dtype) == own
            check(same, 'dtype', dtype, f'None or that of the given params, {own}')
            return self._from(codes, mask, params, tol, iters=iters, merge=merge)
        fixed = {'iters': iters, 'merge': merge, 'restarts': restarts}
        fixed['dtype'] = _floating(jnp.float32 if dtype is None else dtype)
        check_key(key)
        return self._best(key, codes, mask, tol, **fixed)

    @_compiled('iters', 'merge', 'restarts', 'dtype')
    def _best(self, key, codes, mask, tol, iters, merge, restarts, dtype):
        def one(key):
            start = self._init(key, codes, mask, dtype=dtype)
            return self._from(codes, mask, start, tol, iters=iters, merge=merge)

        found = lax.map(one, jax.random.split(key, restarts))
        best = jnp.argmax(found.trace[:, -1])
        return jax.tree.map(lambda x: x[best], found)

    @_compiled('iters', 'merge')
    def _from(self, codes, mask, params, tol, iters, merge):
        sessions, _ = self._arranged(codes, mask)
        start = self._weights(params), params.base
        c, base, trace = fitting.fit(self, sessions, start, iters, tol, merge)
        c = jax.tree.map(lambda x: x / jnp.sum(x, -1, keepdims=True), c)
        return Fitted(HSMMParams(c.start, c.stay[:, 0], c.move, c.emit, base), trace)

    def log_likelihood(
        self, params: HSMMParams, codes: Codes, mask: ArrayLike | None = None
    ) -> jax.Array:
        """log p(codes of a session) [...], in nats."""
        return self._log_likelihood(as_params(params), *self._taken(codes, mask))

    @_compiled()
    def _log_likelihood(self, params, codes, mask):
        sessions, leading = self._arranged(codes, mask)
        return chain.log_normalizer(self._weights(params), sessions, self.phases).reshape(leading)

    def posterior(
        self, params: HSMMParams, codes: Codes, mask: ArrayLike | None = None
    ) -> jax.Array:
        """Probabilities of the states [..., T, L] given all codes; zeros outside a session."""
        return self._posterior(as_params(params), *self._taken(codes, mask))

    @_compiled()
    def _posterior(self, params, codes, mask):
        sessions, leading = self._arranged(codes, mask)
        return restored(chain.posterior(self._weights(params), sessions, self.phases), leading)

    def viterbi(
        self, params: HSMMParams, codes: Codes, mask: ArrayLike | None = None, longest: int = 512
    ) -> jax.Array:
        """States int32 [..., T] of the most likely segmentation; -1 outside a session.

        Exact for segments of up to `longest` steps; of two older ones of a state the better is
        kept. Time grows with L * longest a step, and not with it where there is one phase.
        """
        check_count('longest', longest)
        return self._viterbi(as_params(params), *self._taken(codes, mask), longest=longest)

    @_compiled('longest')
    def _viterbi(self, params, codes, mask, longest):
        sessions, leading = self._arranged(codes, mask)
        weights = self._weights(params)
        return restored(viterbi.most_likely(weights, sessions, self.phases, longest), leading)

    def filter(
        self, params: HSMMParams, codes: Codes, mask: ArrayLike | None = None, lag: int = 0
    ) -> jax.Array:
        """The most likely state of each step t, int32 [..., T], given the codes up to t + lag.

        -1 before a session's first code; after its last one time goes on.
        """
        check_count('lag', lag, 0)
        return self._filter(as_params(params), *self._taken(codes, mask), lag=lag)

    @_compiled('lag')
    def _filter(self, params, codes, mask, lag):
        sessions, leading = self._arranged(codes, mask)
        weights = self._weights(params)
        return restored(filtering.filtered(weights, sessions.codes, self.phases, lag), leading)

    def filter_init(self, params: HSMMParams, lag: int = 0, shape: tuple[int, ...] = ()) -> Window:
        """What is carried from step to step of streams [*shape], before their first step."""
        check_count('lag', lag, 0)
        return filtering.opened(self._weights(as_params(params)), self.phases, lag, tuple(shape))

    def filter_step(
        self, params: HSMMParams, window: Window, codes: Codes, mask: ArrayLike | None = None
    ) -> tuple[Window, jax.Array]:
        """Takes the codes [...] or [..., C] of one step, mask bool [...]; see `filter`.

        Returns the next window, and states int32 [...] of the step `lag` steps ago (-1 before a
        stream's first code): after the last step, `lag` steps of code -1 give the rest.
        """
        codes = as_codes(codes)
        mask = None if mask is None else jnp.asarray(mask)[..., None]
        codes = codes[..., None] if self._single else codes[..., None, :] if codes.ndim else codes
        check_codes(codes, mask, self.sizes, self._single)
        check_values(codes, mask, self.sizes, self._single, whole=False)
        streams = codes.shape[:-1] if self._single else codes.shape[:-2]
        self._check_window(window, streams)
        return self._filter_step(as_params(params), window, jnp.asarray(codes), mask)

    def _check_window(self, window, streams):
        need = f'what filter_init(params, lag, {streams}) of {self!r} or the step before gave'
        check(isinstance(window, Window), 'window', window, need)
        ends = (*streams, self.num_states, self.phases), (*streams, self.num_states), streams
        shapes = [jnp.shape(x) for x in window]
        if any(shape[1:] != end for shape, end in zip(shapes, ends, strict=True)):
            raise ValueError(f'window must be {need}, for streams of these codes; got {shapes}')

    @_compiled()
    def _filter_step(self, params, window, codes, mask):
        sessions, leading = self._arranged(codes, mask)
        codes = sessions.codes.reshape(*leading, len(self.sizes))
        return filtering.stepped(self._weights(params), window, codes)

    def sample(
        self, params: HSMMParams, key: jax.Array, num_steps: int
    ) -> tuple[jax.Array, jax.Array]:
        """(states int32 [T], codes int32 [T] or [T, C]) of a session drawn from the model."""
        check_count('num_steps', num_steps)
        check_key(key)
        return self._sample(as_params(params), key, num_steps=num_steps)

    @_compiled('num_steps')
    def _sample(self, params, key, num_steps):
        weights = self._weights(params)
        log_move = jnp.where(chain.others(self.num_states), weights.move, -jnp.inf)

        def step(carry, key):
            state, phase = carry
            keys = jax.random.split(key, 2 + len(self.sizes))
            tables = zip(keys[2:], weights.emit, strict=True)
            codes = [jax.random.categorical(k, table[state]) for k, table in tables]
            left = jax.random.bernoulli(keys[0], jnp.exp(weights.leave[state]))
            ends = left & (phase == self.phases - 1)
            after = jax.random.categorical(keys[1], log_move[state])
            following = jnp.where(ends, after, state), jnp.where(ends, 0, phase + left)
            following = tuple(x.astype(jnp.int32) for x in following)
            return following, (state, jnp.stack(codes).astype(jnp.int32))

        first, within, rest = jax.random.split(key, 3)
        state = jax.random.categorical(first, weights.start).astype(jnp.int32)
        phase = jax.random.randint(within, (), 0, self.phases, jnp.int32)
        _, (states, codes) = lax.scan(step, (state, phase), jax.random.split(rest, num_steps))
        return states.astype(jnp.int32), codes[:, 0] if self._single else codes

    def num_states_used(self, states: ArrayLike) -> jax.Array:
        """How many of the L states occur in states [...], int32 []: those found by `viterbi`."""
        states = jnp.asarray(states).reshape(-1)
        used = jnp.zeros(self.num_states + 1, bool)
        used = used.at[jnp.where(states >= 0, states, self.num_states)].set(True)
        return jnp.sum(used[:-1], dtype=jnp.int32)
