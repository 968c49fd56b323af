"""What is compiled: the start of a run, its steps, its change of stage, its evaluation."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vqjax import ops, quantizers
from vqjax.nn import COLLECTION
from vqjax.trainer import masks, steps
from vqjax.trainer.models import ENCODER, QUANTIZER, quantizer_variables
from vqjax.trainer.steps import AXIS, Task, TrainState

__all__ = [
    'AXIS',
    'Task',
    'TrainState',
    'eval_step',
    'forget_programs',
    'init_state',
    'make_optimizer',
    'restandardize',
    'start_quantizer',
    'state_shapes',
    'train_step',
    'train_steps',
]

_START = 2**32 - 1  # folded into the key of a run; no step has this number


def make_optimizer(
    learning_rate: float,
    num_steps: int,
    warmup_steps: int = 0,
    weight_decay: float = 0.0,
    clip_norm: float = 0.0,
    schedule: str = 'cosine',
    frozen_steps: int = 0,
) -> optax.GradientTransformation:
    """AdamW with linear warm-up, then cosine decay to 0 over num_steps or a constant rate.

    Args:
      learning_rate: the peak.
      weight_decay: decoupled, on kernels only (arrays of rank 2 and more); 0 = off.
      clip_norm: largest global norm of the gradient; 0 = off.
      schedule: 'cosine' or 'constant'.
      frozen_steps: first steps in which the encoder does not move; -1 = it never does.
    """
    # A warm-up as long as the run would leave the decay no steps.
    warmup_steps = min(warmup_steps, num_steps - 1)
    if schedule == 'cosine':
        rate = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup_steps, num_steps)
    else:
        rate = optax.constant_schedule(learning_rate)
        if warmup_steps:  # a warm-up of no steps would be a rate of 0 for good
            rate = optax.warmup_constant_schedule(0.0, learning_rate, warmup_steps)
    parts = [
        optax.adamw(
            rate,
            weight_decay=weight_decay,
            mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        )
    ]
    if clip_norm:
        parts.insert(0, optax.clip_by_global_norm(clip_norm))
    if frozen_steps:
        thaw = optax.join_schedules(
            [optax.constant_schedule(0.0), optax.constant_schedule(1.0)],
            [num_steps if frozen_steps < 0 else frozen_steps],
        )
        encoder = functools.partial(_within, name=ENCODER)
        parts.append(optax.masked(optax.scale_by_schedule(thaw), encoder))
    return parts[0] if len(parts) == 1 else optax.chain(*parts)


def _within(tree: Any, name: str) -> Any:
    """Bools like tree: whether a leaf lies below an entry of this name."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: any(getattr(part, 'key', None) == name for part in path), tree
    )


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
        codebook=steps.read_codebook(task, params, variables) if task.record else (),
    )
    return state, output.z


_jit_init = steps.quick_jit(_init)


def restandardize(task: Task, loaded: Any, images: jax.Array) -> Any:
    """What `init_state` loads, from a run with another bottleneck.

    Places of a grid vary more than their mean over an image does, so the mean and variance by which
    the encoder standardises z are taken anew, from images [N, H, W, C].
    """
    if not task.model.standardize:
        return loaded
    batch_stats = loaded['batch_stats']

    def standing(moments: Any) -> Any:
        encoder = batch_stats[ENCODER] | {'standardize': moments}
        return loaded | {'batch_stats': batch_stats | {ENCODER: encoder}}

    size = task.model.features
    z = _jit_represent(
        task, standing({'mean': jnp.zeros(size), 'variance': jnp.ones(size)}), images
    )
    axes = tuple(range(z.ndim - 1))
    return standing({'mean': jnp.mean(z, axes), 'variance': jnp.var(z, axes)})


def _represent(task: Task, variables: Any, images: jax.Array) -> jax.Array:
    return task.model.clone(axis_name=None).apply(variables, images, method='represent')


_jit_represent = steps.quick_jit(_represent)


def forget_programs() -> None:
    """Drops what was compiled for the methods so far: forty of them would fill the memory."""
    for function in (_jit_init, _jit_represent, _jit_start_quantizer, steps.gradient_flow):
        function.clear_cache()


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
    z = model.apply({'params': read, **state.stats}, images, method='represent')
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), _START)
    started = task.model.quantizer.init(key, z, _counting(task, images, z))
    params, stats = state.params, state.stats
    old = quantizer_variables({'params': params, **stats})
    if jax.tree.leaves(old[0]):
        params = params | {QUANTIZER: {'quantizer': started[0]}}
    if jax.tree.leaves(old[1]):
        stats = stats | {COLLECTION: stats[COLLECTION] | {QUANTIZER: {'state': started[1]}}}
    fresh = task.optimizer.init(params)
    opt_state = jax.tree.map(
        lambda reset, a, b: a if reset else b, _within(fresh, QUANTIZER), fresh, state.opt_state
    )
    ema_params = ()
    if task.ema_decay:
        kept = {QUANTIZER: params[QUANTIZER]} if QUANTIZER in params else {}
        ema_params = state.ema_params | kept
    codebook = steps.read_codebook(task, params, stats) if task.record else ()
    state = state._replace(
        params=params, stats=stats, opt_state=opt_state, ema_params=ema_params, codebook=codebook
    )
    return state, z


