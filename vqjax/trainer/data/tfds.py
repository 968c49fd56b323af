"""The images or recordings of a prepared TFDS set, read without TensorFlow."""

import io
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from vqjax.trainer.data import pixels
from vqjax.trainer.data.recording_files import NAMES
from vqjax.trainer.data.recordings import Recording
from vqjax.trainer.wording import nearest, nearest_path

_RAW = tfds.decode.DeserializeMethod.RAW_BYTES


class TfdsRecords:
    """One file split: `read(indices)` decodes those images.

    Decodes with Pillow and not through TFDS, whose result depends on whether OpenCV is installed.
    """

    def __init__(
        self,
        source: Any,
        image_key: str,
        label_key: str,
        image_shape: tuple[int, int, int],
        num_classes: int,
        resize: bool,
    ):
        self._source = source
        self._image_key, self._label_key = image_key, label_key
        self.image_shape, self._resize = image_shape, resize
        self._num_classes = num_classes

    def __len__(self) -> int:
        return len(self._source)

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Images uint8 [b, H, W, C], labels int32 [b], and bool [b]: False where not decodable."""
        images = np.zeros((len(indices), *self.image_shape), np.uint8)
        labels = np.zeros(len(indices), np.int32)
        good = np.zeros(len(indices), bool)
        for row, record in enumerate(self._records(indices)):
            try:
                # These two alone: for a small image TFDS's own parser takes half as long as Pillow
                # takes to decode it.
                feature = tf_example_pb2.Example.FromString(record).features.feature
                images[row] = self._decode(feature[self._image_key].bytes_list.value[0])
                labels[row] = feature[self._label_key].int64_list.value[0]
                # TFDS marks a missing label by -1.
                good[row] = 0 <= labels[row] < self._num_classes
            # A damaged record may fail anywhere inside Pillow or the parser; the caller counts it.
            except Exception:
                images[row], labels[row] = 0, 0
        return images, labels, good

    def _records(self, indices: np.ndarray) -> list[bytes]:
        places = [int(i) for i in indices]
        try:
            return self._source.__getitems__(places)
        except Exception:  # one unreadable record fails the whole read: find it by reading singly
            return [self._record(i) for i in places]

    def _record(self, index: int) -> bytes:
        try:
            return self._source[index]
        except Exception:
            return b''

    def names(self, indices: Sequence[int]) -> list[str]:
        """What messages call images: by their number."""
        return [f'number {i}' for i in indices]

    def _decode(self, encoded: bytes) -> np.ndarray:
        return pixels.decode(io.BytesIO(encoded), self.image_shape, self._resize)


def open_splits(
    name: str, data_dir: str | None, image_size: int | None
) -> tuple[int, dict[str, TfdsRecords]]:
    """Number of classes and the file splits of the prepared TFDS set `name`.

    Raises:
        ValueError: unknown; not prepared in array_record format (with the command that does
            it); not images of one size with one label each.
    """
    return _guarded(_open, name, data_dir, image_size)


def open_recordings(name: str, data_dir: str | None) -> dict[str, list[Recording]] | None:
    """The recordings of the prepared TFDS set `name` by split; None where it holds no sequences.

    A set of recordings has one feature of real numbers [T, C], of any length T, and one label; a
    feature `subject`, text or a number, is taken where there is one.

    Raises:
        ValueError: as `open_splits`, or sequences that are not such.
    """
    return _guarded(_recordings, name, data_dir)


def _guarded(function: Callable[..., Any], name: str, data_dir: str | None, *rest: Any) -> Any:
    """function(name, data_dir, ...), whose every error is one sentence."""
    if '/' in name and pathlib.Path(name).expanduser().exists():
        raise ValueError(
            f"dataset={name!r} is a path: set dataset to 'folder' or 'npz', and data_dir to {name}"
        )
    try:
        return function(name, data_dir, *rest)
    except tfds.core.registered.DatasetNotFoundError:
        known = ('digits', 'folder', 'npz', *NAMES)
        raise ValueError(
            f'dataset={name!r} is neither {", ".join(map(repr, known))} nor a TFDS set, '
            f'and is not in {_where(data_dir)}{_meant(name, known, data_dir)}'
        ) from None
    except ValueError:
        raise
    except Exception as error:  # a version there is none of, damaged files: of many types
        reason = (str(error).strip().splitlines() or [''])[0]
        raise ValueError(
            f'dataset={name!r} in {_where(data_dir)} cannot be opened '
            f'({type(error).__name__}: {reason[:200]})'
        ) from error


def _meant(name: str, known: Sequence[str], data_dir: str | None) -> str:
    """The nearest name of a set that there is."""
    prepared = pathlib.Path(data_dir or tfds.core.constants.DATA_DIR)
    there = [p.name for p in prepared.iterdir() if p.is_dir()] if prepared.is_dir() else []
    return nearest(name, (*known, *there, *tfds.list_builders(with_community_datasets=False)))


def _recordings(name: str, data_dir: str | None) -> dict[str, list[Recording]] | None:
    builder = _builder(name, data_dir)
    features = builder.info.features
    signals = [key for key in features if _is_sequence(features[key])]
    if not signals:
        return None
    labels = [key for key in features if isinstance(features[key], tfds.features.ClassLabel)]
    if len(signals) != 1 or len(labels) != 1:
        raise ValueError(
            f'dataset={name!r} has features {list(features)}: need one sequence of real numbers '
            '[T, C] with one label'
        )
    label = features[labels[0]]
    found = {
        split: [
            Recording(
                np.asarray(record[signals[0]], np.float32),
                label.int2str(int(record[labels[0]])),
                _text(record.get('subject', '')),
                name=f'{split} {i}',
            )
            for i, record in enumerate(builder.as_data_source(split))
        ]
        for split in builder.info.splits
        if split in ('train', 'validation', 'test')
    }
    if 'test' not in found and 'validation' in found:
        found['test'] = found.pop('validation')  # as of images, see `data.load`
    return found


def _is_sequence(feature: Any) -> bool:
    """Whether a feature is real numbers [T, C], T any number."""
    shape = feature.shape
    if not isinstance(shape, tuple) or len(shape) != 2 or not shape[1]:
        return False
    return np.issubdtype(feature.np_dtype, np.floating)


def _text(value: Any) -> str:
    """A subject as text: TFDS has text as bytes."""
    value = np.asarray(value).item()
    return value.decode() if isinstance(value, bytes) else str(value)


def _open(
    name: str, data_dir: str | None, image_size: int | None
) -> tuple[int, dict[str, TfdsRecords]]:
    builder = _builder(name, data_dir)
    info = builder.info
    image_key, label_key = _keys(name, info)
    height, width, channels = info.features[image_key].shape
    if image_size is not None:
        height = width = image_size
    if not height or not width or channels not in pixels.MODES:
        raise ValueError(
            f'dataset={name!r} has images of shape {info.features[image_key].shape}: '
            'give image_size, and a set with 1, 3 or 4 channels'
        )
    splits = {
        split: TfdsRecords(
            builder.as_data_source(split, deserialize_method=_RAW),
            image_key=image_key,
            label_key=label_key,
            image_shape=(height, width, channels),
            num_classes=info.features[label_key].num_classes,
            resize=image_size is not None,
        )
        for split in info.splits
        if split in ('train', 'validation', 'test')
    }
    if 'train' not in splits:
        raise ValueError(f'dataset={name!r} has splits {list(info.splits)}: need one named train')
    return info.features[label_key].num_classes, splits


def _builder(name: str, data_dir: str | None) -> Any:
    """The builder of a set that is prepared, in a format with random access."""
    builder = tfds.builder(name, data_dir=data_dir)
    info = builder.info
    if not builder.is_prepared():
        raise ValueError(
            f'dataset={name!r} is not prepared in {_where(data_dir)}; '
            f'prepare it with: {prepare_command(name, data_dir)}'
        )
    if info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        raise ValueError(
            f'dataset={name!r} in {_where(data_dir)} has file format {info.file_format.value}, not '
            'array_record; prepare it in another data_dir, for example with: '
            + prepare_command(name, 'tfds')
        )
    return builder


def prepare_command(name: str, data_dir: str | None) -> str:
    """The shell command that downloads and prepares the TFDS set `name` for reading here."""
    folder = '' if data_dir is None else f', data_dir={str(data_dir)!r}'
    return (
        "pip install 'vqjax[tfds]' && python -c \"import tensorflow_datasets as tfds; "
        f"tfds.builder({name!r}{folder}, file_format='array_record').download_and_prepare()\""
    )


def _where(data_dir: str | None) -> str:
    """`data_dir=...`, with the nearest spelling where there is no such folder."""
    said = f'data_dir={str(data_dir or tfds.core.constants.DATA_DIR)!r}'
    if data_dir and not pathlib.Path(data_dir).exists():
        said += f' (there is no such folder{nearest_path(data_dir)})'
    return said


def _keys(name: str, info: tfds.core.DatasetInfo) -> tuple[str, str]:
    """The features that hold the image and its label."""
    features = info.features
    keys = info.supervised_keys or tuple(features)
    images = [k for k in keys if isinstance(features[k], tfds.features.Image)]
    labels = [k for k in keys if isinstance(features[k], tfds.features.ClassLabel)]
    if len(images) != 1 or len(labels) != 1 or features[images[0]].np_dtype != np.uint8:
        raise ValueError(
            f'dataset={name!r} has features {list(features)}: need one uint8 image with one label, '
            'or one sequence of real numbers [T, C] with one'
        )
    return images[0], labels[0]
