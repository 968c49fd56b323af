"""none, VQ-EMA, FSQ and RVQ on the 8x8 digits that ship with scikit-learn, every image tested.

    python train.py

Five folds a method. Its settings are the best, on average over the validation parts of the folds,
of 24 random trials a method that SPACE describes; docs/comparison/trials.json holds all of them:

    python train.py --config configs/digits.py --config.trials=24 --workdir runs/digits_trials

--config.learning_rate=... holds for every method, --config.overrides.fsq.learning_rate=... for one.
"""

import ml_collections

from configs import base

# What trials draw from. A rate is not searched: 256 codes, 4 x 256, or a grid of 16 bits.
_CODEBOOK = {
    'commitment': {'log_uniform': (0.02, 1.0)},
    'decay': {'uniform': (0.9, 0.99)},
}
_GRIDS = tuple(
    {'name': 'projected', 'dim': len(levels), 'inner': {'name': 'fsq', 'levels': levels} | bound}
    for levels in ((8, 8, 8, 5, 5, 5), (16, 16, 16, 16), (4,) * 8)
    for bound in ({'bound': 'tanh'}, {'bound': 'ifsq'})
)
SPACE = {
    'every': {
        'learning_rate': {'log_uniform': (5e-4, 2e-2)},
        'weight_decay': {'log_uniform': (1e-3, 1e-1)},
    },
    'vq_ema': {'quantizer': _CODEBOOK},
    'fsq': {'quantizer': {'choice': _GRIDS}},
    'rvq': {'quantizer': {'inner': _CODEBOOK}},
}


def get_config() -> ml_collections.ConfigDict:
    config = base.get_config()
    config.folds = 5
    config.space = SPACE
    config.overrides = {
        'none': {'learning_rate': 0.00223, 'weight_decay': 0.0126},
        'vq_ema': {'learning_rate': 0.000804, 'weight_decay': 0.0261},
        'fsq': {'learning_rate': 0.00651, 'weight_decay': 0.0418},
        'rvq': {'learning_rate': 0.0119, 'weight_decay': 0.00222},
    }
    config.quantizers.vq_ema.update(commitment=0.477, decay=0.967)
    config.quantizers.fsq = _GRIDS[0]
    config.quantizers.rvq.inner.update(commitment=0.0506, decay=0.981)
    return config
