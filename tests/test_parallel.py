"""The trainer under pmap, and under jit over a mesh: one result, whatever the form."""

import json
import sys

import jax
import numpy as np
import pytest
from support import ROOT, run_on

from vqjax.trainer import errors, experiment
from vqjax.trainer.step.parallel import Jit, Pmap

# One process of 8 devices trains the forms: digits, 20 steps, every one of them told. Under jit
# with rows split, where that is asked for, a copy of the run under pmap goes on from its
# checkpoint of step 8.
PROGRAM = """
import pathlib, shutil, sys
from vqjax.trainer import experiment
from configs import base

workdir = pathlib.Path(sys.argv[1])
quantizers = {
    'rvq': {'name': 'residual', 'num_stages': 2, 'inner': {'name': 'vq_ema', 'num_codes': 32}},
    'vq': {'name': 'vq', 'num_codes': 64},
    'sim_vq': {'name': 'sim_vq', 'num_codes': 32},
    'lfq': {'name': 'projected', 'dim': 4, 'inner': {'name': 'lfq', 'num_bits': 4}},
    'two': {'name': 'vq_ema', 'num_codes': 32},
    'slow_two': {'name': 'vq_ema', 'num_codes': 32},
    'scales': {'name': 'multi_scale', 'scales': (1, 2), 'phi': (0.5,),
               'inner': {'name': 'vq_ema', 'num_codes': 16}},
}
config = base.get_config().to_dict() | {
    'seeds': 1, 'methods': sys.argv[2], 'width': 8, 'features': 16, 'epochs': 5, 'batch_size': 256,
    'log_every': 1, 'eval_every': 5.0, 'checkpoint_every': 2, 'keep_checkpoints': 9,
    'quantizers': quantizers, 'overrides': {
        'rvq': {'accumulate': 2}, 'two': {'bottleneck': 'two_level'},
        'slow_two': {'bottleneck': 'two_level', 'learning_rate': 1e-5},
        'scales': {'bottleneck': 'grid'},
    },
}
if not (workdir / 'pmap').exists():
    experiment.run(config, str(workdir / 'pmap'))
if 'codes' in sys.argv:
    experiment.run(config | {'parallel': 'jit', 'mesh_shape': (2, -1)}, str(workdir / 'codes'))
if 'rows' in sys.argv:
    shutil.copytree(workdir / 'pmap', workdir / 'rows')
    shutil.rmtree(workdir / 'rows' / 'finished')
    for step in workdir.glob('rows/checkpoints/*/seed_0/[0-9]*'):
        if int(step.name) > 8:
            shutil.rmtree(step)
    experiment.run(config | {'parallel': 'jit'}, str(workdir / 'rows'))
"""


def train(workdir, methods, *forms):
    """Runs the program; the folder has one run a form."""
    run_on(8, '-c', PROGRAM, str(workdir), methods, *forms)
    return workdir


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """The folder of a run under pmap and one under jit with codes split."""
    return train(tmp_path_factory.mktemp('forms'), 'rvq', 'codes')


@pytest.fixture(scope='module')
def gone_on(trained):
    """The same folder, with a run under jit that goes on from a checkpoint of pmap."""
    return train(trained, 'rvq', 'rows')


def records(folder, split='train'):
    """{(method, step): record} of metrics.jsonl, the latest where a step was taken twice."""
    lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    return {(r['method'], r['step']): r for r in lines if r.get('split') == split}


def same_steps(expected, found, num_steps, **until):
    """Every number of every step to 1e-5; of a method named here those of its first steps."""
    assert found.keys() == expected.keys() and len(found) == num_steps
    for at, record in expected.items():
        for name, value in record.items():
            if isinstance(value, float) and at[1] <= until.get(at[0], at[1]):
                assert found[at][name] == pytest.approx(value, rel=1e-5, abs=1e-5), (at, name)


def test_jit_with_codes_split_equals_pmap_at_every_step(trained):
    same_steps(records(trained / 'pmap'), records(trained / 'codes'), 20)


@pytest.mark.slow
def test_a_checkpoint_of_pmap_goes_on_under_jit_as_under_pmap(gone_on):
    lines = (gone_on / 'rows' / 'metrics.jsonl').read_text().splitlines()
    resumed = [json.loads(line)['step'] for line in lines if '"resume"' in line]
    assert resumed == [8]
    same_steps(records(gone_on / 'pmap'), records(gone_on / 'rows'), 20)


