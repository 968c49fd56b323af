"""The parts of a codec from the files of a training run: encoder, quantizer, parameters."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from vqjax import runfiles
from vqjax.codec.images import ImageEncoder
from vqjax.codec.streams import SensorEncoder
from vqjax.codec.structure import structure
from vqjax.quantizers import Quantizer, guard_codebooks, make
from vqjax.results.finished import FinishedRun


def read_run(
    workdir: str | os.PathLike[str], method: str, seed: int
) -> tuple[ImageEncoder, Quantizer, Any, Any, dict[str, Any]]:
    """(encoder, quantizer, params, state, info) of a finished run; see `Codec.from_workdir`."""
    config = runfiles.read_config(workdir)
    specs = config['quantizers']
    quantized = sorted(name for name, spec in specs.items() if spec is not None)
    if method not in quantized:
        raise ValueError(f'method must be one with a quantizer, {quantized}, got {method!r}')
    config = runfiles.of_method(config, method)
    if config['bottleneck'] == 'two_level':
        raise ValueError(
            f'{method} has bottleneck two_level: its bottom codes depend on the top ones, which a '
            'codec of one quantizer cannot follow; use a method with bottleneck vector or grid'
        )
    record = runfiles.read_record(workdir, method, seed)
    folder = runfiles.checkpoints_folder(workdir, method, seed)
    variables = runfiles.read_variables(folder)
    try:
        encoder = encoder_of(config, record, variables)
        quantizer = make(specs[method])
        if config['guard']:
            quantizer = guard_codebooks(quantizer, least=float(record.images.num_classes))
        like = dict(zip(('params', 'state'), structure(quantizer, config['features']), strict=True))
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(
            f'config.json in {workdir} does not fit the run {method} with seed {seed} ({error}): '
            'restore both from a copy, or train with another --workdir'
        ) from error
    raw = dict(zip(like, runfiles.quantizer_variables(variables), strict=True))
    params, state = runfiles.filled(like, raw, folder).values()
    info = {'dataset': config['dataset'], 'method': method, 'seed': seed}
    info[f'{record.result.split or "test"}_accuracy'] = record.result.accuracy
    return encoder, quantizer, params, state, info


def encoder_of(
    config: Mapping[str, Any], record: FinishedRun, variables: Mapping[str, Any]
) -> ImageEncoder:
    """The encoder of a run: a SensorEncoder where it is of recordings.

    Args:
      config: of the method, its overrides applied.
      record: of the run.
      variables: collections of the whole model.

    Raises:
      ValueError: they do not make an encoder.
    """
    images = record.images
    kind, more = ImageEncoder, {}
    if config['encoder'] == 'sensor':
        kind, more = SensorEncoder, dict(record.recordings or {})
        if more.keys() != {'hop', 'pad', 'rate', 'labels'} or not isinstance(more['labels'], list):
            raise ValueError('the record of the run does not tell hop, pad, rate and labels')
        more['labels'] = tuple(more['labels'])
    own = {
        name: tree.get(runfiles.ENCODER, {})
        for name, tree in variables.items()
        if name in ('params', runfiles.BATCH_STATS)
    }
    encoder = kind(
        config['encoder'],
        config['features'],
        config['bottleneck'],
        config['dtype'],
        images.shape,
        images.mean,
        images.std,
        {runfiles.BATCH_STATS: {}} | own,
        config['width'],
        config['standardize'],
        **more,
    )
    encoder.check_fields()
    return encoder
