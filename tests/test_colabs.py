"""The notebooks: plain, their pictures small, and each runs from a clean kernel to its claims."""

import ast
import base64
import importlib
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

nbformat = pytest.importorskip('nbformat')
nbclient = pytest.importorskip('nbclient')

FOLDER = pathlib.Path(__file__).parent.parent / 'colabs'
PICTURES = {
    'autopsy': 1,
    'behaviour': 1,
    'compare': 3,
    'generate': 2,
    'quickstart': 5,
    'tokens': 3,
}
# The page of the documentation that has the same code, and its pictures.
PAGE, SHOWN = FOLDER.parent / 'docs' / 'tutorial.md', ('restored.png', 'generated.png')
TEXTS = ('text', 'text/plain', 'text/html')
NAMES = sorted(path.stem for path in FOLDER.glob('*.ipynb'))
PROJECT = tomllib.loads((FOLDER.parent / 'pyproject.toml').read_text())['project']
REPOSITORY = PROJECT['urls']['Repository']


def read(name):
    return nbformat.read(FOLDER / f'{name}.ipynb', as_version=4)


def code(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == 'code']


def test_there_are_the_notebooks_that_the_readme_names():
    assert NAMES == sorted(PICTURES)


@pytest.mark.parametrize('name', NAMES)
def test_notebooks_hold_no_model_and_no_address(name):
    notebook = read(name)
    lesson = name == 'generate'  # whose subject is how such a model is written
    nbformat.validate(notebook)
    source = '\n'.join(re.sub(r'^\s*%.*$', '', text, flags=re.M) for text in code(notebook))
    nodes = list(ast.walk(ast.parse(source)))
    assert lesson == any(isinstance(node, ast.ClassDef) for node in nodes)
    imported = {
        a.name for n in nodes if isinstance(n, ast.ImportFrom | ast.Import) for a in n.names
    }
    assert not imported & {'flax.linen', 'linen', 'nn'}
    # One address, that of the project.
    text = '\n'.join(cell.source for cell in notebook.cells)
    assert '://' not in text.replace(f'git+{REPOSITORY}', '')


@pytest.mark.parametrize('name', NAMES)
def test_stored_pictures_are_of_this_code_and_small(name, monkeypatch):
    pytest.importorskip('PIL')
    monkeypatch.syspath_prepend(FOLDER)
    notebook, path = read(name), FOLDER / f'{name}.ipynb'
    assert notebook.metadata['stored'] == importlib.import_module('store').digest(notebook), (
        f'python colabs/store.py {name}'
    )
    assert path.stat().st_size < 300e3
    outputs = [o for cell in notebook.cells for o in cell.get('outputs', [])]
    assert sum('image/png' in o.get('data', {}) for o in outputs) == PICTURES[name]
    texts = [part.get(k, '') for o in outputs for part in (o, o.get('data', {})) for k in TEXTS]
    shown = ''.join(texts)
    # Nothing of the machine they were made on.
    assert not re.search(r'/(tmp|home|root|Users|var)/', shown)
    sys.modules.pop('store')


def test_the_tutorial_has_the_code_of_its_notebook_and_its_pictures():
    page, notebook = PAGE.read_text(), read('generate')
    blocks = iter(re.findall(r'^```python\n(.*?)\n```', page, re.M | re.S))
    for source in code(notebook)[1:]:
        assert source.replace('\n%matplotlib inline\n', '') in blocks, source
    outputs = [o for cell in notebook.cells for o in cell.get('outputs', [])]
    pictures = [o.data['image/png'] for o in outputs if 'image/png' in o.get('data', {})]
    for name, picture in zip(SHOWN, pictures, strict=True):
        assert f'(tutorial/{name})' in page
        # As `python colabs/store.py generate` stored it.
        assert (PAGE.parent / 'tutorial' / name).read_bytes() == base64.b64decode(picture)


def first_cell(monkeypatch, folder, finds):
    """Runs it in `folder` where looking for vqjax succeeds as in `finds`; pip's arguments."""
    asked = []

    def install(command, **_):
        asked.append(command[4:])
        return subprocess.CompletedProcess(command, returncode=not finds[-1])

    answers = iter(finds)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, 'path', list(sys.path))
    monkeypatch.setattr(importlib.util, 'find_spec', lambda _: next(answers) or None)
    monkeypatch.setattr(subprocess, 'run', install)
    exec(code(read('quickstart'))[0], {})
    return asked


def test_the_first_cell_finds_vqjax_installed_in_a_checkout_or_cloned(monkeypatch, tmp_path):
    assert len({code(read(name))[0] for name in NAMES}) == 1
    assert first_cell(monkeypatch, FOLDER, [True]) == []
    checkout = str(FOLDER.parent)
    assert first_cell(monkeypatch, FOLDER, [False, True]) == [
        ['--quiet', '-e', checkout + '[train,entropy]']
    ]
    assert sys.path[0] == checkout
    clone = f'vqjax[train,entropy] @ git+{REPOSITORY}'
    assert first_cell(monkeypatch, tmp_path, [False, True]) == [['--quiet', clone]]
    with pytest.raises(SystemExit, match='clone its repository and open this notebook'):
        first_cell(monkeypatch, tmp_path, [False, False])


