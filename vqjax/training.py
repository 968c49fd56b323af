"""The pmap loop: one training step, one evaluation step, and the loop over them."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vqjax import ops, steps
from vqjax.steps import AXIS, PROBES, Task, TrainState

__all__ = [
    'AXIS',
    'Diverged',
    'Evaluation',
    'Task',
    'TrainState',
    'eval_step',
    'evaluate',
    'fit',
    'init_state',
    'make_optimizer',
    'read',
    'replicate',
    'shard',
    'state_shapes',
    'train_step',
]


class Diverged(RuntimeError):
    """A step was not finite. `state` is the last healthy one, `step` the one that failed."""

    def __init__(self, step: int, what: str, state: TrainState):
        super().__init__(f'step {step}: the {what} turned NaN or infinite first')
        self.step, self.what, self.state = step, what, state


def make_optimizer(
    learning_rate: float,
    num_steps: int,
    warmup_steps: int = 0,
    weight_decay: float = 0.0,
    clip_norm: float = 0.0,
) -> optax.GradientTransformation:
    """AdamW with linear warm-up and cosine decay to 0 over num_steps.

    Args:
      learning_rate: the peak.
      weight_decay: decoupled, on kernels only (arrays of rank 2 and more); 0 = off.
      clip_norm: largest global norm of the gradient; 0 = off.
    """
    # A warm-up as long as the run would leave the decay no steps.
    warmup_steps = min(warmup_steps, num_steps - 1)
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup_steps, num_steps)
    adam = optax.adamw(
        schedule,
        weight_decay=weight_decay,
        mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
    )
    return optax.chain(optax.clip_by_global_norm(clip_norm), adam) if clip_norm else adam


def init_state(task: Task, seed: int, images: jax.Array) -> TrainState:
    """A fresh state, not replicated. Codebooks start from `images` [N, H, W, C], so give many.

    Raises:
      ValueError: the encoder maps the images to identical, zero or non-finite vectors.
    """
    state, z = jax.jit(_init, static_argnums=0)(task, seed, images)
    if task.model.quantizer is not None:
        ops.check_distinct(z.reshape(-1, z.shape[-1]))
    return state


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
    )
    return state, output.z


def train_step(
    task: Task, state: TrainState, batch: dict[str, jax.Array]
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step inside pmap(axis_name=AXIS), or shard_map over a mesh axis of that name.

    Args:
      batch: this replica's share: image [b, H, W, C], label int32 [b]; stop bool [1], this
        process was asked to stop (fit adds it).

    Returns:
      The new state, equal on all replicas, and float32 scalars averaged over them; `finite` is
      bool [len(PROBES)]. A step that is not finite leaves the state as it was, for good.
    """
    grads, stats, measured = steps.gradients(task, state, batch)
    updates, opt_state = task.optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema_params = ()
    if task.ema_decay:
        ema_params = optax.incremental_update(params, state.ema_params, 1.0 - task.ema_decay)
    new = TrainState(state.step + 1, state.key, params, stats, opt_state, ema_params, state.healthy)
    healthy = state.healthy & jnp.all(measured['finite'])
    state = jax.tree.map(lambda a, b: jnp.where(healthy, a, b), new, state)
    return state._replace(healthy=healthy), measured


