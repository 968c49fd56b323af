"""The remedies of configs/remedies.py on MNIST, images of 28x28 pixels.

    python train.py --config configs/remedies_mnist.py --config.data_dir=FOLDER

For a prepared copy of 10,000 images, of which 7,200 train: 1,680 steps. Two to three hours on two
CPU cores. After 15 epochs the weak baseline has recovered from its collapse; with
configs/remedies_mnist.py:5, 560 steps and 40 minutes, it has not.
"""

import ml_collections

from configs import remedies
from vqjax.trainer import errors


def get_config(epochs: str = '15') -> ml_collections.ConfigDict:
    """For so many epochs."""
    if not epochs.isdecimal() or not int(epochs):
        raise errors.RunError(
            f'epochs is {epochs!r}: give a whole number from 1, as in remedies_mnist.py:5'
        )
    config = remedies.get_config('mnist', epochs=int(epochs), steps=112 * int(epochs))
    config.seeds = 5
    return config
