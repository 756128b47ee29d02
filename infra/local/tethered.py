"""`python -m infra.local.tethered COMMAND …`: runs the command so that it ends when its parent does, even by `kill -9`.

Linux tells a process of its parent's end when it has asked to be told. Elsewhere the command just runs.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def tether(signal_number: int = signal.SIGTERM) -> None:
    """Ask the system to send this process a signal when its parent ends. Survives `exec`."""
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0)
    if os.getppid() != parent:  # it ended between the two calls
        os.kill(os.getpid(), signal_number)


if __name__ == "__main__":
    tether()
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606 - running the command is what this is for
