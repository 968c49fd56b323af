"""The state that a run starts from, and the codebooks that start anew between stages."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from vqjax import ops
from vqjax.nn import COLLECTION, PARAMS, STATE
from vqjax.runfiles import BATCH_STATS, ENCODER, QUANTIZER, quantizer_variables
from vqjax.trainer.step import measures
from vqjax.trainer.step.optimizer import within
from vqjax.trainer.step.task import Task, TrainState, quick_jit

_START = 2**32 - 1  # folded into the key of a run; no step has this number


def init_state(task: Task, seed: int, images: jax.Array, loaded: Any = None) -> TrainState:
    """A fresh state, not replicated. Codebooks start from `images` [N, H, W, C], so give many.

    Args:
      loaded: collections of another run's model, by name; their entries replace the fresh ones. A
        task for features has its encoder from there alone.

    Raises:
      ValueError: the encoder maps the images to identical, zero or non-finite vectors.
    """
    state, z = _jit_init(task, seed, images)
    if loaded is not None:
        params = state.params | loaded['params']
        stats = {c: tree | loaded.get(c, {}) for c, tree in state.stats.items()}
        state = state._replace(
            params=params,
            stats=stats,
            opt_state=task.optimizer.init(params),
            ema_params=params if task.ema_decay else (),
        )
        return start_quantizer(task, state, images)
    if task.model.quantizer is not None:
        ops.check_distinct(z, _counting(task, images, z))
    return state


@functools.lru_cache(maxsize=4)
def state_shapes(task: Task, image_shape: tuple[int, ...], size: int) -> TrainState:
    """Shapes and dtypes of the state that init_state would give for `size` images."""
    images = jax.ShapeDtypeStruct((size, *image_shape), jnp.float32)
    return jax.eval_shape(lambda x: _init(task, 0, x), images)[0]


def _init(task: Task, seed: int, images: jax.Array) -> tuple[TrainState, jax.Array]:
    key, init_key, quantizer_key = jax.random.split(jax.random.key(seed), 3)
    # train=True: k-means has to see z as training will, normalised over the batch.
    output, variables = task.model.init_with_output(
        {'params': init_key, 'quantizer': quantizer_key}, images, train=True
    )
    params = variables.pop('params')
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        key=jax.random.key_data(key),
        params=params,
        stats=variables,
        opt_state=task.optimizer.init(params),
        ema_params=params if task.ema_decay else (),
        healthy=jnp.ones((), bool),
        codebook=measures.read_codebook(task, params, variables) if task.record else (),
    )
    return state, output.z


_jit_init = quick_jit(_init)


def restandardize(task: Task, loaded: Any, images: jax.Array) -> Any:
    """What `init_state` loads, from a run with another bottleneck.

    Places of a grid vary more than their mean over an image does, so the mean and variance by which
    the encoder standardises z are taken anew, from images [N, H, W, C].
    """
    if not task.model.standardize:
        return loaded
    batch_stats = loaded[BATCH_STATS]

    def standing(moments: Any) -> Any:
        encoder = batch_stats[ENCODER] | {'standardize': moments}
        return loaded | {BATCH_STATS: batch_stats | {ENCODER: encoder}}

    size = task.model.features
    z = _jit_represent(
        task, standing({'mean': jnp.zeros(size), 'variance': jnp.ones(size)}), images
    )
    axes = tuple(range(z.ndim - 1))
    return standing({'mean': jnp.mean(z, axes), 'variance': jnp.var(z, axes)})


def _represent(task: Task, variables: Any, images: jax.Array) -> Any:
    return task.model.clone(axis_name=None).apply(variables, images, method='represent')


_jit_represent = quick_jit(_represent)


def forget_programs() -> None:
    """Drops what was compiled for the methods so far: forty of them would fill the memory."""
    for function in (_jit_init, _jit_represent, _jit_start_quantizer, measures.gradient_flow):
        function.clear_cache()  # type: ignore[attr-defined]


def start_quantizer(task: Task, state: TrainState, images: jax.Array) -> TrainState:
    """The state with its quantizer started anew from the features as they now are.

    What a run does when its second stage begins, and after its encoder came from another run. The
    optimizer forgets the quantizer's past; not replicated.

    Args:
      images: float32 [N, H, W, C], so many that k-means finds its codes.

    Raises:
      ValueError: the encoder maps the images to identical, zero or non-finite vectors.
    """
    if task.model.quantizer is None:
        return state
    new, z = _jit_start_quantizer(task, state, images)
    ops.check_distinct(z, _counting(task, images, z))
    return new


def _counting(task: Task, images: Any, z: Any) -> jax.Array | None:
    """The places of z [B, h, w, D] that count, bool [B, h, w]; None for all."""
    real = task.model.real_places(images)
    return None if real is None else jnp.broadcast_to(real, z.shape[:-1])


def _start_quantizer(task: Task, state: TrainState, images: Any) -> tuple[TrainState, jax.Array]:
    read = state.ema_params if task.ema_decay else state.params  # what evaluation reads
    model = task.model.clone(axis_name=None)
    z: Any = model.apply({'params': read, **state.stats}, images, method='represent')
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), _START)
    quantizer: Any = task.model.quantizer
    started = quantizer.init(key, z, _counting(task, images, z))
    params, stats = state.params, state.stats
    old = quantizer_variables({'params': params, **stats})
    if jax.tree.leaves(old[0]):
        params = params | {QUANTIZER: {PARAMS: started[0]}}
    if jax.tree.leaves(old[1]):
        stats = stats | {COLLECTION: stats[COLLECTION] | {QUANTIZER: {STATE: started[1]}}}
    fresh = task.optimizer.init(params)
    opt_state = jax.tree.map(
        lambda reset, a, b: a if reset else b, within(fresh, QUANTIZER), fresh, state.opt_state
    )
    ema_params = ()
    if task.ema_decay:
        kept = {QUANTIZER: params[QUANTIZER]} if QUANTIZER in params else {}
        ema_params = state.ema_params | kept
    codebook = measures.read_codebook(task, params, stats) if task.record else ()
    state = state._replace(
        params=params, stats=stats, opt_state=opt_state, ema_params=ema_params, codebook=codebook
    )
    return state, z


_jit_start_quantizer = quick_jit(_start_quantizer)
