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
    # Tokenizers of configs/tokenizer.py and configs/behaviour.py.
    'before': 'random codes,\nno gradient',
    'before_revived': 'random codes,\nrevived every step',
    'ema': 'VQ-EMA',
    'ema_bank': 'VQ-EMA, revival\nfrom a bank',
    'gradient': 'VQ (by gradient)',
    'broken': 'VQ-EMA with faults',
}


def readable(name: str) -> str:
    """The name of a method in a plot; one that is not known here, such as your own, as it is."""
    return NAMES.get(name, name)


DATASETS = {'cifar10': 'CIFAR-10', 'mnist': 'MNIST'}


def dataset(name: str) -> str:
    """The name of a data set in a title; one that is not known here as it is."""
    return DATASETS.get(name, name)
