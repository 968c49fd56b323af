"""What the answer asks of digits beyond the comparison: calibration, FSQ's projector, two levels.

    python train.py --config configs/digits_more.py

The settings and folds of configs/digits.py, one thing changed a method. 4 minutes on two idle CPU
cores. The report is in docs/comparison/more.
"""

import ml_collections

from configs import base, digits


def get_config() -> ml_collections.ConfigDict:
    config = digits.get_config()
    changes = base.CALIBRATION_CURES | {
        # A collapse of FSQ that nobody planted: features as the encoder leaves them.
        'fsq_unscaled': ('fsq', {'standardize': False}),
        # VQ-VAE-2's two levels of codes in front of the classifier.
        'vq_vae_2': ('vq_ema', {'bottleneck': 'two_level'}),
    }
    base.add_variants(config, changes)
    # The projector of source 3: 128 -> 256, ReLU, dropout .1, -> levels.
    config.quantizers.fsq_hidden = config.quantizers.fsq.to_dict() | {'hidden': 256, 'dropout': 0.1}
    config.overrides.fsq_hidden = config.overrides.fsq.to_dict()
    config.methods = ','.join(['none', 'vq_ema', 'fsq', *changes, 'fsq_hidden'])
    return config
