"""A small classifier trained in one compiled scan, every step recorded: what the autopsy runs."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from vqjax import data, health, metrics, models, ops, steps
from vqjax import nn as vq_nn
from vqjax.quantizers import Quantizer
from vqjax.quantizers.codebook import Codebook

CHUNK = 60  # steps a compiled call, and between evaluations
INIT_IMAGES = 1024
MOST_IMAGES = 20_000  # of the training split, all held in memory
TEST_IMAGES = 2_000  # of the others, evaluated in one batch


@dataclass(frozen=True)
class Patient:
    """What is trained and how; hashable, so a static argument.

    Attributes:
      quantizer: of one vector of `features` numbers an image; its features are not standardised.
      steps: a multiple of CHUNK.
      learning_rate: of Adam.
      clip_norm: largest global norm of the gradient; 0 = off.
      frozen_steps: steps in which the encoder does not move.
      continuous_steps: steps in which the task reads z; it reads z_q afterwards.
      quantizer_weight: of the quantizer's loss, a number or a schedule of the step.
      reconstruction: weight of a decoder's squared error; 0 = no decoder.
      classification: weight of the cross-entropy.
      grid: a token for each place of the feature map, and not one an image.
      bridge: the Linen module around the quantizer.
    """

    quantizer: Quantizer | None
    steps: int = 600
    batch_size: int = 64
    learning_rate: float = 1e-3
    features: int = 128
    num_classes: int = 10
    clip_norm: float = 0.0
    frozen_steps: int = 0
    continuous_steps: int = 0
    quantizer_weight: float | ops.Schedule = 1.0
    reconstruction: float = 0.0
    classification: float = 1.0
    grid: bool = False
    image_shape: tuple[int, int, int] = (8, 8, 1)
    bridge: Any = vq_nn.Quantize

    @property
    def model(self) -> Network:
        """The network."""
        shape = self.image_shape if self.reconstruction else None
        return Network(
            self.quantizer, self.num_classes, self.features, self.bridge, shape, self.grid
        )

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """Adam at a constant rate."""
        steps = [optax.adam(self.learning_rate)]
        if self.clip_norm:
            steps.insert(0, optax.clip_by_global_norm(self.clip_norm))
        if self.frozen_steps:
            thaw = optax.join_schedules(
                [optax.constant_schedule(0.0), optax.constant_schedule(1.0)], [self.frozen_steps]
            )
            steps.append(optax.masked(optax.scale_by_schedule(thaw), _encoder_mask))
        return optax.chain(*steps)


class Network(nn.Module):
    """Images [B, H, W, C] -> z [B, D] -> z_q -> logits [B, classes], and images if image_shape."""

    quantizer: Quantizer | None
    num_classes: int
    features: int
    bridge: Any
    image_shape: tuple[int, int, int] | None = None
    grid: bool = False

    def setup(self) -> None:
        self.trunk = models.ConvTrunk(width=16)
        self.project = nn.Dense(self.features)
        if self.quantizer is not None:
            self.quantize = self.bridge(self.quantizer)
        self.hidden = nn.Dense(self.features)
        self.logits = nn.Dense(self.num_classes)
        if self.image_shape is not None:
            self.decoder = models.Decoder(self.image_shape, width=16)

    def encode(self, images: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, D] (or [B, h, w, D]), as it comes: not standardised."""
        maps = self.trunk(images, train=False)
        return self.project(maps if self.grid else jnp.mean(maps, axis=(1, 2)))

    def head(self, z_q: jax.Array) -> jax.Array:
        """[B, D] (or [B, h, w, D]) -> [B, classes]."""
        z_q = jnp.mean(z_q, axis=(1, 2)) if self.grid else z_q
        return self.logits(nn.relu(self.hidden(z_q)))

    def decode(self, z_q: jax.Array) -> jax.Array:
        """[B, D] (or [B, h, w, D]) -> [B, H, W, C]."""
        return self.decoder(z_q if self.grid else z_q[:, None, None])

    def requantize(self, z: jax.Array, train: bool) -> Any:
        """z [B, D] -> Quantized."""
        return self.quantize(z, train=train)

    def __call__(self, images: jax.Array, train: bool, continuous: Any = False) -> Forward:
        """With `continuous` (bool []) the head reads z and not z_q."""
        z = self.encode(images)
        out = None if self.quantizer is None else self.quantize(z, train=train)
        read = z if out is None else jnp.where(continuous, z, out.z_q)
        decoded = None
        if self.image_shape is not None:
            decoded = self.decode(read)
        return Forward(self.head(read), z, out, decoded)


