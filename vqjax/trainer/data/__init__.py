"""Data sets and their batches: what the trainer reads, and what others may read with it."""

from vqjax.trainer.data.batches import eval_batches, init_batch, steps_per_epoch, train_batches
from vqjax.trainer.data.records import DataInfo, Dataset
from vqjax.trainer.data.sets import from_arrays, from_sources, load

__all__ = [
    'DataInfo',
    'Dataset',
    'eval_batches',
    'from_arrays',
    'from_sources',
    'init_batch',
    'load',
    'steps_per_epoch',
    'train_batches',
]
