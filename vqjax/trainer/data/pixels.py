"""One image as an array [H, W, C]: from a Pillow image, or from what NumPy makes an array of."""

import pathlib
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps

MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}  # by number of channels: what Pillow calls them
_SAME = {'1': 'L'}  # black and white is grey without a loss
CHANNELS = {mode: channels for channels, mode in MODES.items()}


def mode_of(image: Image.Image) -> str:
    """The mode that an image is read in: its own, 'L' of one in black and white."""
    return _SAME.get(image.mode, image.mode)


def decode(
    file: str | pathlib.Path | IO[bytes], shape: tuple[int, int, int], resize: bool
) -> np.ndarray:
    """A file of an image as uint8 [H, W, C]; `resize` crops it to the ratio of H and W first.

    Raises:
      ValueError: its size is another one and is not to be changed.
      Exception: it is no image, or damaged; Pillow has no one type for that.
    """
    height, width, channels = shape
    with Image.open(file) as opened:
        image: Image.Image = opened
        if image.mode != MODES[channels]:
            image = image.convert(MODES[channels])
        if resize:
            image = ImageOps.fit(image, (width, height))
        return np.asarray(image).reshape(shape)


def array_of(where: str, image: Any) -> np.ndarray:
    """An image as an array [H, W, C]; grey ones may come without C.

    Args:
      where: names it in errors.
      image: a Pillow image, an array, or what `numpy.asarray` makes one of (a torch tensor on the
        host).

    Raises:
      ValueError: another number of axes, channels first, no numbers, or a mode without a number of
        channels that is plain.
    """
    if isinstance(image, Image.Image):
        if mode_of(image) not in CHANNELS:
            raise ValueError(f'{where} has mode {image.mode}: {how_to_convert()}')
        image = image.convert(mode_of(image))
    array = np.asarray(image)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.dtype.kind not in 'buif' or not array.size:
        raise ValueError(
            f'{where} is {array.dtype} of shape {np.shape(image)}: need real numbers [H, W, C], or '
            '[H, W] where they are grey'
        )
    check_channels_last(where, array.shape)
    return array


def check_channels_last(where: str, shape: tuple[int, ...]) -> None:
    """Refuses images [C, H, W].

    Raises:
      ValueError: the first of the last three axes has the length of channels, the last has not.
    """
    if shape[-3] in MODES and shape[-1] not in MODES:
        raise ValueError(
            f'{where} has shape {tuple(shape)}, channels first: need [..., H, W, C], as '
            'numpy.moveaxis(images, -3, -1) gives it'
        )


def how_to_convert() -> str:
    """What to do about images of modes that cannot be read, or cannot be read together."""
    return (
        f'convert them to one mode ({", ".join(CHANNELS)}), each by '
        "PIL.Image.open(file).convert('RGB').save(file)"
    )
