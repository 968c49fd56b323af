"""Runs that are faulty on purpose and runs that are sound: what is found first in each.

`python tests/test_health_runs.py` prints the table; `--long` adds the runs that only
`make test-all` has.
"""

import sys
import warnings

import pytest
from health_runs import Run, diagnosis

from vqjax import (
    FSQ,
    LFQ,
    VQ,
    VQEMA,
    Banked,
    Guarded,
    GumbelSoftmax,
    Product,
    Projected,
    Residual,
    SimVQ,
    ops,
)
from vqjax.studies.autopsy import faults

BLIND = {'init': 'normal', 'revival': None}
GRID = {'quantizer': FSQ((8, 5, 5)), 'dim': 3}

SOUND = {
    'VQ-EMA on digits': Run(),
    'images with background': Run(VQEMA(256), data='mnist', batch=16),
    'speech, skewed use': Run(VQEMA(256), data='speech'),
    'residual, four stages': Run(Residual(VQEMA(32), 4)),
    'FSQ': Run(**GRID, z='standard'),
    'batches of two images': Run(VQEMA(32), batch=2, steps=400),
    'more codes than vectors': Run(VQEMA(1024), images=32),
    'gradient codebook': Run(VQ(64)),
    'classification': Run(task='classes'),
    'learning rate 0.01': Run(rate=1e-2),
}
SOUND_LONG = {
    'SGD': Run(optimizer='sgd', rate=0.03),
    'cosine metric': Run(VQEMA(64, metric='cosine')),
    'SimVQ': Run(SimVQ(64)),
    'product': Run(Product(VQEMA(32), 2)),
    'LFQ': Run(LFQ(8), z='standard'),
    'Gumbel softmax': Run(GumbelSoftmax(64)),
    'projected': Run(Projected(VQEMA(64), 4)),
    'projected FSQ': Run(Projected(FSQ((8, 5, 5)), 3), z='standard'),
    'guarded': Run(Guarded(VQEMA(64))),
    'banked': Run(Banked(VQEMA(64))),
    'commitment 1': Run(VQEMA(64, commitment=1.0, decay=0.95)),
    'features after a ReLU': Run(z='relu'),
    'rotation trick': Run(VQEMA(64, gradient='rotate')),
    'learning rate 0.001': Run(rate=1e-3, steps=500),
    'eight codes': Run(VQEMA(8)),
    'classification of background': Run(VQEMA(128), data='mnist', task='classes'),
    'speech, residual': Run(Residual(VQEMA(64), 3), data='speech'),
    'background, FSQ': Run(**GRID, z='standard', data='mnist', batch=16),
}