_jit_start_quantizer = steps.quick_jit(_start_quantizer)


def train_step(
    task: Task, state: TrainState, batch: dict[str, jax.Array]
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step, on one replica of the axis `task.axis` (a pmap's or a shard_map's).

    Args:
      batch: this replica's share: image [b, H, W, C], label int32 [b]; stop bool [1], this
        process was asked to stop (the loop adds it).

    Returns:
      The new state, equal on all replicas, and float32 scalars averaged over them; `finite` is
      bool [len(steps.PROBES)]. A step that is not finite leaves the state as it was, for good.
    """
    grads, stats, measured = steps.gradients(task, state, batch)
    updates, opt_state = task.optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema_params = ()
    if task.ema_decay:
        ema_params = optax.incremental_update(params, state.ema_params, 1.0 - task.ema_decay)
    new = state._replace(
        step=state.step + 1, params=params, stats=stats, opt_state=opt_state, ema_params=ema_params
    )
    if task.record:
        new = new._replace(codebook=steps.read_codebook(task, state.params, state.stats))
    healthy = state.healthy & jnp.all(measured['finite'])
    state = jax.tree.map(lambda a, b: jnp.where(healthy, a, b), new, state)
    return state._replace(healthy=healthy), measured


def train_steps(
    task: Task, state: TrainState, batches: dict[str, jax.Array], count: jax.Array
) -> tuple[TrainState, dict[str, jax.Array]]:
    """The first `count` of n steps in one dispatch: `train_step` over batches [n, b, ...].

    One program serves any count up to n, so that the last steps of an epoch compile nothing.

    Returns:
      The state after them, and the metrics of every step, each with a leading axis n; those from
      `count` on are zeros.
    """
    first, size = jax.tree.map(lambda x: x[0], batches), len(batches['label'])
    if size == 1:
        state, measured = train_step(task, state, first)
        return state, jax.tree.map(lambda x: x[None], measured)
    step = jax.jit(functools.partial(train_step, task), inline=True)  # traced once for both uses
    shapes = jax.eval_shape(step, state, first)[1]
    kept = jax.tree.map(lambda x: jnp.zeros((size, *x.shape), x.dtype), shapes)

    def body(i: jax.Array, carry: Any) -> Any:
        state, kept = carry
        state, measured = step(state, jax.tree.map(lambda x: x[i], batches))
        return state, jax.tree.map(lambda all, one: all.at[i].set(one), kept, measured)

    return jax.lax.fori_loop(0, count, body, (state, kept))


def eval_step(
    task: Task, state: TrainState, batch: dict[str, jax.Array]
) -> tuple[Any, dict[str, jax.Array]]:
    """Predictions for one padded batch on one replica of `task.axis`.

    Args:
      batch: image [b, H, W, C], label int32 [b], mask bool [b].

    Returns:
      The codebook statistics that evaluation leaves, where steps are recorded (a faulty model
      moves them), else (). And of all replicas together: probs [B, classes], label and mask [B],
      counts float32 [..., K] (no entry where nothing is quantized), and sums over real
      images of nll, quantizer_loss, input_norm, code_norm, reconstruction_error, squared_error
      (of z_q) and squared_norm (of z); max_code_norm, length of the longest code.
    """
    params = state.ema_params if task.ema_decay else state.params
    images, mask = masks.clean(batch, task.windows)
    places = task.real_places(images, mask)
    moving = [COLLECTION] if task.record and COLLECTION in state.stats else []
    output, moved = task.model.apply(
        {'params': params, **state.stats},
        images,
        train=False,
        mask=mask,
        continuous=task.continuous,
        mutable=moving,
    )
    nll = optax.softmax_cross_entropy_with_integer_labels(output.logits, batch['label'])
    sums = {'nll': jnp.sum(nll * mask), 'input_norm': masks.mean_norm(output.z, mask, 1.0, places)}
    if output.decoded is not None:
        errors = masks.reconstruction_errors(output.decoded, images, task.windows)
        sums['reconstruction_error'] = jnp.sum(errors * mask)
    longest = {}
    quantizer = task.model.quantizer
    if output.quantized is not None:
        z_q = output.quantized.z_q
        sums['code_norm'] = masks.mean_norm(z_q, mask, 1.0, places)
        sums['quantizer_loss'] = output.quantized.loss * jnp.sum(mask)
        sums['counts'] = steps.count_codes(output.quantized.codes, quantizer)
        if z_q.shape == output.z.shape:
            real = (mask[:, None, None] if places is None else places)[..., None]
            sums['squared_error'] = jnp.sum(jnp.square(z_q - output.z) * real)
            sums['squared_norm'] = jnp.sum(jnp.square(output.z) * real)
        if isinstance(quantizer, quantizers.Codebook):
            codebook = steps.read_codebook(task, params, state.stats)
            longest['max_code_norm'] = jnp.max(jnp.linalg.norm(codebook, axis=-1))
    gathered = {
        'probs': jax.nn.softmax(output.logits),
        'label': batch['label'],
        'mask': mask,
        'corrupt': batch['mask'] & ~mask,
    }
    if task.axis is not None:
        gathered = jax.lax.all_gather(gathered, task.axis, tiled=True)
    return dict(moved) or (), ops.psum(sums, task.axis) | longest | gathered
