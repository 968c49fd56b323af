"""Overrides of a method's fields: what they change, and what is refused."""

import pytest
from support import refuse, small_config

from vqjax.trainer.config import fields, settings

# A value other than that of small_config, for every field that may differ between methods.
OTHER = {
    'augment': True, 'encoder': 'resnet18', 'width': 12, 'bottleneck': 'grid', 'features': 48,
    'standardize': False, 'statistics_decay': 0.5, 'dtype': 'bfloat16', 'guard': True,
    'classification_weight': 0.5,
    'reconstruction_weight': 1.0, 'quantizer_weight': 0.25, 'continuous_epochs': 1.0,
    'frozen_epochs': -1.0, 'init_from': 'there', 'epochs': 3, 'steps': 9, 'batch_size': 128,
    'accumulate': 2, 'init_batch_size': 64, 'learning_rate': 0.1,
    'quantizer_rate': 10.0,
    'learning_rate_schedule': 'constant', 'warmup_epochs': 0.5, 'weight_decay': 0.5,
    'label_smoothing': 0.1, 'clip_norm': 0.0,
    'ema_decay': 0.9, 'eval_every': 0.5, 'checkpoint_every': 0, 'keep_checkpoints': 1,
    'log_every': 1, 'record': True, 'steps_per_call': 1,
}  # fmt: skip
SHARED = (
    'study', 'parallel', 'mesh_shape', 'dataset', 'data_dir', 'quantizers', 'methods', 'overrides',
    'seeds', 'writers', 'window', 'hop', 'pad', 'folds', 'fold', 'split', 'trials', 'trial_seeds',
    'space', 'data_digest', 'image_size',
)  # fmt: skip


@pytest.mark.parametrize('field', OTHER)
def test_an_override_changes_that_field_of_that_method_alone(field):
    plain = settings.check(small_config(methods='all'))
    value = OTHER[field]
    assert value != plain.config[field]
    changed = settings.check(small_config(methods='all', overrides={'vq_ema': {field: value}}))
    assert changed.methods.keys() == plain.methods.keys()
    for name, method in changed.methods.items():
        expected = dict(vars(plain.methods[name]))
        if name == 'vq_ema':
            expected[field] = value
        assert vars(method) == expected, name
    assert getattr(changed, field) == getattr(plain, field)


def test_every_field_may_be_overridden_but_those_that_methods_share():
    assert OTHER.keys() | set(SHARED) == fields.FIELDS.keys()
    assert not OTHER.keys() & set(SHARED)


@pytest.mark.parametrize(
    'overrides, text',
    [
        (
            {'vq_emu': {'epochs': 3}},
            "overrides names a method 'vq_emu': config.quantizers has none",
        ),
        (
            {'vq_ema': {'epoch': 3}},
            "unknown field of overrides.vq_ema 'epoch': did you mean epochs?",
        ),
        ({'vq_ema': {'epochs': 2.5}}, 'overrides.vq_ema.epochs is 2.5: give a value of type int'),
        ({'vq_ema': {'record': 1}}, 'overrides.vq_ema.record is 1'),
        ({'vq_ema': {'learning_rate': float('nan')}}, 'overrides.vq_ema.learning_rate is nan'),
        ({'vq_ema': {'epochs': 0}}, 'overrides.vq_ema.epochs is 0: give at least 1'),
        ({'vq_ema': {'batch_size': 255, 'accumulate': 2}}, 'overrides.vq_ema: batch_size 255'),
        ({'vq_ema': {'batch_size': 5000}}, '5000'),
        ({'vq_ema': {'epochs': 1, 'continuous_epochs': 2}}, 'longer than the run of 1 epochs'),
        ({'vq_ema': 3}, 'overrides.vq_ema is 3: give a mapping'),
        *(
            ({'vq_ema': {name: 1}}, f"unknown field of overrides.vq_ema '{name}'")
            for name in SHARED
        ),
    ],
)
def test_a_wrong_override_is_one_line_and_leaves_nothing_behind(tmp_path, overrides, text):
    refuse(text, tmp_path / 'a' / 'run', overrides=overrides)
    assert not list(tmp_path.iterdir())
