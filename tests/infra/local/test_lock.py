import os
import re
import signal
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
def holder(folder: Path, script: str = HOLD) -> Iterator["subprocess.Popen[bytes]"]:
    command = [sys.executable, "-c", script, str(folder)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, start_new_session=True) as process:
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


# Forks once it holds, and says so only when the child has come up.
FORK = HOLD.replace(
    'print("held", flush=True)',
    """
import os
if os.fork() == 0:
    print("held", flush=True)
""",
)


def test_a_forked_child_neither_ends_nor_keeps_its_parents_lock(tmp_path: Path) -> None:
    with holder(tmp_path, FORK) as process:
        with pytest.raises(FolderHeld, match=f"pid {process.pid} "):
            hold(tmp_path)
        process.kill()
        process.wait()
        hold(tmp_path).release()
        os.killpg(process.pid, signal.SIGKILL)
