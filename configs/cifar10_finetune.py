"""Codes for a trained classifier, its encoder trained on: VQ-EMA, FSQ and RVQ on CIFAR-10.

    python train.py --config configs/cifar10_finetune.py --config.data_dir=FOLDER_OF_PREPARED_SETS

Starts from the encoder of configs/cifar10_encoder.py:again, in the folder that
configs/cifar10_codes.py names, and trains it for one more epoch together with the codes; `none` is
the same without codes. One vector an image and a grid of 4 x 4, five seeds.
"""

import ml_collections

from configs import cifar10_codes

METHODS = ('none', 'vq_ema-8', 'fsq-16', 'rvq-16')


def get_config(bottleneck: str = 'both') -> ml_collections.ConfigDict:
    """For 'vector', 'grid' or 'both'."""
    config = cifar10_codes.get_config(bottleneck)
    named = [method + end for end in ('', '-grid') for method in METHODS]
    config.methods = ','.join(name for name in named if name in config.quantizers)
    config.frozen_epochs = 0.0
    config.augment = True
    config.epochs = 1
    config.learning_rate = 3e-4
    config.weight_decay = 5e-2
    config.checkpoint_every = 1
    config.keep_checkpoints = 1
    config.steps_per_call = 1
    return config
