"""Files that are there whole or not at all, and JSON that may be damaged."""

import errno
import json
import os
import pathlib
import re
import secrets
import stat
from typing import Any


def to_json(value: Any) -> str:
    """Plain data as JSON that people read: an entry a line, but lists of numbers in one."""
    text = json.dumps(value, indent=1)
    # A line break cannot stand inside a string of JSON, so these are lists.
    return re.sub(r'\[(\n[^\[\]{}"]*)\]', lambda found: f'[{" ".join(found[1].split())}]', text)


def read_json(file: str | os.PathLike[str], remedy: str) -> dict[str, Any]:
    """The mapping in a JSON file.

    Args:
      remedy: what the reader of the message should do, after 'FILE is damaged (REASON): '.

    Raises:
      ValueError: the file cannot be read or holds no mapping; one sentence with its name.
    """
    try:
        text = pathlib.Path(file).read_text(encoding='utf-8')
    except UnicodeDecodeError as error:
        raise _damaged(file, f'byte {error.start} is not UTF-8 text', remedy) from error
    except (OSError, ValueError) as error:  # ValueError: a name that cannot be one
        reason = getattr(error, 'strerror', None) or error
        raise ValueError(f'{file} cannot be read ({reason}): {remedy}') from error
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = f'not valid JSON: {error}' if text.strip() else 'it is empty'
        raise _damaged(file, reason, remedy) from error
    if not isinstance(found, dict):
        kind = _KINDS.get(type(found), 'a number')
        raise _damaged(file, f'it holds {kind} instead of a mapping', remedy)
    return found


def _damaged(file: str | os.PathLike[str], reason: str, remedy: str) -> ValueError:
    return ValueError(f'{file} is damaged ({reason}): {remedy}')


_KINDS = {list: 'a list', str: 'a text', bool: 'true or false', type(None): 'null'}


def replace_file(target: str | os.PathLike[str], content: str | bytes) -> None:
    """Writes a file whole or not at all: what was there before stays where this fails.

    A new file gets the permissions that `open` would give it, an existing one keeps its own. Where
    the target is a symbolic link, the file that it points to is written.

    Raises:
      OSError: it cannot be written; its `filename` is the target.
    """
    content = content.encode() if isinstance(content, str) else content
    file = pathlib.Path(os.path.realpath(target))
    # Short, so that any name that the folder takes for a file can be written.
    temporary = file.with_name(f'.{file.name[:40]}.{secrets.token_hex(8)}')
    try:
        if not file.parent.exists():
            missing = f'there is no folder {file.parent} to write {file.name} to: make it'
            raise OSError(errno.ENOENT, missing)
        mode = _mode_of(file)
        # Made by `open`, so umask and default access lists count as for any other new file.
        with open(temporary, 'xb') as opened:
            try:
                opened.write(content)
                opened.flush()
                os.fsync(opened.fileno())
                if mode is not None:
                    temporary.chmod(mode)
                temporary.replace(file)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
    except OSError as error:
        # Named after the target: nobody has heard of the temporary file.
        raise OSError(error.errno, error.strerror or str(error), os.fspath(target)) from error


def _mode_of(file: pathlib.Path) -> int | None:
    """Permissions of a file, None where there is none; only regular files can be replaced."""
    try:
        found = os.lstat(file).st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISLNK(found):  # real paths have links in a circle alone
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    if stat.S_ISDIR(found):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(found):
        raise OSError(errno.EINVAL, 'not a regular file')
    return stat.S_IMODE(found)
