"""none, VQ-EMA, FSQ and RVQ as set by hand: what the configurations of other data start from.

    python train.py --config configs/base.py

On digits with their fixed split: 1,077 images to train, 360 for validation, 360 for the test. What
is searched for stands in configs/digits.py.
"""

from collections.abc import Mapping
from typing import Any

import ml_collections

from vqjax.trainer.config import fields

Changes = Mapping[str, tuple[str, Mapping[str, Any]]]
# What is said to cure over-confidence; averages of the parameters over some 50 steps.
CALIBRATION_CURES = {
    'none_smoothed': ('none', {'label_smoothing': 0.1}),
    'none_averaged': ('none', {'ema_decay': 0.98}),
    'vq_ema_smoothed': ('vq_ema', {'label_smoothing': 0.1}),
    'vq_ema_averaged': ('vq_ema', {'ema_decay': 0.98}),
}


def add_variants(config: ml_collections.ConfigDict, changes: Changes) -> None:
    """Methods that differ from another one in some fields: name -> (that one, the fields)."""
    for name, (other, fields_changed) in changes.items():
        spec = config.quantizers[other]
        config.quantizers[name] = spec and spec.to_dict()  # a copy: flags change one of them
        config.overrides[name] = dict(config.overrides.get(other, {})) | fields_changed


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
