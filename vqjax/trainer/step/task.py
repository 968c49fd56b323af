"""What is trained and how (`Task`), and what a run carries from step to step (`TrainState`)."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import optax

from vqjax import ops
from vqjax.trainer.step.network import Classifier

AXIS = 'batch'

# What can turn NaN or infinite in a step, in the order in which it is computed.
PROBES = (
    'encoder output',
    'quantized vectors',
    'logits',
    'task loss',
    'quantizer loss',
    'gradient',
)


class TrainState(NamedTuple):
    """Everything a run carries from step to step; replicated over devices.

    step: int32 [], optimizer steps taken
    key: uint32 [2], raw key data of the run's random key
    params: what gradients move
    stats: the other collections of the model (codebook_stats, batch_stats)
    opt_state: the optimizer's
    ema_params: running average of params, or () where it is off
    healthy: bool [], False from the first non-finite step on; such a state no longer moves
    codebook: where steps are recorded, that of the step before, float32 [K, D]; else ()
    """

    step: jax.Array
    key: jax.Array
    params: Any
    stats: Any
    opt_state: Any
    ema_params: Any
    healthy: jax.Array
    codebook: Any = ()


@dataclasses.dataclass(frozen=True)
class Task:
    """What is trained and how: the static part of every step.

    Attributes:
      model: the classifier; its axis_name is the axis of the replicas, or None for one.
      optimizer: any optax transformation.
      label_smoothing: share of the target spread evenly over the classes, 0 to 1.
      accumulate: micro-batches a step. The codebook is updated once a step, from all of them.
      ema_decay: of the running average of params that evaluation reads; 0 = off.
      steps_per_epoch: what schedules over epochs count in.
      quantizer_weight: of the quantizer's loss, a number or a schedule of the epoch.
      classification_weight: of the cross-entropy.
      reconstruction_weight: of the decoder's mean squared error.
      continuous: the first of two stages, in which nothing is quantized.
      frozen: the encoder is as in evaluation; its gradient is the optimizer's to stop.
      record: every step tells all that `health.diagnose` reads.
    """

    model: Classifier
    optimizer: optax.GradientTransformation
    label_smoothing: float = 0.0
    accumulate: int = 1
    ema_decay: float = 0.0
    steps_per_epoch: int = 1
    quantizer_weight: float | ops.Schedule = 1.0
    classification_weight: float = 1.0
    reconstruction_weight: float = 0.0
    continuous: bool = False
    frozen: bool = False
    record: bool = False

    @property
    def axis(self) -> str | None:
        """Name of the axis of the replicas."""
        return self.model.axis_name

    @property
    def windows(self) -> bool:
        """Whether images are windows of recordings, in which NaN stands for missing steps."""
        return self.model.encoder == 'sensor'

    def real_places(self, images: jax.Array, mask: jax.Array) -> jax.Array | None:
        """The places of windows that count, bool [B, h, w]; None for images, all of whose do."""
        return self.model.real_places(images, mask) if self.windows else None

    @property
    def quantizer(self) -> Any:
        """What quantizes in this stage, or None."""
        return None if self.continuous else self.model.quantizer


# Of functions of a task that run once or between epochs: quick to compile rather than quick.
quick_jit = functools.partial(
    jax.jit, static_argnums=0, compiler_options={'xla_backend_optimization_level': 0}
)
