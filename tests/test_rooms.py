"""The three rooms: what may import what, how heavy `import vqjax` is, how long a file may be."""

import ast
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / 'vqjax'
FILES = sorted(PACKAGE.rglob('*.py'))
ROOMS = ('library', 'trainer', 'studies')  # each may import those before it
# Bridges and files that read what a training run left; the library proper works without them.
HEAVY = ('orbax', 'grain', 'tensorflow_datasets', 'matplotlib', 'tensorboardX', 'sklearn')


def room(parts):
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else 'library'


def imported(source, package):
    """Dotted names of all that a source imports, inside functions too; package: where it stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = [*above, *([node.module] if node.module else [])]
            yield from ('.'.join([*base, alias.name]) for alias in node.names)


def test_there_are_files_in_every_room():
    for name in ROOMS:
        found = [p for p in FILES if room(p.relative_to(PACKAGE.parent).parts) == name]
        assert len(found) > 10, (name, found)


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    parts = path.relative_to(PACKAGE.parent).parts
    here = ROOMS.index(room(parts))
    for name in imported(path.read_text(), parts[:-1]):
        there = name.split('.')
        if there[0] == 'vqjax':
            assert ROOMS.index(room(there)) <= here, f'{path} imports {name}'


def test_relative_imports_inside_functions_are_read_too():
    source = 'def f():\n    from ..trainer import data\n    from . import gradients\n'
    found = list(imported(source, ('vqjax', 'ops')))
    assert found == ['vqjax.trainer.data', 'vqjax.ops.gradients']


def test_importing_the_package_brings_in_the_library_alone():
    code = (
        'import sys, flax; before = set(sys.modules); import vqjax;'
        'print(*set(sys.modules) - before)'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = done.stdout.split()
    assert 'vqjax.quantizers' in names
    wrong = [
        n
        for n in names
        if n.startswith(('vqjax.trainer', 'vqjax.studies')) or n.split('.')[0] in HEAVY
    ]
    assert not wrong, wrong
    assert not [n for n in names if n.startswith('vqjax.hsmm')]
