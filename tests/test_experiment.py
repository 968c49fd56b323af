"""A comparison from end to end: what it leaves, that it resumes, and what it refuses."""

import gc
import json
import weakref

import numpy as np
import pytest
from support import lines, refuse, trained_steps
from support import small_config as config

from vqjax import studies
from vqjax.results import environment
from vqjax.results.records import Results, read_correct, read_counts
from vqjax.studies.comparison import report
from vqjax.trainer import errors, experiment
from vqjax.trainer.config import fields, settings
from vqjax.trainer.data import batches
from vqjax.trainer.files.workdir import Workdir
from vqjax.trainer.step.parallel import Pmap


@pytest.fixture(scope='module')
def done(tmp_path_factory):
    """A finished comparison of two methods and two seeds: (folder, results)."""
    workdir = tmp_path_factory.mktemp('done') / 'run'
    return workdir, studies.run(config(), str(workdir))


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
        counts = read_counts(seed)
        assert counts.shape == (16,) and counts.sum() == 360  # every test image, once
        share = counts[counts > 0] / 360
        assert seed['perplexity'] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-5)
        assert seed['active_codes'] == (counts > 0).sum() == round(16 * seed['usage'])
    assert 'perplexity' not in none['seeds'][0]
    # Two epochs are no training: from the first to the second the accuracy rises.
    assert results['methods']['none']['rise'] > 0.1
    for seed in none['seeds'] + vq['seeds']:
        assert 0.05 <= seed['temperature'] <= 20 and 0 <= seed['scaled_ece'] <= 1
        correct = read_correct(seed)
        assert correct.shape == (360,) and correct.mean() == pytest.approx(seed['accuracy'])


def test_the_folder_holds_reports_logs_and_checkpoints(done):
    workdir, _ = done
    for name in ('report.md', 'accuracy.png', 'perplexity.png', 'usage.png', 'reliability.png'):
        assert (workdir / name).stat().st_size > 100, name
    for method in ('none', 'vq_ema'):
        assert list(workdir.glob(f'tensorboard/{method}/seed_1/events*'))
        assert (workdir / 'checkpoints' / method / 'seed_1' / '8').is_dir()
    records = lines(workdir / 'metrics.jsonl')
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
    mine = [
        r for r in lines(workdir / 'metrics.jsonl') if (r['method'], r['seed']) == ('vq_ema', 1)
    ]
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
    monkeypatch.setattr(batches, 'train_batches', None)  # any training would fail
    assert studies.run(config(), str(workdir)) == results


SOUND = {'name': 'vq_ema', 'num_codes': 16, 'decay': 0.99, 'commitment': 1.0}
WEAK = SOUND | {'init': 'normal', 'revival': None}


def train_weak(workdir, guard, **changes):
    """(results, re-fits) of a codebook that collapses; and of others, given as quantizers."""
    quantizers = changes.pop('quantizers', {'weak': WEAK})
    given = {'quantizers': quantizers, 'methods': ','.join(quantizers), 'guard': guard}
    results = experiment.run(config(seeds=1, log_every=1, **given | changes), str(workdir))
    log = lines(workdir / 'metrics.jsonl')
    return results, [r for r in log if r.get('event') == 'refit']


def test_evaluations_record_how_often_the_guard_and_the_clipping_acted(tmp_path):
    guarded = {'name': 'guarded', 'inner': WEAK, 'least': 12.0, 'cooldown': 4}
    given = {'quantizers': {'weak': guarded}, 'epochs': 4, 'eval_every': 2, 'clip_norm': 2.0}
    _, refits = train_weak(tmp_path, False, **given)
    assert refits and {r['method'] for r in refits} == {'weak'}
    history = json.loads((tmp_path / 'finished/weak/seed_0.json').read_text())['history']
    assert history[-1]['refits'] == len(refits)
    norms = np.array([r['gradient_norm'] for r in trained_steps(tmp_path, 'weak').values()])
    clipped = (norms > 2).reshape(2, -1).mean(-1)
    assert [r['clipped'] for r in history] == pytest.approx(clipped) and 0 < clipped.sum() < 2