class Forward(NamedTuple):
    """Logits [B, classes], z [B, D], Quantized or None, decoded images or None."""

    logits: jax.Array
    z: jax.Array
    out: Any
    decoded: Any


def _encoder_mask(params):
    def inside(path, _):
        return path[0].key in ('trunk', 'project')

    return jax.tree_util.tree_map_with_path(inside, params)


class Course(NamedTuple):
    """What a run leaves: records in order of step, figures on the test split, and the variables."""

    history: list[dict[str, float]]
    final: dict[str, float]
    variables: Any


class _Carry(NamedTuple):
    step: jax.Array
    variables: Any
    opt_state: Any
    older: Any  # codebooks before the last step and before this one, () where there is none
    old: Any


def _codebook(patient: Patient, variables: Any) -> Any:
    """The codebook [K, D] of a leaf that has one, else ()."""
    if not isinstance(patient.quantizer, Codebook):
        return ()
    return patient.quantizer.read_codebook(*models.quantizer_variables(variables))


def _counts(quantizer: Quantizer, codes: jax.Array) -> jax.Array:
    """Uses of each code, float32 [stages, K], of codes [B, *code_shape]."""
    return steps.count_codes(codes, quantizer).reshape(-1, quantizer.num_codes)


# Runs once: quick to compile rather than quick.
@functools.partial(
    jax.jit, static_argnums=0, compiler_options={'xla_backend_optimization_level': 0}
)
def _start(patient: Patient, key: jax.Array, images: jax.Array) -> tuple[_Carry, jax.Array]:
    forward, variables = patient.model.init_with_output({'params': key}, images, train=True)
    codebook = _codebook(patient, variables)
    opt_state = patient.optimizer.init(variables['params'])
    step = jnp.zeros((), jnp.int32)
    return _Carry(step, variables, opt_state, codebook, codebook), forward.z


@functools.partial(jax.jit, static_argnums=0)
def _step(patient: Patient, carry: _Carry, batch: Any) -> tuple[_Carry, dict[str, jax.Array]]:
    images, labels, key = batch
    stats = {k: v for k, v in carry.variables.items() if k != 'params'}

    weight = patient.quantizer_weight
    weight = weight(carry.step) if callable(weight) else weight

    def loss_fn(params):
        (logits, z, out, decoded), moved = patient.model.apply(
            {'params': params, **stats},
            images,
            train=True,
            continuous=carry.step < patient.continuous_steps,
            mutable=[vq_nn.COLLECTION],
            rngs={'quantizer': key},
        )
        task = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))
        own = jnp.zeros(()) if out is None else out.loss
        total = patient.classification * task + weight * own
        if decoded is not None:
            total += patient.reconstruction * jnp.mean((decoded - images) ** 2)
        return total, (total, task, own, logits, z, out, moved)

    params = carry.variables['params']
    grads, (total, task, own, logits, z, out, moved) = jax.grad(loss_fn, has_aux=True)(params)
    updates, opt_state = patient.optimizer.update(grads, carry.opt_state, params)
    variables = {'params': optax.apply_updates(params, updates), **(moved or stats)}
    record = {
        'loss': total,
        'task_loss': task,
        'train_accuracy': jnp.mean(jnp.argmax(logits, -1) == labels),
        'gradient_norm': optax.tree.norm(grads),
        'input_norm': jnp.mean(jnp.linalg.norm(z, axis=-1)),
    }
    codebook = _codebook(patient, variables)
    if out is not None:
        counts = _counts(patient.quantizer, out.codes)
        record['quantizer_loss'] = own
        record['batch_tokens'] = jnp.float32(z.size / z.shape[-1])
        record['code_norm'] = jnp.mean(jnp.linalg.norm(out.z_q, axis=-1))
        record['batch_perplexity'] = jnp.mean(metrics.perplexity(counts))
        if not isinstance(codebook, tuple):
            record |= health.codebook_events(carry.older, carry.old, codebook, counts[0])
    return _Carry(carry.step + 1, variables, opt_state, carry.old, codebook), record


