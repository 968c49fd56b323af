"""none, VQ-EMA, FSQ and RVQ on MNIST, images of 28x28 pixels.

    python train.py --config configs/mnist.py --config.data_dir=FOLDER_OF_PREPARED_SETS

Expected of a prepared copy of 10,000 images (7,200 of them to train, 280 steps a run) on two CPU
cores: 8 minutes; accuracy none 97.2%, VQ-EMA 96.3, FSQ 95.5, RVQ 96.8 over five seeds, no
collapse (these results are not kept). All 70,000 images take about seven times as long and were not
run.
"""

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
    config = base.get_config()
    config.dataset = 'mnist'
    config.seeds = 5
    config.epochs = 5
    config.batch_size = 128
    config.init_batch_size = 4096
    config.learning_rate = 2e-3
    config.warmup_epochs = 0.2
    config.eval_every = 1.0
    config.checkpoint_every = 1
    config.log_every = 50
    return config
