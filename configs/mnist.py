"""none, VQ-EMA, FSQ and RVQ on MNIST, 60,000 images of 28x28 pixels.

    python train.py --config configs/mnist.py --config.data_dir=FOLDER_OF_PREPARED_SETS

Not yet run to the end: no time or accuracy to expect is known.
"""

import ml_collections

from configs import digits


def get_config() -> ml_collections.ConfigDict:
    config = digits.get_config()
    config.dataset = 'mnist'
    config.seeds = 3
    config.epochs = 5
    config.batch_size = 128
    config.init_batch_size = 4096
    config.learning_rate = 2e-3
    config.warmup_epochs = 0.2
    config.eval_every = 1
    config.checkpoint_every = 1
    config.log_every = 50
    return config
