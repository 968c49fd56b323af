"""Codes searched for a score by a genetic algorithm, where no gradient says what to change."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from vqjax.ops.compiling import compiled_once
from vqjax.ops.fields import check, check_count, is_number


def evolve(
    key: jax.Array,
    codes: jax.Array,
    fitness: jax.Array,
    num_codes: int | np.ndarray = 2,
    mutation: float = 0.02,
    contenders: int = 2,
    elite: int = 1,
) -> jax.Array:
    """The next generation of a population of codes, as EvoLFQ of vector-quantize-pytorch makes it.

    The fittest `elite` stay as they are. Every other is a child of two parents, each the fittest of
    some drawn at random: every code comes from either parent (uniform crossover), and is then
    replaced by another one with probability `mutation`.

    Args:
      key: a random key.
      codes: int32 [P, ...], a population of P; entries of -1 stay -1.
      fitness: float [P], the larger the better; NaN is the worst.
      num_codes: K, or the K of each code: a quantizer's `code_sizes`, which is broadcast.
      mutation: a share from 0 to 1.
      contenders: how many are drawn for each parent.
      elite: how many stay, below P.

    Returns:
      int32 [P, ...], the fittest of the generation before first.

    Raises:
      ValueError: for a number out of range, or a fitness that is not one number an individual.
    """
    population = codes.shape[0] if codes.ndim else 0
    if fitness.shape != (population,) or not population:
        raise ValueError(
            f'fitness must be [P], one number for each of codes [P, ...], got shapes '
            f'{fitness.shape} and {codes.shape}'
        )
    is_share = is_number(mutation) and 0 <= mutation <= 1
    check(is_share, 'mutation', mutation, 'a share from 0 to 1')
    check_count('contenders', contenders)
    check_count('elite', elite, 0, population - 1)
    # An array, so that another share is no other program.
    share = np.asarray(mutation, np.float32)
    if not isinstance(num_codes, jax.Array):
        num_codes = np.asarray(num_codes, np.int32)
    return _evolve(key, codes, fitness, num_codes, share, contenders, elite)


@compiled_once
def _evolve(key, codes, fitness, num_codes, mutation, contenders, elite):
    fitness = jnp.where(jnp.isnan(fitness), -jnp.inf, fitness.astype(jnp.float32))
    population = codes.shape[0]
    drawing, crossing, choosing, replacing = jax.random.split(key, 4)
    drawn = jax.random.randint(drawing, (population - elite, 2, contenders), 0, population)
    best = jnp.argmax(fitness[drawn], axis=-1, keepdims=True)
    parents = jnp.take_along_axis(drawn, best, axis=-1)[..., 0]
    shape = (population - elite, *codes.shape[1:])
    first = jax.random.bernoulli(crossing, 0.5, shape)
    children = jnp.where(first, codes[parents[:, 0]], codes[parents[:, 1]])
    children = mutate((choosing, replacing), children, num_codes, mutation)
    order = jnp.argsort(-fitness, stable=True)
    return jnp.concatenate([codes[order[:elite]], children])


def mutate(
    keys: tuple[jax.Array, jax.Array],
    codes: jax.Array,
    num_codes: int | np.ndarray,
    share: float | jax.Array,
) -> jax.Array:
    """int32 codes [...], a share of them replaced by any other one; entries of -1 stay -1.

    num_codes: K, or the K of each code, which is broadcast. All others are equally probable.
    """
    choosing, replacing = keys
    sizes = jnp.broadcast_to(jnp.asarray(num_codes, jnp.int32), codes.shape)
    most = jnp.maximum(sizes, 2)
    other = (codes + jax.random.randint(replacing, codes.shape, 1, most)) % most
    changed = jax.random.bernoulli(choosing, share, codes.shape) & (codes >= 0) & (sizes > 1)
    return jnp.where(changed, other, codes)
