import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from infra.local.errors import FolderHeld
from infra.local.lock import hold
from tests.servers import REPOSITORY

HOLD = """
import sys, time
from pathlib import Path
from infra.local.lock import hold
lock = hold(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@contextmanager
def holder(folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], cwd=REPOSITORY, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        try:
            yield process
        finally:
            process.kill()


def test_the_second_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    with holder(tmp_path) as process, pytest.raises(FolderHeld) as told:
        hold(tmp_path)
    assert re.search(rf"in use by pid {process.pid} since 20\d\d-\d\d-\d\dT\S+: python\S* -c", str(told.value))


def test_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.kill()
        process.wait()
        hold(tmp_path).release()


def test_a_predecessor_that_is_just_ending_is_waited_for(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        threading.Timer(0.2, process.kill).start()
        hold(tmp_path, wait_s=10).release()


def test_a_released_folder_can_be_held_again(tmp_path: Path) -> None:
    with hold(tmp_path), pytest.raises(FolderHeld, match=f"pid {os.getpid()}"):
        hold(tmp_path)
    hold(tmp_path).release()


def test_a_forked_child_does_not_keep_its_parents_lock(tmp_path: Path) -> None:
    lock = hold(tmp_path)
    ready, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(go)
        os.read(ready, 1)  # until the parent is done
        os._exit(0)
    try:
        lock.release()
        hold(tmp_path).release()
    finally:
        os.close(go)
        os.close(ready)
        os.waitpid(pid, 0)


def test_a_forked_child_does_not_end_its_parents_lock(tmp_path: Path) -> None:
    with hold(tmp_path):
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        with pytest.raises(FolderHeld):
            hold(tmp_path)
