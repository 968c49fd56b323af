"""Two levels of codes, as in VQ-VAE-2 (arXiv:1906.00446): CIFAR-10, reconstruction.

    python train.py --config configs/vqvae2.py --config.data_dir=FOLDER
    python train.py --config configs/vqvae2.py --config.dataset=digits --config.epochs=40 \\
        --config.seeds=3 --config.eval_every=5

Each method has 640 bits an image of 32 x 32, but for `top_only`: two levels are 16 top codes and 64
bottom codes of 8 bits, one level is 64 codes of 10 bits. `top_only` has a bottom of one code, which
tells nothing: what 128 bits give when decoder and top are made for them. The report also decodes
`two_level` with its top codes alone, and its pictures are of the test split.

Error on CIFAR-10, two seeds: two levels .0698 and .0693, one level .0658 and .0703, the top only
.195 and .197; on digits, three seeds, .079, .080 and .213 (docs/vqvae2). 19 and 5 minutes on two
CPU cores that had other work.

With `--config.classification_weight=1` a head is trained beside the decoder.
"""

import ml_collections

from configs import laboratory


def get_config() -> ml_collections.ConfigDict:
    config = laboratory.get_config()
    config.study = 'vqvae2'
    config.dataset = 'cifar10'
    ema = {'name': 'vq_ema', 'num_codes': 256}
    one_code = {'name': 'vq_ema', 'num_codes': 1, 'revival': None}
    config.quantizers = {
        'two_level': ema,
        'one_level': ema | {'num_codes': 1024},
        'top_only': {'top': ema, 'bottom': one_code},
    }
    config.overrides = {'one_level': {'bottleneck': 'grid'}}
    config.methods = 'all'
    config.bottleneck = 'two_level'
    config.classification_weight = 0.0
    config.reconstruction_weight = 1.0
    config.features = 64
    config.epochs = 1
    config.batch_size = 32
    config.seeds = 2
    config.eval_every = 0.25
    config.checkpoint_every = 1
    config.log_every = 50
    return config
