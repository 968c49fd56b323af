"""Codes for a trained CIFAR-10 classifier, every method with the same tuning: VQ-EMA and FSQ.

    python train.py --config configs/cifar10_scratch.py:vector --config.methods=none \\
        --workdir runs/cifar10_scratch --config.data_dir=FOLDER_OF_PREPARED_SETS
    python train.py --config configs/cifar10_tuned.py --config.data_dir=FOLDER_OF_PREPARED_SETS

Head and quantizer train on the features of a frozen encoder, one vector an image. Every seed has an
encoder of its own: the first command trains three. Each method has eight random trials on the
validation images, with one encoder; what they chose is then measured with all three. FSQ has the
projector of the sources, a hidden layer of 256 with dropout; so has `vq_ema_hidden-8`, on 32
features.
"""

import ml_collections

from configs import cifar10_codes, rates

_RATE = {'learning_rate': {'log_uniform': (2e-4, 2e-2)}}
_HIDDEN = {'hidden': 256, 'dropout': 0.1}
_CODEBOOK = {'commitment': {'log_uniform': (0.02, 1.0)}, 'decay': {'uniform': (0.9, 0.99)}}


def _grids(bits: int) -> dict:
    """FSQ of so many bits behind the hidden layer, bounded in two ways."""
    levels = rates.LEVELS[bits]
    return {
        'choice': tuple(
            rates.projected(len(levels), {'name': 'fsq', 'levels': levels, 'bound': bound})
            | _HIDDEN
            for bound in ('tanh', 'ifsq')
        )
    }


def get_config() -> ml_collections.ConfigDict:
    config = cifar10_codes.get_config('vector')
    config.study = 'comparison'
    # The same projector in front of a codebook: what it alone brings is not FSQ's.
    config.quantizers['vq_ema_hidden-8'] = rates.projected(32, rates.vq_ema(8)) | _HIDDEN
    for bits in (8, 16):
        config.quantizers[f'fsq_hidden-{bits}'] = _grids(bits)['choice'][0]
    config.methods = 'none,vq_ema-8,vq_ema_hidden-8,fsq_hidden-8,fsq_hidden-16'
    config.width = 8
    config.init_from = 'runs/cifar10_scratch/checkpoints/none/seed_{seed}'
    config.seeds = 3
    config.epochs = 6
    config.eval_every = 2.0
    config.trials = 8
    config.trial_seeds = 1
    config.space = {
        'every': _RATE,
        'vq_ema-8': {'quantizer': _CODEBOOK},
        'vq_ema_hidden-8': {'quantizer': {'inner': _CODEBOOK}},
        'fsq_hidden-8': {'quantizer': _grids(8)},
        'fsq_hidden-16': {'quantizer': _grids(16)},
    }
    return config
