"""Behaviours found from codes of movement sensors: tokenizers and sequence models in turn.

    pip install 'vqjax[sequences,bench]'
    python train.py --config configs/behaviour.py  # six minutes on two CPU cores

Smartwatch recordings of four activities, five folds. `broken` is the VQ-EMA that collapsed
(docs/sources.md): no straight-through gradient, normal codes, nothing revived, features of any
scale. The report has every tokenizer with and without an HMM, durations, and the number of states
given or found, beside k-means tokens with hmmlearn and the change points of ruptures.
"""

import ml_collections

from configs import recordings


def get_config() -> ml_collections.ConfigDict:
    config = recordings.get_config()
    config.study = 'behaviour'
    quantizers = config.quantizers.to_dict()
    config.quantizers = {
        'none': None,
        'broken': {
            'name': 'no_straight_through', 'num_codes': 64, 'init': 'normal', 'revival': None,
        },
        **{name: quantizers[name] for name in ('vq_ema', 'fsq', 'rvq')},
    }  # fmt: skip
    config.overrides = {'broken': {'standardize': False}}
    config.methods = 'all'
    config.folds = 5
    config.seeds = 5  # one a fold
    # The sequence models; see vqjax.studies.behaviour.
    config.rounds = 3  # times that every recording occurs in sessions
    config.session = 8  # recordings of a session
    config.states = 12  # the most states that are looked for
    config.phases = 4
    config.duration_s = 8.0  # that the prior expects a behaviour to last
    config.lag_s = 2.0
    config.tokens = 64  # of k-means, where nothing is quantized
    config.restarts = 8  # starts of EM where the number of states is given
    return config