@pytest.mark.slow
def test_a_guard_turns_a_collapsing_run_into_a_healthy_one(tmp_path):
    """Within two points of the sound codebook, where the same run without a guard is lost."""
    given = {'epochs': 20, 'batch_size': 128, 'width': 32, 'features': 128, 'eval_every': 10}

    def accuracy(results):
        return {n: m['seeds'][0]['accuracy'] for n, m in results['methods'].items()}

    lost, refits = train_weak(tmp_path / 'lost', False, **given)
    assert accuracy(lost)['weak'] < 0.8 and not refits
    assert 'collapse' in [f['name'] for f in lost['findings']]
    both = {'weak': WEAK, 'sound': SOUND}
    kept, refits = train_weak(tmp_path / 'kept', True, quantizers=both, **given)
    found = accuracy(kept)
    assert found['weak'] > found['sound'] - 0.02 and found['sound'] > 0.9
    assert not kept['findings'] and {r['method'] for r in refits} == {'weak'}


def test_another_configuration_in_the_same_folder_is_refused(done):
    workdir, _ = done
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob('*') if p.name != '.lock'}
    refuse('epochs is 2 there and 3 here; choose another --workdir', workdir, epochs=3)
    assert before == {p: p.stat().st_mtime_ns for p in workdir.rglob('*') if p.name != '.lock'}


@pytest.mark.parametrize(
    'changes, text',
    [
        ({'epoch': 3}, "unknown config field 'epoch': did you mean epochs?"),
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
        ({'encoder': 'vit'}, "encoder is 'vit': choose one of conv, resnet9, resnet18"),
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
    real = batches.init_batch

    def blank(*args):
        return {k: np.zeros_like(v) for k, v in real(*args).items()}

    monkeypatch.setattr(batches, 'init_batch', blank)
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

    workdir, _ = done
    held = Workdir(workdir, config())
    refuse('in use by process', workdir)
    held.close()


def test_a_configuration_states_only_what_it_varies():
    given = {'quantizers': {'none': None, 'fsq': {'name': 'fsq', 'levels': [5, 5]}}, 'epochs': 3}
    checked = settings.check(given)
    assert checked.config.keys() == fields.FIELDS.keys()
    assert {k for k, v in checked.config.items() if v != fields.FIELDS[k].default} == set(given)
    assert fields.config(**given).to_dict().keys() == checked.config.keys()
    assert settings.check(fields.config(**given).to_dict()).config == checked.config
    with pytest.raises(errors.RunError, match="'epohcs': did you mean epochs"):
        fields.config(epohcs=3)


def test_report_reads_what_was_written(done):
    assert report.table(Results.read(done[1])).row_count >= 2


def test_the_command_is_told_without_folders_of_the_machine():
    argv = ['/home/me/vqjax/train.py', '--config', 'configs/mnist.py', '--workdir', '/data/run']
    argv += ['--config.data_dir=/data/tfds', '--config.methods=none,fsq', '--config.note=a b']
    assert environment.command(argv) == (
        'python train.py --config configs/mnist.py --workdir FOLDER --config.data_dir=FOLDER '
        "--config.methods=none,fsq '--config.note=a b'"
    )


def test_programs_of_methods_that_are_done_are_forgotten(tmp_path, monkeypatch):
    """Or some seventy methods would take all memory maps that a process may have."""
    kept, compile_ = [], Pmap.compile

    def compile_and_watch(form, fn, donate=False):
        kept.append(weakref.ref(fn))
        return compile_(form, fn, donate)

    monkeypatch.setattr(Pmap, 'compile', compile_and_watch)
    monkeypatch.setattr(experiment, '_METHODS_KEPT', 1)
    experiment.run(config(methods='none', seeds=1, epochs=1), str(tmp_path / 'run'))
    gc.collect()
    assert len(kept) == 2 and not any(fn() for fn in kept)