def test_the_comparison_states_only_what_it_varies():
    fields = pytest.importorskip('vqjax.trainer.config.fields')
    source = '\n'.join(text for text in code(read('compare')) if 'config = {' in text)
    (config,) = (
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Assign) and node.targets[0].id == 'config'
    )
    stated = {key.value: value for key, value in zip(config.keys, config.values, strict=True)}
    plain = {k: ast.literal_eval(v) for k, v in stated.items() if k != 'quantizers'}
    assert all(fields.FIELDS[name].default != value for name, value in plain.items())


def run(name, long='', short=''):
    """Printed text and the number of pictures of a notebook, run in a clean kernel.

    Its line `long` becomes `short`, for one that trains longer than a test should.
    """
    pytest.importorskip('ipykernel')
    notebook = read(name)
    if long:
        (cell,) = [cell for cell in notebook.cells if long in cell.source]
        cell.source = cell.source.replace(long, short)
    resources = {'metadata': {'path': str(FOLDER)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()
    outputs = [o for cell in notebook.cells for o in cell.get('outputs', [])]
    text = ''.join(o.text for o in outputs if o.output_type == 'stream' and o.name == 'stdout')
    return text, sum('image/png' in o.get('data', {}) for o in outputs)


def number(pattern, text):
    return float(re.search(pattern, text)[1])


@pytest.mark.slow
def test_autopsy():
    text, pictures = run('autopsy')
    assert 'K=256: clamped 1.0298, exact 1.0000' in text
    assert 'K=512: clamped 1.0606, exact 1.0000' in text
    without, corrected = text.split('without the factor')[1].split('with it')
    assert re.search(r'step  1: +1 codes in use', without)
    assert number(r'step  1: +(\d+) codes', corrected) > 40
    assert number(r'last step (\d+) codes', text) > 150
    assert 'error missing_total' in text and pictures == PICTURES['autopsy']


@pytest.mark.slow
def test_quickstart():
    text, pictures = run('quickstart')
    in_use = [int(number) for number in re.findall(r'(\d+) of 64 codes in use', text)]
    healthy, collapsed, revived, trained = in_use
    assert collapsed < 10 < trained and min(healthy, revived) > 55
    assert number(r'accuracy (0\.\d+)', text) > 0.95
    assert pictures == PICTURES['quickstart']


@pytest.mark.slow
def test_compare():
    text, pictures = run('compare')
    accuracy = {
        name: number(rf'{name} .*bits  accuracy ([\d.]+)', text) for name in ('none', 'vq_4')
    }
    assert accuracy['vq_4'] < 0.6 < 0.95 < accuracy['none']
    assert number(r'rvq +(\d+) bits', text) == 12
    assert pictures == PICTURES['compare']


@pytest.mark.slow
def test_behaviour():
    pytest.importorskip('aeon')
    text, pictures = run('behaviour')
    assert number(r'windows of 2 s: ([\d.]+)%', text) > 95
    lags = [float(seconds) for seconds in re.findall(r'([\d.]+) s late', text)]
    told = [float(share) for share in re.findall(r'([\d.]+)% of the steps', text)]
    assert lags == sorted(lags) and told[-1] > max(80, told[0] - 1)
    assert pictures == PICTURES['behaviour']


@pytest.mark.slow
def test_tokens():
    text, pictures = run('tokens')
    assert '25408 pixels: 3970 bytes of codes' in text
    assert number(r"'relative_error': ([\d.]+)", text) < 0.1
    assert pictures == PICTURES['tokens']


@pytest.mark.slow
def test_generate(monkeypatch, tmp_path):
    pytest.importorskip('constriction')
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))  # no MNIST there: the digits of scikit-learn
    long = re.search('^VQVAE_STEPS.*$', PAGE.read_text(), re.M)[0]
    text, pictures = run('generate', long, 'VQVAE_STEPS, PRIOR_STEPS, BATCH = 200, 250, 64')
    assert 'digits: 1437 images of (8, 8, 1), 360 for the test' in text
    assert number(r'step 200: ([\d.]+)% of the variance', text) < 20
    fixed, rate = re.search(
        r'(\d+) bits per image at fixed width, (\d+) by the prior', text
    ).groups()
    assert fixed == '192' and int(rate) < 170
    histogram, prior = (
        number(rf'{name}: +([\d,]+) bytes', text.replace(',', ''))
        for name in ('histogram', 'prior')
    )
    assert prior < histogram < 360 * 192 / 8
    assert pictures == PICTURES['generate']
