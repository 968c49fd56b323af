"""The compilation cache of train.py: which folder, how large, and that another process reads it."""

import os
import pathlib
import subprocess
import sys

import pytest

from vqjax.trainer.run import compilation

PROGRAM = """
import jax, jax.monitoring
from vqjax.trainer.run import compilation
counted = []
jax.monitoring.register_event_listener(lambda event, **_: counted.append(event))
compilation.cache_programs()
double = jax.pmap(lambda x: 2 * x)
assert double(jax.numpy.ones((1, 3)))[0, 0] == 2
print(sum(event.endswith('cache_hits') for event in counted))
"""


def hits(**environ):
    """How many programs a process read from the cache; None takes a variable away."""
    whole = {k: v for k, v in os.environ.items() if not k.startswith('JAX_')}
    whole |= {k: str(v) for k, v in environ.items()}
    done = subprocess.run([sys.executable, '-c', PROGRAM], env=whole, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return int(done.stdout)


def programs(folder):
    return sorted(path.name for path in folder.rglob('*-cache'))


def test_a_second_process_reads_what_the_first_compiled(tmp_path):
    assert hits(XDG_CACHE_HOME=tmp_path) == 0
    kept = programs(tmp_path / 'vqjax' / 'programs')
    assert any('lambda' in name for name in kept), kept
    assert hits(XDG_CACHE_HOME=tmp_path) == len(kept)
    assert programs(tmp_path) == kept


def test_the_folder_of_the_environment_goes_before_the_default(tmp_path):
    own = tmp_path / 'own'
    hits(XDG_CACHE_HOME=tmp_path / 'xdg', JAX_COMPILATION_CACHE_DIR=own)
    assert programs(own) and not (tmp_path / 'xdg').exists()


def test_a_folder_that_cannot_be_made_means_no_cache(tmp_path):
    (tmp_path / 'file').write_text('')
    assert hits(XDG_CACHE_HOME=tmp_path / 'file') == 0


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