@pytest.mark.parametrize(
    'folder, form',
    [('trained', 'codes'), pytest.param('gone_on', 'rows', marks=pytest.mark.slow)],
)
def test_what_is_reported_of_the_test_split_is_the_same(request, folder, form):
    folder = request.getfixturevalue(folder)
    expected, found = (
        json.loads((folder / name / 'results.json').read_text())['methods']['rvq']
        for name in ('pmap', form)
    )
    (a,), (b,) = expected['seeds'], found['seeds']
    assert expected['params'] == found['params']
    assert a['accuracy'] == b['accuracy'] and a['counts'] == b['counts']
    figures = {name: x for name, x in a.items() if isinstance(x, float) and name != 'seconds'}
    assert {'nll', 'quantizer_loss', 'input_norm', 'quantization_error'} <= figures.keys()
    assert {name: b[name] for name in figures} == pytest.approx(figures, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(
    'folder, form',
    [('trained', 'codes'), pytest.param('gone_on', 'rows', marks=pytest.mark.slow)],
)
def test_evaluations_tell_the_same_however_the_rows_of_a_last_batch_fall(request, folder, form):
    trained = request.getfixturevalue(folder)
    # 360 images in batches of 256 over 8 devices: the last batch fills three of them and a part.
    expected, found = (records(trained / name, 'validation') for name in ('pmap', form))
    assert len(expected) == len(found) > 0
    for at, record in expected.items():
        figures = {name: x for name, x in record.items() if isinstance(x, float)}
        assert 'quantizer_loss' in figures
        there = {name: found[at][name] for name in figures}
        assert there == pytest.approx(figures, rel=1e-5, abs=1e-6), at


@pytest.fixture(scope='module')
def others(tmp_path_factory):
    """The folder of runs of other quantizers, one a form."""
    methods = 'vq,sim_vq,lfq,two,slow_two,scales'
    return train(tmp_path_factory.mktemp('others'), methods, 'codes', 'rows')


@pytest.mark.slow
@pytest.mark.parametrize(
    'method',
    [
        'vq',
        'sim_vq',
        pytest.param(
            'lfq',
            marks=pytest.mark.xfail(
                reason='its softmax at a temperature of 1 / 100 magnifies rounding: on some '
                'processors gradient norms differ by 2e-5 at step 3, by 3e-4 at step 11',
                strict=False,
            ),
        ),
        'two',
        'slow_two',
        'scales',
    ],
)
def test_other_quantizers_train_alike_under_every_form(others, method):
    # Two levels are chaotic: a vector between two codes of the top takes either by the last bit,
    # and the bottom goes another way. From step 9 on pmap on 4 devices differs from pmap on 8 as
    # much as jit does (1e-3 to 1e-2); hardly moved, all forms agree in all of the 20 steps.
    told = {
        form: {at: r for at, r in records(others / form).items() if at[0] == method}
        for form in ('pmap', 'rows', 'codes')
    }
    for form in ('rows', 'codes'):
        same_steps(told['pmap'], told[form], 20, two=8)


def test_reading_what_was_placed_gives_it_back():
    tree = {'a': np.arange(6.0).reshape(2, 3), 'b': np.int32(4)}
    placed = Pmap().place(tree, None)
    assert all(x.shape[0] == jax.device_count() for x in jax.tree.leaves(placed))
    back = Pmap().read(placed)
    assert all(np.array_equal(back[name], tree[name]) for name in tree)


@pytest.mark.parametrize('shape', [(3, 5), (-1, 7), (0, 1)])
def test_a_mesh_that_does_not_match_the_devices_is_refused(shape):
    with pytest.raises(ValueError, match='devices'):
        Jit(shape)


@pytest.mark.parametrize(
    'fields, message',
    [
        ({'parallel': 'xmap'}, "parallel is 'xmap': choose one of pmap, jit"),
        ({'parallel': 'jit', 'mesh_shape': (3, 1)}, 'does not match the'),
        ({'parallel': 'jit', 'mesh_shape': (1, 2, 3)}, 'mesh_shape is (1, 2, 3)'),
        ({'overrides': {'fsq': {'parallel': 'jit'}}}, "unknown field of overrides.fsq 'parallel'"),
    ],
)
def test_bad_forms_are_one_line_and_leave_nothing_behind(tmp_path, fields, message):
    sys.path.insert(0, str(ROOT))
    from configs import base

    with pytest.raises(errors.RunError) as error:
        experiment.run(base.get_config().to_dict() | fields, str(tmp_path / 'run'))
    assert message in str(error.value) and '\n' not in str(error.value)
    assert not list(tmp_path.iterdir())
