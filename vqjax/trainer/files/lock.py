"""One process at a time in a folder, whichever way the one before ended."""

import fcntl
import json
import os
import pathlib
import platform
import threading
import time
from typing import Any

from vqjax.trainer.errors import FolderInUse

_SIZE = 512  # bytes of what the holder writes, always as many: it is replaced in one go
BEAT_S = 5.0


class FolderLock:
    """Holds a folder from construction to `close`.

    The kernel's lock on the file ends with the process that holds it, however that ends, so a
    killed run never stands in the way of the next one. Network file systems may keep such locks
    to each host, or have none. So the holder also writes who it is, counts in the file every
    `beat_s` seconds, and empties it when it closes; who finds a holder of another host (or any,
    where there are no locks) watches for two beats whether it still counts.

    Args:
      file: made if it is missing; it stays, and is empty while nobody holds the folder.

    Raises:
      FolderInUse: another process has it.
      OSError: the file cannot be made or written.
    """

    def __init__(self, file: pathlib.Path, beat_s: float = BEAT_S):
        self._path = file
        self._file = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._take(beat_s)
        except BaseException:
            os.close(self._file)
            raise
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, args=(beat_s,), daemon=True)
        self._thread.start()

    def _take(self, beat_s: float) -> None:
        locks = True
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderInUse(_words(self._read())) from None
        except OSError:  # a file system without locks
            locks = False
        self._me: dict[str, Any] = {'host': platform.node(), 'process': os.getpid()}
        before = self._read()
        if before and not (locks and before.get('host') == self._me['host']):
            time.sleep(2 * beat_s)
            if self._read() != before:
                raise FolderInUse(_words(before))
        self._me |= {'since': time.strftime('%Y-%m-%d %H:%M:%S'), 'beats': 0}
        self._write()
        if not locks:  # two may have come at once: the last one to write has it
            time.sleep(beat_s)
            if self._read() != self._me:
                raise FolderInUse(_words(self._read()))

    def _read(self) -> dict[str, Any]:
        """What the holder wrote; {} where nobody holds the folder, or it is not readable."""
        try:
            # Opened anew: over a network that is when other hosts' writes are looked for.
            found = json.loads(self._path.read_text())
        except (ValueError, OSError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self) -> None:
        os.pwrite(self._file, json.dumps(self._me).ljust(_SIZE).encode()[:_SIZE], 0)
        os.fsync(self._file)

    def _beat(self, beat_s: float) -> None:
        while not self._ended.wait(beat_s):
            self._me['beats'] += 1
            try:
                self._write()
            except OSError:  # a full disk, say: the run itself will meet it and tell
                pass

    def close(self) -> None:
        """Lets others have the folder."""
        self._ended.set()
        self._thread.join()
        try:
            os.ftruncate(self._file, 0)
        except OSError:  # the lock ends all the same
            pass
        os.close(self._file)


def _words(holder: dict[str, Any]) -> str:
    if not holder:
        return 'another process'
    return f'process {holder.get("process")} on {holder.get("host")}, since {holder.get("since")}'