def eval_step(task: Task, state: TrainState, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Predictions for one padded batch inside pmap; nothing is updated.

    Args:
      batch: image [b, H, W, C], label int32 [b], mask bool [b].

    Returns:
      Of all replicas together: probs [B, classes], label and mask [B], counts float32
      [*code_shape, K] (no entry without a quantizer), and sums over real images of nll,
      quantizer_loss, input_norm and code_norm.
    """
    params = state.ema_params if task.ema_decay else state.params
    images, mask = steps.clean(batch)
    output = task.model.apply({'params': params, **state.stats}, images, train=False, mask=mask)
    nll = optax.softmax_cross_entropy_with_integer_labels(output.logits, batch['label'])
    sums = {'nll': jnp.sum(nll * mask), 'input_norm': steps.mean_norm(output.z, mask, 1.0)}
    if output.quantized is not None:
        sums['code_norm'] = steps.mean_norm(output.quantized.z_q, mask, 1.0)
        sums['quantizer_loss'] = output.quantized.loss * jnp.sum(mask)
        sums['counts'] = steps.count_codes(output.quantized.codes, task.model.quantizer)
    gathered = {
        'probs': jax.nn.softmax(output.logits),
        'label': batch['label'],
        'mask': mask,
        'corrupt': batch['mask'] & ~mask,
    }
    return jax.lax.psum(sums, AXIS) | jax.lax.all_gather(gathered, AXIS, tiled=True)


# The loop.


def fit(
    step_fn: Callable,
    state: TrainState,
    batches: Iterator[dict[str, np.ndarray]],
    num_steps: int,
    on_step: Callable[[dict[str, np.ndarray]], None],
    should_stop: Callable[[], bool] = lambda: False,
) -> TrainState:
    """Takes num_steps steps and returns the state after them.

    Args:
      step_fn: pmapped train_step(state, batch).
      state: replicated; donated.
      batches: of this process, each split here over its devices.
      on_step: receives the metrics of every step, while the next one runs.
      should_stop: asked before every step; True on any process ends the loop on all, a step later.

    Raises:
      Diverged: a step was not finite.
    """
    n, previous = jax.local_device_count(), None
    for _ in range(num_steps):
        # The wish travels with the batch, so all processes hear of it at the same step.
        stop = np.full((n, 1), should_stop())
        state, measured = step_fn(state, shard(next(batches)) | {'stop': stop})
        stopping = False
        if previous is not None:
            stopping = check_finite(read(previous), state, on_step)
        previous = measured
        if stopping:
            break
    if previous is not None:
        check_finite(read(previous), state, on_step)
    return state


def check_finite(measured: dict[str, np.ndarray], state: TrainState, on_step: Callable) -> bool:
    """Hands the metrics of one step to on_step and returns whether some process is to stop.

    Raises:
      Diverged: the step was not finite.
    """
    if not measured['finite'].all():
        what = PROBES[int(np.argmin(measured['finite']))]
        raise Diverged(int(read(state.step)) + 1, what, state)
    stopping = bool(measured.pop('stop'))
    on_step(measured)
    return stopping


class Evaluation(NamedTuple):
    """A whole split, padding removed.

    probs: float32 [N, classes]
    labels: int32 [N]
    counts: float64 [*code_shape, K] or None without a quantizer
    means: nll, input_norm and, with a quantizer, code_norm and quantizer_loss of an average image
    corrupt: images left out because they held NaN or infinities
    """

    probs: np.ndarray
    labels: np.ndarray
    counts: np.ndarray | None
    means: dict[str, float]
    corrupt: int


def evaluate(
    eval_fn: Callable, state: TrainState, batches: Iterable[dict[str, np.ndarray]]
) -> Evaluation:
    """Runs pmapped eval_step over every batch of a split; every process gets the whole result."""
    outputs = [read(x) for x in [eval_fn(state, shard(batch)) for batch in batches]]
    mask = np.concatenate([x['mask'] for x in outputs])
    sums = {
        name: sum(x[name].astype(np.float64) for x in outputs)
        for name in ('nll', 'input_norm', 'code_norm', 'quantizer_loss', 'counts')
        if name in outputs[0]
    }
    counts = sums.pop('counts', None)
    return Evaluation(
        probs=np.concatenate([x['probs'] for x in outputs])[mask],
        labels=np.concatenate([x['label'] for x in outputs])[mask],
        counts=counts,
        means={name: float(total) / max(int(mask.sum()), 1) for name, total in sums.items()},
        corrupt=int(sum(x['corrupt'].sum() for x in outputs)),
    )


def replicate(tree: Any) -> Any:
    """One copy of every array for each device, placed as pmap returns it: a new leading axis."""
    # NumPy arrays would do, but their first step would be compiled apart from the rest.
    mesh = jax.sharding.Mesh(np.array(jax.devices()), (AXIS,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))
    n = jax.local_device_count()
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.stack([np.asarray(x)] * n)),
        tree,
    )


def read(tree: Any) -> Any:
    """The first local copy of replicated arrays, in NumPy; waits for them."""
    return jax.tree.map(lambda x: np.asarray(x.addressable_shards[0].data)[0], tree)


def shard(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Splits axis 0 over the local devices: [b, ...] -> [devices, b / devices, ...]."""
    n = jax.local_device_count()
    return {name: np.reshape(x, (n, -1, *x.shape[1:])) for name, x in batch.items()}
