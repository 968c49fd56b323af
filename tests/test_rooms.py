"""The three rooms: what may import what, no circles, how heavy `import vqjax` is."""

import ast
import importlib
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


def modules():
    """Dotted name -> file of every module."""
    found = {}
    for path in FILES:
        parts = path.relative_to(PACKAGE.parent).with_suffix('').parts
        found['.'.join(parts[:-1] if parts[-1] == '__init__' else parts)] = path
    return found


def targets(name, known):
    """The module that an imported name is, or stands in; '' where it is none of ours."""
    return name if name in known else name.rpartition('.')[0] if name.startswith('vqjax') else ''


def test_no_modules_import_each_other_in_a_circle():
    known = modules()
    # Packages hand names on; what ties a circle is found at the modules that define them.
    tied = {
        name: {
            there
            for there in (targets(n, known) for n in imported(path.read_text(), name.split('.')))
            if there in known and known[there].name != '__init__.py' and there != name
        }
        for name, path in known.items()
        if path.name != '__init__.py'
    }
    while free := [name for name, others in tied.items() if not others & tied.keys()]:
        for name in free:
            del tied[name]
    assert not tied


@pytest.mark.parametrize(
    'path',
    [p for p in FILES if room(p.relative_to(PACKAGE.parent).parts) != 'library'],
    ids=lambda p: str(p.relative_to(PACKAGE)),
)
def test_names_are_imported_from_where_they_are_defined(path):
    known = modules()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or node.module not in known:
            continue
        if known[node.module].name == '__init__.py':
            continue
        there = ast.parse(known[node.module].read_text())
        again = {
            alias.asname or alias.name
            for other in there.body
            if isinstance(other, ast.ImportFrom) and (other.module or '').startswith('vqjax')
            for alias in other.names
        }
        passed_on = again & {alias.name for alias in node.names}
        assert not passed_on, f'{path} takes {passed_on} from {node.module}, which imports them'


@pytest.mark.parametrize(
    'old, name',
    [
        ('vqjax.trainer.models', 'Classifier'),
        ('vqjax.trainer.training', 'eval_step'),
        ('vqjax.trainer.loop', 'evaluate'),
        ('vqjax.trainer.finished', 'read'),
        ('vqjax.trainer.folds', 'one_fold'),
        ('vqjax.trainer.recording_files', 'read_folder'),
        ('vqjax.studies.report', 'table'),
        ('vqjax.studies.peers', 'TokensHMM'),
    ],
)
def test_a_moved_module_is_found_under_its_old_name_and_says_where_it_is(old, name):
    pytest.importorskip('orbax.checkpoint')
    pytest.importorskip('sklearn')
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f'{old} is now'):
        module = importlib.import_module(old)
    assert getattr(module, name).__name__ == name
    with pytest.raises(AttributeError, match='has no attribute .nothing.'):
        module.nothing  # noqa: B018
