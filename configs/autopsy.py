"""Why the codebooks collapsed: 13 faults, each beside its cure.

    python train.py --config configs/autopsy.py

Expected on two CPU cores: 4 minutes; a table, report.md and a plot a case. Every faulty run
is given its own finding by `vqjax.health.diagnose`, no cured run any. Names of quantizers that
the library does not have are those of `vqjax.studies.faults`.
"""

import ml_collections

from configs import laboratory

_SOUND = {'name': 'vq_ema', 'num_codes': 256, 'decay': 0.95}
# The usual start of the collapsed projects: normal vectors, nothing revived.
_BARE = _SOUND | {'init': 'normal', 'revival': None}
_STILL = _SOUND | {'revival': None}  # k-means start, nothing revived


def _quantizers() -> dict:
    """Sound quantizers, then the faulty ones and what their cases compare them with."""
    grid = {'name': 'fsq', 'levels': (8, 8, 8, 5, 5, 5)}

    def named(name, **fields):
        return _SOUND | {'name': name} | fields

    def projected(inner, dim):
        return {'name': 'projected', 'dim': dim, 'inner': inner}

    return {
        'vq_ema': _SOUND,
        'vq_ema_bare': _BARE,
        'vq_ema_still': _STILL,
        'vq': named('vq'),
        'projected_64': projected(_SOUND, 64),
        'fsq': projected(grid, 6),
        'no_straight_through': _BARE | {'name': 'no_straight_through'},
        'detached_commitment': named('detached_commitment'),
        'detached_commitment_hundredth': named('detached_commitment', commitment=0.01),
        'clamped_loss': named('clamped_loss'),
        'clamped_loss_unclamped': named('missing_total'),
        'discarded_init': _STILL | {'name': 'discarded_init'},
        'stale_revival': named('stale_revival'),
        'zero_counts': _STILL | {'name': 'zero_counts'},
        'swapped_coefficients': named('swapped_coefficients'),
        'codebook_weight_1': named('weighted_vq_ema', codebook=1.0),
        'codebook_weight_quarter': named('weighted_vq_ema', codebook=0.25),
        'absolute_threshold': _SOUND | {'revival': {'name': 'absolute_threshold'}},
        'absolute_threshold_share': _SOUND | {
            'revival': {'name': 'absolute_threshold', 'least': 0.01, 'of_total': True}
        },
        'revival_every_step': _SOUND | {'revival': {'name': 'every_step'}},
        'eval_updates': named('eval_updates'),
        'reshaped_features': {
            'name': 'reshaped_features', 'num_groups': 2, 'shared': True, 'inner': _SOUND,
        },
        'unscaled_fsq': projected(grid | {'name': 'unscaled_fsq'}, 6),
    }  # fmt: skip


def get_config() -> ml_collections.ConfigDict:
    config = laboratory.get_config()
    config.study = 'autopsy'
    config.cases = 'all'  # or some of vqjax.studies.cases.CASES: 'missing_total,unscaled_fsq'
    config.quantizers = _quantizers()
    short = {'epochs': 4}
    config.overrides = {
        name: short
        for name in (
            'detached_commitment_hundredth',
            'codebook_weight_1',
            'codebook_weight_quarter',
        )
    }
    config.seeds = 1
    config.eval_every = 4.0
    config.checkpoint_every = 40
    config.keep_checkpoints = 1
    config.log_every = 64
    config.record = True
    return config
