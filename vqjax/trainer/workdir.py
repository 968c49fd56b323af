"""The folder of one experiment: one configuration, one writer, nothing half written."""

import fcntl
import json
import os
import pathlib
import re
import shutil
import tempfile
from typing import Any

from vqjax.trainer import checkpoints, logs
from vqjax.trainer.settings import RunError


def to_json(value: Any) -> str:
    """Plain data as JSON that people read: an entry a line, but lists of numbers in one."""
    text = json.dumps(value, indent=1)
    # A line break cannot stand inside a string of JSON, so these are lists.
    return re.sub(r'\[(\n[^\[\]{}"]*)\]', lambda found: f'[{" ".join(found[1].split())}]', text)


class Workdir:
    """Claims a folder for a configuration.

    Args:
      path: made if it is missing.
      config: plain data, kept in config.json.

    Raises:
      RunError: it cannot be written, belongs to another configuration, or is in use.
    """

    def __init__(self, path: str | os.PathLike, config: dict[str, Any]):
        self.path = pathlib.Path(path)
        self.config = config
        # The part of the path that is ours to remove again if nothing comes of this run.
        missing = [p for p in (self.path, *self.path.parents) if not p.exists()]
        self._made = missing[-1] if missing else None
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / '.lock').open('w')
        except OSError as error:
            self.discard()
            raise RunError(
                f'workdir {self.path} cannot be written ({error.strerror}): choose another with '
                '--workdir'
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(
                f'workdir {self.path} is in use by another run: wait for it or choose another '
                '--workdir'
            ) from error
        try:
            self._claim()
        except RunError:
            self.close()
            raise

    def _claim(self) -> None:
        file = self.path / 'config.json'
        if not file.exists():
            self.write_json('config.json', self.config)
            return
        found = checkpoints.differences(json.loads(file.read_text()), self.config)
        if found:
            raise RunError(
                f'workdir {self.path} holds a run of another configuration: '
                f'{checkpoints.describe(found, "there", "here")}; choose another --workdir'
            )

    def write_json(self, name: str, value: Any) -> None:
        """Writes plain data to a file of this folder: whole, or not at all.

        Raises:
          RunError: it cannot be written.
        """
        target = self.path / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                'w', dir=target.parent, prefix=f'.{target.name}.', delete=False
            ) as file:
                temporary = pathlib.Path(file.name)
                try:
                    file.write(to_json(value))
                    file.flush()
                    os.fsync(file.fileno())
                    temporary.chmod(0o644)
                    temporary.replace(target)
                except BaseException:
                    temporary.unlink(missing_ok=True)
                    raise
        except OSError as error:
            raise RunError(f'cannot write {target} ({error.strerror})') from error

    def checkpoints_of(self, method: str, seed: int) -> pathlib.Path:
        """Folder of the checkpoints of one run."""
        return self.path / 'checkpoints' / method / f'seed_{seed}'

    def finish(self, method: str, seed: int, record: dict[str, Any]) -> None:
        """Keeps the outcome of one run: it will not be trained again."""
        self.write_json(f'finished/{method}/seed_{seed}.json', record)

    def finished(self, method: str, seed: int) -> dict[str, Any] | None:
        """The outcome of one run, or None while it is not finished."""
        file = self.path / 'finished' / method / f'seed_{seed}.json'
        return json.loads(file.read_text()) if file.exists() else None

    def history(self, method: str, seed: int) -> list[dict[str, Any]]:
        """The records of a finished run in order: its evaluations and, if recorded, its steps."""
        steps = logs.read_lines(logs.records_file(self.path, method, seed))
        evaluations = self.finished(method, seed)['history']
        return sorted([*steps, *evaluations], key=lambda record: record['step'])

    def close(self) -> None:
        """Lets another run have the folder."""
        self._lock.close()

    def discard(self) -> None:
        """Removes what this object made, unless a run or a checkpoint has been finished in it."""
        kept = (*self.path.glob('finished/*/*.json'), *self.path.glob('checkpoints/*/*/[0-9]*'))
        if self._made is not None and not kept:
            shutil.rmtree(self._made, ignore_errors=True)
