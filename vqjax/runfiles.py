"""The files of a training run: where they are, what is called how in them, one reader for all.

`train.py` writes them through `vqjax.trainer`; codecs, the trainer and the studies read them here.
"""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from vqjax import nn
from vqjax.atomic import read_json
from vqjax.results.finished import FinishedRun

# Submodules of the trainer's network, under whose names their variables stand in each collection.
ENCODER, QUANTIZER, HEAD = 'encode', 'quantize', ('normalize', 'hidden', 'logits')
BATCH_STATS = 'batch_stats'  # of the collections, beside Flax's `params` and `nn.COLLECTION`
# Fields of the trainer's state, as checkpoints name them.
STEP, STATE_PARAMS, STATE_STATS, STATE_EMA = 'step', 'params', 'stats', 'ema_params'

CONFIG = 'config.json'
_RESTORE = 'restore it from a copy, or train with another --workdir'
_AGAIN = 'and the same train.py command takes that run to its end again'

# Fields of a configuration that readers need, at the trainer's defaults: what one of before a field
# existed meant.
FIELDS: Mapping[str, Any] = {
    'dataset': 'digits',
    'encoder': 'conv',
    'width': 32,
    'bottleneck': 'vector',
    'features': 128,
    'standardize': True,
    'dtype': 'float32',
    'guard': False,
}


def record_file(workdir: str | os.PathLike[str], method: str, seed: int) -> pathlib.Path:
    """What came out of a finished run."""
    return pathlib.Path(workdir) / 'finished' / method / f'seed_{seed}.json'


def checkpoints_folder(workdir: str | os.PathLike[str], method: str, seed: int) -> pathlib.Path:
    """The checkpoints of a run, each in a folder named after its step."""
    return pathlib.Path(workdir) / 'checkpoints' / method / f'seed_{seed}'


def steps_file(workdir: str | os.PathLike[str], method: str, seed: int) -> pathlib.Path:
    """What every step of a run told, where its configuration asks for that."""
    return pathlib.Path(workdir) / 'records' / method / f'seed_{seed}.jsonl'


