"""Training a quantizer on vectors, without any model: quantization after the fact."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vqjax import ops
from vqjax.codec.tokenizer import Codec, check_floating
from vqjax.ops.fields import check, check_count, check_key
from vqjax.quantizers import Quantizer
from vqjax.quantizers.checking import unshared

# The start sees this many vectors a code (k-means gains little from more), within bounds.
_START_PER_CODE = 256
_START_LEAST, _START_MOST = 2**14, 2**18
# Vectors of that sample over which the error that the codec reports is measured.
_MEASURED = 2**16


@functools.lru_cache
def default_optimizer(steps: int) -> optax.GradientTransformation:
    """Adam with steps relative to the size of each array, so that the scale of z does not matter.

    1% of the root mean square at first, falling to 0 over `steps` along a cosine.
    """
    return optax.chain(
        optax.scale_by_adam(),
        optax.scale_by_param_block_rms(1e-6),
        optax.scale_by_learning_rate(optax.cosine_decay_schedule(0.01, steps)),
    )


def fit(
    quantizer: Quantizer,
    key: jax.Array,
    z: np.ndarray | Iterable[np.ndarray],
    steps: int = 100,
    batch_size: int = 4096,
    optimizer: optax.GradientTransformation | None = None,
    progress: bool | None = None,
    mesh: Mesh | None = None,
) -> Codec:
    """Train a quantizer on vectors alone, as product quantization is used for search.

    Codebooks start by k-means (or what the quantizer's `init` is) from a large sample; then every
    step updates the statistics, and what gradients train (VQ, SimVQ, Projected, ...) takes an
    optimizer step on |z - z_q|^2 + loss. With a sample that is all of z the start is already good,
    and steps=0 keeps it.

    Args:
      quantizer: any quantizer.
      key: for the start, the order of batches, revival and sampling.
      z: vectors [..., D], an array or a mapped file (`np.load(path, mmap_mode='r')`), or an
        iterable of such batches, which is read once. Memory holds the sample, of at most 262,144
        vectors, and one batch. Vectors that are not finite count nowhere.
      steps: training steps; fewer if an iterable ends before.
      batch_size: vectors a step, for an array.
      optimizer: any of optax, by default `default_optimizer(steps)`.
      progress: whether to show a progress bar; by default where stderr is a terminal.
      mesh: devices that the sample and every batch are split over, along all axes of the mesh
        together; params and state are whole on each of them. By default one device.

    Returns:
      Codec; info holds `steps`, `vectors` (seen by the start), and where z can be restored `error`
      (mean squared error a feature over that sample) and `relative_error` (over its variance).

    Raises:
      ValueError: for steps or batch_size out of range, a quantizer of grids, vectors of different
        sizes, or a sample that cannot start a codebook.
    """
    is_quantizer = isinstance(quantizer, Quantizer) and not isinstance(quantizer, type)
    check(is_quantizer, 'quantizer', quantizer, 'a quantizer of vqjax.quantizers')
    check_count('steps', steps, 0)
    check_count('batch_size', batch_size)
    check_key(key)
    need = 'a jax.sharding.Mesh, as quantizers.device_mesh() makes it, or None'
    check(mesh is None or isinstance(mesh, Mesh), 'mesh', mesh, need)
    is_data = isinstance(z, jax.Array | Iterable) and not isinstance(z, str | bytes | Mapping)
    check(is_data, 'z', z, 'an array of vectors [..., D], or an iterable of such batches')
    if quantizer.grid:
        raise ValueError(
            f'fit takes vectors, and {quantizer!r} quantizes whole grids: train it in a model, or '
            'fit its inner quantizer'
        )
    start_key, order_key, step_key = jax.random.split(key, 3)
    size = min(max(_START_PER_CODE * quantizer.num_codes, _START_LEAST), _START_MOST)
    if isinstance(z, np.ndarray | jax.Array):
        sample, stream = _from_array(z, order_key, size, batch_size)
    else:
        sample, stream = _from_iterable(z, size)
    with _bar(steps, progress) as report:
        report('starting the codebook', 0)
        mask = np.isfinite(sample).all(-1)
        if quantizer.starts_from_data:
            ops.check_distinct(sample, mask)
        start_rows = _split(mesh, np.where(mask[:, None], sample, 0), 0)
        params, state = _start(quantizer, start_key, start_rows, _split(mesh, mask, False))
        done = 0
        if jax.tree.leaves((params, state)) and steps:
            optimizer = default_optimizer(steps) if optimizer is None else optimizer
            # What is donated at every step: an optimizer may keep the params themselves.
            carry = unshared((params, state, optimizer.init(params)))
            previous = None
            for done, batch in enumerate(itertools.islice(stream, steps), 1):
                _check_dim(batch, sample.shape[-1])
                batch = _split(mesh, batch, np.nan)
                carry, error = _step(
                    quantizer, optimizer, carry, batch, jax.random.fold_in(step_key, done)
                )
                # What is shown is a few steps old, so that nothing waits for the device.
                if done % max(1, steps // 50) == 0:
                    if previous is not None:
                        report(f'error {float(previous):.4g}', done)
                    previous = error
            params, state, _ = carry
        if mesh is not None:
            params, state = jax.device_get((params, state))
        codec = Codec(quantizer, params, state, sample.shape[-1])
        info: dict[str, Any] = {'steps': done, 'vectors': int(mask.sum())}
        report('measuring', done)
        if codec.decoded_dim == codec.dim:
            kept = sample[mask][:_MEASURED]
            info['error'] = codec.error(kept)
            variance = float(np.mean(np.var(kept.astype(np.float64), axis=0)))
            info['relative_error'] = info['error'] / variance if variance else math.nan
        report(' '.join(f'{k} {v:.4g}' for k, v in info.items() if 'error' in k), steps)
    return Codec(quantizer, params, state, sample.shape[-1], info)


def _split(mesh: Mesh | None, rows: np.ndarray, fill: float) -> Any:
    """Rows [n, ...], an even share on each device of the mesh; rows of `fill` make it even."""
    if mesh is None:
        return rows
    more = np.full((-len(rows) % mesh.size, *rows.shape[1:]), fill, rows.dtype)
    return jax.device_put(np.concatenate([rows, more]), NamedSharding(mesh, P(mesh.axis_names)))


# Compiled once for a quantizer, however often it is fitted.
@functools.partial(jax.jit, static_argnums=0)
def _start(quantizer, key, z, mask):
    return quantizer.init(key, z, mask)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _step(quantizer, optimizer, carry, z, key):
    """One training step on z [n, D]: the new (params, state, optimizer state), and the error."""
    params, state, memory = carry
    quantize_key, update_key = jax.random.split(key)
    mask = jnp.all(jnp.isfinite(z), axis=-1)
    z = jnp.where(mask[:, None], z, 0).astype(jnp.float32)

    def loss(params):
        out = quantizer.quantize(params, state, z, quantize_key, mask)
        error = jnp.zeros(())
        if out.z_q.shape == z.shape:
            error = ops.squared_error(z, out.z_q, mask)
        return error + out.loss, (out.codes, error)

    grads, (codes, error) = jax.grad(loss, has_aux=True)(params)
    new_state = quantizer.update(params, state, z, codes, update_key, mask)
    updates, memory = optimizer.update(grads, memory, params)
    return (optax.apply_updates(params, updates), new_state, memory), error


def _from_array(z, key, size, batch_size):
    """A sample [n, D] of an array, and an endless stream of batches: shuffled in every pass."""
    z = check_floating(z)
    if z.ndim < 2 or not z.size:
        raise ValueError(f'z must be vectors [..., D] and not empty, got shape {z.shape}')
    rows = z.reshape(-1, z.shape[-1])
    rng = np.random.default_rng(np.asarray(jax.random.bits(key, (4,), np.uint32)))
    sample = rows
    if len(rows) > size:
        sample = rows[np.sort(rng.choice(len(rows), size, replace=False))]

    def stream():
        if len(rows) <= batch_size:
            yield from itertools.repeat(rows)
        while True:
            order = rng.permutation(len(rows))
            for first in range(0, len(rows) - batch_size + 1, batch_size):
                yield rows[np.sort(order[first : first + batch_size])]

    return np.asarray(sample, np.float32), (np.asarray(b, np.float32) for b in stream())


def _from_iterable(batches, size):
    """A sample [n, D] of the first batches, and the stream of all of them."""
    batches, first, number = iter(batches), [], 0
    for batch in batches:
        batch = np.asarray(check_floating(batch), np.float32)
        if batch.ndim < 2:
            raise ValueError(
                f'every batch must be vectors [..., D], got one of shape {batch.shape}'
            )
        if first:
            _check_dim(batch, first[0].shape[-1])
        first.append(batch.reshape(-1, batch.shape[-1]))
        number += len(first[-1])
        if number >= size:
            break
    if not number:
        raise ValueError('z gave no vectors: give an array, or an iterable of batches')
    rest = (np.asarray(b, np.float32).reshape(-1, b.shape[-1]) for b in batches)
    return np.concatenate(first), itertools.chain(first, rest)


def _check_dim(batch, dim):
    if batch.shape[-1] != dim:
        raise ValueError(f'every batch must have {dim} features, as the first, got {batch.shape}')


@contextlib.contextmanager
def _bar(steps: int, wanted: bool | None) -> Iterator[Callable[[str, int], None]]:
    """report(text, step), drawing a progress bar on stderr if wanted and `rich` is installed."""
    if wanted is None:
        wanted = sys.stderr.isatty()
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    except ImportError:
        wanted = False
    if not wanted:
        yield lambda text, step: None
        return
    columns = (
        TextColumn('fit'),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn('{task.description}'),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task('', total=max(steps, 1))
        yield lambda text, step: bar.update(task, description=text, completed=step)
