"""The averages of VQ-EMA alone: no encoder, no labels, no gradient, and still a collapse."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from vqjax import metrics, ops
from vqjax.quantizers import VQEMA, VQEMAState


@dataclasses.dataclass(frozen=True)
class Bench:
    """A quantizer and what it is fed: `tokens` random unit vectors of `dim` features a step."""

    quantizer: VQEMA
    dim: int = 64
    tokens: int = 320
    steps: int = 50


def drive(bench: Bench) -> list[dict[str, float]]:
    """Averages from zero, the first vectors assigned to random unit codes; a record a step."""
    quantizer, num_codes = bench.quantizer, bench.quantizer.num_codes
    data_key, code_key, step_key = jax.random.split(jax.random.key(0), 3)

    def draw(key, n):
        return ops.normalize(jax.random.normal(key, (n, bench.dim)))

    def record(codes, codebook):
        counts = ops.code_counts(codes, num_codes)
        lengths = jnp.linalg.norm(codebook, axis=-1)
        return {
            'perplexity': metrics.perplexity(counts),
            'reported_perplexity': reported_perplexity(counts),
            'active_codes': metrics.active_codes(counts).astype(jnp.float32),
            'max_share': jnp.max(counts) / bench.tokens,
            'max_code_norm': jnp.max(lengths),
            'input_norm': jnp.ones(()),
            'tokens': jnp.float32(bench.tokens),
        }

    def step(state, key):
        z = draw(key, bench.tokens)
        codes = quantizer.quantize((), state, z).codes
        found = record(codes, quantizer.read_codebook((), state))
        return quantizer.update((), state, z, codes), found

    z, codebook = draw(data_key, bench.tokens), draw(code_key, num_codes)
    codes = ops.nearest_codes(z, codebook)
    zero = VQEMAState(jnp.zeros(num_codes), jnp.zeros(codebook.shape), jnp.zeros((), jnp.int32))
    state = quantizer.update((), zero, z, codes)
    keys = jax.random.split(step_key, bench.steps - 1)
    _, records = jax.jit(lambda s, k: jax.lax.scan(step, s, k))(state, keys)
    first = record(codes, codebook)
    history = [{'step': 0} | {name: float(x) for name, x in first.items()}]
    for i in range(bench.steps - 1):
        history.append({'step': i + 1} | {name: float(x[i]) for name, x in records.items()})
    return history


def reported_perplexity(counts: jax.Array) -> jax.Array:
    """The perplexity of code shares clamped to at least 1e-5, which reads 1.03 for a single code.

    counts float32 [K] -> float32 []: exp((K - 1) 1e-5 ln 1e5) where one code has everything.
    """
    share = jnp.maximum(counts / jnp.sum(counts), 1e-5)
    return jnp.exp(-jnp.sum(share * jnp.log(share)))
