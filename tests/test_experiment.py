"""A comparison from end to end: what it leaves, that it resumes, and what it refuses."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from vqjax import data, experiment, report, settings

ROOT = pathlib.Path(__file__).parents[1]


def config(**changes):
    """A few seconds of training on digits."""
    sys.path.insert(0, str(ROOT))
    from configs import digits

    plain = digits.get_config().to_dict()
    small = {'name': 'vq_ema', 'num_codes': 16, 'decay': 0.9}
    plain |= {
        'features': 16,
        'quantizers': {'none': None, 'vq_ema': small, 'fsq': {'name': 'fsq', 'levels': (3,) * 16}},
        'methods': 'none,vq_ema',
        'seeds': 2,
        'epochs': 2,
        'batch_size': 256,
        'eval_every': 1,
        'checkpoint_every': 1,
    }
    return plain | changes


@pytest.fixture(scope='module')
def done(tmp_path_factory):
    """A finished comparison of two methods and two seeds: (folder, results)."""
    workdir = tmp_path_factory.mktemp('done') / 'run'
    return workdir, experiment.run(config(), str(workdir))


def test_results_hold_every_figure_of_every_seed(done):
    workdir, results = done
    assert json.loads((workdir / 'results.json').read_text()) == json.loads(json.dumps(results))
    assert results['schema'] == 1
    assert list(results['methods']) == ['none', 'vq_ema']
    assert results['config']['epochs'] == 2
    none, vq = results['methods'].values()
    assert none['spec'] is None
    assert none['bits'] == 32 * 16
    assert vq['spec']['name'] == 'vq_ema' and vq['bits'] == 4
    assert vq['params'] - none['params'] == 16 * 16 + 16 + 1  # sums, counts, step
    for method in (none, vq):
        assert [s['seed'] for s in method['seeds']] == [0, 1]
        assert method['seconds'] == pytest.approx(sum(s['seconds'] for s in method['seeds']))
        for name in ('accuracy', 'nll', 'brier', 'ece'):
            values = [s[name] for s in method['seeds']]
            assert method['summary'][name]['mean'] == pytest.approx(np.mean(values))
    for seed in vq['seeds']:
        counts = np.array(seed['counts'])
        assert counts.shape == (16,) and counts.sum() == 360  # every test image, once
        share = counts[counts > 0] / 360
        assert seed['perplexity'] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-5)
        assert seed['active_codes'] == (counts > 0).sum() == round(16 * seed['usage'])
    assert 'perplexity' not in none['seeds'][0]


def test_the_folder_holds_reports_logs_and_checkpoints(done):
    workdir, _ = done
    for name in ('report.md', 'accuracy.png', 'perplexity.png', 'usage.png', 'reliability.png'):
        assert (workdir / name).stat().st_size > 100, name
    for method in ('none', 'vq_ema'):
        assert list(workdir.glob(f'tensorboard/{method}/seed_1/events*'))
        assert (workdir / 'checkpoints' / method / 'seed_1' / '8').is_dir()
    records = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    seen = [r for r in records if r['split'] == 'validation' and r['method'] == 'vq_ema']
    assert [(r['seed'], r['epoch'], r['step']) for r in seen] == [
        (0, 1, 4), (0, 2, 8), (1, 1, 4), (1, 2, 8),
    ]  # fmt: skip
    wanted = (
        'loss', 'quantizer_loss', 'accuracy', 'perplexity', 'active_codes', 'max_share',
        'code_norm', 'input_norm', 'gradient_norm',
    )  # fmt: skip
    assert all(np.isfinite(r[name]) for r in seen for name in wanted)


def test_the_same_command_again_trains_nothing_and_gives_the_same(done, monkeypatch):
    workdir, results = done
    monkeypatch.setattr(data, 'train_batches', None)  # any training would fail
    assert experiment.run(config(), str(workdir)) == results


def refuse(text, workdir, **changes):
    with pytest.raises(experiment.RunError) as error:
        experiment.run(config(**changes), str(workdir))
    message = str(error.value)
    assert text in message and '\n' not in message, message


def test_another_configuration_in_the_same_folder_is_refused(done):
    workdir, _ = done
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob('*') if p.name != '.lock'}
    refuse('epochs is 2 there and 3 here; choose another --workdir', workdir, epochs=3)
    assert before == {p: p.stat().st_mtime_ns for p in workdir.rglob('*') if p.name != '.lock'}


@pytest.mark.parametrize(
    'changes, text',
    [
        ({'epoch': 3}, "unknown config field 'epoch'"),
        ({'methods': 'none,vqema'}, "unknown method 'vqema': config.quantizers has none, vq_ema"),
        ({'methods': 'none,none'}, 'named twice'),
        (
            {'quantizers': {'bad': {'name': 'fsq', 'levels': (8, 1)}}, 'methods': 'bad'},
            'quantizers.bad: levels',
        ),
        ({'quantizers': {'bad': {'name': 'vq_eme'}}, 'methods': 'bad'}, 'vq_eme'),
        ({'batch_size': 255, 'accumulate': 2}, 'batch_size 255 is not divisible by 2'),
        ({'batch_size': 5000}, '5000'),
        ({'epochs': 0}, 'epochs is 0: give at least 1'),
        ({'epochs': 2.5}, 'epochs is 2.5: give a value of type int'),
        ({'encoder': 'vit'}, "encoder is 'vit': choose one of conv, resnet18"),
        ({'learning_rate': -1.0}, 'learning_rate is -1.0'),
        ({'dataset': 'no_such_set'}, 'no_such_set'),
        ({'augment': True}, 'augment'),
        ({'quantizers': {'q': {'name': 'fsq', 'levels': (3,) * 15}}, 'methods': 'q'}, '15'),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing_behind(tmp_path, changes, text):
    refuse(text, tmp_path / 'a' / 'run', **changes)
    assert not list(tmp_path.iterdir())


def test_a_start_from_identical_vectors_is_one_line_and_leaves_nothing_behind(
    tmp_path, monkeypatch
):
    real = data.init_batch

    def blank(*args):
        return {k: np.zeros_like(v) for k, v in real(*args).items()}

    monkeypatch.setattr(data, 'init_batch', blank)
    refuse('identical', tmp_path / 'run', methods='vq_ema')
    assert not list(tmp_path.iterdir())


def test_a_loss_that_is_not_finite_ends_the_run_with_the_last_healthy_state_saved(tmp_path):
    workdir = tmp_path / 'run'
    changes = {'methods': 'none', 'seeds': 1, 'learning_rate': 1e38, 'clip_norm': 0.0}
    refuse('turned NaN or infinite first', workdir, **changes)
    (saved,) = (workdir / 'checkpoints' / 'none' / 'seed_0').glob('[0-9]*')
    assert 1 <= int(saved.name) < 8
    # The same command goes on from there and meets the same step.
    refuse(f'step {int(saved.name) + 1}: the', workdir, **changes)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / 'file').write_text('')
    refuse('choose another with --workdir', tmp_path / 'file' / 'run')
    assert [p.name for p in tmp_path.iterdir()] == ['file']


def test_a_folder_in_use_is_refused(done):
    from vqjax.workdir import Workdir

    workdir, _ = done
    held = Workdir(workdir, config())
    refuse('in use by another run', workdir)
    held.close()


def test_every_field_is_checked_by_type_and_none_is_optional():
    plain = config()
    assert plain.keys() == settings.FIELDS.keys()
    for name in plain:
        with pytest.raises(experiment.RunError, match=f"'{name}' is missing"):
            settings.check({k: v for k, v in plain.items() if k != name})


# The command itself, in processes of its own.


SMALL = (
    '--config.features=16', '--config.methods=vq_ema', '--config.seeds=1',
    '--config.quantizers.vq_ema.num_codes=16', '--config.epochs=12', '--config.batch_size=256',
    '--config.checkpoint_every=1',
)  # fmt: skip


def start(workdir, cache, *flags, devices=1):
    environment = os.environ | {
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
        'JAX_COMPILATION_CACHE_DIR': str(cache),  # compiled once for all the processes
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
        'NO_COLOR': '1',
    }
    command = [sys.executable, str(ROOT / 'train.py'), '--workdir', str(workdir), *flags]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True, cwd=ROOT)


def figures(workdir):
    methods = json.loads((workdir / 'results.json').read_text())['methods']
    return [
        {k: v for k, v in seed.items() if k != 'seconds'}
        for method in methods.values()
        for seed in method['seeds']
    ]


def test_a_run_that_was_stopped_and_killed_ends_with_the_same_figures(tmp_path):
    cache = tmp_path / 'cache'
    whole = start(tmp_path / 'whole', cache, *SMALL)
    out, problem = whole.communicate()
    assert whole.returncode == 0, problem[-2000:]
    assert 'vq_ema' in out and '\x1b' not in out + problem  # the table; no colours, no bar

    workdir = tmp_path / 'broken'
    folder = workdir / 'checkpoints' / 'vq_ema' / 'seed_0'

    def interrupt(number, step):
        """Sends a signal once a checkpoint of at least this step is there."""
        process = start(workdir, cache, *SMALL)
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline:
            done = [int(p.name) for p in folder.glob('*') if p.name.isdigit()]
            if max(done, default=0) >= step:
                process.send_signal(number)
                break
            time.sleep(0.01)
        return process.communicate()[1], process.returncode

    said, code = interrupt(signal.SIGTERM, 4)
    assert code == 128 + signal.SIGTERM and 'everything is saved' in said, said
    _, code = interrupt(signal.SIGKILL, 24)
    assert code == -signal.SIGKILL
    last = start(workdir, cache, *SMALL)
    _, problem = last.communicate()
    assert last.returncode == 0, problem[-2000:]
    assert figures(workdir) == figures(tmp_path / 'whole')


def test_two_processes_of_two_devices_train_as_one_of_four(tmp_path):
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        address = f'127.0.0.1:{probe.getsockname()[1]}'
    short = (*SMALL, '--config.epochs=2', '--config.log_every=1')
    pair = ('--coordinator_address', address, '--num_processes', '2', '--process_id')
    cache = tmp_path / 'cache'
    together = [start(tmp_path / 'two', cache, *pair, i, *short, devices=2) for i in '01']
    alone = start(tmp_path / 'one', cache, *short, devices=4)
    outputs = [process.communicate(timeout=500) for process in (*together, alone)]
    for process, (_, problem) in zip((*together, alone), outputs, strict=True):
        assert process.returncode == 0, problem[-2000:]
    assert 'vq_ema' in outputs[0][0]
    assert 'vq_ema' not in ''.join(outputs[1])  # only process 0 reports
    records = [
        [json.loads(line) for line in (tmp_path / name / 'metrics.jsonl').read_text().splitlines()]
        for name in ('two', 'one')
    ]
    assert len(records[0]) == len(records[1]) == 8 + 1
    for two, one in zip(*records, strict=True):
        for name in ('loss', 'quantizer_loss', 'accuracy', 'input_norm', 'code_norm'):
            assert two[name] == pytest.approx(one[name], rel=1e-3), (two['step'], name)
    two, one = (figures(tmp_path / name)[0] for name in ('two', 'one'))
    assert two['accuracy'] == pytest.approx(one['accuracy'], abs=2 / 360)
    assert two['nll'] == pytest.approx(one['nll'], rel=1e-2)
    assert sum(two['counts']) == sum(one['counts']) == 360


@pytest.mark.parametrize(
    'flag, text',
    [('--config.epoch=3', 'epoch'), ('--config=missing.py', 'missing.py')],
)
def test_a_mistake_on_the_command_line_is_one_line(tmp_path, flag, text):
    process = start(tmp_path / 'run', tmp_path / 'cache', flag)
    _, said = process.communicate()
    assert process.returncode != 0
    assert said.startswith('error: ') and text in said and said.count('\n') == 1, said
    assert not (tmp_path / 'run').exists()


def test_report_reads_what_was_written(done):
    assert report.table(done[1]).row_count >= 2
