"""What a training run left behind, read from its files: encoder, quantizer, parameters."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from vqjax.codec.images import ImageEncoder
from vqjax.codec.streams import SensorEncoder
from vqjax.codec.structure import structure
from vqjax.quantizers import Quantizer, guard_codebooks, make
from vqjax.results.finished import FinishedRun


def read_run(
    workdir: str | os.PathLike, method: str, seed: int
) -> tuple[ImageEncoder, Quantizer, Any, Any, dict[str, Any]]:
    """(encoder, quantizer, params, state, info) of a finished run; see `Codec.from_workdir`."""
    workdir = pathlib.Path(workdir)
    if not (workdir / 'config.json').is_file():
        raise ValueError(f'{workdir} is no workdir of train.py: it has no config.json')
    config = json.loads((workdir / 'config.json').read_text())
    quantized = sorted(name for name, spec in config['quantizers'].items() if spec is not None)
    if method not in quantized:
        raise ValueError(f'method must be one with a quantizer, {quantized}, got {method!r}')
    record = workdir / 'finished' / method / f'seed_{seed}.json'
    if not record.is_file():
        done = sorted(
            str(p.relative_to(workdir / 'finished')) for p in workdir.glob('finished/*/*')
        )
        raise ValueError(
            f'{method} with seed {seed} is not finished in {workdir}; finished: {done}'
        )
    raw = read_checkpoint(workdir / 'checkpoints' / method / f'seed_{seed}')
    config |= config['overrides'].get(method, {})
    if config['bottleneck'] == 'two_level':
        raise ValueError(
            f'{method} has bottleneck two_level: its bottom codes depend on the top ones, which a '
            'codec of one quantizer cannot follow; use a method with bottleneck vector or grid'
        )
    finished = FinishedRun.load(record, seed)
    params = raw['ema_params'] if config['ema_decay'] else raw['params']
    encoder = encoder_of(config, finished, params, raw['stats'])
    quantizer = make(config['quantizers'][method])
    if config['guard']:
        quantizer = guard_codebooks(quantizer, least=float(finished.images.num_classes))
    like = structure(quantizer, config['features'])
    parts = (
        params.get('quantize', {}).get('quantizer', ()),
        raw['stats'].get('codebook_stats', {}).get('quantize', {}).get('state', ()),
    )
    params, state = (filled(*pair) for pair in zip(like, parts, strict=True))
    result = finished.result
    info = {'dataset': config['dataset'], 'method': method, 'seed': seed}
    info[f'{result.split or "test"}_accuracy'] = result.accuracy
    return encoder, quantizer, params, state, info


def encoder_of(
    config: Mapping[str, Any], finished: FinishedRun, params: Any, stats: Any
) -> ImageEncoder:
    """The encoder of a run: a SensorEncoder where it is of recordings.

    Args:
      config: of the method, its overrides applied.
      finished: the run's record.
      params, stats: of the whole model.
    """
    images = finished.images
    kind, more = ImageEncoder, {}
    if config['encoder'] == 'sensor':
        kind, more = SensorEncoder, dict(finished.recordings)
        more['labels'] = tuple(more['labels'])
    return kind(
        config['encoder'],
        config['features'],
        config['bottleneck'],
        config['dtype'],
        images.shape,
        images.mean,
        images.std,
        {'params': params['encode'], 'batch_stats': stats.get('batch_stats', {}).get('encode', {})},
        config['width'],
        config['standardize'],
        **more,
    )


def read_checkpoint(directory: pathlib.Path) -> dict[str, Any]:
    """The state in the newest checkpoint as nested dicts, whatever it was made of."""
    import orbax.checkpoint as ocp

    path = _newest(directory) / 'state'
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            return checkpointer.restore(path)
        except Exception as error:  # whatever a damaged file makes orbax raise
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f'checkpoint {path} cannot be read ({reason[:200]}): run train.py there again'
            ) from error


def read_extra(directory: pathlib.Path) -> dict[str, Any]:
    """Plain data beside the newest checkpoint: `config` of its run, `digest` of its state."""
    import orbax.checkpoint as ocp

    return ocp.JsonCheckpointHandler().restore(_newest(directory) / 'extra')


def _newest(directory: pathlib.Path) -> pathlib.Path:
    steps = [int(p.name) for p in directory.glob('*') if p.name.isdigit()]
    if not steps:
        raise ValueError(f'{directory} has no checkpoint')
    return (directory / str(max(steps))).absolute()


def filled(like: Any, raw: Any) -> Any:
    """The tree `like` with the arrays that stand at its paths in nested dicts and lists."""

    def pick(path, _):
        value = raw
        for part in path:
            name = getattr(part, 'name', getattr(part, 'idx', getattr(part, 'key', None)))
            value = value[name] if isinstance(value, list) else value[str(name)]
        return value

    return jax.tree_util.tree_map_with_path(pick, like)
