"""none, VQ-EMA, FSQ and RVQ on an image set of your own, by its name in TFDS.

    python train.py --config configs/tfds.py --config.dataset=NAME --config.data_dir=FOLDER
    python train.py --config configs/tfds.py:calibration --config.dataset=NAME \\
        --config.data_dir=FOLDER

A run takes 2,000 steps or 10 epochs, whichever is longer, so that a small set is not stopped before
it has been learned: 1,644 images are 167 epochs, 54,000 are 10. The report says where the training
accuracy still rises at the end; then raise steps. Learning rate and batch size are those of
configs/mnist.py: what is best on your set is not known beforehand.

1,644 images of 16 x 16 pixels (`scenes` of benchmarks/unseen.py): 7 minutes a seed of all methods
on one core beside other work; none 90.1%, VQ-EMA 90.1, FSQ 89.3, RVQ 89.6 over five seeds, no
collapse (docs/comparison.md, on data that it was not tuned on). With `:calibration` the methods are
none and VQ-EMA as they are, with label smoothing, and with averaged weights.
"""

import ml_collections

from configs import base, mnist
from vqjax.trainer import errors


def get_config(study: str = '') -> ml_collections.ConfigDict:
    """Of the four methods, or, for 'calibration', of two and what may make them less sure."""
    if study not in ('', 'calibration'):
        raise errors.RunError(
            f'study is {study!r}: leave it out, or take `calibration` as in tfds.py:calibration'
        )
    config = mnist.get_config()
    config.epochs = 10
    config.steps = 2000
    config.warmup_epochs = 1.0
    config.eval_every = 5.0
    config.checkpoint_every = 5
    # What follows an encoder that learns fast, and lets more of it pass: docs/comparison.md, on
    # data that it was not tuned on.
    config.statistics_decay = 0.7
    config.quantizers.vq_ema.decay = 0.8
    config.quantizers.rvq.inner.decay = 0.8
    # 12 features of 5 levels in two groups: a count for each of 5^12 codes would fill the memory.
    groups = {'name': 'product', 'num_groups': 2, 'inner': {'name': 'fsq', 'levels': (5,) * 6}}
    config.quantizers.fsq = {'name': 'projected', 'dim': 12, 'inner': groups}
    if study:
        base.add_variants(config, base.CALIBRATION_CURES)
        config.methods = ','.join(['none', 'vq_ema', *base.CALIBRATION_CURES])
    return config
