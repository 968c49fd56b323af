"""A ResNet-9 without quantizer on CIFAR-10, on a CPU; configs/cifar10_codes.py starts from it.

    python train.py --config configs/cifar10_encoder.py --config.data_dir=FOLDER_OF_PREPARED_SETS

Resumable after every epoch.
"""

import ml_collections

from configs import cifar10


def get_config() -> ml_collections.ConfigDict:
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
    return config
