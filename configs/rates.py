"""Accuracy against bits: seven quantizers at 4 to 16 bits a token, of one vector and of a grid.

    python train.py --config configs/rates.py
    python train.py --config configs/rates.py:grid --workdir runs/grid  # one bottleneck alone

Digits in five folds, every image tested once; docs/rates/report.md holds the outcome. All rates
share one learning rate and all other settings, which were tuned for none of them. One codebook ends
at 12 bits: 2^16 codes would be 36 for each image of digits. RVQ and product have two stages or
groups of half the bits; FSQ and LFQ stand behind a learned projection.
"""

import ml_collections

from vqjax.trainer import errors
from vqjax.trainer.config.fields import config

RATES = (4, 6, 8, 10, 12, 16)  # bits a token

# Levels of about 2^bits codes, within .1 bit; from 8 bits on those of FSQ's paper
# (arXiv:2309.15505, table 1).
LEVELS = {
    4: (4, 4),
    6: (8, 8),
    8: (8, 6, 5),
    10: (8, 5, 5, 5),
    12: (7, 5, 5, 5, 5),
    16: (8, 8, 8, 5, 5, 5),
}


def vq_ema(bits: int, **fields) -> dict:
    """The spec of one codebook."""
    return {'name': 'vq_ema', 'num_codes': 2**bits, 'decay': 0.95} | fields


def projected(dim: int, inner: dict) -> dict:
    """The spec of a quantizer behind a learned linear map to fewer dimensions."""
    return {'name': 'projected', 'dim': dim, 'inner': inner}


def specs(bits: int) -> dict[str, dict]:
    """Family -> spec at so many bits a token."""
    levels, half = LEVELS[bits], bits // 2
    found = {}
    if bits <= 12:
        found = {
            'vq_ema': vq_ema(bits),
            'sim_vq': {'name': 'sim_vq', 'num_codes': 2**bits},
            'gumbel': {'name': 'gumbel', 'num_codes': 2**bits},
        }
    return found | {
        'fsq': projected(len(levels), {'name': 'fsq', 'levels': levels}),
        'lfq': projected(bits, {'name': 'lfq', 'num_bits': bits}),
        'rvq': {'name': 'residual', 'num_stages': 2, 'inner': vq_ema(half, commitment=0.1)},
        'product': {'name': 'product', 'num_groups': 2, 'inner': vq_ema(half)},
    }


def get_config(bottleneck: str = 'both') -> ml_collections.ConfigDict:
    """For 'vector', 'grid' or 'both': methods `fsq-8`, and `fsq-8-grid`."""
    found = {f'{family}-{bits}': spec for bits in RATES for family, spec in specs(bits).items()}
    return at(bottleneck, {'none': None} | found)


def at(bottleneck: str, each: dict) -> ml_collections.ConfigDict:
    """The configuration of these methods, name -> spec, at 'vector', 'grid' or 'both'."""
    kinds = {'both': ('', '-grid'), 'vector': ('',), 'grid': ('-grid',)}
    if bottleneck not in kinds:
        raise errors.RunError(
            f'bottleneck is {bottleneck!r}: choose one of {", ".join(kinds)}, as in rates.py:grid'
        )
    quantizers = {name + kind: spec for kind in kinds[bottleneck] for name, spec in each.items()}
    # Every field that decides a figure is named here: no other configuration's change moves it.
    return config(
        study='rates',
        dataset='digits',
        folds=5,
        seeds=5,
        methods='all',
        quantizers=quantizers,
        overrides={n: {'bottleneck': 'grid'} for n in quantizers if n.endswith('-grid')},
        encoder='conv',
        width=16,
        features=128,
        bottleneck='vector',
        standardize=True,
        epochs=60,
        batch_size=96,
        init_batch_size=1024,
        learning_rate=3e-3,
        learning_rate_schedule='cosine',
        warmup_epochs=1.0,
        weight_decay=1e-2,
        clip_norm=1.0,
        eval_every=5.0,
        checkpoint_every=0,  # a run takes seconds: one that was killed is trained again
        log_every=64,
    )
