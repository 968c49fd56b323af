"""What the site takes from elsewhere: the pictures of the benchmarks; links for names of pages."""

import os
import re
from pathlib import Path

from mkdocs.structure.files import File, Files

# Reports are written to any folder, so they name a page by its path in the repository.
_PAGE = re.compile(r'`docs/([\w/]+\.md)`')


def on_files(files: Files, config) -> Files:
    """Adds them where `performance.md`, which is the benchmarks' README, looks for them."""
    results = Path(config.config_file_path).parent / 'benchmarks' / 'results'
    for path in sorted(results.rglob('*.png')):
        name = f'results/{path.relative_to(results).as_posix()}'
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page, config, files: Files) -> str:
    """Turns the path of a page, such as `docs/sources.md`, into a link to it."""

    def link(match: re.Match) -> str:
        target = match[1]
        if files.get_file_from_path(target) is None:
            return match[0]
        return f'[{match[0]}]({os.path.relpath(target, os.path.dirname(page.file.src_uri) or ".")})'

    return _PAGE.sub(link, markdown)
