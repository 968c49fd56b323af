"""A tokenizer of images: 1,024 codes on a grid of 64 tokens an image, CIFAR-10, reconstruction.

    python train.py --config configs/tokenizer.py --config.data_dir=FOLDER

Expected on two CPU cores: 6 minutes. The bar is that of seed 004: over 80% of the codes active,
perplexity over 600, fewer than 50 dead codes, quantizer loss falling without spikes. `before` is
its broken form: a codebook of normal vectors that no gradient reaches, `before_revived` the same
with dead codes replaced at every step.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.dataset = 'cifar10'
    config.data_dir = ''  # folder of prepared TFDS sets; '' = TFDS's own default
    config.seeds = 1
    config.steps = 1200
    config.methods = 'all'
    revival = {'below': 0.1, 'every': 25, 'source': 'random_rows'}
    ema = {'name': 'vq_ema', 'num_codes': 1024, 'decay': 0.99, 'revival': revival}
    gradient = {'name': 'vq', 'num_codes': 1024, 'revival': revival}
    config.baseline = {
        'quantizer': ema,
        'features': 64,
        'grid': True,
        'classification': 0.0,
        'reconstruction': 1.0,
        'batch_size': 32,
        'learning_rate': 1e-3,
    }
    # A codebook that is a buffer: no gradient reaches it.
    buffer = gradient | {'codebook': 0.0, 'init': 'normal', 'revival': None}
    every_step = {'below': 0.01, 'every': 1, 'source': 'random_rows'}
    config.remedies = {
        'before': {'quantizer': buffer},
        'before_revived': {'quantizer': buffer | {'revival': every_step}},
        'gradient': {'quantizer': gradient},
        'ema': {},
        # Dead codes take k-means centroids of the last 16 steps' features.
        'ema_bank': {
            'quantizer': {
                'name': 'banked',
                'size': 8192,
                'fresh': 512,
                'inner': ema | {'revival': revival | {'source': 'kmeans_rows'}},
            }
        },
    }
    return config
