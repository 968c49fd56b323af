"""What `python train.py --help` tells: every flag, and every field with its default."""

import pathlib
import subprocess
import sys

import jax.numpy as jnp

from vqjax.trainer import settings, training

ROOT = pathlib.Path(__file__).parents[1]


def test_help_explains_every_field_of_the_configuration():
    run = subprocess.run(
        [sys.executable, 'train.py', '--help'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    for flag in ('--workdir', '--config', '--coordinator_address', '--num_processes'):
        assert flag in run.stdout
    for field in settings.FIELDS:
        assert f'--config.{field}=' in run.stdout, field
    assert '--config.learning_rate=0.003' in run.stdout


def test_a_run_no_longer_than_its_warm_up_still_trains():
    for num_steps in (1, 2, 12):
        optimizer = training.make_optimizer(0.1, num_steps, warmup_steps=12)
        params = {'w': jnp.ones(())}
        state = optimizer.init(params)
        for _ in range(num_steps):
            updates, state = optimizer.update({'w': jnp.ones(())}, state, params)
        assert abs(float(updates['w'])) <= 0.1
