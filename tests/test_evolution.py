"""Codes searched by a genetic algorithm: what each part of a generation does, by itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqjax import LFQ, ops
from vqjax.ops import compiling

KEY = jax.random.key(0)


def test_every_code_comes_from_a_parent_and_the_fittest_stay():
    codes = jnp.broadcast_to(jnp.arange(32)[:, None], (32, 50))  # each individual has its number
    fitness = jnp.arange(32.0).at[31].set(jnp.nan)
    after = np.asarray(ops.evolve(KEY, codes, fitness, 32, mutation=0.0, elite=3))
    assert (after[:3] == np.array([30, 29, 28])[:, None]).all()
    parents = [np.unique(row) for row in after[3:]]
    assert max(map(len, parents)) == 2
    # Half of each, of 29 children with 50 codes: binomial, within 4 deviations.
    mixed = [row for row, both in zip(after[3:], parents, strict=True) if len(both) == 2]
    share = np.mean([(row == row.max()).mean() for row in mixed])
    assert abs(share - 0.5) < 4 * 0.5 / np.sqrt(50 * len(mixed))


def test_parents_are_the_fittest_of_those_drawn():
    """Of n drawn from P the fittest is number r or below with probability ((r + 1) / P)^n."""
    codes = jnp.arange(16)[:, None]
    fitness = jnp.arange(16.0)
    step = jax.jit(functools.partial(ops.evolve, num_codes=16, mutation=0.0, contenders=3, elite=0))
    children = np.concatenate([step(jax.random.key(i), codes, fitness) for i in range(200)])
    expected = np.diff(np.append(0, ((np.arange(16) + 1) / 16) ** 3))
    found = np.bincount(children.ravel(), minlength=16) / children.size
    deviation = np.sqrt(expected * (1 - expected) / children.size)
    assert (np.abs(found - expected) < 4 * deviation + 1e-3).all()


@pytest.mark.parametrize('sizes', [2, np.array([2, 3, 5])])
def test_a_mutation_is_any_other_code(sizes):
    codes = jnp.ones((3000, 3), jnp.int32).at[:, 2].set(-1 if np.ndim(sizes) == 0 else 1)
    after = np.asarray(ops.evolve(KEY, codes, jnp.zeros(3000), sizes, mutation=0.3, elite=0))
    for column, size in zip(after.T, np.broadcast_to(sizes, 3), strict=True):
        if (column == -1).any():
            assert (column == -1).all()
            continue
        share = np.bincount(column, minlength=size) / 3000
        others = np.delete(share, 1)
        assert len(share) == size and np.abs(others - 0.3 / (size - 1)).max() < 0.04


def test_it_finds_the_code_of_a_vector():
    """Bits of LFQ towards a target that only a score is known of."""
    q = LFQ(24, bits_per_code=1)
    target = jax.random.normal(jax.random.key(1), (24,))

    def score(codes):
        return -jnp.sum((q.decode((), (), codes) - target) ** 2, axis=-1)

    def generation(codes, key):
        return ops.evolve(key, codes, score(codes), q.code_sizes), None

    start = jax.random.randint(KEY, (64, 24), 0, 2)
    codes = jax.lax.scan(generation, start, jax.random.split(jax.random.key(2), 60))[0]
    np.testing.assert_array_equal(codes[jnp.argmax(score(codes))], target > 0)


def test_another_share_and_other_sizes_need_no_other_program():
    codes, programs = jnp.zeros((6, 3), int), set()
    for mutation, sizes in ((0.1, [4, 5, 6]), (0.2, [4, 5, 7]), (0.3, np.array([2, 2, 2]))):
        after = ops.evolve(KEY, codes, jnp.arange(6.0), sizes, mutation=mutation)
        assert (np.asarray(after) < np.asarray(sizes)).all()
        programs.add(compiling.compiled.cache_info().currsize)
    assert len(programs) == 1


@pytest.mark.parametrize(
    'message, change',
    [
        (r'fitness must be \[P\]', {'fitness': jnp.zeros(3)}),
        ('mutation must be a share', {'mutation': 1.5}),
        ('elite must be an integer from 0 to 3', {'elite': 4}),
        ('contenders must be an integer from 1', {'contenders': 0}),
    ],
)
def test_what_does_not_fit_is_named(message, change):
    with pytest.raises(ValueError, match=message):
        ops.evolve(
            **{'key': KEY, 'codes': jnp.zeros((4, 2), int), 'fitness': jnp.zeros(4)} | change
        )
