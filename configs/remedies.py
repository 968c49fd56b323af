"""Which remedy for a collapsing codebook helps: each alone, added to one weak baseline.

    python train.py --config configs/remedies.py
    python train.py --config configs/remedies.py --config.dataset=mnist --config.seeds=5 \
        --config.data_dir=FOLDER

Expected on two CPU cores: 15 minutes on digits, 32 on MNIST (a copy of 10,000 images), with other
work beside it. The reports are in docs/remedies. The baseline collapses: normal start, no revival,
decay .99, commitment 1.0 (what seed 004 calls the paper's value), features as the encoder leaves
them.
"""

import ml_collections

_BASELINE = {
    'name': 'vq_ema', 'num_codes': 256, 'decay': 0.99, 'commitment': 1.0, 'init': 'normal',
    'revival': None,
}  # fmt: skip


def _leaf(**fields):
    return _BASELINE | fields


def _remedies(steps: int) -> dict:
    """Name -> what is changed: fields of the run, and the quantizer's."""
    early = steps // 5

    def quantizer(**fields):
        return {'quantizer': _leaf(**fields)}

    def revival(**fields):
        default = {'below': 0.1, 'every': 10, 'source': 'random_rows'}
        return quantizer(revival=default | fields)

    def projected(inner, dim):
        return {'quantizer': {'name': 'projected', 'dim': dim, 'inner': inner}}

    warm_up = {
        'schedule': 'linear_schedule', 'init_value': 0.0, 'end_value': 1.0,
        'transition_steps': 2 * early,
    }  # fmt: skip
    anneal = {
        'schedule': 'exponential_decay', 'init_value': 5.0, 'end_value': 0.1,
        'transition_steps': steps, 'decay_rate': 0.02,
    }  # fmt: skip
    return {
        # Controls.
        'none': {'quantizer': None},
        'kmeans_after': {'quantizer': None, 'codes_after': 256},
        'frozen_random': {'quantizer': {
            'name': 'vq', 'num_codes': 256, 'codebook': 0.0, 'init': 'normal', 'revival': None,
        }},
        'weak': {},
        # The start.
        'init_kmeans': quantizer(init='kmeans'),
        'init_batch_rows': quantizer(init='batch_rows'),
        'init_unit_sphere': quantizer(init='unit_sphere'),
        # Revival.
        'revival': revival(),
        'revival_every_step': revival(every=1),
        'revival_every_100': revival(every=100),
        'revival_below_half': revival(below=0.5),
        'revival_largest_error': revival(source='largest_error'),
        'revival_split': revival(source='split'),
        'revival_anchors': revival(source='anchors'),
        'revival_kmeans_bank': {'quantizer': {
            'name': 'banked', 'size': 2048, 'fresh': 64,
            'inner': _leaf(revival={'below': 0.1, 'every': 10, 'source': 'kmeans_rows'}),
        }},
        'reset_on_collapse': {'quantizer': {'name': 'guarded', 'inner': _leaf()}},
        # The loss.
        'loss_weight_tenth': {'quantizer_weight': 0.1},
        'loss_weight_warm_up': {'quantizer_weight': warm_up},
        'commitment_quarter': quantizer(commitment=0.25),
        'commitment_hundredth': quantizer(commitment=0.01),
        # The averages.
        'decay_95': quantizer(decay=0.95),
        'decay_999': quantizer(decay=0.999),
        # The space.
        'l2_normalised': quantizer(metric='cosine'),
        'projection_64': projected(_leaf(), 64),
        'projection_8': projected(_leaf(), 8),
        # The training.
        'frozen_encoder': {'frozen_steps': early},
        'clipped_gradient': {'clip_norm': 1.0},
        'small_batches': {'batch_size': 16},
        'reconstruction': {'reconstruction': 1.0},
        'two_stages': {'continuous_steps': steps // 2},
        # Other quantizers.
        'rotation': quantizer(gradient='rotate'),
        'gradient_codebook': {'quantizer': {
            'name': 'vq', 'num_codes': 256, 'commitment': 1.0, 'init': 'normal', 'revival': None,
        }},
        'product_8x256': {'quantizer': {'name': 'product', 'num_groups': 8, 'inner': _leaf()}},
        'rvq_4x256': {'quantizer': {'name': 'residual', 'num_stages': 4, 'inner': _leaf()}},
        'gumbel': {'quantizer': {'name': 'gumbel', 'num_codes': 256, 'temperature': anneal}},
        'fsq_8x4': projected({'name': 'fsq', 'levels': (8, 8, 8, 8)}, 4),
        'fsq_64000': projected({'name': 'fsq', 'levels': (8, 8, 8, 5, 5, 5)}, 6),
        'lfq_8': projected({'name': 'lfq', 'num_bits': 8}, 8),
        'sim_vq': {'quantizer': {'name': 'sim_vq', 'num_codes': 256, 'commitment': 1.0}},
        # Together: what this library does by default.
        'default': {'quantizer': {'name': 'vq_ema', 'num_codes': 256, 'decay': 0.95}},
    }  # fmt: skip


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.dataset = 'digits'  # or the name of any TFDS image classification set
    config.data_dir = ''  # folder of prepared TFDS sets; '' = TFDS's own default
    config.seeds = 10
    # Enough for a code of the baseline that is never used to count as dead, after 370 steps.
    config.steps = 600  # of the baseline's batch size: every remedy sees as many images
    config.methods = 'all'  # or some of the remedies below
    # What a run is made of: fields of vqjax.patients.Patient, the quantizer as a spec.
    config.baseline = {'quantizer': dict(_BASELINE), 'batch_size': 64, 'learning_rate': 1e-3}
    config.remedies = _remedies(config.steps)
    return config
