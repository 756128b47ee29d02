"""What can keep a server of this machine from running.

LocalError
├── FolderHeld      another process works in this folder
├── PortTaken       another process listens there
├── CannotStart     a file, a package or the system is not as it must be
└── NotReady        started, but gave no right answer in time
"""


class LocalError(Exception):
    """Base. The message is written for the person who ran the command."""


class FolderHeld(LocalError):
    """End the process that the message names, or use another folder."""


class PortTaken(LocalError):
    """End the process that the message names, or choose another port."""


class CannotStart(LocalError):
    """No retry helps until what the message names is put right."""


class NotReady(LocalError):
    """The message says how the last try failed; the server's own log says why."""
