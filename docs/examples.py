"""The examples of README and documentation as Python files, for type checkers: `make lint`.

python docs/examples.py FOLDER
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r'^```python\n(.*?)^```', re.MULTILINE | re.DOTALL)


def write(folder: Path) -> list[Path]:
    """One file for each page with examples, its lines where they are on the page."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for page in [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]:
        text = page.read_text()
        lines = [''] * (text.count('\n') + 1)
        for block in BLOCK.finditer(text):
            first = text[: block.start()].count('\n') + 1
            for number, line in enumerate(_as_program(block[1]).splitlines(), first):
                lines[number] = line
        if any(lines):
            written.append(folder / f'{page.stem.replace("-", "_")}_example.py')
            written[-1].write_text('\n'.join(lines) + '\n')
    return written


def _as_program(block: str) -> str:
    """A session (`>>> `) without what it prints, line for line."""
    if not block.startswith('>>> '):
        return block
    lines = block.splitlines()
    return '\n'.join(line[4:] if line[:4] in ('>>> ', '... ') else '' for line in lines)


if __name__ == '__main__':
    print(*write(Path(sys.argv[1])), sep='\n')
