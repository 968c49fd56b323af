"""What the answer asks of digits beyond the comparison: calibration, FSQ's projector, two levels.

    python train.py --config configs/digits_more.py

The settings and folds of configs/digits.py, one thing changed a method. 4 minutes on two idle CPU
cores. The report is in docs/comparison/more.
"""

import ml_collections

from configs import digits


def get_config() -> ml_collections.ConfigDict:
    config = digits.get_config()
    given = {name: spec for name, spec in config.quantizers.items()}
    own = {name: fields for name, fields in config.overrides.items()}
    changes = {
        # Cures for over-confidence.
        'none_smoothed': ('none', {'label_smoothing': 0.1}),
        'none_averaged': ('none', {'ema_decay': 0.98}),
        'vq_ema_smoothed': ('vq_ema', {'label_smoothing': 0.1}),
        'vq_ema_averaged': ('vq_ema', {'ema_decay': 0.98}),
        # A collapse of FSQ that nobody planted: features as the encoder leaves them.
        'fsq_unscaled': ('fsq', {'standardize': False}),
        # VQ-VAE-2's two levels of codes in front of the classifier.
        'vq_vae_2': ('vq_ema', {'bottleneck': 'two_level'}),
    }
    for name, (base, fields) in changes.items():
        given[name] = given[base]
        own[name] = dict(own.get(base, {})) | fields
    # The projector of source 3: 128 -> 256, ReLU, dropout .1, -> levels.
    given['fsq_hidden'] = dict(given['fsq']) | {'hidden': 256, 'dropout': 0.1}
    own['fsq_hidden'] = own['fsq']
    config.quantizers = given
    config.overrides = own
    config.methods = ','.join(['none', 'vq_ema', 'fsq', *changes, 'fsq_hidden'])
    return config
