"""Files that are there whole or not at all."""

import json
import os
import pathlib
import re
import tempfile
from typing import Any


def to_json(value: Any) -> str:
    """Plain data as JSON that people read: an entry a line, but lists of numbers in one."""
    text = json.dumps(value, indent=1)
    # A line break cannot stand inside a string of JSON, so these are lists.
    return re.sub(r'\[(\n[^\[\]{}"]*)\]', lambda found: f'[{" ".join(found[1].split())}]', text)


def replace_file(target: pathlib.Path, content: str | bytes) -> None:
    """Writes a file whole or not at all: what was there before stays where this fails.

    Raises:
      OSError: it cannot be written.
    """
    content = content.encode() if isinstance(content, str) else content
    with tempfile.NamedTemporaryFile(
        dir=target.parent, prefix=f'.{target.name}.', delete=False
    ) as file:
        temporary = pathlib.Path(file.name)
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
