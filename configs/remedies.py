"""Which remedy for a collapsing codebook helps: each alone, added to one weak baseline.

    python train.py --config configs/remedies.py

On two CPU cores 15 minutes with other work beside it. On MNIST: configs/remedies_mnist.py. The
reports are in docs/remedies. The baseline collapses on digits: normal start, no revival, decay .99,
commitment 1.0 (what source 4 of docs/sources.md calls the paper's value), features as the encoder
leaves them.
"""

from configs import laboratory

_BASELINE = {
    'name': 'vq_ema', 'num_codes': 256, 'decay': 0.99, 'commitment': 1.0, 'init': 'normal',
    'revival': None,
}  # fmt: skip


def _leaf(**fields):
    return _BASELINE | fields


def _quantizers(steps: int) -> dict:
    """Name -> spec, of the remedies that are a quantizer; the others use the baseline."""

    def revival(**fields):
        return _leaf(revival={'below': 0.1, 'every': 10, 'source': 'random_rows'} | fields)

    def projected(inner, dim):
        return {'name': 'projected', 'dim': dim, 'inner': inner}

    anneal = {
        'schedule': 'exponential_decay', 'init_value': 5.0, 'end_value': 0.1,
        'transition_steps': steps, 'decay_rate': 0.02,
    }  # fmt: skip
    gradient = {
        'name': 'vq', 'num_codes': 256, 'commitment': 1.0, 'init': 'normal', 'revival': None,
    }  # fmt: skip
    frozen = {'name': 'vq', 'num_codes': 256, 'codebook': 0.0, 'init': 'normal', 'revival': None}
    return {
        # Controls.
        'none': None,
        'frozen_random': frozen,
        'weak': _leaf(),
        # The start.
        'init_kmeans': _leaf(init='kmeans'),
        'init_batch_rows': _leaf(init='batch_rows'),
        'init_unit_sphere': _leaf(init='unit_sphere'),
        # Revival.
        'revival': revival(),
        'revival_every_step': revival(every=1),
        'revival_every_2': revival(every=2),
        'revival_every_100': revival(every=100),
        'revival_below_half': revival(below=0.5),
        'revival_largest_error': revival(source='largest_error'),
        'revival_split': revival(source='split'),
        'revival_anchors': revival(source='anchors'),
        'revival_kmeans_bank': {
            'name': 'banked', 'size': 2048, 'fresh': 64, 'inner': revival(source='kmeans_rows'),
        },
        # The choice of codes.
        'balanced_assignment': _leaf(assignment={'epsilon': 0.1, 'iters': 5}),
        # A guard.
        'reset_on_collapse': {'name': 'guarded', 'inner': _leaf()},
        # The loss.
        'commitment_quarter': _leaf(commitment=0.25),
        'commitment_hundredth': _leaf(commitment=0.01),
        # The averages.
        'decay_95': _leaf(decay=0.95),
        'decay_999': _leaf(decay=0.999),
        # The space.
        'l2_normalised': _leaf(metric='cosine'),
        'projection_64': projected(_leaf(), 64),
        'projection_8': projected(_leaf(), 8),
        # Other quantizers.
        'rotation': _leaf(gradient='rotate'),
        # A codebook moved by gradients, and what was published for it: shared scale and offset,
        # the task's gradient for codes too (arXiv:2305.08842), a higher rate (arXiv:2005.08520),
        # and distributions of codes and features that are matched (arXiv:2506.15078).
        'gradient_codebook': gradient,
        'gradient_affine': gradient | {'affine': True},
        'gradient_sync': gradient | {'sync_nu': 0.2},
        'gradient_rate_10': gradient,
        'gradient_wasserstein': gradient | {'wasserstein': 1.0},
        'product_8x256': {'name': 'product', 'num_groups': 8, 'inner': _leaf()},
        'rvq_4x256': {'name': 'residual', 'num_stages': 4, 'inner': _leaf()},
        'gumbel': {'name': 'gumbel', 'num_codes': 256, 'temperature': anneal},
        'fsq_8x4': projected({'name': 'fsq', 'levels': (8, 8, 8, 8)}, 4),
        'fsq_64000': projected({'name': 'fsq', 'levels': (8, 8, 8, 5, 5, 5)}, 6),
        'lfq_8': projected({'name': 'lfq', 'num_bits': 8}, 8),
        # Codes as long as z at the start, as published.
        'sim_vq': {'name': 'sim_vq', 'num_codes': 256, 'commitment': 1.0, 'length': 1.0},
        # Together: what this library does by default.
        'default': {'name': 'vq_ema', 'num_codes': 256, 'decay': 0.95},
    }  # fmt: skip


def _overrides(epochs: int) -> dict:
    """Name -> fields that differ from the baseline's, of the remedies that are a way to train."""
    warm_up = {
        'schedule': 'linear_schedule', 'init_value': 0.0, 'end_value': 1.0,
        'transition_steps': 0.4 * epochs,
    }  # fmt: skip
    return {
        'kmeans_after': {'continuous_epochs': epochs},
        'loss_weight_tenth': {'quantizer_weight': 0.1},
        'loss_weight_10': {'quantizer_weight': 10.0},
        'loss_weight_warm_up': {'quantizer_weight': warm_up},
        'frozen_encoder': {'frozen_epochs': 0.2 * epochs},
        'clipped_gradient': {'clip_norm': 1.0},
        'learning_rate_hundredth': {'learning_rate': 1e-5},
        'learning_rate_10': {'learning_rate': 1e-2},
        'epochs_times_5': {'epochs': 5 * epochs},
        'gradient_rate_10': {'quantizer_rate': 10.0},
        'small_batches': {'batch_size': 16},
        'reconstruction': {'reconstruction_weight': 1.0},
        'two_stages': {'continuous_epochs': 0.5 * epochs},
    }


def get_config(dataset: str = 'digits', epochs: int = 40, steps: int = 640):
    """For a data set of steps / epochs batches an epoch."""
    config = laboratory.get_config()
    config.study = 'remedies'
    config.dataset = dataset
    config.overrides = _overrides(epochs)
    quantizers = _quantizers(steps)
    # k-means after training starts from data, as any fit does.
    quantizers['kmeans_after'] = quantizers['init_kmeans']
    others = {name: _leaf() for name in config.overrides if name not in quantizers}
    config.quantizers = quantizers | others
    config.methods = 'all'
    config.seeds = 10
    # Long enough for a code of the baseline that is never used to count as dead, after 370 steps.
    config.epochs = epochs
    config.eval_every = epochs / 5
    config.checkpoint_every = 0  # a run takes seconds: one that was killed is trained again
    config.log_every = 64
    return config
