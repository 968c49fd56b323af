"""The compilation cache of train.py: which folder, how large, and that another process reads it."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from vqjax.trainer.run import compilation

PROGRAM = """
import jax, numpy as np
from vqjax.trainer.run import compilation
counted = []
jax.monitoring.register_event_listener(lambda event, **_: counted.append(event))
compilation.cache_programs()
assert np.asarray(jax.pmap(lambda x: 2 * x)(np.ones((1, 3), np.float32)))[0, 0] == 2
print(sum(event.endswith('cache_hits') for event in counted))
"""


def test_a_second_process_reads_the_program_of_the_first(tmp_path):
    environ = {k: v for k, v in os.environ.items() if not k.startswith('JAX_')}
    environ |= {'XDG_CACHE_HOME': str(tmp_path), 'JAX_PLATFORMS': 'cpu'}
    for hits in ('0', '1'):
        command = [sys.executable, '-c', PROGRAM]
        run = subprocess.run(command, env=environ, capture_output=True, text=True)
        assert run.returncode == 0 and run.stdout.strip() == hits, run.stderr
        assert len(list((tmp_path / 'vqjax' / 'programs').glob('*-cache'))) == 1


@pytest.fixture
def configured(monkeypatch):
    """What is set of JAX's configuration, which stays as it is."""
    found = {}
    monkeypatch.setattr(jax.config, 'update', found.__setitem__)
    for name in os.environ:
        if name.startswith('JAX_'):
            monkeypatch.delenv(name)
    return found


FOLDER, SECONDS = 'jax_compilation_cache_dir', 'jax_persistent_cache_min_compile_time_secs'


def test_what_the_environment_sets_is_left_to_it(tmp_path, monkeypatch, configured):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'xdg'))
    monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path / 'own'))
    compilation.cache_programs()
    assert configured == {SECONDS: 0.0} and not (tmp_path / 'xdg').exists()
    monkeypatch.setenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '2')
    monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
    configured.clear()
    compilation.cache_programs()
    assert configured == {FOLDER: str(tmp_path / 'xdg' / 'vqjax' / 'programs')}


def test_a_folder_that_cannot_be_written_means_no_cache(tmp_path, monkeypatch, configured):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    compilation.cache_programs()
    assert configured == {}


@pytest.mark.parametrize(
    'value, expected', [('/caches', '/caches'), ('', None), ('relative', None)]
)
def test_the_default_folder_follows_the_xdg_specification(monkeypatch, value, expected):
    monkeypatch.setenv('XDG_CACHE_HOME', value)
    root = pathlib.Path(expected or pathlib.Path.home() / '.cache')
    assert compilation.default_folder() == root / 'vqjax' / 'programs'


def test_the_programs_not_read_for_longest_go_first(tmp_path):
    for age, name in enumerate(('new', 'middle', 'old')):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (10_000 - age, 10_000 - age))
    compilation.trim(tmp_path, 250)
    assert {path.name for path in tmp_path.iterdir()} == {'new', 'middle'}
    compilation.trim(tmp_path, 250)
    assert len(list(tmp_path.iterdir())) == 2
