"""Images and labels in one .npz file, as numpy.savez writes it."""

import pathlib
import zipfile

import numpy as np

from vqjax.trainer.wording import nearest_path

# Names of a split's two arrays: those of MedMNIST, then those of Keras' files.
_KEYS = {
    'train': (('train_images', 'train_labels'), ('images', 'labels'), ('x_train', 'y_train')),
    'validation': (
        ('validation_images', 'validation_labels'),
        ('val_images', 'val_labels'),
        ('x_val', 'y_val'),
    ),
    'test': (('test_images', 'test_labels'), ('x_test', 'y_test')),
}


def read_arrays(path: pathlib.Path, what: str, remedy: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name; nothing in it is executed.

    Args:
      what, remedy: what the file is to the user, and what to do where it cannot be read.

    Raises:
      ValueError: it is damaged, or holds one array without a name.
    """
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise ValueError('it holds one array without a name')
        with file:
            return {key: file[key] for key in file.files}
    # A damaged file may fail in the archive or in the header of an array.
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        reason = ' '.join(str(error).split())[:200]
        raise ValueError(f'{what} cannot be read ({reason}): {remedy}') from error


def read(data_dir: str | None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images and labels of the splits that a file has.

    Args:
      data_dir: the file, or a folder that holds one .npz file.

    Raises:
      ValueError: no such file, or it is damaged, or holds no training images, or one array of a
        pair alone, or one that no split has.
    """
    if not data_dir:
        raise ValueError("dataset='npz' needs data_dir: the .npz file, written by numpy.savez")
    path = _file(data_dir)
    where = f"dataset='npz' in data_dir={str(data_dir)!r}"
    remedy = 'write it again with numpy.savez(file, train_images=..., train_labels=...)'
    arrays = read_arrays(path, where, remedy)
    found, used = {}, set()
    for split, pairs in _KEYS.items():
        for pair in pairs:
            have = [key for key in pair if key in arrays]
            if len(have) == 1:
                lacks = next(key for key in pair if key not in arrays)
                raise ValueError(f'{where} has {have[0]} and no {lacks}: give both')
            if have:
                if split in found:
                    raise ValueError(
                        f'{where} has two arrays for split {split!r}, {pair[0]} is one: give one'
                    )
                found[split] = (arrays[pair[0]], arrays[pair[1]])
                used |= set(pair)
    others = sorted(arrays.keys() - used)
    if 'train' not in found or others:
        said = f'an array {others[0]} that no split has' if 'train' in found else 'no train_images'
        raise ValueError(
            f'{where} has {said}: it holds {sorted(arrays)[:8]}, need train_images and '
            'train_labels, and validation_ and test_ ones where there are such splits'
        )
    return found


def _file(data_dir: str) -> pathlib.Path:
    path = pathlib.Path(data_dir).expanduser()
    where = f"dataset='npz' in data_dir={str(data_dir)!r}"
    if path.is_dir():
        files = sorted(path.glob('*.npz'))
        if len(files) != 1:
            said = ', '.join(file.name for file in files[:4]) or 'none'
            raise ValueError(f'{where}: need one .npz file there, found {said}: name the file')
        return files[0]
    if not path.exists():
        raise ValueError(f'{where}: there is no such file{nearest_path(data_dir)}')
    return path
