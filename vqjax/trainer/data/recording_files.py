"""Where recordings come from: the files in the package aeon, and folders of one's own."""

import importlib.util
import math
import pathlib
from typing import Any

import numpy as np

from vqjax.trainer.data.npz import read_arrays
from vqjax.trainer.data.recordings import Recording
from vqjax.trainer.wording import nearest_path

# Folder in aeon's data, and steps a second: ten for the watch, one every 6.4 ms for the speech.
_SHIPPED = {'basic_motions': ('BasicMotions', 10.0), 'japanese_vowels': ('JapaneseVowels', 156.25)}
_SPLITS = ('train', 'validation', 'test')
NAMES = (*_SHIPPED, 'recordings')


def read(name: str, data_dir: str | None) -> dict[str, list[Recording]]:
    """The recordings of one of NAMES by split.

    Raises:
      ValueError: there are no files of it, or they are not what they must be.
    """
    if name in _SHIPPED:
        return {split: _read_shipped(name, split) for split in ('train', 'test')}
    if not data_dir:
        raise ValueError("dataset='recordings' needs data_dir: the folder with the .npz files")
    return read_folder(data_dir)


def _read_shipped(name: str, split: str) -> list[Recording]:
    spec = importlib.util.find_spec('aeon')
    if spec is None or spec.origin is None:
        raise ValueError(
            f'dataset={name!r} is among the files of the package aeon: install the extra, '
            "pip install 'vqjax[sequences]'"
        )
    from aeon.datasets import load_from_ts_file  # takes seconds to import

    folder, rate = _SHIPPED[name]
    file = f'{folder}_{split.upper()}.ts'
    path = pathlib.Path(spec.origin).parent / 'datasets' / 'data' / folder / file
    if not path.is_file():
        raise ValueError(f'dataset={name!r}: the installed aeon has no file {path}')
    signals, labels = load_from_ts_file(str(path))
    return [
        Recording(np.asarray(x, np.float32).T, str(label), rate=rate, name=f'{split} {i}')
        for i, (x, label) in enumerate(zip(signals, labels, strict=True))
    ]


def read_folder(data_dir: str) -> dict[str, list[Recording]]:
    """Recordings of a folder, one .npz file each, in the order of their names.

    The files lie in `data_dir` itself, or in folders train, validation and test of it. A file holds
    `signals`, real numbers [T, C]; `label`, text or an integer; and, in all files or in none,
    `subject`, text or an integer, and `rate`, steps a second.

    Raises:
      ValueError: no such folder, no file in it, or a file that is damaged or lacks something.
    """
    folder = pathlib.Path(data_dir)
    where = f"dataset='recordings' in data_dir={str(data_dir)!r}"
    if not folder.is_dir():
        raise ValueError(f'{where}: there is no such folder{nearest_path(data_dir)}')
    own = [split for split in _SPLITS if (folder / split).is_dir()]
    loose = sorted(folder.glob('*.npz'))
    if own and loose:
        raise ValueError(
            f'{where}: {loose[0].name} lies beside the folder {own[0]}: put every file into one of '
            f'the folders {", ".join(_SPLITS)}, or none'
        )
    files = {split: sorted((folder / split).glob('*.npz')) for split in own} or {'train': loose}
    for split, paths in files.items():
        if not paths:
            inside = f' in its folder {split}' if own else ''
            raise ValueError(f'{where}: there is no .npz file{inside}')
    return {
        split: [_read_file(path, str(path.relative_to(folder))) for path in paths]
        for split, paths in files.items()
    }


def _read_file(path: pathlib.Path, name: str) -> Recording:
    arrays = read_arrays(path, f'recording {name!r}', 'write it again with numpy.savez')
    for key in ('signals', 'label'):
        if key not in arrays:
            raise ValueError(f'recording {name!r} has no {key}: it holds {sorted(arrays)}')
    signals = arrays['signals']
    if signals.dtype.kind in 'iuf':
        signals = signals.astype(np.float32)
    rate = _one(arrays.get('rate', 0.0), name=name, key='rate', kinds='iuf')
    if 'rate' in arrays and not (math.isfinite(rate) and rate > 0):
        raise ValueError(f'recording {name!r} has rate {rate}: give steps a second, above 0')
    label, subject = (
        _one(arrays.get(key, ''), name=name, key=key, kinds='iuU') for key in ('label', 'subject')
    )
    if label == '':
        raise ValueError(f'recording {name!r} has an empty label: name what is recorded')
    return Recording(signals, label=str(label), subject=str(subject), rate=float(rate), name=name)


def _one(value: Any, name: str, key: str, kinds: str) -> Any:
    """The Python value of an array of one entry."""
    value = np.asarray(value)
    if value.size != 1 or value.dtype.kind not in kinds:
        need = 'a number' if 'f' in kinds else 'text or an integer'
        raise ValueError(
            f'recording {name!r} has {key} {value.dtype} of shape {value.shape}: need {need}'
        )
    return value.reshape(()).item()
