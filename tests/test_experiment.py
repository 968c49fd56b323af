"""A comparison from end to end: what it leaves, that it resumes, and what it refuses."""

import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from vqjax.studies import report
from vqjax.trainer import data, experiment, settings

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


def test_tensorboard_holds_every_scalar_and_the_use_of_every_code(done):
    from tensorboardX.proto.event_pb2 import Event

    workdir, results = done
    (path,) = workdir.glob('tensorboard/vq_ema/seed_1/events*')
    data, scalars, uses = path.read_bytes(), {}, []
    # A TFRecord: length uint64, its checksum, the message, its checksum.
    while data:
        size = int.from_bytes(data[:8], 'little')
        event = Event.FromString(data[12 : 12 + size])
        data = data[16 + size :]
        for value in event.summary.value:
            if value.HasField('histo'):
                uses.append((event.step, value.tag, list(value.histo.bucket)))
            else:
                scalars[value.tag, event.step] = value.simple_value
    lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    mine = [r for r in lines if (r['method'], r['seed']) == ('vq_ema', 1)]
    for record in mine:
        for name in record.keys() - {'method', 'seed', 'split', 'step'}:
            found = scalars.pop((f'{record["split"]}/{name}', record['step']), None)
            if np.ndim(record[name]) == 0:
                assert found == pytest.approx(record[name], rel=1e-6), name
    assert {tag for tag, _ in scalars} == {'validation/step'}  # the axis itself
    assert [(step, tag) for step, tag, _ in uses] == [(4, 'codes/stage_0'), (8, 'codes/stage_0')]
    seen = [r for r in mine if r['split'] == 'validation']
    for (_, _, bars), record in zip(uses, seen, strict=True):
        assert len(bars) == 16 and sum(bars) == record['tokens']
        assert sum(bar > 0 for bar in bars) == record['active_codes']
        assert record['revived'] >= 0


def test_the_same_command_again_trains_nothing_and_gives_the_same(done, monkeypatch):
    workdir, results = done
    monkeypatch.setattr(data, 'train_batches', None)  # any training would fail
    assert experiment.run(config(), str(workdir)) == results


def refuse(text, workdir, **changes):
    with pytest.raises(experiment.RunError) as error:
        experiment.run(config(**changes), str(workdir))
    message = str(error.value)
    assert text in message and '\n' not in message, message


def test_a_guard_turns_a_collapsing_run_into_a_healthy_one(tmp_path):
    """Within two points of the sound codebook, where the same run without a guard is lost."""
    sound = {'name': 'vq_ema', 'num_codes': 16, 'decay': 0.99, 'commitment': 1.0}
    weak = sound | {'init': 'normal', 'revival': None}
    given = {'seeds': 1, 'epochs': 20, 'batch_size': 128, 'features': 128, 'eval_every': 10}

    def train(name, guard, **quantizers):
        chosen = {'quantizers': quantizers, 'methods': ','.join(quantizers), 'guard': guard}
        results = experiment.run(config(**given | chosen), str(tmp_path / name))
        log = (tmp_path / name / 'metrics.jsonl').read_text().splitlines()
        refits = [r for r in map(json.loads, log) if r.get('event') == 'refit']
        accuracy = {n: m['seeds'][0]['accuracy'] for n, m in results['methods'].items()}
        return accuracy, [f['name'] for f in results['findings']], refits

    lost, found, refits = train('lost', False, weak=weak)
    assert lost['weak'] < 0.8 and 'collapse' in found and not refits
    kept, found, refits = train('kept', True, weak=weak, sound=sound)
    assert kept['weak'] > kept['sound'] - 0.02 and kept['sound'] > 0.9
    assert not found and {r['method'] for r in refits} == {'weak'}


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
    from vqjax.trainer.workdir import Workdir

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
    said, code = interrupt(start(workdir, cache, *SMALL), folder, 4, signal.SIGTERM)
    assert code == 128 + signal.SIGTERM and 'everything is saved' in said, said
    # At random moments: while a checkpoint is written, between two, or before the first step.
    rng = random.Random()
    moments = [(step, rng.uniform(0, 0.5)) for step in sorted(rng.sample(range(8, 40), 3))]
    for step, delay in moments:
        _, code = interrupt(start(workdir, cache, *SMALL), folder, step, signal.SIGKILL, delay)
        assert code in (-signal.SIGKILL, 0), moments  # 0: it had ended before
    last = start(workdir, cache, *SMALL)
    _, problem = last.communicate()
    assert last.returncode == 0, (moments, problem[-2000:])
    assert figures(workdir) == figures(tmp_path / 'whole'), moments


def interrupt(process, folder, step, number, delay=0.0):
    """Signals `delay` seconds after a checkpoint of at least `step` is there: (stderr, code)."""
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        done = [int(p.name) for p in folder.glob('*') if p.name.isdigit()]
        if max(done, default=0) >= step:
            time.sleep(delay)
            process.send_signal(number)
            break
        time.sleep(0.01)
    return process.communicate()[1], process.returncode


def test_two_processes_of_two_devices_train_as_one_of_four(tmp_path):
    """20 steps, one SIGTERM to the process that writes nothing, and one resumption."""
    short = (*SMALL, '--config.epochs=5', '--config.log_every=1')
    cache = tmp_path / 'cache'

    def together():
        with socket.socket() as probe:
            probe.bind(('127.0.0.1', 0))
            address = f'127.0.0.1:{probe.getsockname()[1]}'
        pair = ('--coordinator_address', address, '--num_processes', '2', '--process_id')
        return [start(tmp_path / 'two', cache, *pair, i, *short, devices=2) for i in '01']

    writer, other = together()
    folder = tmp_path / 'two' / 'checkpoints' / 'vq_ema' / 'seed_0'
    said = [interrupt(other, folder, 4, signal.SIGTERM), (writer.communicate()[1], writer.wait())]
    assert [code for _, code in said] == [128 + signal.SIGTERM] * 2, said
    assert 'everything is saved' in said[1][0]
    resumed = together()
    alone = start(tmp_path / 'one', cache, *short, devices=4)
    outputs = [process.communicate(timeout=500) for process in (*resumed, alone)]
    for process, (_, problem) in zip((*resumed, alone), outputs, strict=True):
        assert process.returncode == 0, problem[-2000:]
    assert 'vq_ema' in outputs[0][0]
    assert 'vq_ema' not in ''.join(outputs[1])  # only process 0 reports
    two, one = (trained_steps(tmp_path / name) for name in ('two', 'one'))
    assert two.keys() == one.keys() == set(range(1, 21))
    for step in one:
        for name in ('loss', 'quantizer_loss', 'accuracy', 'input_norm', 'code_norm'):
            assert two[step][name] == pytest.approx(one[step][name], rel=1e-5), (step, name)
    two, one = (figures(tmp_path / name)[0] for name in ('two', 'one'))
    assert two['counts'] == one['counts'] and two['accuracy'] == one['accuracy']
    assert two['nll'] == pytest.approx(one['nll'], rel=1e-5)


def trained_steps(workdir):
    """Training records by step; of a step taken again after a resumption the last."""
    lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    return {r['step']: r for r in lines if r.get('split') == 'train'}


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
