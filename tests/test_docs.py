"""The documentation: its examples run, it misses no quantizer, and it builds without a warning."""

import doctest
import importlib
import os
import pathlib
import pkgutil
import re
import subprocess
import sys

import pytest
from support import table

import vqjax
from vqjax.quantizers import REGISTRY
from vqjax.quantizers.base import Base
from vqjax.testing import claims

CLAIMS = (claims.weights, claims.samples)
ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
BLOCK = re.compile(r'^```python\n(.*?)^```', re.MULTILINE | re.DOTALL)
WITH_CODE = [path for path in PAGES if BLOCK.search(path.read_text())]
# Pages whose examples take seconds.
SLOW = ('quantizers.md', 'recordings.md', 'parallel.md', 'behaviour.md', 'nnx.md', 'tutorial.md')
# What a page trains for minutes, the test trains for moments: a line of the page, and another.
SHORTER = {
    'tutorial.md': (
        'VQVAE_STEPS, PRIOR_STEPS, BATCH = 600, 2000 if LARGE else 400, 64\n',
        'VQVAE_STEPS, PRIOR_STEPS, BATCH = 2, 2, 16\n',
    )
}


@pytest.mark.parametrize(
    'path',
    [
        pytest.param(path, id=path.name, marks=pytest.mark.slow if path.name in SLOW else ())
        for path in WITH_CODE
    ],
)
def test_examples_run(path, tmp_path, monkeypatch):
    text = path.read_text()
    if 'codec.save' in text:
        pytest.importorskip('safetensors')
    if 'codec.save_codes' in text:
        pytest.importorskip('constriction')
    if path.name in SHORTER:
        long, short = SHORTER[path.name]
        assert text.count(long) == 1
        text = text.replace(long, short)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))  # no set is prepared there
    names = {'__name__': 'example'}
    for block in BLOCK.finditer(text):
        line = text[: block.start()].count('\n') + 1
        if block[1].startswith('>>> '):
            session = doctest.DocTestParser().get_doctest(block[1], names, path.name, path, line)
            runner = doctest.DocTestRunner(verbose=False)
            said = []
            assert not runner.run(session, out=said.append, clear_globs=False).failed, ''.join(said)
            names |= session.globs
        else:
            # Empty lines in front: a failure names the line of the page.
            exec(compile('\n' * line + block[1], str(path), 'exec'), names)


def test_there_are_examples_where_people_look_first():
    names = {path.name for path in WITH_CODE}
    assert {'README.md', 'quantizers.md', 'collapse.md', 'codec.md', 'moving.md'} <= names


def test_docstring_examples_run():
    for module in pkgutil.walk_packages(vqjax.__path__, 'vqjax.'):
        text = pathlib.Path(importlib.util.find_spec(module.name).origin).read_text()
        if '>>> ' in text:
            failed, _ = doctest.testmod(importlib.import_module(module.name))
            assert not failed, module.name


def test_every_table_is_that_of_the_committed_results(monkeypatch):
    pytest.importorskip('ml_collections')
    monkeypatch.syspath_prepend(ROOT / 'docs')
    tables = importlib.import_module('tables')
    marked = [p for p in ROOT.glob('**/*.md') if '<!-- table: ' in p.read_text()]
    assert sorted(marked) == sorted(ROOT / page for page in tables.PAGES)
    for path in marked:
        text = path.read_text()
        assert tables.render(text) == text, f'{path}: make tables'
        # Every block was filled in: none is followed at once by its end.
        assert '-->\n<!-- end -->' not in text
    for name in ('tables', 'benchmark_tables'):
        sys.modules.pop(name)


def places_of(kind):
    """Where a quantizer must be named, and whether it is."""
    name, file = kind.__name__, kind.__module__.rpartition('.')[-1]
    guide = (ROOT / 'docs' / 'quantizers.md').read_text()
    api = (ROOT / 'docs' / 'api' / 'quantizers.md').read_text()
    line = f'from vqjax.quantizers.{file} import {name} as {name}'
    return {
        f'vqjax/quantizers/registry.py: {line}': REGISTRY.get(file) is kind,
        f'tests/support.py, table(): an entry {name}(...)': kind in map(type, table().values()),
        f'vqjax/testing/: what {name} claims, `weights` and `samples` at least': all(
            claim.dispatch(kind) is not claim.dispatch(object) for claim in CLAIMS
        )
        or 'inner' in kind.__dataclass_fields__,
        f'docs/quantizers.md: a row | `{name}` | of the table': f'\n| `{name}` |' in guide,
        f'docs/quantizers.md: a section ### {name}': f'\n### {name}\n' in guide,
        f'docs/api/quantizers.md: ::: vqjax.quantizers.{file}.{name}': bool(
            re.search(rf'vqjax\.quantizers\.{file}(\.{name})?$', api, re.MULTILINE)
        ),
    }


def test_every_quantizer_is_named_wherever_it_must_be():
    """All that is missing at once, as lines to add; CONTRIBUTING.md has them too."""
    kinds = set()
    for module in pkgutil.iter_modules(vqjax.quantizers.__path__, 'vqjax.quantizers.'):
        found = vars(importlib.import_module(module.name)).values()
        kinds |= {
            kind
            for kind in found
            if isinstance(kind, type)
            and issubclass(kind, Base)
            and '__dataclass_fields__' in vars(kind)
        }
    assert set(REGISTRY.values()) <= kinds
    missing = [place for kind in kinds for place, named in places_of(kind).items() if not named]
    assert not missing, 'add\n' + '\n'.join(sorted(missing))


def test_the_guide_names_no_quantizer_that_is_gone():
    guide = (ROOT / 'docs' / 'quantizers.md').read_text()
    for pattern in (r'^\| `(\w+)` \|', r'^### (\w+)$'):
        found = set(re.findall(pattern, guide, re.MULTILINE))
        assert found <= {kind.__name__ for kind in REGISTRY.values()}


def test_every_remedy_of_the_collapse_page_names_something_that_exists():
    text = (ROOT / 'docs' / 'collapse.md').read_text()
    for name in re.findall(r'`(vqjax\.[\w.]+)`', text):
        found = vqjax
        for part in name.split('.')[1:]:
            if not hasattr(found, part):
                found = importlib.import_module(f'{found.__name__}.{part}')
            else:
                found = getattr(found, part)


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip('mkdocs')
    pytest.importorskip('material')
    pytest.importorskip('mkdocstrings')
    command = [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--quiet', '-d', str(tmp_path)]
    # The theme greets on stderr with news of its makers unless told not to.
    env = os.environ | {'NO_MKDOCS_2_WARNING': '1'}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / 'api' / 'quantizers' / 'index.html').read_text()
    assert all(f'.{kind.__name__}"' in page for kind in REGISTRY.values())
    # A function's result is one row, its module's functions are a table above them.
    ops = (tmp_path / 'api' / 'ops' / 'index.html').read_text()
    assert 'Functions:' in ops and 'A code that is not finite is never chosen' in ' '.join(
        ops.split()
    )
    assert (tmp_path / 'results' / 'nearest.png').is_file()
    # Nothing on a page is fetched from another host.
    home = (tmp_path / 'index.html').read_text()
    fetched = re.findall(r'<(?:link|script|img)[^>]+(?:href|src)="(https?:)?//', home)
    assert not fetched
