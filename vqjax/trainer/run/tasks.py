"""What a method of a configuration trains, on a data set: its quantizer, network and optimizer."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from vqjax import encoders, quantizers
from vqjax.trainer.config.settings import Method, Settings
from vqjax.trainer.data import records
from vqjax.trainer.run.plan import plan
from vqjax.trainer.step import network, two_level
from vqjax.trainer.step.optimizer import make_optimizer
from vqjax.trainer.step.parallel import Pmap
from vqjax.trainer.step.task import Task


def fit_quantizers(settings: Settings, dataset: records.Dataset) -> Settings:
    """The settings with the quantizers that this dataset makes of the methods' specs.

    Two levels become one quantizer over both grids; codebooks are guarded where that is asked for.
    """
    methods = {name: _fitted(method, dataset.info) for name, method in settings.methods.items()}
    return dataclasses.replace(settings, methods=methods)


def _fitted(method: Method, info: records.DataInfo) -> Method:
    quantizer = method.quantizer
    if quantizer is None:
        return method
    if method.bottleneck == 'two_level':
        quantizer = two_level.over(quantizer, method.encoder, info.image_shape)
    if method.guard:
        quantizer = quantizers.guard_codebooks(quantizer, float(info.num_classes))
    return dataclasses.replace(method, quantizer=quantizer)


def make_task(
    settings: Settings,
    method: str,
    dataset: records.Dataset,
    form: Any = Pmap(),  # noqa: B008
) -> Task:
    """What a method trains and how, for replicas of a form of parallelism."""
    own, info = settings.methods[method], dataset.info
    schedule = plan(own, dataset)
    return Task(
        model=network.Classifier(
            num_classes=info.num_classes,
            quantizer=own.quantizer,
            encoder=own.encoder,
            features=own.features,
            bottleneck=own.bottleneck,
            axis_name=form.axis,
            dtype=jnp.dtype(own.dtype),
            width=own.width,
            standardize=own.standardize,
            decoded_shape=info.image_shape if own.reconstruction_weight else None,
            bridge=own.bridge,
            grids=_grids(own, info),
            statistics_decay=own.statistics_decay,
        ),
        optimizer=make_optimizer(
            learning_rate=own.learning_rate,
            num_steps=schedule.num_steps,
            warmup_steps=schedule.warmup,
            weight_decay=own.weight_decay,
            clip_norm=own.clip_norm,
            schedule=own.learning_rate_schedule,
            frozen_steps=schedule.frozen,
            quantizer_rate=own.quantizer_rate,
        ),
        label_smoothing=own.label_smoothing,
        accumulate=own.accumulate,
        ema_decay=own.ema_decay,
        steps_per_epoch=schedule.per_epoch,
        quantizer_weight=own.quantizer_weight,
        classification_weight=own.classification_weight,
        reconstruction_weight=own.reconstruction_weight,
        frozen=schedule.frozen < 0,
        record=own.record,
    )


def _grids(own: Method, info: records.DataInfo) -> tuple[encoders.Size, ...]:
    if own.bottleneck != 'two_level':
        return ()
    return encoders.two_level_grids(own.encoder, info.image_shape)