@functools.partial(jax.jit, static_argnums=0)
def evaluate(patient: Patient, variables: Any, images: jax.Array, labels: jax.Array):
    """(figures, variables) of a split in one batch; a healthy model leaves its variables alone."""
    (logits, z, out, decoded), moved = patient.model.apply(
        variables, images, train=False, mutable=[vq_nn.COLLECTION]
    )
    found = {
        'accuracy': jnp.mean(jnp.argmax(logits, -1) == labels),
        'input_norm': jnp.mean(jnp.linalg.norm(z, axis=-1)),
        'tokens': jnp.float32(z.size / z.shape[-1]),
    }
    if decoded is not None:
        found['reconstruction_error'] = jnp.mean((decoded - images) ** 2)
    if out is None:
        return found, variables
    counts = _counts(patient.quantizer, out.codes)
    found |= {
        'perplexity': jnp.mean(metrics.perplexity(counts)),
        'active_codes': jnp.mean(metrics.active_codes(counts).astype(jnp.float32)),
        'max_share': jnp.max(counts) / found['tokens'],
        'quantizer_loss': out.loss,
        'error': jnp.mean((out.z_q - z) ** 2) / jnp.mean(z**2),
    }
    if getattr(patient.quantizer, 'shared', False):
        share = counts / jnp.sum(counts, axis=-1, keepdims=True)
        found['position_overlap'] = jnp.sum(jnp.min(share, axis=0))
    before, after = _codebook(patient, variables), _codebook(patient, {**variables, **moved})
    if not isinstance(before, tuple):
        drift = jnp.linalg.norm(after - before) / jnp.maximum(jnp.linalg.norm(before), 1e-30)
        found['evaluation_drift'] = drift
        found['max_code_norm'] = jnp.max(jnp.linalg.norm(before, axis=-1))
    return found, {**variables, **moved}


@functools.partial(jax.jit, static_argnums=0)
def _flow(patient: Patient, variables: Any, images: jax.Array, labels: jax.Array):
    model = patient.model
    if patient.quantizer is None:
        return {}

    def quantize(z):
        # Read only: what evaluation would move is not kept.
        return model.apply(variables, z, False, method='requantize', mutable=[vq_nn.COLLECTION])[0]

    def task_loss(z_q):
        if not patient.classification:
            return jnp.mean((model.apply(variables, z_q, method='decode') - images) ** 2)
        logits = model.apply(variables, z_q, method='head')
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    z = model.apply(variables, images, method='encode')
    return health.gradient_flow(quantize, task_loss, z)


def treat(patient: Patient, dataset: data.Dataset, seed: int = 0) -> Course:
    """Trains a patient on `dataset` and keeps every measurement."""
    arrays = {name: whole(dataset, name) for name in ('train', 'validation', 'test')}
    images, labels = arrays['train']
    rng = np.random.default_rng(seed)
    first = rng.permutation(len(labels))[:INIT_IMAGES]
    per_epoch = len(labels) // patient.batch_size
    epochs = -(-patient.steps // per_epoch)
    order = np.concatenate(
        [rng.permutation(len(labels))[: per_epoch * patient.batch_size] for _ in range(epochs)]
    )
    order = order[: patient.steps * patient.batch_size].reshape(patient.steps, -1)
    keys = jax.random.split(jax.random.key(seed + 1), patient.steps)
    carry, z = _start(patient, jax.random.key(seed), images[first])
    if patient.quantizer is not None:
        ops.check_distinct(z)
    history = []
    for begin in range(0, patient.steps, CHUNK):
        records = []
        for step in range(begin, begin + CHUNK):
            batch = (images[order[step]], labels[order[step]], keys[step])
            carry, record = _step(patient, carry, batch)
            records.append(record)
        # Read only now: until here the host runs ahead of the device.
        history += [{'step': begin + i + 1} | plain(r) for i, r in enumerate(records)]
        found, variables = evaluate(patient, carry.variables, *arrays['validation'])
        flow = _flow(patient, carry.variables, images[order[begin]], labels[order[begin]])
        carry = carry._replace(variables=variables)
        history.append({'step': begin + CHUNK} | plain(flow) | plain(found))
    final, _ = evaluate(patient, carry.variables, *arrays['test'])
    return Course(history, plain(final), carry.variables)


def plain(tree: dict[str, Any]) -> dict[str, float]:
    """Scalars as Python numbers."""
    return {name: float(x) for name, x in tree.items()}


def whole(dataset: data.Dataset, name: str) -> tuple[jax.Array, jax.Array]:
    """Images and labels of a split, the first ones of a large one."""
    split = dataset.splits[name]
    most = MOST_IMAGES if name == 'train' else TEST_IMAGES
    images, labels, _ = split.read(np.arange(min(len(split.indices), most)))
    batch = dataset.batch(images, labels)
    return jnp.asarray(batch['image']), jnp.asarray(batch['label'])
