"""A tokenizer of images: 1,024 codes, 64 tokens per image, CIFAR-10, reconstruction.

    python train.py --config configs/tokenizer.py --config.data_dir=FOLDER
    python train.py --config configs/tokenizer.py:source --config.data_dir=FOLDER

The bar is that of source 4 (docs/sources.md): over 80% of the codes active, perplexity over 600,
fewer than 50 dead codes, quantizer loss falling without spikes. `before` is its broken form: a
codebook of normal vectors that no gradient reaches, `before_revived` the same with dead codes
replaced at every step. With `:source` the setting is closer to that source's: 256 features, past
step 5,000, five seeds, and `ema_projected` with codes of 1,024 features, as in its example. The
targets at step 5,000 are for `ema` alone; the other three train for one epoch.
"""

import ml_collections

from configs import laboratory
from vqjax.trainer import errors


def get_config(setting: str = '') -> ml_collections.ConfigDict:
    """Of the five tokenizers, or, for 'source', of four in the setting of source 4."""
    if setting not in ('', 'source'):
        raise errors.RunError(
            f'setting is {setting!r}: leave it out, or take `source` as in tokenizer.py:source'
        )
    revival = {'below': 0.1, 'every': 25, 'source': 'random_rows'}
    ema = {'name': 'vq_ema', 'num_codes': 1024, 'decay': 0.99, 'revival': revival}
    gradient = {'name': 'vq', 'num_codes': 1024, 'revival': revival}
    # A codebook that is a buffer: no gradient reaches it.
    buffer = gradient | {'codebook': 0.0, 'init': 'normal', 'revival': None}
    every_step = {'below': 0.01, 'every': 1, 'source': 'random_rows'}
    config = laboratory.get_config()
    config.study = 'tokenizer'
    config.dataset = 'cifar10'
    config.quantizers = {
        'before': buffer,
        'before_revived': buffer | {'revival': every_step},
        'gradient': gradient,
        'ema': ema,
        # Dead codes take k-means centroids of the last 16 steps' features.
        'ema_bank': {
            'name': 'banked',
            'size': 8192,
            'fresh': 512,
            'inner': ema | {'revival': revival | {'source': 'kmeans_rows'}},
        },
    }
    config.methods = 'all'
    config.seeds = 1
    config.classification_weight = 0.0
    config.reconstruction_weight = 1.0
    config.bottleneck = 'grid'
    config.features = 64
    config.epochs = 1
    config.batch_size = 32
    config.eval_every = 0.125
    config.checkpoint_every = 1
    config.log_every = 50
    config.record = True
    if setting:
        config.quantizers.ema_projected = {'name': 'projected', 'dim': 1024, 'inner': ema}
        config.methods = 'before,before_revived,ema,ema_projected'
        config.overrides = {
            name: {'epochs': 1} for name in ('before', 'before_revived', 'ema_projected')
        }
        config.features = 256
        config.seeds = 5
        config.epochs = 4
    return config
