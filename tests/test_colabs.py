"""The notebooks: stripped and plain in git, and each runs from a clean kernel to what it says."""

import ast
import pathlib
import re

import pytest

nbformat = pytest.importorskip('nbformat')
nbclient = pytest.importorskip('nbclient')

FOLDER = pathlib.Path(__file__).parent.parent / 'colabs'
NAMES = sorted(path.stem for path in FOLDER.glob('*.ipynb'))


def read(name):
    return nbformat.read(FOLDER / f'{name}.ipynb', as_version=4)


def code(notebook):
    return [cell.source for cell in notebook.cells if cell.cell_type == 'code']


def test_there_are_the_notebooks_that_the_readme_names():
    assert NAMES == ['autopsy', 'compare', 'quickstart', 'tokens']


@pytest.mark.parametrize('name', NAMES)
def test_notebooks_are_stripped_and_hold_no_model(name):
    notebook = read(name)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == 'code']
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)
    assert "find_spec('vqjax') is None" in cells[0].source
    assert cells[0].source.endswith('%pip install --quiet "vqjax[train]"')
    source = '\n'.join(re.sub(r'^\s*%.*$', '', text, flags=re.M) for text in code(notebook)[1:])
    nodes = list(ast.walk(ast.parse(source)))
    assert not any(isinstance(node, ast.ClassDef) for node in nodes)
    imported = {
        a.name for n in nodes if isinstance(n, ast.ImportFrom | ast.Import) for a in n.names
    }
    assert not imported & {'flax.linen', 'linen', 'nn'}
    assert '://' not in '\n'.join(cell.source for cell in notebook.cells)


def test_the_comparison_sets_every_field_there_is():
    settings = pytest.importorskip('vqjax.trainer.settings')
    source = '\n'.join(text for text in code(read('compare')) if 'config = {' in text)
    (config,) = (
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Assign) and node.targets[0].id == 'config'
    )
    assert {key.value for key in config.keys} == set(settings.FIELDS)


def run(name):
    """Printed text and the number of pictures of a notebook, run in a clean kernel."""
    pytest.importorskip('ipykernel')
    notebook = read(name)
    resources = {'metadata': {'path': str(FOLDER)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()
    outputs = [o for cell in notebook.cells for o in cell.get('outputs', [])]
    text = ''.join(o.text for o in outputs if o.output_type == 'stream' and o.name == 'stdout')
    return text, sum('image/png' in o.get('data', {}) for o in outputs)


def number(pattern, text):
    return float(re.search(pattern, text)[1])


def test_autopsy():
    text, pictures = run('autopsy')
    assert 'K=256: clamped 1.0298, exact 1.0000' in text
    assert 'K=512: clamped 1.0606, exact 1.0000' in text
    without, corrected = text.split('without the factor')[1].split('with it')
    assert re.search(r'step  1: +1 codes in use', without)
    assert number(r'step  1: +(\d+) codes', corrected) > 40
    assert number(r'last step (\d+) codes', text) > 150
    assert 'error missing_total' in text and pictures == 1


@pytest.mark.long
def test_quickstart():
    text, pictures = run('quickstart')
    in_use = [int(number) for number in re.findall(r'(\d+) of 64 codes in use', text)]
    healthy, collapsed, revived, trained = in_use
    assert collapsed < 10 < trained and min(healthy, revived) > 55
    assert number(r'accuracy (0\.\d+)', text) > 0.95
    assert pictures == 5


@pytest.mark.long
def test_compare():
    text, pictures = run('compare')
    accuracy = {
        name: number(rf'{name} .*bits  accuracy ([\d.]+)', text) for name in ('none', 'vq_4')
    }
    assert accuracy['vq_4'] < 0.6 < 0.95 < accuracy['none']
    assert number(r'rvq +(\d+) bits', text) == 12
    assert pictures == 3


@pytest.mark.long
def test_tokens():
    text, pictures = run('tokens')
    assert '25408 pixels: 3970 bytes of codes' in text
    assert number(r"'relative_error': ([\d.]+)", text) < 0.1
    assert pictures == 3
