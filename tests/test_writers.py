"""Writers of a run's numbers: wandb through a module that stands in for it, and none by default."""

import sys
import types

import numpy as np
import pytest
from support import small_config

from vqjax.trainer import experiment
from vqjax.trainer.errors import RunError
from vqjax.trainer.files.recorder import Recorder
from vqjax.trainer.files.writers import TensorBoard, Wandb, bars, open_writers


class FakeRun:
    """What wandb.init returns, as far as it is used."""

    def __init__(self, arguments):
        self.arguments, self.logged, self.finished = arguments, [], 0

    def log(self, numbers, step):
        self.logged.append((step, numbers))

    def finish(self):
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch):
    """The stand-in for the module; `wandb.runs` holds its runs."""
    module = types.ModuleType('wandb')
    module.runs = []
    module.init = lambda **arguments: module.runs.append(FakeRun(arguments)) or module.runs[-1]
    module.Histogram = lambda np_histogram: np_histogram
    monkeypatch.setitem(sys.modules, 'wandb', module)
    return module


def test_a_run_tells_wandb_what_it_tells_tensorboard(tmp_path, wandb, monkeypatch):
    told = []
    monkeypatch.setattr(TensorBoard, 'scalars', lambda self, *given: told.append(given))
    given = {'methods': 'vq_ema', 'seeds': 1, 'epochs': 1, 'log_every': 2}
    config = small_config(writers='tensorboard,wandb', **given)
    experiment.run(config, str(tmp_path / 'run'))
    (run,) = wandb.runs
    assert run.finished == 1
    scalars = [(step, n) for step, n in run.logged if 'codes/stage_0' not in n]
    assert scalars == told
    assert [(step, min(n).split('/')[0]) for step, n in scalars] == [
        (2, 'train'), (4, 'train'), (4, 'validation'),
    ]  # fmt: skip
    ((step, uses),) = [(step, n) for step, n in run.logged if 'codes/stage_0' in n]
    counts, edges = uses['codes/stage_0']
    assert step == 4 and counts.sum() == 360 and len(edges) == len(counts) + 1 == 17
    assert run.arguments['config']['epochs'] == 1 and run.arguments['group'] == 'run'
    # Where they go is no part of what is computed: the finished run is taken as it is.
    experiment.run(small_config(writers='', **given), str(tmp_path / 'run'))


def test_a_resumed_run_is_the_same_run_there(tmp_path, wandb):
    for folder, method, seed in [('a', 'x', 0), ('a', 'x', 0), ('a', 'x', 1), ('b', 'x', 0)]:
        Wandb(tmp_path / folder, method, seed, {})
    names = [run.arguments['id'] for run in wandb.runs]
    assert names[0] == names[1] and len(set(names)) == 3
    assert all(run.arguments['resume'] == 'allow' for run in wandb.runs)


def test_without_it_the_install_line_is_said_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)  # importing it fails
    with pytest.raises(RunError, match=r"not installed: pip install 'vqjax\[wandb\]'"):
        experiment.run(small_config(writers='wandb'), str(tmp_path / 'run'))
    assert not (tmp_path / 'run').exists()
    assert open_writers('', tmp_path, 'x', 0, 0, {}) == []


def test_what_wandb_refuses_is_one_sentence(tmp_path, wandb):
    def refuse(**_):
        raise TypeError('api_key not configured\nmore')

    wandb.init = refuse
    with pytest.raises(RunError, match=r'wandb does not start \(api_key not configured\)'):
        Wandb(tmp_path, 'x', 0, {})


def test_many_codes_are_shown_in_few_bars():
    counts = np.arange(1000)
    uses, edges = bars(counts)
    assert len(uses) == 256 and uses.sum() == counts.sum() and edges[-1] == 1000


def test_all_parts_are_closed_though_one_cannot_be(tmp_path):
    class Full:
        def close(self):
            raise OSError(28, 'No space left on device')

    writer = FakeRun({})
    writer.close = writer.finish
    recorder = Recorder.open(tmp_path, 'x', 0, 0, writers=[writer, Full(), writer])
    with pytest.raises(OSError):
        recorder.close()
    assert writer.finished == 2 and recorder._metrics.closed
