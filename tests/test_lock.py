"""One process at a time in a folder: who has it is named, and the dead stand in nobody's way."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from vqjax.trainer.errors import FolderInUse
from vqjax.trainer.files.lock import FolderLock

BEAT = 0.1
HOLDER = (
    'import pathlib, sys, time\n'
    'from vqjax.trainer.files.lock import FolderLock\n'
    'held = FolderLock(pathlib.Path(sys.argv[1]))\n'
    'print("held", flush=True)\n'
    'time.sleep(600)\n'
)


def wait(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_one_who_has_it_is_named_and_a_killed_one_is_not_waited_for(tmp_path):
    file = tmp_path / '.lock'
    other = subprocess.Popen([sys.executable, '-c', HOLDER, str(file)], stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b'held\n'
        with pytest.raises(FolderInUse, match=f'process {other.pid} on .*, since 20'):
            FolderLock(file)
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert json.loads(file.read_text())['process'] == other.pid  # it could not say goodbye
    begun = time.monotonic()
    FolderLock(file).close()
    assert time.monotonic() - begun < 2  # well below the two beats of another host


def test_it_is_free_again_when_closed(tmp_path):
    for _ in range(2):
        held = FolderLock(tmp_path / '.lock')
        with pytest.raises(FolderInUse, match=f'process {os.getpid()}'):
            FolderLock(tmp_path / '.lock')
        held.close()
        assert (tmp_path / '.lock').read_text() == ''


@pytest.fixture(params=['locks of each host', 'no locks'])
def elsewhere(tmp_path, request, monkeypatch):
    """The lock of a process of another host, whose kernel lock is not seen here."""
    if request.param == 'no locks':

        def refuse(*_):
            raise OSError(95, 'Operation not supported')

        monkeypatch.setattr(fcntl, 'flock', refuse)
    file = tmp_path / '.lock'
    holder = {'host': 'elsewhere', 'process': 7, 'since': '2026-01-01 00:00:00', 'beats': 3}
    file.write_text(json.dumps(holder))
    return file, holder


def test_a_living_process_of_another_host_has_the_folder(elsewhere):
    file, holder = elsewhere
    ended = threading.Event()

    def live():
        while not ended.wait(BEAT / 2):
            holder['beats'] += 1
            beside = file.with_name('beside')
            beside.write_text(json.dumps(holder))
            beside.replace(file)

    thread = threading.Thread(target=live)
    thread.start()
    try:
        with pytest.raises(FolderInUse, match='process 7 on elsewhere, since 2026-01-01'):
            FolderLock(file, BEAT)
    finally:
        ended.set()
        thread.join()


def test_a_dead_process_of_another_host_does_not(elsewhere):
    file, _ = elsewhere
    held = FolderLock(file, BEAT)
    mine = json.loads(file.read_text())
    assert mine['process'] == os.getpid()
    wait(lambda: json.loads(file.read_text())['beats'] > mine['beats'])  # it says that it lives
    held.close()
    assert file.read_text() == ''


@pytest.mark.parametrize('content', [b'', b'\0' * 512, b'{"host": ', b'[1]', b'\xff\xfe'])
def test_a_damaged_file_is_nobodys(tmp_path, content):
    (tmp_path / '.lock').write_bytes(content)
    FolderLock(tmp_path / '.lock', BEAT).close()
