"""QINCo: residual quantization whose codebooks are computed from the sum so far."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from vqjax import ops
from vqjax.ops import AxisName
from vqjax.ops.serialization import exported
from vqjax.quantizers.base import (
    Base,
    PyTree,
    Quantized,
    Quantizer,
    array_shape,
    check,
    check_count,
    check_flag,
    check_start,
    check_weight,
    checked,
    look_up,
    only_codes,
)
from vqjax.quantizers.inner_quantizers import completed_to

# Numbers of hidden features that the search holds at once: 4 MB.
_TILE = 2**20
# Codes tried together; more of them make tiles of fewer vectors.
_CODES = 256


@exported
class QINCoParams(NamedTuple):
    """Base codebooks float32 [S, K, D], and the network of every stage but the first.

    from_code, from_sum [S - 1, D, D] and bias [S - 1, D] mix the base vector and the sum so far;
    down [S - 1, L, D, h] and up [S - 1, L, h, D] are the residual blocks.
    """

    codebooks: jax.Array
    from_code: jax.Array
    from_sum: jax.Array
    bias: jax.Array
    down: jax.Array
    up: jax.Array


@exported
class QINCoBiasedParams(NamedTuple):
    """`QINCoParams`, and with `bias` those of the blocks: [S - 1, L, h] and [S - 1, L, D]."""

    codebooks: jax.Array
    from_code: jax.Array
    from_sum: jax.Array
    bias: jax.Array
    down: jax.Array
    up: jax.Array
    down_bias: jax.Array
    up_bias: jax.Array


@dataclass(frozen=True, repr=False)
class QINCo(Base):
    """QINCo (arXiv:2401.14732 section 3): a code stands for f(its base vector, the sum so far).

    f(c, s) = blocks(c + A c + B s + b), each block y + up act(down y); stage 1 has a plain
    codebook. A code is the one whose f comes nearest to what the sum left of z. loss = partial_sums
    sum over stages |sg(z) - s_m|^2 + commitment |z - sg(z_q)|^2; all parameters learn from the
    former. It starts as a residual quantizer by k-means, nearly: A, B and up are small.

    The cost: every vector runs the network of a stage for all K codes, (S - 1) K L 2 D h
    multiply-adds in the search, N K h numbers at once but for tiles (4 MB); K times what decoding
    takes. With K = 256, L = 2 and D = h = 64 a stage is 4.2 million a vector, 256 times the plain
    search. Meant for few codes, short codes and compression that is paid for once.

    Fields:
      num_codes: K of every stage.
      num_stages: S, at least 2.
      hidden: h, hidden features of a block.
      blocks: L, residual blocks of a stage.
      commitment: weight of |z - sg(z_q)|^2.
      partial_sums: weight of the squared errors of the sums after each stage, added up.
      activation: act, 'relu' (the paper's) or 'silu'.
      bias: whether the two maps of a block have biases (the paper's have none).
      candidates: the network is run for so many codes of a stage alone, those nearest without the
        blocks (pre-selection, QINCo2, arXiv:2501.03078, here by f's own linear part instead of a
        second codebook); None: for all K, and the code is the nearest.

    Params `QINCoParams` (with `bias` `QINCoBiasedParams`), state (). Codes get a trailing axis [S];
    -1 adds nothing, so that the first n codes decode to the sum after n stages. Raises ValueError
    for a field out of range.
    """

    num_codes: int
    num_stages: int
    hidden: int = 64
    blocks: int = 1
    commitment: float = 0.25
    partial_sums: float = 1.0
    activation: str = 'relu'
    bias: bool = False
    candidates: int | None = None

    starts_from_data = True

    def __post_init__(self) -> None:
        check_count('num_codes', self.num_codes)
        check_count('num_stages', self.num_stages, 2)
        check_count('hidden', self.hidden)
        check_count('blocks', self.blocks)
        check_weight('commitment', self.commitment)
        check_weight('partial_sums', self.partial_sums)
        names = tuple(_ACTIVATIONS)
        check(self.activation in names, 'activation', self.activation, f'one of {names}')
        check_flag('bias', self.bias)
        if self.candidates is not None:
            check_count('candidates', self.candidates, most=self.num_codes)

    @property
    def code_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """A code a stage."""
        return (self.num_stages,)

    def completed(self, codes: jax.Array) -> jax.Array:
        """Codes [..., n] of the first n stages with -1 for the others: [..., S]."""
        return completed_to(codes, self.num_stages)

    def first_stages(
        self, num: int, params: PyTree, state: PyTree
    ) -> tuple[Quantizer, PyTree, PyTree]:
        """(QINCo, params, state) of the first `num` stages, at least 2: see `Base.first_stages`.

        Raises:
          ValueError: for a number that is not from 2 to S.
        """
        check_count('num', num, 2, self.num_stages)
        others = jax.tree.map(lambda x: x[: num - 1], params)
        return (
            dataclasses.replace(self, num_stages=num),
            others._replace(codebooks=params.codebooks[:num]),
            state,
        )

    @property
    def bits(self) -> float:
        """The stages' bits together."""
        return self.num_stages * math.log2(self.num_codes)

    def shapes(self, dim: int) -> tuple[PyTree, tuple[()]]:
        """Codebooks and networks, and ()."""
        later, inside = self.num_stages - 1, (self.num_stages - 1, self.blocks)
        params = QINCoParams(
            array_shape(self.num_stages, self.num_codes, dim),
            from_code=array_shape(later, dim, dim),
            from_sum=array_shape(later, dim, dim),
            bias=array_shape(later, dim),
            down=array_shape(*inside, dim, self.hidden),
            up=array_shape(*inside, self.hidden, dim),
        )
        if not self.bias:
            return params, ()
        biases = array_shape(*inside, self.hidden), array_shape(*inside, dim)
        return QINCoBiasedParams(*params, *biases), ()

    @checked
    def init(
        self,
        key: jax.Array,
        z: jax.Array,
        mask: jax.Array | None = None,
        axis_name: AxisName = None,
    ) -> tuple[PyTree, tuple[()]]:
        """(params, ()): k-means of z [..., D], then of what each stage left of it.

        Raises:
          ValueError: for a batch of identical, zero or non-finite vectors (outside jit).
        """
        check_start(self, z, mask)
        rows, valid = ops.flat_rows(z, mask)
        keys = jax.random.split(key, self.num_stages + 1)

        def start(residual, key):
            codebook = ops.kmeans(key, residual, self.num_codes, mask=valid, axis_name=axis_name)[0]
            return residual - codebook[ops.nearest_codes(residual, codebook)], codebook

        _, codebooks = lax.scan(start, rows, keys[1:])
        stages, dim, hidden = self.num_stages - 1, z.shape[-1], self.hidden
        # Not zero: an optimizer with steps relative to the size of an array would leave them so.
        small = 0.01 / math.sqrt(dim), 0.01 / math.sqrt(hidden)
        draws = iter(jax.random.split(keys[0], 4))

        def normal(scale, *shape):
            return scale * jax.random.normal(next(draws), (stages, *shape), jnp.float32)

        params = QINCoParams(
            codebooks,
            from_code=normal(small[0], dim, dim),
            from_sum=normal(small[0], dim, dim),
            bias=jnp.zeros((stages, dim), jnp.float32),
            down=normal(math.sqrt(2 / dim), self.blocks, dim, hidden),
            up=normal(small[1], self.blocks, hidden, dim),
        )
        if not self.bias:
            return params, ()
        shapes = ((stages, self.blocks, size) for size in (hidden, dim))
        biases = (jnp.zeros(shape, jnp.float32) for shape in shapes)
        return QINCoBiasedParams(*params, *biases), ()

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
        """Codes [..., S] and the last sum of z [..., D]."""
        del state, key
        x = z.astype(jnp.float32)
        valid = ops.flat_rows(z, mask)[1].reshape(z.shape[:-1])
        safe = lax.stop_gradient(jnp.where(valid[..., None], x, 0.0))
        codes = jnp.where(valid[..., None], self._search(lax.stop_gradient(params), safe), -1)
        # Summed again from the codes alone, with gradients and as decode does it.
        sums = self._sums(params, codes)
        target = lax.stop_gradient(x)
        errors = jax.vmap(lambda part: ops.squared_error(target, part, mask, axis_name))(sums)
        vectors = lax.stop_gradient(sums[-1])
        losses = {
            'commitment': ops.squared_error(x, vectors, mask, axis_name),
            'partial_sums': jnp.sum(errors),
        }
        loss = self.commitment * losses['commitment']
        loss += self.partial_sums * losses['partial_sums']
        z_q = jnp.where(valid[..., None], ops.straight_through(x, vectors), 0.0)
        return Quantized(z_q.astype(z.dtype), codes, loss, losses)

    def _search(self, params, x):
        """Codes int32 [..., S] of x float32 [..., D], stage after stage."""
        codes = ops.nearest_codes(x, params.codebooks[0])
        total = look_up(params.codebooks[0], codes)

        def stage(total, stage_params):
            codes = self._nearest(stage_params, x - total, total)
            return total + _vectors(stage_params, codes, total, self.activation), codes

        _, others = lax.scan(stage, total, _later(params))
        return jnp.moveaxis(jnp.concatenate([codes[None], others]), 0, -1)

    def _nearest(self, params, residual, total):
        """The codes whose vectors come nearest to the residual [..., D], int32 [...]."""
        dim = residual.shape[-1]
        codebook = params.codebooks + _matmul(params.codebooks, params.from_code)
        if self.candidates is not None:
            return self._nearest_of_some(self.candidates, params, codebook, residual, total)
        size = min(self.num_codes, _CODES)
        starts = jnp.minimum(
            jnp.arange(0, self.num_codes, size, dtype=jnp.int32), self.num_codes - size
        )

        def tile(residual, total):
            offset = (_matmul(total, params.from_sum) + params.bias)[:, None]

            def code_tile(best, start):
                codes = lax.dynamic_slice_in_dim(codebook, start, size)
                vectors = _blocks(params, codes + offset, self.activation)
                square = jnp.sum((residual[:, None] - vectors) ** 2, axis=-1)
                least = jnp.min(square, axis=-1)
                place = jnp.min(
                    jnp.where(square == least[:, None], jnp.arange(size, dtype=jnp.int32), size),
                    axis=-1,
                )
                closer = least < best[0]
                code = jnp.where(closer, start + place, best[1])
                return (jnp.where(closer, least, best[0]), code.astype(jnp.int32)), None

            # What varies over a mapped axis as the rows do, which scan's carry must.
            nothing = jnp.where(True, jnp.inf, residual[:, 0])
            none = jnp.where(True, -1.0, residual[:, 0]).astype(jnp.int32)
            return lax.scan(code_tile, (nothing, none), starts)[0][1]

        rows = [residual.reshape(-1, dim), total.reshape(-1, dim)]
        most = max(_TILE // (size * max(self.hidden, dim)), 1)
        return ops.map_tiles(tile, rows, most).reshape(residual.shape[:-1])

    def _nearest_of_some(self, number, params, codebook, residual, total):
        """The same of the `number` codes of the codebook [K, D] nearest without the blocks."""
        dim = residual.shape[-1]
        rows = [x.reshape(-1, dim) for x in (residual, total)]
        offset = _matmul(rows[1], params.from_sum) + params.bias[None]
        near = ops.nearest_candidates(rows[0] - offset, codebook, number)

        def tile(residual, offset, near):
            mixed = codebook[near] + offset[:, None]
            vectors = _blocks(params, mixed, self.activation)
            square = jnp.sum((residual[:, None] - vectors) ** 2, axis=-1)
            least = jnp.min(square, axis=-1, keepdims=True)
            return jnp.min(jnp.where(square == least, near, self.num_codes), axis=-1)

        most = max(_TILE // (number * max(self.hidden, dim)), 1)
        codes = ops.map_tiles(tile, [rows[0], offset, near], most)
        return codes.reshape(residual.shape[:-1]).astype(jnp.int32)

    def _sums(self, params, codes):
        """The sums after each stage, float32 [S, ..., D], of codes [..., S]."""
        codes = jnp.moveaxis(only_codes(codes, self.num_codes), -1, 0)
        first = look_up(params.codebooks[0], codes[0])

        def stage(total, xs):
            stage_params, codes = xs
            total += _vectors(stage_params, codes, total, self.activation)
            return total, total

        _, others = lax.scan(stage, first, (_later(params), codes[1:]))
        return jnp.concatenate([first[None], others])

    @checked
    def decode(self, params: PyTree, state: PyTree, codes: jax.Array) -> jax.Array:
        """Sum of the stages' vectors, float32 [..., D], of codes [..., S]; -1 adds nothing."""
        del state
        return self._sums(params, codes)[-1]


def _matmul(x, kernel):
    return jnp.matmul(x, kernel, precision=lax.Precision.HIGHEST)


def _later(params):
    """The params of the stages after the first, each with its base codebook."""
    return params._replace(codebooks=params.codebooks[1:])


_ACTIVATIONS = {'relu': jax.nn.relu, 'silu': jax.nn.silu}


def _blocks(params, y, activation):
    """The residual blocks of one stage: [..., D] -> [..., D]."""
    act = _ACTIVATIONS[activation]
    biased = isinstance(params, QINCoBiasedParams)
    for block in range(len(params.down)):
        hidden = _matmul(y, params.down[block])
        if biased:
            hidden = ops.rounded(hidden) + params.down_bias[block]
        moved = ops.rounded(_matmul(act(hidden), params.up[block]))
        if biased:
            moved = ops.rounded(moved + params.up_bias[block])
        y = y + moved
    return y


def _vectors(params, codes, total, activation):
    """What codes [...] of one stage stand for after the sum [..., D]; zeros for -1."""
    base = look_up(params.codebooks, codes)
    mixed = base + ops.rounded(_matmul(base, params.from_code))
    mixed = mixed + ops.rounded(_matmul(total, params.from_sum) + params.bias)
    return jnp.where((codes >= 0)[..., None], _blocks(params, mixed, activation), 0.0)
