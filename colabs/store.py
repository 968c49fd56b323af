"""Runs notebooks and stores what they show, small enough for git: python colabs/store.py [NAME ...]

A page view then shows tables and pictures. A test compares the digest of the sources with the one
stored here, so that a changed notebook is stored again.
"""

from __future__ import annotations

import base64
import hashlib
import io
import pathlib
import re
import sys
import tempfile

import nbclient
import nbformat
from PIL import Image

FOLDER = pathlib.Path(__file__).parent
TEXTS = ('text/plain', 'text/html')
WIDTH, COLOURS = 720, 48  # of a stored picture: pixels, and entries of its palette


def digest(notebook: nbformat.NotebookNode) -> str:
    """Of the code of a notebook, whatever its outputs."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == 'code']
    return hashlib.sha256('\0'.join(code).encode()).hexdigest()[:16]


def run(notebook: nbformat.NotebookNode) -> None:
    """Fills in the outputs, from a clean kernel in this folder.

    Raises:
      nbclient.exceptions.CellExecutionError: for a cell that fails.
    """
    resources = {'metadata': {'path': str(FOLDER)}}
    nbclient.NotebookClient(notebook, timeout=3600, resources=resources).execute()


def small(picture: str) -> str:
    """A PNG in base64, at most `WIDTH` wide, in a palette of `COLOURS`."""
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert('RGB')
    if image.width > WIDTH:
        size = (WIDTH, round(image.height * WIDTH / image.width))
        image = image.resize(size, Image.Resampling.LANCZOS)
    stored = io.BytesIO()
    image.quantize(COLOURS).save(stored, 'PNG', optimize=True)
    return base64.b64encode(stored.getvalue()).decode()


def anywhere(text: str) -> str:
    """The text with FOLDER for every folder that was made to be thrown away."""
    return re.sub(re.escape(tempfile.gettempdir()) + r'/\w+', 'FOLDER', text)


def store(path: pathlib.Path) -> None:
    """Runs a notebook and writes it back with its outputs, without warnings and timestamps."""
    notebook = nbformat.read(path, as_version=4)
    run(notebook)
    for cell in notebook.cells:
        cell.metadata.pop('execution', None)
        for output in cell.get('outputs', []):
            if 'image/png' in output.get('data', {}):
                output.data = {'image/png': small(output.data['image/png'])}
            for part in (output, output.get('data', {})):
                part |= {k: anywhere(part[k]) for k in ('text', *TEXTS) if k in part}
        if cell.cell_type == 'code':
            cell.outputs = [o for o in cell.outputs if o.get('name') != 'stderr']
    notebook.metadata['stored'] = digest(notebook)
    nbformat.write(notebook, path)


if __name__ == '__main__':
    for name in sys.argv[1:] or sorted(path.stem for path in FOLDER.glob('*.ipynb')):
        store(FOLDER / f'{name}.ipynb')
        print(name, f'{(FOLDER / f"{name}.ipynb").stat().st_size / 1e3:.0f} kB')
