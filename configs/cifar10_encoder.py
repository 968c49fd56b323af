"""A ResNet-9 without quantizer on CIFAR-10, on a CPU; configs/cifar10_codes.py starts from it.

    python train.py --config configs/cifar10_encoder.py --config.data_dir=FOLDER_OF_PREPARED_SETS
    python train.py --config configs/cifar10_encoder.py:again --workdir runs/cifar10_again \\
        --config.data_dir=FOLDER_OF_PREPARED_SETS

16 epochs, then a warm restart of 10 (Loshchilov and Hutter 2017) from where they ended. Resumable
after every epoch.
"""

import ml_collections

from configs import cifar10


def get_config(cycle: str = 'first') -> ml_collections.ConfigDict:
    """For 'first', or 'again' to go on from its end."""
    config = cifar10.get_config()
    config.encoder = 'resnet9'
    config.width = 16
    config.dtype = 'float32'
    config.methods = 'none'
    config.seeds = 1
    config.epochs = 16
    config.batch_size = 128
    config.learning_rate = 3e-3
    config.warmup_epochs = 2.0
    config.eval_every = 2.0
    config.checkpoint_every = 1
    config.steps_per_call = 1
    if cycle == 'again':
        config.init_from = 'runs/cifar10_encoder/checkpoints/none/seed_0'
        config.epochs = 10
        config.learning_rate = 2e-3
        config.warmup_epochs = 0.5
    return config
