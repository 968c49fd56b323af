"""The folder of one experiment: one configuration, one writer, nothing half written."""

import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from vqjax import atomic, runfiles
from vqjax.results.finished import FinishedRun
from vqjax.trainer.config.fields import complete
from vqjax.trainer.errors import FolderInUse, RunError
from vqjax.trainer.files import checkpoints, recorder
from vqjax.trainer.files.lock import FolderLock


class Workdir:
    """Claims a folder for a configuration.

    Args:
      path: made if it is missing.
      config: plain data, kept in config.json.

    Raises:
      RunError: it cannot be written, belongs to another configuration, or is in use.
    """

    def __init__(self, path: str | os.PathLike[str], config: dict[str, Any]):
        if '://' in os.fspath(path):
            raise RunError(f'workdir {path} is an address: give a folder, mounted where it is far')
        self.path = pathlib.Path(path)
        self.config = config
        self._made = None
        try:
            # The part of the path that is ours to remove again if nothing comes of this run.
            missing = [p for p in (self.path, *self.path.parents) if not p.exists()]
            self._made = missing[-1] if missing else None
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(self.path / '.lock')
        except (OSError, ValueError) as error:  # ValueError: a name that cannot be one
            self.discard()
            raise RunError(
                f'workdir {self.path} cannot be written '
                f'({getattr(error, "strerror", None) or error}): choose another with --workdir'
            ) from error
        except FolderInUse as holder:
            raise RunError(
                f'workdir {self.path} is in use by {holder}: wait for it, end it or choose '
                'another --workdir'
            ) from holder
        try:
            self._claim()
        except RunError:
            self.close()
            raise

    def _claim(self) -> None:
        file = self.path / runfiles.CONFIG
        if not file.exists():
            if any(self.path.glob('finished/*/*.json')):
                raise RunError(
                    f'workdir {self.path} holds finished runs but no config.json that says of '
                    'what: choose another --workdir'
                )
            self.write_json(runfiles.CONFIG, self.config)
            return
        there = read_json(file, 'choose another --workdir')
        found = checkpoints.differences(complete(there), complete(self.config))
        if found.keys() == {'data_digest'}:
            raise RunError(
                f'workdir {self.path} holds a run on other data: images, labels or splits are not '
                f'what they were ({checkpoints.describe(found, "there", "here")}); choose another '
                '--workdir'
            )
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
            atomic.replace_file(target, atomic.to_json(value))
        except OSError as error:
            raise RunError(cannot_write(target, error)) from error

    def checkpoints_of(self, method: str, seed: int) -> pathlib.Path:
        """Folder of the checkpoints of one run."""
        return runfiles.checkpoints_folder(self.path, method, seed)

    def finish(self, method: str, seed: int, run: FinishedRun) -> None:
        """Keeps the outcome of one run: it will not be trained again."""
        self.write_json(str(runfiles.record_file('', method, seed)), run.plain())

    def finished(self, method: str, seed: int) -> FinishedRun | None:
        """The outcome of one run, or None while it is not finished.

        Raises:
          RunError: its file is damaged; it is left as it is.
        """
        file = runfiles.record_file(self.path, method, seed)
        if not file.exists():
            return None
        try:
            return FinishedRun.load(file, seed)
        except ValueError as error:
            raise RunError(str(error)) from error

    def finished_run(self, method: str, seed: int) -> FinishedRun:
        """The outcome of a run that is finished.

        Raises:
          RunError: it is not, or its file is damaged.
        """
        found = self.finished(method, seed)
        if found is None:
            raise RunError(f'{method} with seed {seed} is not finished in {self.path}')
        return found

    def history(self, method: str, seed: int) -> list[Mapping[str, Any]]:
        """The records of a finished run in order: its evaluations and, if recorded, its steps.

        Raises:
          RunError: a file of them is damaged or missing.
        """
        file = runfiles.steps_file(self.path, method, seed)
        own = self.config | self.config.get('overrides', {}).get(method, {})
        if own.get('record') and not file.exists():
            raise RunError(
                f'{file} is missing, with what every step of that run told: remove '
                f'finished/{method}/seed_{seed}.json and checkpoints/{method}/seed_{seed} there, '
                'and the same command trains it again'
            )
        records = [*recorder.read_lines(file), *self.finished_run(method, seed).history]
        return sorted(records, key=lambda record: record['step'])

    def close(self) -> None:
        """Lets another run have the folder."""
        self._lock.close()

    def discard(self) -> None:
        """Removes what this object made, unless a run or a checkpoint has been finished in it."""
        if self._made is None:
            return
        kept = (*self.path.glob('finished/*/*.json'), *self.path.glob('checkpoints/*/*/[0-9]*'))
        if not kept:
            shutil.rmtree(self._made, ignore_errors=True)


def cannot_write(what: Any, error: OSError) -> str:
    """One line for a file that could not be written."""
    return (
        f'cannot write {what} ({error.strerror or error}); what was finished before is untouched: '
        'free space or allow writing there, then run the same command again'
    )


def read_json(file: pathlib.Path, remedy: str) -> dict[str, Any]:
    """The mapping in a file of JSON.

    Raises:
      RunError: it cannot be read or is none, with the remedy.
    """
    try:
        return atomic.read_json(file, remedy)
    except ValueError as error:
        raise RunError(str(error)) from error
