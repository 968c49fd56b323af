"""Codes for a trained CIFAR-10 classifier, every method with the same tuning: VQ-EMA and FSQ.

    python train.py --config configs/cifar10_scratch.py:vector --config.methods=none \\
        --workdir runs/cifar10_scratch --config.data_dir=FOLDER_OF_PREPARED_SETS
    python train.py --config configs/cifar10_tuned.py --config.data_dir=FOLDER_OF_PREPARED_SETS

Head and quantizer train on the features of a frozen encoder, one vector an image. Every seed has an
encoder of its own: the first command trains three. Each method has eight random trials on the
validation images, with one encoder; what they chose is then measured with all three. FSQ may have a
linear projection or that of the sources, a hidden layer of 256 with dropout.
"""

import ml_collections

from configs import cifar10_codes, rates

_RATE = {'learning_rate': {'log_uniform': (2e-4, 2e-2)}}
_CODEBOOK = {'commitment': {'log_uniform': (0.02, 1.0)}, 'decay': {'uniform': (0.9, 0.99)}}


def _projections(bits: int) -> dict:
    """FSQ of so many bits, bounded in two ways, behind a linear projection or the sources' own."""
    levels = rates.LEVELS[bits]
    return {
        'choice': tuple(
            {'name': 'projected', 'dim': len(levels)}
            | {'inner': {'name': 'fsq', 'levels': levels, 'bound': bound}}
            | hidden
            for bound in ('tanh', 'ifsq')
            for hidden in ({}, {'hidden': 256, 'dropout': 0.1})
        )
    }


def get_config() -> ml_collections.ConfigDict:
    config = cifar10_codes.get_config('vector')
    config.study = 'comparison'
    config.methods = 'none,vq_ema-8,fsq-8,fsq-16'
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
        'fsq-8': {'quantizer': _projections(8)},
        'fsq-16': {'quantizer': _projections(16)},
    }
    return config
