"""SphericalLattice: the vectors by what is known of the lattices, the codes by brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqjax import Projected, SphericalLattice
from vqjax.quantizers.spherical_lattice import golay_code

# Inner products of a shortest vector with all of them, and how often: Conway and Sloane, Sphere
# Packings, Lattices and Groups, chapters 4 and 14.
PRODUCTS = {
    8: {-1.0: 1, -0.5: 56, 0.0: 126, 0.5: 56, 1.0: 1},
    24: {-1.0: 1, -0.5: 4600, -0.25: 47104, 0.0: 93150, 0.25: 47104, 0.5: 4600, 1.0: 1},
}


def codebook(dim):
    q = SphericalLattice(dim)
    return q, np.asarray(q.decode((), (), jnp.arange(q.num_codes)), np.float64)


def test_words_of_the_golay_code_by_their_weight():
    words = golay_code()
    assert len(np.unique(words, axis=0)) == 4096
    weights, numbers = np.unique(words.sum(-1), return_counts=True)
    assert weights.tolist() == [0, 8, 12, 16, 24]
    assert numbers.tolist() == [1, 759, 2576, 759, 1]


@pytest.mark.parametrize('dim, number', [(8, 240), (24, 196560)])
def test_the_shortest_vectors_of_a_lattice(dim, number):
    q, vectors = codebook(dim)
    assert q.num_codes == number == len(np.unique(vectors, axis=0))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1.0, rtol=1e-6)
    # One vector of each shape among them.
    for code in (0, number // 3, number - 1):
        products = np.round(vectors @ vectors[code], 5)
        found = dict(zip(*np.unique(products, return_counts=True), strict=True))
        assert {k + 0.0: int(n) for k, n in found.items()} == PRODUCTS[dim]


def test_the_shapes_of_leech_vectors():
    """1,104 of (+-4^2, 0^22), 97,152 of (+-2^8, 0^16) and 98,304 of (-+3, +-1^23)."""
    entries = np.round(np.abs(codebook(24)[1]) * np.sqrt(32)).astype(int)
    for largest, number, others in ((4, 1104, 2), (2, 97152, 8), (3, 98304, 1)):
        rows = entries[entries.max(-1) == largest]
        assert len(rows) == number and ((rows == largest).sum(-1) == others).all()


@pytest.mark.parametrize('dim', [8, 24])
def test_codes_are_the_nearest_of_all(dim):
    q, vectors = codebook(dim)
    z = np.random.default_rng(0).normal(size=(400, dim)).astype(np.float32)
    # Some near vectors of the rarest shape, which a normal z seldom has.
    z[:100] = vectors[: q._sizes[0]][::11][:100][np.arange(100) % 10] + 0.05 * z[:100]
    out = q.quantize((), (), z)
    unit = z / np.linalg.norm(z, axis=-1, keepdims=True)
    products = unit.astype(np.float64) @ vectors.T
    codes = np.asarray(out.codes)
    np.testing.assert_array_equal(codes, products.argmax(-1))
    assert (codes[:100] < q._sizes[0]).all()
    np.testing.assert_array_equal(np.asarray(out.z_q), vectors[codes].astype(np.float32))
    assert float(out.loss) == 0


def test_every_code_comes_back():
    q, vectors = codebook(24)
    some = np.random.default_rng(0).choice(q.num_codes, 3000, replace=False)
    codes = q.quantize((), (), 7 * jnp.asarray(vectors[some], jnp.float32)).codes
    np.testing.assert_array_equal(np.asarray(codes), some)


def test_many_rows_are_searched_in_tiles_and_the_gradient_is_that_of_the_direction():
    q = Projected(SphericalLattice(), 24)
    z = jax.random.normal(jax.random.key(0), (3, 700, 32))
    params, state = q.init(jax.random.key(1), z)
    out = jax.jit(q.quantize)(params, state, z)
    few = jax.jit(q.quantize)(params, state, z[:, :50])
    np.testing.assert_array_equal(np.asarray(out.codes[:, :50]), np.asarray(few.codes))
    inner = SphericalLattice()
    z = jax.random.normal(jax.random.key(2), (24,))
    slope = jax.grad(lambda z: jnp.vdot(inner.quantize((), (), z).z_q, jnp.arange(24.0)))(z)
    np.testing.assert_allclose(jnp.vdot(slope, z), 0.0, atol=1e-4)  # length has no effect


def test_what_is_refused():
    with pytest.raises(ValueError, match='dim must be 24 .* got 16'):
        SphericalLattice(16)
    with pytest.raises(ValueError, match='24 features'):
        SphericalLattice().init(jax.random.key(0), jnp.ones((3, 8)))
