"""Checkpoints of other libraries as quantizers of this one: same codes, same vectors.

Plain mappings of arrays in, (quantizer, params, state) out; torch and haiku are not needed. A
torch state dict becomes such a mapping by `{k: v.numpy() for k, v in state_dict.items()}`.

Imported quantizers have `revival=None` and train on as they did where they came from;
`dataclasses.replace(quantizer, revival=vqjax.ops.Revival())` turns revival on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vqjax.imported import Book, check_keys, finite, num_layers, numbers, under
from vqjax.ops.fields import check_count
from vqjax.quantizers import (
    FSQ,
    VQEMA,
    Product,
    Projected,
    ProjectedParams,
    Quantizer,
    Residual,
)

Imported = tuple[Quantizer, Any, Any]

_BUFFERS = ('cluster_size', 'embed', 'embed_avg')


def from_vector_quantize_pytorch(
    state_dict: Mapping[str, np.ndarray],
    *,
    metric: str = 'euclidean',
    decay: float = 0.8,
    eps: float = 1e-5,
    commitment: float = 1.0,
    heads: int = 1,
    levels: Iterable[int] | None = None,
    symmetric: bool = False,
    prefix: str = '',
) -> Imported:
    """A `VectorQuantize` (as VQEMA), `ResidualVQ` (as Residual) or `FSQ` of that library.

    What a state dict does not hold is given beside it; defaults are that library's. Several heads
    become a Product, layers that hold one shared codebook a shared Residual, and projections
    without bias a Projected.

    Args:
      state_dict: arrays by name.
      metric: 'cosine' for its use_cosine_sim.
      decay, eps, commitment: its decay, eps and commitment_weight.
      heads: its heads.
      levels: of an FSQ, whose state dict holds projections at most.
      symmetric: its preserve_symmetry.
      prefix: what stands before the keys in the state dict of a larger model, such as 'vq.'; keys
        without it are passed over.

    Returns:
      (quantizer, params, state): the codebook as imported, to the last place (cosine: to the last
      few); counts as imported, 0 as eps; sums that give that codebook.

    Raises:
      ValueError: for unknown or missing keys (listing both), shapes that do not fit together, a
        codebook not initialised or not finite, projections with a bias.
    """
    entries = under(state_dict, prefix)
    projections = {k: entries.pop(k) for k in list(entries) if k.startswith('project_')}
    quantizer: Quantizer
    check_count('heads', heads)
    if levels is not None:
        check_keys(entries, (), prefix)
        if not isinstance(levels, Iterable):
            raise ValueError(f'levels must be a list of levels, got {levels!r}')
        quantizer, state = FSQ(tuple(levels), symmetric=symmetric), ()
    else:
        stems = [f'layers.{i}.' for i in range(num_layers(entries))]
        names = [f'_codebook.{name}' for name in ('initted', *_BUFFERS)]
        check_keys(entries, [stem + name for stem in stems or [''] for name in names], prefix)
        books = [
            _codebook(entries, prefix, f'{stem}_codebook.', 'initted', metric, eps)
            for stem in stems or ['']
        ]
        num_codes = books[0].counts.shape[-1]
        leaf = VQEMA(num_codes, decay, commitment, eps, metric, revival=None)
        quantizer, state = _with_heads(leaf, books, heads)
        if stems:
            quantizer, state = _residual(leaf, [book.each(0) for book in books])
    if not projections:
        return quantizer, (), state
    return _projected(quantizer, state, projections, prefix)


def from_encodec(
    state_dict: Mapping[str, np.ndarray],
    *,
    decay: float = 0.99,
    eps: float = 1e-5,
    commitment: float = 1.0,
    prefix: str = 'quantizer.vq.',
) -> Imported:
    """encodec's residual quantizer, from the state dict of its model or of the quantizer.

    Its codes are [S, B, T], those of Residual [B, T, S]; at a lower bandwidth it uses the first
    stages only, which here are the first codes of each vector, and decoding takes -1 for the rest.

    Args:
      state_dict: arrays by name, among them `prefix`layers.N._codebook.embed and its companions.
      decay, eps, commitment: its decay, epsilon and commitment_weight.
      prefix: what stands before `layers.`; keys without it are passed over.

    Returns:
      (Residual, (), state) as `from_vector_quantize_pytorch` does.

    Raises:
      ValueError: for unknown or missing keys (listing both), shapes that do not fit together, or a
        codebook not initialised or not finite.
    """
    entries = under(state_dict, prefix)
    stems = [f'layers.{i}._codebook.' for i in range(max(num_layers(entries), 1))]
    check_keys(entries, [stem + name for stem in stems for name in ('inited', *_BUFFERS)], prefix)
    books = [_codebook(entries, prefix, stem, 'inited', 'euclidean', eps) for stem in stems]
    leaf = VQEMA(books[0].counts.shape[-1], decay, commitment, eps, revival=None)
    quantizer, state = _residual(leaf, books)
    return quantizer, (), state


def from_haiku(
    state: Mapping[str, Mapping[str, np.ndarray]],
    *,
    decay: float = 0.99,
    eps: float = 1e-5,
    commitment: float = 0.25,
    module: str | None = None,
) -> Imported:
    """haiku's `VectorQuantizerEMA`, from the state of its transformed function (it has no params).

    Its averages keep a `hidden` value, the plain moving average, and an `average` with the bias of
    starting at zero removed. Both give the same codebook; the hidden ones are imported, because
    they are what moves as counts and sums do here, and the counter as the step.

    Args:
      state: module name -> variable name -> array.
      decay, eps, commitment: its decay, epsilon and commitment_cost.
      module: name of the quantizer's module; by default the only one with embeddings.

    Returns:
      (VQEMA, (), state): the codebook as imported, to the last place.

    Raises:
      ValueError: for missing or unknown names (listing both), several quantizers and no `module`,
        or one never trained.
    """
    if not isinstance(state, Mapping):
        raise ValueError(f'state must be a mapping of modules, got {type(state).__name__}')
    for name, variables in state.items():
        if not isinstance(name, str) or not isinstance(variables, Mapping):
            raise ValueError(f'state must map names of modules to variables by name, see {name!r}')
    if module is None:
        found = [name for name in state if 'embeddings' in state[name]]
        if len(found) != 1:
            raise ValueError(
                f"module must be given unless one of {sorted(state)} alone has 'embeddings', "
                f'which {found} have'
            )
        module = found[0]
    entries = {}
    for name, variables in state.items():
        if name == module or name.startswith(f'{module}/'):
            # Modules made in a constructor have '~' in their path.
            path = name[len(module) :].strip('/').removeprefix('~/')
            entries |= {
                f'{path}/{k}'.strip('/'): numbers(f'{name}/{k}', v) for k, v in variables.items()
            }
    parts = ('counter', 'hidden', 'average')
    averages = [f'{ema}/{part}' for ema in ('ema_cluster_size', 'ema_dw') for part in parts]
    check_keys(entries, ['embeddings', *averages], f'{module}/')
    counter = entries['ema_cluster_size/counter']
    if counter.shape or not np.isfinite(counter) or not counter < 2**31:
        raise ValueError(f'{module}/ema_cluster_size/counter must be a number of steps')
    step = int(counter)
    if step < 1:
        raise ValueError(f'{module} was never trained: its counter is {step}')
    book = Book.checked(
        {
            f'{module}/ema_cluster_size/hidden': entries['ema_cluster_size/hidden'],
            f'{module}/embeddings': entries['embeddings'].T,
            f'{module}/ema_dw/hidden': entries['ema_dw/hidden'].T,
        },
        'euclidean',
        eps,
    )
    if book.counts.ndim != 1:
        raise ValueError(f'{module}/embeddings must be [D, K], got {entries["embeddings"].shape}')
    quantizer = VQEMA(book.counts.shape[-1], decay, commitment, eps, revival=None)
    return quantizer, (), book.state()._replace(step=jnp.asarray(step, jnp.int32))


def _codebook(entries, prefix, stem, started, metric, eps):
    if not np.all(entries[stem + started]):
        raise ValueError(f'{prefix}{stem}{started} is false: the codebook was never initialised')
    buffers = {f'{prefix}{stem}{name}': entries[stem + name] for name in _BUFFERS}
    return Book.checked(buffers, metric, eps)


def _with_heads(leaf, books, heads):
    """(quantizer, state) of one layer, whose buffers have a leading axis of heads."""
    book = books[0]
    if book.counts.ndim != 2 or book.counts.shape[0] not in (1, heads):
        raise ValueError(
            f'_codebook.embed has shape {book.sums.shape}: need [heads, K, D] with heads={heads}, '
            'or 1 for shared codes; give heads'
        )
    if heads == 1:
        return leaf, book.each(0).state()
    shared = book.counts.shape[0] == 1
    state = book.each(0).state() if shared else book.state()
    return Product(leaf, heads, shared=shared), state


def _residual(leaf, books):
    states = [book.state() for book in books]
    if len({tuple(x.shape for x in state) for state in states}) > 1:
        raise ValueError(f'layers differ in shape: {[state.sums.shape for state in states]}')
    same = all(
        np.array_equal(a, b) for state in states[1:] for a, b in zip(state, states[0], strict=True)
    )
    if same and len(states) > 1:
        return Residual(leaf, len(states), shared=True), states[0]
    return Residual(leaf, len(states)), jax.tree.map(lambda *x: jnp.stack(x), *states)


def _projected(quantizer, state, projections, prefix):
    weights = ['project_in.weight', 'project_out.weight']
    biases = [name for name in ('project_in.bias', 'project_out.bias') if name in projections]
    check_keys(projections, [*weights, *biases], prefix)
    for name in biases:
        if np.any(projections[name]):
            raise ValueError(
                f'{prefix}{name} is not zero, and Projected has no bias: import without the '
                'project_ keys, and apply the projections outside as Flax Dense layers'
            )
    # torch keeps a kernel as [out, in].
    kernel_in, kernel_out = (finite(prefix + name, projections[name]).T for name in weights)
    if kernel_in.ndim != 2 or kernel_out.shape != kernel_in.shape[::-1]:
        raise ValueError(
            f'{prefix}project_in.weight and {prefix}project_out.weight do not fit together: '
            f'{kernel_in.T.shape} and {kernel_out.T.shape}, need [dim, D] and [D, dim]'
        )
    dim = kernel_in.shape[1]
    codes = jnp.zeros(quantizer.code_shape, jnp.int32)
    needed = jax.eval_shape(quantizer.decode, (), state, codes).shape[-1]
    if dim != needed:
        raise ValueError(
            f'{prefix}project_in.weight {kernel_in.T.shape} projects to {dim} features, but the '
            f'codes between the projections have {needed}'
        )
    kernel_in, kernel_out = jnp.asarray(kernel_in), jnp.asarray(kernel_out)
    return Projected(quantizer, dim), ProjectedParams(kernel_in, kernel_out, ()), state
