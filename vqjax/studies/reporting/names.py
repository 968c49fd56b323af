"""Methods and quantizers as readers know them, for plots and tables."""

NAMES = {
    'none': 'no quantizer',
    'none-grid': 'no quantizer',
    'vq_ema': 'VQ-EMA',
    'sim_vq': 'SimVQ',
    'gumbel': 'Gumbel-Softmax',
    'fsq': 'FSQ',
    'lfq': 'LFQ',
    'rvq': 'RVQ',
    'product': 'Product',
    'to_32': 'VQ-EMA, 32 D',
    'to_64': 'VQ-EMA, 64 D',
    # Variants of configs/base.py.
    'none_smoothed': 'no quantizer,\nsmoothed labels',
    'none_averaged': 'no quantizer,\naveraged weights',
    'vq_ema_smoothed': 'VQ-EMA,\nsmoothed labels',
    'vq_ema_averaged': 'VQ-EMA,\naveraged weights',
    # Further methods of configs/digits_more.py.
    'fsq_hidden': 'FSQ,\nhidden layer',
    'fsq_unscaled': 'FSQ, features\nnot standardised',
    'vq_vae_2': 'VQ-VAE-2',
    # Methods of configs/cifar10_tuned.py.
    'vq_ema-8': 'VQ-EMA',
    'vq_ema_hidden-8': 'VQ-EMA,\nhidden layer',
    'fsq_hidden-8': 'FSQ, 8 bits,\nhidden layer',
    'fsq_hidden-16': 'FSQ, 16 bits,\nhidden layer',
    # Tokenizers of configs/tokenizer.py and configs/behaviour.py.
    'before': 'random codes,\nno gradient',
    'before_revived': 'random codes,\nrevived every step',
    'ema': 'VQ-EMA',
    'ema_bank': 'VQ-EMA, revival\nfrom a bank',
    'ema_projected': 'VQ-EMA,\n1,024 features',
    'gradient': 'VQ (by gradient)',
    'broken': 'VQ-EMA with faults',
}


def readable(name: str) -> str:
    """The name of a method in a plot; one that is not known here, such as your own, as it is."""
    return NAMES.get(name, name)


# Remedies of configs/remedies.py, where their name alone says too little.
REMEDIES = {
    'balanced_assignment': 'balanced assignment',
    'clipped_gradient': 'clipped gradients',
    'commitment_hundredth': 'commitment 0.01',
    'commitment_quarter': 'commitment 0.25',
    'decay_95': 'decay 0.95',
    'decay_999': 'decay 0.999',
    'default': 'the defaults (k-means start and revival)',
    'epochs_times_5': 'five times the epochs',
    'frozen_encoder': 'encoder frozen at first',
    'frozen_random': 'a codebook that never changes',
    'fsq_64000': 'FSQ with 64,000 codes',
    'fsq_8x4': 'FSQ with 4,096 codes',
    'gradient_affine': 'affine codes, by gradient',
    'gradient_codebook': 'a codebook moved by gradients',
    'gradient_rate_10': 'a tenfold rate for the codebook, by gradient',
    'gradient_sync': 'synchronised commitment, by gradient',
    'gradient_wasserstein': 'matched distributions of codes and features, by gradient',
    'gumbel': 'Gumbel-Softmax',
    'init_batch_rows': 'a start from vectors of the batch',
    'init_kmeans': 'a k-means start',
    'init_unit_sphere': 'a start on the unit sphere',
    'kmeans_after': 'k-means after training',
    'l2_normalised': 'l2-normalised codes and vectors',
    'learning_rate_10': 'learning rate 1e-2',
    'learning_rate_hundredth': 'learning rate 1e-5',
    'lfq_8': 'LFQ with 8 bits',
    'loss_weight_10': 'quantizer loss times 10',
    'loss_weight_tenth': 'quantizer loss times 0.1',
    'loss_weight_warm_up': 'quantizer loss warmed up',
    'product_8x256': 'product codes, 8 x 256',
    'projection_64': 'a projection to 64 features',
    'projection_8': 'a projection to 8 features',
    'reconstruction': 'reconstruction as a second task',
    'reset_on_collapse': 'a reset when the codebook collapses',
    'revival_anchors': 'revival by anchors',
    'revival_below_half': 'revival below half of the mean use',
    'revival_every_100': 'revival every 100 steps',
    'revival_every_2': 'revival every 2 steps',
    'revival_every_step': 'revival at every step',
    'revival_kmeans_bank': 'revival from k-means of a bank',
    'revival_largest_error': 'revival with the worst-served vectors',
    'revival_split': 'revival by splitting codes',
    'revival': 'revival every 10 steps',
    'rotation': 'the rotation trick',
    'rvq_4x256': 'RVQ, 4 x 256',
    'sim_vq': 'SimVQ',
    'small_batches': 'small batches',
    'two_stages': 'codes after training without them',
}


def remedy(name: str) -> str:
    """The name of a remedy in a sentence; one that is not known here as it is."""
    return REMEDIES.get(name, name)


DATASETS = {'cifar10': 'CIFAR-10', 'mnist': 'MNIST'}


def dataset(name: str) -> str:
    """The name of a data set in a title; one that is not known here as it is."""
    return DATASETS.get(name, name)
