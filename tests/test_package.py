"""The package as strangers get it: what importing it needs, what a wheel holds."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import vqjax

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']


def run(*command, **kwargs):
    done = subprocess.run(command, capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_needs_the_base_dependencies_only():
    # Every package of the extras is made impossible to import (flax itself brings in orbax).
    extras = {
        "tensorflow_datasets", "tensorflow", "array_record", "grain", "ml_collections", "sklearn",
        "matplotlib", "tensorboardX", "faiss", "torch", "huggingface_hub", "hmmlearn",
        "ruptures",
    }  # fmt: skip
    code = f'import sys; sys.modules.update(dict.fromkeys({extras})); import vqjax; vqjax.VQEMA(8)'
    run(sys.executable, '-c', code)


def test_there_is_one_version():
    assert PROJECT['dynamic'] == ['version'] and 'version' not in PROJECT
    holders = [ROOT / 'pyproject.toml', *ROOT.glob('vqjax/**/*.py')]
    assert [p.name for p in holders if f"'{vqjax.__version__}'" in p.read_text()] == ['__init__.py']
    assert f'version: {vqjax.__version__}\n' in (ROOT / 'CITATION.cff').read_text()


def test_the_changelog_names_the_version_and_a_release_refuses_what_does_not_fit():
    newest = re.search(r'^## (\S+) \(', (ROOT / 'CHANGELOG.md').read_text(), re.MULTILINE)
    assert newest[1] == vqjax.__version__

    def notes(tag):
        command = [sys.executable, str(ROOT / 'docs' / 'release_notes.py'), tag]
        return subprocess.run(command, capture_output=True, text=True)

    assert 'is not v' in notes('v99.0.0').stderr
    done = notes(f'v{vqjax.__version__}')
    # Until its day is known there are no notes, and a sentence instead.
    assert done.stdout.startswith('- ') or 'write the day of the release' in done.stderr


def test_the_project_s_address_stands_in_one_place():
    (address,) = PROJECT['urls'].values()
    host = address.split('/')[2]
    texts = [p for p in ROOT.rglob('*.md') if '.venv' not in p.parts] + [ROOT / 'mkdocs.yml']
    assert not [p for p in texts if host in p.read_text()]


def test_types_are_announced():
    assert (ROOT / 'vqjax' / 'py.typed').is_file()


def test_the_extra_test_includes_train():
    assert 'vqjax[train]' in PROJECT['optional-dependencies']['test']


@pytest.mark.slow
@pytest.mark.parametrize('name', ['python3.11', 'python3.12', 'python3.13'])
def test_the_wheel_works_in_a_bare_environment(name, tmp_path):
    interpreter = shutil.which(name)
    if interpreter is None or subprocess.run([interpreter, '-V'], capture_output=True).returncode:
        pytest.skip(f'{name} is not on this machine')
    run(sys.executable, '-m', 'pip', 'wheel', '--no-deps', '-w', str(tmp_path), str(ROOT))
    (wheel,) = tmp_path.glob('*.whl')
    names = zipfile.ZipFile(wheel).namelist()
    assert all(name.split('/')[0] in ('vqjax', f'{wheel.stem[:11]}.dist-info') for name in names)
    assert 'vqjax/py.typed' in names
    run(interpreter, '-m', 'venv', str(tmp_path / 'venv'))
    python = str(tmp_path / 'venv' / 'bin' / 'python')
    run(python, '-m', 'pip', 'install', '--quiet', str(wheel))
    code = """
import jax, vqjax
z = jax.random.normal(jax.random.key(0), (256, 8))
q = vqjax.VQEMA(num_codes=16)
params, state = q.init(jax.random.key(1), z)
out = q.quantize(params, state, z)
assert (q.decode(params, state, out.codes) == out.z_q).all()
print(vqjax.__version__)
"""
    # Another Python may bring another JAX, which may not know the suite's compiler flags.
    env = os.environ | {'XLA_FLAGS': ''}
    assert run(python, '-c', code, cwd=tmp_path, env=env).strip() == vqjax.__version__


@pytest.mark.slow
def test_the_sdist_holds_what_builds_and_tests_it(tmp_path):
    code = f'from hatchling.build import build_sdist; build_sdist({str(tmp_path)!r})'
    run(sys.executable, '-m', 'venv', str(tmp_path / 'venv'))
    python = str(tmp_path / 'venv' / 'bin' / 'python')
    run(python, '-m', 'pip', 'install', '--quiet', 'hatchling')
    run(python, '-c', code, cwd=ROOT)
    (sdist,) = tmp_path.glob('*.tar.gz')
    names = {name.split('/', 1)[1] for name in tarfile.open(sdist).getnames()}
    assert {'train.py', 'Makefile', 'LICENSE', 'configs/digits.py', 'tests/test_data.py'} <= names
    assert not any(name.startswith(('.venv', 'runs')) for name in names)
