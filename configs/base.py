"""none, VQ-EMA, FSQ and RVQ as set by hand: what the configurations of other data start from.

    python train.py --config configs/base.py

On digits with their fixed split: 1,077 images to train, 360 for validation, 360 for the test. What
is searched for stands in configs/digits.py.
"""

import ml_collections

from vqjax.trainer.config import fields


def get_config() -> ml_collections.ConfigDict:
    vq_ema = {'name': 'vq_ema', 'num_codes': 256, 'decay': 0.95}
    fsq = {'name': 'fsq', 'levels': (8, 8, 8, 5, 5, 5)}
    return fields.config(
        dataset='digits',
        quantizers={
            'none': None,
            'vq_ema': vq_ema,
            'fsq': {'name': 'projected', 'dim': 6, 'inner': fsq},
            'rvq': {'name': 'residual', 'num_stages': 4, 'inner': vq_ema | {'commitment': 0.1}},
        },
        methods='none,vq_ema,fsq,rvq',
        seeds=5,
        epochs=40,
        batch_size=96,
        learning_rate=3e-3,
    )
