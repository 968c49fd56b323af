"""What quantizers are made of: pure functions on arrays, and no quantizer."""

from vqjax.ops.candidates import mean_assignment, nearest_candidates, sample_codes
from vqjax.ops.gradients import directional, graft, rotate, straight_through
from vqjax.ops.kmeans import (
    KMeans,
    Start,
    batch_rows,
    check_distinct,
    kmeans,
    normal,
    unit_sphere,
)
from vqjax.ops.losses import diversity, entropy, mean_probabilities, orthogonality, squared_error
from vqjax.ops.nearest import METRICS, nearest_codes, normalize
from vqjax.ops.revival import (
    Batch,
    Revival,
    Revived,
    anchors,
    error_rows,
    largest_error,
    random_rows,
    split,
)
from vqjax.ops.rows import flat_rows, gumbel_rows, row_places, top_rows, uniform_rows
from vqjax.ops.schedules import Schedule
from vqjax.ops.statistics import AxisName, code_counts, code_sums, masked_mean, smoothed

__all__ = [
    'METRICS',
    'AxisName',
    'Batch',
    'KMeans',
    'Revival',
    'Revived',
    'Schedule',
    'Start',
    'anchors',
    'batch_rows',
    'check_distinct',
    'code_counts',
    'code_sums',
    'directional',
    'diversity',
    'entropy',
    'error_rows',
    'flat_rows',
    'graft',
    'gumbel_rows',
    'kmeans',
    'largest_error',
    'masked_mean',
    'mean_assignment',
    'mean_probabilities',
    'nearest_candidates',
    'nearest_codes',
    'normal',
    'normalize',
    'orthogonality',
    'random_rows',
    'rotate',
    'row_places',
    'sample_codes',
    'smoothed',
    'split',
    'squared_error',
    'straight_through',
    'top_rows',
    'uniform_rows',
    'unit_sphere',
]
