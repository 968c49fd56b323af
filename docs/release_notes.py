"""The changelog's section of a version, for its release: python docs/release_notes.py v0.2.0"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).parent.parent
SECTION = re.compile(
    r'^## (\d+\.\d+\.\d+) \(([^\n]+)\)\n(.*?)(?=^## |\Z)', re.MULTILINE | re.DOTALL
)


def version() -> str:
    """That of the package, read and not imported: no dependency is needed."""
    text = (ROOT / 'vqjax' / '__init__.py').read_text()
    return re.search(r"^__version__ = '(.+?)'", text, re.MULTILINE)[1]


def notes(tag: str) -> str:
    """The section of the version that `tag` names.

    Raises:
      SystemExit: where tag, version and changelog do not agree, or the section has no date yet.
    """
    if tag != f'v{version()}':
        sys.exit(f'the tag {tag} is not v{version()}, the version in vqjax/__init__.py')
    sections = {m[1]: (m[2], m[3]) for m in SECTION.finditer((ROOT / 'CHANGELOG.md').read_text())}
    if version() not in sections:
        sys.exit(f'CHANGELOG.md has no section "## {version()} (YEAR-MONTH-DAY)"')
    date, text = sections[version()]
    if not re.fullmatch(r'\d{4}-\d{2}-\d{2}', date):
        sys.exit(f'CHANGELOG.md says of {version()} "{date}": write the day of the release there')
    return text.strip()


if __name__ == '__main__':
    print(notes(sys.argv[1] if len(sys.argv) > 1 else f'v{version()}'))
