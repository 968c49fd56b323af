"""A folder of image files, a subfolder a class, as records."""

import collections
import hashlib
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from vqjax.trainer.data import pixels
from vqjax.trainer.wording import nearest_path

SPLITS = {'train': 'train', 'val': 'validation', 'validation': 'validation', 'test': 'test'}
_SHOWN = 3  # files that a message names


class ImageFiles:
    """Image files with random access: those at `paths`, of classes `labels` int32 [n].

    Args:
      sizes: bytes of every file.
      resize: crop and resize images to `image_shape`, which all of them have otherwise.
    """

    def __init__(
        self,
        root: pathlib.Path,
        paths: Sequence[pathlib.Path],
        labels: np.ndarray,
        image_shape: tuple[int, int, int],
        sizes: Sequence[int],
        resize: bool,
    ):
        self._root, self._paths, self._labels = root, paths, labels
        self.image_shape, self._sizes, self._resize = image_shape, sizes, resize

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `Records.read`; images are uint8."""
        images = np.zeros((len(indices), *self.image_shape), np.uint8)
        good = np.zeros(len(indices), bool)
        for row, index in enumerate(indices):
            try:
                images[row] = pixels.decode(self._paths[index], self.image_shape, self._resize)
                good[row] = True
            # A damaged file may fail anywhere inside Pillow; the caller counts it.
            except Exception:
                images[row] = 0
        return images, np.where(good, self._labels[indices], 0).astype(np.int32), good

    def names(self, indices: Sequence[int]) -> list[str]:
        """Files as messages call them: below the folder of the set."""
        return [self._paths[i].relative_to(self._root).as_posix() for i in indices]

    def fingerprint(self) -> str:
        """Of names, classes and sizes of the files: what is read of a set too large for memory."""
        total = hashlib.sha256()
        names = self.names(range(len(self)))
        for name, label, size in zip(names, self._labels, self._sizes, strict=True):
            total.update(f'{name}\0{label}\0{size}\n'.encode())
        return total.hexdigest()


def open_splits(data_dir: str | None, image_size: int | None) -> tuple[int, dict[str, ImageFiles]]:
    """Number of classes and the splits of a folder of images.

    `data_dir` holds a folder for each class, or folders train, validation (or val) and test that
    do. Classes are numbered by their names, numbers by size; images are in the order of the names
    of their files, whatever their class, and numbers in them count as numbers.

    Args:
      image_size: side in pixels to crop and resize all images to; None leaves them as they are.

    Raises:
      ValueError: no such folder; no image or no class in it; an empty class; a class that training
        lacks; images of several sizes without `image_size`, or of several modes.
    """
    if not data_dir:
        raise ValueError(
            "dataset='folder' needs data_dir: the folder that holds one for each class"
        )
    root = pathlib.Path(data_dir).expanduser()
    where = f"dataset='folder' in data_dir={str(data_dir)!r}"
    if not root.is_dir():
        what = 'is a file' if root.exists() else 'there is no such folder'
        raise ValueError(f'{where}: {what}{nearest_path(data_dir)}')
    found = {split: _classes(where, top) for split, top in _tops(where, root).items()}
    classes = _in_order(found['train'])
    for split, own in found.items():
        for name in own:
            if name not in classes:
                raise ValueError(
                    f'{where}: class {name!r} is in split {split!r} and not in train: give images '
                    'of it to both'
                )
    listed = {
        split: sorted(
            (_natural(path.name), _natural(name), path, classes.index(name))
            for name, paths in own.items()
            for path in paths
        )
        for split, own in found.items()
    }
    shape = _shape(where, root, [row[2] for rows in listed.values() for row in rows], image_size)
    splits = {}
    for split, rows in listed.items():
        paths = [row[2] for row in rows]
        labels = np.asarray([row[3] for row in rows], np.int32)
        sizes = [path.stat().st_size for path in paths]
        splits[split] = ImageFiles(
            root,
            paths=paths,
            labels=labels,
            image_shape=shape,
            sizes=sizes,
            resize=image_size is not None,
        )
    return len(classes), splits


def _tops(where: str, root: pathlib.Path) -> dict[str, pathlib.Path]:
    """The folders that hold those of the classes, by split."""
    inside = _folders(root)
    named = {name: folder for name, folder in inside.items() if name in SPLITS}
    # A class may be called 'train' where there are others: it has images, a split has folders.
    if set(named) < set(inside) or len(named) < 2:
        named = {name: top for name, top in named.items() if _folders(top) or not _images(top)}
    if not named:
        return {'train': root}
    others = sorted(set(inside) - set(named))
    if others or _images(root):
        said = f'folder {others[0]!r}' if others else f'image {_images(root)[0].name!r}'
        raise ValueError(
            f'{where}: {said} lies beside the splits {", ".join(named)}: put everything into '
            'folders train, validation and test that hold one for each class, or give no splits'
        )
    if 'val' in named and 'validation' in named:
        raise ValueError(f'{where} has folders val and validation: give one of them')
    if 'train' not in named:
        raise ValueError(f'{where} has splits {", ".join(named)}: need a folder named train')
    return {SPLITS[name]: folder for name, folder in named.items()}


def _classes(where: str, top: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """The image files of every class in a folder."""
    classes = {name: _images(folder) for name, folder in _folders(top).items()}
    loose = _images(top)
    if not classes:
        if loose:
            raise ValueError(
                f'{where}: {len(loose)} images lie in {top} itself: put them into folders, one for '
                'each class; one for all is enough for a run without classification'
            )
        raise ValueError(f'{where}: {top} is empty: put a folder of images for each class into it')
    if loose:
        raise ValueError(
            f'{where}: image {loose[0].name!r} lies beside the folders of the classes: put it into '
            'one of them'
        )
    empty = [name for name, paths in classes.items() if not paths]
    if empty:
        raise ValueError(
            f'{where}: folder {str(top / empty[0])!r} holds no image: remove it, or put files of a '
            'type that Pillow reads (.png, .jpg, ...) into it'
        )
    return classes


def _folders(top: pathlib.Path) -> dict[str, pathlib.Path]:
    return {p.name: p for p in sorted(top.iterdir()) if p.is_dir() and p.name[0] not in '._'}


def _images(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files of a folder that Pillow reads by their names; hidden ones are none."""
    known = Image.registered_extensions()
    return sorted(
        p
        for p in folder.iterdir()
        if p.suffix.lower() in known and p.name[0] != '.' and p.is_file()
    )