# What is wrong -> the finding that must come first, and the run.
FAULTS = {
    'learning rate 0.3': ('learning_rate_high', Run(rate=0.3)),
    'learning rate 1e-7': ('learning_rate_low', Run(rate=1e-7)),
    'commitment 0': ('weak_commitment', Run(VQEMA(64, commitment=0.0))),
    'commitment 100': ('strong_commitment', Run(VQEMA(64, commitment=100.0))),
    'decay 0.9999 in 300 steps': ('slow_average', Run(VQEMA(64, decay=0.9999), steps=300)),
    'decay 0, small batches': ('noisy_average', Run(VQEMA(256, decay=0.0), batch=4)),
    'offset of 20': ('offset', Run(z='offset')),
    '64 training images': ('overfitting', Run(task='classes', images=64, steps=400)),
    'normal start, no revival': ('blind_start', Run(VQEMA(64, **BLIND))),
    'revival every 1,000 steps': (
        'late_revival', Run(VQEMA(64, init='normal', revival=ops.Revival(every=1000))),
    ),
    'revival of codes in use': (
        'absolute_threshold', Run(VQEMA(256, revival=faults.AbsoluteThreshold())),
    ),
    'revival at every step': ('revival_every_step', Run(VQEMA(256, revival=faults.EveryStep()))),
    'revival taken back': (
        'stale_revival',
        Run(faults.StaleRevival(64, decay=0.9, revival=ops.Revival(below=0.5, every=4))),
    ),
    'gradient stopped at z_q': ('no_straight_through', Run(cut='straight_through')),
    "quantizer's loss not added": ('loss_left_out', Run(cut='loss')),
    'statistics not updated': ('frozen_codebook', Run(cut='update')),
    'statistics updated in evaluation': ('eval_updates', Run(cut='eval_updates')),
    'smoothed counts without their total': (
        'missing_total', Run(faults.MissingTotal(64, decay=0.95)),
    ),
    'start discarded': ('discarded_init', Run(faults.DiscardedInit(64, decay=0.95))),
    'commitment detached': ('detached_commitment', Run(faults.DetachedCommitment(64))),
    'features of 0.001 before FSQ': ('unscaled_fsq', Run(**GRID, z='tiny')),
    'features of 100 before FSQ': ('saturated_grid', Run(**GRID, z='huge')),
    'NaN in the weights': ('diverged', Run(cut='nan')),
    'weight decay 30': ('weights_shrink', Run(optimizer='adamw_strong')),
    'a path around the codes': ('codes_ignored', Run(task='leak')),
    'sorted by class': ('batch_order', Run(order='sorted')),
    'wrong labels': ('no_progress', Run(task='classes', data='wrong_labels')),
}  # fmt: skip
FAULTS_LONG = {
    'temperature 10': ('random_codes', Run(VQEMA(64, temperature=10.0))),
    'offset of 20 before FSQ': ('offset', Run(**GRID, z='offset')),
    'dead ReLU': ('constant_inputs', Run(VQEMA(64, **BLIND), z='dead')),
    'gradient stopped at z': ('frozen_parameters', Run(cut='encoder')),
    'coefficients swapped': ('swapped_coefficients', Run(faults.SwappedCoefficients(64))),
    'counts from 0': ('zero_counts', Run(faults.ZeroCounts(64))),
    'commitment 1e-6': ('weak_commitment', Run(VQEMA(64, commitment=1e-6))),
    'learning rate 0.3, standardised': ('learning_rate_high', Run(rate=0.3, z='standard')),
    'decay 0.9999, normal start': (
        'slow_average', Run(VQEMA(64, decay=0.9999, init='normal'), steps=300),
    ),
    'offset of 20, cosine': ('offset', Run(VQEMA(64, metric='cosine'), z='offset')),
    'normal start on background': (
        'blind_start', Run(VQEMA(256, **BLIND), data='mnist', batch=16),
    ),
    'normal start, residual': ('blind_start', Run(Residual(VQEMA(32, **BLIND), 4))),
    'vectors of 0.001, normal start': ('blind_start', Run(VQ(64, init='normal'), z='tiny')),
    'no codebook loss': ('frozen_codebook', Run(VQ(64, codebook=0.0, revival=None))),
    'no entropy term': ('collapse', Run(LFQ(8, entropy=0.0))),
    'pixels from 0 to 255': ('input_scale', Run(data='bytes')),
    'two codes': ('error_near_variance', Run(VQEMA(2))),
    '64 images to reconstruct': ('overfitting', Run(images=64, steps=600)),
    'sorted by class, background': (
        'batch_order', Run(VQEMA(256), data='mnist', batch=16, order='sorted'),
    ),
    "quantizer's loss not added, long": (
        'loss_left_out', Run(cut='loss', steps=600, rate=1e-2),
    ),
}  # fmt: skip


def sound(name):
    found = diagnosis((SOUND | SOUND_LONG)[name])
    assert [f for f in found if f.severity != 'note'] == [], name


def faulty(name):
    wanted, run = (FAULTS | FAULTS_LONG)[name]
    found = diagnosis(run)
    assert found and found[0].name == wanted, (name, [f.name for f in found])


@pytest.mark.parametrize('name', SOUND)
def test_a_sound_run_raises_no_alarm(name):
    sound(name)


@pytest.mark.parametrize('name', FAULTS)
def test_a_fault_is_the_first_finding(name):
    faulty(name)


@pytest.mark.slow
@pytest.mark.parametrize('name', SOUND_LONG)
def test_more_sound_runs_raise_no_alarm(name):
    sound(name)


@pytest.mark.slow
@pytest.mark.parametrize('name', FAULTS_LONG)
def test_more_faults_are_the_first_finding(name):
    faulty(name)


if __name__ == '__main__':
    warnings.simplefilter('ignore')
    more = '--long' in sys.argv
    cases = {name: ('', run) for name, run in (SOUND | (SOUND_LONG if more else {})).items()}
    for name, (wanted, run) in (cases | FAULTS | (FAULTS_LONG if more else {})).items():
        found = diagnosis(run)
        first = f'{found[0].name} ({found[0].severity}): {found[0].remedy}' if found else '-'
        good = found and found[0].name == wanted
        if not wanted:
            good = all(f.severity == 'note' for f in found)
        print(f'{"ok " if good else "BAD"} {name:36s} {first}')
