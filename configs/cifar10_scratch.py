"""none, VQ-EMA, FSQ and RVQ on CIFAR-10, trained from scratch with the codes in place.

    python train.py --config configs/cifar10_scratch.py --config.data_dir=FOLDER_OF_PREPARED_SETS

A ResNet-9 of width 8, 12 epochs, three seeds, one vector an image and a grid of 4 x 4: what two
CPU cores can do. FSQ has the projector of the sources, a hidden layer of 256 with dropout.
"""

import ml_collections

from configs import cifar10_codes, cifar10_finetune


def get_config(bottleneck: str = 'both') -> ml_collections.ConfigDict:
    """For 'vector', 'grid' or 'both'."""
    config = cifar10_codes.get_config(bottleneck)
    named = [method + end for end in ('', '-grid') for method in cifar10_finetune.METHODS]
    # Without a quantizer both bottlenecks are one network: `none` is enough.
    alike = 'none-grid' if 'none' in config.quantizers else ''
    config.methods = ','.join(n for n in named if n in config.quantizers and n != alike)
    for name in ('fsq-16', 'fsq-16-grid'):
        if name in config.quantizers:
            config.quantizers[name].update({'hidden': 256, 'dropout': 0.1})
    config.width = 8
    config.init_from = ''
    config.frozen_epochs = 0.0
    config.augment = True
    config.seeds = 3
    config.epochs = 12
    config.learning_rate = 3e-3
    config.weight_decay = 5e-2
    config.warmup_epochs = 2.0
    config.eval_every = 2.0
    config.checkpoint_every = 1
    config.keep_checkpoints = 1
    config.steps_per_call = 1
    return config
