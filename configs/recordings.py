"""none, VQ-EMA, FSQ and RVQ on the smartwatch recordings that ship in the package aeon.

pip install 'vqjax[sequences]'
python train.py --config configs/recordings.py
"""

import ml_collections

from configs import digits


def get_config() -> ml_collections.ConfigDict:
    config = digits.get_config()
    config.dataset = 'basic_motions'
    config.window = 20  # two seconds
    config.hop = 10
    config.encoder = 'sensor'
    config.bottleneck = 'grid'
    config.quantizers.vq_ema.num_codes = 64
    config.quantizers.rvq.num_stages = 2
    config.quantizers.rvq.inner.num_codes = 16
    config.epochs = 20
    config.batch_size = 32
    config.checkpoint_every = 20
    return config