def _shape(
    where: str, root: pathlib.Path, paths: Sequence[pathlib.Path], image_size: int | None
) -> tuple[int, int, int]:
    """The one shape [H, W, C] of all images that can be opened; reads their headers alone."""
    modes: dict[str, list[pathlib.Path]] = collections.defaultdict(list)
    sizes: dict[tuple[int, int], list[pathlib.Path]] = collections.defaultdict(list)
    for path in paths:
        try:
            with Image.open(path) as image:
                modes[pixels.mode_of(image)].append(path)
                sizes[image.size].append(path)
        except Exception:  # broken: left out and told of where it is decoded
            continue
    if not modes:
        raise ValueError(f'{where}: none of {len(paths)} images can be opened')
    if len(modes) > 1 or next(iter(modes)) not in pixels.CHANNELS:
        said = _several(root, {f'mode {mode}': found for mode, found in modes.items()})
        raise ValueError(f'{where} has {said}: {pixels.how_to_convert()}')
    if len(sizes) > 1 and image_size is None:
        said = _several(root, {f'{w} x {h} pixels': found for (w, h), found in sizes.items()})
        raise ValueError(
            f'{where} has {said}: set image_size to the side in pixels that all are to be cropped '
            'and resized to'
        )
    width, height = next(iter(sizes)) if image_size is None else (image_size, image_size)
    return height, width, pixels.CHANNELS[next(iter(modes))]


def _several(root: pathlib.Path, found: Mapping[str, Sequence[pathlib.Path]]) -> str:
    """'90 images of mode RGB and 2 of mode L (cats/1.png)': the most frequent kinds."""
    kinds = sorted(found.items(), key=lambda kind: -len(kind[1]))
    said = [f'{len(paths)} of {kind}' for kind, paths in kinds[:_SHOWN]]
    said[0] = said[0].replace(' of ', ' images of ' if len(kinds[0][1]) > 1 else ' image of ', 1)
    last = kinds[min(len(kinds), _SHOWN) - 1][1][0].relative_to(root).as_posix()
    more = f' and {len(kinds) - _SHOWN} more kinds' if len(kinds) > _SHOWN else ''
    return f'{" and ".join(said) if len(said) < 3 else ", ".join(said)} ({last}){more}'


def _in_order(names: Mapping[str, object]) -> list[str]:
    """Names of classes, numbers by their size."""
    return sorted(names, key=int if all(name.isdecimal() for name in names) else str)


def _natural(name: str) -> list[tuple[int, str]]:
    """A key by which '9.png' comes before '10.png'."""
    return [(int(x), '') if x.isdecimal() else (-1, x) for x in re.split(r'(\d+)', name) if x]
