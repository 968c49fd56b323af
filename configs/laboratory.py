"""What the studies of collapse vary: VQ-EMA on digits, in the plainest training there is.

    python train.py --config configs/laboratory.py  # none and VQ-EMA

A small network, features as the encoder leaves them, Adam at a constant rate.
"""

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
    config = base.get_config()
    config.methods = 'none,vq_ema'
    config.width = 16
    config.standardize = False
    config.epochs = 40
    config.batch_size = 64
    config.learning_rate = 1e-3
    config.learning_rate_schedule = 'constant'
    config.warmup_epochs = 0.0
    config.weight_decay = 0.0
    config.clip_norm = 0.0
    return config
