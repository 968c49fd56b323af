"""Codes for a trained classifier: CIFAR-10, its encoder frozen, 4 to 32 bits a token.

    python train.py --config configs/cifar10_encoder.py --config.data_dir=FOLDER_OF_PREPARED_SETS
    python train.py --config configs/cifar10_encoder.py:again --workdir runs/cifar10_again \\
        --config.data_dir=FOLDER_OF_PREPARED_SETS
    python train.py --config configs/cifar10_codes.py --config.data_dir=FOLDER_OF_PREPARED_SETS

Head and quantizer train on the features of the second run's encoder, which are computed once;
`none` is its head, trained further as long. One vector an image and a grid of 4 x 4, five seeds.
"""

import ml_collections

from configs import rates

RATES = (4, 8, 12, 16)
# A step with 4,096 codes on the 2,048 vectors of a batch of grids draws 8 million random numbers.
SKIPPED = ('gumbel-12',)


def _methods() -> dict:
    each = {f'{family}-{b}': spec for b in RATES for family, spec in rates.specs(b).items()}
    large = rates.vq_ema(10)
    four = {'num_groups': 4, 'inner': rates.vq_ema(8)}
    return (
        {'none': None}
        | {name: spec for name, spec in each.items() if name not in SKIPPED}
        | {
            # What a source advises: 4 x 256 codes rather than 1,024, and fewer dimensions.
            'vq_ema-10': large,
            'to_32-10': rates.projected(32, large),
            'to_64-10': rates.projected(64, large),
            'product-32': {'name': 'product'} | four,
            'rvq-32': {
                'name': 'residual',
                'num_stages': 4,
                'inner': rates.vq_ema(8, commitment=0.1),
            },
        }
    )


def get_config(bottleneck: str = 'both') -> ml_collections.ConfigDict:
    """For 'vector', 'grid' or 'both'."""
    config = rates.at(bottleneck, _methods())
    config.study = 'rates'
    config.dataset = 'cifar10'
    config.folds = 0
    config.encoder = 'resnet9'
    config.width = 16
    config.init_from = 'runs/cifar10_again/checkpoints/none/seed_0'
    config.frozen_epochs = -1.0
    config.seeds = 5
    config.epochs = 3
    config.batch_size = 128
    config.init_batch_size = 8192
    for name in config.overrides:  # of grids, 16 vectors an image
        config.overrides[name].init_batch_size = 1024
    config.learning_rate = 1e-3
    config.warmup_epochs = 0.2
    config.eval_every = 1.0
    config.checkpoint_every = 0
    config.log_every = 64
    return config
