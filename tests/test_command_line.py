"""The command: what --help tells, what is said of mistakes, and how it is stopped."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import pytest

from vqjax.trainer.config import fields
from vqjax.trainer.run.stopping import StopRequest
from vqjax.trainer.step.optimizer import make_optimizer

ROOT = pathlib.Path(__file__).parents[1]
DIGITS = 'from configs.digits import get_config\n'
SHOW = (
    'import sys; from vqjax.trainer.logs import show; show("x"); show("y");'
    'print("went on", file=sys.stderr)'
)
OVERRIDES = 'from vqjax.trainer import settings; return settings.config(overrides=3)'
LINES = 'def get_config():\n    {}\n'


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
    for field in fields.FIELDS:
        assert f'--config.{field}=' in run.stdout, field
    assert '--config.learning_rate=0.003' in run.stdout


def test_a_run_no_longer_than_its_warm_up_still_trains():
    for num_steps in (1, 2, 12):
        optimizer = make_optimizer(0.1, num_steps, warmup_steps=12)
        params = {'w': jnp.ones(())}
        state = optimizer.init(params)
        for _ in range(num_steps):
            updates, state = optimizer.update({'w': jnp.ones(())}, state, params)
        assert abs(float(updates['w'])) <= 0.1


@pytest.mark.parametrize(
    'content, flags, text',
    [
        (LINES.format('return 1 / 0'), (), 'line 2: ZeroDivisionError: division by zero'),
        ('def get_config(:\n', (), 'line 1: invalid syntax'),
        (LINES.format('return {}'), (), 'get_config() has to return settings.config(...)'),
        (None, (), 'No such file or directory'),
        (DIGITS, ('--config.epohcs=3',), 'no such config field: epohcs'),
        (DIGITS, ('--config.features=100000000',), 'hidden/kernel of shape (100000000, 100000000)'),
        (DIGITS, ('epochs=3',), "'epochs=3' is no flag"),
        (LINES.format(OVERRIDES), (), 'overrides'),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_from_any_folder(tmp_path, content, flags, text):
    file = tmp_path / 'mine.py'
    if content is not None:
        file.write_text(content)
    run = subprocess.run(
        [
            sys.executable,
            str(ROOT / 'train.py'),
            '--config=mine.py',
            '--nocompilation_cache',
            *flags,
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 1 and run.stdout == ''
    assert run.stderr.startswith('error: ') and text in run.stderr and run.stderr.count('\n') == 1
    assert not (tmp_path / 'runs').exists()


FLAGS = """
import sys
field, methods = sys.argv[1], sys.argv[2].split(',')
sys.argv = ['train.py', *sys.argv[3:]]
import train
train.parse(sys.argv)
config = train.flags_win(train.flags.FLAGS.config.to_dict())
print([config['overrides'].get(m, {}).get(field, config[field]) for m in methods])
"""
RATE = ('learning_rate', 'none,fsq')
REMEDIES = '--config=configs/remedies.py'
GRIDS, VECTOR = '--config=configs/rates.py', '--config.bottleneck=vector'


@pytest.mark.parametrize(
    'of, given, values',
    [
        (RATE, (), [0.00223, 0.00651]),
        (RATE, ('--config.learning_rate=0.5',), [0.5, 0.5]),
        (
            RATE,
            ('--config.learning_rate=0.5', '--config.overrides.fsq.learning_rate=0.1'),
            [0.5, 0.1],
        ),
        # What a study varies is no default that a flag could replace.
        (('clip_norm', 'none,clipped_gradient'), (REMEDIES, '--config.clip_norm=2.0'), [2.0, 1.0]),
        (('bottleneck', 'fsq-8,fsq-8-grid'), (GRIDS, VECTOR), ['vector', 'grid']),
    ],
)  # fmt: skip
def test_a_flag_holds_for_every_method_unless_the_study_varies_the_field(of, given, values):
    command = [sys.executable, '-c', FLAGS, *of, *given]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.stdout.strip() == str(values), run.stderr


@pytest.mark.parametrize('command', [['train.py', '--help'], ['-c', SHOW]])
def test_a_reader_that_leaves_ends_it_quietly(command):
    run = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    run.stdout.close()
    said = run.stderr.read()
    assert run.wait(timeout=120) == 0
    assert said == ('' if command[0] == 'train.py' else 'went on\n')


def test_the_first_interrupt_saves_and_the_second_stops_at_once(capfd):
    before = signal.getsignal(signal.SIGINT)  # ignored where a shell started this in the background
    with StopRequest() as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop() and 'again to stop at once' in capfd.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
    assert signal.getsignal(signal.SIGINT) is before
