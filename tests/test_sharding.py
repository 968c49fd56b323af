"""Quantizers under jit over sharded arrays: one device's result, and nothing of z's size travels.

In processes with 8 CPU devices (`sharded.py`), whose compiled programs are read.
"""

import json
import os
import pathlib
import re
import socket
import subprocess
import sys

import jax
import pytest
from support import run_on

from vqjax.ops import meshes, tiles

HERE = pathlib.Path(__file__).parent


def run(*parts):
    return json.loads(run_on(8, str(HERE / 'sharded.py'), *parts).splitlines()[-1])


@pytest.fixture(scope='module')
def found():
    return run('search', 'auto', 'explicit', 'explicit traces', 'refusals', 'fits')


@pytest.fixture(scope='module')
def others():
    """What takes long to compile."""
    return run(
        'auto, others',
        'explicit, others',
        'partly manual',
        'split codebooks',
        'all explicit traces',
        'guide',
    )


def test_each_device_searches_its_own_rows_among_its_own_codes(found):
    for row in found['search']['rows']:
        assert row['wrong'] == 0, row
        if 'codes' in row['case']:
            # The best score of each part, then its index: two numbers a row.
            assert [kind for kind, _ in row['collectives']] == ['all-reduce'] * 2, row
        else:
            assert row['collectives'] == [], row
        got, asked = row['spec']
        assert got.replace('None,', '') == asked, row


def test_a_mesh_that_only_in_shardings_names_is_used_too(found):
    assert found['search']['in_shardings'] == []


def test_split_features_are_gathered_once_and_no_scores_added_up(found):
    [(kind, size)] = found['search']['features']
    assert kind == 'all-gather' and size == 10_240 * 16 // 4


@pytest.mark.parametrize('axes', ['auto', 'explicit'])
def test_steps_equal_one_device_s_and_move_no_features(found, axes):
    check_steps(found[axes])
    if axes == 'auto':
        assert len(found[axes]) == 11
        assert sum(row.get('refits', 0) for row in found[axes].values()) == 1


@pytest.mark.slow
def test_steps_of_the_others_equal_one_device_s_and_move_no_features(others):
    for part in ('auto, others', 'explicit, others', 'partly manual'):
        check_steps(others[part])
    assert len(others['auto, others']) == 14


def check_steps(rows):
    for name, row in rows.items():
        wrong, worst = row['difference']
        assert wrong == 0 and worst < 1e-5, (name, row)
        assert row['moved'] == [], (name, row)
        if 'codes' in row:
            assert row['codes'].startswith("P(('data', 'model')"), (name, row)


@pytest.mark.slow
def test_a_split_codebook_stays_split_through_update(others):
    for name, row in others['split codebooks'].items():
        wrong, worst = row['difference']
        assert wrong == 0 and worst < 1e-5, (name, row)
        assert row['kept'] and row['split'] == 2 and row['moved'] == [], (name, row)


def test_one_quantizer_of_each_kind_traces_over_explicit_axes(found):
    assert found['explicit traces'] == {}


@pytest.mark.slow
def test_the_contract_table_traces_over_explicit_axes(others):
    assert others['all explicit traces'] == {}


@pytest.mark.parametrize(
    'case, parts',
    [
        ('codes', ['num_codes=10', 'no multiple of 4', "'model'", 'axis=None']),
        ('axis', ["axis='modle'", "('data', 'model')"]),
        ('mesh', ['data=3 x model=2', '8 devices', 'data=None']),
        ('axis_name', ["axis_name='batch'", 'shard_map', 'None']),
        ('two meshes', ['meshes of 4 and 8 devices', 'device_put']),
    ],
)
def test_bad_input_is_told_the_value_and_the_remedy(found, case, parts):
    message = found['refusals'][case]
    assert all(part in message for part in parts), message
    assert '\n' not in message


@pytest.mark.slow
def test_the_guide_s_programs_run_on_eight_devices(others):
    assert others['guide'] == 4


@pytest.mark.slow
def test_the_guide_s_program_for_several_hosts_runs_in_two_processes(tmp_path):
    page = (HERE.parent / 'docs' / 'parallel.md').read_text()
    [program] = re.findall(r'^```py\n(.*?)^```', page, re.MULTILINE | re.DOTALL)
    assert len(program.splitlines()) <= 25
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    assert 'localhost:12345' in program
    script = tmp_path / 'program.py'
    script.write_text(program.replace('12345', str(port)))
    env = {
        **os.environ,
        'XLA_FLAGS': '--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0',
        'JAX_PLATFORMS': 'cpu',
        'PYTHONPATH': str(HERE.parent),
    }
    hosts = [
        subprocess.Popen(
            [sys.executable, str(script), str(i)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    try:
        said = [host.communicate(timeout=600) for host in hosts]
    finally:
        for host in hosts:
            host.kill()
    assert all(host.returncode == 0 for host in hosts), said
    first, second = [out.splitlines()[-1] for out, _ in said]
    assert first == second and first.startswith('16384 vectors, loss '), said


def test_lanes_are_whole_parts_of_every_split(monkeypatch):
    """A device holds whole lanes however many of the mesh's axes the rows are split over."""
    monkeypatch.setattr(tiles, 'mesh_size', lambda *_: 24)
    for split in (2, 3, 4, 6, 8, 12, 24):
        for each in (1, 5, 100):
            lanes, whole = tiles.row_lanes(split * each)
            assert lanes % split == 0 and split * each % lanes == 0 and whole == lanes
    # Codes: the same, but a lane too short to be searched alone is none.
    assert tiles.code_lanes(24 * 128) == 24
    assert tiles.code_lanes(24 * 127) == 12
    assert tiles.code_lanes(100) == 1


def test_on_one_device_there_is_one_lane():
    z = jax.numpy.ones((64, 4))
    assert meshes.mesh_size(z) is None
    assert tiles.row_lanes(64, z) == (jax.device_count(), 1)


def test_a_codec_fitted_on_a_mesh_is_that_of_one_device(found):
    for differ, one, many, steps in found['fits']:
        assert differ == 0 and steps == 3
        assert many == pytest.approx(one, rel=1e-5)