def read_config(workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """The configuration of a workdir, with those of FIELDS that it leaves out.

    Raises:
      ValueError: there is none, or it is damaged or of something else.
    """
    file = pathlib.Path(workdir) / CONFIG
    if not file.exists():
        raise ValueError(f'{workdir} is no workdir of train.py: it has no {CONFIG}')
    config = read_json(file, _RESTORE)
    wrong = _config_fault(config)
    if wrong:
        raise ValueError(f'{file} is no configuration of train.py ({wrong}): {_RESTORE}')
    return _complete(config)


def _complete(config: Mapping[str, Any]) -> dict[str, Any]:
    return {**FIELDS, 'overrides': {}, **config}


def _config_fault(config: Mapping[str, Any]) -> str:
    """What is wrong with a configuration for those who read a model, '' where nothing is."""
    if 'quantizers' not in config:
        return 'it has no quantizers'
    for name, kinds in (('quantizers', dict | None), ('overrides', dict)):
        given = config.get(name, {})
        if not isinstance(given, dict):
            return f'{name} is {_short(given)}, and must be a mapping'
        for method, value in given.items():
            if not isinstance(value, kinds):
                return f'{name}.{method} is {_short(value)}, and must be a mapping'
    overrides = {f'overrides.{method}.': x for method, x in config.get('overrides', {}).items()}
    for where, fields in {'': config, **overrides}.items():
        for name, default in FIELDS.items():
            value = fields.get(name, default)
            if type(value) is not type(default):
                return f'{where}{name} is {_short(value)}, and must be like {default!r}'
    return ''


def of_method(config: Mapping[str, Any], method: str) -> dict[str, Any]:
    """A configuration that was read here, with the overrides of one method applied."""
    return {**config, **config['overrides'].get(method, {})}


def read_record(workdir: str | os.PathLike[str], method: str, seed: int) -> FinishedRun:
    """The record of a finished run.

    Raises:
      ValueError: the run is not finished, or its record is damaged or of something else.
    """
    file = record_file(workdir, method, seed)
    if not file.exists():
        done = sorted(f'{p.parent.name}/{p.name}' for p in file.parents[1].glob('*/*.json'))
        raise ValueError(
            f'{method} with seed {seed} is not finished in {workdir}; finished: {done}'
        )
    return FinishedRun.load(file, seed)


def _short(value: Any) -> str:
    text = ' '.join(repr(value).split())
    return text if len(text) < 40 else f'{text[:36]} ...'


def newest_checkpoint(folder: pathlib.Path) -> pathlib.Path:
    """The last one in the folder of a run's checkpoints.

    Raises:
      ValueError: there is none.
    """
    steps = [int(p.name) for p in folder.glob('*') if p.name.isdecimal() and p.is_dir()]
    if not steps:
        raise ValueError(
            f'{folder} has no checkpoint, as after a run with checkpoint_every 0: train with '
            'checkpoint_every above 0 and another --workdir'
        )
    return (folder / str(max(steps))).absolute()


def read_checkpoint(folder: pathlib.Path) -> dict[str, Any]:
    """The state in a run's newest checkpoint: nested dicts and lists of NumPy arrays.

    Raises:
      ValueError: there is none, it cannot be read or it is of something else.
    """
    import orbax.checkpoint as ocp

    path = newest_checkpoint(folder)
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            raw = checkpointer.restore(path / 'state')
        except Exception as error:  # whatever a damaged file makes orbax raise
            raise _unreadable(path, _reason(error)) from error
    wrong = _state_fault(raw)
    if wrong:
        raise _unreadable(path, wrong)
    return raw


def _state_fault(raw: Any) -> str:
    """Why this is no state of the trainer, '' where it is one."""
    if not isinstance(raw, dict):
        return 'it holds no state of train.py'
    for name in (STATE_PARAMS, STATE_STATS, STATE_EMA):
        if not isinstance(raw.get(name) or {}, dict) or name == STATE_PARAMS and not raw.get(name):
            return f'it holds no {name} of a model'
    step = np.asarray(raw.get(STEP))
    if step.shape or not np.issubdtype(step.dtype, np.integer):
        return f'it holds no {STEP}'
    return ''


def read_extra(folder: pathlib.Path) -> dict[str, Any]:
    """Plain data beside a run's newest checkpoint: `config` of its run, `digest` of its state.

    Raises:
      ValueError: there is none, or it is damaged.
    """
    import orbax.checkpoint as ocp

    path = newest_checkpoint(folder)
    handler: Any = ocp.JsonCheckpointHandler()  # its type asks for a path of etils
    try:
        extra = handler.restore(path / 'extra')
    except Exception as error:  # as above
        raise _unreadable(path, _reason(error)) from error
    config = extra.get('config') if isinstance(extra, dict) else None
    if not isinstance(config, dict):
        raise _unreadable(path, 'it has no configuration')
    if wrong := _config_fault(config):
        raise _unreadable(path, wrong)
    return {**extra, 'config': _complete(config)}


def _reason(error: Exception) -> str:
    """The first line of an error, of which orbax and tensorstore have many."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _unreadable(path: pathlib.Path, reason: str) -> ValueError:
    remedy = 'train that run again'
    if run := run_of(path.parent):
        remedy = f'remove {record_file(*run)}, {_AGAIN}'
    return ValueError(f'checkpoint {path} cannot be read ({reason}): {remedy}')


def run_of(folder: pathlib.Path) -> tuple[pathlib.Path, str, int] | None:
    """(workdir, method, seed) of a folder of checkpoints, None where it is in no workdir."""
    folder = folder.absolute()
    seed = re.fullmatch('seed_([0-9]{1,9})', folder.name)
    if seed is None or len(folder.parents) < 3:
        return None
    found = folder.parents[2], folder.parent.name, int(seed[1])
    return found if checkpoints_folder(*found) == folder else None


def variables_of(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Collections of the model in a state that `read_checkpoint` gave, as evaluation reads them.

    Its params are the running average, where the run kept one.
    """
    params = raw.get(STATE_EMA) or raw[STATE_PARAMS]
    return {'params': params, **(raw.get(STATE_STATS) or {})}


def read_variables(folder: pathlib.Path) -> dict[str, Any]:
    """Collections of the model that a run ended with, from the folder of its checkpoints.

    Of a run that is not finished they are those of its newest checkpoint.

    Args:
      folder: see `checkpoints_folder`.

    Returns:
      {'params': ..., 'batch_stats': ..., 'codebook_stats': ...}, nested dicts and lists of NumPy
      arrays, without those that the model does not have; `filled` makes its trees of them.

    Raises:
      ValueError: the checkpoint cannot be read, or the run is finished and ended at another step.
    """
    raw = read_checkpoint(folder)
    run = run_of(folder)
    if run is not None and record_file(*run).exists():
        ended, step = read_record(*run).step, int(raw[STEP])
        if step != ended:
            raise ValueError(
                f'checkpoint {newest_checkpoint(folder)} is of step {step}, and the run ended at '
                f'step {ended}: remove {record_file(*run)}, {_AGAIN}'
            )
    return variables_of(raw)


def quantizer_variables(variables: Mapping[str, Any]) -> tuple[Any, Any]:
    """(params, state) of the quantizer among the variables of a model; () for none."""
    params = variables['params'].get(QUANTIZER, {}).get(nn.PARAMS, ())
    state = variables.get(nn.COLLECTION, {}).get(QUANTIZER, {}).get(nn.STATE, ())
    return params, state


def filled(like: Any, raw: Any, folder: str | os.PathLike[str]) -> Any:
    """The tree `like` with the arrays that stand at its paths in nested dicts and lists.

    Args:
      like: arrays, or their shapes and dtypes.
      folder: of the checkpoints that raw is of, for the message.

    Raises:
      ValueError: an array is missing, or has another shape or dtype.
    """

    def pick(path: tuple[Any, ...], leaf: Any) -> Any:
        value = raw
        for part in path:
            value = _child(value, part)
        nothing = value is None or isinstance(value, dict | list | tuple)
        found = None if nothing else np.asarray(value)
        if found is None or (found.shape, found.dtype) != (leaf.shape, leaf.dtype):
            told = 'missing' if found is None else f'{found.dtype}{list(found.shape)}'
            raise ValueError(
                f'checkpoint in {folder}: {jax.tree_util.keystr(path, simple=True, separator="/")} '
                f'is {told}, and {CONFIG} makes it {leaf.dtype}{list(leaf.shape)}: restore the '
                'configuration that it was trained with'
            )
        return value

    return jax.tree_util.tree_map_with_path(pick, like)


def _child(value: Any, part: Any) -> Any:
    """What stands at one part of a path, None for nothing."""
    name = getattr(part, 'name', getattr(part, 'idx', getattr(part, 'key', None)))
    if isinstance(value, dict):
        return value.get(str(name))
    if isinstance(value, list | tuple) and isinstance(name, int) and name < len(value):
        return value[name]
    return None
