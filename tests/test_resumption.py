"""The command in processes of its own: stopped, killed, on several hosts, mistyped."""

import random
import signal
import socket
import time

import pytest
from support import command, figures, start, trained_steps

SMALL = (
    '--config.features=16', '--config.methods=vq_ema', '--config.seeds=1', '--config.width=8',
    '--config.quantizers.vq_ema.num_codes=16', '--config.epochs=4', '--config.batch_size=256',
    '--config.checkpoint_every=1', '--config.folds=0',
)  # fmt: skip


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """The folder of the run that nothing stopped."""
    workdir = tmp_path_factory.mktemp('whole')
    said = command('--workdir', str(workdir), *SMALL)
    assert said.code == 0, said.err
    assert (
        'vq_ema' in said.out and '\x1b' not in said.out + said.err
    )  # the table; no colours or bar
    return workdir


def test_a_run_that_was_stopped_ends_with_the_same_figures(whole, tmp_path):
    stopped = start(tmp_path, *SMALL, sigterm_at=4)
    said = stopped.communicate()[1]
    assert stopped.returncode == 128 + signal.SIGTERM and 'everything is saved' in said, said
    assert figures(whole) and not (tmp_path / 'results.json').exists()
    last = command('--workdir', str(tmp_path), *SMALL)
    assert last.code == 0, last.err
    assert figures(tmp_path) == figures(whole)


@pytest.mark.slow
def test_a_run_that_was_killed_ends_with_the_same_figures(whole, tmp_path):
    folder = tmp_path / 'checkpoints' / 'vq_ema' / 'seed_0'
    # At random moments: while a checkpoint is written, between two, or before the first step.
    rng = random.Random()
    moments = [(step, rng.uniform(0, 0.5)) for step in sorted(rng.sample(range(12), 3))]
    for step, delay in moments:
        code = kill(start(tmp_path, *SMALL), folder, step, delay)
        assert code in (-signal.SIGKILL, 0), moments  # 0: it had ended before
    last = command('--workdir', str(tmp_path), *SMALL)
    assert last.code == 0, (moments, last.err)
    assert figures(tmp_path) == figures(whole), moments


def kill(process, folder, step, delay):
    """Kills `delay` seconds after a checkpoint of at least `step` is there: the exit code."""
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        done = [int(p.name) for p in folder.glob('*') if p.name.isdigit()]
        if max(done, default=0) >= step:
            time.sleep(delay)
            process.kill()
            break
        time.sleep(0.01)
    process.communicate()
    return process.returncode


@pytest.mark.slow
def test_two_processes_of_two_devices_train_as_one_of_four(tmp_path):
    """16 steps, one SIGTERM to the process that writes nothing; they go on under jit."""
    # Slow to learn, so that rounding stays rounding.
    rate = '--config.learning_rate=1e-4'
    short = (*SMALL, '--config.log_every=1', rate)

    def together(*flags, sigterm_at=None):
        with socket.socket() as probe:
            probe.bind(('127.0.0.1', 0))
            address = f'127.0.0.1:{probe.getsockname()[1]}'
        pair = ('--coordinator_address', address, '--num_processes', '2', '--process_id')
        given = (*short, *flags)
        asked = {'0': None, '1': sigterm_at}
        return [
            start(tmp_path / 'two', *pair, i, *given, devices=2, sigterm_at=step)
            for i, step in asked.items()
        ]

    stopped = together(sigterm_at=4)
    said = [process.communicate()[1] for process in stopped]
    assert [process.returncode for process in stopped] == [128 + signal.SIGTERM] * 2, said
    assert 'everything is saved' in said[0]
    resumed = together('--config.parallel=jit')
    alone = start(tmp_path / 'one', *short, devices=4)
    outputs = [process.communicate(timeout=500) for process in (*resumed, alone)]
    for process, (_, problem) in zip((*resumed, alone), outputs, strict=True):
        assert process.returncode == 0, problem[-2000:]
    assert 'vq_ema' in outputs[0][0]
    assert 'vq_ema' not in ''.join(outputs[1])  # only process 0 reports
    two, one = (trained_steps(tmp_path / name) for name in ('two', 'one'))
    assert two.keys() == one.keys() == set(range(1, 17))
    for step in one:
        for name in ('loss', 'quantizer_loss', 'accuracy', 'input_norm', 'code_norm'):
            assert two[step][name] == pytest.approx(one[step][name], rel=1e-5), (step, name)
    two, one = (figures(tmp_path / name)[0] for name in ('two', 'one'))
    assert two['counts'] == one['counts'] and two['accuracy'] == one['accuracy']
    assert two['nll'] == pytest.approx(one['nll'], rel=1e-5)


@pytest.mark.parametrize(
    'flag, text',
    [('--config.epoch=3', 'epoch'), ('--config=missing.py', 'missing.py')],
)
def test_a_mistake_on_the_command_line_is_one_line(tmp_path, flag, text):
    said = command('--workdir', str(tmp_path / 'run'), flag)
    assert said.code != 0
    assert said.err.startswith('error: ') and text in said.err and said.err.count('\n') == 1, said
    assert not (tmp_path / 'run').exists()
