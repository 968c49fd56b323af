"""State dicts as they lie on disk: safetensors and npz by path, and what a script wraps around."""

from __future__ import annotations

import os
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

_PICKLED = (
    'a pickle, which runs code when it is read: this library never does. In Python with torch, '
    "`safetensors.torch.save_file(torch.load(path, weights_only=True), 'weights.safetensors')`, "
    'and give that file'
)
# Deeper than any script nests its dictionaries.
_DEPTH = 8


def load(source: Mapping[str, Any] | str | os.PathLike[str]) -> dict[str, Any]:
    """The entries of a state dict by name: its own, or those of a file.

    Mappings in it, such as a training script's {'state_dict': ..., 'epoch': 3}, are laid flat, with
    a dot between the names. No value is looked at.

    Args:
      source: a mapping, or the path of a safetensors or npz file.

    Raises:
      ValueError: for a file of another kind (pickles among them), or keys that are no names.
      ImportError: for a safetensors file without safetensors (extra `codec`).
    """
    if isinstance(source, str | os.PathLike):
        return _file(pathlib.Path(source))
    if not isinstance(source, Mapping):
        raise ValueError(f'state_dict must be a mapping of arrays, got {type(source).__name__}')
    for key in source:
        if not isinstance(key, str):
            raise ValueError(f'state_dict must have names as keys, got {key!r}')
    return dict(_flat(source, '', _DEPTH))


def _flat(entries, stem, depth):
    for key, value in entries.items():
        if isinstance(value, Mapping) and depth:
            # An optimizer's state has numbers as keys: no names, nothing to read.
            inside = {k: v for k, v in value.items() if isinstance(k, str)}
            yield from _flat(inside, f'{stem}{key}.', depth - 1)
        else:
            yield stem + key, value


def _file(path):
    with open(path, 'rb') as file:
        start = file.read(9)
    if start[:2] == b'PK':
        return _npz(path)
    if start[:1] == b'\x80' or path.suffix in ('.pt', '.pth', '.ckpt', '.pkl', '.bin', '.th'):
        raise ValueError(f'{path} is {_PICKLED}')
    if len(start) == 9 and start[8:] == b'{':
        return _safetensors(path)
    raise ValueError(f'{path} is neither a safetensors nor an npz file')


def _npz(path):
    try:
        with zipfile.ZipFile(path) as archive:
            names, damaged = archive.namelist(), archive.testzip()
    except zipfile.BadZipFile as error:
        raise ValueError(f'{path} is cut short or damaged: {error}') from None
    if damaged:
        raise ValueError(f'{path} is damaged: read {damaged!r} again from where it came')
    if not all(name.endswith('.npy') for name in names):
        raise ValueError(f'{path} is {_PICKLED}')
    with np.load(path, allow_pickle=False) as file:
        try:
            return {name: file[name] for name in file.files}
        except ValueError as error:  # of objects, which are pickled in it
            raise ValueError(f'{path} holds what is no plain array: {error}') from None


def _safetensors(path):
    try:
        import safetensors.flax
    except ImportError:
        raise ImportError(
            "reading a safetensors file takes safetensors: pip install 'vqjax[codec]'"
        ) from None
    try:
        # Of JAX's arrays, since NumPy knows no bfloat16.
        with safetensors.safe_open(path, framework='flax') as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # whatever a damaged file makes it raise
        raise ValueError(f'{path} is cut short or damaged: {error}') from None
